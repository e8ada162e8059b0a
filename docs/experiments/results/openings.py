"""How the page of each question opens: three sentences, the claim, what was done, the verdict.

Figures are read from the stored results, so that a page cannot say another. "Holds" asks for as
many features in the classes compared, a null, images as the unit, a paired test, and no choice made
on what is tested; where the stored result has not all of these, it says "not shown".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from results import common
from results.common import Opening

ZOO = "emoji-clip joint, dictionary"
Stored = dict[str, Any]


def classes(stored: Stored) -> Opening:
    """Of the census."""
    rules = stored[ZOO]["rules"]
    earned, sd = rules["interval"]["counts"], rules["sd"]["counts"]
    swapped = {
        kind: f"{rules['interval']['expected'][kind][0]:.1f}"
        for kind in ("vision", "language", "cross")
    }
    return Opening(
        f"A label is earned where a 90 % interval lies wholly beyond a cut or between the cuts: "
        f"of 512 features {earned['vision']} are vision-dominant, {earned['language']} "
        f"language-dominant, {earned['cross']} cross-modal and {earned['undecided']} undecided, "
        f"and with image and text swapped {swapped['vision']}, {swapped['language']} and "
        f"{swapped['cross']} are. The paper's rule, mean -+ sd, labels all of them: it calls "
        f"{sd['vision']} vision-dominant and would call {rules['sd']['expected']['vision'][0]:.0f} "
        "so without any effect of modality. How many features each class has is no evidence of "
        "meaning, since Gaussians of the same covariance have as many ([real CLIP](real-clip.md)).",
        "Features fall into vision-dominant, language-dominant and cross-modal ones, by mean -+ "
        "sd.",
        "Every rule on every dictionary of the zoo, beside image and text swapped inside pairs.",
        "Not shown by mean -+ sd. Holds against swapping, by labels that are earned feature by "
        "feature: there are features of one modality, on a host in which the factors are planted. "
        "The census itself shows nothing.",
    )


def ground_truth(stored: Stored) -> Opening:
    """Of scores against planted factors."""
    truth = stored[ZOO]
    one = {name: common.cell(s[0]) for name, s in truth["vision-only"]["scores"].items()}
    both = {name: common.cell(s[0]) for name, s in truth["shared"]["scores"].items()}
    return Opening(
        f"MDS tells the {truth['vision-only']['positive']} features of what only images show from "
        f"others (AUC {one['MDS']}), and firing rates alone do as well "
        f"({one['firing rates alone']}). It hardly tells shared features "
        f"({both['MDS']}). Scores that look at the pairing do: Fisher's test of co-firing reaches "
        f"{both[TEST]}.",
        "MDS says which modality a feature belongs to, and which features are shared.",
        "AUC of each score against factors that were planted in the pairs, which no score was "
        "chosen by.",
        "Holds for features of one modality, where factors are planted; that it does better than "
        "firing rates is not shown. Does not hold for shared ones: Fisher's test tells "
        "them better, by Holm's method too.",
    )


def training(stored: Stored) -> Opening:
    """Of ways of training."""
    mean = {
        name: {k: sum(line[k] for line in lines) / len(lines) for k in ("zero_shot", "explained")}
        for name, lines in stored.items()
    }
    zero = {name: f"{common.figure(each['zero_shot'], 3)}" for name, each in mean.items()}
    ncl = zero["NCL head, t = .05"]
    return Opening(
        f"A contrastive head (NCL) recognises nearly as well as the embeddings, {ncl} of "
        f"{zero['raw neurons']}, and keeps only what both sides share. A group-sparse penalty "
        f"with a mask gains a little over TopK, {zero['TopK + group + mask (MGSAE)']} against "
        f"{zero['TopK']}. Separate dictionaries, matched afterwards, do not find the same "
        f"features ({zero['separate + matched']}).",
        "A shared SAE and multimodal NCL give more interpretable features than raw ones.",
        "Eleven ways, five seeds each, on the same embeddings; rates and penalties chosen on "
        "other drawings.",
        "Not shown: that single features follow single factors where raw neurons do not is a "
        "largest share of 512 features against one of 192 neurons, with no dictionary of random "
        "directions beside. How they compare with the paper's cannot be tried here, since its "
        "models are not public.",
    )


def edits(stored: Stored) -> Opening:
    """Of rules at equal effect."""
    left = {
        name: common.cell(line["retrieval"])
        for task in ("remove", "turn")
        for name, line in stored[task].items()
    }
    out, added = "baseline: class means projected out", "baseline: difference in means added"
    return Opening(
        f"Taking a background out by `Ablate` leaves retrieval at {left['Ablate']}, and "
        f"projecting the class means out, which takes no dictionary, at {left[out]}. Turning it "
        f"blue by `Blend` leaves {left[BLEND]}, adding a difference of means {left[added]}. "
        f"`Steer` leaves {left['Steer (3 features)']} and `Clamp` {left['Clamp']}, at the same "
        "effect.",
        "Editing features by class changes a model without training (no rule is named).",
        "Every rule, at the least strength that reaches the same effect, beside baselines "
        "without a dictionary and random features, with McNemar's test image by image.",
        "Not shown that features edit better than a difference of means: at equal effect neither's "
        "cost is told from that of no edit. That a few features have the effect is what their "
        "strength was searched for; as many random ones reach it at none.",
    )


def interpretability(stored: Stored) -> Opening:
    """Of likeness of examples."""
    names = stored[ZOO]["names of images"]["vision"]
    raw = stored["emoji-clip joint, neurons"]["names of images"]["cross"]
    lift = {m: common.cell(names[m]["lift"], 2) for m in ("10", "50")}
    return Opening(
        f"The ten strongest images of a vision feature are {lift['10']} more alike than random "
        f"ones, by an independent encoder. Of fifty it is {lift['50']}, so the number depends on "
        f"m. Raw neurons reach {common.cell(raw['10']['lift'], 2)}.",
        "SAE and NCL features are more interpretable than CLIP's own by EmbSim and WinRate.",
        "m = 10, 20, 30 and 50, four judges, two hosts, beside random examples and raw neurons.",
        "Holds against random examples on emoji-clip, by little. Not shown against raw neurons, "
        "which are not as many and have no dictionary of random directions beside them, nor "
        "between classes, which are not of equal size.",
    )


def layers(stored: Stored) -> Opening:
    """Of a generative host."""
    own, wrong = (stored[f"language.3, {whose}"]["paired"] for whose in ("its own", "a wrong one"))
    return Opening(
        "The features that fire on image and caption together become more with depth, from "
        f"{stored['language.0, its own']['paired']} in the first layer to {own} in the last. With "
        f"a wrong caption they are {wrong}. Text tokens read the image before them, which is not "
        "yet the same meaning in both.",
        "Reviews asked for generative hosts.",
        "emoji-llava, layer by layer, with its own and with wrong captions as the null.",
        "Not shown that layers fuse meaning: the null is nearly as high.",
    )


def groups(stored: Stored) -> Opening:
    """Of classes as groups, and the gap."""
    one = stored["gap"]["dictionary, one centre"]["rows"]
    raw = stored["gap"]["raw neurons"]["rows"]["centred"]
    return Opening(
        "MDS sees the gap shrink a little: centring takes it from "
        f"{common.figure(one['raw']['gap'])} to {common.figure(one['centred']['gap'])} and "
        f"one-sidedness changes by {common.cell(one['centred']['change'])}. Raw neurons do not "
        f"see it ({common.cell(raw['change'])}). Features of a class are not shown to be more "
        "alike than random ones.",
        "Reviews asked whether MDS sees gap closers, what groups share, and about word categories.",
        "Embeddings centred, standardised and with the gap doubled; classes beside as many "
        "random features; words beside captions dealt at random.",
        "Not shown for the gap: MDS moves with it in both dictionaries, by intervals over features "
        "and not images, and no other shift of embeddings stands beside. Not shown for groups and "
        "words, whose tables the command prints: they are as chance has them, and there are 6 to "
        "31 words of each category.",
    )


def unimodal(stored: Stored) -> Opening:
    """Of the gap without unimodal features."""
    line = {
        kind: next(one for one in lines if (one["score"], one["cut"]) == ("MDS", 0.2))
        for kind, lines in stored["deleted"].items()
    }
    free, centred = line["no centre"], line["a centre per stream"]
    before = stored["nothing"]
    own = next(one for one in stored["deleted"]["no centre"] if one["cut"] == 0.05)
    theirs = f"{common.figure(own['gap'][0])} at R@1 {common.figure(own['R@1'][0])}"
    return Opening(
        "Without a centre, deleting unimodal features takes the gap from "
        f"{common.figure(before['gap'][0])} to {common.figure(free['gap'][0])}, as many random "
        f"ones to {common.figure(free['size']['gap'][0])}. It costs retrieval: "
        f"{common.figure(before['R@1'][0])} becomes {common.figure(free['R@1'][0])}. With a "
        "centre per stream the gap lies in the centres and grows to "
        f"{common.figure(centred['gap'][0])}.",
        "Iso-Energy (ICLR 2026): without unimodal features the gap collapses and retrieval stays.",
        "Features chosen on even pairs, judged on odd ones; random features as many, and as far; "
        "bootstrap over pairs.",
        "Holds in part: the gap narrows beyond random ones where there is no centre. That it "
        f"collapses and retrieval stays does not hold: by Iso-Energy's own cut it is {theirs}, by "
        "wider ones retrieval goes.",
    )


def deletion(stored: Stored) -> Opening:
    """Of deletion curves."""
    tenth = next(
        row
        for row in stored["emoji-clip joint"]["vision"]["background of images"]["rows"]
        if row["fraction"] == 0.1
    )
    area = {k: line["retrieval R@1"]["areas"] for k, line in stored["emoji-clip joint"].items()}
    return Opening(
        f"Deleting cross-modal features costs retrieval {common.cell(area['cross']['norm'])} more "
        "than random features that move embeddings as far. Vision- and language-dominant ones "
        f"cost less than random ones ({common.cell(area['vision']['norm'])} and "
        f"{common.cell(area['language']['norm'])}). Without the strongest "
        f"{tenth['features']} of the vision class the background is read in "
        f"{common.figure(tenth['class'][0])} of the images, without as many random ones in "
        f"{common.figure(tenth['size'][0])}.",
        "What pairs share lies in the cross-modal class.",
        "Deleted strongest first, beside random features as many and as far; bootstrap over "
        "images.",
        "Not shown: scores and edits are of the same pairs. On unseen pairs of a real CLIP see "
        "[real CLIP](real-clip.md).",
    )


def bias(stored: Stored) -> Opening:
    """Of gender."""
    plain, means, features = (
        common.cell(stored["ways"][name]["read"])
        for name in ("nothing", "difference in means", "ablate 8 features")
    )
    probe = common.cell(stored["ways"]["ablate 8 features"]["ahead"]["recognised"])
    return Opening(
        f"Gender is read by prompts in {plain} of 206 people, and in {means} once the difference "
        f"in means is taken out. Deleting eight features reaches {features}, and the share of "
        f"people's concepts that are recognised differs by {probe} from that with the difference. "
        "A probe of more people still reads gender after either: nothing here erases it.",
        "Editing features by class mitigates gender bias, or shows how genders are perceived.",
        "Ways learned on one half of the concepts and tested on the other; random features, "
        "erasure by LEACE and others; paired differences by image.",
        "Does not hold that features do it better than a difference of means. MDS's classes are "
        "not what chooses the features.",
    )


def generation(stored: Stored) -> Opening:
    """Of drawings."""
    image = stored["image"]

    def read(name: str, what: str) -> str:
        return common.cell(image[name][what])

    sd, sure = "cross (314)", "cross, significant (117)"
    return Opening(
        "Taking vision-dominant features from a reference turns the background into its own: "
        f"{read('vision (96)', 'reference background')}, as many random ones "
        f"{read('random, as many as vision (96)', 'reference background')}. By mean -+ sd, "
        f"cross-modal features bring the reference's label in {read(sd, 'reference label')}; by "
        f"the rule significant in {read(sure, 'reference label')}. Whoever wants another label is "
        "better served by other words.",
        "Editing by class controls what is drawn modality by modality.",
        "96 pairs of drawings, three noises, features taken from another image or caption, "
        "beside random features as many and as far.",
        "Not shown. As many random features bring the background far less often, but no paired "
        "test of the two is stored; of the label it hangs on the rule, and the classes are not of "
        "equal size.",
    )


def adversarial(stored: Stored) -> Opening:
    """Of attacks and defences."""
    lines = {one["name"]: one["robust"]["2"] for one in stored["defences"]}
    alone = {one["name"]: one["robust"] for one in stored["defences"]}
    least, most = (
        " to ".join(common.figure(alone[name][radius][0]) for radius in ("1", "4"))
        for name in ("joint: Ablate vision", "none")
    )
    told = {name: common.cell(value, 2) for name, value in lines.items()}
    return Opening(
        f"At 2/255, an attacker who knows the defence leaves {told['none']} of images read "
        f"rightly without one and {told['joint: Ablate vision']} without vision features. A "
        f"low-pass of pixels keeps {told['baseline: low-pass, 24 pixels']}. That a class is the "
        "weak one is not shown: random features mislead as well.",
        "Editing by class defends against adversarial examples, and shows which class they move.",
        "White-box attacks through the edit, black-box and transferred ones, beside random "
        "features and filters of pixels, image by image.",
        "Does not hold for a defence: without vision features no more images stand at any radius "
        f"({least} from 1/255 to 4/255, undefended {most}). Not shown which class is moved.",
    )


def real_clip(stored: Stored) -> Opening:
    """Of embeddings of a CLIP trained on the web."""
    rule, bare = stored["rule"], stored["gap"]["no centre"]
    sizes = {
        name: f"{line['classes'][rule]['vision'][0]:.0f} features vision-dominant, "
        f"{line['classes'][rule]['language'][0]:.0f} language-dominant and "
        f"{line['classes'][rule]['cross'][0]:.0f} cross-modal"
        for name, line in stored["census"].items()
    }
    cost = stored["deletion"][rule]
    beyond = {name: common.cell(line["beyond"]) for name, line in cost.items()}
    gap = {
        name: f"{common.figure(line['gap'][0])}, R@1 {common.figure(line['R@1'][0])}"
        for name, line in bare.items()
    }
    without, random, far = (
        f"{what} ({rule})"
        for what in ("unimodal features", "random ones, as many", "random ones, as far")
    )
    many, less = (common.cell(bare[name]["gap of unimodal, less this"]) for name in (random, far))
    return Opening(
        f"In a CLIP trained on the web earned labels call {sizes['CLIP']}; in Gaussians with the "
        f"same means and covariances, {sizes['Gaussians, unpaired']}. Deleting the "
        f"{cost['cross']['features'][0]:.0f} features nearest to cross-modal is not shown to cost "
        "unseen pairs more retrieval than random features that move them as far "
        f"({beyond['cross']}), nor is deleting as many that fire together by Fisher's test "
        f"({beyond[FISHER]}). Deleting unimodal features closes the gap and takes retrieval with "
        f"it (gap {gap['nothing']}, then {gap[without]}), and subtracting the two means closes as "
        f"much without that price ({gap['the means of both streams']}).",
        "Classes by MDS say what features are for: cross-modal ones carry what pairs share, and "
        "unimodal ones the gap.",
        "Embeddings of CLIP ViT-B/16 on 500 pairs of COCO, one caption each; dictionaries of 256 "
        "features, 8 active. Features are chosen on 400 pairs and edits judged on 100 others, "
        "ten times; nulls are Gaussians, images beside images, random and frozen directions.",
        "Not shown for cross-modal features, of which no label is earned; and CLIP has no more "
        "features of one modality than Gaussians. Holds in part for the gap, where there is no "
        f"centre: fold by fold it differs by {many} from that without as many random features, and "
        f"by {less} from that without random ones that move embeddings as far; that retrieval "
        "stays does not hold.",
    )


def coverage(stored: Stored) -> Opening:
    """Of the intervals of few cases."""
    count = stored["simulations"]
    held = {(row["of"], row["cases"]): row["held"] / count for row in stored["rows"]}
    odd = ("not told", "exponential", "lognormal")
    least = min(share for (of, _), share in held.items() if not any(kind in of for kind in odd))

    def share(of: str, cases: str) -> str:
        return common.figure(held[of, cases])

    images, heavy = "10 x 5 = 50", "mean, lognormal, sigma 1.5"
    lost = f"{share(heavy, '5')} with five values and {share(heavy, '30')} with 30"
    apart = share("mean, images not told", images)
    return Opening(
        "An interval that asks for 95 % holds the truth in at least "
        f"{common.figure(least)} of the samples for means, hits, areas, ratios and paired "
        "differences of four cases and more, where values are not skewed. Of ten images with five "
        f"captions each it holds in {share('mean, by image', images)} if it is told which are of "
        f"one image, and in {apart} if captions are taken for cases. The mean of values as skewed "
        f"as a lognormal of sigma 1.5 is missed: its interval holds in {lost}.",
        "An interval marked 95 % holds the truth in 95 of 100 samples, also of few cases.",
        f"{count:,} samples of each kind, drawn from what is known; captions of one image told and "
        "not told.",
        "Holds in part: within a few hundredths for values without skew, with images as the unit, "
        "where intervals of areas are wider than they need to be. Does not hold for means of few "
        f"skewed values, nor where images are not told ({apart}).",
    )


def calibration(stored: Stored) -> Opening:
    """Of scores, tests and labels with several captions of an image."""
    figures = stored["captions"]

    def by_captions(name: str) -> str:
        return " and ".join(f"{figures[number][name]:.3f}" for number in ("1", "5"))

    def most(name: str) -> str:
        return f"{max(line[name] for line in figures.values()):.3f}"

    return Opening(
        "With one and five captions of an image, told as such, 95 % intervals of MDS hold the "
        f"truth in {by_captions('coverage')} of the cases, of the kind of feature that does worst "
        f"in {by_captions('coverage, worst kind')}. Where modality has no effect some feature "
        f"passes the swap test in {by_captions('any dominant')} of the samples, and where image "
        "and captions are unrelated some feature counts as paired in "
        f"{by_captions('any paired')}. A feature exactly on the cut is labelled by `interval` in "
        f"{by_captions('on the cut, interval')}, by `significant` in "
        f"{by_captions('on the cut, significant')}.",
        "Intervals, tests and labels hold at the rates that they name, also with several captions "
        "of each image.",
        f"{stored['simulations']:,} simulations of 1,000 pairs with one, two and five captions an "
        "image; images are the unit of intervals, and tests take one caption of each.",
        "Holds in part: for intervals, tests and labels by `interval`, in these simulations, where "
        f"at the worst {most('any dominant')} of samples without an effect pass a test, "
        f"{most('false discoveries')} of what is found is false and {most('on the cut, interval')} "
        "of features on the cut get a label. Does not hold for labels by `significant`: "
        f"{most('on the cut, significant')}.",
    )


BLEND = "Blend (to blue images' mean code)"
FISHER = "as many by Fisher's p"
TEST = "co-firing, Fisher's p"
OPENINGS: dict[str, Callable[[Stored], Opening]] = {
    make.__name__: make
    for make in (
        classes, ground_truth, training, edits, interpretability, layers, groups, unimodal,
        deletion, real_clip, bias, generation, adversarial, coverage,
        calibration,
    )
}  # fmt: skip

"""What the paper's public reviews asked, and what stands in the results: docs/questions.md.

Every figure is read from a stored result, so that the page cannot say another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from results import common

ZOO = "emoji-clip joint, dictionary"
HEAD = """# Questions that the paper's reviews asked

The public reviews of [Yan et al.](https://aclanthology.org/2026.findings-acl.588) asked for
intervals, other numbers of examples, other scores, methods that close the gap, word categories,
and generative hosts. Each is tried here, on small hosts in which the factors are planted and on
embeddings of a CLIP trained on the web. Where what is stored cannot carry an answer, it says "not
shown".

Figures are mean [95 % interval] unless they say otherwise; each comes from the result that its
command writes. `python docs/experiments results.page` writes this page.
"""


class Answer(NamedTuple):
    """A question, what was done about it, and what came of it.

    Attributes:
        question: As a reviewer would put it.
        done: What was tried.
        told: The answer, with its figure.
        result: The stored result it rests on.
    """

    question: str
    done: str
    told: str
    result: str


def page(place: Callable[[str], str]) -> str:
    """The page's text.

    Args:
        place: Says where a result's section is, as a link.
    """
    lines = [
        ("question", "what was done", "answer", "where"),
        ("---",) * 4,
        *(
            (*answer[:3], f"{place(answer.result)}, `results.{answer.result}`")
            for make in ANSWERS
            for answer in make()
        ),
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    command = (
        "With `python docs/experiments` before it a name on the right is run; its page says with "
        "which options."
    )
    return f"{HEAD}\n{table}\n\n{command}\n"


def _scores() -> list[Answer]:
    line = common.load("classes")[ZOO]["rules"]["interval"]
    sizes, chance = line["counts"], line["expected"]
    truth = common.load("ground_truth")[ZOO]
    shared = {name: common.cell(one[0]) for name, one in truth["shared"]["scores"].items()}
    vision = {name: common.cell(one[0]) for name, one in truth["vision-only"]["scores"].items()}
    return [
        Answer(
            "Which figures have intervals, and what would chance give?",
            "an interval and a test for every feature; image and text swapped inside pairs",
            f"Labels that an interval earns: {sizes['vision']} of 512 features vision, "
            f"{sizes['language']} language, {sizes['cross']} cross-modal; swapped, "
            f"{chance['vision'][0]:.1f}, {chance['language'][0]:.1f} and {chance['cross'][0]:.1f}.",
            "classes",
        ),
        Answer(
            "Is MDS better than existing scores at telling features of one modality?",
            "AUC against planted factors",
            f"Not shown: MDS {vision['MDS']}, firing rates alone {vision['firing rates alone']}, a "
            f"probe {vision['probe for the modality']}.",
            "ground_truth",
        ),
        Answer(
            "And shared ones?",
            "likewise, beside scores that look at the pairing",
            f"No: MDS {shared['MDS']}, Fisher's test of co-firing {shared[TEST]}, BridgeScore "
            f"{shared['BridgeScore, own']}, correlation {shared['correlation']}.",
            "ground_truth",
        ),
    ]


def _examples() -> list[Answer]:
    found = common.load("interpretability")
    names = found[ZOO]["names of images"]
    vision, cross = names["vision"], names["cross"]
    neurons = found["emoji-clip joint, neurons"]["names of images"]["cross"]
    lifts = ", ".join(f"{m}: {common.cell(vision[m]['lift'], 2)}" for m in ("10", "20", "30", "50"))
    wins = " to ".join(common.cell(vision[m]["win"], 2) for m in ("10", "50"))
    return [
        Answer(
            "Does EmbSim depend on m?",
            "m = 10, 20, 30, 50, above random examples, judged by an independent encoder",
            f"Yes: it falls as m grows, for vision features {lifts}; WinRate from {wins}.",
            "interpretability",
        ),
        Answer(
            "What does the Monosemanticity Score say of the classes?",
            "MS by names of images, of each class and of raw neurons",
            f"Vision {common.cell(vision['MS'])}, cross {common.cell(cross['MS'])}, raw neurons "
            f"{common.cell(neurons['MS'])}: features are above neurons, which are not as many; "
            "that the classes differ is not shown.",
            "interpretability",
        ),
    ]


def _groups() -> list[Answer]:
    found = common.load("groups")
    spread = found["spread"]["vision"]["directions"]
    across = {name: common.cell(found["means"][name]["correlation"]) for name in found["means"]}
    bits = {k: common.cell(found["means"][k]["mutual information"]) for k in found["means"]}
    one, raw = (found["gap"][k]["rows"] for k in ("dictionary, one centre", "raw neurons"))
    noun = found["fusion"]["categories"]["noun"]["fusion"]
    words = {name: len(some) for name, some in found["fusion"]["words"].items()}
    few = min(words[name] for name in ("noun", "verb", "adjective", "preposition"))
    return [
        Answer(
            "Does MDS see what closes the gap?",
            "embeddings centred by modality; one-sidedness is twice the distance of MDS from .5",
            "Not shown, though scores move: centring takes the gap from "
            f"{common.figure(one['raw']['gap'], 3)} to "
            f"{common.figure(one['centred']['gap'], 3)} and changes one-sidedness by "
            f"{common.cell(one['centred']['change'])} with one centre; for raw neurons not "
            f"({common.cell(raw['centred']['change'])}).",
            "groups",
        ),
        Answer(
            "Are features of a class alike?",
            "spread of their directions, beside as many random features",
            f"Not shown: vision {common.cell(spread[0])}, random {common.cell(spread[1])}.",
            "groups",
        ),
        Answer(
            "How much do classes tell of the modality, and how do image and text correlate?",
            "mutual information of firing and modality in bits; correlation of codes over pairs",
            f"Bits: vision {bits['vision']}, cross {bits['cross']}. Correlation: cross "
            f"{across['cross']}, vision {across['vision']}. The classes are not of equal size.",
            "groups",
        ),
        Answer(
            "Are nouns, verbs and prepositions fused differently?",
            "fusion of the features that words activate, beside captions dealt at random",
            f"Not shown: nouns {common.cell(noun[0])}, chance {common.cell(noun[1])}; there are "
            f"{few} to {words['noun']} words of each.",
            "groups",
        ),
    ]


def _edits() -> list[Answer]:
    areas = {
        name: line["retrieval R@1"]["areas"]["norm"]
        for name, line in common.load("deletion")["emoji-clip joint"].items()
    }
    gaps = common.load("unimodal")
    whole = gaps["nothing"]
    cuts = {(one["score"], one["cut"]): one for one in gaps["deleted"]["no centre"]}
    line = cuts["MDS", 0.2]
    return [
        Answer(
            "What does deleting a class cost beyond random features?",
            "random features that move embeddings as far, emoji-clip, R@1 over the share deleted",
            "Not shown, since scores and edits are of the same pairs: cross "
            f"{common.cell(areas['cross'])}; vision {common.cell(areas['vision'])} and "
            f"language {common.cell(areas['language'])}: less than random ones.",
            "deletion",
        ),
        Answer(
            "Does deleting unimodal features close the gap?",
            "MDS outside of .2 and .8, no centre, emoji-clip, unseen pairs",
            f"In part: {common.figure(whole['gap'][0])} becomes {common.figure(line['gap'][0])}, "
            f"{common.cell(line['size']['gap ahead'])} beside as many random ones; R@1 "
            f"{common.figure(whole['R@1'][0])} becomes {common.figure(line['R@1'][0])}.",
            "unimodal",
        ),
    ]


def _real() -> list[Answer]:
    real = common.load("real_clip")
    rule = real["rule"]
    lines, unimodal = real["deletion"][rule], f"unimodal features ({rule})"
    beyond = {name: common.cell(one["beyond"]) for name, one in lines.items()}
    gap = real["gap"]["no centre"]
    sizes = {
        name: common.cell(one["classes"][rule]["vision"], 0) for name, one in real["census"].items()
    }
    apart = lines[FISHER]["more than cross"]
    return [
        Answer(
            "And in a real CLIP, on unseen pairs?",
            "ten folds of 400 and 100 pairs of COCO, as many features each",
            f"Not shown beyond random features of any of them: {lines['cross']['features'][0]:.0f} "
            f"nearest to cross-modal {beyond['cross']}, by Fisher's p {beyond[FISHER]}, which is "
            f"{common.cell(apart)} more; the surest of vision "
            f"{beyond['as many of vision, the surest']}.",
            "real_clip",
        ),
        Answer(
            "Is the census more than two covariance matrices?",
            "the same on Gaussians with each stream's mean and covariance",
            f"Not shown: {sizes['CLIP']} features of CLIP earn the label vision, of Gaussians "
            f"{sizes['Gaussians, unpaired']} (mean [lowest, highest] of 5 seeds).",
            "real_clip",
        ),
        Answer(
            "And in a real CLIP?",
            "vision- and language-dominant features deleted, no centre, beside means subtracted",
            f"At the price of retrieval: from {common.cell(gap['nothing']['gap'])} to "
            f"{common.cell(gap[unimodal]['gap'])}, R@1 {common.cell(gap['nothing']['R@1'])} to "
            f"{common.cell(gap[unimodal]['R@1'])}; subtracting the means "
            f"{common.cell(gap[MEANS]['gap'])} at {common.cell(gap[MEANS]['R@1'])}.",
            "real_clip",
        ),
    ]


def _others() -> list[Answer]:
    layers = common.load("layers")
    first, last, wrong = (
        layers[name]["paired"]
        for name in ("language.0, its own", "language.3, its own", "language.3, a wrong one")
    )
    training = common.load("training")
    shared, apart = (_mean(training[k], "zero_shot") for k in ("TopK", "separate + matched"))
    ways: dict[str, Any] = common.load("bias")["ways"]
    plain, means = ways["nothing"], ways["difference in means"]
    return [
        Answer(
            "Does it say anything of generative hosts?",
            "emoji-llava, layer by layer, each image before its own caption or a wrong one",
            f"{first} features fire together in layer 0, {last} in layer 3, and {wrong} there "
            "with a wrong caption: that it is the same meaning is not shown.",
            "layers",
        ),
        Answer(
            "Shared or separate dictionaries?",
            "one for both, against one for each with features matched; zero-shot from codes",
            f"Shared: {common.figure(shared, 3)} against {common.figure(apart, 3)} (means of 5 "
            "seeds).",
            "training",
        ),
        Answer(
            "How many people, and how do men and women differ?",
            f"{plain['read'][3]} people, by prompts; the difference in means taken out",
            f"Men are read rightly in {common.cell(plain['man'])}, women in "
            f"{common.cell(plain['woman'])}; after it {common.cell(means['man'])} and "
            f"{common.cell(means['woman'])}.",
            "bias",
        ),
    ]


def _mean(lines: list[dict[str, float]], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


TEST = "co-firing, Fisher's p"
FISHER = "as many by Fisher's p"
MEANS = "the means of both streams"
ANSWERS = (_scores, _examples, _groups, _edits, _real, _others)

"""Write docs/results.md, and examples on other pages, from the results beside this script.

python docs/experiments results.page
"""

from __future__ import annotations

import importlib
from pathlib import Path

from results import common

PAGE = Path(__file__).resolve().parents[2] / "results.md"
# Pages that show some of a result, and of which.
EXAMPLES = {"edits.md": "edits", "text-to-image.md": "generation"}

HEAD = """# Results

Measured on the zoo: [emoji-clip](../vlm_edit/zoo/emoji-clip/README.md) and
[emoji-llava](../vlm_edit/zoo/emoji-llava/README.md), small models of our own, and 1,024 pairs whose
drawings neither they nor [the dictionaries](../vlm_edit/zoo/dictionaries/README.md) have seen. Each
pair's factors are known: background and vendor only an image can tell, language and phrasing only
a caption, concept and group both. **The factors were planted in the hosts by training, so these
tables tell whether a score finds what is there; they do not tell that such features emerge in a
web-scale model.** In emoji-llava the token that begins a sequence and the line break behind the
image count as text here, as before `tokens="text"` came to mean a caption's own tokens. Nothing
stands here beside a figure of the paper ([Yan et al., Findings of ACL
2026](https://aclanthology.org/2026.findings-acl.588)), whose tables we do not have.

Each section's command writes a JSON file in `docs/experiments/results/` and prints the tables;
`python docs/experiments results.page` writes this page from the files. Most take minutes on one
thread, those of drawings and attacks an hour and more: `pip install -e '.[test]'`, then the
commands. Where a table says less than one would like, it says so all the same.

What stands out:

- **MDS finds features of one modality well** (AUC .99 on the joint dictionary), and so do its
  variants and even firing rates alone. The convention for zeros moves the mean from .49 to .03,
  but hardly the ranking there. In language layers, where few features are shared, `half` and
  `epsilon` rank worse, and for texts the ratio of means ranks better than the mean of ratios.
- **For shared features there are better scores than MDS.** On the joint dictionary it is hardly
  better than a coin (.61), in language layers .77 to .81; what looks at the pairing (co-firing,
  BridgeScore, correlation) reaches .8 and .9 there. That is why `paired()` stands beside the
  classes.
- **mean -+ sd finds its classes in data without any effect of modality.** The brackets of the first
  table show it. The significant rule finds none there.
- **Raw neurons of the joint embedding have no modality at all** by MDS: all 192 lie between .4 and
  .6, though single factors can be read off them.
- **How a dictionary is trained decides what its features are.** A shared random mask with the
  group-sparse penalty (MGSAE) recognises more from its codes than TopK, .493 against .462, as the
  literature has it, but by .03 and not by .19; the penalty alone does not (+.012 -+ .012), and the
  mask blurs vendor, language and group. Separate dictionaries explain most (.83), and matching them
  afterwards leaves .16 of the recognition: they do not find the same features. A contrastive head
  recognises nearly as well as the embeddings (.646 of .658) because it keeps what both sides share
  and nothing else: no feature of it is about a background or a phrasing. Matryoshka's are the most
  about the concept's group, and its MDS tells shared features best (.78).
- **No rule beats simple baselines at equal effect**: projecting class means out, or adding their
  difference, costs as little as the best rule and needs no dictionary. `Blend` to a code that
  exists ties with them; `Steer` and `Clamp` cost .11 to .13 of recognition and leave the
  distribution.
- **Examples of a feature are more alike than chance, but not by much**: a sentence encoder finds
  the ten top images of a vision feature .14 more alike than random ones, and fifty .04. Raw
  neurons do worse. Language features are less alike in images, vision features in captions of
  emoji-llava; cross-modal ones are like either.
- **In emoji-clip a class is mostly passengers.** The strongest tenth of the vision class (16
  features) carries the background: without it a probe reads .20 of 1,024, without as many random
  features .96. Retrieval suffers from every deletion; only that of cross-modal features costs more
  than random ones, by either control. In emoji-llava's layer 0 it takes most of the class, and
  random features that move the tokens as far, nearly all there are, cost more than it.
- **MDS sees the modality gap a little, and through the dictionary's centre.** Centring takes the
  gap from .34 to .01; the mean one-sidedness of features falls by .04 with one centre for both
  streams, by .01 with a centre each, and not at all for raw neurons (standardising moves those).
- **Deleting unimodal features narrows the gap where the dictionary has no centre, and widens it
  where it has.** With a centre per stream, as the zoo's has, most of the gap lies in the centres,
  where nothing can be deleted: .34 becomes .37 (98 features, MDS outside of .2 and .8), as without
  random ones (.37). Without a centre it becomes .13 (194 features; as many random ones .26), at an
  R@1 of .59 (random .50, unedited .76); with Iso-Energy's cuts (energy, .05 and .95; 72 features)
  .23 (random .32), at .73 (random .70). That is what Iso-Energy (ICLR 2026) says, in part: the gap
  narrows by a third to two thirds, and what closes most of it costs retrieval.
- **No edit of a class defends against an attacker who knows it**, and no class is the weak one:
  what an attack moves misleads through random features as well. A low-pass of pixels holds a
  little (.27 of images at 2/255 against .10), and with a patch trained for it .31.
- **What is drawn can be controlled, but which class is the content depends on the rule.** Taking
  vision-dominant features from a reference turns the background into its own, by mean -+ sd (96:
  .99; the strongest 10: .98) and by the rule significant (159: 1.00); 96 random ones .17. By
  mean -+ sd cross-modal features (314) take the label away (.01, .36 without an edit; 314 random
  ones .04) and bring the reference's in .14. By significant they (117) leave it in .23 and bring
  none, and vision-dominant ones take more of it (.10). Whoever wants another label is better
  served by other words (.55).
- **Classes are no clusters**: neither their directions nor their top examples are closer together
  than those of random features.
- **Categories of words tell little**: features of nouns and verbs are a shade less fused than
  chance, those of adjectives fire together a little more; there are 6 to 31 words of each.
- **Against gender the difference in means wins**: read by prompts .757 before, .485 after, at no
  cost. Features of gender reach it too, at a cost of .03 or by being turned into one difference. A
  probe of 900 people still reads .75 to .90 after either: nothing here erases gender.
- **In emoji-llava co-firing rises with depth, but nearly as much with a wrong caption.** Text
  tokens read the image before them; this is not yet the same meaning in both.
"""

SECTIONS = (
    ("classes", "What the rules call what, and what chance would", ""),
    (
        "ground_truth",
        "Which score finds out what a feature is about",
        "A feature is about a factor if the factor explains more than a tenth of the variance of "
        "its code, in either stream; it is shared if the concept's group explains more than a "
        "twentieth in images of even pairs and in texts of odd ones, and the means of the groups "
        "correlate above .5 between the two. (A tenth would leave 8 shared features of the joint "
        "dictionary in place of 34.) `vision.2` has no text stream, so no score of dominance. "
        "*Probe*: how well the feature alone tells images from texts. BridgeScore: a feature with "
        "itself.",
    ),
    (
        "training",
        "Which way of training gives what",
        "Joint embeddings of emoji-clip, 512 features, 1,000 steps of 1,024 out of 102,400 "
        "embeddings of 51,200 drawn pairs, without clipping of gradients; k or the target of L0 is "
        "16 where there is one. "
        "Penalties, the mask's share, rates and temperatures were chosen on one seed by zero-shot "
        "accuracy on drawings of the split hv-dev, which are in no table. `build/emoji` is what "
        "`python docs/experiments recipes.pairs` renders.",
    ),
    (
        "edits",
        "What each rule costs, at equal effect",
        "[Edits](edits.md) says what the rules do. Baselines know which pairs are blue, and use no "
        "dictionary.",
    ),
    ("interpretability", "How alike the examples of a feature are", ""),
    ("layers", "A generative host, layer by layer", ""),
    ("groups", "Groups of features, the gap, and categories of words", ""),
    (
        "unimodal",
        "Does deleting unimodal features close the gap?",
        "[Iso-Energy](https://arxiv.org/abs/2602.06218) (Dhimoila, Fel, Boutin, Picard, ICLR 2026) "
        "says so: without the features whose energy lies in one modality by more than .95 the gap "
        "collapses, and retrieval stays. A dictionary with a centre per stream holds most of the "
        "gap in the centres, where no feature can be deleted; one without has to have features for "
        "it. The section above is of dictionaries with centres.",
    ),
    ("deletion", "Deleting a class, beside random features", ""),
    (
        "bias",
        "Gender: who carries it, and what takes it out",
        "[Bias](bias.md) says what the ways are, and what holds of the paper's claims. Ways are "
        "learned on one half of the concepts and tested on the other, both ways round. Tuned: "
        "number of features and strength chosen on the half learned from.",
    ),
    (
        "generation",
        "What a drawing takes from a reference, by class of features",
        "[Text to image](text-to-image.md#by-class-of-features) says how; "
        "[emoji-unclip](../vlm_edit/zoo/emoji-unclip/README.md) draws, "
        "and what it draws is recognised two thirds as often as real drawings are.",
    ),
    (
        "adversarial",
        "Attacks on images, and what stands",
        "[Adversarial images](adversarial.md) says what the attacks and defences are, and what was "
        "found. Even pairs tuned and fitted, odd ones are attacked. The defences were attacked by "
        "`--only defences --images 48 --radii 1 2 4 --steps 8 --queries 40`, and compared image by "
        "image by `--only paired` and the same.",
    ),
    (
        "coverage",
        "How often an interval of few cases holds the truth",
        "Means are told by Student's t, widened where values are skewed (Hall 1992), hits by "
        "Wilson's interval, areas by Hanley and McNeil's error, enlarged to DeLong's, paired "
        "shares by Tango's score. Of few values as skewed as a lognormal's the interval of the "
        "mean holds less often than it says.",
    ),
)


def page() -> str:
    """The page's text, from the stored results."""
    parts = [HEAD]
    for name, title, text in SECTIONS:
        script = importlib.import_module(f"results.{name}")
        tables = "\n\n".join(common.markdown(t) for t in script.tables(common.load(name)))
        options = getattr(script, "OPTIONS", "")
        command = f"```bash\npython docs/experiments results.{name}{options}\n```"
        parts.append("\n\n".join(filter(None, [f"## {title}", command, text, tables])))
    return "\n".join(f"{part.strip()}\n" for part in parts)


def filled(file: str, name: str) -> str:
    """A page of docs with the examples between its marks anew."""
    begin, end = "<!-- results: python", "<!-- results: end -->"
    before, rest = (PAGE.parent / file).read_text("utf-8").split(begin)
    line, after = rest.split("\n", 1)[0], rest.split(end)[1]
    examples = importlib.import_module(f"results.{name}").examples(common.load(name))
    return f"{before}{begin}{line}\n{examples}{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    for file, name in EXAMPLES.items():
        (PAGE.parent / file).write_text(filled(file, name), encoding="utf-8")

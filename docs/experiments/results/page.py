"""Write the pages of results, and examples on other pages, from the results beside this script.

python docs/experiments results.page
"""

from __future__ import annotations

import importlib
from pathlib import Path

from results import common, openings, questions

DOCS = Path(__file__).resolve().parents[2]
# Pages that show some of a result, and of which.
EXAMPLES = {"edits.md": "edits", "text-to-image.md": "generation"}

HEAD = """# Results, question by question

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

Each page opens with three sentences that a person can repeat, then the claim, what was done and
what came of it. "Holds" asks for as many features in the classes compared, a null, images as the
unit, a paired test, and no choice made on what is tested; where the stored result has not all of
these, it says "not shown". Each page's command writes a JSON file in `docs/experiments/results/`
and prints the tables, those too that say little and stand on no page; `python docs/experiments
results.page` writes the pages. Most take minutes on one thread, those of drawings and attacks an
hour and more: `pip install -e '.[test]'`, then the commands.

[What the paper's reviews asked](questions.md), and the figure that answers it, is one table.
"""

# A page a result: the question, and what its tables need to be read.
SECTIONS = (
    ("classes", "Are there features of one modality?", ""),
    (
        "ground_truth",
        "Which score finds out what a feature is about?",
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
        "Which way of training gives what?",
        "Joint embeddings of emoji-clip, 512 features, 1,000 steps of 1,024 out of 102,400 "
        "embeddings of 51,200 drawn pairs, without clipping of gradients; k or the target of L0 is "
        "16 where there is one. "
        "Penalties, the mask's share, rates and temperatures were chosen on one seed by zero-shot "
        "accuracy on drawings of the split hv-dev, which are in no table. `build/emoji` is what "
        "`python docs/experiments recipes.pairs` renders.",
    ),
    (
        "edits",
        "What does each rule cost, at equal effect?",
        "[Edits](edits.md) says what the rules do. Baselines know which pairs are blue, and use no "
        "dictionary.",
    ),
    ("interpretability", "How alike are the examples of a feature?", ""),
    ("layers", "What does a generative host do, layer by layer?", ""),
    ("groups", "Does MDS see the gap shrink, and what do classes share?", ""),
    (
        "unimodal",
        "Does deleting unimodal features close the gap?",
        "[Iso-Energy](https://arxiv.org/abs/2602.06218) (Dhimoila, Fel, Boutin, Picard, ICLR 2026) "
        "says so: without the features whose energy lies in one modality by more than .95 the gap "
        "collapses, and retrieval stays. A dictionary with a centre per stream holds most of the "
        "gap in the centres, where no feature can be deleted; one without has to have features for "
        "it. [Groups](results-groups.md) is of dictionaries with centres.",
    ),
    ("deletion", "What is lost with a class of features?", ""),
    ("real_clip", "What do features of a real CLIP carry?", ""),
    (
        "bias",
        "Who carries gender, and what takes it out?",
        "[Bias](bias.md) says what the ways are, and what holds of the paper's claims. Ways are "
        "learned on one half of the concepts and tested on the other, both ways round. Tuned: "
        "number of features and strength chosen on the half learned from.",
    ),
    (
        "generation",
        "What does a drawing take from a reference, by class of features?",
        "[Text to image](text-to-image.md#by-class-of-features) says how; "
        "[emoji-unclip](../vlm_edit/zoo/emoji-unclip/README.md) draws, "
        "and what it draws is recognised two thirds as often as real drawings are.",
    ),
    (
        "adversarial",
        "What stands under attack?",
        "[Adversarial images](adversarial.md) says what the attacks and defences are, and what was "
        "found. Even pairs tuned and fitted, odd ones are attacked. The defences were attacked by "
        "`--only defences --images 48 --radii 1 2 4 --steps 8 --queries 40`, and compared image by "
        "image by `--only paired` and the same.",
    ),
    (
        "coverage",
        "How often does an interval of few cases hold the truth?",
        "Means are told by Student's t, widened where values are skewed (Hall 1992), hits by "
        "Wilson's interval, areas by Hanley and McNeil's error, enlarged to DeLong's, paired "
        "shares by Tango's score. Of few values as skewed as a lognormal's the interval of the "
        "mean holds less often than it says.",
    ),
    (
        "calibration",
        "Do intervals, tests and labels hold with several captions of an image?",
        "",
    ),
)


# What says little: equal to chance, always 1, of few words, or of a text that no host can read.
CUT = (
    *("What features of a class share", "Degree of fusion by category of the words"),
    *("EmbSim for m = 10, 20, 30, 50", "WinRate for m = 10, 20, 30, 50"),
    *("Whether more takes more", "Detectors of attacked images"),
    "Another label's word drawn on the image",
)


def pages() -> dict[str, str]:
    """The text of every page, from the stored results."""
    rows, told = [], {}
    for name, title, text in SECTIONS:
        opening = openings.OPENINGS[name](common.load(name))
        asked = (("claim", opening.claim), ("done", opening.done), ("verdict", opening.verdict))
        lines = "\n".join(f"| **{what}** | {said} |" for what, said in asked)
        first = f"# {title}\n\n{opening.sentences}\n\n| | |\n| --- | --- |\n{lines}"
        told[file_of(name)] = f"{first}\n\n{section(name, text)}\n"
        rows.append((place(name), opening.verdict))
    table = "\n".join(f"| {' | '.join(row)} |" for row in (INDEX, ("---", "---"), *rows))
    return told | {"results.md": f"{HEAD}\n{table}\n", "questions.md": questions.page(place)}


def file_of(name: str) -> str:
    """The page of a result."""
    return FILES.get(name, f"results-{name.replace('_', '-')}.md")


def place(name: str) -> str:
    """A link to where a result's tables are, by its question."""
    titles = {known: title for known, title, _ in SECTIONS}
    return f"[{titles[name]}]({file_of(name)})"


def section(name: str, text: str) -> str:
    """What a script is run by, what it says itself, and its tables."""
    script, stored = importlib.import_module(f"results.{name}"), common.load(name)
    said = script.notes(stored) if hasattr(script, "notes") else ""
    tables = [common.markdown(t) for t in script.tables(stored) if t.title not in CUT]
    options = getattr(script, "OPTIONS", "")
    command = f"```bash\npython docs/experiments results.{name}{options}\n```"
    return "\n\n".join(filter(None, [said, command, text, *tables]))


FILES = {"real_clip": "real-clip.md"}  # others go by their result's name
INDEX = ("question", "what came of it")


def filled(file: str, name: str) -> str:
    """A page of docs with the examples between its marks anew."""
    begin, end = "<!-- results: python", "<!-- results: end -->"
    before, rest = (DOCS / file).read_text("utf-8").split(begin)
    line, after = rest.split("\n", 1)[0], rest.split(end)[1]
    examples = importlib.import_module(f"results.{name}").examples(common.load(name))
    return f"{before}{begin}{line}\n{examples}{end}{after}"


if __name__ == "__main__":
    for file, text in pages().items():
        (DOCS / file).write_text(text, encoding="utf-8")
    for file, name in EXAMPLES.items():
        (DOCS / file).write_text(filled(file, name), encoding="utf-8")

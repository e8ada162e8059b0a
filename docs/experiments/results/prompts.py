"""How many features change their class with what emoji-llava is asked, and what counts as text.

    python docs/experiments results.prompts

The same 256 pairs at language.3, by the classes that are significant. Nothing is stored.
"""

from __future__ import annotations

from results.common import with_special
from vlm_edit import Host, measure, zoo
from vlm_edit.report import Table

SITE = "language.3"
PROMPTS = {
    "the default, `{image}\\n{text}`": None,
    "no line break, `{image}{text}`": "{image}{text}",
    "caption first, `{text}\\n{image}`": "{text}\n{image}",
    "a question between, `{image}\\nwhat is it? {text}`": "{image}\nwhat is it? {text}",
    "the default, its `<s>` and line break as text": with_special,
}


def main() -> None:
    """Print the table."""
    model, processor = zoo.load_llava()
    pairs, dictionary = zoo.load_pairs().select(range(256)), zoo.load_dictionary(SITE)
    classes: dict[str, list[str]] = {}
    for name, prompt in PROMPTS.items():
        host = Host.of(model, processor, prompt=prompt)
        measurement = measure(host, pairs, dictionary, SITE, progress=False)
        members = measurement.dominance.classes("significant")
        classes[name] = [""] * dictionary.n_features
        for kind, features in members.items():
            for feature in features:
                classes[name][feature] = kind
    first = next(iter(classes.values()))
    rows = [
        [name, str(sum(a != b for a, b in zip(first, own, strict=True)))]
        for name, own in classes.items()
    ]
    print(
        Table("Features of 512 in another class than by the default", ("asked", "features"), rows)
    )


if __name__ == "__main__":
    main()

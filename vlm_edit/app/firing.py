"""Where features fire in the picture, and under the words of question and answer."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vlm_edit.app.desk import Desk
from vlm_edit.app.effect import expect_words
from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.measuring import Firing, Pairs, token_codes
from vlm_edit.report import FeatureSheet

MOST = 8  # features at once
SIDE = 200  # pixels of a picture


def firing(
    desk: Desk, image: Image.Image, text: str, features: Sequence[int], most: int = MOST
) -> list[FeatureSheet]:
    """Show where features fire, one sheet each, while nobody else runs the host.

    Args:
        desk: With a host of tokens.
        image: RGB.
        text: Question and answer, read as one text beside the picture.
        features: Whose codes are shown.
        most: How many of them, the first.

    Raises:
        CannotKnow: At the site one vector stands for the picture.
        VlmEditError: No feature, an empty text, or tokens of which nobody can tell whose they are.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> dictionary = zoo.load_dictionary("language.0")
        >>> desk = Desk(Host.load("zoo:emoji-llava"), dictionary, "language.0")
        >>> firing(desk, zoo.load_pairs().open(1), "what is it? a cat", [31])
        [FeatureSheet(feature 31: 1 example)]
    """
    if not features:
        raise BadArgument("no feature is chosen: choose a class, names or numbers")
    if not desk.has_tokens:
        raise CannotKnow(
            f"at {desk.site} one vector stands for the whole picture, so a feature fires in all of "
            "it: start with a site of tokens, such as a layer, to see where"
        )
    expect_words(text, "text")
    pairs = Pairs([image], (text,))
    with desk.turns.alone():
        (pair,) = token_codes(desk.host, pairs, desk.dictionary, desk.site)
        places = desk.finder.of(pair.size, text)
    sheets = []
    for feature in features[:most]:
        values = pair.of(feature)
        boxes = places.boxes
        if boxes is not None and len(boxes) != len(values.get("image", ())):
            boxes = None
        found = Firing(0, values, boxes, pair.words)
        note = f"Where in the picture is not known: {places.why}." if places.why else ""
        facts = {"": desk.name(feature).removeprefix(f"{feature} · ")} if desk.run else {}
        sheets.append(FeatureSheet.of(feature, pairs, [found], facts, note=note, side=SIDE))
    return sheets

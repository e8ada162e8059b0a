import json
import random
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from recipes import captions, concepts, icons, pairs, splits
from recipes.concepts import Names, Variant
from vlm_edit import zoo

ALONE = ("background", "language", "phrasing")


@pytest.fixture(scope="module")
def shipped():
    return zoo.load_pairs()


def test_there_are_1024_pairs_of_square_colour_images(shipped):
    assert len(shipped) == 1024
    assert {(i.size, i.mode) for i in shipped.images} == {((64, 64), "RGB")}


def test_every_known_value_of_a_factor_occurs(shipped):
    assert set(shipped.columns["background"]) == set(pairs.BACKGROUNDS)
    assert set(shipped.columns["language"]) == set(concepts.LANGUAGES)
    assert set(shipped.columns["phrasing"]) == set(captions.PHRASINGS)
    assert set(shipped.columns["tone"]) == set(concepts.TONES)
    assert set(shipped.columns["vendor"]) == set(icons.VENDORS) - set(splits.HELD_OUT_VENDORS)


@pytest.mark.parametrize("one", ALONE)
def test_a_factor_drawn_at_random_says_nothing_about_any_other(shipped, one):
    others = ("vendor", "group", "gender", "tone", *(a for a in ALONE if a != one))
    for other in others:
        both = zip(shipped.columns[one], shipped.columns[other], strict=True)
        counts = Counter(both)
        rows, columns = sorted({a for a, _ in counts}), sorted({b for _, b in counts})
        table = [[counts[a, b] for b in columns] for a in rows]
        assert chi2_contingency(table).pvalue > 0.001, (one, other)


def test_the_corners_of_most_images_show_the_background_that_the_column_names(shipped):
    seen = 0
    for image, name in zip(shipped.images, shipped.columns["background"], strict=True):
        corners = [image.getpixel((x, y)) for x in (0, 63) for y in (0, 63)]
        seen += pairs.BACKGROUNDS[name] in corners
    assert seen > 0.95 * len(shipped)


def test_no_shipped_drawing_is_of_a_cell_that_is_trained_on(shipped):
    cells = zip(shipped.columns["vendor"], shipped.columns["concept"], strict=True)
    assert {splits.split_of(v, c, set()) for v, c in cells} == {"hv-test"}


def test_a_plain_english_caption_is_the_label(shipped):
    rows = zip(*(shipped.columns[c] for c in ("language", "phrasing", "label")), strict=True)
    plain = [(t, label) for t, (k, p, label) in zip(shipped.texts, rows, strict=True)
             if (k, p) == ("en", "plain")]  # fmt: skip
    assert len(plain) > 30
    assert all(text == label for text, label in plain)


def test_men_women_and_neutral_people_are_there_in_equal_parts(shipped):
    counts = Counter(shipped.columns["gender"])
    people = [counts[g] for g in ("man", "woman", "person")]
    assert sum(people) >= 300
    assert max(people) - min(people) <= 10


def test_every_label_can_be_chosen_in_zero_shot_classification(shipped):
    labels = zoo.load_labels()
    assert list(labels) == sorted(set(labels))
    assert set(shipped.columns["label"]) <= set(labels)


def test_the_parts_of_the_data_are_cut_by_cell_and_cover_what_they_say():
    vendors = [v for v in icons.VENDORS if v not in splits.HELD_OUT_VENDORS]
    cells = [splits.split_of(v, f"concept {i}", set()) for v in vendors for i in range(1000)]
    share = Counter(cells)
    assert share["hv-test"] / len(cells) == pytest.approx(splits.CELLS_TEST, abs=0.02)
    assert share["hv-dev"] / len(cells) == pytest.approx(splits.CELLS_DEV, abs=0.02)
    assert splits.split_of("noto", "dog", {"dog"}) == "hc"
    assert splits.split_of("openmoji", "dog", {"dog"}) == "unused"
    assert splits.split_of("openmoji", "dog", set()).startswith("ov-")


def test_only_genderless_concepts_are_held_out():
    genders = {f"thing {i}": {"none"} for i in range(400)}
    genders |= {f"person {i}": {"man", "woman"} for i in range(400)}
    held_out = splits.held_out_concepts(genders)
    assert 5 < len(held_out) < 50
    assert all(name.startswith("thing") for name in held_out)


@pytest.mark.parametrize(
    ("code", "neutral", "gender"),
    [
        ("1f6b4-200d-2640", "1f6b4", "woman"),
        ("1f468-200d-1f373", "1f9d1-200d-1f373", "man"),
        ("1f385", "1f9d1-200d-1f384", "man"),
        ("1f468-200d-1f469-200d-1f466", "1f468-200d-1f469-200d-1f466", None),
        ("2640", "2640", None),
        ("1f436", "1f436", None),
    ],
)
def test_gender_is_read_from_the_code_points(code, neutral, gender):
    assert concepts.neutral_code(code) == (neutral, gender)


def test_each_phrasing_looks_its_way_in_each_language():
    names = {k: Names(f"Hund {k}", ("a", "b", "c", "d")) for k in concepts.LANGUAGES}
    rng = random.Random(0)
    written = {
        (k, p): captions.caption(names, k, p, rng)
        for k in concepts.LANGUAGES
        for p in captions.PHRASINGS
    }
    assert len(set(written.values())) == len(written)
    assert written["de", "shout"] == "HUND DE!!!"
    assert written["es", "hashtags"] == "#Hund #es"
    assert written["es", "picture"] == "una imagen de Hund es"
    assert sorted(written["en", "keywords"].split(", "))[0] == "Hund en"
    assert len(written["en", "keywords"].split(", ")) == 4


def test_a_drawing_used_for_two_labels_stays_with_the_gendered_one():
    drawing = np.zeros((3, 2, 2, 4), np.uint8)
    rows = [
        {"vendor": "noto-v1", "label": "person running", "gender": "person"},
        {"vendor": "noto-v1", "label": "man running", "gender": "man"},
        {"vendor": "twemoji", "label": "person running", "gender": "person"},
    ]
    assert pairs.drop_twins(drawing, rows) == [1, 2]


def test_at_most_two_skin_tones_of_a_drawing_score():
    rows = [
        {"vendor": "noto", "label": label, "tone": tone, "split": "hv-test"}
        for label in ("waving hand", "clapping hands")
        for tone in concepts.TONES
    ]
    chosen = pairs.thin(rows, "hv-test")
    assert Counter(rows[i]["label"] for i in chosen) == {"waving hand": 2, "clapping hands": 2}


def test_half_transparent_pixels_mix_with_the_background():
    drawing = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], np.uint8)
    assert pairs.composite(drawing, (0, 100, 0)).tolist() == [
        [[200, 0, 0], [0, 100, 0], [40, 80, 0]]
    ]


def _fake_npm(folder):
    """Packages as npm unpacks them, with two icons of Noto and none of the others."""
    for package in icons.VENDORS.values():
        path = folder / f"{package}-{icons._VERSIONS[package]}" / "package"
        path.mkdir(parents=True)
        (path / "icons.json").write_text(json.dumps({"icons": {}}))
    noto = folder / f"iconify-json-noto-{icons._VERSIONS['iconify-json-noto']}" / "package"
    data = {
        "icons": {"dog-face": {"body": '<path fill="currentColor"/>'}, "odd": {"body": ""}},
        "aliases": {"face-dog": {"parent": "dog-face", "hFlip": True}},
        "width": 10,
        "height": 10,
    }
    (noto / "icons.json").write_text(json.dumps(data))
    (noto / "chars.json").write_text(json.dumps({"1f415": "face-dog"}))
    codes = folder / f"emojibase-data-{icons._VERSIONS['emojibase-data']}" / "package" / "en"
    (codes / "shortcodes").mkdir(parents=True)
    for source in icons._SHORTCODES:
        (codes / "shortcodes" / f"{source}.json").write_text("{}")
    return folder


def test_icons_are_found_by_name_and_code_and_mirrored_where_the_set_says_so(tmp_path):
    npm = _fake_npm(tmp_path)
    known = [
        Variant("1f436", "dog face", "dog face", "animals-nature", "none", "none"),
        Variant("1f415", "dog", "dog", "animals-nature", "none", "none"),
    ]
    found = icons.read_icons(npm, "noto", icons.Matcher(npm, known))
    assert {(i.code, i.name) for i in found} == {("1f436", "dog-face"), ("1f415", "face-dog")}
    svg = {i.name: i.svg for i in found}
    assert 'fill="#000"' in svg["dog-face"]
    assert "scale(-1 1)" in svg["face-dog"] and "scale" not in svg["dog-face"]

"""Maps of where features fire in their examples, held to plain forwards of the host."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_sharded_pairs import files_of, tar

from vlm_edit import Dictionary, Host, Measurement, Pairs, VlmEditError, measure, zoo
from vlm_edit.ground.files import read_tensors, write_tensors
from vlm_edit.measuring import (
    Maps,
    PlacesFinder,
    is_pooled,
    load_maps,
    map_examples,
    map_site,
    one_sided,
    shards_of,
    token_codes,
)

SITE = "language.2"


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.of(*zoo.load_llava())


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return zoo.load_pairs().select(range(40))


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    return zoo.load_dictionary(SITE)


@pytest.fixture(scope="module")
def run(host, pairs, dictionary) -> Measurement:
    return measure(host, pairs, dictionary, SITE, progress=False)


@pytest.fixture(scope="module")
def maps(host, pairs, dictionary, run) -> Maps:
    return map_examples(host, pairs, dictionary, run, per=2, progress=False)


def test_each_token_has_what_a_plain_forward_gives(host, pairs, dictionary, maps) -> None:
    """Pair by pair, by the host's own hidden states."""
    plain = {}
    for i in range(len(pairs)):
        inputs = host.inputs([pairs.open(i)], [pairs.texts[i]])
        with torch.no_grad():
            out = host.model(**inputs.values, output_hidden_states=True)
        hidden = out.hidden_states[3][0]
        image = inputs.values["input_ids"][0] == host.model.config.image_token_id
        plain[i] = {
            "image": dictionary.encode(hidden[image], "image"),
            "text": dictionary.encode(hidden[inputs.caption[0]], "text"),
        }
    seen = 0
    for feature in maps.features.unique().tolist():
        for firing in maps.of(feature):
            for stream, values in firing.values.items():
                wanted = plain[firing.number][stream][:, feature]
                torch.testing.assert_close(values, wanted, rtol=1e-3, atol=1e-4)
                seen += int((values != 0).sum())
    assert seen > 1000


def test_the_strongest_and_the_drawn_examples_are_mapped_and_no_others(run, maps) -> None:
    for feature in range(len(run.dominance.scores)):
        wanted = set()
        for examples in (*run.examples.values(), *run.drawn.values()):
            wanted |= {n for n, _ in examples.of(feature)[:2]}
        assert [firing.number for firing in maps.of(feature)] == sorted(wanted)
    assert maps.left_out == 0


def test_words_and_boxes_go_with_the_tokens(maps, pairs) -> None:
    side = 1 / 6
    for feature in maps.features.unique().tolist()[:20]:
        for firing in maps.of(feature):
            assert "".join(firing.words).strip() == pairs.texts[firing.number]
            assert len(firing.words) == len(firing.values["text"])
            boxes = firing.boxes
            assert boxes is not None and len(boxes) == len(firing.values["image"]) == 37
            assert bool(boxes[0].isnan().all())  # the class token stands for no part
            for i, box in enumerate(boxes[1:].tolist()):  # six rows of six, counted by hand
                left, top = i % 6 * side, i // 6 * side
                assert box == pytest.approx([left, top, left + side, top + side], abs=0.01)


def test_a_patch_that_is_painted_over_fires_where_its_box_is(host) -> None:
    """A bright patch on black: the tokens of language.0 that change most are those of its box."""
    black = Image.new("RGB", (48, 48))
    neurons = Dictionary.identity(host.site("language.0").width)
    (base,) = token_codes(host, [(black, "a")], neurons, "language.0")
    boxes = PlacesFinder(host, "language.0").of((48, 48)).boxes
    assert boxes is not None
    hits = 0
    for cell in range(36):
        x, y = cell % 6 * 8, cell // 6 * 8
        picture = black.copy()
        picture.paste((255, 255, 255), (x, y, x + 8, y + 8))
        (one,) = token_codes(host, [(picture, "a")], neurons, "language.0")
        moved = (one.codes["image"].dense() - base.codes["image"].dense()).norm(dim=1)
        moved[boxes[:, 0].isnan()] = 0
        box = boxes[int(moved.argmax())] * 48
        inside = box[0] - 1 <= x + 4 <= box[2] + 1 and box[1] - 1 <= y + 4 <= box[3] + 1
        hits += bool(inside)
    assert hits >= 30  # by chance it would be one


def test_a_file_keeps_them_and_tells_whose_they_are(maps, tmp_path) -> None:
    maps.save(tmp_path / "maps", "of a run")
    again = load_maps(tmp_path / "maps", "of a run")
    assert again is not None and load_maps(tmp_path / "maps", "another") is None
    for feature in maps.features.unique().tolist():
        for one, other in zip(maps.of(feature), again.of(feature), strict=True):
            assert one.number == other.number and list(one.words) == list(other.words)
            assert all(torch.equal(v, other.values[s]) for s, v in one.values.items())
            assert one.boxes is not None and other.boxes is not None
            assert torch.equal(one.boxes.nan_to_num(nan=-1), other.boxes.nan_to_num(nan=-1))
    assert (again.left_out, again.why, again.site) == (0, "", SITE)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t["of_pairs"].add_(10_000),
        lambda t: t["tokens.image"].add_(1000),
        lambda t: t["tokens.text"].sub_(1000),
        lambda t: t["starts.image"].mul_(2),
        lambda t: t.update({"starts.text": t["starts.text"][:-1]}),
        lambda t: t.update({"features": t["features"].flip(0)}),
        lambda t: t.update({"boxes.0": t["boxes.0"][:5]}),
        lambda t: t["places"].add_(3),
        lambda t: t.pop("words"),
        lambda t: t.update({"words": torch.zeros(3, dtype=torch.uint8)}),
        lambda t: t.update({"counts.text": t["counts.text"][:-1]}),
    ],
)
def test_files_that_point_beyond_what_is_there_are_refused(maps, tmp_path, spoil) -> None:
    maps.save(tmp_path / "maps")
    header, tensors = read_tensors(tmp_path / "maps")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    spoil(tensors)
    write_tensors(tmp_path / "maps", tensors, header)
    with pytest.raises(VlmEditError, match="is damaged .*: delete it, and map again"):
        load_maps(tmp_path / "maps")


def test_what_was_not_measured_is_refused(host, pairs, dictionary, run) -> None:
    other = Pairs(pairs.images[::-1], pairs.texts, name="turned")
    with pytest.raises(VlmEditError, match="pair 0 does not look as when it was measured"):
        map_examples(host, other, dictionary, run, progress=False)
    asked = Host.of(*zoo.load_llava(), prompt="{image} Say {text}")
    with pytest.raises(VlmEditError, match="the run asked the host"):
        map_examples(asked, pairs, dictionary, run, progress=False)
    with pytest.raises(VlmEditError, match="per is 0"):
        map_examples(host, pairs, dictionary, run, per=0, progress=False)


def test_one_picture_that_is_another_by_now_is_named(host, pairs, dictionary, run) -> None:
    images = [*pairs.images]
    images[7] = pairs.open(31)
    with pytest.raises(VlmEditError, match="pair 7 does not look as"):
        map_examples(host, Pairs(images, pairs.texts), dictionary, run, progress=False)


def test_only_so_many_pairs_are_looked_at_and_the_strongest_features_come_first(
    host, pairs, dictionary, run, maps
) -> None:
    few = map_examples(host, pairs, dictionary, run, per=1, most=6, progress=False)
    assert len(few.pairs) <= 6 and few.left_out > 0
    there = set(few.features.tolist())
    strongest = int(run.strength().argmax())
    assert strongest in there
    firing = set(maps.features.tolist())
    assert few.left_out == len(firing - there)


def test_pairs_of_shards_are_found_again(host, pairs, dictionary, maps, tmp_path) -> None:
    source = shards_of(str(tar(tmp_path / "pairs.tar", files_of(pairs, range(len(pairs))))))
    measured = measure(host, source, dictionary, SITE, progress=False)
    found = map_examples(host, source, dictionary, measured, per=2, progress=False)
    assert len(found) > 0.9 * len(maps)
    assert all(pair.words for pair in found.pairs)


def test_where_one_vector_stands_for_a_picture_nothing_is_mapped(pairs) -> None:
    clip, joint = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    measured = measure(clip, pairs, joint, progress=False)
    assert is_pooled(clip, "joint") and not is_pooled(Host.of(*zoo.load_llava()), SITE)
    with pytest.raises(VlmEditError, match="one vector stands for a picture.*: map a layer"):
        map_examples(clip, pairs, joint, measured, progress=False)


def test_runs_of_former_versions_have_no_drawn_examples_and_are_mapped(
    host, pairs, dictionary, run
) -> None:
    former = dataclasses.replace(run, drawn={})
    maps = map_examples(host, pairs, dictionary, former, per=1, progress=False)
    for feature in (0, 5):
        wanted = {n for top in run.examples.values() for n, _ in top.of(feature)[:1]}
        assert [firing.number for firing in maps.of(feature)] == sorted(wanted)


def test_a_path_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VlmEditError):
        load_maps(tmp_path / "nothing")


@pytest.mark.parametrize(("site", "stream"), [("vision.2", "image"), ("text.1", "text")])
def test_a_tower_is_mapped_alone_in_the_examples_that_brute_force_finds(
    pairs, site, stream
) -> None:
    clip = Host.of(*zoo.load_host())
    neurons = Dictionary.identity(clip.site(site).width)
    maps = map_site(clip, pairs, neurons, site, features=[5, 9, 60], per=2, progress=False)
    values = [pair.codes[stream].dense() for pair in token_codes(clip, pairs, neurons, site)]
    means = torch.stack([tokens.abs().mean(0) for tokens in values])
    assert maps.features.unique().tolist() == [5, 9, 60] and maps.left_out == 0
    for feature in (5, 9, 60):
        firings = {firing.number: firing for firing in maps.of(feature)}
        strongest = means[:, feature].argsort(descending=True)[:2].tolist()
        assert set(strongest) <= firings.keys() and 2 <= len(firings) <= 4
        for number, firing in firings.items():
            assert list(firing.values) == [stream]
            torch.testing.assert_close(
                firing.values[stream], values[number][:, feature], rtol=1e-3, atol=1e-4
            )
            assert (firing.boxes is None) == (stream == "text")
            assert bool(firing.words) == (stream == "text")
    peaks = {k: max(float(f.values[stream].abs().max()) for f in maps.of(k)) for k in (5, 9, 60)}
    assert maps.strongest() == sorted(peaks, key=lambda k: -peaks[k])


def test_a_tower_is_mapped_of_shards_and_of_pictures_alone(pairs, tmp_path) -> None:
    clip, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("vision.2")
    whole = map_site(clip, pairs, dictionary, "vision.2", per=1, progress=False)
    source = shards_of(str(tar(tmp_path / "pairs.tar", files_of(pairs, range(len(pairs))))))
    found = map_site(clip, source, dictionary, "vision.2", per=1, progress=False)
    assert torch.equal(found.features, whole.features)
    for one, other in zip(found.of(683), whole.of(683), strict=True):
        torch.testing.assert_close(one.values["image"], other.values["image"])
    alone = one_sided([pairs.open(i) for i in range(6)], "pictures")
    bare = map_site(clip, alone, dictionary, "vision.2", per=1, progress=False)
    assert {firing.number for firing in bare.of(683)} <= set(range(6)) and len(bare) > 0


def test_what_fires_nowhere_and_what_is_not_there_is_said(pairs) -> None:
    clip, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("vision.2")
    with pytest.raises(VlmEditError, match="feature 1024 is not in this dictionary"):
        map_site(clip, pairs, dictionary, "vision.2", features=[1024], progress=False)
    with pytest.raises(VlmEditError, match="one vector stands for a picture"):
        map_site(clip, pairs, zoo.load_dictionary("joint"), "joint", progress=False)
    dead = map_site(clip, pairs, dictionary, "vision.2", per=1, progress=False)
    silent = sorted(set(range(1024)) - set(dead.features.tolist()))
    assert silent
    with pytest.raises(VlmEditError, match="no feature that is asked about fires"):
        map_site(clip, pairs, dictionary, "vision.2", features=silent[:2], progress=False)


def test_an_image_with_several_captions_is_an_example_once(pairs) -> None:
    clip, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("vision.2")
    numbers = [0, 0, 0, 1, 1, 2, 3]
    images = [pairs.open(i) for i in numbers]
    texts = tuple(f"{pairs.texts[i]} {k}" for k, i in enumerate(numbers))
    maps = map_site(clip, Pairs(images, texts), dictionary, "vision.2", per=3, progress=False)
    for feature in maps.strongest()[:50]:
        shown = [numbers[firing.number] for firing in maps.of(feature)]
        assert len(shown) == len(set(shown))

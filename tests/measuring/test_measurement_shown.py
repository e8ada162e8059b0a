"""What a notebook asks of a measurement: lines, tables, a plot, a page, values for rules."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_dictionary
from matplotlib.figure import Figure
from pages import HOSTILE, Tags
from PIL import Image

from vlm_edit import Ablate, Clamp, Dictionary, Host, Measurement, Pairs, Patch, measure, zoo
from vlm_edit.dictionaries import PairedDictionary, load_dictionary, save_saelens
from vlm_edit.ground.errors import BadArgument, CannotKnow, UnknownName, VlmEditError
from vlm_edit.measures.dominance import modality_dominance
from vlm_edit.measuring import (
    Features,
    MeasurementAccumulator,
    Reader,
    collect,
    load_measurement,
    measure_part,
    merge_parts,
)
from vlm_edit.selection import by_class

ERROR = 1 / 64


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.of(*zoo.load_host())


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return zoo.load_pairs().select(range(96))


@pytest.fixture(scope="module")
def found(host: Host, pairs: Pairs) -> Measurement:
    return measure(host, pairs, zoo.load_dictionary("joint"), progress=False)


@pytest.fixture(scope="module")
def speaker() -> tuple[Host, Dictionary, Pairs]:
    """A LLaVA, a dictionary of one of its layers, and pairs of many tokens."""
    host = Host.of(*zoo.load_llava())
    width = host.site("language.1").width
    return host, random_dictionary(width, 24), zoo.load_pairs().select(range(10))


@pytest.fixture(scope="module")
def tokens(speaker: tuple[Host, Dictionary, Pairs]) -> dict[str, torch.Tensor]:
    """The codes of every token by itself, of both streams and of each."""
    host, dictionary, pairs = speaker
    streams = collect(host, pairs, "language.1", progress=False)
    codes = {stream: dictionary.encode(rows, stream) for stream, rows in streams.items()}
    return {**codes, "both": torch.cat(list(codes.values()))}


def spoken(speaker: tuple[Host, Dictionary, Pairs], **options: Any) -> Measurement:
    host, dictionary, pairs = speaker
    options = {"progress": False, "batch_size": 4} | options
    return measure(host, pairs, dictionary, "language.1", **options)


# One line each, and little HTML.


def make(kind: str, host: Host, pairs: Pairs, found: Measurement, folder: Path) -> Any:
    dictionary = zoo.load_dictionary("joint")
    save_saelens(replace(dictionary, encoder=replace(dictionary.encoder, centers={})), folder)
    stored = load_dictionary(folder, lazy=True)
    patch = Patch("joint", dictionary, Ablate(range(300)))
    return {
        "measurement": lambda: found,
        "dominance": lambda: found.dominance,
        "top": lambda: found.top("vision", 30),
        "dictionary": lambda: dictionary,
        "stored": lambda: stored,
        "paired": lambda: PairedDictionary(dictionary, dictionary),
        "both stored": lambda: PairedDictionary(stored, stored),
        "patch": lambda: patch,
        "attachment": lambda: patch.attach(Host.of(*zoo.load_host())),
        "pairs": lambda: pairs,
        "host": lambda: host,
    }[kind]()


KINDS = (
    *("measurement", "dominance", "top", "dictionary", "stored", "paired", "both stored"),
    *("patch", "attachment", "pairs", "host"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_says_on_a_short_line_what_it_is(kind, host, pairs, found, tmp_path) -> None:
    thing = make(kind, host, pairs, found, tmp_path)
    line = repr(thing)
    assert len(line) < 120 and "\n" not in line
    assert "tensor" not in line and " object at " not in line
    assert line.startswith(type(thing).__name__ + "(")
    html = thing._repr_html_()
    assert len(html) < (14_000 if kind == "top" else 3_500)
    assert "tensor(" not in html and Tags(html).tags[0][0] == "div"


def test_lines_say_what_one_asks_first(host, pairs, found, tmp_path) -> None:
    def line(kind: str) -> str:
        return repr(make(kind, host, pairs, found, tmp_path))

    sizes = {name: len(members) for name, members in found.dominance.classes().items()}
    words = ", ".join(f"{size} {name}" for name, size in sizes.items())
    assert line("measurement") == f"Measurement(joint, 96 pairs: {words})"
    assert line("dictionary") == "Dictionary(512 features, width 192, jumprelu, from emoji-clip)"
    assert line("stored").endswith("left on disk)")
    assert line("host") == "Host(CLIPModel with 8 sites and a CLIPProcessor)"
    assert line("pairs") == "Pairs(96 pairs from zoo:pairs, with 10 columns)"
    assert line("attachment") == "Attachment(joint: ablate 300 features at all tokens; strength 1)"


def test_an_attachment_says_when_it_is_not_in_force(clip, dictionary) -> None:
    attached = Patch("joint", dictionary(12), Ablate(3)).attach(clip)
    with attached.paused():
        assert repr(attached).endswith("; strength 1; paused)")
        assert "paused" in attached._repr_html_()
    attached.detach()
    assert repr(attached).endswith("; strength 1; removed)")
    assert "removed" in attached._repr_html_()


def test_an_attachment_shows_what_was_edited(clip, clip_inputs, dictionary) -> None:
    with Patch("joint", dictionary(12), Ablate(3), tokens="text").attach(clip) as attached:
        clip(**clip_inputs)
        assert "<td" in attached._repr_html_()
        assert Tags(attached._repr_html_()).text.split()[-1] == "tokens31"


def test_names_of_strangers_are_escaped_everywhere(clip, dictionary, found) -> None:
    foreign = replace(dictionary(12), info={"model_name": HOSTILE, "site": HOSTILE})
    host = Host.of(clip)
    clip.config._name_or_path = HOSTILE
    image = Image.new("RGB", (8, 8))
    things = [
        foreign,
        PairedDictionary(foreign, foreign),
        Patch("joint", dictionary(12), Ablate(1), info={HOSTILE: HOSTILE}),
        Pairs([image, Path(HOSTILE)], (HOSTILE, "b"), {HOSTILE: (HOSTILE, "")}, HOSTILE),
        replace(found, site=HOSTILE, provenance={"host": {"name": HOSTILE}},
                files=dict.fromkeys(range(96), HOSTILE)),
        host,
    ]  # fmt: skip
    things.append(things[4].top("vision"))
    for thing in things:
        tags = {tag for tag, _ in Tags(thing._repr_html_()).tags}
        assert not tags & {"script", "img"}, type(thing)
        assert len(repr(thing)) < 120


# The first features of a class.


@pytest.mark.parametrize("kind", ["vision", "language", "cross", "undecided", "dead"])
def test_the_surest_come_first_as_by_class_ranks(kind: str, found: Measurement) -> None:
    expected = by_class(found.dominance, kind)  # type: ignore[arg-type]
    assert found.top(kind, None) == expected
    ranked = by_class(found.dominance, kind, n=4)  # type: ignore[arg-type]
    assert found.top(kind, 4) == ranked
    if kind in ("vision", "language", "cross"):
        assert f"{ranked.proven} of {len(ranked)} proven" in found.top(kind, 4).title
    fixed = by_class(found.dominance, kind, "fixed", n=5)  # type: ignore[arg-type]
    assert found.top(kind, 5, rule="fixed") == fixed


def test_or_the_strongest(found: Measurement) -> None:
    members = found.dominance.classes()["vision"]
    tops = [torch.stack([found.examples[s].values[k] for s in ("image", "text")]) for k in members]
    order = np.argsort([-float(t.mean(1).max()) for t in tops], kind="stable")
    assert found.top("vision", None, by="strength") == [members[i] for i in order]


def test_it_is_a_list_that_rules_take_and_a_table(found: Measurement) -> None:
    top = found.top("vision", 5)
    assert Ablate(top).features == tuple(top)
    assert top[0] in top and len(top[:2]) == 2
    assert top[:2].columns["mds"] == top.columns["mds"][:2]
    assert top != [*top, 1] and top != "vision"
    lines = str(top).splitlines()
    assert lines[1].split() == ["feature", *top.columns]
    assert [line.split()[0] for line in lines[2:]] == [str(k) for k in top]
    table = found.table()
    for name in ("mds", "mean_image", "active_pairs"):
        assert top.columns[name] == [table[name][k] for k in top]
    many = found.top("undecided", None)
    assert str(many).splitlines()[-1] == f"and {len(many) - 25} more"
    assert len(str(many).splitlines()) == 2 + 25 + 1
    assert len(many._repr_html_()) < 20_000
    none = Features.of(found, "none", [])
    assert len(none) == 0 and "0 features" in str(none) and none._repr_html_()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.top("cross-modal"), "no class 'cross-modal' of features: use one of"),
        (lambda m: m.top("vision", 0), "most is 0: ask for at least 1"),
        (lambda m: m.top("vision", by="size"), "no order 'size'"),
        (lambda m: m.top("vision", rule="none"), "unknown rule 'none'"),
        (lambda m: m.plot(rule="none"), "unknown rule 'none'"),
        (lambda m: m.plot(bins=0), "bins is 0"),
        (lambda m: m.quantile(600), "feature 600 is not in this dictionary"),
        (lambda m: m.quantile(-1), "feature -1 is not in this dictionary"),
        (lambda m: m.quantile(1.5), "features must be whole numbers, got 1.5"),
        (lambda m: m.quantile(1, 99), "a quantile lies above 0 and up to 1, got 99"),
        (lambda m: m.quantile(1, 0.9, "vision"), "no stream 'vision': use 'image', 'text' or"),
    ],
)
def test_a_mistake_is_named_with_the_mend(
    ask: Callable[[Measurement], Any], message: str, found: Measurement
) -> None:
    with pytest.raises(VlmEditError, match=message):
        ask(found)


# How large activations are.


def test_sizes_are_those_of_single_tokens(speaker, tokens) -> None:
    table = spoken(speaker).table()
    for stream in ("image", "text"):
        codes = tokens[stream].abs().double()
        active = codes > 0
        mean = torch.where(active.any(0), codes.sum(0) / active.sum(0), torch.nan)
        most = torch.where(active.any(0), codes.amax(0), torch.nan)
        for name, expected in ((f"mean_{stream}", mean), (f"max_{stream}", most)):
            assert table[name] == pytest.approx(expected.tolist(), rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("stream", ["image", "text", "both"])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_those_of_the_tokens_by_themselves(speaker, tokens, stream, level) -> None:
    found, some = spoken(speaker), [1, 5, 20]
    truth = [
        float(np.quantile(c[c > 0].numpy(), level, method="inverted_cdf"))
        for c in tokens[stream].T[some]
    ]
    assert found.quantile(some, level, stream) == pytest.approx(truth, rel=ERROR + 1e-4)
    assert found.quantile(5, level, stream) == found.quantile(torch.tensor([5]), level, stream)[0]


def test_at_a_joint_embedding_a_token_is_a_pair(host, pairs, found) -> None:
    streams = collect(host, pairs, progress=False)
    codes = zoo.load_dictionary("joint").encode(streams["text"], "text")
    feature = int((codes > 0).sum(0).argmax())
    values = codes[:, feature]
    expected = float(np.quantile(values[values > 0].numpy(), 0.9, method="inverted_cdf"))
    assert found.quantile(feature, 0.9, "text") == pytest.approx(expected, rel=ERROR + 1e-4)
    assert found.table()["max_text"][feature] == pytest.approx(float(values.max()), rel=1e-4)


def test_clamp_sets_what_was_measured(speaker) -> None:
    found = spoken(speaker)
    rule = Clamp([5, 1], quantile=0.9, of=found)
    assert rule == Clamp([5, 1], found.quantile([5, 1], 0.9))
    assert rule(torch.zeros(3, 2)).tolist() == [[pytest.approx(v) for v in rule.value]] * 3
    with pytest.raises(BadArgument, match="feature 24 is not in this dictionary"):
        Clamp(24, quantile=0.9, of=found)


def sizes_of(measurement: Measurement) -> dict[str, torch.Tensor]:
    header, tensors = measurement.taken_apart()
    return {name: t for name, t in tensors.items() if name.startswith("sizes.")}


def expect_equal(one: Measurement, other: Measurement) -> None:
    mine, theirs = sizes_of(one), sizes_of(other)
    assert len(mine) == 6 and set(mine) == set(theirs)
    for name, tensor in mine.items():
        if name.endswith("counts"):
            # A code on the edge of a cell may fall to either side where batches round otherwise.
            assert int((tensor - theirs[name]).abs().sum()) <= 4
        else:
            assert torch.allclose(tensor, theirs[name], rtol=1e-4)


def test_sizes_do_not_depend_on_batches_parts_or_stops(speaker, tmp_path, monkeypatch) -> None:
    host, dictionary, pairs = speaker
    whole = spoken(speaker)
    expect_equal(spoken(speaker, batch_size=10), whole)
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    options: dict[str, Any] = {"progress": False, "batch_size": 4}
    for i, file in enumerate(files):
        measure_part(host, pairs, dictionary, "language.1", part=(i, 2), checkpoint=file, **options)
    expect_equal(merge_parts(files[::-1], pairs), whole)

    class Stop(Exception):
        pass

    read = Reader.run

    def stopping(self: Reader, *args: Any) -> Any:
        for cut, batches in read(self, *args):
            if cut.place[0] == 1:
                raise Stop
            yield cut, batches

    file = tmp_path / "stopped.safetensors"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Reader, "run", stopping)
        spoken(speaker, checkpoint=file, every=0.0)
    again = spoken(speaker, checkpoint=file)
    assert again.checksum() == whole.checksum()  # the same batches: to the bit


def test_a_saved_run_keeps_them_and_a_former_one_says_that_it_has_none(found, tmp_path) -> None:
    found.save(tmp_path / "new")
    again = load_measurement(tmp_path / "new")
    assert again.quantile([3, 4], 0.9) == found.quantile([3, 4], 0.9)
    for name, values in again.table().items():
        assert repr(values) == repr(found.table()[name])
    assert again.checksum() == found.checksum()
    replace(found, sizes={}, files={}).save(tmp_path / "old")
    old = load_measurement(tmp_path / "old")
    table = old.table()
    for name in ("mean_image", "max_image", "mean_text", "max_text"):
        assert len(table[name]) == 512 and all(value != value for value in table[name])
    with pytest.raises(CannotKnow, match="former version.*measure again"):
        Clamp(3, quantile=0.9, of=old)
    assert len(old.top("vision", 3)) == 3 and old._repr_html_()


def test_a_part_without_sizes_takes_them_from_the_whole(host, pairs) -> None:
    """Sizes of some of the pairs must not pass for those of all."""
    dictionary = zoo.load_dictionary("joint")
    batches = list(Reader(host, dictionary, progress=False, batch_size=32, sizes=True).read(pairs))
    full = MeasurementAccumulator(512)
    for batch in batches:
        full.update(batch)
    assert full.compute("joint").sizes
    part = MeasurementAccumulator(512)
    part.update(batches[0])
    part.update(replace(batches[1], tokens={}))
    assert not part.compute("joint").sizes
    full.merge(part)
    assert not full.compute("joint").sizes
    former = MeasurementAccumulator(512)
    state = part.state_dict()
    assert not [name for name in state if name.startswith("sizes.")]
    former.load_state_dict(state)
    former.update(batches[2])
    assert not former.compute("joint").sizes


def test_a_feature_that_is_never_active_or_far_below_its_largest_has_no_quantile(found) -> None:
    quiet = {s: sizes.state_dict() for s, sizes in found.sizes.items()}
    for state in quiet.values():
        state["counts"][3] = 0
        state["counts"][4] = 0
        state["counts"][4, [0, -1]] = torch.tensor([1, 9], dtype=torch.int32)
    other = replace(found, sizes={s: found.sizes[s].together(found.sizes[s]) for s in quiet})
    for s, state in quiet.items():
        other.sizes[s].load_state_dict(state)
    with pytest.raises(CannotKnow, match="feature 3 is never active in image tokens"):
        other.quantile(3, 0.9, "image")
    with pytest.raises(CannotKnow, match="the 0.5 quantile of feature 4 lies below a sixteenth"):
        other.quantile([4], 0.5)
    assert other.quantile(4, 1.0, "text") == found.sizes["text"].largest[4]


# Files of top images.


def test_top_images_are_files_where_pairs_have_them(host, pairs, found, tmp_path) -> None:
    folder = tmp_path / "my images"
    folder.mkdir()
    some = pairs.select(range(12))
    for i in range(12):
        some.open(i).save(folder / f"{i}.png")
    rows = [["image", "text"], *([f"my images/{i}.png", t] for i, t in enumerate(some.texts))]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (tmp_path / "pairs.csv").write_text(text.getvalue())
    measured = measure(host, tmp_path / "pairs.csv", zoo.load_dictionary("joint"), progress=False)
    measured.save(tmp_path / "run")
    for run in (measured, load_measurement(tmp_path / "run")):
        for k, cell in enumerate(run.table()["top_images"]):
            numbers = [n for n, _ in run.examples["image"].of(k)][:9]
            assert cell == " | ".join(f"my images/{n}.png" for n in numbers)
    elsewhere = Pairs([folder / f"{i}.png" for i in range(12)], some.texts)
    by_hand = measure(host, elsewhere, zoo.load_dictionary("joint"), progress=False)
    assert by_hand.files[3] == str(folder / "3.png")
    assert found.files == {}  # in memory
    numbers = [n for n, _ in found.examples["image"].of(7)][:9]
    assert found.table()["top_images"][7] == " ".join(map(str, numbers))


# A plot and a page.


def test_the_plot_counts_each_class_between_its_cuts(found: Measurement) -> None:
    axes = Figure().add_subplot()
    assert found.plot(axes=axes, bins=20) is axes
    classes = found.dominance.classes()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    for name in ("vision-dominant", "language-dominant", "cross-modal", "undecided"):
        size = len(classes[name.split("-")[0]])
        assert (f"{name} ({size:,})" in labels) == (size > 0)
    heights = {
        tuple(bar[0].get_facecolor()): sum(patch.get_height() for patch in bar)
        for bar in axes.containers
    }
    sizes = sorted(len(m) for n, m in classes.items() if n != "dead" and m)
    assert sorted(heights.values()) == sizes
    dashed = [line.get_xdata()[0] for line in axes.lines]
    assert dashed == list(found.dominance.cuts())


def test_a_score_at_a_cut_stands_on_the_side_of_its_class() -> None:
    image = torch.tensor([[1.0]] * 16 + [[0.0]] * 24)
    dominance = modality_dominance(image, 1 - image)
    assert dominance.scores.tolist() == [0.4] and dominance.classes("fixed")["cross"] == [0]
    axes = Figure().add_subplot()
    measurement = Measurement(dominance, 0.0, {}, "joint", 40)
    measurement.plot(rule="fixed", axes=axes, bins=40)
    (left,) = [b.get_x() for bars in axes.containers for b in bars if b.get_height()]
    assert left == pytest.approx(0.4)


def test_without_axes_a_new_figure_is_made(found: Measurement) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    axes = found.plot(rule="sd")
    assert axes.figure.number in pyplot.get_fignums()
    pyplot.close(axes.figure)


def test_the_page_is_that_of_the_report(found, pairs, tmp_path) -> None:
    found.page(tmp_path / "x.html", pairs, shown=2)
    html = (tmp_path / "x.html").read_text("utf-8")
    assert "<title>Features at joint of" in html
    found.page(tmp_path / "y.html", pairs, "Mine", shown=2)
    assert "<title>Mine" in (tmp_path / "y.html").read_text("utf-8")


def test_a_page_of_other_pairs_is_refused(found, pairs, tmp_path) -> None:
    with pytest.raises(BadArgument, match="96 pairs were measured, and zoo:pairs has 10"):
        found.page(tmp_path / "x.html", pairs.select(range(10)))
    with pytest.raises(BadArgument, match="zoo:pairs has other texts than the pairs"):
        found.page(tmp_path / "x.html", pairs.select(range(95, -1, -1)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnknownName):
        found.top("page")

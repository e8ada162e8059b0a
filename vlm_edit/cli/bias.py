"""``vlm-edit bias``: what a model makes of groups in a folder, and an edit that lessens it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Bias
from vlm_edit.cli.flags import in_flags
from vlm_edit.cli.host import ZOO, load_host
from vlm_edit.cli.subject import load_dictionary, load_pairs
from vlm_edit.cli.writing import expect_free, way_back
from vlm_edit.dictionaries import AnyDictionary
from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError
from vlm_edit.ground.files import make_folder, replacing, write_text
from vlm_edit.measuring import Pairs
from vlm_edit.patches import Patch
from vlm_edit.report import Table
from vlm_edit.selection import difference, random_like
from vlm_edit.tasks import bias as task

TEMPLATES = ("{}", "a picture of {}", "a photo of a {}")
NEUTRAL = tuple(
    f"a photo of a {word} person"
    for word in (
        *("good", "bad", "kind", "hostile", "clever", "simple", "honest", "criminal", "rich"),
        *("poor", "famous", "attractive", "strong", "weak", "busy", "lazy", "funny", "boring"),
        *("successful", "friendly"),
    )
)
AIMS = {"prompts": task.off_chance, "probe": task.off_probe}
_MOST_VALUES = 8
_PATCH, _BASELINE = "patch.safetensors", "baseline.safetensors"
_FILES = ("bias.json", "index.html", _PATCH, _BASELINE)
_NO_GROUP = ("none", "")
_FEWEST = 4  # images of a group, on either side


def bias(options: Bias) -> int:
    """Measure bias, and write figures, a page and a patch."""
    out = Path(options.out)
    expect_free([out / name for name in _FILES], options.overwrite, "name a folder with --out")
    pairs = _drawn(_read(options), options)
    asked = questions(pairs, options)
    dictionary = load_dictionary(options.dictionary, options) if options.dictionary else None
    host = load_host(options.model, options)
    back = way_back(options.back, out)
    make_folder(out)  # before anything long begins
    bench = task.Bench.read(host, pairs, asked, batch_size=options.batch_size)
    sides = task.split(bench.plain.pairs, options.split_by, seed=options.seed)
    _expect_enough(bench.plain, sides)
    learn, test = (bench.part(side) for side in sides)
    simple = task.difference_in_means(learn.plain)
    patch, named, mitigation = simple, "difference in means", None
    if dictionary is not None:
        aim = AIMS[options.aim]
        mitigation = task.mitigate(
            learn, dictionary, way=options.way, aim=aim, tolerance=options.tolerance
        )
        patch = mitigation.patch
        named = f"{options.way} of {len(mitigation.features)} features"
    studies = _studies(learn, test, named, patch, mitigation, dictionary, options)
    outcomes = {name: task.Outcome.of(study, options.k) for name, study in studies.items()}
    tables = _tables(outcomes, test.plain)
    telling.table(*tables)
    telling.left_out(bench.skipped, 0)
    shown = {name: studies[name] for name in ("nothing", named)}
    title = f"{asked.attribute} in {options.data}"
    made = {named: patch, "difference in means": simple}
    with replacing(out, _FILES) as new:
        _write(new, options, outcomes, tables)
        page = new / "index.html"
        task.write_page(page, shown, title, tables, seed=options.seed, back=back)
        for saved in made.values():
            saved.save(new / _file(saved is patch), host)
    print()
    telling.wrote("page", out / "index.html")
    for name, one in made.items():
        telling.wrote("patch", out / _file(one is patch), name)
    return 0


def _file(asked: bool) -> str:
    return _PATCH if asked else _BASELINE


def questions(pairs: Pairs, options: Bias) -> task.Questions:
    """Make what is asked, of the arguments and of what the columns hold.

    Raises:
        VlmEditError: No such column, too many values in it to guess which are meant, or a prompt
            that is not of the form ``VALUE=TEXT``.
    """
    attribute, label = options.attribute, options.label
    for name in filter(None, (attribute, label)):
        if name not in pairs.columns:
            raise UnknownName(
                f"{pairs.name} has no column {name!r}: it has "
                f"{', '.join(pairs.columns) or 'none'}; name one with --attribute or --label"
            )
    values = _values(pairs.columns[attribute], options)
    classes: dict[str, list[str]] = {value: [] for value in values}
    for given in options.prompt:
        value, _, text = given.partition("=")
        if value not in classes or not text.strip():
            raise VlmEditError(
                f"--prompt {given!r}: write VALUE=TEXT with one of {', '.join(values)}"
            )
        classes[value].append(text.strip())
    for value, prompts in classes.items():
        prompts += [] if prompts else [t.format(_words(value)) for t in TEMPLATES]
    labels: dict[str, str] = {}
    if label:
        labels = {f"a picture of {_words(v)}": v for v in sorted(set(pairs.columns[label]))}
    queries = _queries(pairs, labels, options)
    variants = {q: {v: f"{q}, {_words(v)}" for v in values} for q in queries}
    return task.Questions(attribute, classes, queries, label or "", labels, variants)


def _values(column: Sequence[str], options: Bias) -> list[str]:
    if options.values:
        return [value.strip() for value in options.values.split(",")]
    values = [value for value in sorted(set(column)) if value not in _NO_GROUP]
    if not 2 <= len(values) <= _MOST_VALUES:
        raise VlmEditError(
            f"column {options.attribute!r} has {len(values)} values ({', '.join(values[:5])}...): "
            "name those to tell apart with --values"
        )
    return values


def _queries(pairs: Pairs, labels: Mapping[str, str], options: Bias) -> tuple[str, ...]:
    """Take a file's; or those labels that images of some group have; or kinds of person."""
    if options.queries:
        try:
            lines = Path(options.queries).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise VlmEditError(f"--queries {options.queries}: {error}") from error
        queries = tuple(line.strip() for line in lines if line.strip())
        if not queries:
            raise VlmEditError(f"--queries {options.queries} holds no text")
        return queries
    if not labels or options.label is None:
        return NEUTRAL
    groups, column = pairs.columns[options.attribute], pairs.columns[options.label]
    known = {c for g, c in zip(groups, column, strict=True) if g not in _NO_GROUP}
    return tuple(text for text, value in labels.items() if value in known)


def _read(options: Bias) -> Pairs:
    if options.data.startswith(ZOO):
        if options.split:
            raise BadArgument(f"{options.data} has no splits: leave --split out")
        return load_pairs(options.data, options.columns())
    with in_flags():
        return task.read_any(options.data, options.split, **options.columns())


def _drawn(pairs: Pairs, options: Bias) -> Pairs:
    if options.most is None or options.most >= len(pairs):
        return pairs
    if options.most < 2:
        raise BadArgument(f"--most {options.most}: at least 2 images are needed")
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(pairs), generator=generator)[: options.most]
    return pairs.select(sorted(order.tolist()))


def _expect_enough(study: task.Study, sides: tuple[Sequence[int], Sequence[int]]) -> None:
    for name, side in zip(("tune on", "test on"), sides, strict=True):
        groups = [study.groups[i] for i in side]
        for value in study.questions.values:
            if groups.count(value) < _FEWEST:
                raise BadArgument(
                    f"{groups.count(value)} images of {study.questions.attribute} {value!r} to "
                    f"{name}: it takes {_FEWEST}; give more images, another --seed, or other "
                    "--values"
                )


def _studies(
    learn: task.Bench,
    test: task.Bench,
    named: str,
    patch: Patch,
    mitigation: task.Mitigation | None,
    dictionary: AnyDictionary | None,
    options: Bias,
) -> dict[str, task.Study]:
    """Make what is tested: nothing, the edit, random features, and baselines."""
    studies = {"nothing": test.plain, named: test.edited(patch)}
    if mitigation is not None and dictionary is not None:
        evidence = task.Evidence.gather(learn, dictionary)
        live = evidence.codes().abs().amax(0).nonzero().flatten().tolist()
        others = difference(live, mitigation.features)
        count = min(len(mitigation.features), len(others))
        drawn = random_like(mitigation.features[:count], others, seed=options.seed)
        random = task.edit(evidence, drawn, options.way, strength=mitigation.point.strength)
        studies[f"{options.way} of {count} random features"] = test.edited(random)
    studies["difference in means"] = test.edited(task.difference_in_means(learn.plain))
    studies["LEACE"] = test.edited(task.least_squares_erasure(learn.plain))
    studies["prompt difference"] = test.edited(task.prompt_difference(learn.plain))
    if len(set(learn.plain.pairs.texts)) > 1:
        studies["modality centring"] = test.edited(task.modality_centring(learn.plain))
    studies["BEND-VLM (queries only)"] = task.bend(test.plain, learn.plain)
    return studies


def _tables(outcomes: Mapping[str, task.Outcome], study: task.Study) -> list[Table]:
    asked, people = study.questions, len(study.told_apart)
    images = f"{people} images of {' or '.join(asked.values)}"
    effect = task.effect_table(
        outcomes,
        f"{asked.attribute}: what is left of it",
        f"{images} that nothing was fitted on. read: told by prompts, groups alike, chance "
        f"{1 / len(asked.values):.2f}; probe: told by a linear probe trained on the edited "
        "embeddings.\nSkews: of the groups among the first of these images that queries find; 0 is "
        "as many as there are; intervals over images\nand queries, both drawn anew. Permuted: the "
        f"same groups dealt to the same images {_dealings(outcomes)} times, mean [middle 95 %]: no "
        "list\nis even by chance; p: how often such a dealing makes a skew as high as the edit's.",
    )
    of_people = f"; recognised, gap and worst group of the {images}" if asked.labels else ""
    cost = task.cost_table(
        outcomes,
        "What it costs",
        f"Of all {len(study.pairs)} images that nothing was fitted on{of_people}. 95 % intervals "
        "throughout.",
    )
    return [effect, *([cost] if cost else [])]


def _dealings(outcomes: Mapping[str, task.Outcome]) -> int:
    first = next(iter(outcomes.values()))
    return max((len(draws) for draws in first.chance.values()), default=0)


def _write(
    out: Path, options: Bias, outcomes: Mapping[str, task.Outcome], tables: Sequence[Table]
) -> None:
    edits: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        below = [n for n in ("read", "probe") if n in outcome.cases and outcome.below_chance(n)]
        edits[name] = {
            "figures": {figure: _numbers(outcome.estimate(figure)) for figure in outcome.cases},
            "read by group": {g: _numbers(e) for g, e in outcome.by_group("read").items()},
            "by chance": {
                skew: _numbers(outcome.by_chance(skew)) | {"p": outcome.p(skew)}
                for skew in outcome.chance
            },
            "below chance": below,
        }
    report = {
        "arguments": vars(options),
        "edits": edits,
        "tables": [str(table) for table in tables],
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_text(out / "bias.json", text + "\n", "table")


def _numbers(estimate: Any) -> dict[str, float | int]:
    return {key: getattr(estimate, key) for key in ("value", "low", "high", "n")}


def _words(value: str) -> str:
    return value.replace("_", " ")

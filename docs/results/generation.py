"""What does a drawing take from a reference, by the class of features that is blended?

    python docs/results/generation.py --half        # an hour and more on one thread with AMX
    python docs/results/generation.py --half --only image          # a part, into the same file
    python docs/results/generation.py --device cuda --pairs 512 --steps 20

emoji-unclip draws from joint embeddings of emoji-clip. Each drawing starts from a source, an image
or a caption, and takes features of a reference, the image or caption of another label on another
background by another vendor; or it has more or less of its source's own features. Pairs of both are
drawn at random, with a fixed seed, and each is drawn from several noises. What the drawing shows is
read by classifiers that the pipeline was not trained with: the label, vendor and background by an
independent ResNet, the background also by the colour of the edge, the label also by emoji-clip.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import torch
from generation_tables import KINDS, READ, STRENGTHS, examples, tables
from torch import Tensor
from torch.nn import functional as F

from vlm_edit import Blend, Keep, Scale, zoo
from vlm_edit.controls import norm_matched, random_features
from vlm_edit.edits import Rule, Splice
from vlm_edit.statistics import Estimate, mean_estimate, proportion
from vlm_edit.tasks.generation import Trend
from vlm_edit.zoo.recipes.evaluate import embed_texts
from vlm_edit.zoo.recipes.unclip_drawings import embed_images
from vlm_edit.zoo.recipes.unclip_judge import judge, prepare
from vlm_edit.zoo.recipes.unclip_scores import edge_colours, shipped

__all__ = ["OPTIONS", "compute", "examples", "tables"]

OPTIONS = " --half"
CLASSES = ("vision", "cross", "language")
PROMPT = "a picture of {}"
DRAWS, RANDOM = 500, 5  # of a bootstrap; of random features
PROMPTED = "prompt with the reference's label"

Edit = Callable[[Tensor, Tensor, float], Tensor]  # of sources [n, d] and references, at a strength


class Subject:
    """The pipeline, who judges it, and pairs of sources and references."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        found = common.subject("clip", "joint")
        self.dictionary, self.hidden = found.dictionary, found.hidden
        self.classes = found.dominance.classes("sd")  # the paper's rule
        self.significant = found.dominance.classes("significant")
        live = (found.codes["image"] != 0).any(0) | (found.codes["text"] != 0).any(0)
        self.live = live.nonzero()[:, 0].tolist()
        self.image_codes = found.codes["image"]
        self.far = {
            name: norm_matched(
                self.classes[name], self.live, self.image_codes, self.dictionary.decoder,
                draws=RANDOM,
            )
            for name in ("vision", "cross")
        }  # fmt: skip
        self.columns = zoo.load_pairs().columns
        self.pipe = zoo.load_unclip().to(self.device)
        self.pipe.unet.to(memory_format=torch.channels_last)
        self.half = options.half
        self.pipe.set_progress_bar_config(disable=True)
        self.judge = zoo.load_judge().to(self.device)
        self.steps = options.steps
        self.source, self.reference = self._pairs(options.pairs)
        everything = shipped().images
        self.shown, self.target = everything[self.source], everything[self.reference]
        host, processor = zoo.load_host()
        self.labels = zoo.load_labels()
        self.directions = embed_texts(host, processor, [PROMPT.format(n) for n in self.labels])
        shape = self.pipe.unet.config
        self.latents = torch.randn(
            options.seeds, len(self.source), shape.in_channels, shape.sample_size,
            shape.sample_size, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    def _pairs(self, count: int) -> tuple[list[int], list[int]]:
        """Sources, and for each a reference of another concept, group, background and vendor."""
        n = len(self.columns["label"])
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(n, generator=generator).tolist()
        sources, references = order[:count], []
        for i in sources:
            others = torch.randperm(n, generator=generator).tolist()
            references.append(next(j for j in others if self._apart(i, j)))
        return sources, references

    def _apart(self, i: int, j: int) -> bool:
        keys = ("concept", "background", "vendor", "group")
        return all(self.columns[key][i] != self.columns[key][j] for key in keys)

    def value(self, key: str, rows: list[int]) -> list[str]:
        """A factor of some pairs."""
        return [self.columns[key][i] for i in rows]

    def draw(self, embeddings: Tensor, seed: int = 0) -> Tensor:
        """Drawings of embeddings [n, d], each from its own noise: [n, 3, 64, 64]."""
        with torch.autocast(self.device.type, torch.bfloat16, self.half):
            parts = [
                self.pipe(
                    embeds=some, latents=noise, num_inference_steps=self.steps, output_type="pt"
                ).images.cpu()
                for some, noise in zip(
                    embeddings.split(64), self.latents[seed].split(64), strict=True
                )
            ]
        return torch.cat(parts).float()

    def read(self, drawings: Tensor, plain: Tensor, goals: dict[str, Tensor]) -> dict[str, Tensor]:
        """What drawings show, by key of ``READ``: [n].

        Args:
            drawings: [n, 3, 64, 64].
            plain: The same without an edit.
            goals: Embeddings of the sources and references.
        """
        seen, before = judge(self.judge, drawings), judge(self.judge, plain)
        embedded = embed_images(self.pipe.clip, drawings).cpu()
        named = [self.labels[i] for i in (embedded @ self.directions.mT).argmax(1).tolist()]
        edges = edge_colours(drawings)
        found = {
            "stays background": _same(edges, edge_colours(plain)),
            "stays vendor": _same(seen.names("vendor"), before.names("vendor")),
        }
        for which, rows, images in (
            ("reference", self.reference, self.target),
            ("source", self.source, self.shown),
        ):
            found |= {
                f"{which} background": _same(edges, self.value("background", rows)),
                f"{which} vendor": _same(seen.names("vendor"), self.value("vendor", rows)),
                f"{which} label": _same(seen.names("label"), self.value("label", rows)),
                f"{which} label by host": _same(named, self.value("label", rows)),
                f"{which} near": F.cosine_similarity(embedded, goals[which], dim=1),
                f"{which} like": alike(self.judge, drawings, images),
            }
        return {key: found[key].double() for key in READ}


@torch.no_grad()
def alike(classifier: Any, first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the independent classifier's pooled features of two sets of images, [n]."""
    device = next(classifier.parameters()).device

    def pooled(images: Tensor) -> Tensor:
        return classifier.resnet(prepare(images.to(device))).pooler_output.flatten(1).cpu()

    return F.cosine_similarity(pooled(first), pooled(second), dim=1)


def _same(found: list[str], wanted: list[str]) -> Tensor:
    return torch.tensor([a == b for a, b in zip(found, wanted, strict=True)])


def by_features(one: Subject, features: list[int], streams: tuple[str, str]) -> Edit:
    """``Blend`` of features toward each reference's own code."""
    source, reference = streams
    codes = one.dictionary.encode(one.hidden[reference][one.reference], reference)[:, features]

    def edit(x: Tensor, _reference: Tensor, strength: float) -> Tensor:
        rules = [Blend(features, code.tolist(), strength=strength) for code in codes]
        rows = [
            Splice.of(one.dictionary, [rule])(row[None], None, source)
            for row, rule in zip(x, rules, strict=True)
        ]
        return torch.cat(rows)

    return edit


def whole(x: Tensor, reference: Tensor, strength: float) -> Tensor:
    """The baseline: embeddings interpolated, at length one."""
    return (1 - strength) * F.normalize(x, dim=1) + strength * F.normalize(reference, dim=1)


def edits(one: Subject, streams: tuple[str, str]) -> dict[str, list[Edit]]:
    """Every way to take from a reference, by name; of random features several draws."""
    found = {
        f"{name} ({len(one.classes[name])})": [by_features(one, one.classes[name], streams)]
        for name in CLASSES
    }
    for name in CLASSES:
        some = one.significant[name]
        found[f"{name}, significant ({len(some)})"] = [by_features(one, some, streams)]
    decoder = one.dictionary.decoder
    # As in the table of deletions: a class is mostly passengers.
    force = one.image_codes.abs().mean(0) * decoder.norm(dim=1)
    vision = one.classes["vision"]
    strongest = [vision[i] for i in force[vision].topk(round(len(vision) / 10)).indices.tolist()]
    found[f"vision, strongest tenth ({len(strongest)})"] = [by_features(one, strongest, streams)]
    for name in ("vision", "cross"):
        many = random_features(one.classes[name], one.live, draws=RANDOM)
        for kind, drawn in (("many", many), ("far", one.far[name])):
            size = round(sum(map(len, drawn)) / len(drawn))
            title = f"random, as {kind} as {name} ({size})"
            found[title] = [by_features(one, features, streams) for features in drawn]
    found["whole embedding"] = [whole]
    return found


def own_edits(one: Subject) -> dict[str, list[Edit]]:
    """Every way to have more or less of an image's own features, by name; likewise."""
    groups = {f"{name} ({len(one.classes[name])})": [one.classes[name]] for name in CLASSES}
    for name in ("vision", "cross"):
        drawn = random_features(one.classes[name], one.live, draws=RANDOM)
        groups[f"random, as many as {name} ({len(drawn[0])})"] = drawn
    found: dict[str, list[Edit]] = {}
    for name, drawn in groups.items():
        for factor in (0.0, 2.0):
            scaled: list[Rule] = [Scale(features, factor=factor) for features in drawn]
            found[f"scale {name} by {factor:g}"] = [partial(_changed, one, r) for r in scaled]
        found[f"keep {name}"] = [partial(_changed, one, Keep(features)) for features in drawn]
    return found


def _changed(one: Subject, rule: Rule, x: Tensor, _reference: Tensor, _strength: float) -> Tensor:
    return Splice.of(one.dictionary, [rule])(x, None, "image")


def compute(one: Subject, kind: str, only: str = "") -> dict[str, Any]:
    """One kind of sources and references: shares by strength, over seeds, over draws.

    Args:
        one: The pipeline, judges and pairs.
        kind: Of ``KINDS``.
        only: Leave out ways whose name does not have this.
    """
    streams = KINDS[kind]
    source = one.hidden[streams[0]][one.source]
    reference = one.hidden[streams[1]][one.reference]
    goals = {"source": source, "reference": reference}
    seeds = range(len(one.latents))
    plain = [one.draw(source, seed) for seed in seeds]

    def show(embeddings: Tensor, seed: int = 0) -> Tensor:
        return _stacked(one.read(one.draw(embeddings, seed), plain[seed], goals))

    untouched = torch.stack([_stacked(one.read(drawn, drawn, goals)) for drawn in plain])
    lines: dict[str, Any] = {}
    if kind == "own":
        lines["(the source itself)"] = _line(_stacked(one.read(one.shown, plain[0], goals))[None])
    lines["nothing"] = _line(untouched)
    for name, ways in (own_edits(one) if kind == "own" else edits(one, streams)).items():
        if only not in name:
            continue
        full = [way(source, reference, 1.0) for way in ways]
        if len(ways) > 1:
            drawn = [show(x, n % len(seeds)) for n, x in enumerate(full)]
            lines[name] = _random_line(torch.stack(drawn))
        else:
            read = [show(full[0], seed) for seed in seeds]
            lines[name] = _line(torch.stack(read))
            if kind != "own" and "significant" not in name:
                between = [show(ways[0](source, reference, s)) for s in STRENGTHS[1:-1]]
                lines[name]["trend"] = _trend(torch.stack([untouched[0], *between, read[0]]))
        print(kind, name, {k: lines[name][k][0] for k in READ}, flush=True)
    if kind == "text" and only in PROMPTED:
        lines[PROMPTED] = _line(torch.stack([show(_prompted(one), seed) for seed in seeds]))
    return lines


def _stacked(read: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(read.values()))


def _line(values: Tensor) -> dict[str, Any]:
    """Of [seeds, keys, n]: means with intervals over pairs, lowest and highest mean of a seed."""
    found: dict[str, Any] = {}
    for i, key in enumerate(READ):
        by_seed = values[:, i].mean(1).tolist()
        found[key] = common.told(_estimate(values[:, i].mean(0)))
        found[key] += [common.rounded(min(by_seed)), common.rounded(max(by_seed))]
    return found


def _estimate(values: Tensor) -> Estimate:
    """Mean with its interval; a bootstrap of nothing but misses, or hits, would have none."""
    if bool((values == values[0]).all()) and float(values[0]) in (0.0, 1.0):
        return proportion(int(values.sum()), len(values))
    return mean_estimate(values, draws=DRAWS)


def _random_line(values: Tensor) -> dict[str, Any]:
    """Of [draws, keys, n]: mean, lowest and highest of the draws."""
    found = {}
    for i, key in enumerate(READ):
        means = values[:, i].mean(1)
        told = [float(x) for x in (means.mean(), means.min(), means.max())]
        found[key] = [common.rounded(x) for x in told] + [len(means)]
    return found


def _trend(values: Tensor) -> dict[str, Any]:
    """Of [strengths, keys, n], one seed: means, and Spearman's correlation with the strength."""
    found = {}
    for i, key in enumerate(READ):
        trend = Trend(STRENGTHS, values[:, i])
        means = [common.rounded(mean) for mean in values[:, i].mean(1).tolist()]
        found[key] = {"means": means, "monotony": common.told(trend.monotony(draws=DRAWS))}
    return found


def _prompted(one: Subject) -> Tensor:
    """The baseline of words: embeddings of prompts for the reference's label."""
    host, processor = zoo.load_host()
    texts = [PROMPT.format(label) for label in one.value("label", one.reference)]
    return embed_texts(host, processor, texts)


def about(one: Subject) -> dict[str, Any]:
    """How it was drawn."""
    where = torch.cuda.get_device_name() if one.device.type == "cuda" else "one thread of a CPU"
    return {
        "pairs": len(one.source),
        "seeds": len(one.latents),
        "steps": one.steps,
        "device": f"{where}, {'bfloat16' if one.half else 'float32'}",
    }


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--half", action="store_true", help="draw in bfloat16, where the processor has units for it"
    )
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=3, help="noises that each is drawn from")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", choices=tuple(KINDS), action="append", help="kinds of sources")
    parser.add_argument("--ways", default="", help="ways whose name has this, beside those stored")
    return parser.parse_args(given)


def main() -> None:
    """Compute, and store each part when it is there."""
    torch.set_num_threads(1)
    options = parse()
    one = Subject(options)
    part, file = bool(options.only or options.ways), common.HERE / "generation.json"
    stored = common.load("generation") if part and file.exists() else {"about": about(one)}
    if stored["about"] != about(one):
        raise SystemExit(
            f"a part goes beside what is stored, which was drawn by {stored['about']}, and this "
            f"would be by {about(one)}: give the same options, or compute all"
        )
    for kind in options.only or KINDS:
        known = stored.get(kind, {}) if options.ways else {}
        stored[kind] = known | compute(one, kind, options.ways)
        common.save("generation", stored)
    if all(kind in stored for kind in KINDS):
        print("\n\n".join(str(table) for table in tables(stored)))


if __name__ == "__main__":
    main()

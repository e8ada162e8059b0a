"""What does a drawing take from a reference, by the class of features that is blended?

    python docs/experiments results.generation --half   # an hour and more on one thread with AMX
    python docs/experiments results.generation --half --only image     # a part, into the same file
    python docs/experiments results.generation --device cuda --pairs 512 --steps 20

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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.evaluate import PROMPT, embed_texts
from recipes.unclip_drawings import embed_images
from recipes.unclip_judge import judge, prepare
from recipes.unclip_scores import edge_colours, same, shipped
from results import common
from results.generation_tables import KINDS, RANDOM, READ, STRENGTHS, examples, tables
from vlm_edit import Keep, Scale, zoo
from vlm_edit.edits import Blend, Rule, Splice
from vlm_edit.ground.statistics import Estimate, mean_estimate
from vlm_edit.measures.controls import norm_matched, random_features
from vlm_edit.tasks.generation import Trend

__all__ = ["OPTIONS", "compute", "examples", "tables"]

OPTIONS = " --half"
CLASSES = ("vision", "cross", "language")
DRAWS = 500  # of a bootstrap
PROMPTED = "prompt with the reference's label"

Edit = Callable[[Tensor, Tensor, float], Tensor]  # of sources [n, d] and references, at a strength


class Looks(NamedTuple):
    """What each drawing shows, by name."""

    background: list[str]
    vendor: list[str]
    label: list[str]


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
        self.many = {
            name: random_features(self.classes[name], self.live, draws=RANDOM)
            for name in ("vision", "cross")
        }
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
        self.shown = everything[self.source]
        self.pooled = {
            "source": self.pool(self.shown),
            "reference": self.pool(everything[self.reference]),
        }
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

    @torch.no_grad()
    def pool(self, images: Tensor) -> Tensor:
        """The independent classifier's pooled features, [n, d]."""
        found = self.judge.resnet(prepare(images.to(self.device))).pooler_output
        return found.flatten(1).cpu()

    def looks(self, drawings: Tensor) -> Looks:
        """What drawings show to the independent classifier and at their edge."""
        seen = judge(self.judge, drawings)
        return Looks(edge_colours(drawings), seen.names("vendor"), seen.names("label"))

    def read(self, drawings: Tensor, plain: Looks, goals: dict[str, Tensor]) -> dict[str, Tensor]:
        """What drawings show, by key of ``READ``: [n].

        Args:
            drawings: [n, 3, 64, 64].
            plain: How those without an edit look.
            goals: Embeddings of the sources and references.
        """
        seen, pooled = self.looks(drawings), self.pool(drawings)
        embedded = embed_images(self.pipe.clip, drawings).cpu()
        named = [self.labels[i] for i in (embedded @ self.directions.mT).argmax(1).tolist()]
        found = {
            "stays background": same(seen.background, plain.background),
            "stays vendor": same(seen.vendor, plain.vendor),
        }
        for which, rows in (("reference", self.reference), ("source", self.source)):
            found |= {
                f"{which} background": same(seen.background, self.value("background", rows)),
                f"{which} vendor": same(seen.vendor, self.value("vendor", rows)),
                f"{which} label": same(seen.label, self.value("label", rows)),
                f"{which} label by host": same(named, self.value("label", rows)),
                f"{which} near": F.cosine_similarity(embedded, goals[which], dim=1),
                f"{which} like": F.cosine_similarity(pooled, self.pooled[which], dim=1),
            }
        return {key: found[key].double() for key in READ}


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
        for kind, drawn in (("many", one.many[name]), ("far", one.far[name])):
            size = round(sum(map(len, drawn)) / len(drawn))
            title = f"random, as {kind} as {name} ({size})"
            found[title] = [by_features(one, features, streams) for features in drawn]
    found["whole embedding"] = [whole]
    return found


def groups(one: Subject) -> dict[str, list[list[int]]]:
    """Classes by name, and as many random features, several draws."""
    found = {f"{name} ({len(one.classes[name])})": [one.classes[name]] for name in CLASSES}
    for name, drawn in one.many.items():
        found[f"random, as many as {name} ({len(drawn[0])})"] = drawn
    return found


def own_edits(one: Subject) -> dict[str, list[Edit]]:
    """Every way to have more or less of an image's own features, by name; likewise."""
    found: dict[str, list[Edit]] = {}
    for name, drawn in groups(one).items():
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
    drawn = [one.draw(source, seed) for seed in seeds]
    plain = [one.looks(drawings) for drawings in drawn]

    def show(embeddings: Tensor, seed: int = 0) -> Tensor:
        return _stacked(one.read(one.draw(embeddings, seed), plain[seed], goals))

    read = [one.read(x, looks, goals) for x, looks in zip(drawn, plain, strict=True)]
    untouched = torch.stack([_stacked(seen) for seen in read])
    lines: dict[str, Any] = {}
    if kind == "own":
        lines["(the source itself)"] = _line(_stacked(one.read(one.shown, plain[0], goals))[None])
    lines["nothing"] = _line(untouched)
    for name, ways in (own_edits(one) if kind == "own" else edits(one, streams)).items():
        if only not in name:
            continue
        full = [way(source, reference, 1.0) for way in ways]
        if len(ways) > 1:
            shown = [show(x, n % len(seeds)) for n, x in enumerate(full)]
            lines[name] = _random_line(torch.stack(shown))
        else:
            shown = [show(full[0], seed) for seed in seeds]
            lines[name] = _line(torch.stack(shown))
            if kind != "own" and "significant" not in name:
                between = [show(ways[0](source, reference, s)) for s in STRENGTHS[1:-1]]
                lines[name]["trend"] = _trend(torch.stack([untouched[0], *between, shown[0]]))
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
    """Mean with its interval."""
    return mean_estimate(values)


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

"""What does a drawing take from a reference, by the class of features that is blended?

    python docs/results/generation.py --half        # on one thread of a CPU with AMX
    python docs/results/generation.py --device cuda --pairs 512 --steps 20

emoji-unclip draws from joint embeddings of emoji-clip. Each drawing starts from a source, an image
or a caption, and takes features of a reference, the image of another label on another background
by another vendor. Pairs of both are drawn at random, with a fixed seed. What the drawing shows is
read by classifiers that the pipeline was not trained with: the label, vendor and background by an
independent ResNet, the background also by the colour of the edge, the label also by emoji-clip.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import common
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit import Blend, zoo
from vlm_edit.controls import norm_matched, random_features
from vlm_edit.edits import Rule, Splice
from vlm_edit.report import Table
from vlm_edit.statistics import Estimate, mean_estimate
from vlm_edit.tasks.generation import Trend
from vlm_edit.zoo.recipes.evaluate import embed_texts
from vlm_edit.zoo.recipes.unclip_drawings import embed_images
from vlm_edit.zoo.recipes.unclip_judge import judge, prepare
from vlm_edit.zoo.recipes.unclip_scores import edge_colours, shipped

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
OPTIONS = " --half"
CLASSES = ("vision", "cross", "language")
PROMPT = "a picture of {}"
READ = {
    "background": "takes the reference's background",
    "vendor": "takes its vendor",
    "label": "shows its label",
    "kept": "keeps the source's label",
    "host kept": "the same, by emoji-clip",
    "near": "cosine with the reference",
    "like": "looks like the reference",
}

Edit = Callable[[Tensor, Tensor, float], Tensor]  # of sources [n, d] and references, at a strength


class Subject:
    """The pipeline, who judges it, and pairs of sources and references."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        found = common.subject("clip", "joint")
        self.dictionary, self.hidden = found.dictionary, found.hidden
        self.classes = found.dominance.classes("sd")  # the paper's rule
        self.significant = found.dominance.classes("significant")
        self.codes = found.found
        live = (found.codes["image"] != 0).any(0) | (found.codes["text"] != 0).any(0)
        self.live = live.nonzero()[:, 0].tolist()
        self.image_codes = found.codes["image"]
        self.columns = zoo.load_pairs().columns
        self.pipe = zoo.load_unclip().to(self.device)
        self.pipe.unet.to(memory_format=torch.channels_last)
        self.half = options.half
        self.pipe.set_progress_bar_config(disable=True)
        self.judge = zoo.load_judge().to(self.device)
        self.steps, self.noise = options.steps, torch.Generator().manual_seed(0)
        self.source, self.reference = self._pairs(options.pairs)
        everything = shipped().images
        self.shown, self.target = everything[self.source], everything[self.reference]
        host, processor = zoo.load_host()
        self.labels = zoo.load_labels()
        self.directions = embed_texts(host, processor, [PROMPT.format(n) for n in self.labels])
        shape = self.pipe.unet.config
        self.latents = torch.randn(
            len(self.source), shape.in_channels, shape.sample_size, shape.sample_size,
            generator=self.noise,
        )  # fmt: skip

    def _pairs(self, count: int) -> tuple[list[int], list[int]]:
        """Sources, and for each a reference that shares none of its factors."""
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

    def draw(self, embeddings: Tensor) -> Tensor:
        """Drawings of embeddings [n, d], each from its own noise: [n, 3, 64, 64]."""
        with torch.autocast(self.device.type, torch.bfloat16, self.half):
            parts = [
                self.pipe(
                    embeds=some, latents=noise, num_inference_steps=self.steps, output_type="pt"
                ).images.cpu()
                for some, noise in zip(embeddings.split(64), self.latents.split(64), strict=True)
            ]
        return torch.cat(parts).float()

    def read(self, drawings: Tensor) -> dict[str, Tensor]:
        """What drawings show, by key of ``READ``: [n]."""
        seen = judge(self.judge, drawings)
        labels, host = seen.names("label"), self.pipe.clip
        embedded = embed_images(host, drawings).cpu()
        named = [self.labels[i] for i in (embedded @ self.directions.mT).argmax(1).tolist()]
        goal = F.normalize(self.hidden["image"][self.reference], dim=1)
        return {
            "background": _same(edge_colours(drawings), self.value("background", self.reference)),
            "vendor": _same(seen.names("vendor"), self.value("vendor", self.reference)),
            "label": _same(labels, self.value("label", self.reference)),
            "kept": _same(labels, self.value("label", self.source)),
            "host kept": _same(named, self.value("label", self.source)),
            "near": (embedded * goal).sum(1),
            "like": alike(self.judge, drawings, self.target),
        }


@torch.no_grad()
def alike(classifier: Any, first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the independent classifier's pooled features of two sets of images, [n]."""
    device = next(classifier.parameters()).device

    def pooled(images: Tensor) -> Tensor:
        return classifier.resnet(prepare(images.to(device))).pooler_output.flatten(1).cpu()

    return F.cosine_similarity(pooled(first), pooled(second), dim=1)


def _same(found: list[str], wanted: list[str]) -> Tensor:
    return torch.tensor([a == b for a, b in zip(found, wanted, strict=True)])


def by_features(one: Subject, features: list[int], stream: str) -> Edit:
    """``Blend`` of features toward each reference's own code."""
    codes = one.dictionary.encode(one.hidden["image"][one.reference], "image")[:, features]

    def edit(x: Tensor, _reference: Tensor, strength: float) -> Tensor:
        rows = [
            Splice.of(one.dictionary, _rules(features, code, strength))(row[None], None, stream)
            for row, code in zip(x, codes, strict=True)
        ]
        return torch.cat(rows)

    return edit


def _rules(features: list[int], code: Tensor, strength: float) -> list[Rule]:
    return [Blend(features, code.tolist(), strength=strength)]


def whole(x: Tensor, reference: Tensor, strength: float) -> Tensor:
    """The baseline: embeddings interpolated, at length one."""
    return (1 - strength) * F.normalize(x, dim=1) + strength * F.normalize(reference, dim=1)


def edits(one: Subject, stream: str) -> dict[str, Edit]:
    """Every way, by name."""
    found = {
        f"{name} ({len(one.classes[name])})": by_features(one, one.classes[name], stream)
        for name in CLASSES
    }
    for name in CLASSES:
        some = one.significant[name]
        found[f"{name}, significant ({len(some)})"] = by_features(one, some, stream)
    decoder = one.dictionary.decoder
    # As in the table of deletions: a class is mostly passengers.
    force = one.image_codes.abs().mean(0) * decoder.norm(dim=1)
    vision = one.classes["vision"]
    strongest = [vision[i] for i in force[vision].topk(round(len(vision) / 10)).indices.tolist()]
    found[f"vision, strongest tenth ({len(strongest)})"] = by_features(one, strongest, stream)
    for name in ("vision", "cross"):
        chosen = one.classes[name]
        same = random_features(chosen, one.live, draws=1)[0]
        found[f"random, as many as {name} ({len(same)})"] = by_features(one, same, stream)
        far = norm_matched(chosen, one.live, one.image_codes, decoder, draws=1)[0]
        found[f"random, as far as {name} ({len(far)})"] = by_features(one, far, stream)
    found["whole embedding"] = whole
    return found


def compute(options: argparse.Namespace) -> dict[str, Any]:
    """Both kinds of sources."""
    one = Subject(options)
    result: dict[str, Any] = {"pairs": len(one.source), "steps": one.steps}
    where = torch.cuda.get_device_name() if one.device.type == "cuda" else "one thread of a CPU"
    result["device"] = f"{where}, {'bfloat16' if one.half else 'float32'}"
    reference = one.hidden["image"][one.reference]
    result["real"] = told(one.read(one.shown))
    for stream in ("image", "text"):
        source = one.hidden[stream][one.source]
        plain = one.read(one.draw(source))
        lines: dict[str, Any] = {}
        for name, edit in edits(one, stream).items():
            ends = name.startswith("random") or "significant" in name
            strengths = (0.0, 1.0) if ends else STRENGTHS
            read = [plain] + [one.read(one.draw(edit(source, reference, s))) for s in strengths[1:]]
            lines[name] = {}
            for key in READ:
                trend = Trend(strengths, torch.stack([r[key].double() for r in read]))
                lines[name][key] = {
                    "shares": [common.told(e) for e in trend.estimates(draws=500)],
                    "monotony": common.told(trend.monotony(draws=500)),
                }
            print(stream, name, {k: v["shares"][-1][0] for k, v in lines[name].items()}, flush=True)
        if stream == "text":
            lines["prompt with the reference's label"] = _prompted(one)
        result[stream] = lines
    return result


def _prompted(one: Subject) -> dict[str, Any]:
    """The baseline of words: draw the reference's label."""
    host, processor = zoo.load_host()
    texts = [PROMPT.format(label) for label in one.value("label", one.reference)]
    read = one.read(one.draw(embed_texts(host, processor, texts)))
    return {key: {"shares": [common.told(_mean(value))]} for key, value in read.items()}


def told(read: dict[str, Tensor]) -> dict[str, list[float]]:
    """Means with intervals, as JSON."""
    return {key: common.told(_mean(value)) for key, value in read.items()}


def _mean(values: Tensor) -> Estimate:
    return mean_estimate(values.double(), draws=500)


def tables(result: dict[str, Any]) -> list[Table]:
    """A table by kind of source: at full strength, and whether more does more."""
    shown = []
    for stream, name in (("image", "an image"), ("text", "a caption")):
        rows = []
        for edit, line in result[stream].items():
            cells = [common.cell(line[key]["shares"][-1]) for key in READ]
            rows.append([edit, *cells])
        first = next(iter(result[stream].values()))
        rows.insert(0, ["nothing", *(common.cell(first[key]["shares"][0]) for key in READ)])
        if stream == "image":
            rows.insert(0, ["(the source itself)", *(common.cell(result["real"][k]) for k in READ)])
        shown.append(
            Table(
                f"Drawn from {name}, features taken from another image at strength 1",
                ("taken", *READ.values()),
                rows,
                f"{result['pairs']} sources with a reference each, another label, group, "
                f"background and vendor; {result['steps']} steps, on {result['device']}. Classes "
                "by mean -+ sd, where not said otherwise; the strongest tenth: of vision. Shares "
                "and means with 95 % bootstrap intervals over drawings. Label and vendor by an "
                "independent classifier, background by the colour of the edge; looks like: cosine "
                "of that classifier's features.",
            )
        )
    keys = ("background", "vendor", "label", "kept")
    rows = []
    for stream in ("image", "text"):
        for edit, line in result[stream].items():
            if len(line["background"]["shares"]) < len(STRENGTHS):
                continue
            for key in keys:
                shares = line[key]["shares"]
                rows.append(
                    [
                        stream,
                        edit,
                        READ[key],
                        *(f"{share[0]:.2f}" for share in shares),
                        common.cell(line[key]["monotony"]),
                    ]
                )
    shown.append(
        Table(
            "Whether more takes more",
            ("from", "taken", "drawings that", *(f"{s:g}" for s in STRENGTHS), "Spearman"),
            rows,
            "Shares by strength, and their rank correlation with it [95 % bootstrap].",
        )
    )
    return shown


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--half", action="store_true", help="draw in bfloat16, where the processor has units for it"
    )
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args(given)


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = compute(parse())
    common.save("generation", found)
    print("\n\n".join(str(table) for table in tables(found)))

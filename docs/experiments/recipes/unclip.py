"""Trains `emoji-unclip` and a classifier that judges it, or scores what a pipeline draws.

    python docs/experiments recipes.unclip --pairs build/emoji --out build/unclip
    python docs/experiments recipes.unclip --pairs build/emoji --evaluate build/unclip

The first trains on a GPU where there is one, for so many minutes of wall time, goes on after a
kill, and ends with the second. Needs `diffusers`.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from recipes import unclip_judge as judges
from recipes import unclip_scores as scores
from recipes.unclip_drawings import Supply, embed_texts, load, pack
from recipes.unclip_training import Recipe, Trainer, export, pipeline
from vlm_edit import zoo
from vlm_edit.zoo.unclip import UnclipPipeline

CHECKPOINT = "checkpoint.safetensors"
JUDGE = "judge"
_DEV = 512
_TIMED = 6
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def device_of(name: str | None) -> torch.device:
    """The device of that name; without a name the GPU, where there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def train(options: argparse.Namespace, host: CLIPModel, processor: CLIPProcessor) -> None:
    """Train classifier and UNet, each going on from what an earlier run left."""
    supply = Supply(options.pairs, host, processor)
    _note(options, f"{len(supply.rows)} drawings, {supply.captions.shape[:2].numel()} captions")
    if not (options.out / JUDGE / "model.safetensors").is_file():
        folder = options.out / JUDGE
        judges.train(supply, folder, options.judge_minutes, options.judge_batch)
        _note(options, "judge trained")
    recipe = replace(Recipe(), minutes=options.minutes, batch=options.batch)
    recipe = replace(recipe, checkpoint=options.checkpoint, learning_rate=options.rate)
    layout = options.layout or _fastest(options, recipe, supply)
    trainer = Trainer(recipe, supply, LAYOUTS[layout], options.compile)
    options.state.mkdir(parents=True, exist_ok=True)
    until = options.began + options.deadline - options.reserve
    trainer.train(options.state / CHECKPOINT, lambda: export(trainer.average, options.out), until)
    _note(options, f"unet trained: {trainer.step} steps of {recipe.batch}")


def evaluate(options: argparse.Namespace, host: CLIPModel, processor: CLIPProcessor) -> None:
    """Choose the guidance on the dev cells, score the test cells, write report and grid."""
    folder, device = options.evaluate, host.device
    torch.backends.cudnn.benchmark = False  # few batches of each shape
    unet = UNet2DConditionModel.from_pretrained(
        folder / "unet", torch_dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    pipe = pipeline(unet.eval()).to(device)
    pipe.set_progress_bar_config(disable=True)
    classifier = judges.load(options.judge or folder / JUDGE).to(device)
    drawings = load(options.pairs)
    report = []
    guidance = options.guidance
    if guidance is None:
        sources = scores.dev(drawings, min(options.count, _DEV))
        scorer = scores.Scorer(host, processor, classifier, sources)
        guidance, table = _choose(pipe, scorer, processor, options.steps)
        report += ["Held-out cells (dev), which choose the guidance:", "", table, ""]
        _note(options, "\n".join(report))
    sources = scores.shipped().first(options.count)
    scorer = scores.Scorer(host, processor, classifier, sources)
    said = embed_texts(host, processor, sources.texts)
    given = {"image": scorer.real.to(device), "caption": said}
    rows = {"the real drawings": scorer.score(sources.images, None)}
    drawn = {name: scores.draw(pipe, e, guidance, options.steps) for name, e in given.items()}
    for name, embeds in given.items():
        rows[f"drawn from the {name}"] = scorer.score(drawn[name], embeds)
    for name, embeds in given.items():
        half = len(sources.texts) // 2
        title = f"the same as from the {name}, against another pair"
        rows[title] = scorer.score(drawn[name], embeds, shift=half)
    _note(options, "drawn")
    shown = [sources.images, drawn["image"], drawn["caption"]]
    if not options.no_baseline:
        found = scores.nearest(host, drawings.of("train"), list(given.values()))
        for (name, embeds), images in zip(given.items(), found, strict=True):
            rows[f"nearest training drawing to the {name}"] = scorer.score(images, embeds)
        shown.append(found[0])
    title = f"Held-out cells (test), guidance {guidance}, {options.steps} steps:"
    report += [title, "", scores.tell(rows), ""]
    target = options.report or folder
    target.mkdir(parents=True, exist_ok=True)
    (target / "report.md").write_text("\n".join(report), "utf-8")
    scores.grid([images[:64] for images in shown]).save(target / "grid.png")
    _note(options, "\n".join(report[-4:]))


def _fastest(options: argparse.Namespace, recipe: Recipe, supply: Supply) -> str:
    """The layout in memory whose steps are fastest on this device."""
    speeds = {name: Trainer(recipe, supply, LAYOUTS[name]).speed(_TIMED) for name in LAYOUTS}
    _note(options, ", ".join(f"{name}: {speed:.0f} images/s" for name, speed in speeds.items()))
    return max(speeds, key=lambda name: speeds[name])


def _choose(
    pipe: UnclipPipeline, scorer: scores.Scorer, processor: CLIPProcessor, steps: int
) -> tuple[float, str]:
    """The guidance with the most hits of the independent classifier, from images and captions."""
    rows: dict[str, dict[str, Tensor]] = {
        "the real drawings": scorer.score(scorer.sources.images, None)
    }
    hits = {}
    said = embed_texts(scorer.host, processor, scorer.sources.texts)
    for guidance in scores.GUIDANCES:
        total = 0.0
        for name, embeds in (("image", scorer.real.to(pipe.device)), ("caption", said)):
            found = scorer.score(scores.draw(pipe, embeds, guidance, steps), embeds)
            rows[f"from the {name}, guidance {guidance}"] = found
            total += float(found["judge R@1"].float().mean())
        hits[guidance] = total
    return max(hits, key=lambda g: hits[g]), scores.tell(rows)


def _note(options: argparse.Namespace, text: str) -> None:
    print(f"[{time.monotonic() - options.began:.0f} s] {text}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--pairs", type=Path, required=True, help="what the pairs recipe rendered, or --pack made")
    add("--pack", type=Path, help="only write the drawings as one sheet to this folder")
    add("--out", type=Path, help="train, and write pipeline and judge to this folder")
    add("--state", type=Path, help="folder of the checkpoint; OUT/state if not given")
    add("--minutes", type=float, default=Recipe.minutes, help="wall time of the UNet's training")
    add("--judge-minutes", type=float, default=0.8, help="wall time of the classifier's training")
    add("--batch", type=int, default=Recipe.batch)
    add("--judge-batch", type=int, default=512)
    add("--rate", type=float, default=Recipe.learning_rate, help="largest learning rate")
    add("--checkpoint", type=float, default=Recipe.checkpoint, help="seconds between checkpoints")
    add("--layout", choices=list(LAYOUTS), help="in memory, if not to be timed")
    add("--compile", action="store_true", help="compile the UNet for training")
    add("--deadline", type=float, default=math.inf, help="seconds from now to be done within")
    add("--reserve", type=float, default=60.0, help="seconds of them kept for the evaluation")
    add("--evaluate", type=Path, help="score the pipeline in this folder")
    add("--judge", type=Path, help="folder of the classifier, if not EVALUATE/judge")
    add("--report", type=Path, help="folder for report and grid, if not EVALUATE")
    add("--no-baseline", action="store_true", help="leave the nearest training drawings out")
    add("--count", type=int, default=1024, help="images of each row of the tables")
    add("--guidance", type=float, help="guidance scale, if not to be chosen on the dev cells")
    add("--steps", type=int, default=20, help="steps of the sampler")
    add("--device", help="cuda or cpu")
    options = parser.parse_args()
    options.began = time.monotonic()
    if options.out:
        options.state = options.state or options.out / "state"
        options.evaluate = options.evaluate or options.out
    return options


def main() -> None:
    """Run the recipe from the command line."""
    options = _options()
    if options.pack:
        pack(options.pairs, options.pack)
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    host, processor = zoo.load_host()
    host = host.to(device_of(options.device)).requires_grad_(False)
    _note(options, f"host on {host.device}")
    if options.out:
        train(options, host, processor)
    if options.evaluate:
        evaluate(options, host, processor)


if __name__ == "__main__":
    main()

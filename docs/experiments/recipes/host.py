"""Trains the bundled host on the rendered pairs, or scores a host.

    python docs/experiments recipes.host --pairs build/emoji --out build/host
    python docs/experiments recipes.host --pairs build/emoji --evaluate vlm_edit/zoo/emoji-clip

The first trains, goes on from the checkpoint in `OUT` after a kill, and writes `OUT/emoji-clip`.
The second prints the table of the model card.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from recipes import evaluate
from recipes.batches import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD
from recipes.loop import one_of
from recipes.pairs import load_names
from recipes.training import SETTLE, Recipe, Trainer, load_average
from recipes.words import every_caption, train_tokenizer

VOCABULARY = 4096
TOKENIZER = "tokenizer"


def make_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    """Make the processor: images to the host's size, captions to ids."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False,
        image_mean=list(PIXEL_MEAN), image_std=list(PIXEL_STD),
    )  # fmt: skip
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def export(checkpoint: Path, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the averaged weights in half precision, with the processor, as any CLIP is stored.

    Args:
        checkpoint: Checkpoint of a run.
        tokenizer: Its tokenizer.
        folder: Folder for `CLIPModel.from_pretrained`.
    """
    model = load_average(checkpoint, tokenizer).half()
    model.save_pretrained(folder)
    processor = make_processor(tokenizer)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # where transformers 4 looks for it
    for file in folder.iterdir():
        file.chmod(0o644)


def _work(
    rank: int, world: int, recipe: Recipe, folder: Path, checkpoint: Path, start: Path | None
) -> None:
    with one_of(rank, world, checkpoint):
        tokenizer = CLIPTokenizer.from_pretrained(
            checkpoint.parent / TOKENIZER, trust_remote_code=False
        )
        trainer = Trainer(recipe, folder, tokenizer, rank, world)
        if start and not checkpoint.is_file():
            trainer.start_from(start)
        trainer.run(checkpoint)


def train(folder: Path, out: Path, recipe: Recipe, processes: int) -> None:
    """Train a host and settle it, going on from an earlier run in the same folder.

    Args:
        folder: What the pairs recipe rendered.
        out: Folder for the checkpoint and the finished host.
        recipe: What to do.
        processes: Processes of one thread each; part of what decides the result.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (out / TOKENIZER).is_dir():  # once: merges that tie come in another order next time
        captions = every_caption(load_names(folder))
        train_tokenizer(captions, VOCABULARY).save_pretrained(out / TOKENIZER)
    trained, settled = out / "checkpoint.safetensors", out / "settled.safetensors"
    for args in ((recipe, folder, trained, None), (SETTLE, folder, settled, trained)):
        spawn(_work, (processes, *args), nprocs=processes)
    tokenizer = CLIPTokenizer.from_pretrained(out / TOKENIZER, trust_remote_code=False)
    export(settled, tokenizer, out / "emoji-clip")


def report(folder: Path, host: Path, splits: tuple[str, ...]) -> str:
    """Score a host and the pixel baseline, as Markdown.

    Args:
        folder: What the pairs recipe rendered.
        host: Folder of the host.
        splits: Names of splits.
    """
    model = CLIPModel.from_pretrained(host, dtype=torch.float32, trust_remote_code=False).eval()
    processor = CLIPProcessor.from_pretrained(host, trust_remote_code=False)
    scores = evaluate.score(model, processor, folder, splits)
    if "hv-test" in splits:
        scores["shipped"] = evaluate.score_shipped(model, processor)
    ours = evaluate.table(scores)
    pixels = evaluate.table(
        evaluate.score_pixels(folder, [s for s in splits if s not in ("hc", "train")])
    )
    probes = evaluate.factors(model, processor)
    return f"{ours}\n\nNearest neighbour on whitened pixels:\n\n{pixels}\n\n{probes}"


def main() -> None:
    """Run the recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=Path, required=True, help="what the pairs recipe rendered")
    parser.add_argument("--out", type=Path, help="train, with checkpoints in this folder")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--evaluate", type=Path, help="score the host in this folder")
    parser.add_argument("--dev", action="store_true", help="score on the dev splits")
    options = parser.parse_args()
    if options.out:
        recipe = replace(Recipe(), steps=options.steps)
        train(options.pairs, options.out, recipe, options.processes)
    if options.evaluate:
        splits = evaluate.DEV_SPLITS if options.dev else evaluate.TEST_SPLITS
        print(report(options.pairs, options.evaluate, splits))


if __name__ == "__main__":
    main()

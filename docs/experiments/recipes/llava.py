"""Trains the bundled LLaVA on the rendered pairs, or scores one.

    python docs/experiments recipes.llava --pairs build/emoji --out build/llava
    python docs/experiments recipes.llava --pairs build/emoji --evaluate vlm_edit/zoo/emoji-llava

The first trains, goes on from the checkpoint in `OUT` after a kill, and writes `OUT/emoji-llava`.
The second prints the table of the model card.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from recipes.checkpoints import below
from recipes.dialogues import every_text, train_speaker
from recipes.evaluate import choose
from recipes.loop import one_of
from recipes.pairs import BACKGROUNDS, composite, load_drawings, load_names
from recipes.speaking import Recipe, Trainer, build, restore
from recipes.splits import draw
from recipes.words import every_caption
from vlm_edit import zoo
from vlm_edit.ground.statistics import proportion
from vlm_edit.zoo.questions import QUESTIONS, answers, ask

VOCABULARY = 4096
TOKENIZER, CHECKPOINT = "tokenizer", "checkpoint.safetensors"
DEV_SPLITS = ("hv-dev",)
TEST_SPLITS = ("hv-test", "ov-test")


def make_processor(tokenizer: PreTrainedTokenizerFast, host: CLIPModel) -> LlavaProcessor:
    """Make the processor: the host's images, and an image token per feature of the tower."""
    vision = host.config.vision_config
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(zoo.HOST, trust_remote_code=False),
        tokenizer=tokenizer, patch_size=vision.patch_size,
        vision_feature_select_strategy="full", num_additional_image_tokens=1,
    )  # fmt: skip


def export(checkpoint: Path, folder: Path, recipe: Recipe | None = None) -> None:
    """Write the averaged weights in half precision, with the processor, as any LLaVA is stored.

    Args:
        checkpoint: Checkpoint of a run, beside its tokenizer.
        folder: Folder for `LlavaForConditionalGeneration.from_pretrained`.
        recipe: Of the run.
    """
    host, _ = zoo.load_host()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        checkpoint.parent / TOKENIZER, trust_remote_code=False
    )
    model = build(host, tokenizer, recipe or Recipe())
    restore(model, below(load_file(checkpoint), "average."))
    model.half().save_pretrained(folder)
    make_processor(tokenizer, host).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def _work(rank: int, world: int, recipe: Recipe, folder: Path, checkpoint: Path) -> None:
    with one_of(rank, world, checkpoint):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            checkpoint.parent / TOKENIZER, trust_remote_code=False
        )
        Trainer(recipe, folder, zoo.load_host()[0], tokenizer, rank, world).run(checkpoint)


def train(folder: Path, out: Path, recipe: Recipe, processes: int) -> None:
    """Train, going on from an earlier run in the same folder.

    Args:
        folder: What the pairs recipe rendered.
        out: Folder for the checkpoint and the finished model.
        recipe: What to do.
        processes: Processes of one thread each; part of what decides the result.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (out / TOKENIZER).is_dir():  # once: merges that tie come in another order next time
        names = load_names(folder)
        texts = every_text(list(names), every_caption(names))
        train_speaker(texts, VOCABULARY).save_pretrained(out / TOKENIZER)
    spawn(_work, (processes, recipe, folder, out / CHECKPOINT), nprocs=processes)
    export(out / CHECKPOINT, out / "emoji-llava", recipe)


def shown(folder: Path, split: str) -> tuple[list[Image.Image], dict[str, list[str]]]:
    """Drawings of a split on backgrounds that depend on the drawing alone, with their columns.

    Args:
        folder: What the pairs recipe rendered.
        split: Name of the split.
    """
    drawings, rows = load_drawings(folder)
    chosen, colours = choose(rows, split), list(BACKGROUNDS)
    names = [colours[int(len(colours) * draw("background", *rows[i].values()))] for i in chosen]
    images = [
        Image.fromarray(composite(drawings[i], BACKGROUNDS[name]))
        for i, name in zip(chosen, names, strict=True)
    ]
    columns = {key: [rows[i][key] for i in chosen] for key in rows[0]}
    return images, {**columns, "background": names}


def score(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image.Image],
    columns: Mapping[str, Sequence[str]],
) -> str:
    """Answer all questions; accuracies with intervals, as cells of a Markdown table."""
    cells = []
    for name, question in QUESTIONS.items():
        said, right = ask(model, processor, images, question), answers(name, columns)
        hits = [a == b for a, b in zip(said, right, strict=True)]
        cells.append(str(proportion(sum(hits), len(hits))))
        if name == "who":
            person = [h for h, truth in zip(hits, right, strict=True) if truth != "nobody"]
            cells.append(str(proportion(sum(person), len(person))))
    return " | ".join(cells)


def report(folder: Path, saved: Path, splits: Sequence[str], pairs: bool) -> str:
    """Score a model, as Markdown.

    Args:
        folder: What the pairs recipe rendered.
        saved: Folder of the model.
        splits: Names of splits.
        pairs: Whether to score the shipped pairs too.
    """
    model = LlavaForConditionalGeneration.from_pretrained(
        saved, dtype=torch.float32, trust_remote_code=False
    ).eval()
    processor = LlavaProcessor.from_pretrained(saved, trust_remote_code=False)
    lines = [
        "| drawings | number | what is it? | background | who is it? | who, of people alone |",
        "|---|---|---|---|---|---|",
    ]
    for split in splits:
        images, columns = shown(folder, split)
        lines.append(f"| {split} | {len(images)} | {score(model, processor, images, columns)} |")
    if pairs:
        ours = zoo.load_pairs()
        images = [ours.open(i) for i in range(len(ours))]
        told = score(model, processor, images, ours.columns)
        lines.append(f"| the shipped pairs | {len(ours)} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Run the recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=Path, required=True, help="what the pairs recipe rendered")
    parser.add_argument("--out", type=Path, help="train, with checkpoints in this folder")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--export", type=Path, help="write the checkpoint of --out here, no more")
    parser.add_argument("--evaluate", type=Path, help="score the model in this folder")
    parser.add_argument("--dev", action="store_true", help="score on the dev split alone")
    options = parser.parse_args()
    if options.export:
        export(options.out / CHECKPOINT, options.export)
    elif options.out:
        recipe = replace(Recipe(), steps=options.steps)
        train(options.pairs, options.out, recipe, options.processes)
    if options.evaluate:
        splits = DEV_SPLITS if options.dev else TEST_SPLITS
        print(report(options.pairs, options.evaluate, splits, not options.dev))


if __name__ == "__main__":
    main()

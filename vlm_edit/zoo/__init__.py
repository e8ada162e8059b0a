"""Small real hosts and real pairs that come with the package: no download, no network.

The hosts are `emoji-clip`, a transformers `CLIPModel` trained on emoji of seven vendors, and
`emoji-llava`, a `LlavaForConditionalGeneration` on its vision tower that answers questions. The
pairs show emoji that neither has seen drawn by that vendor, with captions in three languages.
Recipes that rebuild all of it are in `docs/experiments/recipes` of a checkout, not installed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import (
    CLIPModel,
    CLIPProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    ResNetForImageClassification,
)

from vlm_edit.dictionaries import Dictionary
from vlm_edit.dictionaries import load_dictionary as read_dictionary
from vlm_edit.ground.errors import UnknownName
from vlm_edit.ground.licences import UNKNOWN, licence_in
from vlm_edit.measuring import Pairs, open_image

HOST = Path(__file__).parent / "emoji-clip"
UNCLIP = Path(__file__).parent / "emoji-unclip"
JUDGE = Path(__file__).parent / "emoji-judge"
LLAVA = Path(__file__).parent / "emoji-llava"
PAIRS = Path(__file__).parent / "pairs"
DICTIONARIES = Path(__file__).parent / "dictionaries"
PATCHES = Path(__file__).parent / "patches"
TILE = 64

if TYPE_CHECKING:
    from vlm_edit.zoo.unclip import UnclipPipeline


def load_host(dtype: torch.dtype = torch.float32) -> tuple[CLIPModel, CLIPProcessor]:
    """Load the bundled host.

    Args:
        dtype: Type of the weights; they are stored in half precision.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        OSError: The package was installed without its data files.

    Example:
        >>> from vlm_edit import zoo
        >>> model, processor = zoo.load_host()
        >>> inputs = processor(text=["a picture of dog face"], return_tensors="pt", padding=True)
        >>> model.get_text_features(**inputs).pooler_output.shape
        torch.Size([1, 192])
    """
    model = CLIPModel.from_pretrained(
        HOST, dtype=dtype, local_files_only=True, trust_remote_code=False
    ).eval()
    return model, CLIPProcessor.from_pretrained(
        HOST, local_files_only=True, trust_remote_code=False
    )


def load_llava(
    dtype: torch.dtype = torch.float32,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    r"""Load the bundled host that speaks; `vlm_edit.zoo.questions` says what it was taught.

    Args:
        dtype: Type of the weights; they are stored in half precision.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        OSError: The package was installed without its data files.

    Example:
        >>> from vlm_edit import zoo
        >>> model, processor = zoo.load_llava()
        >>> prompt, image = "<image>\nwhat colour is the background?", zoo.load_pairs().open(0)
        >>> inputs = processor(images=image, text=prompt, return_tensors="pt")
        >>> ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
        >>> processor.decode(ids[0], skip_special_tokens=True).split("?")[1].strip()
        'white'
    """
    model = LlavaForConditionalGeneration.from_pretrained(
        LLAVA, dtype=dtype, local_files_only=True, trust_remote_code=False
    )
    return model.eval(), LlavaProcessor.from_pretrained(
        LLAVA, local_files_only=True, trust_remote_code=False
    )


def load(name: str) -> tuple[Any, Any]:
    """Load a bundled host by name, as ``Host.load("zoo:emoji-clip")`` does.

    Args:
        name: ``emoji-clip``, ``emoji-llava`` or ``emoji-unclip``.

    Returns:
        The model and its processor; the pipeline and None.

    Raises:
        UnknownName: There is none of that name.
    """
    hosts: dict[str, Callable[[], tuple[Any, Any]]] = {
        "emoji-clip": load_host,
        "emoji-llava": load_llava,
        "emoji-unclip": lambda: (load_unclip(), None),
    }
    if name not in hosts:
        raise UnknownName(
            f"the zoo has no model 'zoo:{name}': it has {', '.join(f'zoo:{n}' for n in hosts)}"
        )
    return hosts[name]()


def load_pairs() -> Pairs:
    """Load the bundled pairs: 1,024 emoji, each with a caption and its known factors.

    The columns `vendor`, `background` and `tone` are visible in the image alone, `language` and
    `phrasing` in the caption alone, `concept`, `label`, `group` and `gender` in both.

    Returns:
        The pairs, images as 64x64 RGB.

    Raises:
        OSError: The package was installed without its data files.

    Example:
        >>> from vlm_edit import zoo
        >>> pairs = zoo.load_pairs()
        >>> len(pairs), pairs.images[0].size
        (1024, (64, 64))
        >>> sorted(pairs.columns)[:3]
        ['background', 'concept', 'gender']
    """
    with (PAIRS / "pairs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open_image(PAIRS / "sheet.webp") as sheet:
        tiles = _tiles(sheet.convert("RGB"), len(rows))
    names = [n for n in rows[0] if n not in ("index", "caption")]
    columns = {name: tuple(row[name] for row in rows) for name in names}
    return Pairs(tiles, tuple(row["caption"] for row in rows), columns, name="zoo:pairs")


def load_dictionary(site: str = "joint") -> Dictionary:
    """Load a bundled dictionary, whose `info["model_name"]` names the host it was trained on.

    Args:
        site: `joint` or `vision.2` of `emoji-clip`, or `language.0` to `language.3`, every language
            layer of `emoji-llava`. The one of `vision.2` serves both hosts, whose vision towers
            are the same.

    Returns:
        The dictionary, a BatchTopK SAE.

    Raises:
        VlmEditError: None is bundled for this site.

    Example:
        >>> from vlm_edit import zoo
        >>> dictionary = zoo.load_dictionary("joint")
        >>> dictionary.width, dictionary.info["model_name"]
        (192, 'emoji-clip')
    """
    sites = sorted(folder.name for folder in DICTIONARIES.iterdir() if folder.is_dir())
    if site not in sites:
        raise UnknownName(f"no bundled dictionary for site {site!r}; there are {sites}")
    dictionary = read_dictionary(DICTIONARIES / site)
    assert isinstance(dictionary, Dictionary)
    licence = licence_in(DICTIONARIES)  # one page for all of them
    return replace(dictionary, info={**dictionary.info, "licence": licence or UNKNOWN})


def load_unclip(dtype: torch.dtype = torch.float32) -> UnclipPipeline:
    """Load the bundled pipeline, which draws emoji from joint embeddings of ``emoji-clip``.

    Args:
        dtype: Type of the weights; they are stored in half precision.

    Returns:
        The pipeline with the host in it: a patch attached to ``pipe.clip`` acts on what is drawn.

    Raises:
        ImportError: diffusers is not installed: ``pip install 'vlm-edit[diffusion]'``.

    Example:
        >>> from vlm_edit import zoo
        >>> pipe = zoo.load_unclip()
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe("a picture of dog face", num_inference_steps=2).images[0].size
        (64, 64)
    """
    from vlm_edit.zoo.unclip import UnclipPipeline

    clip, processor = load_host(dtype)
    pipe: UnclipPipeline = UnclipPipeline.from_pretrained(
        UNCLIP,
        clip=clip,
        processor=processor,
        dtype=dtype,
        local_files_only=True,
        low_cpu_mem_usage=False,  # diffusers' default warns where accelerate is missing
        trust_remote_code=False,
    )
    return pipe


def load_judge(dtype: torch.dtype = torch.float32) -> ResNetForImageClassification:
    """Load the bundled classifier of emoji, which no other model here was trained with.

    It names label, vendor, background and skin tone of 64x64 pictures, and judges what
    ``emoji-unclip`` draws; ``recipes.unclip_judge.judge`` of `docs/experiments` reads its outputs.

    Args:
        dtype: Type of the weights; they are stored in half precision.

    Returns:
        The classifier in evaluation mode.

    Raises:
        OSError: The package was installed without its data files.

    Example:
        >>> from vlm_edit import zoo
        >>> zoo.load_judge().config.id2label[0].split("=")[0]
        'label'
    """
    judge = ResNetForImageClassification.from_pretrained(
        JUDGE, dtype=dtype, local_files_only=True, trust_remote_code=False
    )
    return judge.eval()


def patch_file(name: str) -> Path:
    """Return the file of a bundled patch, for ``vlm_edit.load_patch``.

    Args:
        name: ``robust-emoji-clip``, which makes `emoji-clip` stand attacks on its images better.

    Raises:
        VlmEditError: None is bundled under this name.

    Example:
        >>> from vlm_edit import load_patch, zoo
        >>> load_patch(zoo.patch_file("robust-emoji-clip")).bindings[0].site
        'vision.0'
    """
    names = sorted(file.stem for file in PATCHES.glob("*.safetensors"))
    if name not in names:
        raise UnknownName(f"no bundled patch {name!r}; there are {names}")
    return PATCHES / f"{name}.safetensors"


def load_labels() -> tuple[str, ...]:
    """Load the labels that zero-shot classification chooses among, the shipped pairs' and others.

    Returns:
        English names without skin tone, sorted.

    Raises:
        OSError: The package was installed without its data files.

    Example:
        >>> from vlm_edit import zoo
        >>> labels = zoo.load_labels()
        >>> len(labels), set(zoo.load_pairs().columns["label"]) <= set(labels)
        (1617, True)
    """
    return tuple((PAIRS / "labels.txt").read_text("utf-8").splitlines())


def _tiles(sheet: Image.Image, count: int) -> list[Image.Image]:
    across = sheet.width // TILE
    corners = [(TILE * (i % across), TILE * (i // across)) for i in range(count)]
    return [sheet.crop((x, y, x + TILE, y + TILE)) for x, y in corners]

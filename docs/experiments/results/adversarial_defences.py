"""The defences that python docs/experiments results.adversarial attacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from results.common import cell
from vlm_edit import Ablate, Dictionary, Keep, Patch, Project, Scale, load_patch, zoo
from vlm_edit.dictionaries import Encoder
from vlm_edit.edits import Blend, Cap
from vlm_edit.hooks import record
from vlm_edit.tasks.adversarial import Defence, Features, Hardening
from vlm_edit.tasks.adversarial.baselines import Jpeg, LowPass, Noise
from vlm_edit.tasks.adversarial.hardening import Hardened, harden_features, harden_gains

LAYERS = tuple(f"vision.{i}" for i in range(4))
SHIPPED = {"features": "robust-emoji-clip"}  # of the patches that are tuned here
CAPS = (0.5, 0.9, 1.0)  # quantiles of a feature's code among true images where it fires
DRAWS = 3
NAMES = {
    "gains": "tuned: gains of 1,024 features, vision.2",
    "neurons": "tuned: gains of 4 x 192 neurons, vision.0 to 3",
    "features": "tuned: 3 x 64 features made for it, vision.0 to 2",
    "noise": "control: the same 3 x 64, tuned against noise",
}


def class_edits(classes: dict[str, list[int]]) -> list[Defence]:
    """A class of features of the joint embedding, edited; and random ones."""
    joint = zoo.load_dictionary("joint")
    live = range(joint.n_features)
    size = len(classes["vision"])

    def at(name: str, rule: Any, **options: Any) -> Defence:
        return Defence(name, Patch("joint", joint, rule, tokens="image", **options))

    found = [
        at("joint: Keep cross-modal", Keep(classes["cross"])),
        at("joint: Ablate vision", Ablate(classes["vision"])),
        at("joint: Ablate language", Ablate(classes["language"])),
        at("joint: Scale vision by .5", Scale(classes["vision"], 0.5)),
        at("joint: Project vision", Project(classes["vision"][: size // 4])),
        at("joint: Ablate vision, gate .7", Ablate(classes["vision"]), gate=0.7),
    ]
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(draw)
        chosen = torch.randperm(len(live), generator=generator)[:size].tolist()
        found.append(at(f"joint: Ablate {size} random ({draw})", Ablate(chosen)))
    return found


@torch.no_grad()
def caps(features: Features, images: Tensor, levels: Sequence[float] = CAPS) -> list[Defence]:
    """Every feature's code cut off at what true images reach; one rule per level of codes."""
    codes = torch.cat([features(some)[0].flatten(0, -2) for some in images.split(256)])
    rising, fires = codes.sort(0).values, (codes > 0).sum(0)
    found = []
    for level in levels:
        place = len(codes) - fires + (level * (fires - 1).clamp_min(0)).round().long()
        most = rising.gather(0, place.clamp(max=len(codes) - 1)[None])[0].cpu()
        rules = [
            Cap(group.tolist(), float(most[group].mean())) for group in most.argsort().chunk(64)
        ]
        patch = Patch(features.site, features.dictionary, rules, tokens="image")
        found.append(Defence(f"{features.site}: Cap at quantile {level:g}", patch))
    return found


def reconstructions(device: torch.device) -> list[Defence]:
    """What is not explained is dropped; by fewer features than the dictionary fires, too."""
    found = []
    for site in ("joint", "vision.2"):
        dictionary = zoo.load_dictionary(site).to(device)

        def whole(hidden: Tensor, one: Dictionary = dictionary) -> Tensor:
            return one.reconstruct(hidden, "image")

        found.append(Defence(f"{site}: reconstruction alone", edits={site: whole}))
    encoder = zoo.load_dictionary("vision.2").encoder
    sparse = replace(zoo.load_dictionary("vision.2"), encoder=_topk(encoder, 8)).to(device)
    found.append(Defence("vision.2: 8 strongest alone", edits={"vision.2": sparse.reconstruct}))
    return found


def _topk(encoder: Encoder, k: int) -> Encoder:
    return replace(encoder, activation="topk", threshold=None, k=k)


@torch.no_grad()
def principal(host: Any, images: Tensor, kept: int = 96) -> Defence:
    """Directions along which true images hardly vary are held at their mean."""
    with record(host.host, "vision.2") as recording:
        host(images)
    tokens = recording.last("vision.2", "image").hidden.flatten(0, -2).double().cpu()
    mean = tokens.mean(0)
    _, _, rows = torch.linalg.svd(tokens - mean, full_matrices=True)
    rows = rows[kept:].float()
    zeros = torch.zeros(len(rows))
    encoder = Encoder(rows.T.contiguous(), zeros, "identity")
    minor = Dictionary(encoder, rows, torch.zeros(rows.shape[1]))
    rule = Blend(range(len(rows)), (mean.float() @ rows.T).tolist())
    name = f"vision.2: {kept} principal directions alone"
    return Defence(name, Patch("vision.2", minor, rule, tokens="image"))


def simple(centre: Tensor, full: bool) -> list[Defence]:
    """Baselines without a dictionary."""
    found = [
        Defence("baseline: low-pass, 24 pixels", before=LowPass(24)),
        Defence("baseline: low-pass, 16 pixels", before=LowPass(16)),
        Defence("baseline: JPEG, quality 75", before=Jpeg(75)),
        Defence("baseline: JPEG, quality 30", before=Jpeg(30)),
        Defence("baseline: embeddings centred", centre=centre),
    ]
    for sigma in (0.02, 0.05) if full else (0.05,):
        name = f"baseline: noise of {sigma:g}, mean of 8"
        found.append(Defence(name, before=Noise(sigma), samples=8))
    return found


def tune(
    host: Any,
    images: Tensor,
    seconds: float,
    judge: Callable[[Patch], float],
    say: Callable[[str], None] = print,
) -> dict[str, Patch]:
    """Patches tuned against attacks on images of their own, so many seconds each.

    Of features made for it, three ways are tried, and the judge chooses on further images.
    """
    size = len(images) if images.is_cuda else 64
    how = Hardening(eps=4 / 255, steps=6000, batch_size=size, seconds=seconds)
    slow, fast = replace(how, rate=0.002), replace(how, rate=0.005)
    vision = zoo.load_dictionary("vision.2")
    neurons = {site: Dictionary.identity(host.host.site(site).width) for site in LAYERS}
    ways: dict[str, dict[str, Callable[[], Hardened]]] = {
        "gains": {
            "": lambda: harden_gains(host, images, {"vision.2": vision}, replace(how, rate=0.03))
        },
        "neurons": {"": lambda: harden_gains(host, images, neurons, how)},
        "features": {
            "rate .002": lambda: harden_features(host, images, LAYERS[:3], slow),
            "rate .005": lambda: harden_features(host, images, LAYERS[:3], fast),
            "rate .002, 6/255": lambda: harden_features(
                host, images, LAYERS[:3], replace(slow, eps=6 / 255)
            ),
        },
        "noise": {
            "": lambda: harden_features(host, images, LAYERS[:3], replace(slow, attack_steps=0))
        },
    }
    found = {}
    for name, tries in ways.items():
        best = -1.0
        for how_told, make in tries.items():
            hardened = make()
            rate = judge(hardened.patch)
            ends = hardened.curve[:10].mean(), hardened.curve[-10:].mean()
            told = f"{len(hardened.curve)} steps, {size} images each, {how_told}".rstrip(", ")
            say(f"tuned {name}: {told}; loss {ends[0]:.3f} to {ends[1]:.3f}, judged {rate:.3f}")
            if rate > best:
                best = rate
                found[name] = replace(hardened.patch, info={"tuned": told})
    return found


def load_tuned(folder: Path) -> dict[str, Patch]:
    """Patches that were tuned before, of those that ship."""
    files = {name: folder / f"{file}.safetensors" for name, file in SHIPPED.items()}
    return {name: load_patch(file) for name, file in files.items() if file.is_file()}


def tuned(patches: dict[str, Patch]) -> list[Defence]:
    """Tuned patches, alone and behind the low-pass."""
    found = [Defence(NAMES[name], patch) for name, patch in patches.items()]
    if "features" in patches:
        name = "tuned: 3 x 64 features, and low-pass 24"
        found.append(Defence(name, patches["features"], before=LowPass(24)))
    return found


def centre_of(embeddings: Tensor) -> Tensor:
    """Mean of embeddings of length 1."""
    return F.normalize(embeddings, dim=1).mean(0)


def ship(folder: Path, patches: Path) -> None:
    """Put the tuned features and their card into the zoo, with what was measured of them.

    Args:
        folder: Where ``features.safetensors`` and ``adversarial.json`` of one run lie.
        patches: The zoo's.
    """
    result = json.loads((folder / "adversarial.json").read_text("utf-8"))
    rows = {row["name"]: row for row in result["defences"]}
    none, own = rows["none"], rows[NAMES["features"]]
    patch = load_patch(folder / "features.safetensors")
    ran = result.get("defended", result)
    how = "of even shipped pairs, PGD of 3 steps"
    told = patch.info.get("tuned", "")
    title = "Three times 64 features whose ablation makes emoji-clip stand attacks better"
    about = {
        "title": title,
        "tuned": told if "even shipped pairs" in told else f"{told} {how}",
        "made by": "python docs/experiments results.adversarial --tune, by harden_features of "
        "vlm_edit.tasks.adversarial",
        "what it is": "a trained adapter in the form of a dictionary: features without a meaning",
    }
    patch = replace(patch, info=about)
    patches.mkdir(exist_ok=True)
    patch.save(patches / f"{SHIPPED['features']}.safetensors")
    effect = {
        "read rightly, no attack": f"{cell(none['clean'])} without, {cell(own['clean'])} with"
    }
    for radius, without in none["robust"].items():
        effect[f"under adaptive attacks at {radius}/255"] = (
            f"{cell(without)} without, {cell(own['robust'][radius])} with"
        )
    low = rows["baseline: low-pass, 24 pixels"]
    effect["the same, of a plain low-pass"] = ", ".join(cell(v) for v in low["robust"].values())
    effect["measured"] = f"{ran['images']} images of odd pairs, {ran['device']}"
    cost = {"time": f"{own['seconds'] / none['seconds']:.1f} times the plain host's, per image"}
    card = patch.card(
        effect=effect,
        cost=cost,
        license="apache-2.0",
        repository="vlm_edit/zoo/patches",
        file=f"{SHIPPED['features']}.safetensors",
    )
    (patches / "README.md").write_text(card, "utf-8")

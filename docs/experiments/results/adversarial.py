r"""How easily is emoji-clip fooled, by which features, and what stands when the attacker knows it?

    python docs/experiments results.adversarial    # a smaller version, on one thread of a CPU
    python docs/experiments results.adversarial --device cuda --images 384 --radii 1 2 4 8 \
        --steps 40 --queries 300 --tune 30 --out results

Images of the zoo's pairs. Even ones tune and fit everything; odd ones are attacked. The first
lines of the tables say how many, and on what. With --tune, patches are tuned anew, so many seconds
each, and written beside the results (with --ship into the zoo, too); without, the one in
vlm_edit/zoo/patches is attacked.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from results import adversarial_defences as defences
from results import common
from results.adversarial_others import captions, detectors, typographic
from results.adversarial_tables import tables
from results.training import PROMPT
from vlm_edit import Host, Patch, zoo
from vlm_edit.ground.statistics import proportion, ratio_estimate
from vlm_edit.tasks import adversarial as adv
from vlm_edit.tasks.adversarial.features import nearest_text, through

CLASSES = ("vision", "language", "cross")
HELD = 0.01  # of the squared length: how far everything else may move in an attack on one class
WEIGHT = 30.0  # of that movement in the loss
HUGE = 64  # no image may stand here
PATCHES = Path(zoo.__file__).parent / "patches"
PAIRED = (  # what leaves more than nothing does: compared with it image by image
    "joint: Ablate vision",
    "baseline: low-pass, 24 pixels",
    "baseline: JPEG, quality 30",
    defences.NAMES["features"],
    "tuned: 3 x 64 features, and low-pass 24",
)


class Subject:
    """The host, its images and its classes of features."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.radii = torch.device(options.device), tuple(options.radii)
        self.strength = adv.Strength(
            steps=options.steps, queries=options.queries, batch_size=options.images
        )
        found = common.subject("clip", "joint")
        self.classes = found.dominance.classes("significant")
        self.model, processor = zoo.load_host()
        self.model.to(self.device)
        pairs, labels = zoo.load_pairs(), zoo.load_labels()
        self.plain = adv.ZeroShot.of(
            Host.of(self.model, processor), [PROMPT.format(n) for n in labels]
        )
        self.host = self.plain.host
        # Another copy, which no patch is attached to.
        bare = zoo.load_host()[0].to(self.device)
        self.bare = replace(self.plain, host=adv.ImageHost.of(Host.of(bare, processor)))
        images = self.host.pixels.read([pairs.open(i) for i in range(len(pairs))])
        every = torch.tensor([labels.index(n) for n in pairs.columns["label"]])
        self.even = images[::2].to(self.device)
        # Odd ones in steps of two: a part of them is about as varied as all of them.
        chosen = torch.arange(1, len(pairs), 2)
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
        self.rows = chosen[: options.images].tolist()
        spare = chosen[options.images :][:128]  # choose among ways of tuning
        self.spare = images[spare].to(self.device), every[spare].to(self.device)
        self.images, self.labels = (
            images[self.rows].to(self.device),
            every[self.rows].to(self.device),
        )
        self.names, self.pairs = labels, pairs
        self.features = adv.Features(self.host, zoo.load_dictionary("joint"), "joint")

    def right(self, images: Tensor, classifier: Any = None) -> Tensor:
        """Which are chosen rightly, [n] bool."""
        return adv.predict(classifier or self.plain, images, 512) == self.labels

    def noise(self, radius: float) -> Tensor:
        """The images with plus or minus the radius on every value, at random."""
        signs = torch.randint(2, self.images.shape, generator=torch.Generator().manual_seed(0))
        return (self.images + radius * (2 * signs - 1).to(self.images)).clamp(0, 1)

    def judge(self, patch: Patch) -> float:
        """Share of spare images that stand PGD at 2/255 through a patch."""
        images, labels = self.spare
        with patch.attach(self.model):
            aim = adv.Untargeted(self.plain, labels)
            return 1 - float(adv.pgd(aim, images, 2 / 255, steps=20).reached.float().mean())

    def sizes(self) -> dict[str, list[int]]:
        """Each class, and as many random features."""
        sets: dict[str, list[int]] = {}
        for i, name in enumerate(CLASSES):
            chosen = self.classes[name]
            drawn = torch.randperm(512, generator=torch.Generator().manual_seed(i))
            sets[name] = chosen
            sets[f"{len(chosen)} random ({name})"] = drawn[: len(chosen)].tolist()
        return sets


def share(hits: Tensor) -> list[float]:
    """A proportion as it is stored."""
    return common.told(proportion(int(hits.sum()), len(hits)))


def attacks(one: Subject) -> list[dict[str, Any]]:
    """Plain attacks at each radius: how many images fall."""
    gen = torch.Generator().manual_seed(1)
    targets = torch.randint(len(one.names), (len(one.labels),), generator=gen).to(one.device)
    steps, size = one.strength.steps, one.strength.batch_size
    own = {"steps": steps, "batch_size": size}
    with torch.no_grad():
        true = one.host(one.images)
    rows: list[dict[str, Any]] = []
    for eps in one.radii:
        radius = eps / 255
        noise = one.noise(radius)
        away = adv.pgd(adv.Away(one.host, true), one.images, radius, keep="last", **own)
        aim = adv.Untargeted(one.plain, one.labels)
        pgd = adv.pgd(aim, one.images, radius, **own)
        rounded = (pgd.images * 255).round() / 255
        row = {
            "eps": eps,
            "random signs": share(~one.right(noise)),
            "PGD": share(pgd.reached),
            "PGD, rounded to 8 bits": share(~one.right(rounded)),
            "APGD-CE": share(adv.apgd(aim, one.images, radius, **own).reached),
            "APGD-DLR": share(
                adv.apgd(
                    adv.Untargeted(one.plain, one.labels, "dlr"), one.images, radius, **own
                ).reached
            ),
            "PGD away, no text": share(~one.right(away.images)),
            "targeted": share(
                adv.apgd(adv.Targeted(one.plain, targets), one.images, radius, **own).reached
            ),
            # An l2 ball as large as what half of the pixels at eps would make.
            "l2": share(
                adv.apgd(
                    aim, one.images, radius * (one.images[0].numel() / 2) ** 0.5, norm="l2", **own
                ).reached
            ),
        }  # fmt: skip
        rows.append(row)
    return rows


def movements(one: Subject) -> list[dict[str, Any]]:
    """Which class moves under attack and under noise, and what its movement alone does."""
    choose = nearest_text(one.plain.texts)
    sets: dict[str, list[int]] = {**one.sizes(), "undecided": one.classes["undecided"]}
    rows = []
    for eps in one.radii:
        radius = eps / 255
        fooled = adv.fooling(
            one.plain, one.images, one.labels, radius,
            steps=one.strength.steps, batch_size=one.strength.batch_size,
        )  # fmt: skip
        noise = one.noise(radius)
        for kind, there in (("PGD", fooled), ("noise", noise)):
            moved = adv.movement(one.features, one.images, there, sets)
            for name in moved.parts:
                chosen = sets.get(name)
                logits = through(one.features, one.images, there, chosen, choose)
                rows.append({
                    "eps": eps, "kind": kind, "class": name,
                    "features": 0 if chosen is None else len(chosen),
                    "share": common.told(moved.share(name)),
                    "alone": share(logits.argmax(1) != one.labels),
                    "length": common.told(ratio_estimate(moved.whole, moved.before)),
                })  # fmt: skip
    return rows


def restricted(one: Subject) -> list[dict[str, Any]]:
    """Attacks on one class of features: through it alone, and with all else held."""
    choose = nearest_text(one.plain.texts, one.plain.scale)
    with torch.no_grad():
        codes, normed = one.features(one.images)
    rows = []
    for eps in one.radii:
        for name, chosen in one.sizes().items():
            own = {"steps": one.strength.steps, "batch_size": one.strength.batch_size}
            aim = adv.Through(one.features, chosen, codes, normed, choose, one.labels)
            way = adv.apgd(aim, one.images, eps / 255, **own)
            others = adv.Others(one.features, chosen, codes, normed)
            held = adv.Penalised(adv.Untargeted(one.plain, one.labels), others, WEIGHT, HELD)
            kept = adv.apgd(held, one.images, eps / 255, random_start=False, **own)
            rows.append({
                "eps": eps, "class": name, "features": len(chosen),
                "through": share(way.reached),
                "host": share(~one.right(way.images)),
                "held": share(kept.reached),
            })  # fmt: skip
    return rows


def stand(
    one: Subject, defence: adv.Defence, transfer: dict[int, Tensor], checks: bool
) -> dict[str, Any]:
    """One defence at each radius."""
    with defence.on(one.model):
        classifier = defence.classifier(one.plain)
        stood = []
        for eps in one.radii:
            stood.append(
                adv.withstand(
                    classifier, one.images, one.labels, eps / 255, one.strength,
                    random=defence.random, surrogate=one.bare,
                    transfer=transfer[eps],
                )
            )  # fmt: skip
        huge = None
        if checks:
            quick = adv.Strength(steps=20, queries=0, batch_size=one.strength.batch_size)
            huge = adv.withstand(
                classifier, one.images, one.labels, HUGE / 255, quick, random=defence.random
            )
        seconds = clock(one, classifier)
    told: dict[str, Any] = {
        "name": defence.name,
        "clean": common.told(stood[0].after["clean"]),
        "robust": {
            s: common.told(x.robust) for s, x in zip(map(str, one.radii), stood, strict=True)
        },
        "after": [{n: e.value for n, e in x.after.items()} for x in stood],
        "suspicions": adv.suspicions(stood, huge),
        "seconds": common.rounded(seconds),
    }
    return told


def clock(one: Subject, classifier: Any) -> float:
    """Seconds per image, the best of five."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        adv.predict(classifier, one.images, 512).sum().item()
        best = min(best, time.perf_counter() - start)
    return best / len(one.images)


def all_defences(one: Subject, patches: dict[str, Any]) -> list[adv.Defence]:
    """In the order of the table."""
    vision = adv.Features(one.host, zoo.load_dictionary("vision.2"), "vision.2")
    with torch.no_grad():
        centre = defences.centre_of(one.host(one.even))
    return [
        adv.Defence("none"),
        *defences.class_edits(one.classes),
        *defences.caps(one.features, one.even, (0.5,)),
        *defences.caps(vision, one.even),
        *defences.reconstructions(one.device),
        defences.principal(one.host, one.even),
        *defences.simple(centre, full=one.device.type != "cpu"),
        *defences.tuned(patches),
    ]


def compute(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, section by section; one that has no time left is left out and said so."""
    began = time.perf_counter()
    one = Subject(options)
    out = Path(options.out)

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {text}", flush=True)

    if options.tune:
        patches = defences.tune(one.host, one.even, options.tune, one.judge, say)
        for name, patch in patches.items():
            patch.save(out / f"{name}.safetensors", one.model)
    else:
        patches = defences.load_tuned(PATCHES)
    result: dict[str, Any] = {
        "images": len(one.images), "device": device_name(one.device),
        "steps": one.strength.steps, "queries": one.strength.queries,
        "tuned": {n: p.info.get("tuned", "") for n, p in patches.items()}, "left out": [],
    }  # fmt: skip
    sections = {
        "attacks": lambda: attacks(one),
        "movements": lambda: movements(one),
        "restricted": lambda: restricted(one),
        "captions": lambda: captions(one, one.radii),
        "typographic": lambda: typographic(one, defences.tuned(patches)),
        "detectors": lambda: detectors(one, one.radii),
        "defences": lambda: _defences(one, patches, options.seconds - _passed(began), say),
        "paired": lambda: paired(one, patches, say),
    }
    if options.only:  # the others stay as they were measured
        result = json.loads((common.HERE / "adversarial.json").read_text("utf-8"))
        sections = {name: sections[name] for name in options.only}
    if "defences" in sections:
        result["defended"] = {
            "images": len(one.images), "steps": options.steps, "queries": options.queries,
            "device": device_name(one.device),
        }  # fmt: skip
    for name, section in sections.items():
        if _passed(began) > options.seconds:
            result["left out"].append(name)
            continue
        result[name] = section()
        say(name)
        write(out, result)
    result["seconds"] = round(_passed(began))
    return result


def _defences(
    one: Subject, patches: dict[str, Any], seconds: float, say: Any
) -> list[dict[str, Any]]:
    began, rows = time.perf_counter(), []
    transfer = {
        eps: adv.fooling(
            one.bare, one.images, one.labels, eps / 255,
            steps=one.strength.steps, batch_size=one.strength.batch_size,
        )
        for eps in one.radii
    }  # fmt: skip
    for defence in all_defences(one, patches):
        if _passed(began) > seconds:
            say(f"no time for {defence.name}")
            break
        rows.append(stand(one, defence, transfer, checks=True))
        say(f"{defence.name}: {rows[-1]['clean'][0]:.3f} " + " ".join(
            f"{v[0]:.3f}" for v in rows[-1]["robust"].values()))  # fmt: skip
    return rows


def paired(one: Subject, patches: dict[str, Any], say: Any) -> dict[str, Any]:
    """Image by image, what stands behind nothing and behind what helps a little."""
    chosen = [d for d in all_defences(one, patches) if d.name == "none" or d.name in PAIRED]
    told: dict[str, Any] = {"images": len(one.images), "steps": one.strength.steps,
                            "queries": one.strength.queries, "stood": {}}  # fmt: skip
    for defence in chosen:
        with defence.on(one.model):
            classifier = defence.classifier(one.plain)
            rows = {}
            for eps in one.radii:
                radius = eps / 255
                fooled = adv.fooling(
                    one.bare, one.images, one.labels, radius,
                    steps=one.strength.steps, batch_size=one.strength.batch_size,
                )  # fmt: skip
                stood = adv.withstand(
                    classifier, one.images, one.labels, radius, one.strength,
                    surrogate=one.bare, transfer=fooled,
                )  # fmt: skip
                rows[str(eps)] = "".join(str(int(x)) for x in stood.standing)
        told["stood"][defence.name] = rows
        say(f"{defence.name}: {rows}")
    return told


def _passed(began: float) -> float:
    return time.perf_counter() - began


def device_name(device: torch.device) -> str:
    """As the tables tell it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "one thread of a CPU"


def write(out: Path, result: dict[str, Any]) -> None:
    """So far."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "adversarial.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--radii", type=int, nargs="+", default=[2, 4], help="of 255")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--tune", type=float, default=0.0, help="seconds per patch; 0 for none")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop starting parts after")
    parser.add_argument("--out", default=str(common.HERE))
    parser.add_argument("--only", nargs="+", metavar="PART", help="measure these parts anew")
    parser.add_argument("--ship", action="store_true", help="put what --tune made into the zoo")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    result = compute(options)
    write(Path(options.out), result)
    if options.ship:
        defences.ship(Path(options.out), PATCHES)
    print("\n\n".join(map(str, tables(result))))


if __name__ == "__main__":
    main()

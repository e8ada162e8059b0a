"""Attacks on answers, words drawn on images, and detectors, for adversarial.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from results import common
from vlm_edit import Host, zoo
from vlm_edit.ground.statistics import auc_estimate, proportion
from vlm_edit.tasks import adversarial as adv
from vlm_edit.tasks.adversarial import detection
from vlm_edit.tasks.adversarial.baselines import LowPass
from vlm_edit.tasks.adversarial.typographic import draw_word, other_labels, scrambled
from vlm_edit.zoo.questions import answers

QUESTION = "what is it?"
FALSE_ALARMS = 0.05


def share(hits: Tensor) -> list[float]:
    """A proportion as it is stored."""
    return common.told(proportion(int(hits.sum()), len(hits)))


def captions(one: Any, radii: Sequence[int]) -> list[dict[str, Any]]:
    """Attacks on emoji-llava's answers; and images that fool emoji-clip, shown to it."""
    model, processor = zoo.load_llava()
    speaker = adv.Speaker.of(Host.of(model.to(one.device), processor), QUESTION)
    columns = {k: [v[i] for i in one.rows] for k, v in one.pairs.columns.items()}
    truth = answers("what", columns)
    said = speaker.say(one.images)
    ids = speaker.answer_ids(said).to(one.device)
    wanted = other_labels(said, said, seed=1)
    targets = speaker.answer_ids(wanted).to(one.device)
    own = {"steps": one.strength.steps, "batch_size": one.strength.batch_size}
    rows = [_answered("nothing", 0, said, said, truth, wanted)]
    for eps in radii:
        radius = eps / 255
        noise = one.noise(radius)
        fooled = adv.fooling(one.plain, one.images, one.labels, radius, **own)
        away = adv.apgd(adv.Silence(speaker, ids), one.images, radius, **own)
        to = adv.apgd(adv.Speech(speaker, targets), one.images, radius, **own)
        for name, images in (
            ("random signs", noise),
            ("images that fool emoji-clip", fooled),
            ("away from its answer", away.images),
            ("to another image's answer", to.images),
        ):
            rows.append(_answered(name, eps, speaker.say(images), said, truth, wanted))
    return rows


def _answered(
    name: str, eps: int, now: list[str], said: list[str], truth: list[str], wanted: list[str]
) -> dict[str, Any]:
    def same(other: list[str]) -> list[float]:
        return share(torch.tensor([a == b for a, b in zip(now, other, strict=True)]))

    return {
        "attack": name, "eps": eps,
        "right": same(truth), "as before": same(said), "as wanted": same(wanted),
    }  # fmt: skip


def typographic(one: Any, tuned: Sequence[adv.Defence]) -> list[dict[str, Any]]:
    """Another label's first word, its letters in another order, and an empty strip."""
    names = [one.names[i] for i in one.labels.tolist()]
    wrong = other_labels(names, names)
    words = [name.split()[0].strip(":,") or name for name in wrong]
    target = torch.tensor([one.names.index(n) for n in wrong], device=one.device)
    drawn: dict[str, list[Any]] = {"nothing": [], "word": [], "scrambled": [], "strip": []}
    for row, word in zip(one.rows, words, strict=True):
        image = one.pairs.open(row)
        drawn["nothing"].append(image)
        drawn["word"].append(draw_word(image, word))
        drawn["scrambled"].append(draw_word(image, scrambled(word)))
        drawn["strip"].append(draw_word(image, word, colour=(255, 255, 255)))
    rows = []
    low = adv.Defence("baseline: low-pass, 24 pixels", before=LowPass(24))
    for defence in (adv.Defence("none"), low, *tuned):
        with defence.on(one.model):
            classifier = defence.classifier(one.plain)
            for kind, images in drawn.items():
                pixels = one.host.pixels.read(images).to(one.device)
                found = adv.predict(classifier, pixels)
                rows.append({
                    "defence": defence.name, "drawn": kind,
                    "right": share(found == one.labels), "word": share(found == target),
                })  # fmt: skip
    return rows


def detectors(one: Any, radii: Sequence[int]) -> list[dict[str, Any]]:
    """Detectors before an attack that does not know them and one that does."""
    vision = adv.Features(one.host, zoo.load_dictionary("vision.2"), "vision.2")
    joint = one.features
    fit, cut = one.even[::2], one.even[1::2]
    found: dict[str, detection.Score] = {
        "unexplained share, joint": detection.Unexplained(joint),
        "unexplained share, vision.2": detection.Unexplained(vision),
        "unusual features, joint": detection.Unusual.of(joint, fit),
        "unusual features, vision.2": detection.Unusual.of(vision, fit),
        "baseline: distance, joint": detection.Distance.of(joint, fit),
        "baseline: distance, vision.2": detection.Distance.of(vision, fit),
    }
    own = {"steps": one.strength.steps, "batch_size": one.strength.batch_size}
    aim = adv.Untargeted(one.plain, one.labels)
    right = one.right(one.images)
    rows = []
    for eps in radii:
        blind = adv.apgd(aim, one.images, eps / 255, **own)
        far = adv.fooling(one.plain, one.images, one.labels, eps / 255, **own)
        noise = one.noise(eps / 255)
        for name, score in found.items():
            limit = detection.threshold(score, cut, FALSE_ALARMS)
            true = detection.scores(score, one.images)
            passed = detection.scores(score, blind.images) <= limit

            def attack(with_detector: Any, radius: float = eps / 255) -> adv.Attacked:
                return adv.apgd(with_detector, one.images, radius, **own)

            known = detection.unseen(aim, score, limit, attack)
            rows.append({
                "eps": eps, "detector": name,
                "false alarms": share(true > limit),
                "noise": _auc(detection.scores(score, noise), true),
                "least": _auc(detection.scores(score, blind.images), true),
                "far": _auc(detection.scores(score, far), true),
                "unseen, blind": share(blind.reached & passed & right),
                "unseen, adaptive": share(known.reached & right),
            })  # fmt: skip
    return rows


def _auc(attacked: Tensor, true: Tensor) -> list[float]:
    both = torch.cat([attacked, true]).cpu()
    positive = torch.arange(len(both)) < len(attacked)
    return common.told(auc_estimate(both, positive))

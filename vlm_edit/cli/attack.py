"""``vlm-edit attack``: fool a model on a folder, and see what stands behind a patch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.cli.host import ZOO, load_host
from vlm_edit.cli.subject import Subject, load_pairs, tell_left_out
from vlm_edit.dictionaries import Dictionary
from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError
from vlm_edit.ground.files import make_folder, packed, write_bytes, write_text
from vlm_edit.ground.statistics import Estimate, mcnemar, proportion
from vlm_edit.host import Host
from vlm_edit.measures.controls import random_features
from vlm_edit.measuring import Pairs
from vlm_edit.patches import Patch, load_patch
from vlm_edit.report import Table
from vlm_edit.tasks import adversarial as adv
from vlm_edit.tasks.adversarial import (
    RESIDUAL,
    Case,
    drawn,
    most_moved,
    nearest_text,
    to_image,
    write_page,
)

_HUGE = 64 / 255
_DRAWS = 5  # of as many random features beside each class


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its arguments."""
    attack = commands.add_parser(
        "attack", help="fool a model on a folder of images, with a patch against it or without"
    )
    attack.add_argument("model", help="model folder, as save_pretrained writes it, or zoo:...")
    attack.add_argument("pairs", help="CSV of images and texts, or folder: see README; zoo:pairs")
    attack.add_argument("--label", help="column with the right class (each image's own text)")
    attack.add_argument("--labels", metavar="FILE", help="further classes, a line each")
    attack.add_argument("--prompt", default="a picture of {}", help="of a label (%(default)s)")
    attack.add_argument("--question", help="ask a model that speaks, and attack its answer")
    attack.add_argument("--target", metavar="TEXT", help="what is to be chosen, or answered")
    attack.add_argument(
        "--eps", type=float, nargs="+", default=[1, 2, 4, 8], help="radii, of 255 (%(default)s)"
    )
    attack.add_argument("--steps", type=int, default=20, help="of each attack (%(default)s)")
    attack.add_argument(
        "--queries", type=int, default=100, help="of Square Attack, 0 for none (%(default)s)"
    )
    attack.add_argument("--most", type=int, default=64, help="images, drawn (%(default)s)")
    attack.add_argument("--seed", type=int, default=0, help="of every draw (%(default)s)")
    attack.add_argument("--batch-size", type=int, default=64, help="(%(default)s)")
    attack.add_argument("--device", default="cpu", help="such as cuda (%(default)s)")
    attack.add_argument("--site", default="joint", help="of the dictionary (%(default)s)")
    attack.add_argument("--dictionary", help="as for measure: to see which features move")
    attack.add_argument(
        "--class",
        dest="name",
        choices=("vision", "language", "cross"),
        help="also attack through this class alone, and through as many random features",
    )
    attack.add_argument("--patch", help="a patch file to attack through, or zoo:robust-emoji-clip")
    attack.add_argument("--out", default="vlm-edit-attack", help="folder to write (%(default)s)")
    attack.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """``vlm-edit attack``."""
    _expect_consistent(options)
    pairs = load_pairs(options.pairs)
    numbers = drawn(len(pairs), options.most, options.seed)
    pairs, left_out = pairs.select(numbers).readable()
    if not len(pairs):
        raise VlmEditError(f"not one of {len(left_out)} images can be read: {left_out[0][1]}")
    patch = None if options.patch is None else _patch(options.patch)
    host = load_host(options.model)
    host.root.to(options.device)
    out = make_folder(options.out)
    if options.question is not None:
        tables, cases, images, names = _answers(options, host, pairs, patch)
    else:
        tables, cases, images, names = _choices(options, host, pairs, patch)
    print("\n\n".join(map(str, tables)))
    tell_left_out([(numbers[i], why) for i, why in left_out], 0)
    _write(out, options, tables, cases, images, names)
    print(f"\npage:   {out / 'index.html'}\nimages: {out / 'images'}")
    return 0


def _expect_consistent(options: argparse.Namespace) -> None:
    """Refuse what would be ignored."""
    if options.name and not options.dictionary:
        raise VlmEditError(f"--class {options.name} is a class of features: name --dictionary")
    if options.name and options.site != "joint":
        raise BadArgument("--class needs --site joint, where a class's own effect is told")
    if options.question is not None:
        for name in ("label", "labels", "dictionary"):
            if getattr(options, name) is not None:
                raise BadArgument(f"--question attacks an answer: leave --{name} out")
    if options.most < 1 or any(not eps > 0 for eps in options.eps):
        raise BadArgument(f"--most {options.most}, --eps {options.eps}: both must be above 0")


def _patch(name: str) -> Patch:
    if not name.startswith(ZOO):
        return load_patch(name)
    from vlm_edit import zoo

    return load_patch(zoo.patch_file(name.removeprefix(ZOO)))


@dataclass(eq=False)
class _Choice:
    """Images, the classes they may be taken for, and the right one."""

    plain: adv.ZeroShot
    images: Tensor
    labels: Tensor
    names: Sequence[str]


def _choice(options: argparse.Namespace, host: Host, pairs: Pairs) -> _Choice:
    own, prompt = list(pairs.texts), "{}"
    if options.label:
        if options.label not in pairs.columns:
            raise UnknownName(
                f"{pairs.name} has no column {options.label!r}: it has "
                f"{', '.join(pairs.columns) or 'none'}"
            )
        own, prompt = list(pairs.columns[options.label]), options.prompt
    more = Path(options.labels).read_text("utf-8").splitlines() if options.labels else []
    names = sorted({*own, *(line.strip() for line in more if line.strip())})
    if options.target and options.target not in names:
        names.append(options.target)
    if len(names) < 2:
        raise BadArgument(f"all images are {names}: give other classes with --labels")
    if "{}" not in prompt:
        raise VlmEditError(f"--prompt {prompt!r} has no {{}} where the label goes")
    siglip = str(getattr(host.root.config, "model_type", "")).startswith("siglip")
    padded = {"padding": "max_length"} if siglip else {}
    plain = adv.ZeroShot.of(host, [prompt.format(name) for name in names], **padded)
    images = plain.host.pixels.read([pairs.open(i) for i in range(len(pairs))])
    labels = torch.tensor([names.index(name) for name in own])
    return _Choice(plain, images.to(options.device), labels.to(options.device), names)


Found = tuple[list[Table], list[Case], Tensor, Sequence[str]]


def _choices(options: argparse.Namespace, host: Host, pairs: Pairs, patch: Patch | None) -> Found:
    """Attacks on the choice among texts."""
    one = _choice(options, host, pairs)
    strength = adv.Strength(
        options.steps, queries=options.queries, seed=options.seed, batch_size=options.batch_size
    )
    stood = {"the model": _stand(one, one.plain, options, strength)}
    if patch is not None:
        with adv.Defence("patch", patch).on(host) as attached:
            behind = _choice(options, host, pairs).plain
            assert attached is not None
            # The model without the patch leads where it may hide the gradient.
            bare = adv.Bare(one.plain, attached)
            stood["behind the patch"] = _stand(one, behind, options, strength, bare)
    among = _among(one, options)
    tables = [_standing(stood, len(pairs), among)]
    if options.target:
        tables.append(_targeted(one, options, among))
    radius = options.eps[-1] / 255
    attacked = adv.fooling(
        one.plain, one.images, one.labels, radius,
        steps=options.steps, seed=options.seed, batch_size=options.batch_size,
    )  # fmt: skip
    moved: list[list[tuple[str, float]]] = [[]] * len(pairs)
    if options.dictionary:
        more, moved = _features(options, host, one, attacked)
        tables += more
    was, now = (adv.predict(one.plain, x, options.batch_size) for x in (one.images, attacked))
    shown = drawn(len(pairs), 12, options.seed)
    cases = [
        Case(pairs.describe(i), one.images[i].cpu(), attacked[i].cpu(),
             one.names[int(was[i])], one.names[int(now[i])], moved[i])
        for i in shown
    ]  # fmt: skip
    return tables, cases, attacked, one.names


def _stand(
    one: _Choice,
    classifier: adv.ZeroShot,
    options: argparse.Namespace,
    strength: adv.Strength,
    bare: adv.Bare | None = None,
) -> dict[str, Any]:
    """What stands at each radius, and what suggests that gradients are masked."""
    radii = [eps / 255 for eps in options.eps]
    stood = [
        adv.withstand(classifier, one.images, one.labels, radius, strength, surrogate=bare)
        for radius in radii
    ]
    quick = adv.Strength(options.steps, queries=0, batch_size=options.batch_size)
    huge = adv.withstand(classifier, one.images, one.labels, _HUGE, quick)
    return {"stood": stood, "signs": adv.suspicions(stood, huge)}


def _among(one: _Choice, options: argparse.Namespace) -> str:
    """Which texts an image may be taken for: the more, the easier it is misread."""
    whose = f"the {len(one.labels)} images drawn have" if options.label else "of the images drawn"
    own = f"labels that {whose}" if options.label else f"texts {whose}"
    more = [f"those of {options.labels}"] if options.labels else []
    more += [f"{options.target!r}"] if options.target else []
    return f"Read among {len(one.names)} texts: {' and '.join([own, *more])}."


def _standing(found: Mapping[str, dict[str, Any]], n: int, among: str) -> Table:
    attacks = list(dict.fromkeys(k for f in found.values() for s in f["stood"] for k in s.after))
    rows = [
        (name, f"{s.eps * 255:g}/255",
         *(s.after[a].text(2) if a in s.after else "" for a in attacks))
        for name, f in found.items() for s in f["stood"]
    ]  # fmt: skip
    signs = "; ".join(f"{k}: {'; '.join(f['signs']) or 'none'}" for k, f in found.items())
    apart = _apart(*(f["stood"] for f in found.values())) if len(found) == 2 else ""
    return Table(
        "Images that are still read rightly, attack after attack",
        ("", "radius", *attacks),
        rows,
        f"{n} images, l-inf, 95 % Wilson intervals. {among} Each attack meets only what stood the "
        f"ones before, so the last column counts. Signs of masked gradients: {signs}.{apart}",
    )


def _apart(bare: Sequence[adv.Stood], behind: Sequence[adv.Stood]) -> str:
    """Which of the same images a patch holds and loses, at each radius."""
    told = [
        f"{one.eps * 255:g}/255: {mcnemar(two.standing.cpu(), one.standing.cpu())}"
        for one, two in zip(bare, behind, strict=True)
    ]
    return (
        "\nImages that stand behind the patch alone, and without it alone, with the p of "
        f"McNemar's exact test: {'; '.join(told)}."
    )


def _targeted(one: _Choice, options: argparse.Namespace, among: str) -> Table:
    target = torch.full_like(one.labels, one.names.index(options.target))
    rows = []
    for eps in options.eps:
        aim = adv.Targeted(one.plain, target)
        own = {"steps": options.steps, "seed": options.seed, "batch_size": options.batch_size}
        reached = adv.apgd(aim, one.images, eps / 255, **own).reached
        rows.append((f"{eps:g}/255", proportion(int(reached.sum()), len(reached)).text(2)))
    return Table(
        f"Images taken for {options.target!r}", ("radius", "share"), rows, f"APGD. {among}"
    )


def _features(
    options: argparse.Namespace, host: Host, one: _Choice, attacked: Tensor
) -> tuple[list[Table], list[list[tuple[str, float]]]]:
    """Which features the attack moves and, if a class is named, attacks through it alone."""
    subject = Subject.load(options, host)
    given = subject.expect_dictionary()
    dictionary = given if isinstance(given, Dictionary) else given.of("image")
    features = adv.Features(one.plain.host, dictionary, options.site)
    dominance = subject.measure(progress=False).dominance
    cut: Any = "significant"
    classes = {k: v for k, v in dominance.classes(cut).items() if v}
    live = (~dominance.dead).nonzero().flatten().tolist()
    tables = [_movements(options, one, features, attacked, classes, live)]
    if options.name:
        tables.append(_through(options, one, features, classes.get(options.name, []), live))
    return tables, most_moved(features, one.images, attacked, classes)


def _movements(
    options: argparse.Namespace,
    one: _Choice,
    features: adv.Features,
    attacked: Tensor,
    classes: Mapping[str, list[int]],
    live: Sequence[int],
) -> Table:
    """What moves of each class, and of as many random live features."""
    drawn = {
        f"{name} {i}": chosen
        for name, members in classes.items()
        if name != "dead"  # no live features are like these
        for i, chosen in enumerate(random_features(members, live, _DRAWS, options.seed))
    }
    sets = {**classes, **drawn}
    moved = adv.movement(features, one.images, attacked, sets, options.batch_size)
    rows = []
    for name, members in classes.items():
        rows.append((name, str(len(members)), moved.share(name).text(2)))
        if name == "dead":
            continue
        shares = [moved.share(f"{name} {i}").value for i in range(_DRAWS)]
        spread = Estimate(sum(shares) / _DRAWS, min(shares), max(shares), _DRAWS)
        rows.append((f"{len(members)} random", str(len(members)), spread.text(2)))
    rows.append((RESIDUAL, "", moved.share(RESIDUAL).text(2)))
    return Table(
        f"What moves at {options.site} under PGD at {options.eps[-1]:g}/255",
        ("class", "features", "share of the squared length"),
        rows,
        "Of what each class's change decodes to. Classes that work against each other sum to "
        "more than 1; residual is what no feature explains. Bootstrap intervals; random: as many "
        f"live features, mean of {_DRAWS} draws [lowest, highest].",
    )


def _through(
    options: argparse.Namespace, one: _Choice, features: adv.Features, chosen: Sequence[int],
    live: Sequence[int]
) -> Table:  # fmt: skip
    if not chosen:
        raise BadArgument(f"no feature is {options.name}: give more pairs or another --class")
    (random,) = random_features(chosen, live, 1, options.seed)
    with torch.no_grad():
        parts = [features(some) for some in one.images.split(options.batch_size)]
    codes, normed = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    choose = nearest_text(one.plain.texts, one.plain.scale)
    own = {"steps": options.steps, "seed": options.seed, "batch_size": options.batch_size}
    rows = []
    for name, some in ((options.name, list(chosen)), (f"{len(chosen)} random", random)):
        for eps in options.eps:
            aim = adv.Through(features, some, codes, normed, choose, one.labels)
            found = adv.apgd(aim, one.images, eps / 255, **own)
            wrong = adv.predict(one.plain, found.images, options.batch_size) != one.labels
            told = (proportion(int(x.sum()), len(x)).text(2) for x in (found.reached, wrong))
            rows.append((name, f"{eps:g}/255", *told))
    return Table(
        "Attacks through one class of features: images misread",
        ("features", "radius", "by what they do alone", "by the model"),
        rows,
        "APGD on the loss of the true embedding with these features' codes as the attacked image "
        "has them.",
    )


def _answers(options: argparse.Namespace, host: Host, pairs: Pairs, patch: Patch | None) -> Found:
    """Attacks on what a model answers."""
    speaker = adv.Speaker.of(host, options.question)
    images = speaker.pixels.read([pairs.open(i) for i in range(len(pairs))]).to(options.device)
    rows, last, said = [], images, speaker.say(images)
    own = {"steps": options.steps, "seed": options.seed, "batch_size": options.batch_size}
    for name, attached in (("the model", None), ("behind the patch", patch)):
        if name != "the model" and attached is None:
            continue
        with adv.Defence(name, attached).on(host):
            before = speaker.say(images)
            wanted = [options.target] * len(before) if options.target else before
            ids = speaker.answer_ids(wanted).to(options.device)
            for eps in options.eps:
                aim = adv.Speech(speaker, ids) if options.target else adv.Silence(speaker, ids)
                found = adv.apgd(aim, images, eps / 255, **own)
                hits = proportion(int(found.reached.sum()), len(found.reached)).text(2)
                rows.append((name, f"{eps:g}/255", hits))
                last = found.images if attached is None else last
    now = speaker.say(last)
    what = f"become {options.target!r}" if options.target else "change"
    table = Table(
        f"Answers to {options.question!r} that {what}",
        ("", "radius", "share"),
        rows,
        f"{len(images)} images, APGD on the answer's tokens, 95 % Wilson intervals.",
    )
    cases = [
        Case(pairs.describe(i), images[i].cpu(), last[i].cpu(), said[i], now[i])
        for i in drawn(len(pairs), 12, options.seed)
    ]
    return [table], cases, last, []


def _write(
    out: Path,
    options: argparse.Namespace,
    tables: Sequence[Table],
    cases: Sequence[Case],
    images: Tensor,
    names: Sequence[str],
) -> None:
    given = {k: v for k, v in vars(options).items() if k != "run"}
    told = [
        {"title": t.title, "columns": t.columns, "rows": t.rows, "note": t.note} for t in tables
    ]
    report = {"arguments": given, "read among": list(names), "tables": told}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_text(out / "attack.json", text + "\n", "table")
    folder = make_folder(out / "images")
    for i, pixels in enumerate(images):
        image = to_image(pixels)
        write_bytes(folder / f"{i:05d}.png", packed(partial(image.save, format="PNG")), "image")
    note = (
        f"{len(cases)} images drawn at random with seed {options.seed}, attacked at "
        f"{options.eps[-1]:g}/255 without a patch."
    )
    write_page(out / "index.html", f"{options.model} under attack", cases, tables, note)

"""``vlm-edit attack``: fool a model on a folder, and see what stands behind a patch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Attack
from vlm_edit.cli.choosing import surest
from vlm_edit.cli.host import load_host
from vlm_edit.cli.patching import open_patch
from vlm_edit.cli.subject import Subject, load_pairs
from vlm_edit.cli.writing import expect_free, way_back
from vlm_edit.dictionaries import Dictionary, Transcoder
from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError
from vlm_edit.ground.files import make_folder, packed, replacing, write_bytes, write_text
from vlm_edit.ground.statistics import Estimate, mcnemar, proportion, share_difference
from vlm_edit.host import Host
from vlm_edit.measures.controls import random_features
from vlm_edit.measures.dominance import Dominance
from vlm_edit.measuring import Pairs
from vlm_edit.patches import Patch
from vlm_edit.report import Table
from vlm_edit.selection import Chosen
from vlm_edit.tasks import adversarial as adv

_FILES = ("attack.json", "images", "index.html")
_HUGE = 64 / 255
_DRAWS = 5  # of as many random features beside the classes
_MOST = 50  # features of a class
_KINDS = ("vision", "language", "cross")


def attack(options: Attack) -> int:
    """Attack a model on a folder of images, and write what came of it."""
    _expect_consistent(options)
    out = Path(options.out)
    expect_free([out / name for name in _FILES], options.overwrite, "name a folder with --out")
    way_back(options.back, out)  # before anything long begins
    pairs = load_pairs(options.pairs, options.columns())
    numbers = adv.drawn(len(pairs), options.most, options.seed)
    pairs, left_out = pairs.select(numbers).readable()
    if not len(pairs):
        raise VlmEditError(f"not one of {len(left_out)} images can be read: {left_out[0][1]}")
    patch = None if options.patch is None else open_patch(options.patch)
    host = load_host(options.model, options)
    make_folder(out)
    if options.question is not None:
        done = _answers(options, options.question, host, pairs, patch)
    else:
        done = _choices(options, host, pairs, patch)
    telling.table(*done.tables)
    telling.left_out([(numbers[i], why) for i, why in left_out], 0)
    with replacing(out, _FILES) as new:
        _write(new, options, done)
    print()
    telling.wrote("page", out / "index.html")
    telling.wrote("images", out / "images")
    return 0


def _expect_consistent(options: Attack) -> None:
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


@dataclass(eq=False)
class _Choice:
    """Images, the classes they may be taken for, and the right one."""

    plain: adv.ZeroShot
    images: Tensor
    labels: Tensor
    names: Sequence[str]


def _choice(options: Attack, host: Host, pairs: Pairs) -> _Choice:
    own, prompt = list(pairs.texts), "{}"
    if options.label:
        if options.label not in pairs.columns:
            raise UnknownName(
                f"{pairs.name} has no column {options.label!r}: it has "
                f"{', '.join(pairs.columns) or 'none'}"
            )
        own, prompt = list(pairs.columns[options.label]), options.label_prompt
    more = Path(options.labels).read_text("utf-8").splitlines() if options.labels else []
    names = sorted({*own, *(line.strip() for line in more if line.strip())})
    if options.target and options.target not in names:
        names.append(options.target)
    if len(names) < 2:
        raise BadArgument(f"all images are {names}: give other classes with --labels")
    if "{}" not in prompt:
        raise VlmEditError(f"--label-prompt {prompt!r} has no {{}} where the label goes")
    plain = adv.ZeroShot.of(host, [prompt.format(name) for name in names])
    images = plain.host.pixels.read([pairs.open(i) for i in range(len(pairs))])
    labels = torch.tensor([names.index(name) for name in own])
    return _Choice(plain, images.to(host.device), labels.to(host.device), names)


@dataclass(eq=False)
class _Done:
    """What is told and written, the attacked images, and what they may be taken for."""

    tables: list[Table]
    cases: list[adv.Case]
    images: Tensor
    names: Sequence[str] = ()


def _choices(options: Attack, host: Host, pairs: Pairs, patch: Patch | None) -> _Done:
    """Attack the choice among texts."""
    one = _choice(options, host, pairs)
    among = _among(one, options)
    tables = [_standing(_stood(one, options, host, pairs, patch), len(pairs), among)]
    if options.target:
        tables.append(_targeted(one, options, options.target, among))
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
    shown = adv.drawn(len(pairs), 12, options.seed)
    cases = [
        adv.Case(pairs.describe(i), one.images[i].cpu(), attacked[i].cpu(),
             one.names[int(was[i])], one.names[int(now[i])], moved[i])
        for i in shown
    ]  # fmt: skip
    return _Done(tables, cases, attacked, one.names)


def _stood(
    one: _Choice, options: Attack, host: Host, pairs: Pairs, patch: Patch | None
) -> dict[str, dict[str, Any]]:
    """Attack the model, and through the patch if there is one."""
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
    return stood


def _stand(
    one: _Choice,
    classifier: adv.ZeroShot,
    options: Attack,
    strength: adv.Strength,
    bare: adv.Bare | None = None,
) -> dict[str, Any]:
    """Tell what stands at each radius, and what suggests that gradients are masked."""
    radii = [eps / 255 for eps in options.eps]
    stood = [
        adv.withstand(classifier, one.images, one.labels, radius, strength, surrogate=bare)
        for radius in radii
    ]
    quick = adv.Strength(options.steps, queries=0, batch_size=options.batch_size)
    huge = adv.withstand(classifier, one.images, one.labels, _HUGE, quick)
    return {"stood": stood, "signs": adv.suspicions(stood, huge)}


def _among(one: _Choice, options: Attack) -> str:
    """Tell which texts an image may be taken for: the more, the easier it is misread."""
    whose = f"the {len(one.labels)} images drawn have" if options.label else "of the images drawn"
    own = f"labels that {whose}" if options.label else f"texts {whose}"
    more = [f"those of {options.labels}"] if options.labels else []
    more += [f"{options.target!r}"] if options.target else []
    return f"Read among {len(one.names)} texts: {' and '.join([own, *more])}."


def _standing(sides: Mapping[str, dict[str, Any]], n: int, among: str) -> Table:
    attacks = list(dict.fromkeys(k for f in sides.values() for s in f["stood"] for k in s.after))
    rows = [
        (name, f"{s.eps * 255:g}/255",
         *(s.after[a].text(2) if a in s.after else "" for a in attacks))
        for name, f in sides.items() for s in f["stood"]
    ]  # fmt: skip
    signs = "; ".join(f"{k}: {'; '.join(f['signs']) or 'none'}" for k, f in sides.items())
    apart = _apart(*(f["stood"] for f in sides.values())) if len(sides) == 2 else ""
    return Table(
        "Images that are still read rightly, attack after attack",
        ("", "radius", *attacks),
        rows,
        f"{n} images, l-inf, 95 % Wilson intervals. {among} Each attack meets only what stood the "
        f"ones before, so the last column counts. Signs of masked gradients: {signs}.{apart}",
    )


def _apart(bare: Sequence[adv.Stood], behind: Sequence[adv.Stood]) -> str:
    """Tell which of the same images a patch holds and loses, at each radius."""
    counts = [
        f"{one.eps * 255:g}/255: {mcnemar(two.standing.cpu(), one.standing.cpu())}"
        for one, two in zip(bare, behind, strict=True)
    ]
    return (
        "\nImages that stand behind the patch alone, and without it alone, with the p of "
        f"McNemar's exact test: {'; '.join(counts)}."
    )


def _apgd(options: Attack, aim: Any, images: Tensor, eps: float) -> adv.Attacked:
    return adv.apgd(
        aim, images, eps / 255,
        steps=options.steps, seed=options.seed, batch_size=options.batch_size,
    )  # fmt: skip


def _targeted(one: _Choice, options: Attack, target: str, among: str) -> Table:
    aim = adv.Targeted(one.plain, torch.full_like(one.labels, one.names.index(target)))
    rows = []
    for eps in options.eps:
        reached = _apgd(options, aim, one.images, eps).reached
        rows.append((f"{eps:g}/255", proportion(int(reached.sum()), len(reached)).text(2)))
    return Table(f"Images taken for {target!r}", ("radius", "share"), rows, f"APGD. {among}")


def _features(
    options: Attack, host: Host, one: _Choice, attacked: Tensor
) -> tuple[list[Table], list[list[tuple[str, float]]]]:
    """Tell which features the attack moves and, if a class is named, attacks through it alone."""
    subject = Subject.load(options, host)
    loaded = subject.expect_dictionary()
    if isinstance(loaded, Transcoder):
        raise BadArgument("attacks on features are on the image tower's own, not on a transcoder's")
    dictionary = loaded if isinstance(loaded, Dictionary) else loaded.of("image")
    features = adv.Features(one.plain.host, dictionary, options.site)
    dominance = subject.measure(progress=False)[0].dominance
    classes = _equal(dominance)
    live = (~dominance.dead).nonzero().flatten().tolist()
    tables = [_movements(options, one, features, attacked, classes, live)]
    if options.name:
        tables.append(_through(options, options.name, one, features, classes, live))
    return tables, adv.most_moved(features, one.images, attacked, dominance.classes())


def _equal(dominance: Dominance) -> dict[str, Chosen]:
    """Choose as many features of each class, the surest first: more move more of anything."""
    candidates = {kind: surest(dominance, kind, _MOST) for kind in _KINDS}
    count = min((len(some) for some in candidates.values() if some), default=0)
    return {kind: surest(dominance, kind, count) for kind, some in candidates.items() if some}


def _movements(
    options: Attack,
    one: _Choice,
    features: adv.Features,
    attacked: Tensor,
    classes: Mapping[str, Chosen],
    live: Sequence[int],
) -> Table:
    """Tell what moves of each class, and of as many random live features."""
    count = min(map(len, classes.values()), default=0)
    drawn = random_features(range(count), live, _DRAWS, options.seed) if count else []
    random = {f"random {i}": chosen for i, chosen in enumerate(drawn)}
    sets: dict[str, Sequence[int]] = {**classes, **random}
    moved = adv.movement(features, one.images, attacked, sets, options.batch_size)
    rows = [
        (name, f"{len(members)} ({members.proven})", moved.share(name).text(2),
         moved.beyond(name, list(random)).text(2))
        for name, members in classes.items()
    ]  # fmt: skip
    if random:
        shares = [moved.share(name).value for name in random]
        spread = Estimate(sum(shares) / _DRAWS, min(shares), max(shares), _DRAWS)
        rows.append(("random", str(count), spread.text(2), ""))
    rows.append((adv.RESIDUAL, "", moved.share(adv.RESIDUAL).text(2), ""))
    return Table(
        f"What moves at {options.site} under PGD at {options.eps[-1]:g}/255",
        ("class", "features (proven)", "share of the squared length", "beyond random"),
        rows,
        "Of what each class's change decodes to: as many features of each, the surest first; "
        "proven: how many of them\nhave the label by their intervals. Classes that work against "
        "each other sum to more than 1; residual is what no\nfeature explains. Random: as many "
        f"live features, mean of {_DRAWS} draws [lowest, highest]; beyond random: image by image,\n"
        "95 % interval over images and draws.",
    )


def _through(
    options: Attack, name: str, one: _Choice, features: adv.Features,
    classes: Mapping[str, Chosen], live: Sequence[int]
) -> Table:  # fmt: skip
    """Attack through a class alone, and through as many random features."""
    chosen = classes.get(name)
    if not chosen:
        raise BadArgument(f"no feature is {name}: give more pairs or another --class")
    (random,) = random_features(chosen, live, 1, options.seed)
    with torch.no_grad():
        parts = [features(some) for some in one.images.split(options.batch_size)]
    codes, normed = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    choose = adv.nearest_text(one.plain.texts, one.plain.scale)
    rows, misread = [], {}
    for title, some in ((name, chosen), (f"{len(chosen)} random", random)):
        for eps in options.eps:
            aim = adv.Through(features, some, codes, normed, choose, one.labels)
            attacked = _apgd(options, aim, one.images, eps)
            wrong = adv.predict(one.plain, attacked.images, options.batch_size) != one.labels
            misread[title, eps] = attacked.reached.cpu(), wrong.cpu()
            shares = (proportion(int(x.sum()), len(x)).text(2) for x in misread[title, eps])
            rows.append((title, f"{eps:g}/255", *shares))
    for eps in options.eps:
        sides = zip(misread[name, eps], misread[f"{len(chosen)} random", eps], strict=True)
        told = (f"{share_difference(*x).text(2)}; {mcnemar(*x)}" for x in sides)
        rows.append((f"{name} less random", f"{eps:g}/255", *told))
    return Table(
        "Attacks through one class of features: images misread",
        ("features", "radius", "by what they do alone", "by the model"),
        rows,
        "APGD on the loss of the true embedding with these features' codes as the attacked image "
        f"has them.\n{chosen}. Less random: of the same images, 95 % interval, and how many only\n"
        "the one and only the other misleads, with p by McNemar's exact test.",
    )


def _answers(
    options: Attack, question: str, host: Host, pairs: Pairs, patch: Patch | None
) -> _Done:
    """Attack what a model answers."""
    speaker = adv.Speaker.of(host, question)
    images = speaker.pixels.read([pairs.open(i) for i in range(len(pairs))]).to(host.device)
    rows, last, said = [], images, speaker.say(images)
    for name, attached in (("the model", None), ("behind the patch", patch)):
        if name != "the model" and attached is None:
            continue
        with adv.Defence(name, attached).on(host):
            before = speaker.say(images)
            wanted = [options.target] * len(before) if options.target else before
            ids = speaker.answer_ids(wanted).to(host.device)
            for eps in options.eps:
                aim = adv.Speech(speaker, ids) if options.target else adv.Silence(speaker, ids)
                attacked = _apgd(options, aim, images, eps)
                hits = proportion(int(attacked.reached.sum()), len(attacked.reached)).text(2)
                rows.append((name, f"{eps:g}/255", hits))
                last = attacked.images if attached is None else last
    now = speaker.say(last)
    what = f"become {options.target!r}" if options.target else "change"
    table = Table(
        f"Answers to {question!r} that {what}",
        ("", "radius", "share"),
        rows,
        f"{len(images)} images, APGD on the answer's tokens, 95 % Wilson intervals.",
    )
    cases = [
        adv.Case(pairs.describe(i), images[i].cpu(), last[i].cpu(), said[i], now[i])
        for i in adv.drawn(len(pairs), 12, options.seed)
    ]
    return _Done([table], cases, last)


def _write(out: Path, options: Attack, done: _Done) -> None:
    tables = [
        {"title": t.title, "columns": t.columns, "rows": t.rows, "note": t.note}
        for t in done.tables
    ]
    report = {"arguments": vars(options), "read among": list(done.names), "tables": tables}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_text(out / "attack.json", text + "\n", "table")
    folder = make_folder(out / "images")
    for i, pixels in enumerate(done.images):
        image = adv.to_image(pixels)
        write_bytes(folder / f"{i:05d}.png", packed(partial(image.save, format="PNG")), "image")
    note = (
        f"{len(done.cases)} images drawn at random with seed {options.seed}, attacked at "
        f"{options.eps[-1]:g}/255 without a patch."
    )
    title = f"{options.model} under attack"
    back = way_back(options.back, out)
    adv.write_page(out / "index.html", title, done.cases, done.tables, note, back=back)

"""Defences, and what is left of them when the attacker knows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit import hooks
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import Estimate, proportion
from vlm_edit.hooks import Tokens
from vlm_edit.host import Host, Model
from vlm_edit.patches import Attachment, Patch
from vlm_edit.tasks.adversarial.apgd import apgd
from vlm_edit.tasks.adversarial.attacks import Attacked, pgd
from vlm_edit.tasks.adversarial.black_box import square
from vlm_edit.tasks.adversarial.host import Classifier, ZeroShot
from vlm_edit.tasks.adversarial.losses import Untargeted

_MORE = 5  # times as many steps, and as many starts, to see whether an attack was strong enough


@dataclass(frozen=True, eq=False)
class Bare:
    """A choice as the host makes it without a patch that is attached to it.

    Attributes:
        choice: Made while no patch was attached.
        attachment: Of the patch, which rests meanwhile.
    """

    choice: Classifier
    attachment: Attachment

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [n, c] of images [n, 3, h, w] in [0, 1]; differentiable."""
        with self.attachment.paused():
            return self.choice(images)


@dataclass(frozen=True, eq=False)
class Defence:
    """What stands between an image and the choice among texts.

    Attributes:
        name: As tables show it.
        patch: Attached while it is in force; None for none.
        edits: By site, what no rule says: hidden states to hidden states, differentiable.
        before: Images to images, differentiable (a straight-through gradient will do).
        samples: Draws of ``before`` whose logits are averaged; above 1 it counts as random.
        centre: [d], the mean of true images' embeddings of length 1, taken from image and, as
            their own mean, from texts; None for none.
    """

    name: str
    patch: Patch | None = None
    edits: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    before: Callable[[Tensor], Tensor] | None = None
    samples: int = 1
    centre: Tensor | None = None

    @property
    def random(self) -> bool:
        """Whether two answers about one image may differ."""
        return self.samples > 1

    @contextmanager
    def on(self, host: Host | Model) -> Iterator[Attachment | None]:
        """Keep it in force while the block runs; yield its patch's attachment, if it has one."""
        host = Host.of(host)
        handles: list[Any] = []
        attachment = None
        try:
            for site, edit in self.edits.items():

                def change(hidden: Tensor, tokens: Tokens, edit: Any = edit) -> Tensor:
                    changed: Tensor = hidden if tokens.stream == "text" else edit(hidden)
                    return changed

                handles.append(hooks.attach(host, host.site(site), change))
            if self.patch is not None:
                attachment = self.patch.attach(host)
                handles.append(attachment)
            yield attachment
        finally:
            for handle in reversed(handles):
                handle.remove()

    def classifier(self, plain: ZeroShot, texts: Tensor | None = None) -> Classifier:
        """Return what takes images to logits, with everything that is done outside of the host.

        Args:
            plain: The choice without a defence.
            texts: [c, d], as the host embeds them with the patch; by default ``plain``'s.
        """
        texts = plain.texts if texts is None else texts
        if self.centre is not None:
            texts = F.normalize(texts - texts.mean(0), dim=1)
        return Defended(replace(plain, texts=texts, centre=self.centre), self.before, self.samples)


@dataclass(frozen=True, eq=False)
class Defended:
    """A choice whose images go through something first, several times if that is random."""

    choose: ZeroShot
    before: Callable[[Tensor], Tensor] | None = None
    samples: int = 1

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [n, c]; their mean over samples."""
        if self.before is None:
            return self.choose(images)
        copies = self.before(images.repeat_interleave(self.samples, dim=0))
        logits: Tensor = self.choose(copies).unflatten(0, (-1, self.samples)).mean(1)
        return logits


@dataclass(frozen=True)
class Strength:
    """How hard a defence is attacked.

    Attributes:
        steps: Of PGD and of each APGD.
        restarts: Starts of PGD.
        queries: Of Square Attack, on images that stand the others; 0 for none.
        more: Whether to try five times as many steps from as many starts in the end.
        seed: Of the starts.
        batch_size: Images at once.
    """

    steps: int = 40
    restarts: int = 1
    queries: int = 300
    more: bool = False
    seed: int = 0
    batch_size: int = 512


@dataclass(frozen=True, eq=False)
class Stood:
    """What stands at one radius.

    Attributes:
        eps: The radius.
        after: Share of images still right after each attack, in the order they were made; each
            meets only what stood the ones before. The last is the robust accuracy.
        standing: [n] bool.
        images: [n, 3, h, w], the attacked ones; those that stand as the last attack left them.
        curve: Mean loss at each step of plain PGD.
    """

    eps: float
    after: Mapping[str, Estimate]
    standing: Tensor
    images: Tensor
    curve: Tensor

    @property
    def robust(self) -> Estimate:
        """Return the share of images right whatever was tried."""
        return list(self.after.values())[-1]

    def broken_by(self, name: str) -> tuple[int, int]:
        """Count the images that an attack broke, and those that stood the ones before it."""
        names = list(self.after)
        place = names.index(name)
        counts = [round(e.value * e.n) for e in self.after.values()]
        return counts[place - 1] - counts[place], counts[place - 1]


def withstand(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    eps: float,
    strength: Strength = Strength(),  # noqa: B008
    *,
    random: bool = False,
    surrogate: Classifier | None = None,
    transfer: Tensor | None = None,
) -> Stood:
    """Attack a defence by everything, through the defence, one attack after the other.

    PGD and APGD with cross-entropy and DLR take the defence's own gradient. Then come attacks
    that do not need it, and that must break next to nothing unless it is masked (Athalye et al.
    2018): those along the undefended host's gradient, images that fool the undefended host, and
    Square Attack; last, if asked for, five times as many steps and starts.

    Args:
        classifier: With the defence in force.
        images: [n, 3, h, w] in [0, 1].
        labels: [n].
        eps: l-inf radius.
        strength: How hard.
        random: Whether answers differ from draw to draw: then attacks do not stop at a lucky
            draw, and what stands is drawn anew.
        surrogate: The host without the defence.
        transfer: [n, 3, h, w], images that fool it at this radius.

    Raises:
        VlmEditError: Labels of other images, or as ``pgd``.
    """
    if len(labels) != len(images):
        raise BadArgument(f"{len(images)} images but {len(labels)} labels")
    trial = _Trial(classifier, images, labels, eps, strength, random)
    trial.note("clean", images)
    curve = trial.climb("PGD")
    trial.auto("APGD-CE", "ce")
    if not random and _classes(classifier, images) >= 3:
        trial.auto("APGD-DLR", "dlr")
    if surrogate is not None:
        trial.climb("surrogate", guide=surrogate)
    if transfer is not None:
        trial.note("transfer", transfer)
    if strength.queries:
        trial.search("Square")
    if strength.more:
        trial.auto("more", "ce", more=_MORE)
    after = {name: proportion(k, len(images)) for name, k in trial.left.items()}
    return Stood(eps, after, trial.standing, trial.images, curve)


@dataclass(eq=False)
class _Trial:
    """One defence at one radius: which images stand so far."""

    classifier: Classifier
    true: Tensor
    labels: Tensor
    eps: float
    strength: Strength
    random: bool
    images: Tensor = field(init=False)
    standing: Tensor = field(init=False)
    left: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = self.true.clone()
        self.standing = torch.ones_like(self.labels, dtype=torch.bool)

    def note(self, name: str, images: Tensor) -> None:
        """Note what stands these images, of what stood so far."""
        rows = self.standing.nonzero()[:, 0]
        right = predict(self.classifier, images[rows], self.strength.batch_size)
        self.images[rows] = images[rows]
        self.standing[rows] = right == self.labels[rows]
        self.left[name] = int(self.standing.sum())

    def climb(self, name: str, guide: Classifier | None = None) -> Tensor:
        """Attack by PGD, along the surrogate's gradient if there is one."""
        follow = None if guide is None else Untargeted(guide, self._labels())
        return self._run(
            name,
            "ce",
            lambda aim, x: pgd(
                aim,
                x,
                self.eps,
                steps=self.strength.steps,
                restarts=self.strength.restarts,
                keep="last" if self.random else "best",
                guide=follow,
                **self._common(),
            ),
        )

    def auto(self, name: str, loss: Any, more: int = 1) -> None:
        """Attack by APGD, with so many times the steps."""
        s = self.strength
        self._run(
            name,
            loss,
            lambda aim, x: apgd(
                self._blind(aim),
                x,
                self.eps,
                steps=s.steps * more,
                restarts=more,
                seed=s.seed + more,
                batch_size=s.batch_size,
            ),
        )

    def search(self, name: str) -> None:
        """Attack by Square Attack, without gradients."""
        queries = self.strength.queries
        self._run(
            name,
            "margin",
            lambda aim, x: square(self._blind(aim), x, self.eps, queries=queries, **self._common()),
        )

    def _run(self, name: str, loss: Any, attack: Callable[[Any, Tensor], Attacked]) -> Tensor:
        rows = self.standing.nonzero()[:, 0]
        if not len(rows):
            self.left[name] = 0
            return torch.zeros(1)
        aim = Untargeted(self.classifier, self.labels[rows], loss)
        outcome = attack(aim, self.true[rows])
        whole = self.images.clone()
        whole[rows] = outcome.images
        self.note(name, whole)
        return outcome.curve

    def _labels(self) -> Tensor:
        return self.labels[self.standing]

    def _common(self) -> dict[str, Any]:
        return {"seed": self.strength.seed, "batch_size": self.strength.batch_size}

    def _blind(self, aim: Any) -> Any:
        """Return an aim that does not stop at a lucky draw."""
        if not self.random:
            return aim

        def never(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            loss, reached = aim(images, rows)
            return loss, torch.zeros_like(reached)

        return never


def fooling(
    classifier: Classifier, images: Tensor, labels: Tensor, eps: float, **options: Any
) -> Tensor:
    """Make images that fool a classifier as surely as can be, to be tried on another; by PGD.

    An attack that stops once it has succeeded stays at the border, and carries over badly.

    Args:
        classifier: The one to be fooled.
        images: [n, 3, h, w].
        labels: [n].
        eps: l-inf radius.
        **options: For ``pgd``.

    Returns:
        [n, 3, h, w].
    """
    aim = Untargeted(classifier, labels)
    return pgd(aim, images, eps, **{"keep": "last", **options}).images


@torch.no_grad()
def predict(classifier: Classifier, images: Tensor, batch_size: int = 512) -> Tensor:
    """Return the class chosen for each image, [n]."""
    if not len(images):
        return torch.zeros(0, dtype=torch.long, device=images.device)
    return torch.cat([classifier(some).argmax(1) for some in images.split(batch_size)])


def _classes(classifier: Classifier, images: Tensor) -> int:
    with torch.no_grad():
        return int(classifier(images[:1]).shape[1])


def suspicions(stood: Sequence[Stood], huge: Stood | None = None, share: float = 0.05) -> list[str]:
    """List what suggests that a defence's gradients are masked; none is not a proof.

    Args:
        stood: At rising radii.
        huge: At a radius such as 64 / 255, at which no image may stand.
        share: Of all images that attacks without the defence's gradient, or stronger ones, may
            break beyond plain ones.

    Returns:
        A sentence for each sign.
    """
    signs = []
    for one in stood:
        at = f"at {one.eps * 255:g}/255"
        if len(one.curve) > 1 and not float(one.curve[-1]) > float(one.curve[0]):
            signs.append(f"{at} the loss does not rise along PGD's steps")
        for name in ("surrogate", "transfer", "Square", "more"):
            if name in one.after:
                broken, _ = one.broken_by(name)
                n = one.after[name].n
                if broken > share * n:
                    signs.append(f"{at} {name} breaks {broken} of {n} images more")
    rates = [one.robust.value for one in stood]
    if any(b > a + share for a, b in zip(rates, rates[1:], strict=False)):
        signs.append("a larger radius breaks fewer images")
    if huge is not None and huge.robust.value > share:
        signs.append(f"{huge.robust.value:.0%} stand at {huge.eps * 255:g}/255")
    return signs

"""Simple ways to lessen bias that need no dictionary: what features have to beat.

All but ``bend`` are patches of the joint embedding, to be attached, saved and baked like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import Dictionary, Encoder
from vlm_edit.edits import Ablate, Project, Scale, Steer
from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.hooks import TokenChoice
from vlm_edit.patches import Patch
from vlm_edit.tasks.bias.study import Study

SITE = "joint"


def directions(rows: Tensor) -> Dictionary:
    """Make a dictionary whose features are given directions; the code is the part along each.

    Args:
        rows: [r, d].

    Raises:
        VlmEditError: Not [r, d], or a row without a length.

    Example:
        >>> import torch
        >>> directions(torch.tensor([[0.0, 2.0]])).encode(torch.tensor([[3.0, 5.0]]))
        tensor([[5.]])
    """
    if rows.ndim != 2 or not len(rows) or not bool((rows.norm(dim=1) > 0).all()):
        raise BadArgument(
            f"directions are rows [r, d] that are not 0, got {tuple(rows.shape)} with lengths "
            f"{rows.norm(dim=-1).tolist()}"
        )
    unit = F.normalize(rows.float(), dim=1)
    encoder = Encoder(unit.mT.contiguous(), torch.zeros(len(unit)), "identity")
    return Dictionary(encoder, unit, torch.zeros(unit.shape[1]))


def project_out(rows: Tensor, tokens: TokenChoice = "all", site: str = SITE) -> Patch:
    """Make the patch that takes the span of given directions out of activations.

    Args:
        rows: [r, d].
        tokens: ``image`` or ``text`` for one side only.
        site: Where.

    Raises:
        VlmEditError: As ``directions``.

    Example:
        >>> import torch
        >>> len(project_out(torch.eye(3)[:2]).bindings)
        1
    """
    return Patch(site, directions(rows), Project(range(len(rows))), tokens)


def prompt_difference(study: Study, tokens: TokenChoice = "all") -> Patch:
    """Project out what tells the prompts of the values apart (Chuang et al. 2023, section 3).

    One direction for each value but the first: its mean prompt less the first's. The paper takes
    the span of the prompts themselves, which takes the word for a person along.

    Args:
        study: With the prompts' embeddings.
        tokens: ``text`` for texts only, as in the paper.
    """
    means = [
        F.normalize(study.embedded(list(prompts)), dim=1).mean(0)
        for prompts in study.questions.classes.values()
    ]
    return project_out(torch.stack(means[1:]) - means[0], tokens)


def calibrated_projection(
    study: Study, weight: float = 1000.0, tokens: TokenChoice = "text"
) -> Patch:
    """Project prompts out, calibrated on pairs of texts (Chuang et al. 2023, equation 7).

    ``P = P0 (I + weight / |S| sum over pairs in S of (zi - zj)(zi - zj)')^-1``: P0 projects the
    span of the values' prompts out, and pairs are the questions' variants, one text naming two
    values.

    Args:
        study: With the embeddings of prompts and variants.
        weight: Of the pairs; 1000 in the authors' code.
        tokens: ``text`` as in the paper, or ``all``.

    Raises:
        VlmEditError: The questions have no variants.
    """
    pairs = [
        study.embedded([texts[a], texts[b]])
        for texts in study.questions.variants.values()
        for a, b in combinations(texts, 2)
    ]
    if not pairs:
        raise BadArgument("the calibrated projection works on pairs: give Questions variants")
    gaps = torch.stack([a - b for a, b in (F.normalize(pair, dim=1) for pair in pairs)]).double()
    _, sizes, basis = torch.linalg.svd(gaps, full_matrices=False)
    large = sizes > sizes.max() * 1e-6
    factors = 1 / (1 + weight / len(gaps) * sizes[large].square())
    rules = [Scale([k], float(factor)) for k, factor in enumerate(factors)]
    shrink = Patch(SITE, directions(basis[large].float()), rules, tokens)
    prompts = [text for texts in study.questions.classes.values() for text in texts]
    return shrink + project_out(F.normalize(study.embedded(prompts), dim=1), tokens)


def difference_in_means(
    study: Study, streams: Sequence[str] = ("image",), tokens: TokenChoice = "all"
) -> Patch:
    """Project out the difference of the groups' mean embeddings.

    Args:
        study: Of images that may be learned from.
        streams: ``image``, ``text`` (the images' captions) or both: one set of directions each.
        tokens: What is edited.

    Raises:
        VlmEditError: A stream of another name.
    """
    rows = []
    for stream in streams:
        if stream not in ("image", "text"):
            raise BadArgument(f"stream is {stream!r}: use 'image' and 'text'")
        means = group_means(study, stream)
        rows.append(torch.stack(means[1:]) - means[0])
    return project_out(torch.cat(rows), tokens)


def difference_components(study: Study, by: str, count: int, tokens: TokenChoice = "all") -> Patch:
    """Project out the main directions in which images of two groups differ, all else being alike.

    Differences of the groups' means are taken within each value of a column, and their first
    principal directions, uncentred, are projected out (Bolukbasi et al. 2016, section 5.1).

    Args:
        study: Of images that may be learned from.
        by: Column such as ``concept``: values with one group only are left out.
        count: Directions.
        tokens: What is edited.

    Raises:
        VlmEditError: No such column, or fewer differences than directions.
    """
    if by not in study.pairs.columns:
        raise UnknownName(f"{study.pairs.name} has no column {by!r}")
    image, column = F.normalize(study.image, dim=1), study.pairs.columns[by]
    rows = []
    for value in sorted(set(column)):
        members = [
            [i for i in study.told_apart if column[i] == value and study.groups[i] == group]
            for group in study.questions.values
        ]
        means = [image[m].mean(0) for m in members if m]
        rows += [mean - means[0] for mean in means[1:]]
    if len(rows) < count:
        raise BadArgument(f"{len(rows)} differences by {by!r} have no {count} directions")
    basis = torch.linalg.svd(torch.stack(rows), full_matrices=False)[2]
    return project_out(basis[:count], tokens)


def nullspace(study: Study, count: int, ridge: float = 1e-2, tokens: TokenChoice = "all") -> Patch:
    """Project out linear probes' directions, one after the other: iterative null-space projection.

    Each probe is a ridge regression on what the ones before left (Ravfogel et al. 2020).

    Args:
        study: Of images that may be learned from; of two values.
        count: Probes.
        ridge: Penalty, as a share of the mean variance.
        tokens: What is edited.

    Raises:
        VlmEditError: Another number of values than two.
    """
    if len(study.questions.values) != 2:
        raise BadArgument(f"null-space projection is of two values, got {study.questions.values}")
    x = F.normalize(study.image[study.told_apart], dim=1).double()
    x = x - x.mean(0)
    sign = [1.0 if g == study.questions.values[0] else -1.0 for g in study.asked_groups]
    y = torch.tensor(sign, dtype=torch.float64)
    rows = []
    for _ in range(count):
        gram = x.mT @ x
        penalty = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        probe = F.normalize(torch.linalg.solve(gram + penalty, x.mT @ (y - y.mean())), dim=0)
        rows.append(probe)
        x = x - (x @ probe)[:, None] * probe
    return project_out(torch.stack(rows).float(), tokens)


def least_squares_erasure(
    study: Study, shrinkage: float = 0.1, tokens: TokenChoice = "all"
) -> Patch:
    """Erase groups by LEACE (Belrose et al. 2023).

    This is the least change after which no linear probe tells the groups:
    ``x' = x - W^-1 P W (x - mean)``, W whitening the images' normalised embeddings and P the
    projection on the whitened differences of the groups' means. With fewer images than
    dimensions the covariance is shrunk toward a sphere, and the promise holds for the images
    learned from as far as that allows.

    Args:
        study: Of images that may be learned from.
        shrinkage: Share of the sphere in the covariance.
        tokens: What is edited.

    Raises:
        VlmEditError: A share outside of 0 to 1.
    """
    if not 0 <= shrinkage <= 1:
        raise BadArgument(f"shrinkage is {shrinkage}: it is a share between 0 and 1")
    x = F.normalize(study.image[study.told_apart], dim=1).double()
    mean = x.mean(0)
    gram = (x - mean).mT @ (x - mean) / len(x)
    sphere = torch.eye(len(gram), dtype=gram.dtype) * gram.diagonal().mean()
    sizes, basis = torch.linalg.eigh((1 - shrinkage) * gram + shrinkage * sphere)
    roots = sizes.clamp_min(sizes.max() * 1e-9).sqrt()
    whiten, unwhiten = basis / roots @ basis.mT, basis * roots @ basis.mT
    means = group_means(study, "image")
    gaps = (torch.stack(means[1:]) - means[0]).double() @ whiten
    rows = torch.linalg.svd(gaps, full_matrices=False)[2]
    scale = len(mean) ** 0.5  # the dictionary's norm gives embeddings this length
    encoder = Encoder(
        (whiten @ rows.mT).float().contiguous(),
        torch.zeros(len(rows)),
        "identity",
        subtract=(mean * scale).float(),
        norm="constant_norm_rescale",
    )
    dictionary = Dictionary(encoder, (rows @ unwhiten).float(), torch.zeros(len(mean)))
    return Patch(SITE, dictionary, Ablate(range(len(rows))), tokens)


def modality_centring(study: Study) -> Patch:
    """Subtract each modality's mean embedding: images and captions then have the same.

    It knows nothing of groups.

    Args:
        study: Of images and captions that may be learned from.
    """
    parts = []
    for stream, x in (("image", study.image), ("text", study.caption)):
        mean = x.mean(0)
        tokens: TokenChoice = "image" if stream == "image" else "text"
        parts.append(Patch(SITE, directions(mean[None]), Steer([0], -float(mean.norm())), tokens))
    return parts[0] + parts[1]


def bend(study: Study, reference: Study, nearest: int = 20) -> Study:
    """Debias each query at test time: BEND-VLM (Gerych et al. 2024).

    For every query with variants: what tells its variants apart is projected out of it (its own
    subspace, unlike one for all queries); then it is moved, as little as possible, to where the
    ``nearest`` reference images of every group are as similar to it on average. Images stay. Of
    equal mean similarities the nearest unit vector is the projection on what is orthogonal to the
    differences of the groups' mean reference embeddings, at unit length.

    Args:
        study: To be debiased.
        reference: Images of known groups, which are not tested on.
        nearest: Reference images of each group, those most similar to the query.

    Returns:
        The study with other embeddings of the texts that have variants.

    Raises:
        VlmEditError: The questions have no variants.
    """
    variants = study.questions.variants
    if not variants:
        raise BadArgument("BEND-VLM augments queries: give Questions variants that name groups")
    images = {
        group: F.normalize(
            reference.image[[i for i, g in enumerate(reference.groups) if g == group]]
        )
        for group in study.questions.values
    }
    place = {text: i for i, text in enumerate(study.questions.texts())}
    text = study.text.clone()
    for query, wordings in variants.items():
        if query not in place:
            continue
        z = F.normalize(study.text[place[query]], dim=0)
        own = F.normalize(study.embedded(list(wordings.values())), dim=1)
        z = F.normalize(_without(z, own[1:] - own[0]), dim=0)
        text[place[query]] = _equalised(z, images, nearest)
    return replace(study, text=text)


def group_means(study: Study, stream: str) -> list[Tensor]:
    """Return the mean normalised embedding of each value's images or captions, [d] each."""
    x = F.normalize(study.image if stream == "image" else study.caption, dim=1)
    return [
        x[[i for i, group in enumerate(study.groups) if group == value]].mean(0)
        for value in study.questions.values
    ]


def _equalised(z: Tensor, images: Mapping[str, Tensor], nearest: int) -> Tensor:
    """Return the unit vector nearest to z that is as similar to every group's nearest images."""
    means = [x[(x @ z).topk(min(nearest, len(x))).indices].mean(0) for x in images.values()]
    return F.normalize(_without(z, torch.stack(means[1:]) - means[0]), dim=0)


def _without(z: Tensor, rows: Tensor) -> Tensor:
    """Return what is left of z without its part in the span of rows."""
    project = Project(range(len(rows)))
    rest: Tensor = z + project.move(z, None, project.prepare(rows))
    return rest

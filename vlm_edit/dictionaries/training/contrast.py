"""A non-negative contrastive head while it is trained, and the decoder it gets afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.distributed import gathered, joined, total, world
from vlm_edit.dictionaries.training.objective import Figures
from vlm_edit.ground.errors import BadArgument, VlmEditError

# Codes shorter than this are divided by it instead of by their length: at a code of zeros, which
# the backward of GELU still moves, the gradient would otherwise be without bound.
_SHORT = 1e-2

# Codes held at once while a decoder is fitted: 128 MiB of float64.
_CODES = 1 << 24


class Contrast(nn.Module):
    """Weights and loss of ``ncl``; its forward is one process' share of a batch.

    As in ``Objective``, the losses of all processes have as mean the loss of the whole batch.
    """

    middle: Tensor

    def __init__(self, rows: Tensor, middle: Tensor, config: TrainConfig) -> None:
        """Begin with columns ``rows`` [m, d], for activations of mean ``middle`` [d]."""
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(rows.T.contiguous())
        self.bias = nn.Parameter(torch.zeros(len(rows), device=rows.device))
        # Not left to the bias: else every step of the weight would move all codes at once.
        self.register_buffer("middle", middle.clone(), persistent=False)
        self.spread = max(1 - float(middle.double().square().sum()), 1e-6) ** 0.5

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Figures]:
        """Return the loss of a share of a batch.

        Args:
            x: [2 n, d], the activations of one side of the pairs standing first.
            rows: [n], numbers of the pairs.
        """
        codes = rep_relu(torch.addmm(self.bias, (x - self.middle) / self.spread, self.weight))
        loss, accuracy = info_nce(codes, rows, self.config.temperature)
        with torch.no_grad():
            processes = world()[1]
            counts = total((codes != 0).sum(0))
            figures = {"loss": loss.detach(), "accuracy": accuracy}
            return loss, Figures(
                {name: total(value) / processes for name, value in figures.items()},
                counts.sum() / (len(x) * processes),
                counts > 0,
                None,
            )

    @torch.no_grad()
    def in_use(self) -> Tensor:
        """Return the bias [m] of activations as they are, from which nothing is subtracted."""
        bias: Tensor = self.spread * self.bias - self.middle @ self.weight
        return bias

    def before_step(self) -> None:
        """Do nothing: no weight is held to a norm."""

    def after_step(self) -> None:
        """Do nothing here either, likewise."""


def rep_relu(hidden: Tensor) -> Tensor:
    """Apply ReLU with the gradient of GELU, so that silent features go on learning.

    Wang et al. 2024, "Non-negative Contrastive Learning", whose reparameterised ReLU this is.

    Args:
        hidden: Pre-activations of any shape.

    Returns:
        ``relu(hidden)``, whose derivative is that of ``hidden * Phi(hidden)``.

    Example:
        >>> hidden = torch.tensor([-1.0, 2.0], requires_grad=True)
        >>> rep_relu(hidden).sum().backward()
        >>> rep_relu(hidden.detach()), hidden.grad
        (tensor([0., 2.]), tensor([-0.0833,  1.0852]))
    """
    smooth = F.gelu(hidden)
    # In this order the difference is exactly zero, and the value exactly that of ReLU.
    return smooth - smooth.detach() + F.relu(hidden.detach())


def info_nce(codes: Tensor, rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the symmetric InfoNCE loss of a share of a batch, among the whole batch.

    With u, v the image's and the text's codes over their lengths, the mean over pairs i of
    ``-log(exp(u_i v_i / t) / (exp(u_i v_i / t) + sum_j exp(u_i v_j / t)))`` and of the same with u
    and v exchanged. j goes over the batch without draws of pair i, which are not wrong.

    Args:
        codes: [2 n, m], those of one side standing first.
        rows: [n], numbers of the pairs: equal ones are draws of one pair.
        temperature: t.

    Returns:
        The loss, and the share of codes whose own pair is the most similar of all, both of this
        process' share.

    Example:
        >>> loss, accuracy = info_nce(torch.eye(2).repeat(2, 1), torch.arange(2), 1.0)
        >>> loss, accuracy
        (tensor(0.3133), tensor(1.))
    """
    unit = F.normalize(codes, dim=1, eps=_SHORT)
    rank, processes = world()
    image, text = unit.chunk(2)
    images, texts = joined(unit).unflatten(0, (processes, 2, -1)).unbind(1)
    own = torch.arange(len(rows), device=codes.device) + rank * len(rows)
    again = rows[:, None] == gathered(rows)
    again = again.scatter(1, own[:, None], False)
    losses, right = [], []
    for these, others in ((image, texts), (text, images)):
        logits = (these @ others.flatten(0, 1).T / temperature).masked_fill(again, -torch.inf)
        losses.append(F.cross_entropy(logits, own))
        known = logits.detach()
        wrong = known.scatter(1, own[:, None], -torch.inf).amax(1)
        right.append(known.gather(1, own[:, None])[:, 0] > wrong)
    return torch.stack(losses).mean(), torch.cat(right).to(codes.dtype).mean()


def fit_decoder(
    data: Data, weight: Tensor, bias: Tensor, ridge: float, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """Fit a ridge regression from codes ``h = relu(y weight + bias)`` back to activations y.

    The decoder D and its bias c have the least ``sum |y - h D - c|^2 + r |D|^2`` over all
    activations of all streams, in closed form: ``D = (H'H + r I)^-1 H'Y`` and
    ``c = mean(y) - mean(h) D``, with H and Y taken from their means. r is ``ridge`` times the mean
    diagonal entry of H'H. The sums are float64 and streamed, shared by the processes: they take
    8 m (m + d) bytes, however many activations there are.

    Args:
        data: The activations, normed and centred.
        weight: [d, m], on the device to work on.
        bias: [m].
        ridge: Above 0.
        progress: Whether to show a bar.

    Returns:
        [m, d] and [d], float32. A feature that is never active gets a row of zeros.

    Raises:
        VlmEditError: Weights that are not finite, or a ridge that is lost in rounding.
    """
    if not bool(weight.isfinite().all() and bias.isfinite().all()):
        raise VlmEditError("the head's weights are not finite: train it with a smaller lr")
    product, cross, h_mean, y_mean = _moments(data, weight, bias, progress)
    strength = ridge * float(product.diagonal().mean())
    product.diagonal().add_(strength or 1.0)  # 1 where no feature is ever active
    root, failed = torch.linalg.cholesky_ex(product)
    if bool(failed):
        raise BadArgument(f"ridge is {ridge}, too small to be told from rounding: take a larger")
    decoder = torch.cholesky_solve(cross, root)
    return decoder.float().contiguous(), (y_mean - h_mean @ decoder).float()


@torch.no_grad()
def _moments(data: Data, weight: Tensor, bias: Tensor, progress: bool) -> tuple[Tensor, ...]:
    """Sum H'H [m, m] and H'Y [m, d] about their means, and the means; float64, of all processes."""
    rank, processes = world()
    d, m = weight.shape
    product = weight.new_zeros(m, m, dtype=torch.float64)
    cross = weight.new_zeros(m, d, dtype=torch.float64)
    sums = weight.new_zeros(m + d, dtype=torch.float64)
    count = sum(len(stream) for stream in data.streams.values())
    hidden = None if progress and rank == 0 else True
    with tqdm(total=count, desc="fit decoder", disable=hidden) as bar:
        for number, y in enumerate(data.parts(max(1, _CODES // m), weight.device)):
            if number % processes == rank:
                h, wide = F.relu(torch.addmm(bias, y, weight)).double(), y.double()
                product.addmm_(h.T, h)
                cross.addmm_(h.T, wide)
                sums += torch.cat([h.sum(0), wide.sum(0)])
            bar.update(len(y))
    product, cross, means = total(product), total(cross), total(sums) / count
    h_mean, y_mean = means.split([m, d])
    product.addr_(h_mean, h_mean, alpha=-count)
    cross.addr_(h_mean, y_mean, alpha=-count)
    return product, cross, h_mean, y_mean

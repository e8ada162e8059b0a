"""Which of several processes this one is, as the launchers of clusters say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vlm_edit.ground.errors import BadArgument

_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# Rank, number of processes, and number on the machine; who started this very process comes first.
_LAUNCHERS = (
    _TORCH,
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
# In a batch script SLURM sets SLURM_PROCID too, to 0, and SLURM_NTASKS: only srun sets this one.
_STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
_ARRAY = "SLURM_ARRAY_TASK_"
_POD = "JOB_COMPLETION_INDEX"
_MEND = "set both or neither, or name the part with --part I/N"


@dataclass(frozen=True)
class Share:
    """Say which of several processes this one is.

    Attributes:
        rank: Counted from 0.
        of: How many there are.
        said_by: The variables that say so, with their values.
        local: Which of those on its machine; None where nobody says.

    Example:
        >>> Share(2, 8, "RANK=2 and WORLD_SIZE=8")
        Share(rank=2, of=8, said_by='RANK=2 and WORLD_SIZE=8', local=None)
    """

    rank: int
    of: int
    said_by: str
    local: int | None = None


def share_of(environment: Mapping[str, str]) -> Share | None:
    """Return which of several processes an environment says this one is; None where it is silent.

    Understood are torchrun and what sets the same, Open MPI, PMI, srun, arrays of SLURM, also with
    several processes in each of their jobs, and indexed jobs of Kubernetes with ``WORLD_SIZE``.

    Args:
        environment: Variables by name, as ``os.environ``; an empty one counts as not set.

    Raises:
        BadArgument: Variables contradict each other, or one is there without its fellow.

    Example:
        >>> share_of({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "16"})
        Share(rank=3, of=8, said_by='SLURM_PROCID=3 and SLURM_STEP_NUM_TASKS=8', local=None)
    """
    there = {name: value for name, value in environment.items() if value}
    shares = [share for names in _LAUNCHERS if (share := _pair(there, *names))]
    step = _pair(there, *_STEP) if _STEP[1] in there else None
    inner, around = ([*shares, *filter(None, [step])] + [None, None])[:2]
    if inner is not None and "RANK" in there:
        _expect_one_launch(there, inner, around)
    if inner is not None and inner.local is None and around is not None:
        same = (inner.rank, inner.of) == (around.rank, around.of)
        inner = replace(inner, local=around.local) if same else inner
    outer = _array(there)
    if inner is None and outer is None and _POD in there:
        return _pod(there)
    if "WORLD_SIZE" in there and "RANK" not in there:
        _expect_world(there, inner or outer)
    if outer is None or inner is None:
        return inner or outer
    rank, said_by = outer.rank * inner.of + inner.rank, f"{outer.said_by}, {inner.said_by}"
    return replace(inner, rank=rank, of=outer.of * inner.of, said_by=said_by)


def _pair(there: Mapping[str, str], rank: str, of: str, local: str) -> Share | None:
    """Return what two variables say; None where neither is set."""
    if rank not in there:
        if of in there and of != "WORLD_SIZE":  # which others may give a rank to
            raise BadArgument(f"{of} is {there[of]} and {rank} is not set: {_MEND}")
        return None
    if of not in there:
        raise BadArgument(f"{rank} is {there[rank]} and {of} is not set: {_MEND}")
    i, n = _number(there, rank), _number(there, of)
    said_by = f"{rank}={i} and {of}={n}"
    if i >= n:
        raise BadArgument(
            f"{said_by} contradict each other: ranks count from 0 and lie below the number of "
            "processes; set them right, or name the part with --part I/N"
        )
    return Share(i, n, said_by, _number(there, local) if local in there else None)


def _pod(there: Mapping[str, str]) -> Share | None:
    """Return which pod of an indexed job of Kubernetes this is."""
    if "WORLD_SIZE" not in there:
        raise BadArgument(
            f"{_POD} is {there[_POD]} and WORLD_SIZE is not set: Kubernetes does not say how many "
            "pods there are; set WORLD_SIZE to the Job's completions, or name the part with "
            "--part I/N"
        )
    return _pair(there, _POD, "WORLD_SIZE", "LOCAL_RANK")


def _array(there: Mapping[str, str]) -> Share | None:
    """Return which task of an array of SLURM this is."""
    names = [f"{_ARRAY}{name}" for name in ("ID", "COUNT", "MIN")]
    if names[0] not in there:
        return None
    for name in names[1:]:
        if name not in there:
            raise BadArgument(f"{names[0]} is {there[names[0]]} and {name} is not set: {_MEND}")
    number, count, first = (_number(there, name) for name in names)
    step = _number(there, f"{_ARRAY}STEP") if f"{_ARRAY}STEP" in there else 1
    last = first + (count - 1) * step
    most = _number(there, f"{_ARRAY}MAX") if f"{_ARRAY}MAX" in there else last
    i, rest = divmod(number - first, max(step, 1))
    if rest or most != last or not 0 <= i < count:
        raise BadArgument(
            f"{names[0]}={number} of {count} from {first} to {most}: an array with gaps does not "
            "say which of them this is; number it without, as --array=0-7, or give --part I/N"
        )
    return Share(i, count, f"{names[0]}={number} and {names[1]}={count}")


def _expect_one_launch(there: Mapping[str, str], inner: Share, around: Share | None) -> None:
    """Refuse several torchruns that number their processes each on its own."""
    groups = _number(there, "GROUP_WORLD_SIZE") if "GROUP_WORLD_SIZE" in there else None
    apart = ""
    if around is not None and around.of > 1:
        alike = (inner.rank, inner.of) == (around.rank, around.of)
        apart = "" if (alike if groups is None else groups == around.of) else around.said_by
    elif groups == 1 and there.get(_POD, "0") != "0":
        apart = f"{_POD}={there[_POD]}"
    if apart:
        raise BadArgument(
            f"{inner.said_by}, and around it {apart}: processes that are numbered anew in each of "
            "those would collide; tell torchrun of all of them (--nnodes, --node-rank, "
            "--rdzv-endpoint), let one launcher alone start the processes, or give --part I/N"
        )


def _expect_world(there: Mapping[str, str], share: Share | None) -> None:
    """Refuse a number of processes that nobody gives a rank to, or another number."""
    count = _number(there, "WORLD_SIZE")
    if share is None:
        raise BadArgument(f"WORLD_SIZE is {count} and RANK is not set: {_MEND}")
    if share.of != count:
        raise BadArgument(
            f"WORLD_SIZE={count} contradicts {share.said_by}: unset it, or name the part with "
            "--part I/N"
        )


def _number(there: Mapping[str, str], name: str) -> int:
    try:
        number = int(there[name])
    except ValueError:
        number = -1
    if number < 0:
        raise BadArgument(
            f"{name} is {there[name]!r}, and should be a whole number from 0 on: set it right, or "
            "name the part with --part I/N"
        )
    return number

"""What launchers say, variable by variable: who is which of how many."""

import pytest

from vlm_edit import VlmEditError
from vlm_edit.ground.launch import Share, share_of


def of(words: str) -> Share | None:
    return share_of(dict(word.split("=") for word in words.split()))


TORCHRUN = "GROUP_RANK={g} GROUP_WORLD_SIZE={n} RANK={r} WORLD_SIZE={w} LOCAL_RANK={l}"
BATCH = "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_NPROCS=8 SLURM_PROCID=0 SLURM_LOCALID=0"
STEP = "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=8 SLURM_PROCID=5"
ARRAY = "SLURM_ARRAY_TASK_ID={i} SLURM_ARRAY_TASK_COUNT={n} SLURM_ARRAY_TASK_MIN={a}"


@pytest.mark.parametrize(
    ("words", "rank", "count", "local"),
    [
        ("RANK=2 WORLD_SIZE=8", 2, 8, None),
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0", 0, 1, 0),
        (TORCHRUN.format(g=1, n=2, r=11, w=16, l=3), 11, 16, 3),
        ("OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1", 3, 4, 1),
        ("PMI_RANK=3 PMI_SIZE=4 MPI_LOCALRANKID=3", 3, 4, 3),
        (STEP, 5, 8, None),
        (f"{STEP} SLURM_LOCALID=1", 5, 8, 1),
        (ARRAY.format(i=4, n=8, a=0), 4, 8, None),
        (ARRAY.format(i=4, n=8, a=1) + " SLURM_ARRAY_TASK_MAX=8", 3, 8, None),
        (ARRAY.format(i=9, n=4, a=5) + " SLURM_ARRAY_TASK_STEP=2", 2, 4, None),
        # An array's jobs are batch scripts, which have SLURM_PROCID=0 too.
        (f"{BATCH} {ARRAY.format(i=2, n=4, a=0)}", 2, 4, None),
        # Tasks of srun, of mpirun or of torchrun in each of its jobs.
        (f"{STEP} {ARRAY.format(i=2, n=4, a=0)} SLURM_LOCALID=5", 21, 32, 5),
        (f"PMI_RANK=1 PMI_SIZE=2 {ARRAY.format(i=2, n=4, a=0)}", 5, 8, None),
        (TORCHRUN.format(g=0, n=1, r=1, w=2, l=1) + " " + ARRAY.format(i=3, n=4, a=0), 7, 8, 1),
        # One torchrun on each machine, started by srun: it knows of all of them.
        (
            f"{TORCHRUN.format(g=1, n=2, r=5, w=8, l=1)} SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2",
            *(5, 8, 1),
        ),
        # srun --mpi=pmi2 says it twice; so does a script that derives one from the other.
        (f"{STEP} PMI_RANK=5 PMI_SIZE=8", 5, 8, None),
        (f"{STEP} PMI_RANK=5 PMI_SIZE=8 SLURM_LOCALID=1", 5, 8, 1),
        (f"{STEP} RANK=5 WORLD_SIZE=8", 5, 8, None),
        (f"{STEP} WORLD_SIZE=8", 5, 8, None),
        # Open MPI reaches other machines by a step of srun of its own.
        (
            "RANK=3 WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 "
            "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=3 SLURM_LOCALID=0",
            *(3, 4, None),
        ),
        ("JOB_COMPLETION_INDEX=3 WORLD_SIZE=8", 3, 8, None),
        # torchrun over the pods of an indexed job, and the first pod's own.
        ("JOB_COMPLETION_INDEX=1 " + TORCHRUN.format(g=1, n=2, r=2, w=4, l=0), 2, 4, 0),
        ("JOB_COMPLETION_INDEX=0 " + TORCHRUN.format(g=0, n=1, r=1, w=2, l=1), 1, 2, 1),
    ],
)
def test_a_launcher_says_which_process_this_is(words, rank, count, local) -> None:
    share = of(words)
    assert share is not None
    assert (share.rank, share.of, share.local) == (rank, count, local)
    for name_and_value in share.said_by.replace(" and ", ", ").split(", "):
        assert name_and_value in words.split()


@pytest.mark.parametrize("words", ["", BATCH, "LOCAL_RANK=1", "RANK= WORLD_SIZE= PMI_RANK="])
def test_where_nobody_says_so_it_is_alone(words) -> None:
    assert of(words) is None


def test_every_task_of_an_array_of_steps_has_a_part_of_its_own() -> None:
    shares = [
        of(f"{ARRAY.format(i=3 + 2 * i, n=3, a=3)} SLURM_ARRAY_TASK_STEP=2 SLURM_PROCID={task} "
           "SLURM_STEP_NUM_TASKS=4")
        for i in range(3)
        for task in range(4)
    ]  # fmt: skip
    assert [share and (share.rank, share.of) for share in shares] == [(i, 12) for i in range(12)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RANK=0", "^RANK is 0 and WORLD_SIZE is not set: "),
        ("WORLD_SIZE=4", "^WORLD_SIZE is 4 and RANK is not set: "),
        ("PMI_SIZE=4", "^PMI_SIZE is 4 and PMI_RANK is not set: "),
        ("PMI_RANK=0 RANK=0 WORLD_SIZE=2", "^PMI_RANK is 0 and PMI_SIZE is not set: "),
        ("SLURM_STEP_NUM_TASKS=4", "^SLURM_STEP_NUM_TASKS is 4 and SLURM_PROCID is not set: "),
        ("SLURM_ARRAY_TASK_ID=4", "^SLURM_ARRAY_TASK_ID is 4 and SLURM_ARRAY_TASK_COUNT is not"),
        ("JOB_COMPLETION_INDEX=3", "^JOB_COMPLETION_INDEX is 3 .* set WORLD_SIZE to the Job"),
        ("RANK=8 WORLD_SIZE=8", "^RANK=8 and WORLD_SIZE=8 contradict each other"),
        ("RANK=0 WORLD_SIZE=0", "^RANK=0 and WORLD_SIZE=0 contradict each other"),
        ("RANK=-1 WORLD_SIZE=8", "^RANK is '-1', and should be a whole number"),
        ("RANK=1 WORLD_SIZE=two", "^WORLD_SIZE is 'two', and should be a whole number"),
        ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=x", "^LOCAL_RANK is 'x'"),
        ("WORLD_SIZE=4 " + STEP, "^WORLD_SIZE=4 contradicts SLURM_PROCID=5 and SLURM_STEP_NUM"),
        ("WORLD_SIZE=4 " + ARRAY.format(i=0, n=8, a=0), "^WORLD_SIZE=4 contradicts SLURM_ARRAY"),
        # A torchrun in each task, or in each pod, that knows of no other.
        (f"{STEP} {TORCHRUN.format(g=0, n=1, r=1, w=8, l=1)}", "SIZE=8, and around it SLURM"),
        (STEP + " RANK=1 WORLD_SIZE=8", "around it SLURM_PROCID=5 and SLURM_STEP_NUM_TASKS=8"),
        (
            "JOB_COMPLETION_INDEX=1 " + TORCHRUN.format(g=0, n=1, r=1, w=2, l=1),
            "around it JOB_COMPLETION_INDEX=1: .*give --part",
        ),
        # --array=1,3,7 has gaps, and each of its tasks must notice.
        *(
            (ARRAY.format(i=i, n=3, a=1) + " SLURM_ARRAY_TASK_MAX=7", f"TASK_ID={i} of 3 from 1 to")
            for i in (1, 3, 7)
        ),
        (ARRAY.format(i=6, n=3, a=1) + " SLURM_ARRAY_TASK_STEP=2", "TASK_ID=6 of 3 from 1 to 5"),
    ],
)
def test_what_contradicts_itself_or_is_half_there_is_refused_by_name(words, message) -> None:
    with pytest.raises(VlmEditError, match=message) as refused:
        of(words)
    assert "--part I/N" in str(refused.value)

"""Scripts in several processes that know of each other, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

# Threads of gloo may abort a process whose interpreter is ending, with all its work done.
_END = "\nimport os\nos._exit(0)\n"


def run_together(script: str, *arguments: object, count: int = 2) -> list[tuple[int, str]]:
    """Exit status and standard error of each process that ran a script.

    Args:
        script: Python; gloo can be initialised from its environment.
        arguments: Its ``sys.argv[1:]``.
        count: Processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    whole = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script + _END, *map(str, arguments)],
            env={**os.environ, **whole, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    told = [process.communicate(timeout=400)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]

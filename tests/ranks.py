"""Several processes on one machine: ranks that speak through gloo, for the tests that need two."""

from collections.abc import Callable
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

import torch
from torch import distributed

__all__ = ["together", "torchrun"]


def together(number: int, work: Callable[..., None], folder: Path, *args: Any) -> None:
    """Run ``work(rank, *args)`` in `number` new processes of one group.

    Raises:
        torch.multiprocessing.ProcessRaisedException: when a rank raises.
    """

    store = f"file://{folder / 'store'}"
    torch.multiprocessing.spawn(_rank, (number, store, work, args), nprocs=number)


def _rank(rank: int, number: int, store: str, work: Callable[..., None], args: tuple) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=number)
    work(rank, *args)
    distributed.barrier()
    # gloo's threads may outlive the group: leave before any destructor waits for or aborts them
    os._exit(0)


def torchrun(config: Path) -> str:
    """Train by a config under torchrun, with two processes; hands out what they said.

    Raises:
        AssertionError: when a process fails.
    """

    root = Path(__file__).parents[1]
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *started, str(root / "train.py"), "fit", "-c", str(config)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

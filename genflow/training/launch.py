"""How many processes a run has: told by whoever started them, or by the config.

Lightning starts the processes of one machine itself (``--trainer.devices 4``). Where torchrun or
SLURM has started them, the config need not repeat their numbers: they are read from the
environment of the process, which is all that this module looks at.
"""

__all__ = ["launched"]

from collections.abc import Mapping


def launched(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """The processes of a node and the nodes, if torchrun or srun has started this process.

    Args:
        environ: The environment.

    Returns:
        Both numbers, or None if nobody says; for SLURM they are read from the options
        ``--ntasks-per-node`` and ``--nodes`` of the job, which Lightning asks for as well.
    """

    if "TORCHELASTIC_RUN_ID" in environ:
        here = int(environ["LOCAL_WORLD_SIZE"])
        return here, int(environ["WORLD_SIZE"]) // here

    here = environ.get("SLURM_NTASKS_PER_NODE", "")
    interactive = environ.get("SLURM_JOB_NAME") in ("bash", "interactive")

    if here.isdigit() and not interactive:
        return int(here), int(environ.get("SLURM_NNODES", "1"))

    return None

"""Which part of a job is this process's: said on the command line, or by who started it."""

__all__ = ["share"]

from collections.abc import Mapping

from genflow.pipelines.jobs import parse_shard


def share(text: str | None, environ: Mapping[str, str]) -> tuple[int, int]:
    """The part i of the n parts of a job.

    Processes that torchrun starts take a part each, in the order of their ranks. They need not
    speak with each other: which part is whose is all that they must agree on.

    Args:
        text: The part as ``i/n``, which counts if it is given; parts count from 0.
        environ: The environment of the process.

    Returns:
        The part as (i, n); (0, 1), all of it, if nobody says.

    Raises:
        UserError: If the text is not of this form.
    """

    if text is not None:
        return parse_shard(text)

    if "TORCHELASTIC_RUN_ID" in environ:
        return int(environ["RANK"]), int(environ["WORLD_SIZE"])

    return 0, 1

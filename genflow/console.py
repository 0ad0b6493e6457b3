"""What the command line needs of a terminal, and nothing heavy."""

__all__ = ["Bar", "flags", "overview"]

from collections.abc import Callable, Mapping, Sequence
import inspect
import sys
from typing import Any


def overview(program: str, commands: Mapping[str, Any]) -> str:
    """The help of a program: its commands, a line each.

    Args:
        program: The name of the program.
        commands: Functions, or groups of them that say what they are ``about``, by name.
    """

    lines = [f"usage: {program} COMMAND [--help] ...", ""]
    width = max(map(len, ("--version", *commands)))

    for name, command in commands.items():
        summary = getattr(command, "about", None) or (inspect.getdoc(command) or "").split("\n")[0]
        lines.append(f"  {name:<{width}} {summary}")

    return "\n".join([*lines, "", f"  {'--version':<{width}} Print the version of genflow."])


def flags(arguments: Sequence[str], switches: Sequence[str]) -> list[str]:
    """Lets a switch stand alone: ``--overwrite`` is ``--overwrite true``."""

    names = {f"--{s}" for s in switches} | {f"--{s.replace('_', '-')}" for s in switches}
    out: list[str] = []

    for i, argument in enumerate(arguments):
        out.append(argument)
        after = arguments[i + 1] if i + 1 < len(arguments) else "--"
        if argument in names and after.lower() not in ("true", "false"):
            out.append("true")

    return out


class Bar:
    """A progress bar on a terminal, silence elsewhere."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.progress: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.progress = Progress(console=Console(stderr=True), transient=True)
            self.progress.start()
        return self._report

    def _report(self, done: int, total: int) -> None:
        if self.progress is None:
            return
        if not self.progress.tasks:
            self.progress.add_task(self.what, total=total)
        self.progress.update(self.progress.tasks[0].id, completed=done)

    def __exit__(self, *error: object) -> None:
        if self.progress is not None:
            self.progress.stop()

"""The command line: typed functions, and nothing else.

Each command is a function of `genflow.commands`; its signature is the schema of its arguments and
its doc-string the help. A command may also be a group of verbs, as in ``genflow schedule show``.
Heavy modules are imported inside the functions, so that ``--help`` and ``--version`` answer at
once. A `UserError` is printed as one sentence, with exit code 2.
"""

__all__ = ["COMMANDS", "Group", "main"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import inspect
import os
import re
import sys

from genflow.commands import bridge, gradients, reference, schedule, zoo
from genflow.commands.doctor import doctor
from genflow.commands.domains import encode, pack, translate
from genflow.commands.evaluate import evaluate
from genflow.commands.flow_measures import flow_report, likelihood
from genflow.commands.flows import distill, pairs, reflow
from genflow.commands.generate import generate
from genflow.commands.search import search
from genflow.commands.suggest import suggest_d
from genflow.commands.train import export, fit
from genflow.console import flags, overview
from genflow.errors import UserError, brief, nearest
from genflow.version import __version__


@dataclass(frozen=True)
class Group:
    """A command that has verbs of its own, as in ``genflow schedule show``.

    Args:
        about: What they do together, in one sentence.
        verbs: The functions by name.
    """

    about: str
    verbs: Mapping[str, Callable[..., int | None]]


COMMANDS: dict[str, Callable[..., int | None] | Group] = {
    "fit": fit,
    "export": export,
    "generate": generate,
    "evaluate": evaluate,
    "pairs": pairs,
    "reflow": reflow,
    "distill": distill,
    "translate": translate,
    "encode": encode,
    "pack": pack,
    "flow-report": flow_report,
    "likelihood": likelihood,
    "invert": gradients.invert,
    "audit": gradients.audit,
    "finetune": gradients.finetune,
    "search": search,
    "samplers": schedule.samplers,
    "suggest-d": suggest_d,
    "bridge": Group("Carry data to data by a light Schrödinger bridge.", bridge.VERBS),
    "reference": Group("Store what feature nets make of data, or show it.", reference.VERBS),
    "zoo": Group("List, show or copy the small trained models of the repository.", zoo.VERBS),
    "schedule": Group("Show, compare, convert or make a solver schedule.", schedule.VERBS),
    "doctor": doctor,
}
"""The commands by name."""


def main(
    arguments: Sequence[str] | None = None,
    program: str = "genflow",
    commands: Sequence[str] | None = None,
) -> int:
    """Runs a command.

    Args:
        arguments: The command and its arguments; those of the process if None.
        program: The name that help and errors show.
        commands: The commands on offer; all if None.

    Returns:
        The exit code: that of the command, 0 as a rule; 2 for a value that cannot be used, 130 if
        interrupted, 141 if nobody reads the output any more, as in ``genflow samplers | head``.
    """

    try:
        code = _run(arguments, program, commands)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _unheard():
            raise
        return 141


def _unheard() -> bool:
    """Whether the output has lost its reader; what is left of it then goes nowhere."""

    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True

    return False


def _run(arguments: Sequence[str] | None, program: str, commands: Sequence[str] | None) -> int:
    """Runs a command, and turns what stops it into a sentence and an exit code."""

    # Threads that spin long while they wait for each other starve a machine that is shared.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = commands or tuple(COMMANDS)

    if arguments[:1] in (["--version"], ["-V"]):
        print(f"genflow {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(program, {name: COMMANDS[name] for name in commands}))
        return 0 if arguments else 2

    try:
        if arguments[0] not in commands:
            raise UserError(f"command is '{arguments[0]}'{nearest(arguments[0], commands)}")
        return _command(program, arguments[0], arguments[1:]) or 0
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def _command(program: str, name: str, arguments: list[str]) -> int | None:
    """Parses the arguments of a command by its signature, and calls it."""

    command = COMMANDS[name]
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

    if command is fit:
        return fit(flags(arguments, ("resume", "overwrite")))
    if not isinstance(command, Group):
        return _call(f"{program} {name}", command, arguments)

    if not arguments or arguments[0] in ("-h", "--help"):
        return print(overview(f"{program} {name}", command.verbs))
    if arguments[0] not in command.verbs:
        raise UserError(f"{name} verb is '{arguments[0]}'{nearest(arguments[0], command.verbs)}")

    return _call(f"{program} {name} {arguments[0]}", command.verbs[arguments[0]], arguments[1:])


def _call(
    program: str, command: Callable[..., int | None], arguments: Sequence[str]
) -> int | None:
    """Parses arguments by a function's signature, and calls it.

    A parameter whose name ends in an underscore, because Python keeps the word for itself, is an
    option without it. Arguments may also stand in a YAML file, ``--config``, which those that
    follow it on the line win over.
    """

    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

    parameters = inspect.signature(command).parameters.items()
    switches = [k for k, p in parameters if p.annotation is bool]
    kept = {k.rstrip("_"): p for k, p in parameters if k.endswith("_")}
    parser = ArgumentParser(prog=program, exit_on_error=False)
    parser.add_function_arguments(
        command, as_positional=True, skip={p.name for p in kept.values()}
    )

    for name, p in kept.items():
        about = re.search(rf"{p.name}: (.*)", inspect.getdoc(command) or "")
        parser.add_argument(f"--{name}", type=p.annotation, default=p.default, help=about[1])

    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of arguments.")

    try:
        values = parser.parse_args(flags(arguments, switches))
    except ArgumentError as error:
        raise UserError(f"{brief(str(error))} (see {program} --help)") from None

    given = {k: v for k, v in values.as_dict().items() if k != "config"}
    return command(**{kept[k].name if k in kept else k: v for k, v in given.items()})

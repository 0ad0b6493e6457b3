"""The pages of the documentation as programs: their blocks, their commands, and how they run.

A page is run from top to bottom in one folder: blocks of Python share their names, and commands
run between them as they stand. A fence with a title is written to a file of that name. What must
not run says why in a comment above its fence, ``<!-- not run: REASON -->``; its commands are read
all the same, also behind a launcher of many processes.
"""

from dataclasses import dataclass
import functools
from pathlib import Path
import re
import shlex

from genflow.cli import COMMANDS, Group, main

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "machinery" not in p.parts)
DOORS = ("genflow", "python train.py", "python sample.py")
LAUNCHERS = ("torchrun", "srun", "sbatch")

FENCE = re.compile(
    r"(?:^<!-- not run: (?P<excuse>.+?) -->\n+)?"
    r"^```(?P<language>\w*)(?P<about>[^\n]*)\n(?P<text>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"\]\((?!\w+:)(?P<file>[^)\s#]*)(?:#(?P<anchor>[^)\s]*))?\)")


@dataclass(frozen=True)
class Block:
    """A fence of a page.

    Attributes:
        language: What stands behind the backticks.
        text: What is inside.
        line: The line of the page on which it begins.
        title: The file that it is, or None.
        excuse: Why it is not run, or None.
    """

    language: str
    text: str
    line: int
    title: str | None
    excuse: str | None


def blocks(page):
    """The fences of a page, in order."""

    text = page.read_text(encoding="utf-8")
    found = []

    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["about"])
        line = text.count("\n", 0, match.start("text")) + 1
        about = (match["text"], line, title and title[1], match["excuse"])
        found.append(Block(match["language"], *about))

    return found


def commands(text):
    """The commands of a block as lists of words; comments are left out, lines may go on."""

    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def arguments(words):
    """What follows ``genflow``, ``python train.py`` or ``python sample.py``; None for others."""

    for door in map(str.split, DOORS):
        if words[: len(door)] == door:
            return words[len(door) :]

    if words[0] == "sbatch" and "--wrap" in words:
        return arguments(shlex.split(words[words.index("--wrap") + 1]))
    if words[0] == "srun" and "python" in words:
        return arguments(words[words.index("python") :])
    if words[0] == "torchrun":
        doors = [i for i, word in enumerate(words) if word in {"train.py", "sample.py"}]
        return words[doors[0] + 1 :] if doors else None

    return None


def links(page):
    """The relative links of a page, as files and anchors; those in its fences are none."""

    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [(match["file"], match["anchor"]) for match in LINK.finditer(text)]


def anchors(page):
    """The anchors of a page's headings."""

    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", h.lower()).strip() for h in headings]
    return {re.sub(r"\s", "-", h) for h in plain}


def run(page, fewer=None, quick=None, *, shell=True):
    """Runs a page in the present folder.

    Args:
        page: The file.
        fewer: Texts of its blocks, and what stands for them so that it takes less time.
        quick: For each command, the words that are added to it.
        shell: Whether commands run, or Python alone.

    Returns:
        The names at the end.
    """

    names = {"__name__": "__main__"}
    unused = set(fewer or {})

    for block in blocks(page):
        text = block.text

        for old, new in (fewer or {}).items():
            unused -= {old} if old in text else set()
            text = text.replace(old, new)

        if block.excuse:
            continue
        if block.title:
            Path(block.title).write_text(text, encoding="utf-8")
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), names)
        if block.language == "bash" and shell:
            for words in map(arguments, commands(text)):
                code = main([*words, *(quick or {}).get(words[0], [])])
                assert code == 0, f"{page.name}:{block.line}: genflow {shlex.join(words)}"

    assert not unused, f"{page.name} holds {sorted(unused)} no more"
    return names


def parse(words, monkeypatch):
    """Parses a command by its signature, and does nothing; returns the exit code."""

    command = COMMANDS.get(words[0])

    if isinstance(command, Group):
        verbs = {verb: _idle(function) for verb, function in command.verbs.items()}
        monkeypatch.setitem(COMMANDS, words[0], Group(command.about, verbs))
    elif command is not None:
        monkeypatch.setitem(COMMANDS, words[0], _idle(command))

    return main(words)


def _idle(function):
    """A function of the same signature and doc-string that does nothing."""

    @functools.wraps(function)
    def idle(**values):
        return None

    return idle

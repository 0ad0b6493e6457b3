"""The reference: a page a room, made from the folders of the package when the site is built.

Each page shows the room's own doc-string and then every module of it, in alphabetical order, with
all that its ``__all__`` names. A room that is new has a page without further ado; its place in the
navigation is behind those that ``mkdocs.yml`` names under Reference.
"""

__all__ = ["on_config", "on_files", "pages"]

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SILENT = {"commands"}
"""Rooms without a page: the help of the command line says what commands do."""


def pages(package: Path) -> dict[str, str]:
    """The text of each room's page, by the name of the room."""

    found = {}

    for folder in sorted(p.parent for p in package.glob("*/__init__.py")):
        room = f"{package.name}.{folder.name}"
        modules = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
        own = f"# {room}\n\n::: {room}\n    options: {{show_root_heading: false, members: false}}"
        if folder.name not in SILENT:
            found[folder.name] = "\n\n".join([own, *(f"::: {room}.{m}" for m in modules)]) + "\n"

    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts rooms that the navigation does not name at its end."""

    named = next(part["Reference"] for part in config.nav or [] if "Reference" in part)
    known = {target for entry in named if isinstance(entry, dict) for target in entry.values()}

    for room in pages(_package(config)):
        target = f"reference/{room}.md"
        if target not in known:
            named.append({room: target})

    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""

    for room, text in pages(_package(config)).items():
        files.append(File.generated(config, f"reference/{room}.md", content=text))

    return files


def _package(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent / "genflow"

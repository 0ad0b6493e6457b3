"""Links that leave ``docs/``: the files of the repository that they name become part of the site.

A page links to ``../configs/rectified/digits.yaml`` or to a picture of ``../assets``, which is
right where the pages are read beside the code. The site holds only what is in ``docs/``, so every
such file is published under ``repository/``, and the links are led there. Linked pages, such as
``../benchmarks/README.md``, are rendered, with what they link to in their turn.
"""

__all__ = ["on_files", "on_page_markdown"]

from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
"""The target of a Markdown link that is relative, and its anchor."""

HOME = "repository"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what pages link to outside ``docs/``, and what that links to."""

    root = Path(config.docs_dir).parent
    waiting = [f for f in files if f.is_documentation_page()]

    while waiting:
        page = waiting.pop()
        for target in _outside(page.src_uri, page.content_string):
            place = f"{HOME}/{target}"
            if files.get_file_from_path(place) is None and (root / target).is_file():
                found = File.generated(config, place, abs_src_path=str(root / target))
                files.append(found)
                if found.is_documentation_page():
                    waiting.append(found)

    return files


def on_page_markdown(markdown: str, page: Page, **context: Any) -> str:
    """Leads links that leave ``docs/`` to the copies, and those of the copies back."""

    here = page.file.src_uri

    def led(match: re.Match[str]) -> str:
        target = _target(here, match[1])
        if target.startswith(".."):
            return match[0]
        place = target.removeprefix("docs/") if _inside(target) else f"{HOME}/{target}"
        return relpath(place, dirname(here) or ".") + (match[2] or "")

    return LINK.sub(led, markdown)


def _outside(page: str, text: str) -> Iterator[str]:
    """The files outside ``docs/`` that a page links to, from the root of the repository."""

    for match in LINK.finditer(text):
        target = _target(page, match[1])
        if not (_inside(target) or target.startswith("..")):
            yield target


def _target(page: str, link: str) -> str:
    """Where a link leads from the root of the repository.

    A page that was published from outside stands where it stands in the repository.
    """

    home = page.removeprefix(f"{HOME}/") if page.startswith(f"{HOME}/") else join("docs", page)
    return normpath(join(dirname(home), link))


def _inside(target: str) -> bool:
    """Whether a file of the repository is a page of the site anyway."""

    return target.startswith("docs/")

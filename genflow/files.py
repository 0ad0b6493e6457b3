"""Files and folders that appear whole or not at all, the cache folder, and digests of files."""

__all__ = ["cache_folder", "replacing", "sha256_of", "write_text", "writing"]

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import hashlib
import os
from pathlib import Path
import shutil

from genflow.errors import UserError


def cache_folder() -> Path:
    """The user's folder for weights, references and models, which need not exist yet.

    It is ``$GENFLOW_CACHE``, else ``$XDG_CACHE_HOME/genflow``, else ``~/.cache/genflow``.
    """

    given = os.environ.get("GENFLOW_CACHE")
    if given:
        return Path(given).expanduser()

    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "genflow"


def sha256_of(file: str | os.PathLike[str]) -> str:
    """The sha256 of a file in hexadecimal, read a block at a time.

    Raises:
        OSError: If it cannot be read.
    """

    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def writing(file: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name to write to, which becomes the file when all went well.

    Args:
        file: The final name; its folder is made if there is none.

    Yields:
        The temporary name.

    Raises:
        UserError: If writing fails, because the disk is full for instance.
    """

    target = Path(file)
    part = target.with_name(f"{target.name}.part")

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, target)
    except OSError as error:
        _forget(part)
        raise UserError(f"'{target}' cannot be written ({error.strerror or error}).") from None
    except BaseException:
        _forget(part)
        raise


def _forget(part: Path) -> None:
    with suppress(OSError):
        part.unlink(missing_ok=True)


def write_text(file: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""

    with writing(file) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def replacing(folder: str | os.PathLike[str], *, overwrite: bool, mark: str) -> Iterator[Path]:
    """A folder to write into, which takes its name only when all went well.

    Args:
        folder: The name.
        overwrite: Whether a folder with the mark may be replaced.
        mark: The file that a folder which may be replaced holds.

    Yields:
        The folder to write into.

    Raises:
        UserError: If the name is taken, or writing fails.
    """

    target = Path(folder)
    part = target.with_name(target.name + ".part")
    old = target.with_name(target.name + ".old")

    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        if not overwrite:
            raise UserError(f"'{target}' exists: give another name, or say overwrite.")
        if not (target / mark).exists():
            raise UserError(f"'{target}' holds no {mark}: it is not replaced, give another name.")

    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)
        os.replace(part, target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"'{target}' cannot be written ({error.strerror or error}).") from None
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise

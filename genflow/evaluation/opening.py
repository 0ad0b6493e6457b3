"""From a name to a source: pipelines, folders, zips, arrays, data sets, stored references."""

__all__ = ["opened", "opened_data", "opened_samples"]

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genflow.data import decode
from genflow.data.base import DataModule
from genflow.data.named import images_of, is_set, named
from genflow.errors import UserError
from genflow.evaluation.drawn import Drawn
from genflow.evaluation.forms import Form
from genflow.evaluation.ranks import Ranks
from genflow.evaluation.references import References, is_reference
from genflow.evaluation.sources import Files, Held, Source, Stored
from genflow.pipelines import BridgePipeline, Pipeline
from genflow.pipelines.conditions import round_in

Named = str | os.PathLike[str]

FILES = (".npz", ".npy", ".zip")


def opened(
    what: Named | Tensor | DataModule | Source,
    form: Form | None = None,
    *,
    skip_unreadable: bool = False,
    samples: bool = False,
    ranks: Ranks | None = None,
) -> Source:
    """Images or vectors by name.

    Args:
        what: A folder or zip of images, a ``.npz`` or ``.npy`` file, the folder of a generating
            job, a data set as `genflow.data.named` knows it; or a tensor, or a data module.
        form: What images are converted to.
        skip_unreadable: Whether files that cannot be decoded are left out.
        samples: Whether a folder is meant that has the name of a data set.
        ranks: The processes that share the job; rank 0 looks at files for all.

    Raises:
        UserError: If there is nothing of that name, or it cannot be used.
    """

    form, ranks = form or Form(), ranks or Ranks()

    if isinstance(what, Source):
        return what
    if isinstance(what, Tensor):
        return Held(what, form=form)
    if isinstance(what, DataModule):
        return Held(what.reference(), what.title, form)

    path = Path(what)

    if path.suffix in (".npz", ".npy") and path.is_file():
        return Stored(path, form)
    if path.suffix == ".zip" and path.is_file():
        return ranks.agree(lambda: Files(decode.Zip(path), form, skip_unreadable))
    if not path.is_dir() or (is_set(what) and not samples):
        return Held(named(what).reference(), str(what), form)
    if list(path.glob("samples*.npy")):
        return Held(images_of(path), str(what), form)

    images = path / "images"  # of a generating job, whose grid is no sample
    folder = images if images.is_dir() else path
    return ranks.agree(lambda: Files(decode.Folder(folder), form, skip_unreadable))


def opened_data(
    what: Named | Tensor | DataModule | Source, form: Form, **options: Any
) -> Source | References:
    """The data that samples are compared with; see `opened`, and stored references besides.

    Raises:
        UserError: If there is nothing of that name, or it cannot be used.
    """

    if isinstance(what, (str, os.PathLike)) and not is_set(what) and is_reference(what):
        return References(what)
    return opened(what, form, **options)


def opened_samples(
    what: Named | Tensor | Pipeline | DataModule | Source,
    form: Form,
    *,
    n: int | None,
    count: int,
    seed: int = 0,
    repeats: int = 1,
    label: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    sampler: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Source, list[int]]:
    """The samples, and which of them are looked at.

    Args:
        what: A pipeline, its folder or its hub id; or what `opened` takes.
        form: What images are converted to.
        n: How many; as many as there are, or for a pipeline as many as there are data, if None.
            Of stored images a random subset, the same for the same seed.
        count: How many data there are.
        seed: The first seed of a pipeline's samples.
        repeats: The number of ranges of seeds, each of n.
        label: Classes to go round in, with commas; every class if None.
        device: Where a pipeline is loaded to.
        dtype: What its network computes in; what it was saved in if None.
        sampler: The options of the sampler.
        options: As in `opened`.

    Raises:
        UserError: If there is nothing of that name, or what was said goes with pipelines alone.
    """

    pipe = what if isinstance(what, Pipeline) else None

    file = Path(what) if isinstance(what, (str, os.PathLike)) else Path()

    if file.suffix in FILES and not file.is_file():
        raise UserError(f"samples '{what}' is not there: give a file that is.")

    if isinstance(what, (str, os.PathLike)) and _is_pipeline(Path(what)):
        pipe = Pipeline.from_pretrained(what, device=device, dtype=dtype)
    if isinstance(pipe, BridgePipeline):
        raise UserError(
            f"'{what}' is a bridge from data to data: use genflow bridge translate, and evaluate "
            "what it makes."
        )

    if pipe is not None:
        if pipe is what and dtype is not None:
            raise UserError(
                f"dtype is '{dtype}', and the pipeline is loaded already: say pipe.to(dtype)."
            )
        n = count if n is None else n
        drawn = Drawn(
            pipe,
            n,
            seed,
            repeats,
            pipe.labels(round_in(label, n), n),
            sampler,
            what="a pipeline" if isinstance(what, Pipeline) else str(what),
            form=form,
        )
        return drawn, list(range(len(drawn)))

    given = {"repeats": repeats != 1, "label": label is not None, "dtype": dtype is not None}
    given |= {k: v is not None for k, v in (sampler or {}).items()}
    told = next((k for k, v in given.items() if v), None)

    if told is not None:
        raise UserError(
            f"{told} is given, but the samples are not drawn from a pipeline: omit it."
        )

    source = opened(what, form, samples=True, **options)
    return source, _chosen(len(source), n, seed)


def _is_pipeline(path: Path) -> bool:
    return (path / "model_index.json").exists() or not path.exists()


def _chosen(count: int, n: int | None, seed: int) -> list[int]:
    """Some of the numbers below ``count``, without repetition, ascending."""

    if n is None or n == count:
        return list(range(count))
    if not 1 <= n <= count:
        raise UserError(f"n is {n}, but there are {count} samples: ask for 1 to {count} of them.")

    return sorted(np.random.default_rng(seed).permutation(count)[:n].tolist())

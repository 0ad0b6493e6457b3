"""Samples of a pipeline as a source of images: image i is drawn from seed first + i.

Several ranges of seeds follow one another without overlap, each with the same classes, so that a
distance can be measured once for each. A sample depends on its seed and its class alone.
"""

__all__ = ["Drawn"]

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
import os
from typing import Any

from torch import Tensor

from genflow.errors import UserError
from genflow.evaluation.forms import Form
from genflow.evaluation.sources import Source
from genflow.pipelines import Pipeline
from genflow.pipelines.claims import described
from genflow.pipelines.pairs import fingerprint
from genflow.solvers.files import read_solver

AS_IT_IS = Form()


@dataclass
class Drawn(Source):
    """Samples of a pipeline.

    Attributes:
        pipe: The pipeline.
        n: The number of samples of a range of seeds.
        first: The seed of image 0.
        repeats: The number of ranges of seeds, one after the other.
        label: The class of each of the n images, or None.
        options: The sampler, as in `Pipeline.build`; the schedule may be a file.
        what: The pipeline in words.
        form: What images are converted to.
        within: The context that the network is called in, as for mixed precision.
        nfe: The number of calls of the network for a sample, once one was drawn.

    Raises:
        UserError: If the pipeline cannot be drawn from by seeds alone, or a value is out of range.
    """

    pipe: Pipeline
    n: int
    first: int = 0
    repeats: int = 1
    label: Tensor | None = None
    options: Mapping[str, Any] | None = None
    what: str = "a pipeline"
    form: Form = AS_IT_IS
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    nfe: int | None = None
    kind = "pipeline"
    sha256 = None

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("repeats", self.repeats)):
            if value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more.")
        if self.pipe.condition is not None:
            raise UserError(
                f"'{self.what}' draws from text: draw with prompts first (genflow generate), and "
                "evaluate the folder."
            )
        self.pipe.check_noise()
        self.options = {k: v for k, v in (self.options or {}).items() if v is not None}
        if isinstance(self.options.get("schedule"), (str, os.PathLike)):
            file = self.options["schedule"]
            self.options["schedule"] = read_solver(file, self.pipe.denoiser.path)
        self.pipe.build(**self.options)  # what cannot be sampled is refused before any work
        self.shape = self.form.shape(self.pipe.event)

    def __len__(self) -> int:
        return self.n * self.repeats

    def read(self, rows: Sequence[int]) -> Tensor:
        """See `Source.read`.

        Raises:
            UserError: If a sample is not finite.
        """

        label = None if self.label is None else self.label[[i % self.n for i in rows]]
        seeds = [self.first + i for i in rows]

        with self.within():
            (drawn,) = self.pipe.batches(seeds, label, batch_size=len(rows), **self.options)

        bad = [s for s, x in zip(seeds, drawn.x, strict=True) if not bool(x.isfinite().all())]

        if bad:
            raise UserError(
                f"{len(bad)} samples are not finite, of seed {bad[0]} first: no distance can be "
                "measured, check the pipeline, its sampler and the guidance."
            )

        self.nfe = drawn.nfe
        return self.form(drawn.uint8 if len(self.shape) == 3 else drawn.x.float())

    def name_of(self, row: int) -> str:
        """See `Source.name_of`; the seed."""

        return f"seed {self.first + row}"

    def shown(self, n: int) -> list[int]:
        """See `Source.shown`; the first of them, whose classes go round."""

        return list(range(len(super().shown(n))))

    def record(self) -> dict[str, Any]:
        """See `Source.record`; with the weights, the sampler and the seeds."""

        n, first = self.n, self.first
        classes = None if self.label is None else Counter(self.label.tolist())
        return super().record() | {
            "weights": fingerprint(self.pipe),
            "sampler": described(self.pipe, dict(self.options)),
            "guidance": float(self.options.get("guidance", 1.0)),
            "classes": classes and {str(k): classes[k] for k in sorted(classes)},
            "seeds": [[first + r * n, first + r * n + n - 1] for r in range(self.repeats)],
        }

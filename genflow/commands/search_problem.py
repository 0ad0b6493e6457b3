"""What a search is asked: a pipeline, samples from disjoint seeds, and a judge."""

__all__ = ["SCORES", "Problem"]

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.commands.choices import labels_of
from genflow.data.pixels import to_uint8
from genflow.errors import UserError, nearest
from genflow.metrics.features import Differentiable, extract, features
from genflow.metrics.frechet import Moments, MomentSum, frechet_loss
from genflow.models import Denoiser
from genflow.pipelines import Pipeline
from genflow.search.population import Population
from genflow.search.refine import Target
from genflow.search.score import Judge, Seeds, Simulated, error, frechet, kernel
from genflow.search.teachers import Teacher, digest_of

SCORES = {
    "error": "root-mean-square error to the teacher",
    "frechet": "Fréchet distance to the data",
    "kernel": "kernel distance to the data",
    "rfid": "Fréchet distance to the teacher's samples",
}
"""The scores by name."""


@dataclass
class Problem:
    """A pipeline, seeds, and what is measured.

    Attributes:
        pipe: The pipeline.
        seeds: The seeds of the search, of the finalists, and of the report.
        score: A name in ``SCORES``.
        teacher: The teacher.
        cache: Where its solutions are kept.
        label: Classes to go round in, as text.
        prompt: What to draw, for pipelines that draw from text.
        guidance: The weight of classifier-free guidance.
        batch_size: How many samples are drawn at a time.
        feature: The feature net.
        data: The data, 8-bit images with shape (m, C, H, W) or vectors with shape (m, d).
    """

    pipe: Pipeline
    seeds: Seeds
    score: str = "error"
    teacher: Teacher = field(default_factory=Teacher)
    cache: Path | None = None
    label: str | None = None
    prompt: str | None = None
    guidance: float = 1.0
    batch_size: int = 1024
    feature: str = "random-conv"
    data: Tensor | None = None

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise UserError(f"score is '{self.score}'{nearest(self.score, SCORES)}")
        if self.score in ("frechet", "kernel") and self.data is None:
            raise UserError(
                f"score is '{self.score}', a distance to data, and there are none: give --data, "
                "or take the score error or rfid."
            )

        self._populations: dict[range, Population] = {}

    @cached_property
    def denoiser(self) -> Denoiser:
        """The denoiser of a call, with its guidance."""

        return self.pipe.build(sampler="ddim", steps=1, guidance=self.guidance).denoiser

    @property
    def images(self) -> bool:
        """Whether samples are images."""

        return len(self.pipe.event) == 3

    def population(self, seeds: range) -> Population:
        """The noise and the conditions of some seeds."""

        if seeds not in self._populations:
            n, weight = len(seeds), next(self.pipe.denoiser.parameters())
            labels = labels_of(self.pipe, self.label, n)
            cond = self.pipe.conditions(n, label=labels, prompt=self.prompt)
            self._populations[seeds] = Population.draw(
                self.denoiser,
                self.pipe.shape,
                seeds,
                cond,
                batch_size=self.batch_size,
                device=self.pipe.device,
                dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32,
            )

        return self._populations[seeds]

    def target(self, seeds: range) -> Tensor:
        """The teacher's solutions."""

        return self.teacher.solve(self.population(seeds), self.cache)

    def scored(self, seeds: range) -> Simulated:
        """The score on some seeds."""

        return Simulated(self.population(seeds), self._judge(seeds))

    @property
    def sloped(self) -> bool:
        """Whether gradients can follow the score itself, and not only the teacher's error."""

        moments = self.score in ("frechet", "rfid")
        return self.score == "error" or (moments and isinstance(self._feature, Differentiable))

    def aim(self, seeds: range) -> Target:
        """What gradients follow: the score where it has a slope, else the teacher's solutions.

        The images of the score are not rounded to 8 bits here, but they are clipped.
        """

        if self.score == "error" or not self.sloped:
            return self.target(seeds)

        loss = frechet_loss(self._moments(self._points(seeds)))

        def distance(x: Tensor) -> Tensor:
            y = self.pipe.decoded(x, "direct")
            return loss(self._feature.embed(y.clamp(-1, 1).float() if self.images else y))

        return distance

    def decoded(self, x: Tensor) -> Tensor:
        """What features look at: 8-bit images, or vectors."""

        y = self.pipe.decoded(x, "none")
        return to_uint8(y.cpu()) if self.images else y.cpu()

    def record(self) -> dict[str, Any]:
        """The problem as JSON values."""

        return {
            "denoiser": digest_of(self.denoiser)[:16],
            "score": self.score,
            "samples": len(self.seeds.search),
            "seeds": [self.seeds.search.start, self.seeds.search.stop],
            "teacher": [self.teacher.sampler, self.teacher.steps],
            "label": self.label,
            "prompt": self.prompt,
            "guidance": self.guidance,
            **({} if self.score == "error" else {"feature": self._feature.name}),
            **({} if self.data is None else {"data": [len(self.data), float(self._mean)]}),
        }

    @cached_property
    def _mean(self) -> Tensor:
        return self.data.double().mean()

    @cached_property
    def _feature(self) -> Any:
        net = features(self.feature if self.images else "identity", self.pipe.event)
        return net.to(self.pipe.device) if isinstance(net, torch.nn.Module) else net

    @cached_property
    def _of_data(self) -> Tensor:
        if self.data.shape[1:] != self.pipe.event:
            raise UserError(
                f"the pipeline draws shape {tuple(self.pipe.event)} and the data have "
                f"{tuple(self.data.shape[1:])}: both must be alike."
            )
        return extract(self._feature, self.data)

    def _judge(self, seeds: range) -> Judge:
        if self.score == "error":
            return error(self.target(seeds))
        if self.score == "kernel":
            return kernel(self._of_data, self._feature, self.decoded)
        return frechet(self._moments(self._points(seeds)), self._feature, self.decoded)

    def _points(self, seeds: range) -> Tensor:
        """The features of the data, or of the teacher's samples."""

        if self.score == "rfid":
            return extract(self._feature, self.decoded(self.target(seeds)))
        return self._of_data

    def _moments(self, points: Tensor) -> Moments:
        total = MomentSum(self._feature.name, self._feature.digest)
        total.update(points)
        return total.moments()

"""A model in training, measured now and then.

The samples are those of seeds 0 to n − 1, with the classes going round: the same at every step, so
two numbers of a run differ by the weights and by nothing else. Ranks share the chunks of the work
and rank 0 measures, for all; features travel as objects, since a training run need not have a
folder that all machines see. Nothing global is touched: generators are the job's own, and the
random state of the process is the same afterwards.
"""

__all__ = ["Watch"]

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.data.base import DataModule
from genflow.data.latents import Latents
from genflow.errors import UserError
from genflow.evaluation.chunks import cut, look_at
from genflow.evaluation.drawn import Drawn
from genflow.evaluation.forms import Form, check_alike
from genflow.evaluation.opening import opened_data
from genflow.evaluation.plans import Plan, planned
from genflow.evaluation.ranks import gathered
from genflow.evaluation.references import References, reference_of
from genflow.metrics.references import Reference
from genflow.metrics.suite import METRICS, measure
from genflow.models import Preconditioned
from genflow.pipelines import Pipeline
from genflow.pipelines.exports import trained
from genflow.pipelines.folders import load_codec

CHUNK = 256
LABELS = {"frechet": "fd", "kernel": "kd", "sliced-wasserstein": "swd"}


class Watch:
    """What measures a denoiser while it is trained.

    Args:
        denoiser: The denoiser, whose weights may change between two measurements.
        data: What it is trained on.
        reference: What samples are compared with, by name; the training data if None.
        n: The number of samples.
        sampler: A name of the registry of samplers.
        steps: Its number of steps.
        guidance: The weight of classifier-free guidance, or None for none.
        feature: Feature nets, with commas.
        metrics: Metrics, with commas.
        batch_size: How many samples are drawn at once.
        split: Whether each rank draws a part of the samples. If not, all ranks draw all of them,
            in step, as a network must that is cut over the ranks.
        say: Told of nets that are left out, and where references come from.

    Raises:
        UserError: If the samples cannot be drawn, or cannot be compared with the reference.
    """

    def __init__(
        self,
        denoiser: Preconditioned,
        data: DataModule,
        *,
        reference: str | None = None,
        n: int = 2048,
        sampler: str = "heun",
        steps: int = 20,
        guidance: float | None = None,
        feature: str | None = None,
        metrics: str = "fd",
        batch_size: int = CHUNK,
        split: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        latents = isinstance(data, Latents)
        if latents and reference is None:
            raise UserError(
                "reference is missing: the run trains on latents, name the images to compare with."
            )

        self.pipe = Pipeline(
            denoiser,
            shape=tuple(data.shape),
            sampler=sampler,
            steps=steps,
            class_names=data.class_names,
            source=data.origin,
            codec=load_codec(data.vae) if latents else None,
        )
        call = {"sampler": sampler, "steps": steps, "guidance": guidance}
        self.source = Drawn(
            self.pipe, n, label=self.pipe.labels(None, n), options=call, what="the run"
        )
        self.data = opened_data(data if reference is None else reference, Form())
        check_alike(self.source.shape, self.data.shape)

        if feature is None and len(self.source.shape) == 3:
            stored = isinstance(self.data, References)
            feature = self.data.features if stored else "random-conv"
        self.plan: Plan = planned(feature, metrics, self.source.shape, say=say)
        self.batch_size, self.split, self.say = batch_size, split, say
        self.references: dict[str, Reference] = {}

    @property
    def lower(self) -> bool:
        """Whether the first of the numbers is better when it is lower."""

        first = next(iter(self.plan.metrics.values()))[0]
        return METRICS[first].better == "lower"

    def __call__(
        self, device: torch.device, within: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> dict[str, float]:
        """Draws, looks and measures.

        Args:
            device: Where the network is.
            within: The context that the network is called in, as for mixed precision; feature
                nets are not.

        Returns:
            The values by name, such as "fd", or "fd-inception" where there are several nets; the
            same on every rank.

        Raises:
            UserError: If samples are not finite.
        """

        if self.pipe.codec is not None:
            self.pipe.codec.to(device)
        self.plan.to(str(device))
        self.source.within = within

        with gathered() as ranks:
            mine = cut(self.source.n, CHUNK)
            mine = mine[ranks.rank :: ranks.world] if self.split else mine
            rows = range(self.source.n)

            def work() -> list[tuple[int, dict[str, np.ndarray]]]:
                nets, size = self.plan.nets, self.batch_size
                seen = ((c.index, look_at(self.source, nets, c, rows, size)) for c in mine)
                return [(index, found.features) for index, found in seen]

            parts = ranks.together(work)
            whole = dict(pair for part in parts for pair in part)
            joined = [whole[k] for k in sorted(whole)]
            return ranks.agree(
                lambda: self._measured(
                    {name: np.concatenate([f[name] for f in joined]) for name in self.plan.nets}
                )
            )

    def _measured(self, features: Mapping[str, np.ndarray]) -> dict[str, float]:
        values = {}

        for name, net in self.plan.nets.items():
            if name not in self.references:
                points = self.plan.points(name)
                self.references[name] = reference_of(self.data, net, points=points, say=self.say)
            x: Tensor = torch.from_numpy(features[name])
            made = measure(
                x, self.references[name], self.plan.metrics[name], prefix=net.prefix, repeats=0
            )
            tail = f"-{name}" if len(self.plan.nets) > 1 else ""
            for metric, numbers in made["metrics"].items():
                if "value" in numbers:
                    values[LABELS.get(metric, metric) + tail] = numbers["value"]

        return values

    def keep(
        self,
        folder: Path,
        card: Mapping[str, Any],
        whole: tuple[Mapping[str, Any], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Saves the model as it is now as a pipeline.

        Args:
            folder: Where to; a pipeline that is there already is replaced.
            card: What to keep beside the weights.
            whole: The record and the weights of the network, where its own are cut.
        """

        self.pipe.card = dict(card)
        denoiser = self.pipe.denoiser if whole is None else trained(*whole).denoiser
        replace(self.pipe, denoiser=denoiser).save(folder, overwrite=True)

r"""A trained model with everything that sampling from it needs.

A pipeline is a record: a preconditioned network, the shape of a sample, its classes, and a default
schedule. It is saved in the folder layout of diffusers, as JSON and safetensors alone::

    model_index.json                            what the parts are, and the record
    net/config.json                             the network, readable by diffusers
    net/diffusion_pytorch_model.safetensors     its weights
    schedule.json                               the default schedule

Nothing that is loaded is unpickled. Every sample has a seed of its own, so it does not depend on
the batch that it was drawn in, nor on how the work was shared out.
"""

__all__ = ["Pipeline"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
import json
import os
from pathlib import Path as FilePath
import secrets
from typing import Any

import diffusers
import torch
from torch import Generator, Tensor

from genflow.errors import UserError
from genflow.files import replacing
from genflow.models import Clipped, Denoiser, Guided, Preconditioned
from genflow.models.records import path_from_dict, path_to_dict
from genflow.nn import Net
from genflow.pipelines.folders import load_net, locate, read_index
from genflow.pipelines.samples import Samples
from genflow.solvers import Adaptive, Sampler, SolverSchedule, build, schedule_for
from genflow.version import __version__

FORMAT = 1


@dataclass
class Pipeline:
    r"""A model to sample from.

    Attributes:
        denoiser: The preconditioned network.
        shape: The shape of a sample, (C, H, W) or (d).
        schedule: The default schedule; if None, ``sampler`` on the path's own grid.
        sampler: The default sampler where no schedule is given.
        steps: Its number of steps.
        class_names: The names of the classes, or None.
        card: Anything worth keeping beside the weights: data, steps, distances. JSON values.

    Example:
        >>> pipe = Pipeline.from_pretrained("assets/digits-rf")
        >>> pipe(16, label=3).images[0].show()
    """

    denoiser: Preconditioned
    shape: tuple[int, ...]
    schedule: SolverSchedule | None = None
    sampler: str = "dpmpp-2m"
    steps: int = 20
    class_names: tuple[str, ...] | None = None
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> int | None:
        """The number of classes, or None."""

        return getattr(self.denoiser.net, "classes", None)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""

        return next(self.denoiser.parameters()).device

    def to(self, *args: Any, **kwargs: Any) -> "Pipeline":
        """Moves the network, as `torch.nn.Module.to` does; returns the pipeline."""

        self.denoiser.to(*args, **kwargs)
        return self

    # -------------------------------------------------------------------------- sampling

    def build(
        self,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        schedule: SolverSchedule | None = None,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        clip: bool = False,
        gradient: str = "none",
        **options: Any,
    ) -> Sampler | Adaptive:
        """The sampler of a call, with guidance and clipping around the denoiser.

        Args:
            sampler: A name of the registry; the default schedule if neither it, nor steps, nor a
                schedule is given.
            steps: The number of steps.
            schedule: A schedule on this pipeline's path.
            guidance: The weight of classifier-free guidance; 1 is none.
            interval: The times inside which guidance acts.
            clip: Whether the data estimate is clamped to [−1, 1].
            gradient: The gradient policy.
            options: Options of the sampler and of its grid.

        Raises:
            UserError: If guidance is asked of a network without classes, or a schedule comes
                together with a sampler or steps.
        """

        denoiser: Denoiser = self.denoiser.eval()

        if guidance != 1.0:
            if self.classes is None:
                raise UserError(
                    f"guidance is {guidance}, but this pipeline has no classes: leave it at 1."
                )
            denoiser = Guided(denoiser, guidance, {"label": self.classes}, interval=interval)
        if clip:
            denoiser = Clipped(denoiser)

        if schedule is not None:
            if sampler is not None or steps is not None or options:
                raise UserError(
                    "schedule is given together with a sampler, steps or options: a schedule "
                    "holds them all, give one or the other."
                )
            return Sampler(denoiser, schedule, gradient)

        if sampler is None and steps is None and not options and self.schedule is not None:
            return Sampler(denoiser, self.schedule, gradient)

        name = sampler or self.sampler
        count = self.steps if steps is None else steps
        return build(name, denoiser, count, gradient=gradient, **options)

    def labels(self, label: Any, n: int) -> Tensor | None:
        """Class labels for n samples.

        Args:
            label: None: every class in turn, or nothing if there are no classes. A class or its
                name: that class for all. A sequence of n of them: one each.
            n: The number of samples.

        Raises:
            UserError: If a label is out of range, or their number is not n.
        """

        if self.classes is None:
            if label is not None:
                raise UserError(f"label is {label!r}, but this pipeline has no classes.")
            return None

        if label is None:
            return torch.arange(n) % self.classes

        many = list(label) if isinstance(label, (list, tuple, Tensor)) else [label] * n
        numbers = [self._class(v) for v in many]

        if len(numbers) != n:
            raise UserError(f"label holds {len(numbers)} classes for {n} samples: give one each.")

        return torch.tensor(numbers)

    def _class(self, value: Any) -> int:
        names = list(self.class_names or [])

        if isinstance(value, str) and not value.lstrip("-").isdigit():
            if value in names:
                return names.index(value)
            raise UserError(
                f"label is '{value}': the classes are {', '.join(names) or 'unnamed'}."
            )

        if not 0 <= int(value) < self.classes:
            raise UserError(f"label is {int(value)}: 0 … {self.classes - 1} are allowed.")

        return int(value)

    def __call__(
        self,
        n: int | None = None,
        *,
        seeds: Sequence[int] | None = None,
        seed: int | None = None,
        label: Any = None,
        batch_size: int = 256,
        **options: Any,
    ) -> Samples:
        """Draws samples.

        Args:
            n: The number of samples; the number of seeds, or 1, if None.
            seeds: One seed a sample.
            seed: The first of n consecutive seeds; drawn at random if neither is given.
            label: Classes, as in [`labels`][genflow.pipelines.pipeline.Pipeline.labels].
            batch_size: How many are drawn at a time; the samples do not depend on it.
            options: See [`build`][genflow.pipelines.pipeline.Pipeline.build].

        Returns:
            The samples.

        Raises:
            UserError: If a value is not allowed.
        """

        if seeds is None:
            first = secrets.randbelow(2**31) if seed is None else seed
            seeds = range(first, first + (1 if n is None else n))
        elif n is not None and n != len(seeds):
            raise UserError(f"n is {n} and there are {len(seeds)} seeds: give one of the two.")

        seeds = list(seeds)
        labels = self.labels(label, len(seeds))
        batches = list(self.batches(seeds, labels, batch_size=batch_size, **options))
        x = torch.cat([b.x for b in batches]) if batches else torch.empty(0, *self.shape)
        nfe, name = (batches[0].nfe, batches[0].sampler) if batches else (0, "")
        return Samples(x, seeds, nfe, name, labels)

    def batches(
        self,
        seeds: Sequence[int],
        label: Tensor | None = None,
        *,
        batch_size: int = 256,
        **options: Any,
    ) -> Iterator[Samples]:
        """Draws samples batch by batch, for more of them than memory holds.

        Args:
            seeds: One seed a sample.
            label: The class of each, with shape (n), or None.
            batch_size: How many are drawn at a time, 1 or more.
            options: See [`build`][genflow.pipelines.pipeline.Pipeline.build].

        Yields:
            The samples of each batch.
        """

        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be 1 or more.")

        sampler = self.build(**options)
        weight = next(self.denoiser.parameters())
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        kept = getattr(sampler, "schedule", None) in (self.schedule, options.get("schedule"))
        asked = options.get("sampler") or (options.get("steps") and self.sampler)
        name = asked or ("schedule" if kept and sampler.schedule is not None else self.sampler)

        for i in range(0, len(seeds), batch_size):
            part = list(seeds[i : i + batch_size])
            generators = [Generator().manual_seed(s) for s in part]
            shape = (len(part), *self.shape)
            x = sampler.init(shape, generator=generators, device=self.device, dtype=dtype)
            cond = {} if label is None else {"label": label[i : i + batch_size].to(self.device)}
            if isinstance(sampler, Sampler):
                cond["generator"] = generators
            y = sampler(x, **cond)
            own = None if label is None else label[i : i + batch_size]
            yield Samples(y.cpu(), part, sampler.nfe, name, own)

    def sample(self, x: Tensor, *, gradient: str = "none", **options: Any) -> Tensor:
        r"""From noise to data, tensor to tensor.

        Args:
            x: Initial states, with shape (B, \*event), as ``build(...).init`` draws them.
            gradient: ``"none"``, or ``"direct"`` for a result with a ``grad_fn``.
            options: Conditions (``label``), and the options of
                [`build`][genflow.pipelines.pipeline.Pipeline.build].

        Returns:
            The samples, with shape (B, \*event).
        """

        cond = {"label": options.pop("label")} if options.get("label") is not None else {}
        return self.build(gradient=gradient, **options)(x, **cond)

    # ------------------------------------------------------------------- saving, loading

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Saves the pipeline: written beside the folder first, then renamed.

        Args:
            folder: Where to.
            overwrite: Whether a pipeline that is there already is replaced.

        Raises:
            UserError: If the folder exists and is not to be overwritten, or writing fails.
        """

        d = self.denoiser
        net = d.net.model if isinstance(d.net, Net) else d.net
        schedule = self.schedule

        if schedule is None:
            made = schedule_for(self.sampler, d.path, self.steps)
            schedule = made if isinstance(made, SolverSchedule) else None

        index = {
            "_class_name": "Pipeline",
            "_library": "genflow",
            "_genflow_version": __version__,
            "_diffusers_version": diffusers.__version__,
            "format": FORMAT,
            "net": _library_and_class(net),
            "path": path_to_dict(d.path),
            "prediction": d.prediction,
            "clock": d.clock,
            "sigma_data": d.sigma_data,
            "shape": list(self.shape),
            "class_names": None if self.class_names is None else list(self.class_names),
            "sampler": self.sampler,
            "steps": self.steps,
            "card": self.card,
        }

        with replacing(folder, overwrite=overwrite, mark="model_index.json") as part:
            net.save_pretrained(part / "net")
            if schedule is not None:
                schedule.save(part / "schedule.json")
            text = json.dumps(index, indent=1, ensure_ascii=False, allow_nan=False)
            (part / "model_index.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, device: str | torch.device | None = None
    ) -> "Pipeline":
        """Loads a pipeline that [`save`][genflow.pipelines.pipeline.Pipeline.save] wrote.

        Args:
            name: A folder, or the id of a repository of the Hugging Face hub.
            device: Where the network goes.

        Returns:
            The pipeline, in evaluation mode.

        Raises:
            UserError: If there is no such folder, or it is damaged, or of another kind.
        """

        folder = locate(name)
        index = read_index(folder, FORMAT)
        net = load_net(folder / "net", index["net"][1])
        file = folder / "schedule.json"

        try:
            denoiser = Preconditioned(
                net,
                path_from_dict(index["path"]),
                index["prediction"],
                index["clock"],
                index["sigma_data"],
            )
            names = index["class_names"]
            pipe = cls(
                denoiser=denoiser.eval(),
                shape=tuple(index["shape"]),
                schedule=SolverSchedule.load(file) if file.exists() else None,
                sampler=index["sampler"],
                steps=index["steps"],
                class_names=None if names is None else tuple(names),
                card=index.get("card", {}),
            )
        except KeyError as error:
            raise UserError(
                f"pipeline '{FilePath(name)}' lacks {error} in model_index.json: save it again."
            ) from None

        return pipe.to(device) if device is not None else pipe


def _library_and_class(net: torch.nn.Module) -> list[str]:
    return [type(net).__module__.split(".")[0], type(net).__name__]

"""A fitted bridge as a pipeline: source points in, target points out.

It is saved like every pipeline of genflow, as JSON and safetensors alone, and loaded without
unpickling, by `Pipeline.from_pretrained` too::

    model_index.json       the record: ε, the family of covariances, the shape of a sample, classes
    bridge.safetensors     log-weights, centres, and the tensors of the covariances
    vae/                   the codec, if there is one

With a codec the bridge lives on latents: images are encoded before it, and decoded behind it.

A bridge carries data to data. So a call takes points where other pipelines take a number, and
every point has a seed of its own, which makes its image independent of the batch.
"""

__all__ = ["BridgePipeline"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
import json
import math
import os
from pathlib import Path
import secrets
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Generator, Tensor

from genflow.data.pixels import to_float
from genflow.errors import UserError, nearest
from genflow.files import replacing
from genflow.models.bridges import LightBridge, Method
from genflow.models.covariances import FAMILIES
from genflow.pipelines.codecs import Codec
from genflow.pipelines.conditions import numbered
from genflow.pipelines.folders import FORMAT, load_codec, locate, read_index
from genflow.pipelines.samples import Samples
from genflow.version import __version__

_INDEX, _TENSORS = "model_index.json", "bridge.safetensors"


@dataclass
class BridgePipeline:
    r"""A bridge from one data set to another.

    Attributes:
        bridge: The bridge.
        shape: The shape of a state: of a sample, or of its latent; (d) if None.
        class_names: The names of the classes of a bridge with classes, or None.
        card: Anything worth keeping beside the parameters: data, steps, distances. JSON values.
        codec: From latents to images and back; None if states are samples.

    Raises:
        UserError: If the shape has not d values, or there is not one name for each class.

    Example:
        >>> pipe = BridgePipeline(LightBridge.fit(x0, x1, epsilon=0.1))
        >>> y = pipe(x0, seed=0).x
        >>> pipe.save("bridge")
        >>> Pipeline.from_pretrained("bridge").trajectory(x0, (1.0, 0.5, 0.0))
    """

    bridge: LightBridge
    shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    card: dict[str, Any] = field(default_factory=dict)
    codec: Codec | None = None

    def __post_init__(self) -> None:
        d, classes = self.bridge.dimension, self.bridge.classes
        self.shape = (d,) if self.shape is None else tuple(self.shape)

        if math.prod(self.shape) != d:
            raise UserError(f"shape is {self.shape} and the bridge has {d} dimensions.")
        if self.class_names is not None and len(self.class_names) != (classes or 0):
            raise UserError(
                f"class_names are {self.class_names}, and the bridge has {classes or 'no'} "
                "classes: one name each is needed."
            )

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""

        return self.bridge.centre.device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the bridge, as `torch.nn.Module.to` does; returns the pipeline."""

        for piece in (self.bridge, self.codec):
            if piece is not None:
                piece.to(*args, **kwargs)
        return self

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a sample: that of a state, or of the image behind a latent."""

        return self.shape if self.codec is None else self.codec.event(self.shape)

    # ----------------------------------------------------------------------------- calling

    def __call__(
        self,
        x: Any,
        /,
        *,
        seeds: Sequence[int] | None = None,
        seed: int | None = None,
        label: Any = None,
        batch_size: int = 4096,
    ) -> Samples:
        r"""Draws a target point for each source point, exactly and at once.

        Args:
            x: The source points, a tensor or array with shape (n, \*event); images in uint8 or in
                [−1, 1], if there is a codec.
            seeds: One seed a point.
            seed: The first of n consecutive seeds; drawn at random if neither is given.
            label: The class of all, or one each, as a number or a name; of a bridge with classes.
            batch_size: How many are drawn at a time; the points do not depend on it.

        Returns:
            The target points.

        Raises:
            UserError: If the points do not fit or are not finite, or a value is not allowed.
        """

        x, seeds, labels = self._asked(x, seeds, seed, label)
        parts = self._parts(x, seeds, labels, batch_size)
        drawn = [self.decoded(self.bridge.sample(u, c, generator=g)).cpu() for u, c, g in parts]
        y = torch.cat(drawn) if drawn else x
        return Samples(y, seeds, 1, "plan", labels)

    def trajectory(
        self,
        x: Any,
        times: Sequence[float],
        /,
        *,
        seeds: Sequence[int] | None = None,
        seed: int | None = None,
        label: Any = None,
        method: Method = "kernel",
        batch_size: int = 4096,
    ) -> Tensor:
        r"""Draws a path from each point.

        Args:
            x: The points at ``times[0]``, with shape (n, \*event).
            times: Decreasing times from 1 (source) to 0 (target).
            seeds: As in a call.
            seed: As in a call.
            label: As in a call.
            method: As in `LightBridge.trajectory`.
            batch_size: As in a call.

        Returns:
            The states at all times, or the images behind them, with shape (T, n, \*event), on the
            CPU.
        """

        x, seeds, labels = self._asked(x, seeds, seed, label)
        options = {"method": method}
        parts = self._parts(x, seeds, labels, batch_size)
        drawn = [self.bridge.trajectory(u, times, c, generator=g, **options) for u, c, g in parts]
        shown = [self.decoded(p.flatten(0, 1)).unflatten(0, p.shape[:2]).cpu() for p in drawn]
        return torch.cat(shown, 1) if shown else x.new_empty(len(times), *x.shape)

    def points(self, x: Any, name: str = "x") -> Tensor:
        r"""Samples as tensors of floating type: images in uint8 are brought to [−1, 1].

        Args:
            x: A tensor or array with shape (n, \*event).
            name: What an error calls them.

        Raises:
            UserError: If they have another shape.
        """

        x = torch.as_tensor(x)

        if self.codec is not None and x.dtype == torch.uint8:
            x = to_float(x)
        if tuple(x.shape[1:]) != self.event or x.ndim == 0:
            raise UserError(
                f"{name} has shape {tuple(x.shape)}: (n, {', '.join(map(str, self.event))}) is "
                "needed."
            )

        return x if x.is_floating_point() else x.float()

    @torch.no_grad()
    def encoded(self, x: Tensor) -> Tensor:
        """The states of samples: the latents of images, or the samples themselves."""

        return x if self.codec is None else self.codec.encode(x)

    @torch.no_grad()
    def decoded(self, x: Tensor) -> Tensor:
        """The samples of states: the images of latents, or the states themselves."""

        return x if self.codec is None else self.codec.decode(x)

    def _asked(
        self, x: Any, seeds: Sequence[int] | None, seed: int | None, label: Any
    ) -> tuple[Tensor, list[int], Tensor | None]:
        """The points, seeds and classes of a call, checked."""

        x = self.points(x)
        n = len(x)
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum()) if n else 0

        if bad:
            raise UserError(f"x holds {bad} points that are not finite: leave them out.")
        if seeds is not None and len(seeds) != n:
            raise UserError(f"there are {len(seeds)} seeds for {n} points: give one each.")
        if label is not None and self.bridge.classes is None:
            raise UserError(f"label is {label!r}, but this bridge has no classes.")
        if label is None and self.bridge.classes is not None:
            raise UserError(
                f"label is missing: this bridge has {self.bridge.classes} classes, give one for "
                "all points, or one each."
            )

        if seeds is None:
            first = secrets.randbelow(2**31) if seed is None else seed
            seeds = range(first, first + n)

        labels = None

        if self.bridge.classes is not None:
            labels = numbered(label, n, self.bridge.classes, self.class_names)

        return x, list(seeds), labels

    def _parts(
        self, x: Tensor, seeds: list[int], labels: Tensor | None, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor | None, list[Generator]]]:
        """States, classes and generators, batch by batch."""

        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be 1 or more.")

        for i in range(0, len(x), batch_size):
            own = slice(i, i + batch_size)
            generators = [Generator().manual_seed(s) for s in seeds[own]]
            label = None if labels is None else labels[own].to(self.device)
            yield self.encoded(x[own].to(self.device)), label, generators

    # --------------------------------------------------------------------- saving, loading

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Saves the pipeline: written beside the folder first, then renamed.

        Args:
            folder: Where to.
            overwrite: Whether a pipeline that is there already is replaced.

        Raises:
            UserError: If the folder exists and is not to be overwritten, or writing fails.
        """

        b = self.bridge
        tensors = {"log_weight": b.log_weight, "centre": b.centre, **b.covariance.tensors()}
        index = {
            "_class_name": "BridgePipeline",
            "_library": "genflow",
            "_genflow_version": __version__,
            "format": FORMAT,
            "covariance": b.covariance.kind,
            "epsilon": b.epsilon,
            "components": b.components,
            "dimension": b.dimension,
            "classes": b.classes,
            "shape": list(self.shape),
            "class_names": None if self.class_names is None else list(self.class_names),
            "card": self.card,
        }
        vae = None if self.codec is None else self.codec.vae

        if vae is not None:
            index["vae"] = ["diffusers", type(vae).__name__]

        with replacing(folder, overwrite=overwrite, mark=_INDEX) as part:
            if vae is not None:
                vae.save_pretrained(part / "vae")
            kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            save_file(kept, part / _TENSORS)
            text = json.dumps(index, indent=1, ensure_ascii=False, allow_nan=False)
            (part / _INDEX).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, device: str | torch.device | None = None
    ) -> "BridgePipeline":
        """Loads a saved bridge.

        Args:
            name: A folder, ``zoo:NAME``, or the id of a repository of the Hugging Face hub.
            device: Where the parameters go.

        Raises:
            UserError: If there is no such folder, it holds no bridge, or it is damaged.
        """

        folder = locate(name)
        index = read_index(folder)

        if (index.get("_library"), index["_class_name"]) != ("genflow", cls.__name__):
            raise UserError(
                f"pipeline '{name}' is a {index['_class_name']} and no bridge: a folder that "
                "BridgePipeline.save wrote is needed."
            )

        pipe = cls.read(folder, index)
        return pipe if device is None else pipe.to(device)

    @classmethod
    def read(cls, folder: Path, index: dict[str, Any]) -> "BridgePipeline":
        """The pipeline of a folder whose record is read already.

        Args:
            folder: The folder.
            index: The record of its ``model_index.json``.

        Raises:
            UserError: If the record lacks a field, or the tensors are damaged or do not fit it.
        """

        try:
            tensors = load_file(folder / _TENSORS)
            kind = index["covariance"]
            if kind not in FAMILIES:
                raise UserError(f"covariance is '{kind}'{nearest(str(kind), FAMILIES)}")
            family = FAMILIES[kind](*(tensors.pop(name) for name in FAMILIES[kind].names))
            bridge = LightBridge(
                tensors.pop("log_weight"), tensors.pop("centre"), family, index["epsilon"]
            )
            size = (bridge.components, bridge.dimension, bridge.classes)
            if tensors or size != tuple(index[k] for k in ("components", "dimension", "classes")):
                raise UserError(
                    f"the tensors in '{folder}' do not fit its record: the files belong to "
                    "different bridges."
                )
            names = index["class_names"]
            return cls(
                bridge.eval().requires_grad_(False),
                tuple(index["shape"]),
                None if names is None else tuple(names),
                index.get("card", {}),
                load_codec(folder / "vae") if "vae" in index else None,
            )
        except KeyError as error:
            raise UserError(f"bridge '{folder}' lacks {error}: save it again.") from None
        except (OSError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"the bridge in '{folder}' cannot be loaded ({reason}): the files are damaged or "
                "incomplete, copy or save them again."
            ) from None

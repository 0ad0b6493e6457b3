r"""A trained model with everything that sampling from it needs.

A pipeline is a record: a preconditioned network, the shape of a sample, its classes, and a default
schedule. It is saved in the folder layout of diffusers, as JSON and safetensors alone::

    model_index.json                            what the parts are, and the record
    net/config.json                             the network, readable by diffusers
    net/diffusion_pytorch_model.safetensors     its weights
    schedule.json                               the default schedule
    vae/                                        the codec, if there is one

Nothing that is loaded is unpickled. Stock pipelines of diffusers are read too, through
`genflow.pipelines.adapters`; those that draw from text have two parts more, which stand before and
behind the denoiser: a condition (prompts to embeddings) and a codec (latents to images).

Every sample has a seed of its own, so it does not depend on the batch that it was drawn in, nor on
how the work was shared out.
"""

__all__ = ["Pipeline"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import os
import secrets
from typing import Any

import torch
from torch import Generator, Tensor

from genflow.data.pixels import to_float
from genflow.errors import UserError
from genflow.pipelines.bridge import BridgePipeline
from genflow.pipelines.conditions import Prompt, asked, part
from genflow.pipelines.folders import locate, read, read_index, write
from genflow.pipelines.model import Model, dtype_named
from genflow.pipelines.overlap import behind
from genflow.pipelines.samples import Samples, joined
from genflow.solvers import Adaptive, Sampler


@dataclass
class Pipeline(Model):
    r"""A model to sample from: seeds in, samples out.

    Its fields, and how a call is made up, are those of `genflow.pipelines.model.Model`.

    Example:
        >>> pipe = Pipeline.from_pretrained("zoo:digits-1rf")
        >>> pipe(16, label=3).images[0].show()

        >>> pipe = Pipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
        >>> pipe("a cat", guidance=5, sampler="unipc", steps=8).images[0].show()
    """

    def __call__(
        self,
        ask: int | Prompt | None = None,
        /,
        *,
        n: int | None = None,
        prompt: Prompt | None = None,
        seeds: Sequence[int] | None = None,
        seed: int | None = None,
        label: Any = None,
        batch_size: int = 256,
        **options: Any,
    ) -> Samples:
        """Draws samples.

        Args:
            ask: The number of samples, as ``n``, or what to draw, as ``prompt``.
            n: The number of samples; the number of seeds or of prompts, or 1, if None.
            prompt: A prompt for all samples, or a list of them, one each.
            seeds: One seed a sample.
            seed: The first of n consecutive seeds; drawn at random if neither is given.
            label: Classes, as in [`labels`][genflow.pipelines.model.Model.labels].
            batch_size: How many are drawn at a time; the samples do not depend on it.
            options: See [`batches`][genflow.pipelines.pipeline.Pipeline.batches] and
                [`build`][genflow.pipelines.model.Model.build].

        Returns:
            The samples.

        Raises:
            UserError: If a value is not allowed.

        Example:
            >>> pipe(["a cat", "a dog"], seeds=[3, 4], guidance=5, negative="blurred")
        """

        n, prompt = asked(ask, n, prompt)

        if seeds is None:
            first = secrets.randbelow(2**31) if seed is None else seed
            seeds = range(first, first + (1 if n is None else n))
        elif n is not None and n != len(seeds):
            raise UserError(f"n is {n} and there are {len(seeds)} seeds: give one of the two.")

        seeds = list(seeds)
        free = "embedding" in (options.get("conditions") or {})
        labels = None if free and label is None else self.labels(label, len(seeds))
        options |= {"prompt": prompt, "batch_size": batch_size}
        batches = list(self.batches(seeds, labels, **options))
        return joined(batches, self.event)

    def batches(
        self,
        seeds: Sequence[int],
        label: Tensor | None = None,
        *,
        prompt: Prompt | None = None,
        negative: Prompt | None = None,
        conditions: Mapping[str, Any] | None = None,
        batch_size: int = 256,
        capture: bool = False,
        overlap: bool = False,
        **options: Any,
    ) -> Iterator[Samples]:
        """Draws samples batch by batch, for more of them than memory holds.

        Args:
            seeds: One seed a sample.
            label: The class of each, with shape (n), or None.
            prompt: A prompt for all, or one each.
            negative: What guidance leads away from: one prompt for all, or one each.
            conditions: Further conditions by name, with 1 or n rows; they win over the prompt's.
            batch_size: How many are drawn at a time, 1 or more.
            capture: Whether whole solves are recorded as CUDA graphs, as by `Sampler.capture`: on
                a GPU, worth it where many batches are drawn by a small network.
            overlap: Whether each batch is decoded and copied to the host while the next one is
                drawn, on a second stream of a GPU; it takes the memory of both.
            options: See [`build`][genflow.pipelines.model.Model.build].

        Yields:
            The samples of each batch.

        Raises:
            UserError: If a value is not allowed.
        """

        self.check_noise()
        _check_batch(batch_size)
        states = self._states(
            seeds, label, prompt, negative, conditions, batch_size, capture, options
        )

        def decode(x: Tensor) -> Tensor:
            return self.decoded(x, "none")

        ends = (
            behind(states, decode, self.device)
            if overlap
            else ((decode(x).cpu(), about) for x, about in states)
        )

        for y, (own, nfe, name, labels) in ends:
            yield Samples(y, own, nfe, name, labels)

    def _states(
        self,
        seeds: Sequence[int],
        label: Tensor | None,
        prompt: Prompt | None,
        negative: Prompt | None,
        conditions: Mapping[str, Any] | None,
        batch_size: int,
        capture: bool,
        options: Mapping[str, Any],
    ) -> Iterator[tuple[Tensor, tuple[list[int], int, str, Tensor | None]]]:
        """The final states of each batch, where they were made, and what `Samples` say of them."""

        n, device = len(seeds), self.device
        shared = negative is None or isinstance(negative, str)
        sampler = self.build(negative=negative, **options) if shared else None
        dtype = self._dtype()

        if capture and sampler is None:
            raise UserError(
                "capture is True and there is a negative prompt for each sample, so that each "
                "batch has a sampler of its own: give one for all, or leave capture out."
            )

        solve = sampler.capture() if capture else sampler

        for i in range(0, n, batch_size):
            batch = slice(i, i + batch_size)
            own, size = list(seeds[batch]), len(seeds[batch])
            labels = None if label is None else label[batch]
            if not shared:
                solve = sampler = self.build(
                    negative=part("negative", negative, batch, n), **options
                )
            cond = self.conditions(
                size,
                label=labels,
                prompt=part("prompt", prompt, batch, n),
                given={k: part(k, v, batch, n) for k, v in (conditions or {}).items()},
            )
            generators = [Generator().manual_seed(s) for s in own]
            shape = (size, *self.shape)
            x = sampler.init(shape, generator=generators, device=device, dtype=dtype)
            fresh = {"generator": generators} if isinstance(sampler, Sampler) else {}
            x = solve(x, **fresh, **cond)
            yield x, (own, sampler.nfe, self._name(sampler, options), labels)

    # ----------------------------------------------------------------- data at both ends

    def translate(
        self,
        x: Tensor,
        *,
        reverse: bool = False,
        label: Any = None,
        batch_size: int = 256,
        **options: Any,
    ) -> Samples:
        r"""Leads given states to samples: data of the source to the target, or noise to data.

        Args:
            x: Images in uint8 or in [−1, 1], or vectors, with shape (n, \*event).
            reverse: Whether to go the other way round: from the target to the source, or from data
                to the noise that they come from. With a codec, noise has no images: the result is
                then what the codec makes of it.
            label: Classes, as in [`labels`][genflow.pipelines.model.Model.labels].
            batch_size: How many are carried at a time, 1 or more.
            options: See [`build`][genflow.pipelines.model.Model.build]; the sampler may be
                any that starts at t = 1.

        Returns:
            The samples, without seeds. Only a sampler that solves the ODE accurately, as dopri5
            does, comes back to where it started.

        Raises:
            UserError: If the states have another shape, the flow cannot be turned round, or the
                sampler adds noise.

        Example:
            >>> pipe.translate(photographs, sampler="heun", steps=10).images[0].show()
        """

        return joined(
            [
                *self.translations(
                    x,
                    self.labels(label, len(x)),
                    reverse=reverse,
                    batch_size=batch_size,
                    **options,
                )
            ],
            self.event,
        )

    def translations(
        self,
        x: Tensor,
        label: Tensor | None = None,
        *,
        reverse: bool = False,
        batch_size: int = 256,
        **options: Any,
    ) -> Iterator[Samples]:
        r"""Translates batch by batch; see `translate`.

        Args:
            x: Images in uint8 or in [−1, 1], or vectors, with shape (n, \*event).
            label: The class of each, with shape (n), or None.
            reverse: Whether to go the other way round.
            batch_size: How many are carried at a time, 1 or more.
            options: See [`build`][genflow.pipelines.model.Model.build].

        Yields:
            The samples of each batch.
        """

        _check_batch(batch_size)

        if tuple(x.shape[1:]) != tuple(self.event):
            raise UserError(
                f"x has samples of shape {tuple(x.shape[1:])}, but this pipeline carries "
                f"{tuple(self.event)}: resize or convert them."
            )

        pipe = replace(self, denoiser=self.denoiser.turned()) if reverse else self
        sampler = pipe.build(**options)

        if isinstance(sampler, Sampler) and any(sampler.tableau.noisy):
            raise UserError(
                "the sampler adds fresh noise, which is right for flows from noise alone: "
                "translate by one that solves the ODE, such as 'heun'."
            )

        for i in range(0, len(x), batch_size):
            part = x[i : i + batch_size].to(self.device)
            state = (to_float(part) if part.dtype == torch.uint8 else part).to(self._dtype())
            labels = None if label is None else label[i : i + batch_size]
            if self.codec is not None:
                with torch.no_grad():
                    state = self.codec.encode(state)
            cond = self.conditions(len(state), label=labels)
            y = self.decoded(sampler(state, **cond), "none")
            yield Samples(y.cpu(), [], sampler.nfe, self._name(sampler, options), labels)

    def _dtype(self) -> torch.dtype:
        """The dtype of states."""

        return torch.promote_types(self.dtype, torch.float32)

    def _name(self, sampler: Sampler | Adaptive, options: Mapping[str, Any]) -> str:
        kept = getattr(sampler, "schedule", None) in (self.schedule, options.get("schedule"))
        asked = options.get("sampler") or (options.get("steps") and self.sampler)
        return asked or ("schedule" if kept and sampler.schedule is not None else self.sampler)

    # ------------------------------------------------------------------- saving, loading

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Saves the pipeline: written beside the folder first, then renamed.

        Args:
            folder: Where to.
            overwrite: Whether a pipeline that is there already is replaced.

        Raises:
            UserError: If the pipeline was adapted from one of diffusers (which saves it), the
                folder exists and is not to be overwritten, or writing fails.
        """

        write(self, folder, overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        size: tuple[int, int] | None = None,
        reverse: bool = False,
    ) -> "Pipeline | BridgePipeline":
        """Loads a pipeline: one of genflow, or a stock one of diffusers.

        Args:
            name: A folder, ``zoo:NAME``, or the id of a repository of the Hugging Face hub.
            device: Where the networks go.
            dtype: What their weights become, such as ``torch.bfloat16`` or ``"float16"``; see
                [`to`][genflow.pipelines.model.Model.to]. They stay what they are if None.
            size: The height and the width in pixels of what a stock pipeline draws; its own if
                None.
            reverse: Whether a stock pipeline is a flow that was trained with noise at 0 and data
                at 1; pipelines of genflow say so themselves.

        Returns:
            The pipeline, in evaluation mode; a `BridgePipeline` if the folder holds a bridge.

        Raises:
            UserError: If there is no such folder, or it is damaged, or of an unknown kind; if the
                dtype is unknown, or given for a bridge.
        """

        dtype = None if dtype is None else dtype_named(dtype)
        folder = locate(name)
        index = read_index(folder)

        if index.get("_library") != "genflow":
            from genflow.pipelines.adapters import adapt, load

            pipe = adapt(load(folder, index), size=size, reverse=reverse)
        elif size is not None or reverse:
            told = f"size is {size}" if size is not None else "reverse is True"
            raise UserError(
                f"{told}, but '{name}' is a pipeline of genflow: size and clock are its own, "
                "leave it out."
            )
        elif index["_class_name"] == "BridgePipeline":
            pipe = BridgePipeline.read(folder, index)
            if dtype is not None:
                raise UserError(
                    f"dtype is '{dtype}', but '{name}' is a bridge, which has no network: its "
                    "closed forms need their precision, leave it out."
                )
        else:
            pipe = cls(**read(folder, index))

        pipe = pipe if dtype is None else pipe.to(dtype)
        return pipe if device is None else pipe.to(device)


def _check_batch(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be 1 or more.")

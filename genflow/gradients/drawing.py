r"""Samples of fixed seeds, as a function of what may be changed.

.. math:: x_i = \mathrm{decode}\big(\mathrm{sampler}(z_i; c_i, \theta)\big)

Sample i has its noise :math:`z_i` and its conditions :math:`c_i`, drawn from its seed as a
pipeline draws them, fresh noise on the way included. Every application here changes one of
:math:`z`, :math:`c` and :math:`\theta` and keeps the others.
"""

__all__ = ["Drawn", "frozen", "sketch"]

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from genflow import viz
from genflow.data.pixels import to_uint8
from genflow.errors import UserError
from genflow.pipelines import Pipeline
from genflow.solvers import Sampler
from genflow.solvers.adjoint import Gradient


@contextmanager
def frozen(*modules: Any) -> Iterator[None]:
    """Inside, no parameter of these modules, or of those that these objects hold, is wanted."""

    held = [m if isinstance(m, nn.Module) else getattr(m, "__dict__", {}) for m in modules]
    found = [[m] if isinstance(m, nn.Module) else m.values() for m in held]
    kept = [m for values in found for m in values if isinstance(m, nn.Module)]
    wanting = [p for m in kept for p in m.parameters() if p.requires_grad]

    try:
        for p in wanting:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanting:
            p.requires_grad_(True)


class Drawn:
    r"""The samples of fixed seeds.

    Args:
        pipe: A pipeline of images.
        seeds: One seed a sample.
        label: The class of each, with shape (n), or None.
        prompt: A prompt for all, or one each.
        conditions: Further conditions by name, with 1 or n rows.
        gradient: The gradient policy.
        batch_size: How many are drawn at a time, 1 or more, where nothing is differentiated.
        options: The sampler, as in `genflow.Pipeline.build`.

    Attributes:
        cond: The conditions, with n rows each.
        noise: The initial states :math:`z`, with shape (n, \*shape).

    Raises:
        UserError: If the pipeline does not make images, there is no seed, or the sampler and the
            gradient policy do not go together.
    """

    def __init__(
        self,
        pipe: Pipeline,
        seeds: Sequence[int],
        *,
        label: Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | None = None,
        gradient: str | Gradient = "exact",
        batch_size: int = 64,
        **options: Any,
    ) -> None:
        if len(pipe.event) != 3:
            raise UserError(
                f"the pipeline makes vectors of shape {pipe.event}: one that makes images is "
                "needed here."
            )
        if not seeds:
            raise UserError("n is 0: at least one sample is needed.")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be 1 or more.")

        self.pipe, self.seeds = pipe, list(seeds)
        self.sampler = pipe.build(gradient=gradient, **options)
        self.gradient, self.batch_size = gradient, batch_size
        self.cond = pipe.conditions(len(seeds), label=label, prompt=prompt, given=conditions)
        self.noise = self._init(self._generators(slice(None)))

    def __len__(self) -> int:
        return len(self.seeds)

    def _generators(self, part: slice | Tensor) -> list[Generator]:
        numbers = range(len(self.seeds))
        rows = list(numbers[part]) if isinstance(part, slice) else part.tolist()
        return [Generator().manual_seed(self.seeds[i]) for i in rows]

    def _init(self, generators: list[Generator]) -> Tensor:
        weight = next(self.pipe.denoiser.parameters())
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        shape = (len(generators), *self.pipe.shape)
        return self.sampler.init(shape, generator=generators, device=self.pipe.device, dtype=dtype)

    def __call__(self, rows: Tensor, noise: Tensor | None = None, **changed: Tensor) -> Tensor:
        r"""Draws samples.

        Args:
            rows: Their numbers, with shape (B).
            noise: Other initial states, with shape (B, \*shape).
            changed: Other conditions by name, with 1 or B rows.

        Returns:
            The images, in about [−1, 1], with shape (B, C, H, W).
        """

        B, generators = len(rows), self._generators(rows)
        z = self._init(generators)  # what follows from the generators is the noise on the way
        cond = {k: v[rows.to(v.device)] for k, v in self.cond.items() if k not in changed}
        cond |= {k: v.expand(B, *v.shape[1:]) for k, v in changed.items()}

        if "embedding" in changed:
            cond.pop("label", None)

        fresh = {"generator": generators} if isinstance(self.sampler, Sampler) else {}
        x = self.sampler(z if noise is None else noise, **fresh, **cond)
        return self.pipe.decoded(x, self.gradient)

    @torch.no_grad()
    def all(self, noise: Tensor | None = None, **changed: Tensor) -> Tensor:
        """Every sample, batch by batch, without gradients; arguments as for one batch."""

        parts = torch.arange(len(self)).split(self.batch_size)
        return torch.cat(
            [self(rows, None if noise is None else noise[rows], **changed) for rows in parts]
        )


def sketch(*rows: Tensor) -> Any:
    """A picture with a row of images for each of several tensors with shape (n, C, H, W).

    The first sixteen of each are shown; a tensor with one image is repeated.
    """

    n = min(16, max(map(len, rows)))
    alike = [to_uint8(x[:n].cpu()).expand(n, *x.shape[1:]) for x in rows]
    return viz.grid_of(torch.cat(alike), columns=n)

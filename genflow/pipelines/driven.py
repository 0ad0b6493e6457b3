r"""A sampler that somebody else drives: the network is called outside, its answers handed in.

`rollout` calls the network itself. Where a foreign loop does so, as in the pipelines of diffusers,
the same table is carried out row by row,

.. math:: x_{i+1} = \sum_{k < K} \big( w_{i,2k} \, x_{i-k} + w_{i,2k+1} \, D_{i-k} \big)
                    + c_{i+1} n_{i+1},

and the data estimate D comes from the same denoiser, whose network is a door: it returns the
answer that it is given.
"""

__all__ = ["Driven", "door"]

from diffusers.utils.torch_utils import randn_tensor
import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.models import Clipped, Denoiser, Path, Preconditioned
from genflow.models.noise import Generators
from genflow.solvers.samplers import Sampler
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau


class _Door(nn.Module):
    """A network that was called already."""

    def forward(self, x: Tensor, time: Tensor, answer: Tensor) -> Tensor:
        return answer


def door(path: Path, prediction: str, clock: str, *, clip: bool = False) -> Denoiser:
    """A denoiser whose network is called by others; its condition ``answer`` is what came back.

    Args:
        path: The path.
        prediction: What the network predicts, as in `PREDICTIONS`.
        clock: What it is told about time, as in `CLOCKS`.
        clip: Whether the data estimate is clamped to [−1, 1].
    """

    denoiser = Preconditioned(_Door(), path, prediction, clock)
    return Clipped(denoiser) if clip else denoiser


class Driven:
    """A run of a table, one row at a time.

    Args:
        denoiser: The denoiser, as [`door`][genflow.pipelines.driven.door] makes it.
        schedule: A schedule or a table.

    Attributes:
        times: The N + 1 times, where the run is a named sampler's on these.

    Raises:
        UserError: If the schedule cannot be compiled, or alters what lies outside: the network, or
            the guidance.
    """

    def __init__(self, denoiser: Denoiser, schedule: SolverSchedule | Tableau) -> None:
        self.sampler = Sampler(denoiser, schedule)

        for i, change in enumerate(self.sampler.tableau.changes):
            if not change.guidance:
                raise UserError(
                    f"step {i} switches guidance off, and a pipeline that calls its network "
                    "itself guides every step: leave change.guidance out, or sample with genflow."
                )

        self.window: list[Tensor] = []
        self.times: tuple[float, ...] | None = None

    @property
    def table(self) -> Tableau:
        """The table."""

        return self.sampler.tableau

    def __len__(self) -> int:
        return len(self.table.time)

    def restart(self) -> None:
        """Forgets the window."""

        self.window = []

    def advance(self, i: int, x: Tensor, answer: Tensor, generator: Generators = None) -> Tensor:
        r"""Carries row i out.

        Args:
            i: The stage, 0 … N − 1; after a restart 0, then one after the other.
            x: The state, with shape (B, \*).
            answer: What the network answered there, with shape (B, \*).
            generator: For fresh noise: one generator, or one for each sample.

        Returns:
            The next state, with shape (B, \*).
        """

        table = self.table
        output = self.sampler.stages(answer=answer)[i](x, table.time[i])
        self.window = [x, output, *self.window][: 2 * table.window]

        row, slots = table.weight[i].tolist(), table.slots[i]
        total = row[slots[0]] * self.window[slots[0]]

        for k in slots[1:]:
            total = torch.add(total, self.window[k], alpha=row[k])

        if table.noisy[i + 1]:
            fresh = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            total = torch.add(total, fresh, alpha=float(table.noise[i + 1]))

        return total

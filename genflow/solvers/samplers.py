r"""Samplers: a denoiser, a table, and the loop.

The table says how much each past state and each past answer of the denoiser counts; the stages say
which function answers. Everything that a published sampler decides lies in these two.
"""

__all__ = ["Sampler"]

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.noise import Generators, draw
from genflow.models.paths import broadcast
from genflow.solvers.adjoint import Gradient, NoGradient, Run, policy
from genflow.solvers.alterations import UNCHANGED
from genflow.solvers.altered import Altered
from genflow.solvers.captures import Captured
from genflow.solvers.empirical import Statistics
from genflow.solvers.rollout import Fresh, Observe, Stage
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau, tabulate


class Sampler(nn.Module):
    r"""A sampler: a denoiser driven by a table.

    Args:
        denoiser: The denoiser.
        schedule: A schedule, which is compiled on the denoiser's path, or a table.
        gradient: How gradients pass through: ``"none"``, ``"exact"`` (at the memory of one call),
            ``"direct"``, ``"truncated"``, ``"continuous"``, or a record of
            `genflow.solvers.adjoint`.
        statistics: The statistics of DPM-Solver-v3, for empirical steps.
        mean: The mean of the data, with the shape of a sample, for a first step from the mean.

    Raises:
        UserError: If the schedule cannot be compiled, the gradient policy is unknown or cannot
            serve it, the first step needs a mean and there is none, a step alters what the
            network has not, or its share of fresh noise is wrong for the denoiser.

    Example:
        >>> sampler = Sampler(denoiser, schedule_for("unipc", denoiser.path, steps=8))
        >>> x = sampler(sampler.init((64, 3, 32, 32)))
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: SolverSchedule | Tableau,
        gradient: str | Gradient = "none",
        *,
        statistics: Statistics | None = None,
        mean: Tensor | None = None,
    ) -> None:
        super().__init__()

        self.gradient = policy(gradient)

        if isinstance(schedule, SolverSchedule):
            self.schedule: SolverSchedule | None = schedule
            self.tableau = tabulate(schedule, denoiser.path, statistics)
        else:
            self.schedule, self.tableau = None, schedule

        if self.tableau.source == "mean" and mean is None:
            raise UserError(
                "step 0 has source 'mean' and the sampler has no mean: hand it the mean of the "
                "data."
            )

        self._check_noise(denoiser)
        self.denoiser = denoiser
        self.register_buffer("mean", mean, persistent=False)
        self.tableau.prepare()
        time = self.tableau.time
        known = time.ndim == 1 and not time.requires_grad
        guided, bare = denoiser, denoiser.unguided()
        changes = self.tableau.changes or (UNCHANGED,) * len(time)
        sources = [guided if change.guidance else bare for change in changes]
        self._called = [
            d.at(float(t)) if known else d for d, t in zip(sources, time.detach(), strict=True)
        ]
        self._altered = Altered(
            denoiser, self.tableau, gradients=not isinstance(self.gradient, NoGradient)
        )

        self.gradient.check(self.denoiser, self.tableau, self.schedule)

    def _check_noise(self, denoiser: Denoiser) -> None:
        """Refuses a share of fresh noise that is wrong for the denoiser."""

        for i, step in enumerate(self.schedule.steps if self.schedule else ()):
            if denoiser.eta is not None and step.eta != denoiser.eta:
                raise UserError(
                    f"step {i} has eta {step.eta}, and a {type(denoiser).__name__} needs "
                    f"{denoiser.eta:g} at every step: take the sampler "
                    f"{'ddpm' if denoiser.eta else 'ddim, or another with eta 0'}."
                )

    @property
    def nfe(self) -> int:
        """The number of calls of the denoiser for one sample."""

        return self.tableau.nfe

    def init(
        self,
        shape: Sequence[int],
        *,
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        r"""Draws initial states :math:`\sigma z` at the first time.

        Args:
            shape: The shape (B, \*).
            generator: One generator, or one for each sample.
            device: Where the states live.
            dtype: Their floating type.

        Returns:
            The states, with shape (B, \*).
        """

        path = self.denoiser.path
        z = path.noise.sample(shape, generator=generator, device=device, dtype=dtype)
        start = self.tableau.time[0] if self.tableau.start is None else self.tableau.start
        return broadcast(path(start)[1].to(z), z) * z

    def stages(self, **cond: Any) -> list[Stage]:
        """The function that each stage calls."""

        velocity = self.tableau.reads == "velocity"
        stages: list[Stage] = [
            partial(d.velocity if velocity else d, **cond) for d in self._called
        ]

        if self.tableau.source == "noise":
            stages[0] = self._from_noise
        elif self.tableau.source == "mean":
            stages[0] = lambda x, t: self.mean.to(x).expand_as(x)

        return self._altered(stages)

    def _from_noise(self, x: Tensor, t: Tensor) -> Tensor:
        r"""The data estimate if :math:`x_t/\sqrt{\alpha^2 + \sigma^2}` is the noise."""

        alpha_t, sigma_t = self.denoiser.path(t)
        root = torch.sqrt(alpha_t**2 + sigma_t**2)
        return broadcast(alpha_t / (root * (root + sigma_t)), x) * x

    def forward(
        self,
        x: Tensor,
        *,
        generator: Generators = None,
        observe: Observe | None = None,
        **cond: Any,
    ) -> Tensor:
        r"""From noise to data.

        Args:
            x: The initial states, with shape (B, \*).
            generator: For fresh noise (η or churn): one generator, or one for each sample.
            observe: Called as ``observe(i, x, output)`` for each call of the denoiser in turn,
                or, under gradient policies other than ``"none"`` and ``"direct"``, when all are
                made. What it keeps may be part of a loss.
            cond: Named conditions, each with B rows.

        Returns:
            The samples, with shape (B, \*).
        """

        self.check_event(x)
        fresh = self.fresh(x, generator)
        run = Run(
            self.stages, self.denoiser, self, self.tableau, x, cond, generator, fresh, observe
        )
        return self.gradient.run(run) if torch.is_grad_enabled() else run.plain()

    def capture(self) -> Captured:
        """The same sampler with whole solves recorded as CUDA graphs; see `captures`.

        Its first call for each shape of states and conditions records, and takes three solves;
        later ones replay, and cost the host one launch. It is called as the sampler is, without
        ``observe``, and gives the same numbers.

        Raises:
            UserError: If the denoiser is not on a GPU, or the sampler has a gradient policy.

        Example:
            >>> solve = sampler.to("cuda").capture()
            >>> x = solve(sampler.init((64, 3, 32, 32), device="cuda"), label=label)
        """

        device = next((p.device for p in self.parameters()), torch.device("cpu"))

        if device.type != "cuda":
            raise UserError(
                f"capture records a CUDA graph, and the denoiser is on {device}: move the sampler "
                "to a GPU, or call it without capture."
            )

        return Captured(self)

    def check_event(self, x: Tensor) -> None:
        r"""Compares states with shape (B, \*) with the shape of the statistics, if there are any.

        Raises:
            UserError: If they differ.
        """

        event = tuple(self.tableau.weight.shape[3:])

        if event and not _fits(event, tuple(x.shape[1:])):
            raise UserError(
                f"statistics are for samples of shape {event}, and these have shape "
                f"{tuple(x.shape[1:])}: estimate statistics of this denoiser."
            )

    def fresh(self, x: Tensor, generator: Generators) -> Fresh:
        r"""What draws the fresh noise of states like x, with shape (B, \*).

        Args:
            x: The states.
            generator: One generator, or one for each sample; the global one of the device if None.
        """

        if generator is None:
            return lambda i, x: torch.randn_like(x)

        dtype, device = x.dtype, x.device

        def normal(shape: tuple[int, ...], g: torch.Generator | None) -> Tensor:
            return torch.randn(shape, generator=g, device=g.device, dtype=dtype).to(device)

        return lambda i, x: draw(normal, x.shape, generator)


def _fits(event: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether weights of an event can multiply samples of a shape, dimension by dimension."""

    return len(event) == len(shape) and all(e in (1, n) for e, n in zip(event, shape, strict=True))

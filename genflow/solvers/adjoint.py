r"""Gradients through a rollout: the policies by name.

==================== ============================ ===================== =======================
policy               kept until the loss is known calls for N steps     the gradient of
==================== ============================ ===================== =======================
``"none"``           nothing                      N                     nothing
``"direct"``         the activations of N calls   N                     the samples
``"exact"``          N states                     N, and N with it      the samples, bit for bit
``"truncated"``      K states                     N, and K with it      the last K calls alone
``"continuous"``     N states, or none            N, and N with it      the ODE, with an error
==================== ============================ ===================== =======================

A name stands for a policy with its defaults; the records below take options, and are given in the
place of the name::

    Sampler(denoiser, schedule, adjoint.Exact(keep=2))

Gradients are those with respect to whatever requires them: the initial states, conditions, the
weight and the null conditions of guidance, parameters (all, some, or those of LoRA), and, under
``"direct"``, ``"exact"`` and ``"truncated"``, times and weights of the table. Losses on states on
the way are written with ``observe``.

References:
    AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion Probabilistic
    Models
    https://arxiv.org/abs/2307.10711

    Directly Fine-Tuning Diffusion Models on Differentiable Rewards
    https://arxiv.org/abs/2309.17400
"""

__all__ = [
    "POLICIES",
    "Continuous",
    "Direct",
    "Exact",
    "Gradient",
    "NoGradient",
    "Run",
    "Truncated",
    "policy",
]

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError, nearest
from genflow.models.denoisers import Denoiser
from genflow.models.noise import Generators
from genflow.models.paths import broadcast
from genflow.solvers.continuous import Continuous
from genflow.solvers.policies import Direct, Gradient, NoGradient, Run
from genflow.solvers.replays import replayed
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau


@dataclass(frozen=True)
class Exact(Gradient):
    """The gradient of the samples that were made, at the memory of one call of the network.

    Only states are kept. On the way back each call is repeated, and its activations are gone
    before the next one is. The result is that of autograd bit for bit, for every schedule,
    corrector, guidance, clipping, fresh noise, faded skip and dropped block: nothing about the
    sampler is approximated, and nothing about it need be known. Only the *reuse* of a block is
    refused, since a call then depends on another one through what it remembers.

    What makes a repeated call equal to the first is repeated with it: autocast (without its cache,
    so that gradients of weights add up in the dtype of the weights), and the random numbers of
    dropout in training mode. Batch normalisation in training mode is refused. States may be kept
    elsewhere by the hooks of autograd, as in ``with torch.autograd.graph.save_on_cpu():``.

    Second derivatives are refused: they would need all activations; use ``"direct"``.

    Args:
        keep: The number of last calls whose activations are kept, 0 or more: so many calls need
            not be repeated. 1 is free where the loss needs less memory than the network.

    Raises:
        UserError: If ``keep`` is negative; when a sampler is built, if a step reuses a block; on
            the way back, if the denoiser uses a tensor that
            requires gradients and was not found, or one that was changed in place meanwhile.

    Example:
        >>> sampler = build("unipc", denoiser, 20, gradient="exact")
        >>> loss = reward(sampler(x, label=label))  # at 20 calls, the memory of one
        >>> loss.backward()
    """

    keep: int = 0

    def __post_init__(self) -> None:
        _check_keep(self.keep)

    def check(self, denoiser: Denoiser, tableau: Tableau, schedule: SolverSchedule | None) -> None:
        """See [`Gradient.check`][genflow.solvers.policies.Gradient.check]."""

        _check_reuse(tableau, "exact")

    def run(self, run: Run) -> Tensor:
        """See [`Gradient.run`][genflow.solvers.policies.Gradient.run]."""

        return replayed(run, "exact", keep=self.keep)


@dataclass(frozen=True)
class Truncated(Gradient):
    r"""The exact gradient of the last K calls, as if what came before were a constant.

    The gradient is biased, and cheaper: K calls are repeated instead of N. It never reaches the
    initial states unless K = N.

    Args:
        last: K, 1 or more; or the ends (low, high) of a range from which K is drawn, by the global
            generator, at every rollout: a random K keeps a fine-tuned model from serving the last
            steps alone.
        keep: As in `Exact`; K or more keeps all activations and repeats nothing.
        resamples: With ``last=1``: the number n of times that the samples are noised again to the
            last noise level, :math:`\alpha x + \sigma z`, before the last call. The result has
            n B rows, n blocks one after the other, and an average over them has less variance.
            0 is the plain last call.

    Raises:
        UserError: If a value is not allowed; when a sampler is built, if K is above its number of
            calls, or ``resamples`` meets a last step that looks back on earlier ones.

    References:
        Directly Fine-Tuning Diffusion Models on Differentiable Rewards (DRaFT-K, DRaFT-LV)
        https://arxiv.org/abs/2309.17400

        Aligning Text-to-Image Diffusion Models with Reward Backpropagation (AlignProp)
        https://arxiv.org/abs/2310.03739
    """

    last: int | tuple[int, int] = 1
    keep: int = 0
    resamples: int = 0

    def __post_init__(self) -> None:
        _check_keep(self.keep)
        low, high = self._range

        if not 1 <= low <= high:
            raise UserError(
                f"last is {self.last}: a number of calls, 1 or more, is needed, or a range "
                "(low, high) of them."
            )
        if self.resamples < 0 or (self.resamples and self.last != 1):
            raise UserError(
                f"resamples is {self.resamples} with last {self.last}: it must be 0 or more, and "
                "needs last=1."
            )

    @property
    def _range(self) -> tuple[int, int]:
        return (self.last, self.last) if isinstance(self.last, int) else tuple(self.last)

    def check(self, denoiser: Denoiser, tableau: Tableau, schedule: SolverSchedule | None) -> None:
        """See [`Gradient.check`][genflow.solvers.policies.Gradient.check]."""

        _check_reuse(tableau, "truncated")
        N = len(tableau.time)

        if self._range[1] > N:
            raise UserError(
                f"last is {self.last}, and the sampler makes {N} calls: give {N} or less, or use "
                "gradient='exact'."
            )
        back = [k for k in tableau.slots[-1] if 2 <= k < 2 * tableau.window]

        if self.resamples and (back or tableau.time.ndim > 1):
            raise UserError(
                f"resamples is {self.resamples}, but the last step looks back on earlier ones, or "
                "samples follow tables of their own: lower the order of the last step (ddim)."
            )

    def run(self, run: Run) -> Tensor:
        """See [`Gradient.run`][genflow.solvers.policies.Gradient.run]."""

        if self.resamples:
            return self._resampled(run)

        low, high = self._range
        K = low if low == high else int(torch.randint(low, high + 1, ()))
        N = len(run.tableau.time)
        return replayed(run, "truncated", first=N - K, keep=min(self.keep, K))

    def _resampled(self, run: Run) -> Tensor:
        """The last call alone, from n new states on the last noise level."""

        with torch.no_grad():
            end = run.plain()

        table, n = run.tableau, self.resamples
        path, x = run.denoiser.path, end.repeat(n, *(1,) * (end.ndim - 1))
        alpha, sigma = (broadcast(c.to(x), x) for c in path(table.time[-1].detach()))
        z = torch.cat([_noise(run, end) for _ in range(n)])
        tail = Tableau(table.time[-1:], table.weight[-1:], table.noise[[0, -1]], table.reads)
        many = {k: _repeated(v, n) for k, v in run.cond.items()}

        def last(**cond: Any) -> list[Callable[[Tensor, Tensor], Tensor]]:
            return run.bind(**cond)[-1:]

        step = replace(
            run, bind=last, tableau=tail, x=alpha * x + sigma * z, cond=many, observe=None
        )
        return replayed(step, "truncated", keep=self.keep)


def _noise(run: Run, x: Tensor) -> Tensor:
    generator: Generators = run.generator
    return run.denoiser.path.noise.sample(
        x.shape, generator=generator, device=x.device, dtype=x.dtype
    )


def _repeated(value: Any, n: int) -> Any:
    return value.repeat(n, *(1,) * (value.ndim - 1)) if isinstance(value, Tensor) else value


def _check_keep(keep: int) -> None:
    if keep < 0:
        raise UserError(f"keep is {keep}: a number of calls, 0 or more, is needed.")


POLICIES: dict[str, Callable[[], Gradient]] = {
    "none": NoGradient,
    "direct": Direct,
    "exact": Exact,
    "truncated": Truncated,
    "continuous": Continuous,
}
"""The policies by name."""


def policy(gradient: str | Gradient) -> Gradient:
    """The policy with a name, with its defaults; a policy is itself.

    Raises:
        UserError: If the name is unknown.
    """

    if isinstance(gradient, Gradient):
        return gradient
    if gradient not in POLICIES:
        raise UserError(f"gradient is '{gradient}'{nearest(str(gradient), POLICIES)}")

    return POLICIES[gradient]()


def _check_reuse(tableau: Tableau, policy: str) -> None:
    """Refuses calls that depend on other calls through what is remembered of a block."""

    for i, change in enumerate(tableau.changes):
        if change.reuse:
            raise UserError(
                f"gradient is '{policy}', and step {i} reuses block '{change.reuse[0]}' of an "
                "earlier call, which a repeated call cannot reach: drop it, or use "
                "gradient='direct'."
            )

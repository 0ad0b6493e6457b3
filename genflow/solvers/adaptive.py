r"""Adaptive integration of the probability-flow ODE, by torchdiffeq.

Dormand-Prince 5(4) chooses its steps from the error of the whole batch, so the number of calls
depends on the batch and is known only afterwards. For a fixed budget of calls the tables of
`genflow.solvers` do better; this is the reference, and the way to encode.
"""

__all__ = ["Adaptive"]

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser, inside
from genflow.models.noise import Generators
from genflow.solvers.adjoint import Continuous, Direct, Gradient, NoGradient, policy
from genflow.solvers.solves import Solve


class Adaptive(nn.Module):
    r"""A sampler that solves :math:`dx/dt = v(x, t)` to a tolerance.

    Args:
        denoiser: The denoiser.
        rtol: The relative tolerance, above 0.
        atol: The absolute tolerance, above 0.
        method: A method of torchdiffeq: ``"dopri5"``, ``"dopri8"``, ``"bosh3"`` …
        start: The time of noise; the path's ``t_max`` if None.
        stop: The time of data; the path's ``t_min`` if None. Either is 1e-3 further in where the
            denoiser has no velocity at it.
        gradient: ``"none"``, ``"direct"`` (autograd through the solver), or a
            [`Continuous`][genflow.solvers.adjoint.Continuous] with an adaptive method or with
            times: the adjoint equation, at the memory of one call.

    Attributes:
        nfe: The number of calls of the last solve, 0 before the first.

    Raises:
        UserError: If a tolerance is not above 0, or the gradient policy is unknown.

    References:
        torchdiffeq
        https://github.com/rtqichen/torchdiffeq
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        method: str = "dopri5",
        start: float | None = None,
        stop: float | None = None,
        gradient: str | Gradient = "none",
    ) -> None:
        super().__init__()

        if not (rtol > 0 and atol > 0):
            raise UserError(f"rtol is {rtol} and atol is {atol}: both must be above 0.")

        kind = policy(gradient)
        path = denoiser.path
        self.denoiser = denoiser
        self.rtol, self.atol, self.method = rtol, atol, method
        self.start = inside(denoiser, path.t_max, -1) if start is None else start
        self.stop = inside(denoiser, path.t_min, 1) if stop is None else stop
        self.gradient = kind
        self.nfe = 0

        if isinstance(kind, Continuous) and not kind.stored:
            kind.check_times(denoiser, (self.start, self.stop))
        elif not isinstance(kind, (NoGradient, Direct)):
            raise UserError(
                f"gradient is {gradient!r}, and a solver that chooses its steps allows 'none', "
                "'direct', and Continuous with an adaptive method or times: take one of these, or "
                "a sampler with fixed steps."
            )

    def init(
        self,
        shape: Sequence[int],
        *,
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        r"""Draws initial states σ z at the start time, with shape (B, \*)."""

        path = self.denoiser.path
        z = path.noise.sample(shape, generator=generator, device=device, dtype=dtype)
        return z * float(path(torch.tensor(self.start, dtype=torch.float64))[1])

    def forward(self, x: Tensor, **cond: Any) -> Tensor:
        r"""From noise to data; states and result with shape (B, \*)."""

        return self._solve(x, self.start, self.stop, cond)

    def encode(self, x: Tensor, **cond: Any) -> Tensor:
        r"""From data to noise; states and result with shape (B, \*)."""

        return self._solve(x, self.stop, self.start, cond)

    def capture(self) -> NoReturn:
        """Refuses: a recorded solve takes the same steps every time.

        Raises:
            UserError: Always.
        """

        raise UserError(
            f"{self.method} chooses its steps as it goes, and a CUDA graph cannot: capture a "
            "sampler with fixed steps, such as 'unipc', or call this one without capture."
        )

    def _solve(self, x: Tensor, t: float, s: float, cond: dict[str, Any]) -> Tensor:
        if isinstance(self.gradient, Continuous) and torch.is_grad_enabled():
            return Solve(
                self.gradient,
                self.denoiser,
                self,
                cond,
                (t, s),
                (),
                lambda x, _: self._integrate(x, t, s, cond),
            )(x)

        with torch.set_grad_enabled(isinstance(self.gradient, Direct) and torch.is_grad_enabled()):
            return self._integrate(x, t, s, cond)

    def _integrate(self, x: Tensor, t: float, s: float, cond: dict[str, Any]) -> Tensor:
        calls, ends = 0, (min(t, s), max(t, s))

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            # The guess of the first step may probe beyond the end, off the path.
            return self.denoiser.velocity(x, t.clamp(*ends), **cond)

        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        times = torch.tensor([t, s], dtype=work, device=x.device)

        # A step is made to the end exactly: none goes past it.
        path = odeint(
            velocity,
            x,
            times,
            rtol=self.rtol,
            atol=self.atol,
            method=self.method,
            options={"step_t": times[1:]},
        )

        self.nfe = calls
        return path[-1]

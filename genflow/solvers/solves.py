r"""A solve whose gradients come from the adjoint equation: one node of the graph of autograd."""

__all__ = ["Solve"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.solvers.backsolves import Products, adaptive, marched
from genflow.solvers.circumstances import Circumstances
from genflow.solvers.inputs import Inputs
from genflow.solvers.policies import reached
from genflow.solvers.rollout import Observe

if TYPE_CHECKING:
    from genflow.solvers.continuous import Continuous


@dataclass(frozen=True)
class Solve:
    """A solve of the probability-flow ODE, by whatever method.

    Attributes:
        policy: How the adjoint equation is solved.
        denoiser: The denoiser.
        module: The sampler: all that the denoiser may read tensors from.
        cond: The named conditions.
        times: The times of the nodes: where states are observed, and both ends.
        places: The node of each state that is observed.
        forward: Solves: (x, observe) → the final states.
    """

    policy: "Continuous"
    denoiser: Denoiser
    module: nn.Module
    cond: Mapping[str, Any]
    times: Sequence[float]
    places: Sequence[int]
    forward: Callable[[Tensor, Observe], Tensor]

    def __call__(self, x: Tensor, observe: Observe | None = None) -> Tensor:
        r"""Solves.

        Args:
            x: The initial states, with shape (B, \*).
            observe: What looks on, when all is solved.

        Returns:
            The final states, with shape (B, \*).

        Raises:
            UserError: If there is dropout in training mode, or nothing requires gradients.
        """

        for module in self.denoiser.modules():
            if isinstance(module, _DropoutNd) and module.training and module.p > 0:
                raise UserError(
                    "gradient is 'continuous', but the denoiser has dropout in training mode, "
                    "under which there is no ODE: call eval() on it, or use gradient='exact'."
                )

        inputs = Inputs(self.module, self.cond)
        end, *seen = _Solved.apply(self, inputs, observe is not None, x, *inputs.wanted)
        reached(end, "continuous")

        if observe is not None:
            N = len(self.places)
            for i, (state, output) in enumerate(zip(seen[:N], seen[N:], strict=True)):
                observe(i, state, output)

        return end

    def back(
        self, products: Products, states: Mapping[int, Tensor], jumps: Mapping[int, Tensor]
    ) -> Tensor:
        """The gradient at the initial states, from those at nodes."""

        policy, path = self.policy, self.denoiser.path

        if policy.adaptive:
            nodes = sorted({0, *jumps, len(self.times) - 1})
            return adaptive(
                products,
                path,
                policy.variables,
                policy.method,
                (policy.rtol, policy.atol),
                [self.times[j] for j in nodes],
                states[nodes[-1]],
                {k: jumps[j] for k, j in enumerate(nodes) if j in jumps},
            )

        grid = policy.grid(self.denoiser, self.times)

        if policy.times is not None:
            own = grid.times.tolist()
            jumps = {_index(own, self.times[j]): p for j, p in jumps.items()}
            states = {len(grid): states[len(self.times) - 1]}

        return marched(products, grid, policy.variables, policy.method, states, jumps)


def _index(times: Sequence[float], t: float) -> int:
    """The index of a time in a grid."""

    for k, other in enumerate(times):
        if math.isclose(t, other, rel_tol=1e-9, abs_tol=1e-12):
            return k

    raise UserError(
        f"the loss has a part on the state at time {t}, which is not among times: add it, or "
        "leave times out."
    )


class _Solved(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, solve: Solve, inputs: Inputs, tapped: bool, x: Tensor, *wanted: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.solve, ctx.inputs, ctx.around = solve, inputs, Circumstances(x)
        states: list[Tensor] = []
        outputs: list[Tensor] = []

        def observe(i: int, x: Tensor, output: Tensor) -> None:
            if tapped or solve.policy.stored:
                states.append(x)
            if tapped:
                outputs.append(output)

        with ctx.around.casting():
            end = solve.forward(x, observe)

        inputs.mark()
        end = end.clone() if end is x else end
        ctx.save_for_backward(end, *(states if solve.policy.stored else []))
        return (end, *(s.clone() for s in (*states, *outputs))) if tapped else (end,)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UserError(
                "gradient is 'continuous', which cannot be differentiated again "
                "(create_graph=True): use gradient='direct' for second derivatives."
            )

        solve, inputs = ctx.solve, ctx.inputs
        N, M = len(solve.places), len(solve.times) - 1
        end, *states = ctx.saved_tensors

        if any(g is not None for g in gradients[1 + N :]):
            raise UserError(
                "gradient is 'continuous', which knows no losses on outputs of the denoiser: put "
                "the loss on states, or use gradient='exact'."
            )

        jumps: dict[int, Tensor] = {}

        for place, g in zip((M, *solve.places), gradients, strict=False):
            if g is not None:
                jumps[place] = jumps[place] + g if place in jumps else g

        needed = ctx.needs_input_grad[4:]
        wanted = [t for t, n in zip(inputs.leaves, needed, strict=True) if n]
        call = partial(solve.denoiser, **inputs.cond)
        products = Products(call, inputs, ctx.around, wanted)

        with inputs.restored():
            known = {**dict(zip(solve.places, states, strict=False)), M: end}
            x = solve.back(products, known, jumps)

        found = (products.sums.get(id(t)) for t in inputs.leaves)
        return None, None, None, x if ctx.needs_input_grad[3] else None, *found

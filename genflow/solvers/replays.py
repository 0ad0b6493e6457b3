r"""Exact gradients of a rollout from its states alone.

Going forward nothing is kept but the states :math:`x_i` at which the denoiser was called. Going
back, from the last stage to the first, a stage is repeated with autograd recording,

.. math:: D_i = \mathrm{stage}_i(x_i, t_i), \qquad
          x_{i+1} = \sum_k w_{i,k} \, \mathrm{window}_k + c_{i+1} n_{i+1},

and one vector-Jacobian product hands the gradient of :math:`x_{i+1}` on to everything behind it.
What had reached :math:`x_i`, :math:`D_i`, the older slots and the inputs from later stages enters
the same product as a cotangent of theirs, so every sum is formed in the order in which autograd
forms it on the whole graph: the result is autograd's, bit for bit, at the memory of one call.

Fresh noise needs no second draw: it is added, so its values matter only where its deviation wants
a gradient, and there it is kept. Random numbers *inside* a call, dropout for one, are drawn again
from the same state of the generator.
"""

__all__ = ["replayed"]

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.solvers.circumstances import Circumstances
from genflow.solvers.inputs import Inputs
from genflow.solvers.policies import Run, reached
from genflow.solvers.rollout import Moves, Stage, rollout

Key = tuple[str, int]


def replayed(run: Run, policy: str, *, first: int = 0, keep: int = 0) -> Tensor:
    r"""A rollout whose gradients are found by repeating its calls.

    Args:
        run: The call of the sampler.
        policy: The name of the policy, for messages.
        first: The stage from which gradients are wanted; what comes before is a constant.
        keep: The number of last calls whose activations are kept instead of repeating them.

    Returns:
        The samples, with shape (B, \*).

    Raises:
        UserError: If nothing that the samples depend on requires gradients.
    """

    replay = _Replay(run, policy, first, keep)
    x, *taps = _Replayed.apply(replay, run, *replay.variables)
    reached(x, policy)

    if run.observe is not None:
        N = len(replay.stages)
        for i, (state, output) in enumerate(zip(taps[:N], taps[N:], strict=True)):
            run.observe(i, state, output)

    return x


class _Replayed(torch.autograd.Function):
    """The rollout as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, replay: "_Replay", run: Run, x: Tensor, *_: Tensor) -> tuple[Any, ...]:
        ctx.set_materialize_grads(False)
        ctx.replay = replay
        end, taps, saved = replay.forward(run, x)
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(*(t for live, t in taps if not live))
        return (end, *(t for _, t in taps))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UserError(
                f"gradient is '{ctx.replay.policy}', which cannot be differentiated again "
                "(create_graph=True): use gradient='direct' for second derivatives."
            )
        needed = ctx.needs_input_grad[2:]
        return None, None, *ctx.replay.backward(ctx.saved_tensors, gradients, needed)


class _Replay:
    """A rollout in both directions.

    It lives as long as the graph, so it keeps nothing that may hold the samples: no observer.
    """

    def __init__(self, run: Run, policy: str, first: int, keep: int) -> None:
        self.policy, self.first = policy, first
        self.inputs = Inputs(run.module, run.cond)
        self.stages = run.bind(**self.inputs.cond)
        self.N = len(self.stages)
        self.keep_from = max(first, self.N - keep)
        self.around = Circumstances(run.x)

        moves = Moves.of(run.tableau, run.x)
        columns = {name: list(getattr(moves, name)) for name in ("time", "rows", "level")}
        varied = {
            (name, i): t
            for name, column in columns.items()
            for i, t in enumerate(column)
            if isinstance(t, Tensor) and t.requires_grad
            if name != "level" or moves.noisy[i]
        }
        self.leaves: dict[Key, Tensor] = {}

        for (name, i), t in varied.items():
            columns[name][i] = self.leaves[name, i] = t.detach().requires_grad_()

        self.moves = replace(moves, **columns)
        x = run.x.detach() if first else run.x
        self.variables = [x, *varied.values(), *self.inputs.wanted]
        # Outputs of the denoiser need be kept only where they multiply weights to be found.
        self.whole = any(name == "rows" for name, _ in varied)
        self.low = max(0, first + 1 - moves.keep // 2) if self.whole else first
        self.random: list[list[Tensor]] = []
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(
        self, run: Run, x: Tensor
    ) -> tuple[Tensor, list[tuple[bool, Tensor]], list[Tensor]]:
        """The samples, whatever is observed on the way and whether it is live, what to keep."""

        first = self.first
        tapped = run.observe is not None
        states: list[Tensor] = []
        outputs: list[Tensor] = []
        noises: list[Tensor] = []

        def noise(i: int, x: Tensor) -> Tensor:
            n = torch.randn_like(x) if run.noise is None else run.noise(i, x)
            if ("level", i + 1) in self.leaves:
                noises.append(n)
            return n

        def observe(i: int, x: Tensor, output: Tensor) -> None:
            states.append(x)
            if tapped or self.whole:
                outputs.append(output)

        stages = [self._first(i, stage) for i, stage in enumerate(self.stages)]

        with self.inputs.restored(), self.around.casting():
            end = rollout(stages, x, self.moves, noise=noise, observe=observe)

        self.inputs.mark()
        saved = [*states[self.low :], *(outputs[self.low :] if self.whole else []), *noises]

        if not tapped:
            return end.clone() if end is x else end, [], saved

        # Copies, as a node may neither return an input nor a tensor twice.
        live = [(i > first or first == 0, s) for i, s in enumerate(states)]
        live += [(i >= first, o) for i, o in enumerate(outputs)]
        return end.clone(), [(alive, t.clone()) for alive, t in live], saved

    def _first(self, i: int, stage: Stage) -> Stage:
        """A stage as it runs the first time."""

        def recorded(x: Tensor, t: Tensor) -> Tensor:
            self.random.append(self.around.states())

            if i < self.keep_from:
                return stage(x, t)

            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                output = stage(leaf, t)

            self.kept[i] = leaf, output
            return output.detach()

        return recorded

    def backward(
        self, saved: Sequence[Tensor], gradients: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradient of every variable, from those of what the rollout returned."""

        count = self.N - self.low
        known = {("x", self.low + i): t for i, t in enumerate(saved[:count])}

        if self.whole:
            known |= {("D", self.low + i): t for i, t in enumerate(saved[count : 2 * count])}

        levels = [k for k in self.leaves if k[0] == "level"]
        known |= dict(zip(levels, saved[len(saved) - len(levels) :], strict=True))

        begins = self.first == 0 and (needed[0] or ("level", 0) in self.leaves)
        own = needed[len(needed) - len(self.inputs.wanted) :]
        wanted = [t for t, n in zip(self.inputs.leaves, own, strict=True) if n]
        back = _Back(gradients, self.N)

        with self.inputs.restored():
            for i in reversed(range(self.first, self.N)):
                self._pull(i, known, back, wanted, begins)

        x = back.slots.get(("x", 0)) if needed[0] else None

        if begins and ("level", 0) in self.leaves:
            self._pull_first(known, back)

        return [x, *(back.inputs.get(id(t)) for t in (*self.leaves.values(), *self.inputs.leaves))]

    def _pull(
        self, i: int, known: dict[Key, Tensor], back: "_Back", wanted: list[Tensor], begins: bool
    ) -> None:
        """One product: from the state after stage i to everything behind it."""

        if not back.arrived(i):
            return

        x, output = self.kept.pop(i, (None, None))

        with torch.enable_grad(), self.around.again(self.random[i]):
            if x is None:
                x = known["x", i].detach().requires_grad_()
                output = self.stages[i](x, self.moves.time[i])

            window, slots = {0: x, 1: output}, {("D", i): output}

            if begins or i > self.first:
                slots["x", i] = x

            for k in self.moves.slots[i]:
                j, kind = i - k // 2, "xD"[k % 2]
                if 2 <= k < self.moves.keep:
                    # Under weights that are numbers its values are of no consequence.
                    value = known.get((kind, j), known["x", i]).detach()
                    alive = j > self.first or (j == self.first and (kind == "D" or begins))
                    window[k] = slots[kind, j] = value.requires_grad_(alive)

            after = self.moves.after(i, window, self.moves.constant(x))

            if ("level", i + 1) in known:
                after = self.moves.shaken(i, after, lambda *_: known["level", i + 1], output)

        leaves = list(self.leaves.values())
        self.inputs.check((after, output), (x, *slots.values(), *leaves), self.policy)
        back.product(i, after, slots, [*leaves, *wanted])

    def _pull_first(self, known: dict[Key, Tensor], back: "_Back") -> None:
        """The gradient of the deviation of the noise before the first stage."""

        with torch.enable_grad():
            x = self.moves.shaken(-1, known["x", 0], lambda *_: known["level", 0])

        back.product(-1, x, {}, [self.leaves["level", 0]])


class _Back:
    """What has come back so far.

    Args:
        gradients: Those of the samples, and of all states and outputs if they are observed.
        N: The number of stages.
    """

    def __init__(self, gradients: Sequence[Tensor | None], N: int) -> None:
        end, *taps = gradients
        keys = [(kind, i) for kind in "xD" for i in range(N)] if taps else []
        self.slots: dict[Key, Tensor | None] = dict(zip(keys, taps, strict=True))
        self.slots["x", N] = end
        self.inputs: dict[int, Tensor | None] = {}

    def arrived(self, i: int) -> bool:
        """Whether anything has come back to what stage i made."""

        return any(self.slots.get(k) is not None for k in (("x", i + 1), ("D", i)))

    def product(
        self, i: int, after: Tensor, slots: dict[Key, Tensor], inputs: Iterable[Tensor]
    ) -> None:
        """Hands the gradient of the state after stage i on.

        Args:
            i: The stage.
            after: The state after it.
            slots: The window of its row.
            inputs: What else gradients are wanted of.
        """

        inputs = list(inputs)
        roots = [(after, self.slots.pop(("x", i + 1), None))]
        roots += [(t, self.slots.get(k)) for k, t in slots.items()]
        roots += [(t, self.inputs.get(id(t))) for t in inputs]
        roots = [(t, g) for t, g in roots if g is not None and t.requires_grad]
        self.slots.pop(("D", i), None)

        ends = {k: t for k, t in slots.items() if t.requires_grad and k != ("D", i)}
        if not roots or not (ends or inputs):
            return

        found = torch.autograd.grad(
            [t for t, _ in roots],
            [*ends.values(), *inputs],
            [g for _, g in roots],
            allow_unused=True,
        )
        self.slots.update(zip(ends, found, strict=False))
        self.inputs |= {id(t): g for t, g in zip(inputs, found[len(ends) :], strict=True)}

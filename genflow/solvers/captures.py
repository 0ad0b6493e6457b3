r"""A whole solve as one CUDA graph: recorded once for a shape, then replayed by a single launch.

A step of a sampler is three kernels and a call of the network, which is hundreds of them. Where
they are small, because images are, or batches, a GPU waits for the host to launch the next. A
graph holds them all, of every step, so that a solve costs the host one call, whatever its number
of steps. The numbers are those of the plain sampler: it is the same kernels, in the same order.

A graph reads and writes fixed places of memory. Inputs are copied into them, and the result out:
initial states, conditions, and the fresh noise of all steps, which is drawn before the replay, in
the order in which the plain sampler draws it. So N noisy steps need room for N states, which the
plain sampler does not. The weights are read where they are: changed in place, they count; moved to
another place, they make the solve be recorded anew.

Not assumed: that recording is free. It takes three solves, and pays off from the fourth batch of a
shape on. Not possible: what decides on the way, as solvers that choose their own steps do, and
gradients.
"""

__all__ = ["Captured", "record"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.noise import Generators
from genflow.solvers.policies import NoGradient
from genflow.solvers.rollout import Moves, rollout

if TYPE_CHECKING:
    from genflow.solvers.samplers import Sampler

Recorded = tuple[Callable[[], None], Tensor]
"""What repeats a run, and where its result then is."""

WARM = 2
"""Runs before the recorded one, in which libraries choose their kernels."""


def record(run: Callable[[], Tensor], pool: Any) -> Recorded:
    """Records a run as a CUDA graph.

    Args:
        run: Computes from fixed places of memory, on the current device.
        pool: The memory that graphs share; they are never replayed at the same time.
    """

    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(here)

    with torch.cuda.stream(aside):
        for _ in range(WARM):
            run()

    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()

    with torch.cuda.graph(graph, pool=pool):
        result = run()

    return graph.replay, result


@dataclass(frozen=True)
class _Solve:
    """A recorded solve, and the places that it reads from."""

    x: Tensor
    cond: Mapping[str, Any]
    noise: Mapping[int, Tensor]
    replay: Callable[[], None]
    result: Tensor


class Captured:
    r"""A sampler whose solves are recorded and replayed; see `Sampler.capture`.

    Args:
        sampler: The sampler, with its gradient policy ``"none"``.
        record: What records a run.

    Raises:
        UserError: If the sampler has another gradient policy.
    """

    def __init__(
        self, sampler: "Sampler", record: Callable[[Callable[[], Tensor], Any], Recorded] = record
    ) -> None:
        if not isinstance(sampler.gradient, NoGradient):
            raise UserError(
                f"gradient is {sampler.gradient}, and a captured solve has no gradients: build "
                "the sampler with gradient='none'."
            )

        self.sampler = sampler
        self._record = record
        self._solves: dict[Any, _Solve] = {}
        self._pool: Any = None

    @property
    def nfe(self) -> int:
        """The number of calls of the denoiser for one sample."""

        return self.sampler.nfe

    def __len__(self) -> int:
        """The number of solves that are recorded: one for each shape that was met."""

        return len(self._solves)

    @torch.no_grad()
    def __call__(self, x: Tensor, *, generator: Generators = None, **cond: Any) -> Tensor:
        r"""From noise to data, as `Sampler.forward`; the first call for a shape records.

        Args:
            x: The initial states, with shape (B, \*).
            generator: For fresh noise: one generator, or one for each sample.
            cond: Named conditions, each with B rows; what is no tensor is part of the shape.

        Returns:
            The samples, with shape (B, \*).
        """

        self.sampler.check_event(x)
        key = self._key(x, cond)
        noisy = [i for i, n in enumerate(self.sampler.tableau.noisy) if n]
        fresh = self.sampler.fresh(x, generator)
        draws = {i: fresh(i - 1, x) for i in noisy}

        if key not in self._solves:
            self._solves[key] = self._recorded(x, cond, draws)

        solve = self._solves[key]
        solve.x.copy_(x)

        for name, place in solve.cond.items():
            if isinstance(place, Tensor):
                place.copy_(cond[name])
        for i, place in solve.noise.items():
            place.copy_(draws[i])

        solve.replay()
        return solve.result.clone()

    def _recorded(self, x: Tensor, cond: dict[str, Any], draws: dict[int, Tensor]) -> _Solve:
        """Makes the places of a solve, and records it."""

        start = x.clone()
        held = {k: v.clone() if isinstance(v, Tensor) else v for k, v in cond.items()}
        noise = {i: n.clone() for i, n in draws.items()}
        stages, moves = self.sampler.stages(**held), Moves.of(self.sampler.tableau, start)
        kind = x.device.type
        cast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

        def run() -> Tensor:
            # a cache of cast weights would belong to the recording, and be empty at its replay
            with torch.no_grad(), torch.autocast(*cast, cache_enabled=False):
                return rollout(stages, start, moves, noise=lambda i, _: noise[i + 1])

        if x.is_cuda and self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()

        return _Solve(start, held, noise, *self._record(run, self._pool))

    def _key(self, x: Tensor, cond: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a recorded solve depends on, apart from the values of tensors."""

        kind = x.device.type
        tensors = [*self.sampler.parameters(), *self.sampler.buffers()]
        return (
            _form(x),
            tuple((k, _form(v)) for k, v in sorted(cond.items())),
            tuple(p.data_ptr() for p in tensors),
            torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        )


def _form(value: Any) -> Any:
    """The shape, dtype and device of a tensor; any other value as it is."""

    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value

r"""What a call of a network costs, block by block.

Leaving a block out saves what its branch costs, whatever happens to the other blocks: shapes do
not depend on them. So the cost of a call is additive,

.. math:: c = c_{full} - \sum_{b \text{ left out}} s_b,

exactly so in FLOPs, and one run fills the table. Two units:

* `flops` counts two floating-point operations a multiply-add in convolutions, matrix products and
  attention; normalisation, activations and resampling count as nothing. It counts on the meta
  device, where nothing is computed or copied, and where attention is always seen: some fused
  kernels, such as the CPU's in older versions of torch, have no formula and count as nothing.
* `seconds` measures the blocks one by one on the device at hand, the median of many runs: time of
  the processor on a CPU (of all threads, whatever else runs there), of the stream on a GPU.
  Launches and memory traffic count here, so small blocks save less than their FLOPs promise, and
  the sum over the blocks is an estimate.

Dropping and reusing cost the same, the shortcut; the sum of a reused branch is not counted.

What training needs beside is memory: `activations` counts the numbers that a forward pass keeps
for the backward one.
"""

__all__ = ["Costs", "activations", "flops", "seconds"]

from collections.abc import Callable, Iterable, Mapping, Sequence
import copy
from dataclasses import dataclass
from functools import partial
import math
from statistics import median
import time
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genflow.errors import UserError, nearest
from genflow.nn.blocks import blocks_of, kind_of, replaced


@dataclass(frozen=True)
class Costs:
    """The cost of a call, and what leaving each block out saves.

    Attributes:
        full: The cost of a full call.
        saving: What each block saves, by name, in the order in which they run.
        unit: The unit, in words.
    """

    full: float
    saving: Mapping[str, float]
    unit: str = "FLOPs"

    def __post_init__(self) -> None:
        object.__setattr__(self, "saving", MappingProxyType(dict(self.saving)))

    @property
    def least(self) -> float:
        """The cost of a call that leaves every block out."""

        return self(self.saving)

    def __call__(self, left_out: Iterable[str] = ()) -> float:
        """The cost of a call that leaves some blocks out.

        Raises:
            UserError: If there is no such block.
        """

        return self.full - math.fsum(self._saved(name) for name in left_out)

    def _saved(self, name: str) -> float:
        if name not in self.saving:
            raise UserError(f"the block is '{name}'{nearest(name, self.saving)}")
        return self.saving[name]


def flops(net: nn.Module, shape: Sequence[int], **cond: Tensor) -> Costs:
    r"""Counts the floating-point operations of a call for one sample.

    Args:
        net: A network, called as ``net(x, time, **cond)``, with a model of diffusers in ``model``.
        shape: The shape of a sample, without the batch.
        cond: The conditions that it needs, each with one row; their values do not matter.

    Returns:
        The table, in FLOPs.

    Raises:
        UserError: If the network has no blocks to leave out.

    Example:
        >>> table = flops(UNet(32), (3, 32, 32))
        >>> table(["mid_block.attentions.0"]) / table.full
    """

    blocks = _blocks(net)
    meta = _on_meta(net)
    twins = blocks_of(meta.model)
    counter = FlopCounterMode(display=False)
    saving: dict[str, float] = {}
    shortcuts = 0

    def counted(name: str, block: nn.Module, forward: Callable, args: Any, kwargs: Any) -> Any:
        nonlocal shortcuts
        start = counter.get_total_flops()
        kind_of(block).shortcut(block, args, kwargs)
        middle = counter.get_total_flops()
        answer = forward(*args, **kwargs)
        saving[name] = counter.get_total_flops() - middle - (middle - start)
        shortcuts += middle - start
        return answer

    calls = [(b, partial(counted, name, b)) for name, b in twins.items()]
    x = torch.empty(1, *shape, device="meta")
    rows = {k: v.to("meta") for k, v in cond.items()}

    with torch.no_grad(), counter, replaced(calls):
        meta(x, torch.zeros((), device="meta"), **rows)

    return Costs(counter.get_total_flops() - shortcuts, {n: saving[n] for n in blocks})


def activations(net: nn.Module, shape: Sequence[int], **cond: Tensor) -> int:
    r"""Counts the numbers that a forward pass keeps for the backward one, for one sample.

    It counts on the meta device, in one dtype, each tensor once, and no weights. Times the bytes
    of a number, the batch size, this is what training needs beyond weights and optimiser, less
    the working memory of single operations: 2 bytes under autocast is a lower bound, since
    normalisation there keeps float32. Checkpointing and compilation keep less.

    Args:
        net: As in [`flops`][genflow.nn.costs.flops].
        shape: The shape of a sample, without the batch.
        cond: The conditions that it needs, each with one row; their values do not matter.
    """

    meta = _on_meta(net).train().requires_grad_(True)
    weights = {w.untyped_storage()._cdata for w in [*meta.parameters(), *meta.buffers()]}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept.setdefault(x.untyped_storage()._cdata, x)
        return x

    rows = {k: v.to("meta") for k, v in cond.items()}

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        meta(torch.empty(1, *shape, device="meta"), torch.zeros((), device="meta"), **rows)

    own = [x for key, x in kept.items() if key not in weights]
    return sum(x.untyped_storage().nbytes() // x.element_size() for x in own)


def seconds(
    net: nn.Module, shape: Sequence[int], *, batch: int = 8, repeats: int = 15, **cond: Tensor
) -> Costs:
    r"""Measures the time of a call, and of its blocks.

    Args:
        net: As in [`flops`][genflow.nn.costs.flops]; it is measured where it lives.
        shape: The shape of a sample, without the batch.
        batch: The number of samples of a call.
        repeats: Runs of each block and of the whole, after one to warm up; the median counts.
        cond: The conditions, each with ``batch`` rows.

    Returns:
        The table, in seconds a call.

    Raises:
        UserError: If the network has no blocks to leave out, or repeats is below 1.
    """

    if repeats < 1:
        raise UserError(f"repeats is {repeats}: 1 or more is needed.")

    blocks = _blocks(net)
    weight = next(net.parameters())
    x = torch.randn(batch, *shape, device=weight.device, dtype=weight.dtype)
    timer = partial(_seconds, repeats=repeats, device=weight.device)
    saving: dict[str, float] = {}

    def timed(name: str, block: nn.Module, forward: Callable, args: Any, kwargs: Any) -> Any:
        whole = timer(lambda: forward(*args, **kwargs))
        rest = timer(lambda: kind_of(block).shortcut(block, args, kwargs))
        saving[name] = max(0.0, whole - rest)
        return forward(*args, **kwargs)

    def call() -> Tensor:
        return net(x, torch.full((), 0.5, device=weight.device), **cond)

    with torch.no_grad():
        full = timer(call)
        with replaced([(b, partial(timed, name, b)) for name, b in blocks.items()]):
            call()

    return Costs(full, {n: saving[n] for n in blocks}, unit="seconds")


def _blocks(net: nn.Module) -> dict[str, nn.Module]:
    blocks = blocks_of(getattr(net, "model", net))

    if not blocks:
        raise UserError(
            f"a {type(getattr(net, 'model', net)).__name__} has no blocks to leave out: there is "
            "no cost to save."
        )

    return blocks


def _on_meta(net: nn.Module) -> nn.Module:
    """A copy without memory: weights and buffers are shapes."""

    tensors = [*net.parameters(), *net.buffers()]
    twins: dict[int, Any] = {}

    for p in tensors:
        twin = torch.empty_like(p, device="meta")
        twins[id(p)] = nn.Parameter(twin, False) if isinstance(p, nn.Parameter) else twin

    return copy.deepcopy(net, twins).eval()


def _seconds(run: Callable[[], Any], *, repeats: int, device: torch.device) -> float:
    """The median time of a run, after one to warm up."""

    run()
    return median(_once(run, device) for _ in range(repeats))


def _once(run: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.process_time()
        run()
        return time.process_time() - start

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000

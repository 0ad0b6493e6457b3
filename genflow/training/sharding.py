r"""Training a network that one device cannot hold: every process keeps a part of it.

Under data parallelism each of :math:`N` processes holds all weights, their gradients, both moments
of Adam and the average. Fully sharded, it holds a part of :math:`1/N` of each tensor, cut along
the first dimension. A block is put together when it is called, forward and backward, and its
gradients are summed into the parts; so a process needs the whole of one block at a time, and each
step sends the weights twice and the gradients once. The numbers are those of data parallelism up
to the order of sums, and a checkpoint is the same file: runs go on from one strategy to the other.

What is *not* saved: activations (gradient checkpointing saves them), and memory at the start, when
each process builds the whole network before it is cut. Samples that are drawn on the way are drawn
by all processes alike, in step.

References:
    | PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023)
    | https://arxiv.org/abs/2304.11277

    | torch.distributed.fsdp.fully_shard
    | https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

__all__ = ["FullyShard", "gathered", "like", "shard", "shard_module", "sharded"]

from collections.abc import Mapping, Sequence
import os
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import (
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from genflow.errors import UserError

APART = ("CombinedTimestepLabelEmbeddings",)
"""Modules that are called by others than the block that owns them, as DiT does with its first."""


class FullyShard(ModelParallelStrategy):
    """Shards the weights of a module of this package over all processes of a run.

    In a config it is ``trainer.strategy: fully_shard``, or this class with its arguments.
    Checkpoints are whole, in one file, written by the first process.

    Args:
        blocks: The names of the classes of modules that are put together at a time. By default
            the members of the network's lists of modules: the blocks of a transformer, the levels
            of a U-Net.

    Raises:
        UserError: When the run begins, if no module is of a named class, or there is no network.

    Example:
        >>> trainer = Trainer(devices=8, strategy=FullyShard(), precision="bf16-mixed")
    """

    def __init__(self, blocks: Sequence[str] | None = None) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.blocks = blocks

    def setup_environment(self) -> None:
        """Counts the processes, and connects them.

        Raises:
            UserError: If the module is of a kind that cannot be cut.
        """

        module = self.lightning_module

        if not is_overridden("configure_model", module):
            raise UserError(
                f"strategy is fully_shard, and a {type(module).__name__} has no network to cut: "
                "train it on one process, or with ddp."
            )

        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file, tensors and plain values only, and takes over weights and moments.

        Raises:
            UserError: If it is missing, cut short, no checkpoint, or of another network.
        """

        from genflow.training.checkpoints import load_plain

        content = load_plain(checkpoint_path, map_location="cpu", mmap=True)
        self.lightning_module.on_load_checkpoint(content)
        rest = super().load_checkpoint(checkpoint_path, weights_only=True)
        return rest | {"state_dict": content["state_dict"]}


StrategyRegistry.register("fully_shard", FullyShard, "Shards weights, gradients and averages.")


def sharded(strategy: Strategy) -> bool:
    """Whether a strategy leaves each process with a part of the weights only."""

    return isinstance(strategy, (FSDPStrategy, ModelParallelStrategy))


def shard(net: nn.Module, mesh: DeviceMesh, blocks: Sequence[str] | None = None) -> None:
    """Cuts a network over the processes of a mesh, in place and once.

    Args:
        net: The network, the same on all processes.
        mesh: The processes, in one dimension.
        blocks: The names of the classes of its blocks; see `FullyShard`.

    Raises:
        UserError: If no module is of a named class.
    """

    if isinstance(net, FSDPModule):
        return

    apart = [m for m in net.modules() if type(m).__name__ in APART]

    for block in [*apart, *(_listed(net) if blocks is None else _named(net, blocks))]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)

    # Between two calls nothing may be whole: it would outlive a change of the parts, by EMA say.
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def shard_module(module: LightningModule, strategy: Strategy) -> None:
    """Cuts all that learns in a module with a network, if the strategy is of the kind.

    Raises:
        UserError: If the strategy names blocks that the network does not have.
    """

    if not isinstance(strategy, ModelParallelStrategy):
        return

    mesh = strategy.device_mesh["data_parallel"]
    shard(module.net, mesh, getattr(strategy, "blocks", None))

    for part in module.children():
        held = list(part.parameters())
        if not any(isinstance(p, DTensor) for p in held) and any(p.requires_grad for p in held):
            shard(part, mesh)


def _listed(module: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules."""

    found = []

    for child in module.children():
        found += child if isinstance(child, nn.ModuleList) else _listed(child)

    return found


def _named(net: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules of some classes, inner ones first."""

    whole = {net, getattr(net, "model", None)}  # cut below, and its class must stay what it is
    inner = [m for m in net.modules() if m not in whole][::-1]
    found = [m for m in inner if type(m).__name__ in names]

    if not found:
        known = ", ".join(sorted({type(m).__name__ for m in inner}))
        raise UserError(
            f"blocks is {list(names)}, and the network has no such module: name some of {known}."
        )

    return [m for m in found if type(m).__name__ not in APART]


def gathered(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Puts tensors together whose parts lie with several processes, which all must call this.

    Args:
        named: The tensors; those that are not cut are given back as they are.

    Returns:
        The whole ones, on the CPU and with the first process; nothing with the others.
    """

    if not any(isinstance(value, DTensor) for value in named.values()):
        return dict(named)

    whole, first = {}, torch.distributed.get_rank() == 0

    for name, value in named.items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if first:
            whole[name] = value.cpu()

    return whole


def like(value: Tensor, other: Tensor) -> Tensor:
    """Cuts a whole tensor as another one is; one that is cut, or need not be, stays as it is."""

    if not isinstance(other, DTensor) or isinstance(value, DTensor):
        return value

    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)

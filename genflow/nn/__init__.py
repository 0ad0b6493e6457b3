"""Networks."""

from genflow.nn.blocks import altered, blocks_of
from genflow.nn.checkpointed import Checkpointed
from genflow.nn.costs import Costs, activations, flops, seconds
from genflow.nn.nets import MLP, DiT, Net, UNet, VectorMLP
from genflow.nn.quantised import quantised
from genflow.nn.skips import faded, skip_counts

__all__ = [
    "MLP",
    "Checkpointed",
    "Costs",
    "DiT",
    "Net",
    "UNet",
    "VectorMLP",
    "activations",
    "altered",
    "blocks_of",
    "faded",
    "flops",
    "quantised",
    "seconds",
    "skip_counts",
]

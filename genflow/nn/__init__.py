"""Networks."""

from genflow.nn.nets import MLP, DiT, Net, UNet, VectorMLP
from genflow.nn.quantised import quantised
from genflow.nn.skips import faded, skip_counts

__all__ = ["MLP", "DiT", "Net", "UNet", "VectorMLP", "faded", "quantised", "skip_counts"]

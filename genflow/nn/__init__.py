"""Networks."""

from genflow.nn.checkpointed import Checkpointed
from genflow.nn.nets import MLP, DiT, Net, UNet, VectorMLP
from genflow.nn.skips import faded, skip_counts

__all__ = ["MLP", "Checkpointed", "DiT", "Net", "UNet", "VectorMLP", "faded", "skip_counts"]

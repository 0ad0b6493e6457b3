"""Networks."""

from genflow.nn.nets import MLP, DiT, Net, UNet, VectorMLP

__all__ = ["MLP", "DiT", "Net", "UNet", "VectorMLP"]

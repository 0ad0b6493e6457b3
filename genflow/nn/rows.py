r"""Embeddings in the place of class labels.

Behind a label stands a row of a table, or one of each table where every block of a network has its
own. Such rows may be given instead of the label, so that a condition can be something between the
classes, or beyond them, and can be found by gradients.
"""

__all__ = ["Rows", "tables"]

from torch import Tensor, nn


class Rows(nn.Embedding):
    """A table of classes that hands rows through which are given in place of labels.

    Args:
        table: The table; its weight is shared.
        index: Its number among the tables of the network.
    """

    def __init__(self, table: nn.Embedding, index: int) -> None:
        super().__init__(*table.weight.shape, _weight=table.weight)
        self.weight = table.weight
        self.index = index

    def forward(self, label: Tensor) -> Tensor:
        """Rows with shape (B, E), of labels with shape (B) or of embeddings (B, R, E)."""

        if label.is_floating_point():
            return label[:, self.index].to(self.weight.dtype)
        return super().forward(label)


def tables(model: nn.Module) -> list[Rows]:
    """The tables of classes of a model, each put in the place of a plain one."""

    found: list[Rows] = []

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Embedding):
                table = Rows(child, len(found))
                setattr(parent, name, table)
                found.append(table)

    return found

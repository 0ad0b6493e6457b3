r"""Couplings: which noise goes with which datum.

Training draws pairs :math:`(X, Z)` from a joint law whose marginals are data and noise. Any joint
law gives a flow with the right marginals at every time; how straight it is, and how much the
targets contradict each other, depends on the coupling. A coupling rearranges a batch after both
ends have been drawn independently. It must not change the marginals: it permutes, it never alters.
"""

__all__ = ["Coupling", "Independent"]

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Coupling(Protocol):
    """What pairs the two ends of a batch."""

    def __call__(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Pairs data with noise.

        Args:
            x: The data, with shape (B, \*). Their order is kept, since conditions go with it.
            z: The noise at unit scale, with shape (B, \*).

        Returns:
            x, and the noise in its new order, each with shape (B, \*).
        """
        ...


class Independent:
    """Any noise with any datum: the batch as it was drawn."""

    def __call__(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """See [`Coupling.__call__`][genflow.training.couplings.Coupling]."""

        return x, z

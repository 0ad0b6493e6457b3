r"""What a step may change about the network that it calls.

USF's seventh decision fades the skip connections of a U-Net: the tensors that its decoder takes
from its encoder are multiplied by numbers :math:`c_j \in [0, 1]`,

.. math:: h_j \leftarrow \mathrm{up}_j(h_{j - 1}, \; c_j \, \mathrm{skip}_j),

so that a network trained for small steps can be a little less sure of detail in large ones. An
`Alteration` is data, like everything else about a step; the network itself, its weights and its
state dict are left alone, and a network that cannot be altered so says it when the sampler is
built.

References:
    Unified Sampling Framework for Diffusion Probabilistic Models (USF)
    https://openreview.net/forum?id=W2d3LZbhhI
"""

__all__ = ["UNCHANGED", "Alteration"]

from dataclasses import dataclass
from numbers import Real

from genflow.errors import UserError


@dataclass(frozen=True)
class Alteration:
    """How a step alters the network for the call that it begins with.

    Attributes:
        skips: The factors of the skip connections, in [0, 1], in the order in which the decoder
            takes them, the coarsest level first: one a level, or one a connection. Empty: none
            is changed.

    Raises:
        UserError: If a factor is no number in [0, 1].
    """

    skips: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.skips, (tuple, list)):
            raise UserError(f"change.skips is {self.skips!r}: a list of factors is needed.")

        for c in self.skips:
            if not isinstance(c, Real) or isinstance(c, bool) or not 0 <= c <= 1:
                raise UserError(
                    f"change.skips holds {c!r}: each factor must be a number in [0, 1] (1 leaves "
                    "the connection as it is)."
                )

        object.__setattr__(self, "skips", tuple(float(c) for c in self.skips))

    def __bool__(self) -> bool:
        """Whether anything is altered."""

        return any(c != 1 for c in self.skips)


UNCHANGED = Alteration()
"""The network as it is."""

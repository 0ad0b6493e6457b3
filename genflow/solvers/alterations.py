r"""What a step may change about the network that it calls.

Three things, all of them data, like everything else about a step:

* USF's seventh decision fades the skip connections of a U-Net: the tensors that its decoder takes
  from its encoder are multiplied by numbers :math:`c_j \in [0, 1]`,

  .. math:: h_j \leftarrow \mathrm{up}_j(h_{j - 1}, \; c_j \, \mathrm{skip}_j),

  so that a network trained for small steps can be a little less sure of detail in large ones.
* AutoDiffusion's layer genes leave residual blocks out. A block answers :math:`h + b(h, t)`; where
  it is *dropped* it answers :math:`h`, and where it is *reused* :math:`h + b'`, with b' the branch
  of its last full run in the same trajectory. Both cost the same, next to nothing.
* Guidance can be switched off for a step, which then calls the conditional network alone.

The network itself, its weights and its state dict are left alone, and a network that cannot be
altered so says it when the sampler is built. The number of calls does not change; what a call
costs does, see `genflow.nn.costs`.

References:
    Unified Sampling Framework for Diffusion Probabilistic Models (USF)
    https://openreview.net/forum?id=W2d3LZbhhI

    AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated
    Diffusion Model Acceleration
    https://arxiv.org/abs/2309.10438
"""

__all__ = ["UNCHANGED", "Alteration", "block_plan"]

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from genflow.errors import UserError


@dataclass(frozen=True)
class Alteration:
    """How a step alters the network for the call that it begins with.

    Attributes:
        skips: The factors of the skip connections, in [0, 1], in the order in which the decoder
            takes them, the coarsest level first: one a level, or one a connection. Empty: none
            is changed.
        drop: The names of the blocks that are left out, as `genflow.nn.blocks_of` lists them.
        reuse: The names of the blocks whose branch is taken from their last full run.
        guidance: Whether a guided denoiser guides at this step; nothing to others.

    Raises:
        UserError: If a factor is no number in [0, 1], a name is no text, a block is named twice,
            or guidance is neither true nor false.
    """

    skips: tuple[float, ...] = ()
    drop: tuple[str, ...] = ()
    reuse: tuple[str, ...] = ()
    guidance: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.skips, (tuple, list)):
            raise UserError(f"change.skips is {self.skips!r}: a list of factors is needed.")

        for c in self.skips:
            if not isinstance(c, Real) or isinstance(c, bool) or not 0 <= c <= 1:
                raise UserError(
                    f"change.skips holds {c!r}: each factor must be a number in [0, 1] (1 leaves "
                    "the connection as it is)."
                )
        if not isinstance(self.guidance, bool):
            raise UserError(f"change.guidance is {self.guidance!r}: true or false is needed.")

        object.__setattr__(self, "skips", tuple(float(c) for c in self.skips))
        object.__setattr__(self, "drop", _names("drop", self.drop))
        object.__setattr__(self, "reuse", _names("reuse", self.reuse))

        for name in self.drop:
            if name in self.reuse:
                raise UserError(
                    f"block '{name}' is in change.drop and in change.reuse: one of them at a step."
                )

    def __bool__(self) -> bool:
        """Whether anything is altered."""

        return self.fades or bool(self.drop or self.reuse) or not self.guidance

    @property
    def fades(self) -> bool:
        """Whether a skip connection is faded."""

        return any(c != 1 for c in self.skips)


def _names(field: str, value: Any) -> tuple[str, ...]:
    """The names in order, so that equal sets are equal records."""

    if not isinstance(value, (tuple, list)) or not all(isinstance(n, str) for n in value):
        raise UserError(f"change.{field} is {value!r}: a list of names of blocks is needed.")

    for name in value:
        if value.count(name) > 1:
            raise UserError(f"change.{field} names block '{name}' twice.")

    return tuple(sorted(value))


UNCHANGED = Alteration()
"""The network as it is."""


def block_plan(changes: Sequence[Alteration | None]) -> list[dict[str, str]]:
    """What each call does with each block: ``"drop"``, ``"reuse"``, or ``"keep"``.

    A block that is kept at a call runs in full, and its branch is remembered for a later reuse;
    blocks that are not named at a call just run.

    Args:
        changes: The alteration of each call, None where a stage does not call the network.

    Returns:
        For each call a mapping from names to modes.

    Raises:
        UserError: If a block is reused that no call before has run, or that ran with another
            guidance.
    """

    plans: list[dict[str, str]] = []

    for i, change in enumerate(changes):
        now = change or UNCHANGED
        plan = dict.fromkeys(now.drop, "drop") if change is not None else {}

        for name in now.reuse if change is not None else ():
            ran = _last_run(name, changes[:i])
            if ran is None:
                raise UserError(
                    f"step {i} reuses block '{name}', which no step before it has run: keep it at "
                    "the first step, or drop it."
                )
            if changes[ran].guidance != now.guidance:
                raise UserError(
                    f"step {i} reuses block '{name}' from step {ran}, and only one of the two is "
                    "guided: keep the block at one step in between, or let guidance be the same."
                )
            plan[name] = "reuse"
            plans[ran][name] = "keep"

        plans.append(plan)

    return plans


def _last_run(name: str, changes: Sequence[Alteration | None]) -> int | None:
    """The last call that runs a block in full."""

    for i in reversed(range(len(changes))):
        change = changes[i]
        if change is not None and name not in change.drop and name not in change.reuse:
            return i

    return None

r"""Couplings: which noise goes with which datum.

Training draws pairs :math:`(X, Z)` from a joint law whose marginals are data and noise. Any joint
law gives a flow with the right marginals at every time; how straight it is, and how much the
targets contradict each other, depends on the coupling. A coupling rearranges a batch after both
ends have been drawn independently. It must not change the marginals: it permutes, it never
alters; only a teacher's samples may take the place of data.

`OptimalTransport` pairs a batch at the least total cost. Within a batch that is exact; as a law
of pairs it is biased towards the optimal plan by the size of the batch, and no more than that is
claimed. With classes, free permutation would tie the noise to the class, and a sampler that draws
noise without asking for the class would then be wrong: the cost has a term that keeps noise with
its class.
"""

__all__ = ["Coupling", "Independent", "OptimalTransport", "Taught"]

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
import math
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from scipy.optimize import linear_sum_assignment
import torch
from torch import Generator, Tensor

from genflow.errors import UserError


@runtime_checkable
class Coupling(Protocol):
    """What pairs the two ends of a batch."""

    def __call__(
        self,
        x: Tensor,
        z: Tensor,
        *,
        label: Tensor | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Pairs data with noise.

        Args:
            x: The data, with shape (B, \*). Their order is kept, since conditions go with it.
            z: The noise at unit scale, with shape (B, \*).
            label: The classes of the data, with shape (B), if there are classes.
            generator: The source of what is random about the coupling, on the device of x.

        Returns:
            x, and the noise in its new order, each with shape (B, \*).
        """
        ...


class Taught:
    r"""The data that a teacher makes of the noise, at the moment they are needed: online reflow.

    It costs the teacher's calls in every step of training, and no disk. The data of the batch are
    thrown away; their classes are what the teacher is asked for.

    Args:
        teacher: A callable from initial states to samples, a `Sampler` say; classes reach it as
            ``label``.
        scale: What the noise is multiplied by to become an initial state, :math:`\sigma_1`.
    """

    def __init__(self, teacher: Callable[..., Tensor], scale: float = 1.0) -> None:
        self.teacher = teacher
        self.scale = scale

    def __call__(
        self,
        x: Tensor,
        z: Tensor,
        *,
        label: Tensor | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See [`Coupling.__call__`][genflow.training.couplings.Coupling]."""

        cond = {} if label is None else {"label": label}

        with torch.no_grad():
            return self.teacher(self.scale * z, **cond), z


class Independent:
    """Any noise with any datum: the batch as it was drawn.

    It is also the coupling of pairs that come paired, as in reflow.
    """

    def __call__(
        self,
        x: Tensor,
        z: Tensor,
        *,
        label: Tensor | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See [`Coupling.__call__`][genflow.training.couplings.Coupling]."""

        return x, z


@dataclass(frozen=True)
class OptimalTransport:
    r"""The permutation of a batch with the least total cost.

    .. math:: \min_\pi \sum_i \| x_i - z_{\pi(i)} \|^p + w \, [c_i \ne c_{\pi(i)}]

    where noise j, drawn independently, counts as belonging to the class :math:`c_j`. The
    permutation is found exactly (``"exact"``), or drawn with the entropic plan of the batch as
    its weights (``"sinkhorn"``): the assignment that maximises
    :math:`\sum_i \log P_{i \pi(i)} + g_{i \pi(i)}` with Gumbel noise g.

    Args:
        method: ``"exact"``, or ``"sinkhorn"``, which needs the package POT.
        power: p, above 0; 2 is the cost of the paper, and 1 is the distance.
        epsilon: The weight of the entropy, in units of the mean cost, above 0; for sinkhorn.
        label_weight: w in units of the mean cost, 0 or more; ``inf`` transports within classes.

    Raises:
        UserError: If a value is out of its range, or POT is needed and not installed.

    References:
        Improving and generalizing flow-based generative models with minibatch optimal transport
        https://arxiv.org/abs/2302.00482

        The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional
        Flow-Based Generation (the term of the classes)
        https://arxiv.org/abs/2503.10636
    """

    method: Literal["exact", "sinkhorn"] = "exact"
    power: float = 2.0
    epsilon: float = 0.05
    label_weight: float = math.inf

    def __post_init__(self) -> None:
        if self.method not in ("exact", "sinkhorn"):
            raise UserError(
                f"coupling.method is '{self.method}': allowed are 'exact' and 'sinkhorn'."
            )
        for name in ("power", "epsilon"):
            if not getattr(self, name) > 0:
                raise UserError(f"coupling.{name} is {getattr(self, name)}: it must be above 0.")
        if not self.label_weight >= 0:
            raise UserError(
                f"coupling.label_weight is {self.label_weight}: it must be 0 or more "
                "(inf transports within classes)."
            )
        if self.method == "sinkhorn" and find_spec("ot") is None:
            raise UserError(
                "coupling.method is 'sinkhorn', which needs the package POT: pip install pot, or "
                "take 'exact'."
            )

    def __call__(
        self,
        x: Tensor,
        z: Tensor,
        *,
        label: Tensor | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See [`Coupling.__call__`][genflow.training.couplings.Coupling]."""

        cost = self.cost(x, z, label).cpu().numpy()

        if self.method == "sinkhorn":
            cost = -self._logits(cost, generator, x.device)

        order = linear_sum_assignment(cost)[1]
        return x, z[torch.from_numpy(order).to(z.device)]

    def cost(self, x: Tensor, z: Tensor, label: Tensor | None = None) -> Tensor:
        """The cost of pairing each datum with each noise, in units of the mean cost.

        Args:
            x: The data, with shape (B, \\*).
            z: The noise, with shape (B, \\*).
            label: The classes of the data, with shape (B), or None.

        Returns:
            The cost, in float64 with shape (B, B).
        """

        x, z = (v.detach().flatten(1).float() for v in (x, z))
        cost = torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist").double()
        cost = cost.pow(self.power)
        cost = cost / cost.mean().clamp_min(torch.finfo(torch.float64).tiny)

        if label is None or self.label_weight == 0:
            return cost

        # More than all the transport of a batch can cost is as good as infinite.
        most = min(self.label_weight, 2 * len(x) * float(cost.max()) + 1)
        return cost + most * (label[:, None] != label[None, :])

    def _logits(
        self, cost: np.ndarray, generator: Generator | None, device: torch.device
    ) -> np.ndarray:
        """The logarithm of the entropic plan, with Gumbel noise."""

        import ot

        even = np.full(len(cost), 1 / len(cost))
        plan = ot.sinkhorn(even, even, cost, self.epsilon, method="sinkhorn_log")
        u = torch.rand(cost.shape, generator=generator, device=device, dtype=torch.float64)
        gumbel = -torch.log((-torch.log(u.clamp_min(1e-300))).clamp_min(1e-300))
        return np.log(np.maximum(plan, 1e-300)) + gumbel.cpu().numpy()

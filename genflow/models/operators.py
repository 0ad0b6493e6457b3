r"""Families of K symmetric operators, applied to a batch of states without building matrices.

An operator family :math:`O_1, \dots, O_K` is the same for all samples, or each of the B samples
has its own K (when samples are at different times). What a mixture of Gaussians needs of it are
quadratic forms, weighted sums, and one chosen member a sample. In the shared case these are matrix
products; no tensor of B × K × d values arises for diagonal families.
"""

__all__ = [
    "DiagonalOperator",
    "LowRankOperator",
    "Operator",
    "RotatedOperator",
    "blend",
    "chosen",
    "chunked",
    "rows",
]

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIMIT = 2**25
"""The number of values that an intermediate result holds at most, where parts can be taken."""


def chunked(part: Callable[..., Tensor], width: int, x: Tensor, *rest: Any) -> Tensor:
    """A function of B rows, called on as many at a time as memory should hold.

    Args:
        part: The function.
        width: The number of values that a row needs.
        x: Its first argument, with B rows.
        rest: Its other arguments; tensors with a dimension are cut like x.

    Returns:
        The results, one under the other.
    """

    n = max(1, LIMIT // width)

    if len(x) <= n:
        return part(x, *rest)

    def cut(value: Any, i: int) -> Any:
        return value[i : i + n] if isinstance(value, Tensor) and value.ndim else value

    return torch.cat([part(x[i : i + n], *(cut(v, i) for v in rest)) for i in range(0, len(x), n)])


def rows(v: Tensor, x: Tensor) -> Tensor:
    """Inner products of vectors, (K, d) or (B, K, d), with states (B, d), with shape (B, K)."""

    return x @ v.mT if v.ndim == 2 else torch.einsum("bkd,bd->bk", v, x)


def blend(w: Tensor, v: Tensor) -> Tensor:
    """Sums of vectors, (K, d) or (B, K, d), with weights (B, K), with shape (B, d)."""

    return w @ v if v.ndim == 2 else torch.einsum("bk,bkd->bd", w, v)


def chosen(v: Tensor, k: Tensor, shared: int) -> Tensor:
    """The members k, with shape (B), of values that have ``shared`` dimensions when shared."""

    return v[k] if v.ndim == shared else v[torch.arange(len(k), device=k.device), k]


class Operator(ABC):
    """K symmetric operators on vectors with shape (d), shared or of each sample.

    Attributes:
        value: Their eigenvalues or diagonals, with shape (K, d) or (B, K, d).
    """

    value: Tensor

    @abstractmethod
    def quadratic(self, x: Tensor) -> Tensor:
        """x' O_k x for states (B, d), with shape (B, K)."""

    @abstractmethod
    def mixed(self, w: Tensor, x: Tensor) -> Tensor:
        """The sum over k of w_k O_k x for weights (B, K) and states (B, d), with shape (B, d)."""

    @abstractmethod
    def blended(self, w: Tensor) -> Tensor:
        """The sum over k of w_k O_k for weights (B, K), with shape (B, d, d)."""

    @abstractmethod
    def spread(self, x: Tensor) -> Tensor:
        """O_k x for states (B, d), with shape (B, K, d)."""

    @abstractmethod
    def of(self, r: Tensor) -> Tensor:
        """O_k r_k for vectors (K, d), with shape (K, d) or (B, K, d)."""

    @abstractmethod
    def picked(self, k: Tensor, x: Tensor) -> Tensor:
        """O_k x for one k, with shape (B), and one state a sample, with shape (B, d)."""

    @property
    @abstractmethod
    def draws(self) -> int:
        """How many normal numbers a sample takes."""

    @abstractmethod
    def noise(self, k: Tensor, z: Tensor) -> Tensor:
        """A draw of N(0, O_k), with shape (B, d), from normal numbers (B, draws)."""

    def dense(self) -> Tensor:
        """The matrices of a shared family, with shape (K, d, d)."""

        K = len(self.value)
        return self.blended(torch.eye(K, dtype=self.value.dtype, device=self.value.device))


class DiagonalOperator(Operator):
    """Diagonal operators.

    Args:
        value: The diagonals, with shape (K, d) or (B, K, d).
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def quadratic(self, x: Tensor) -> Tensor:
        """See [`Operator.quadratic`][genflow.models.operators.Operator.quadratic]."""

        return rows(self.value, x.square())

    def mixed(self, w: Tensor, x: Tensor) -> Tensor:
        """See [`Operator.mixed`][genflow.models.operators.Operator.mixed]."""

        return blend(w, self.value) * x

    def blended(self, w: Tensor) -> Tensor:
        """See [`Operator.blended`][genflow.models.operators.Operator.blended]."""

        return torch.diag_embed(blend(w, self.value))

    def spread(self, x: Tensor) -> Tensor:
        """See [`Operator.spread`][genflow.models.operators.Operator.spread]."""

        return self.value * x[:, None]

    def of(self, r: Tensor) -> Tensor:
        """See [`Operator.of`][genflow.models.operators.Operator.of]."""

        return self.value * r

    def picked(self, k: Tensor, x: Tensor) -> Tensor:
        """See [`Operator.picked`][genflow.models.operators.Operator.picked]."""

        return chosen(self.value, k, 2) * x

    @property
    def draws(self) -> int:
        """The dimension."""

        return self.value.shape[-1]

    def noise(self, k: Tensor, z: Tensor) -> Tensor:
        """See [`Operator.noise`][genflow.models.operators.Operator.noise]."""

        return chosen(self.value, k, 2).sqrt() * z


class RotatedOperator(Operator):
    """Operators with axes of their own, Q_k diag(value_k) Q_k'.

    Args:
        value: The eigenvalues, with shape (K, d) or (B, K, d).
        basis: The axes as columns, with shape (K, d, d).
    """

    def __init__(self, value: Tensor, basis: Tensor) -> None:
        self.value = value
        self.basis = basis

    def _into(self, x: Tensor) -> Tensor:
        """Coordinates (B, K, d) of states in every basis, by one product."""

        K, d, _ = self.basis.shape
        return (x @ self.basis.permute(1, 0, 2).reshape(d, K * d)).unflatten(1, (K, d))

    def quadratic(self, x: Tensor) -> Tensor:
        """See [`Operator.quadratic`][genflow.models.operators.Operator.quadratic]."""

        return (self.value * self._into(x).square()).sum(-1)

    def mixed(self, w: Tensor, x: Tensor) -> Tensor:
        """See [`Operator.mixed`][genflow.models.operators.Operator.mixed]."""

        u = w[..., None] * self.value * self._into(x)
        return u.flatten(1) @ self.basis.mT.flatten(0, 1)

    def blended(self, w: Tensor) -> Tensor:
        """See [`Operator.blended`][genflow.models.operators.Operator.blended]."""

        if self.value.ndim == 2:
            dense = (self.basis * self.value[:, None]) @ self.basis.mT
            return (w @ dense.flatten(1)).unflatten(1, dense.shape[1:])

        return torch.einsum("kde,bke,kfe->bdf", self.basis, w[..., None] * self.value, self.basis)

    def spread(self, x: Tensor) -> Tensor:
        """See [`Operator.spread`][genflow.models.operators.Operator.spread]."""

        return self._out(self.value * self._into(x))

    def _out(self, u: Tensor) -> Tensor:
        return torch.einsum("...ke,kde->...kd", u, self.basis)

    def of(self, r: Tensor) -> Tensor:
        """See [`Operator.of`][genflow.models.operators.Operator.of]."""

        return self._out(self.value * torch.einsum("kd,kde->ke", r, self.basis))

    def picked(self, k: Tensor, x: Tensor) -> Tensor:
        """See [`Operator.picked`][genflow.models.operators.Operator.picked]."""

        u = torch.einsum("bd,bde->be", x, self.basis[k])
        return torch.einsum("be,bde->bd", chosen(self.value, k, 2) * u, self.basis[k])

    @property
    def draws(self) -> int:
        """The dimension."""

        return self.value.shape[-1]

    def noise(self, k: Tensor, z: Tensor) -> Tensor:
        """See [`Operator.noise`][genflow.models.operators.Operator.noise]."""

        return torch.einsum("be,bde->bd", chosen(self.value, k, 2).sqrt() * z, self.basis[k])


class LowRankOperator(Operator):
    """Operators diag(value_k) + c W_k W_k'.

    Args:
        value: The diagonals, with shape (K, d) or (B, K, d).
        factor: The factors W, with shape (K, d, q) or (B, K, d, q).
        scale: The number c, with shape () or (B).
    """

    def __init__(self, value: Tensor, factor: Tensor, scale: Tensor) -> None:
        self.value = value
        self.factor = factor
        self.scale = scale

    def _into(self, x: Tensor) -> Tensor:
        """W_k' x, with shape (B, K, q), by one product if shared."""

        if self.factor.ndim == 4:
            return torch.einsum("bd,bkdq->bkq", x, self.factor)

        K, d, q = self.factor.shape
        return (x @ self.factor.permute(1, 0, 2).reshape(d, K * q)).unflatten(1, (K, q))

    def _scaled(self, u: Tensor) -> Tensor:
        """c u for u with shape (B, K, q) or (B, q)."""

        c = self.scale
        return u * (c.reshape(-1, *(1,) * (u.ndim - 1)) if c.ndim else c)

    def quadratic(self, x: Tensor) -> Tensor:
        """See [`Operator.quadratic`][genflow.models.operators.Operator.quadratic]."""

        return rows(self.value, x.square()) + self._scaled(self._into(x).square()).sum(-1)

    def mixed(self, w: Tensor, x: Tensor) -> Tensor:
        """See [`Operator.mixed`][genflow.models.operators.Operator.mixed]."""

        u = w[..., None] * self._scaled(self._into(x))
        shared = self.factor.ndim == 3

        if shared:
            back = u.flatten(1) @ self.factor.mT.flatten(0, 1)
        else:
            back = torch.einsum("bkq,bkdq->bd", u, self.factor)

        return blend(w, self.value) * x + back

    def blended(self, w: Tensor) -> Tensor:
        """See [`Operator.blended`][genflow.models.operators.Operator.blended]."""

        diagonal = torch.diag_embed(blend(w, self.value))
        W = (
            self.factor
            if self.factor.ndim == 4
            else self.factor.expand(len(w), *self.factor.shape)
        )
        w = self._scaled(w)
        return diagonal + torch.einsum("bk,bkdq,bkeq->bde", w, W, W)

    def spread(self, x: Tensor) -> Tensor:
        """See [`Operator.spread`][genflow.models.operators.Operator.spread]."""

        u = self._scaled(self._into(x))
        return self.value * x[:, None] + (self.factor @ u[..., None])[..., 0]

    def of(self, r: Tensor) -> Tensor:
        """See [`Operator.of`][genflow.models.operators.Operator.of]."""

        u = (self.factor.mT @ r[..., None])[..., 0]
        c = self.scale[..., None, None]
        return self.value * r + (self.factor @ (c * u)[..., None])[..., 0]

    def picked(self, k: Tensor, x: Tensor) -> Tensor:
        """See [`Operator.picked`][genflow.models.operators.Operator.picked]."""

        W = chosen(self.factor, k, 3)
        u = self._scaled(torch.einsum("bd,bdq->bq", x, W))
        return chosen(self.value, k, 2) * x + torch.einsum("bq,bdq->bd", u, W)

    @property
    def draws(self) -> int:
        """The dimension and the rank, added up."""

        return self.value.shape[-1] + self.factor.shape[-1]

    def noise(self, k: Tensor, z: Tensor) -> Tensor:
        """See [`Operator.noise`][genflow.models.operators.Operator.noise]."""

        d = self.value.shape[-1]
        c = self.scale[..., None].sqrt()
        inner = torch.einsum("bq,bdq->bd", c * z[:, d:], chosen(self.factor, k, 3))
        return chosen(self.value, k, 2).sqrt() * z[:, :d] + inner

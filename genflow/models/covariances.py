r"""The covariances of a light Schrödinger bridge, and what time makes of them.

Every closed form of the bridge is a function of the K matrices :math:`S_k` and of

.. math:: B_k(t) = (1 - t) S_k + t I,

which runs from :math:`S_k` at the data end (t = 0) to the identity at the source (t = 1). A leaf
holds the parameters of its matrices; at a time it answers for three things: the ratio
:math:`B_k(s) B_k(t)^{-1}`, the excess :math:`B_k(t)^{-1} (S_k - I)`, and :math:`\log\det B_k(t)`.
None of them divides by t or by 1 − t, and none is a difference of large terms, so that all are
regular on the closed interval.

========== ============================================ =====================================
leaf       :math:`S_k`                                   cost of a state, all components
========== ============================================ =====================================
Diagonal   :math:`\mathrm{diag}(e^{\ell_k})`             K d
LowRank    :math:`\mathrm{diag}(e^{\ell_k}) + F_k F_k'`  K d q
Full       :math:`Q_k \mathrm{diag}(e^{\ell_k}) Q_k'`    K d²
========== ============================================ =====================================
"""

__all__ = ["FAMILIES", "At", "Covariance", "Diagonal", "Full", "LowRank", "entropic_map"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.models.operators import DiagonalOperator, LowRankOperator, Operator, RotatedOperator


class Covariance(nn.Module, ABC):
    """K symmetric positive matrices :math:`S_k` in d dimensions.

    Attributes:
        kind: The name of the family, as saved.
        names: The tensors that make it, which are also the arguments of its leaf.
        log_scale: The logarithms of the eigenvalues, or of the diagonal part, with shape (K, d).
    """

    kind: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    log_scale: nn.Parameter

    def __init__(self, log_scale: Tensor) -> None:
        super().__init__()

        log_scale = torch.as_tensor(log_scale)

        if log_scale.ndim != 2 or not log_scale.is_floating_point():
            raise UserError(
                f"log_scale has shape {tuple(log_scale.shape)} and type {log_scale.dtype}: "
                "floats with shape (K, d) are needed."
            )
        if not bool(torch.isfinite(log_scale).all()):
            raise UserError("log_scale holds values that are not finite: give finite logarithms.")

        self.log_scale = nn.Parameter(log_scale.detach().clone())

    @property
    def components(self) -> int:
        """The number K."""

        return self.log_scale.shape[0]

    @property
    def dimension(self) -> int:
        """The number d."""

        return self.log_scale.shape[1]

    @abstractmethod
    def at(self, t: Tensor) -> "At":
        """What the matrices make of the times t, with shape () or (B)."""

    @abstractmethod
    def width(self, t: Tensor) -> int:
        """The number of values that the operators at times t spread a state to."""

    @property
    def member(self) -> int:
        """The number of values of one matrix as its operators hold it."""

        return sum(getattr(self, name)[0].numel() for name in self.names)

    def settled(self) -> "Covariance":
        """The same matrices, ready to be used or saved."""

        return self

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make the family, by name."""

        settled = self.settled()
        return {name: getattr(settled, name).detach() for name in self.names}

    @classmethod
    def joined(cls, families: Sequence["Covariance"]) -> Self:
        """One family of the members of several, which are of the same leaf."""

        parts = [family.tensors() for family in families]
        return cls(**{name: torch.cat([part[name] for part in parts]) for name in cls.names})

    def dense(self) -> Tensor:
        r""":math:`S_k`, with shape (K, d, d)."""

        one = self.log_scale.new_ones(())
        return self.at(one).ratio(0 * one).dense()

    def levels(self, t: Tensor) -> Tensor:
        r""":math:`(1 - t) e^\ell + t`, with shape (K, d) or (B, K, d)."""

        t = t[..., None, None]
        return (1 - t) * self.log_scale.exp() + t


class Diagonal(Covariance):
    """Diagonal matrices.

    Args:
        log_scale: The logarithms of the diagonals, with shape (K, d).

    Raises:
        UserError: If the shape is another, or a value is not finite.
    """

    kind = "diagonal"
    names = ("log_scale",)

    def at(self, t: Tensor) -> "At":
        """See [`Covariance.at`][genflow.models.covariances.Covariance.at]."""

        levels = self.levels(t)
        return At(self, t, levels, levels.log().sum(-1), lambda v, c: DiagonalOperator(v))

    def width(self, t: Tensor) -> int:
        """See [`Covariance.width`][genflow.models.covariances.Covariance.width]."""

        return self.components * (self.dimension if t.ndim else 1)


class Full(Covariance):
    r"""Matrices :math:`Q_k \mathrm{diag}(e^{\ell_k}) Q_k'` with axes of their own.

    Gradients cannot keep Q orthogonal, so training moves a generator instead: with ``turn`` the
    axes are :math:`Q_k (I + A_k)(I - A_k)^{-1}`, where :math:`A_k` is the lower triangle of
    ``turn`` less its transpose (Cayley's map).

    Args:
        log_scale: The logarithms of the eigenvalues, with shape (K, d).
        basis: The axes as orthonormal columns, with shape (K, d, d).
        turn: The generator, with shape (K, d, d); None holds the axes fast.

    Raises:
        UserError: If shapes disagree, a value is not finite, or a basis is not orthonormal.
    """

    kind = "full"
    names = ("log_scale", "basis")

    def __init__(self, log_scale: Tensor, basis: Tensor, turn: Tensor | None = None) -> None:
        super().__init__(log_scale)

        basis = torch.as_tensor(basis).to(self.log_scale).detach()
        shape = (self.components, self.dimension, self.dimension)

        if basis.shape != shape or (turn is not None and turn.shape != shape):
            raise UserError(
                f"basis has shape {tuple(basis.shape)}"
                f"{'' if turn is None else f' and turn {tuple(turn.shape)}'}: (K, d, d) = {shape} "
                "is needed."
            )

        eye = torch.eye(shape[-1], dtype=basis.dtype, device=basis.device)
        gap = float((basis.mT @ basis - eye).abs().max())

        if not gap < 1e-3:
            raise UserError(
                f"basis is {gap:.3g} away from orthonormal columns: use Full.of(matrices), which "
                "finds the axes."
            )

        self.register_buffer("basis", basis.clone())
        self.turn = None if turn is None else nn.Parameter(turn.detach().to(basis).clone())

    @classmethod
    def of(cls, matrices: Tensor) -> "Full":
        """The family of given matrices.

        Args:
            matrices: Symmetric positive matrices, with shape (K, d, d).

        Raises:
            UserError: If the shape is another, or a matrix is not positive.
        """

        if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
            raise UserError(f"matrices have shape {tuple(matrices.shape)}: (K, d, d) is needed.")

        scale, basis = torch.linalg.eigh(matrices.detach())

        if not bool((scale > 0).all()):
            raise UserError(
                f"matrices have the eigenvalue {float(scale.min()):.4g}: all must be above 0."
            )

        return cls(scale.log(), basis)

    def turning(self) -> "Full":
        """A copy whose axes can be trained."""

        return Full(self.log_scale, self.rotation, torch.zeros_like(self.basis))

    def settled(self) -> "Full":
        """A copy with the turn folded into the axes."""

        return Full(self.log_scale, self.rotation)

    @property
    def rotation(self) -> Tensor:
        """The axes as columns, with shape (K, d, d)."""

        if self.turn is None:
            return self.basis

        lower = self.turn.tril(-1)
        skew = lower - lower.mT
        eye = torch.eye(self.dimension, dtype=skew.dtype, device=skew.device)
        cayley, _ = torch.linalg.solve_ex(eye - skew, eye + skew)
        return self.basis @ cayley

    def at(self, t: Tensor) -> "At":
        """See [`Covariance.at`][genflow.models.covariances.Covariance.at]."""

        levels, axes = self.levels(t), self.rotation
        return At(self, t, levels, levels.log().sum(-1), lambda v, c: RotatedOperator(v, axes))

    def width(self, t: Tensor) -> int:
        """See [`Covariance.width`][genflow.models.covariances.Covariance.width]."""

        return self.components * self.dimension


class LowRank(Covariance):
    r"""Diagonal matrices with a few directions of their own, :math:`\mathrm{diag}(e^{\ell_k}) +
    F_k F_k'`.

    With :math:`D` the levels of the diagonal part at time t, :math:`G = D^{-1} F` and
    :math:`I + (1 - t) F'G = L L'` (Cholesky, q × q), Woodbury's identity gives, with :math:`W = G
    L^{-T}`,

    .. math:: B_t^{-1} (S - I) = D^{-1} (e^\ell - 1) + W W', \qquad
              B_s B_t^{-1} = D_s D_t^{-1} + (t - s) W W',

    in which the terms add up without cancelling for s ≤ t.

    Args:
        log_scale: The logarithms of the diagonal parts, with shape (K, d).
        factor: The factors :math:`F_k`, with shape (K, d, q).

    Raises:
        UserError: If shapes disagree or a value is not finite.
    """

    kind = "lowrank"
    names = ("log_scale", "factor")

    def __init__(self, log_scale: Tensor, factor: Tensor) -> None:
        super().__init__(log_scale)

        factor = torch.as_tensor(factor).to(self.log_scale)

        if factor.ndim != 3 or factor.shape[:2] != self.log_scale.shape or factor.shape[2] < 1:
            raise UserError(
                f"factor has shape {tuple(factor.shape)}: (K, d, q) with (K, d) = "
                f"{tuple(self.log_scale.shape)} and q of 1 or more is needed."
            )
        if not bool(torch.isfinite(factor).all()):
            raise UserError("factor holds values that are not finite: give finite numbers.")

        self.factor = nn.Parameter(factor.detach().clone())

    def at(self, t: Tensor) -> "At":
        """See [`Covariance.at`][genflow.models.covariances.Covariance.at]."""

        levels = self.levels(t)
        G = self.factor / levels[..., None]
        eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
        inner = eye + (1 - t)[..., None, None, None] * (self.factor.mT @ G)
        L, _ = torch.linalg.cholesky_ex(inner)
        W = torch.linalg.solve_triangular(L, G.mT, upper=False).mT
        logdet = levels.log().sum(-1) + 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return At(self, t, levels, logdet, lambda v, c: LowRankOperator(v, W, c))

    def width(self, t: Tensor) -> int:
        """See [`Covariance.width`][genflow.models.covariances.Covariance.width]."""

        return self.components * self.factor.shape[2] * (self.dimension if t.ndim else 1)


@dataclass(frozen=True)
class At:
    """The matrices :math:`B_k` at times t.

    Attributes:
        covariance: The family.
        t: The times, with shape () or (B).
        levels: The eigenvalues or the diagonal part, with shape (K, d) or (B, K, d).
        logdet: The logarithms of the determinants, with shape (K) or (B, K).
        operator: From values like ``levels``, and the factor of the low-rank part, to an operator.
    """

    covariance: Covariance
    t: Tensor
    levels: Tensor
    logdet: Tensor
    operator: Callable[[Tensor, Tensor], Operator]

    def ratio(self, s: Tensor) -> Operator:
        r""":math:`B_k(s) B_k(t)^{-1}`, for s with shape () or (B)."""

        return self.operator(self.covariance.levels(s) / self.levels, self.t - s)

    def excess(self) -> Operator:
        r""":math:`B_k(t)^{-1} (S_k - I)`."""

        gain = self.covariance.log_scale.expm1()
        return self.operator(gain / self.levels, torch.ones_like(self.t))


def entropic_map(source: Tensor, target: Tensor, epsilon: float) -> Tensor:
    r"""The positive matrices that solve :math:`S V_0 S + \epsilon S = V_1`.

    It is the linear map of entropic optimal transport between Gaussians with covariances
    :math:`V_0, V_1`, so that a bridge with K = 1 and this S joins them exactly. With
    :math:`A = V_1^{1/2}`,

    .. math:: S = A \Big( \big(A V_0 A + \tfrac{\epsilon^2}{4} I\big)^{1/2}
                  + \tfrac\epsilon2 I \Big)^{-1} A,

    which needs no inverse of a covariance.

    Args:
        source: The covariances :math:`V_0`, with shape (\*, d, d), or diagonals, (\*, d).
        target: The covariances :math:`V_1`, likewise.
        epsilon: The variance of the Brownian motion per unit time, above 0.

    Returns:
        The matrices or diagonals, with the shape of ``target``.
    """

    if source.shape[-1:] == source.shape[-2:-1] and source.ndim > 2:
        A = _root(target)
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        inner = _root(A @ source @ A + epsilon**2 / 4 * eye) + epsilon / 2 * eye
        return A @ torch.linalg.solve(inner, A)

    return 2 * target / (epsilon + torch.sqrt(epsilon**2 + 4 * source * target))


def _root(matrix: Tensor) -> Tensor:
    values, basis = torch.linalg.eigh(matrix)
    return (basis * values.clamp(min=0).sqrt()[..., None, :]) @ basis.mT


FAMILIES: dict[str, type[Covariance]] = {leaf.kind: leaf for leaf in (Diagonal, LowRank, Full)}
"""The leaves by name."""

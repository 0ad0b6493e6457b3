r"""The Fréchet distance between two clouds of features, by their first two moments.

For two laws with means :math:`\mu_1, \mu_2` and covariances :math:`S_1, S_2`,

.. math:: d^2 = \| \mu_1 - \mu_2 \|^2 + \mathrm{tr} \, S_1 + \mathrm{tr} \, S_2
    - 2 \, \mathrm{tr} \, (R_1^\top S_2 R_1)^{1/2}, \qquad S_i = R_i R_i^\top

which is the squared Wasserstein-2 distance if both laws are Gaussian, and a lower bound of it if
they are not. No square root of a matrix that is not symmetric is ever taken, so nothing complex
can appear. The last trace is a sum of square roots of eigenvalues, hence of singular values,

.. math:: \mathrm{tr} \, (R_1^\top S_2 R_1)^{1/2} = \| R_1^\top R_2 \|_*

*for any roots* :math:`R_1, R_2`. Singular values carry an error of one part in 1e16 where roots of
eigenvalues carry one in 1e8, and the freedom in the roots pays: a covariance gives its root by an
eigendecomposition, clipped at zero, while centred features :math:`X` *are* a root already,
:math:`R = X^\top / \sqrt{n - 1}`. With fewer points than dimensions the work is that of an
n-by-n problem, and no covariance is ever formed. With more points than dimensions the root is
the triangular factor of the centred features, joined chunk by chunk, so features that lie in a
memory map are never in memory as a whole.

What is *not* assumed: that the features are Gaussian (the distance then sees two moments only),
that the covariances have full rank, or that both clouds have the same size. The estimate from
finite samples is biased upward, more for wide features and few points: read it beside the floor
of :mod:`genflow.metrics.report`.

References:
    | The Fréchet distance between multivariate normal distributions (Dowson & Landau, 1982)
    | https://doi.org/10.1016/0047-259X(82)90077-X

    | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
    | (Heusel et al., 2017)
    | https://arxiv.org/abs/1706.08500

    | Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan et al., 1979)
    | http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf
"""

__all__ = ["MomentSum", "Moments", "frechet_distance", "frechet_from_features", "frechet_loss"]

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.files import writing
from genflow.metrics.inputs import CHUNK, as_points, as_table, chunks

FORMAT = "genflow-moments-1"


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Mean and covariance of a cloud of features, and the name of the features.

    Arguments:
        count: The number of points, at least 2.
        mean: The mean, in float64, with shape :math:`(d)`.
        covariance: The covariance with the divisor n - 1, in float64, with shape :math:`(d, d)`.
        feature: The name of the feature; empty if unknown.
        digest: The sha256 of the feature's weights; empty if unknown.

    Raises:
        UserError: If a field is not of this kind.
    """

    count: int
    mean: Tensor
    covariance: Tensor
    feature: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        for field in ("mean", "covariance"):
            value = torch.as_tensor(getattr(self, field)).detach().to("cpu", torch.float64)
            if not torch.isfinite(value).all():
                raise UserError(
                    f"{field}: holds NaN or infinite numbers; all must be finite, "
                    "make the moments again from finite features."
                )
            object.__setattr__(self, field, value)

        if self.count < 2:
            raise UserError(
                f"count: {self.count} points have no covariance; give at least 2 points."
            )

        mean, covariance = tuple(self.mean.shape), tuple(self.covariance.shape)
        if len(mean) != 1 or covariance != mean * 2:
            raise UserError(
                f"covariance: shape {covariance} does not go with a mean of shape {mean}; "
                "the mean must have shape (d) and the covariance shape (d, d)."
            )

    def save(self, path: str | Path) -> None:
        r"""Writes the moments as safetensors; the file appears whole or not at all.

        Arguments:
            path: The file to write, by custom ending in ``.safetensors``.

        Raises:
            UserError: If the file cannot be written.
        """
        tensors = {"mean": self.mean, "covariance": self.covariance}
        notes = {
            "format": FORMAT,
            "count": str(self.count),
            "feature": self.feature,
            "sha256": self.digest,
        }

        with writing(path) as part:
            part.write_bytes(save({k: v.contiguous() for k, v in tensors.items()}, notes))

    @classmethod
    def load(cls, path: str | Path) -> "Moments":
        r"""Reads moments that :meth:`save` wrote; nothing is unpickled.

        Arguments:
            path: The file to read.

        Raises:
            UserError: If the file is absent, damaged or foreign.
        """
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                if notes.get("format") != FORMAT:
                    raise UserError(
                        f"path: '{path}' holds no moments of features "
                        f"(format {notes.get('format')!r}, wanted {FORMAT!r}); "
                        "give a file that Moments.save wrote."
                    )
                return cls(
                    count=int(notes["count"]),
                    mean=file.get_tensor("mean"),
                    covariance=file.get_tensor("covariance"),
                    feature=notes.get("feature", ""),
                    digest=notes.get("sha256", ""),
                )
        except UserError:
            raise
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"path: '{path}' cannot be read as moments ({error}); "
                "give a file that Moments.save wrote."
            ) from error


class MomentSum:
    r"""A running mean and covariance, one batch at a time, in float64.

    Two parts with counts :math:`a, b`, means :math:`\mu_a, \mu_b` and scatters
    :math:`C = \sum (x - \mu) (x - \mu)^\top` join without cancellation:

    .. math:: \mu = \mu_a + \tfrac{b}{a + b} \delta, \qquad
        C = C_a + C_b + \tfrac{ab}{a + b} \delta \delta^\top, \qquad \delta = \mu_b - \mu_a

    A batch is a small part, so there is one formula. The result does not depend, to rounding, on
    the order or the size of the batches, nor on how the points were shared among workers.

    Arguments:
        feature: The name of the feature that the moments are of.
        digest: The sha256 of the feature's weights.

    Example:
        >>> total = MomentSum()
        >>> for batch in torch.randn(1000, 8).split(64):
        ...     total.update(batch)
        >>> total.moments().count
        1000
    """

    def __init__(self, feature: str = "", digest: str = "") -> None:
        self.feature, self.digest = feature, digest
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Any) -> None:
        r"""Adds a batch of features.

        Arguments:
            features: The features, with shape :math:`(n, d)`.

        Raises:
            UserError: If they are not finite, or not of the width of those before.
        """
        for part in torch.as_tensor(features).split(CHUNK):
            points = as_points("features", part)
            mean = points.mean(dim=0)
            centred = points - mean
            self._join(len(points), mean, centred.T @ centred)

    def merge(self, other: "MomentSum") -> None:
        r"""Adds all that another sum has seen; the other is left as it is.

        Arguments:
            other: The other sum, of the same feature.

        Raises:
            UserError: If the other is of another feature or width.
        """
        _same_feature("other", other, self)
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    def moments(self) -> Moments:
        r"""Gives the moments of all points so far.

        Raises:
            UserError: If there are fewer than two points.
        """
        covariance = self.scatter / max(self.count - 1, 1)

        return Moments(self.count, self.mean.clone(), covariance, self.feature, self.digest)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self.count == 0:
            self.count, self.mean, self.scatter = count, mean.clone(), scatter.clone()
            return
        if mean.shape != self.mean.shape:
            raise UserError(
                f"features: width {len(mean)} differs from the width {len(self.mean)} before; "
                "take all batches from one feature."
            )

        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.scatter = self.scatter + scatter + delta.outer(delta) * (self.count * count / total)
        self.count = total


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""Computes the (squared) Fréchet distance between two laws by their moments.

    Arguments:
        a: The moments of the first law, of width :math:`d`.
        b: The moments of the second law, of width :math:`d`.

    Returns:
        The distance, in :math:`[0, \infty)`, exact to about 1e-8 of the covariances' traces.

    Raises:
        UserError: If the two are of different features or widths.
    """
    _same_feature("b", b, a)

    return _frechet("b", *_law("a", a), *_law("b", b))


def frechet_from_features(x: Any, y: Any) -> float:
    r"""Computes the (squared) Fréchet distance between two clouds of features.

    Equals :func:`frechet_distance` of their moments, but forms no covariance: it is more exact,
    and fast where there are fewer points than dimensions. Rows are read in chunks, so either may
    be a memory map.

    Arguments:
        x: The first features, with shape :math:`(n, d)`, at least 2 points; or their moments.
        y: The second features, with shape :math:`(m, d)`, at least 2 points; or their moments.

    Returns:
        The distance, in :math:`[0, \infty)`.

    Raises:
        UserError: If they are not finite tables of one width.
    """
    return _frechet("y", *_law("x", x), *_law("y", y))


def frechet_loss(reference: Moments) -> Callable[[Tensor], Tensor]:
    r"""Makes a loss of the (squared) Fréchet distance to reference moments.

    With :math:`R_1^\top R_2 = U S V^\top` the slope of the last trace is
    :math:`\partial \| R_1^\top R_2 \|_* / \partial (R_1^\top R_2) = U V^\top`: there is no root
    whose slope could be infinite. Take many points: the estimate is biased upward at few, and the
    bias has a slope, too.

    Arguments:
        reference: The moments, of width :math:`d`.

    Returns:
        A function of features with shape :math:`(n, d)`, at least 2 and on any device, to a
        number in float64 that is differentiable with respect to them.

    Raises:
        UserError: If the features are not of the reference's width; from the function.

    Example:
        >>> loss = frechet_loss(total.moments())
        >>> loss(phi.embed(images)).backward()
    """
    mean, root = reference.mean, _root_of_covariance(reference)

    def loss(points: Tensor) -> Tensor:
        x = points.double()
        centred = x - x.mean(dim=0)
        law = x.mean(dim=0), centred.T / (len(x) - 1) ** 0.5
        return _squared("points", *law, mean.to(x.device), root.to(x.device))

    return loss


def _frechet(field: str, mu_1: Tensor, r_1: Tensor, mu_2: Tensor, r_2: Tensor) -> float:
    return max(float(_squared(field, mu_1, r_1, mu_2, r_2)), 0.0)


def _squared(field: str, mu_1: Tensor, r_1: Tensor, mu_2: Tensor, r_2: Tensor) -> Tensor:
    if mu_1.shape != mu_2.shape:
        raise UserError(
            f"{field}: features of width {len(mu_2)} cannot be compared with width {len(mu_1)}; "
            "take both from one feature."
        )

    shift = (mu_1 - mu_2).square().sum()
    traces = r_1.square().sum() + r_2.square().sum()
    overlap = torch.linalg.svdvals(r_1.T @ r_2).sum()

    return shift + traces - 2 * overlap


def _law(field: str, given: Any) -> tuple[Tensor, Tensor]:
    """The mean, with shape (d), and a root of the covariance, with shape (d, r)."""
    if isinstance(given, Moments):
        return given.mean, _root_of_covariance(given)

    points = as_table(field, given, least=2)
    mean = sum(part.sum(dim=0) for part in chunks(points)) / len(points)

    return mean, _root_of_points(points, mean)


def _root_of_covariance(moments: Moments) -> Tensor:
    values, vectors = torch.linalg.eigh(moments.covariance)
    noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    keep = values > noise  # the rest is rounding of a zero, and its root would be 1e8 times more

    return vectors[:, keep] * values[keep].sqrt()


def _root_of_points(x: Tensor, mean: Tensor) -> Tensor:
    n, d = x.shape
    root = x.new_zeros(0, d, dtype=torch.float64)

    for part in chunks(x):
        root = torch.cat((root, (part - mean) / (n - 1) ** 0.5))
        if len(root) > d:
            root = torch.linalg.qr(root, mode="r").R

    return root.T


def _same_feature(field: str, given: Moments | MomentSum, wanted: Moments | MomentSum) -> None:
    if given.digest and wanted.digest and given.digest != wanted.digest:
        raise UserError(
            f"{field}: made with feature '{given.feature}' (sha256 {given.digest[:12]}), "
            f"not with '{wanted.feature}' (sha256 {wanted.digest[:12]}); "
            "make both with the same feature."
        )

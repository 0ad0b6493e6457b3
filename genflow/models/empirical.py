r"""The true denoiser of a finite set of data: what a network that learnt them by heart would say.

If the data are n points :math:`y_k`, the posterior of the datum behind :math:`x_t = \alpha y +
\sigma z` is a softmax over the points,

.. math:: E[X | x_t] = \sum_k w_k y_k, \qquad
          w_k \propto p_Z\big((x_t - \alpha y_k) / \sigma\big)

with the density :math:`p_Z` of the path's noise, as :math:`(1 + \|z\|^2/D)^{-(N + D)/2}` is for
Student-t noise. Such powers are never formed: distances and logarithms of weights are float64, and
the points are gone through in blocks, so that memory does not grow with their number. Samples
drawn with this denoiser are the points themselves. It is the memorisation baseline of any set of
data, and an exact truth for every law of the noise, at a cost of n · N a call.
"""

__all__ = ["Empirical", "posterior"]

from collections.abc import Iterator

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.noise import Noise
from genflow.models.paths import Path

BLOCK = 4096
"""Points that are looked at together, unless told otherwise."""

TINY = 1e-100
"""Stands for α = 0 and σ = 0, where all points weigh alike and where the nearest has it all."""


def log_weights(noise: Noise, x: Tensor, alpha: Tensor, sigma: Tensor, points: Tensor) -> Tensor:
    r""":math:`\log p(x | y_k)`, the density of :math:`\alpha y_k + \sigma Z` at x.

    Args:
        noise: The law of Z.
        x: States in float64, with shape (B, N).
        alpha: The scale of the data, with shape () or (B).
        sigma: The scale of the noise, with shape () or (B).
        points: The points in float64, with shape (n, N).

    Returns:
        Logarithms in nats, with shape (B, n).
    """

    N = x.shape[1]
    alpha, sigma = (c.double().expand(len(x))[:, None].clamp(min=TINY) for c in (alpha, sigma))
    # Differences, not products: near a point the latter leave no digits of the distance.
    distance = torch.cdist(x / alpha, points, compute_mode="donot_use_mm_for_euclid_dist")
    return noise.log_radial((alpha * distance / sigma).square(), N) - N * sigma.log()


def posterior(
    noise: Noise,
    x: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    points: Tensor,
    allowed: Tensor | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    r"""The posterior mean over a set of points that are equally likely beforehand.

    Args:
        noise: The law of Z.
        x: States :math:`\alpha y + \sigma z`, with shape (B, N).
        alpha: The scale of the data, with shape () or (B).
        sigma: The scale of the noise, with shape () or (B).
        points: The points, with shape (n, N).
        allowed: Which points each state may come from, with shape (B, n); all if None.
        block: Points that are looked at together.

    Returns:
        E[y | x] in float64, with shape (B, N), and the log-density of x, with shape (B).
    """

    x = x.double()
    best = x.new_full((len(x), 1), -torch.inf)
    total, mean = torch.zeros_like(best), torch.zeros_like(x)

    for some, may in _blocks(points, allowed, block):
        some = some.double()
        log_w = log_weights(noise, x, alpha, sigma, some)

        if may is not None:
            log_w = log_w.masked_fill(~may, -torch.inf)

        top = torch.maximum(best, log_w.amax(1, keepdim=True))
        floor = top.clamp(min=torch.finfo(top.dtype).min)  # finite where no point was allowed yet
        w, old = torch.exp(log_w - floor), torch.exp(best - floor)
        total = old * total + w.sum(1, keepdim=True)
        mean = old * mean + w @ some
        best = top

    count = len(points) if allowed is None else allowed.sum(1, keepdim=True).double()
    count = torch.as_tensor(count, dtype=x.dtype, device=x.device)
    return mean / total, (best + total.log() - count.log()).squeeze(1)


def _blocks(
    points: Tensor, allowed: Tensor | None, block: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    for i in range(0, len(points), block):
        yield points[i : i + block], None if allowed is None else allowed[:, i : i + block]


class Empirical(Denoiser):
    r"""The true denoiser of n points, under any law of the noise.

    Args:
        path: The path.
        data: The points, in float with shape (n, \*event).
        labels: Their classes, 0 … K − 1, with shape (n); then the condition ``label`` restricts
            the points to one class, and K, the null class, to none.
        block: Points that are looked at together: memory is B · block.

    Raises:
        UserError: If there are no points, they are not finite floats, or the labels do not fit.

    Example:
        >>> truth = Empirical(Karras(noise=StudentT(128)), images)
        >>> sampler = build("karras-heun", truth, 18)
    """

    def __init__(
        self, path: Path, data: Tensor, labels: Tensor | None = None, block: int = BLOCK
    ) -> None:
        super().__init__()

        if data.ndim < 2 or not len(data) or not data.is_floating_point():
            raise UserError(
                f"data has shape {tuple(data.shape)} and dtype {data.dtype}: one point or more is "
                "needed, in float with shape (n, …) (images in [−1, 1])."
            )
        if not bool(data.isfinite().all()):
            raise UserError("data holds values that are not finite: drop these points.")
        if block < 1:
            raise UserError(f"block is {block}: 1 point or more is needed.")

        classes = None

        if labels is not None:
            labels = labels.long()
            classes = int(labels.max()) + 1 if labels.numel() else 0
            if labels.shape != data.shape[:1] or labels.unique().numel() != classes:
                raise UserError(
                    f"labels have shape {tuple(labels.shape)} and "
                    f"{labels.unique().numel()} values up to {classes - 1}: one of 0, 1, …, K − 1 "
                    "for each point is needed, and every class must occur."
                )

        self.path = path
        self.block = block
        self.classes = classes
        self.register_buffer("data", data)
        self.register_buffer("labels", labels)

    def _allowed(self, label: Tensor | None) -> Tensor | None:
        if label is None:
            return None
        if self.labels is None:
            raise UserError("label is given, but these data have no labels.")
        return (label[:, None] == self.labels) | (label[:, None] == self.classes)

    def _posterior(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        law, (alpha, sigma), allowed = self.path.noise, self.path(t), self._allowed(label)
        x, points = x_t.flatten(1), self.data.flatten(1)
        return posterior(law, x, alpha, sigma, points, allowed, self.block)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """See [`Denoiser.forward`][genflow.models.denoisers.Denoiser.forward]."""

        return self._posterior(x_t, t, label)[0].to(x_t.dtype).view_as(x_t)

    def weights(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The posterior probabilities of the points, in float64 with shape (B, n)."""

        alpha, sigma = self.path(t)
        x, points = x_t.flatten(1).double(), self.data.flatten(1).double()
        log_w = log_weights(self.path.noise, x, alpha, sigma, points)
        allowed = self._allowed(label)
        log_w = log_w if allowed is None else log_w.masked_fill(~allowed, -torch.inf)
        return log_w.softmax(1)

    def log_prob(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The log-density of the noisy data at x_t in nats, in float64 with shape (B)."""

        return self._posterior(x_t, t, label)[1]

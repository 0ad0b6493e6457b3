r"""Denoisers around denoisers: guidance and clipping.

Both change the estimate of the data and nothing else, so every sampler works with them.
"""

__all__ = ["Clipped", "Guided"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.paths import broadcast


class Guided(Denoiser):
    r"""Guidance: the difference to a weaker estimate, exaggerated.

    .. math:: D = D_{weak}(x_t) + w \big(D(x_t, \text{cond}) - D_{weak}(x_t)\big)

    With ``guide`` None the weak estimate is the same denoiser with the conditions of ``null``
    (classifier-free guidance), and both go through the network as one batch of 2B. With a guide it
    is that denoiser with the same conditions (autoguidance). Outside the interval w = 1, and a
    sampler, which knows its times, does not even make the weak call.

    Args:
        denoiser: The conditional denoiser.
        weight: w; 1 is no guidance. A float, or a tensor with shape () or (B).
        null: The values that stand for "no condition", by name: a number or one row of it.
        guide: The weaker denoiser of autoguidance.
        interval: The times (low, high) inside which guidance acts.

    Raises:
        UserError: If neither ``null`` nor ``guide`` is given, the interval is empty, or the guide
            lives on another path.

    References:
        Classifier-Free Diffusion Guidance
        https://arxiv.org/abs/2207.12598

        Guiding a Diffusion Model with a Bad Version of Itself
        https://arxiv.org/abs/2406.02507

        Applying Guidance in a Limited Interval Improves Sample and Distribution Quality
        https://arxiv.org/abs/2404.07724
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weight: float | Tensor,
        null: Mapping[str, Any] | None = None,
        guide: Denoiser | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()

        if (null is None) == (guide is None):
            raise UserError(
                "guidance needs exactly one of null (the values that mean 'no condition') and "
                "guide (a weaker denoiser)."
            )
        if guide is not None and guide.path != denoiser.path:
            raise UserError(f"guide lives on {guide.path}, the denoiser on {denoiser.path}.")
        if not interval[0] < interval[1]:
            raise UserError(f"interval is {interval}: low < high is needed, within [0, 1].")

        self.denoiser = denoiser
        self.path = denoiser.path
        self.weight = weight
        self.null = dict(null or {})
        self.guide = guide
        self.interval = interval

    def at(self, t: float) -> Denoiser:
        """Guidance without an interval inside it, the bare denoiser outside."""

        strong = self.denoiser.at(t)
        if not self.interval[0] <= t <= self.interval[1]:
            return strong
        null = self.null if self.guide is None else None
        guide = None if self.guide is None else self.guide.at(t)
        return Guided(strong, self.weight, null, guide)

    def regular(self, t: float) -> bool:
        """Whether both velocities can be read."""

        return self.denoiser.regular(t) and (self.guide is None or self.guide.regular(t))

    def unguided(self) -> Denoiser:
        """The bare denoiser."""

        return self.denoiser.unguided()

    def _both(self, method: str, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """Both estimates, mixed; data and velocity alike, as one is affine in the other."""

        if self.guide is not None:
            strong = getattr(self.denoiser, method)(x_t, t, **cond)
            weak = getattr(self.guide, method)(x_t, t, **cond)
        else:
            two = {k: torch.cat([v, self._nulls(k, v)]) for k, v in cond.items()}
            t_two = t if t.ndim == 0 else torch.cat([t, t])
            both = getattr(self.denoiser, method)(torch.cat([x_t, x_t]), t_two, **two)
            strong, weak = both.chunk(2)

        w = self.weight
        low, high = self.interval
        if (low, high) != (0.0, 1.0):
            w = torch.where((t >= low) & (t <= high), w, 1.0)
        if isinstance(w, Tensor):
            w = broadcast(w.to(x_t), x_t)
        return torch.lerp(weak, strong, w)

    def _nulls(self, name: str, value: Tensor) -> Tensor:
        if name not in self.null:
            return value
        null = self.null[name]
        if isinstance(null, (int, float)):  # filled where it is needed: no copy from the host
            return torch.full_like(value, null)
        return torch.as_tensor(null, dtype=value.dtype, device=value.device).expand_as(value)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """See [`Denoiser.forward`][genflow.models.denoisers.Denoiser.forward]."""

        return self._both("forward", x_t, t, cond)

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """See [`Denoiser.velocity`][genflow.models.denoisers.Denoiser.velocity]."""

        return self._both("velocity", x_t, t, cond)


class Clipped(Denoiser):
    r"""A denoiser whose estimate is kept in the range of the data.

    With ``quantile`` None the estimate is clamped to [low, high]. Otherwise it is thresholded
    dynamically: with c the middle and h half the width of the range, s is that quantile of
    :math:`|D - c| / h` over the sample, at least 1, and :math:`D \leftarrow c + h \,
    \mathrm{clamp}((D - c)/h, -s, s) / s`.

    Args:
        denoiser: The denoiser to clip.
        low: The lower end of the data's range.
        high: The upper end.
        quantile: A number in (0, 1], 0.995 for instance, or None.

    Raises:
        UserError: If ``low >= high`` or the quantile is not in (0, 1].

    References:
        Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding
        https://arxiv.org/abs/2205.11487
    """

    def __init__(
        self,
        denoiser: Denoiser,
        low: float = -1.0,
        high: float = 1.0,
        quantile: float | None = None,
    ) -> None:
        super().__init__()

        if not low < high:
            raise UserError(f"low is {low} and high is {high}: low < high is needed.")
        if quantile is not None and not 0 < quantile <= 1:
            raise UserError(f"quantile is {quantile}: a number in (0, 1] is needed (0.995).")

        self.denoiser = denoiser
        self.path = denoiser.path
        self.low = low
        self.high = high
        self.quantile = quantile

    def at(self, t: float) -> Denoiser:
        """A clipped view of what the inner denoiser calls at that time."""

        return Clipped(self.denoiser.at(t), self.low, self.high, self.quantile)

    def unguided(self) -> Denoiser:
        """The clipped denoiser without the guidance inside it."""

        return Clipped(self.denoiser.unguided(), self.low, self.high, self.quantile)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """See [`Denoiser.forward`][genflow.models.denoisers.Denoiser.forward]."""

        data = self.denoiser(x_t, t, **cond)

        if self.quantile is None:
            return data.clamp(self.low, self.high)

        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        unit = (data - middle) / half
        size = unit.abs().flatten(1)
        work = size if size.dtype == torch.float64 else size.float()
        s = torch.quantile(work, self.quantile, dim=1).to(size.dtype).clamp(min=1)
        s = broadcast(s, data)
        return middle + half * (torch.minimum(torch.maximum(unit, -s), s) / s)

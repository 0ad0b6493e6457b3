r"""Ratios of Gamma functions, without cancellation.

:math:`\log\Gamma(a + b) - \log\Gamma(a)` is a small difference of large numbers: at
:math:`a = 10^{12}` both terms are near :math:`10^{13}`, and little of it is left if it is computed
as written. In Stirling's series of the two the large parts cancel on paper.
"""

__all__ = ["log_gamma_ratio"]

import math

LARGE = 16.0
"""From here on the series is exact to rounding."""

STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)


def _remainder(a: float) -> float:
    """What Stirling's formula lacks: 1/(12 a) − 1/(360 a³) + …"""

    return sum(c * (1 / a) ** (2 * k + 1) for k, c in enumerate(STIRLING))


def log_gamma_ratio(a: float, b: float) -> float:
    r""":math:`\log\Gamma(a + b) - \log\Gamma(a)`, for a and a + b above 0.

    .. math:: b \log a + (a + b - \tfrac12) \log(1 + b/a) - b + S(a + b) - S(a)

    for large a, with S the rest of Stirling's series.
    """

    if min(a, a + b) < LARGE:
        return math.lgamma(a + b) - math.lgamma(a)

    series = _remainder(a + b) - _remainder(a)
    return b * math.log(a) + (a + b - 0.5) * math.log1p(b / a) - b + series

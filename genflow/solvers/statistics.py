r"""Estimating the statistics of DPM-Solver-v3, for any denoiser.

Let :math:`y = x_\lambda/\alpha_\lambda`, and :math:`D(y, \lambda)` the estimate of the data there.
Along the probability-flow ODE :math:`y' = D - y`, with primes for total derivatives in λ. What an
empirical step expands is :math:`f = (\sigma\epsilon - l \odot x)/\alpha`, and its three statistics
per element are

.. math:: l = E[\mathrm{diag}\, \sigma \tfrac{\partial\epsilon}{\partial x}], \qquad
          s = \frac{\mathrm{Cov}(f, f')}{\mathrm{Var}(f)}, \qquad b = E f' - s \, E f:

l takes away the linear part of the field, and s and b what of the rest a scalar linear ODE
explains. With :math:`k = 1 - l = E[\mathrm{diag}\, \partial D/\partial y]` this is, without a
division by σ or by α,

.. math:: f = k y - D, \qquad f' = (k' - k) y + k D - D',

so that *one* pass over the data gives everything: a row of the grid is k and the first two moments
of :math:`(y, D, D')`, and k′ comes from the rows beside it. Nothing here depends on the path,
which only names the noise level: statistics estimated on one path serve every path with the same
noise.

All rows see the same data, noise and probes. Their errors are therefore alike, k is smooth in λ
however few the samples, and k′ is not drowned in noise.

References:
    DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics
    https://arxiv.org/abs/2310.13268

    An Estimator for the Diagonal of a Matrix
    https://doi.org/10.1016/j.apnum.2007.01.003
"""

__all__ = ["estimate"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import hashlib
import os
from pathlib import Path as FilePath
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from genflow.errors import UserError, nearest
from genflow.models.denoisers import Denoiser
from genflow.models.grids import grid
from genflow.solvers.empirical import Statistics, read_tensors, write_tensors

Products = Literal["forward", "reverse"]
Report = Callable[[int, int], None]

FORMAT = "genflow-statistics-row"
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))
EXACT = 16


def estimate(
    denoiser: Denoiser,
    data: Tensor,
    *,
    points: int = 128,
    start: float | None = None,
    stop: float | None = None,
    samples: int = 1024,
    batch_size: int = 64,
    seed: int = 0,
    probes: int | None = None,
    products: Products = "forward",
    resume: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    **cond: Tensor,
) -> Statistics:
    r"""The statistics of a denoiser on a uniform grid in λ.

    A row costs ``samples`` · (probes + 1) Jacobian products, each about two calls of the network.
    Only three rows are in memory beside the result.

    Args:
        denoiser: The denoiser.
        data: Examples, with shape (n, \*event), on the device and in the dtype to compute in.
        points: The number of points of the grid, 3 or more.
        start: The noisiest time of the grid; the path's ``t_max`` if None.
        stop: The cleanest one; the path's ``t_min`` if None. An end at which λ is infinite is
            moved inside by 1e-3.
        samples: The number of noisy states a point; the examples are gone round in.
        batch_size: How many of them go through the network at a time.
        seed: The seed of order, noise and probes.
        probes: Random signs v a state, whose :math:`v \odot Jv` average to the diagonal of J. None
            takes the exact diagonal of events of up to 16 elements, and 1 otherwise.
        products: ``"forward"``, or ``"reverse"`` for networks without forward-mode derivatives: it
            takes D′ by a central difference, and keeps the activations of one batch.
        resume: A folder in which every finished row is kept, whole or not at all: called again
            with it, the estimate goes on where it stopped, and ends in the same numbers.
        report: Called as ``report(done, points)`` after every row.
        cond: Named conditions of the examples, each with n rows.

    Returns:
        The statistics, in float64 on the CPU.

    Raises:
        UserError: If a value is not allowed, or the folder holds rows of another estimate.

    Example:
        >>> statistics = estimate(denoiser, images, resume="rows")
        >>> statistics.save("statistics.safetensors")
        >>> sampler = build("dpm-v3", denoiser, 8, statistics=statistics)
    """

    _check(data, points, samples, batch_size, probes, products, cond)
    path = denoiser.path
    time = grid(path, points - 1, "logsnr", start=start, stop=stop, final="min")
    time = torch.tensor(time, dtype=torch.float64)
    lam = path.lam(time)
    walk = _Walk(denoiser, data, cond, lam, time, samples, batch_size, seed, probes, products)
    rows = _rows(walk, None if resume is None else FilePath(resume), report)
    columns: list[list[Tensor]] = [[], [], []]

    for i, (row, k_dot) in enumerate(_with_slopes(rows, lam)):
        floor = max(1e-12, (64 * torch.finfo(data.dtype).eps) ** 2)
        for column, value in zip(columns, row.regress(k_dot, floor), strict=True):
            if not bool(value.isfinite().all()):
                raise UserError(
                    f"the denoiser gives statistics that are not finite at λ = {lam[i]:.3g}: keep "
                    "start and stop inside the times that it was trained on."
                )
            column.append(value)

    return Statistics(lam, *(torch.stack(c) for c in columns))


def _check(
    data: Tensor,
    points: int,
    samples: int,
    batch_size: int,
    probes: int | None,
    products: str,
    cond: dict[str, Tensor],
) -> None:
    if data.ndim < 2 or not data.is_floating_point() or len(data) == 0:
        raise UserError(
            f"data has shape {tuple(data.shape)} and dtype {data.dtype}: examples in a floating "
            "dtype with shape (n, *event) are needed."
        )
    for name, value, least in (
        ("points", points, 3),
        ("samples", samples, 2),
        ("batch_size", batch_size, 1),
        ("probes", 1 if probes is None else probes, 1),
    ):
        if value < least:
            raise UserError(f"{name} is {value}: it must be {least} or more.")
    if products not in get_args(Products):
        raise UserError(f"products is '{products}'{nearest(products, get_args(Products))}")
    for name, value in cond.items():
        if len(value) != len(data):
            raise UserError(f"{name} has {len(value)} rows for {len(data)} examples: one each.")


@dataclass
class _Row:
    """The moments at one λ.

    Attributes:
        k: The mean diagonal of ∂D/∂y, with shape (*event).
        mean: The means of y, D, D', with shape (3, *event).
        spread: The covariances of the pairs in ``PAIRS``, with shape (5, *event).
        count: The number of states behind them, with shape ().
    """

    k: Tensor
    mean: Tensor
    spread: Tensor
    count: Tensor

    def plus(self, other: "_Row") -> "_Row":
        """The moments of both sets of states together."""

        n = self.count + other.count
        u, gap = other.count / n, other.mean - self.mean
        cross = torch.stack([gap[i] * gap[j] for i, j in PAIRS])
        return _Row(
            torch.lerp(self.k, other.k, u),
            self.mean + u * gap,
            torch.lerp(self.spread, other.spread, u) + u * (1 - u) * cross,
            n,
        )

    def regress(self, k_dot: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """The row's l, s, b, each with shape (*event).

        Where f hardly varies, as it does everywhere for Gaussian data, s is 0.
        """

        yy, yD, ye, DD, De = self.spread
        (y, D, e), k, c = self.mean, self.k, k_dot - self.k
        variance = k * k * yy - 2 * k * yD + DD
        common = k * c * yy + (k * k - c) * yD - k * ye - k * DD + De
        size = k * k * (yy + y * y) + DD + D * D
        s = torch.where(variance > floor * size, common / variance, torch.zeros_like(k))
        return 1 - k, s, (c * y + k * D - e) - s * (k * y - D)


@dataclass
class _Walk:
    """One pass over the data for each row of the grid."""

    denoiser: Denoiser
    data: Tensor
    cond: dict[str, Tensor]
    lam: Tensor
    time: Tensor
    samples: int
    batch_size: int
    seed: int
    probes: int | None
    products: str

    @property
    def key(self) -> str:
        """A digest of everything that a row depends on."""

        given = (self.samples, self.batch_size, self.seed, self.probes, self.products)
        place = (self.denoiser.path, self.lam.tolist(), tuple(self.data.shape))
        digest = hashlib.sha256(repr((given, place)).encode())
        for tensor in (self.data, *self.cond.values(), *self.denoiser.state_dict().values()):
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def row(self, i: int) -> _Row:
        """The moments at λ_i; data, noise and probes are those of every other row."""

        g = torch.Generator().manual_seed(self.seed)
        n = len(self.data)
        order = torch.cat([torch.randperm(n, generator=g) for _ in range(-(-self.samples // n))])
        total: _Row | None = None

        for chosen in order[: self.samples].split(self.batch_size):
            found = self._batch(i, chosen.to(self.data.device), g)
            total = found if total is None else total.plus(found)

        return total

    def _batch(self, i: int, chosen: Tensor, g: torch.Generator) -> _Row:
        x0 = self.data[chosen]
        cond = {k: v[chosen.to(v.device)] for k, v in self.cond.items()}
        z = self.denoiser.path.noise.sample(x0.shape, generator=g, dtype=x0.dtype).to(x0)
        y = x0 + torch.exp(-self.lam[i]).to(x0) * z
        signs = self._signs(x0.shape, g)
        pass_ = _forward if self.products == "forward" else _reverse
        D, D_dot, k = pass_(_Field(self.denoiser, cond, self.lam), i, y, [v.to(x0) for v in signs])
        seen = torch.stack([c.double() for c in (y, D, D_dot)])
        mean = seen.mean(1)
        rest = seen - mean.unsqueeze(1)
        spread = torch.stack([(rest[a] * rest[b]).mean(0) for a, b in PAIRS])
        count = torch.tensor(float(len(x0)), dtype=torch.float64)
        return _Row(k.double().mean(0).cpu(), mean.cpu(), spread.cpu(), count)

    def _signs(self, shape: torch.Size, g: torch.Generator) -> list[Tensor]:
        """The probes: unit vectors for an exact diagonal, random signs otherwise.

        Scaled so that the *sum* over probes of v ⊙ Jv is the diagonal.
        """

        size = shape[1:].numel()

        if self.probes is None and size <= EXACT:
            units = torch.eye(size).reshape(size, 1, *shape[1:])
            return [v.expand(shape) for v in units]

        count = self.probes or 1
        signs = torch.randint(0, 2, (count, *shape), generator=g) * 2 - 1
        return list(signs / count**0.5)


@dataclass
class _Field:
    """D as a function of y and λ, near the points of the grid."""

    denoiser: Denoiser
    cond: dict[str, Tensor]
    lam: Tensor

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        path = self.denoiser.path
        t = path.inverse(lam)
        # λ lives in float64 on the host; the denoiser is told the time as the loop tells it.
        time = t.to(torch.float64 if y.dtype == torch.float64 else torch.float32).to(y.device)
        return self.denoiser(path(t)[0].to(y) * y, time, **self.cond)


def _forward(
    field: _Field, i: int, y: Tensor, signs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """D, D' and the diagonal of ∂D/∂y, by forward-mode products."""

    lam, k = field.lam[i], torch.zeros_like(y)

    # The fused kernels of attention have no forward-mode derivative; the plain one has.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for v in signs:
            D, Jv = torch.func.jvp(lambda y: field(y, lam), (y,), (v.contiguous(),))
            k = k + v * Jv
        _, D_dot = torch.func.jvp(field, (y, lam), (D - y, torch.ones_like(lam)))

    return D, D_dot, k


def _reverse(
    field: _Field, i: int, y: Tensor, signs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by reverse-mode products and, for D', a difference along the ODE's tangent."""

    lam, k = field.lam[i], torch.zeros_like(y)

    with torch.enable_grad():
        y = y.detach().requires_grad_()
        D = field(y, lam)
        for j, v in enumerate(signs):
            (vJ,) = torch.autograd.grad(D, y, v, retain_graph=j + 1 < len(signs))
            k = k + v * vJ

    y, D = y.detach(), D.detach()
    gap = 1e-4 if y.dtype == torch.float64 else 2e-3
    ends = torch.stack([lam - gap, lam + gap]).clamp(field.lam[0], field.lam[-1])

    with torch.no_grad():
        before, after = (field(y + (e - lam).to(y) * (D - y), e) for e in ends)

    return D, (after - before) / (ends[1] - ends[0]).to(y), k


def _rows(walk: _Walk, folder: FilePath | None, report: Report | None) -> Iterator[_Row]:
    """The rows of the grid: read where they are kept, computed and kept otherwise."""

    total = len(walk.lam)
    about = None if folder is None else {"key": walk.key}

    for i in range(total):
        file = None if folder is None else folder / f"{i:05d}.safetensors"

        if file is not None and file.exists():
            yield _kept(file, about)
        else:
            row = walk.row(i)
            if file is not None:
                write_tensors(file, vars(row), FORMAT, about)
            yield row

        if report is not None:
            report(i + 1, total)


def _kept(file: FilePath, about: dict[str, Any]) -> _Row:
    tensors, found = read_tensors(file, FORMAT, ("k", "mean", "spread", "count"))

    if found != about:
        raise UserError(
            f"'{file}' is a row of another estimate (its data, weights or settings differ): name "
            "another folder, or delete this one."
        )

    return _Row(**tensors)


def _with_slopes(rows: Iterator[_Row], lam: Tensor) -> Iterator[tuple[_Row, Tensor]]:
    """Each row with its dk/dλ, from three rows of a uniform grid."""

    h = (lam[-1] - lam[0]) / (len(lam) - 1)
    a, b, c = next(rows), next(rows), next(rows)
    yield a, (4 * b.k - 3 * a.k - c.k) / (2 * h)
    yield b, (c.k - a.k) / (2 * h)

    for row in rows:
        a, b, c = b, c, row
        yield b, (c.k - a.k) / (2 * h)

    yield c, (3 * c.k - 4 * b.k + a.k) / (2 * h)

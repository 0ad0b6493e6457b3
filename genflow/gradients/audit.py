r"""Security auditing: the smallest change of the noise for which a classifier fails.

For each sample, over changes on the shell of the noise's own norm (`genflow.gradients.shells`),

.. math:: r^\star = \min_\delta \; \|\delta\| / \|z\| \quad\text{such that}\quad
    \arg\max f\big(q(x(z + \delta))\big) \neq y,

or :math:`= k` for a target k, with q the rounding to the 8 bits of the image that is saved: that
image is what counts, and not the one that the gradient saw.

The radius is halved in. At a radius r the margin of the classifier is descended by steps of fixed
length (the gradient over its norm, or its signs), each followed by the projection onto the ball.
A success sets the upper end to where the state really is, a number of steps in vain sets the lower
end, and r becomes the middle; where even the largest radius was in vain, the search starts again
in another direction. All samples search side by side, each with its own r.

What is found is an *upper bound* of :math:`r^\star`. That a classifier can be made to fail says
little, since the far end of the shell is just another sample: what matters is that changes of the
same length in random directions fail far less often, and they are the control of the report.

References:
    | AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion
    |     Probabilistic Models
    | https://arxiv.org/abs/2307.10711

    | Towards Deep Learning Models Resistant to Adversarial Attacks
    | https://arxiv.org/abs/1706.06083
"""

__all__ = ["Audit"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
import torch
from torch import Tensor

from genflow.data.stream import seeded
from genflow.errors import UserError, nearest
from genflow.files import writing
from genflow.gradients.drawing import Drawn, frozen, sketch
from genflow.gradients.judges import Judge
from genflow.gradients.loop import Task
from genflow.gradients.losses import Logits
from genflow.gradients.shells import NORMS, away, project, radius_of
from genflow.pipelines import Pipeline
from genflow.solvers.adjoint import Gradient

TOLERANCE = 0.05
"""A search ends when its lower and upper ends differ by this part of the upper one."""


class Audit(Task):
    r"""The search for the smallest changes.

    Args:
        pipe: The pipeline; its weights are frozen while gradients are taken, and not changed.
        classifier: f, from images in [−1, 1] to logits.
        seeds: One seed a sample.
        label: The classes that the pipeline is asked for, with shape (n), or None.
        prompt: A prompt for all, or one each.
        truth: y with shape (n); what the classifier answers before any change if None.
        target: k with shape (n); None counts any answer but y.
        norm: ``"l2"`` or ``"linf"``.
        radius: The largest radius that is searched, above 0, and at most 2 for "l2".
        radii: The radii of the table of success rates.
        iterations: The number of steps of a sample, 1 or more.
        patience: The number of steps in vain after which a radius counts as too small.
        step: The length of a step, as a part of the radius, above 0.
        draws: How many random changes a sample has for control, 1 or more.
        seed: The seed of random directions.
        gradient: The gradient policy.
        batch_size: How many samples are drawn at a time.
        options: The sampler, as in `genflow.Pipeline.build`.

    Attributes:
        best: The smallest radius of each sample, with shape (n); inf if none was found.

    Raises:
        UserError: If a value is out of its range, or the classifier does not answer (B, K).
    """

    def __init__(
        self,
        pipe: Pipeline,
        classifier: Logits,
        seeds: Sequence[int],
        *,
        label: Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        truth: Tensor | None = None,
        target: Tensor | None = None,
        norm: str = "l2",
        radius: float = 1.0,
        radii: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8),
        iterations: int = 120,
        patience: int = 12,
        step: float = 0.2,
        draws: int = 8,
        seed: int = 0,
        gradient: str | Gradient = "exact",
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        if norm not in NORMS:
            raise UserError(f"norm is '{norm}'{nearest(norm, NORMS)}")
        if not 0 < radius <= 2:
            raise UserError(f"radius is {radius}: it must lie in (0, 2], relative to the noise.")
        if not all(0 < r <= radius for r in radii):
            raise UserError(f"radii is {list(radii)}: each must lie in (0, radius {radius}].")
        if min(iterations, patience, draws) < 1 or not step > 0:
            raise UserError(
                f"iterations is {iterations}, patience {patience}, draws {draws} and step {step}: "
                "the first three must be 1 or more, and step above 0."
            )

        self.pipe = pipe
        self.norm, self.radius, self.radii = norm, radius, tuple(radii)
        self.iterations, self.patience, self.length = iterations, patience, step
        self.draws, self.seed = draws, seed
        self.drawn = Drawn(
            pipe,
            seeds,
            label=label,
            prompt=prompt,
            gradient=gradient,
            batch_size=batch_size,
            **options,
        )
        self.before = self.drawn.all().cpu()
        self.judge = Judge(
            classifier, self.before, truth, target, batch_size=batch_size, device=pipe.device
        )
        n, z = len(seeds), self.drawn.noise
        self.best = torch.where(self.judge.already, 0.0, torch.inf).to(torch.float64)
        self.found = z.clone()
        self.lower = torch.zeros(n, dtype=torch.float64)
        self.tried = torch.full((n,), float(radius), dtype=torch.float64)
        self.age = torch.zeros(n, dtype=torch.int64)
        self.starts = torch.zeros(n, dtype=torch.int64)
        self.skipped = 0
        self.now = self._begun(torch.arange(n))

    # ---------------------------------------------------------------------------- the search

    def _direction(self, purpose: str, rows: Tensor, draw: Tensor) -> Tensor:
        """Random directions, from the seed, the sample and the number of the draw alone."""

        parts = [
            torch.randn(self.pipe.shape, generator=seeded(purpose, self.seed, i, k))
            for i, k in zip(rows.tolist(), draw.tolist(), strict=True)
        ]
        return torch.stack(parts).to(self.drawn.noise)

    def _begun(self, rows: Tensor) -> Tensor:
        """States to start a search from: a tenth of the radius away, in a random direction."""

        direction = self._direction("audit-start", rows, self.starts[rows])
        origin = self._origin(rows)
        return away(direction, origin, self._on(0.1 * self.tried[rows]), self.norm)

    def _on(self, x: Tensor) -> Tensor:
        return x.to(self.drawn.noise.device)

    def _origin(self, rows: Tensor) -> Tensor:
        return self.drawn.noise[self._on(rows)]

    def _open(self) -> Tensor:
        """The samples whose search goes on."""

        gap = self.best - self.lower > TOLERANCE * self.best
        return torch.nonzero((self.best == torch.inf) | gap)[:, 0]

    @property
    def done(self) -> bool:
        """Whether every search has ended."""

        return len(self._open()) == 0

    def advance(self, k: int) -> dict[str, float]:
        """One step of every search that goes on."""

        margins = []

        for rows in self._open().split(self.drawn.batch_size):
            with frozen(self.pipe.denoiser, self.pipe.codec, self.judge):
                m, slope, logits = self._slope(rows)
            self._settle(rows, slope, logits)
            margins.append(m)

        held = torch.cat(margins)
        broken = torch.isfinite(self.best)
        return {
            "margin": float(held.mean()),
            "open": float(len(held)),
            "broken": float(broken.float().mean()),
            "radius": float(self.best[broken].mean()) if broken.any() else 0.0,
            "skipped": float(self.skipped),
        }

    def _slope(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The margins at the states, their gradients, and the answers to the saved images."""

        with torch.enable_grad():
            z = self.now[self._on(rows)].clone().requires_grad_(True)
            x = self.drawn(rows, z)
            m = self.judge.margin(x, rows)
            if not m.requires_grad:
                raise UserError(
                    "the classifier's answer has no gradient with respect to the noise: the "
                    "gradient policy is 'none', or the classifier leaves torch, rounds, or runs "
                    "without gradients."
                )
            slope = torch.autograd.grad(m.sum(), z)[0]

        return m.detach().cpu(), slope, self.judge.answers(x.detach())

    def _settle(self, rows: Tensor, slope: Tensor, logits: Tensor) -> None:
        """Takes note of successes and failures, and moves the states on."""

        z, origin = self.now[self._on(rows)], self._origin(rows)
        here = radius_of(z, origin, self.norm).cpu()
        success = self.judge.failed(logits, rows) & (here < self.best[rows])
        late = ~success & (self.age[rows] + 1 >= self.patience)
        again = late & (self.best[rows] == torch.inf)

        self.best[rows] = torch.where(success, here, self.best[rows])
        self.found[self._on(rows[success])] = z[self._on(success)]
        vain = late & ~again
        self.lower[rows] = torch.where(vain, self.tried[rows], self.lower[rows])
        self.starts[rows] += again
        middle = (self.lower[rows] + self.best[rows]) / 2
        self.tried[rows] = torch.where(success | vain, middle, self.tried[rows])
        self.age[rows] = torch.where(success | late, 0, self.age[rows] + 1)

        r = self._on(self.tried[rows])
        moved = project(self._stepped(z, slope, r), origin, r, self.norm)
        nearer = project(self.found[self._on(rows)], origin, r, self.norm)
        moved = _chosen(self._on(success | vain), nearer, moved)

        if again.any():
            moved[self._on(again)] = self._begun(rows[again])

        self.now[self._on(rows)] = moved

    def _stepped(self, z: Tensor, slope: Tensor, r: Tensor) -> Tensor:
        """The states after a step down; where the slope is not finite, the states as they are."""

        flat = slope.flatten(1).to(torch.float64)
        finite = flat.isfinite().all(1)
        self.skipped += int((~finite).sum())
        length = z.flatten(1).to(torch.float64).norm(dim=1)

        if self.norm == "l2":
            unit = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
        else:
            unit = flat.sign() / flat.shape[1] ** 0.5

        step = (self.length * r * length)[:, None] * unit
        return _chosen(finite, z - step.to(z.dtype).view_as(z), z)

    def state(self) -> dict[str, Any]:
        """See [`Task`][genflow.gradients.loop.Task]."""

        return {name: getattr(self, name) for name in _STATE} | {"skipped": self.skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See [`Task`][genflow.gradients.loop.Task]."""

        for name in _STATE:
            setattr(self, name, state[name].to(getattr(self, name).device))
        self.skipped = state["skipped"]

    # ---------------------------------------------------------------------- what came of it

    def _random(self, radius: Tensor) -> tuple[Tensor, Tensor]:
        """How often random changes of a radius make the classifier fail, (n); the first images."""

        n = len(self.drawn)
        every, rate, first = torch.arange(n), torch.zeros(n), self.before

        for k in range(self.draws):
            direction = self._direction("audit-control", every, torch.full((n,), k))
            z = away(direction, self.drawn.noise, self._on(radius), self.norm)
            x = self.drawn.all(z).cpu()
            rate += self.judge.failed(self.judge.answers(x), every) / self.draws
            first = x if k == 0 else first

        return rate, first

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes ``noise.safetensors`` and ``grid.png``; returns the report.

        The samples are drawn once more from the noise that was found, and scored as they are
        saved. The picture has the samples before, after, and with a random change of the same
        radius.
        """

        after = self.drawn.all(self.found).cpu()
        logits = self.judge.answers(after)
        already = self.judge.already
        broken = self.judge.failed(logits, torch.arange(len(after))) & ~already
        own = torch.where(broken, self.best, 0.0)
        rate, random = self._random(own)
        tested = ~already
        rms = (self.found - self.drawn.noise).flatten(1).double().square().mean(1).sqrt().cpu()
        count = int(tested.sum())

        with writing(folder / "noise.safetensors") as part:
            kept = {"noise": self.drawn.noise, "found": self.found, "radius": self.best}
            save_file({k: v.detach().cpu().contiguous() for k, v in kept.items()}, part)

        return {
            "samples": len(self.drawn),
            "failed_already": int(already.sum()),
            "tested": count,
            "broken": int(broken.sum()),
            "success": _mean(broken[tested]),
            "radius": {
                "mean": _mean(self.best[broken]),
                "median": float(self.best[broken].median()) if broken.any() else None,
                "rms": _mean(rms[broken]),
                "largest": float(self.best[broken].max()) if broken.any() else None,
            },
            "random_at_same_radius": _mean(rate[broken]),
            "table": [self._row(r, broken, tested) for r in self.radii],
            "skipped": self.skipped,
            "each": [
                {
                    "seed": self.drawn.seeds[i],
                    "truth": int(self.judge.truth[i]),
                    "answer": int(logits[i].argmax()),
                    "radius": float(self.best[i]) if broken[i] else None,
                    "rms": float(rms[i]) if broken[i] else None,
                    "random": float(rate[i]) if broken[i] else None,
                }
                for i in range(len(self.drawn))
            ],
            "picture": sketch(self.before, after, random),
        }

    def _row(self, radius: float, broken: Tensor, tested: Tensor) -> dict[str, Any]:
        """A row of the table: who fails within a radius, and who at random there."""

        rate, _ = self._random(torch.full((len(self.drawn),), radius, dtype=torch.float64))
        within = broken & (self.best <= radius)
        return {
            "radius": radius,
            "success": _mean(within[tested]),
            "random": _mean(rate[tested]),
        }


_STATE = ("best", "found", "lower", "tried", "age", "starts", "now")


def _chosen(which: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Row by row one or the other, by which with shape (B)."""

    return torch.where(which.view(-1, *(1,) * (one.ndim - 1)), one, other)


def _mean(x: Tensor) -> float | None:
    return float(x.double().mean()) if len(x) else None

r"""Fine-tuning: the weights of a model, moved down a differentiable metric of its samples.

.. math:: \min_\theta \; \mathbb{E}_z \, \ell\big(x(z; \theta)\big)
    + \kappa \, \frac1d \, \mathbb{E}_z \| x(z; \theta) - x(z; \theta_0) \|^2

All weights are trained, or low-rank changes of them (`genflow.gradients.lora`), which are merged
in the end. The second term holds the samples of the same noise near those of the model as it was;
the distance, the *drift*, is reported whether or not it was held. The noise is a pool of fixed
seeds, gone round in; what is reported is measured on other seeds.

Back-propagation through the last calls of the denoiser alone (`genflow.solvers.Truncated`) is
DRaFT and AlignProp: cheaper, and biased towards what the last steps can still change.

What is *not* promised: that the result is still a score. A metric says nothing about most of what
a model knows, and whatever it does not see is free to go: look at the samples, and at the drift.

References:
    | AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion
    |     Probabilistic Models
    | https://arxiv.org/abs/2307.10711

    | Directly Fine-Tuning Diffusion Models on Differentiable Rewards
    | https://arxiv.org/abs/2309.17400
"""

__all__ = ["FineTuning"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.gradients.descent import Descent
from genflow.gradients.drawing import Drawn, frozen, sketch
from genflow.gradients.loop import Task
from genflow.gradients.lora import lay, merge, pattern
from genflow.gradients.losses import Classified, Loss
from genflow.pipelines import Pipeline
from genflow.solvers.adjoint import Gradient


class FineTuning(Task):
    r"""The training of a pipeline's network on a loss of its samples.

    Args:
        pipe: The pipeline; its network is changed in place.
        loss: What the samples are to become; sample i is number i of the pool, and the held-out
            samples are numbered after it.
        seeds: The pool: one seed a sample.
        held: Other seeds, to measure on.
        label: The classes of pool and held-out samples, with shape (n + m), or None.
        prompt: A prompt for all, or one each, n + m of them.
        rank: The rank of the changes; None trains all weights.
        scale: The factor of the changes, for a rank.
        layers: Which layers are trained: a regular expression found in their names.
        keep: κ, 0 or more.
        iterations: The number of steps, 1 or more.
        batch: How many samples a step sees, 1 to n.
        optimizer: As in [`Descent`][genflow.gradients.descent.Descent].
        lr: As there.
        clip: As there.
        average: As there; the averages are what is saved.
        batch_size: How many samples are differentiated at a time.
        gradient: The gradient policy.
        seed: The seed of the low-rank changes.
        options: The sampler, as in `genflow.Pipeline.build`.

    Raises:
        UserError: If a value is out of its range, no layer is chosen, or the pipeline is one that
            cannot be saved.
    """

    def __init__(
        self,
        pipe: Pipeline,
        loss: Loss,
        seeds: Sequence[int],
        held: Sequence[int],
        *,
        label: Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        rank: int | None = 4,
        scale: float = 1.0,
        layers: str = ".*",
        keep: float = 0.0,
        iterations: int = 100,
        batch: int = 16,
        optimizer: str = "adam",
        lr: float = 1e-3,
        clip: float | None = 1.0,
        average: float = 0.0,
        batch_size: int = 16,
        gradient: str | Gradient = "exact",
        seed: int = 0,
        **options: Any,
    ) -> None:
        if iterations < 1:
            raise UserError(f"iterations is {iterations}: it must be 1 or more.")
        if not keep >= 0:
            raise UserError(f"keep is {keep}: it must be 0 or more.")
        if not 1 <= batch <= max(1, len(seeds)):
            raise UserError(
                f"batch is {batch}: it must be 1 … {len(seeds)}, the size of the pool."
            )
        if set(seeds) & set(held) or not held:
            raise UserError("held is empty or shares seeds with the pool: give other seeds.")
        if pipe.codec is not None and pipe.condition is None:
            raise UserError(
                "this pipeline cannot be saved by genflow: fine-tune one of genflow's own, or a "
                "stock one that draws from text."
            )

        self.pipe, self.loss, self.keep = pipe, loss, keep
        self.iterations, self.batch = iterations, batch
        self.pool = torch.arange(len(seeds))
        self.held = torch.arange(len(seeds), len(seeds) + len(held))
        net = pipe.denoiser.net
        self.wanted = {name: p.requires_grad for name, p in net.named_parameters()}

        try:
            if rank is None:
                variables = _layers(net, layers)
            else:
                variables = lay(net, rank, scale=scale, layers=layers, seed=seed)

            self.descent = Descent(
                variables, optimizer=optimizer, lr=lr, clip=clip, average=average
            )
            self.drawn = Drawn(
                pipe,
                [*seeds, *held],
                label=label,
                prompt=prompt,
                gradient=gradient,
                batch_size=batch_size,
                **options,
            )
        except UserError:
            self._release()
            raise

        # Low-rank changes are zero as yet: these are the samples of the model as it was.
        self.before = self.drawn.all() if keep > 0 else self._measured()
        self.losses = self._each(self.before[-len(held) :])
        self.loss_before = float(self.losses.mean())

    def _measured(self) -> Tensor:
        """The held-out samples."""

        with torch.no_grad():
            return torch.cat([self.drawn(rows) for rows in self.held.split(self.drawn.batch_size)])

    @torch.no_grad()
    def _each(self, x: Tensor) -> Tensor:
        """The loss of each held-out sample."""

        return self.loss(x, self.held)

    def _evaluate(self, chosen: Tensor) -> float:
        """The loss of a batch and its gradient, a part of it at a time."""

        total = torch.zeros((), device=self.pipe.device)

        for rows in chosen.split(self.drawn.batch_size):
            x = self.drawn(rows)
            each = self.loss(x, rows)
            if self.keep > 0:
                drift = (x - self.before[rows.to(x.device)]).square().flatten(1).mean(1)
                each = each + self.keep * drift
            part = each.sum() / len(chosen)
            if not part.requires_grad:
                raise UserError(
                    "the loss has no gradient with respect to the weights: the gradient policy is "
                    "'none', or the loss rounds, takes an argmax, or leaves torch."
                )
            part.backward()
            total += part.detach()

        return float(total)

    def advance(self, k: int) -> dict[str, float]:
        """One step of the optimiser, on the next samples of the pool."""

        rows = (k * self.batch + torch.arange(self.batch)) % len(self.pool)

        with frozen(self.pipe.codec, self.loss):
            return self.descent.step(lambda: self._evaluate(rows))

    def state(self) -> dict[str, Any]:
        """See [`Task`][genflow.gradients.loop.Task]."""

        return self.descent.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """See [`Task`][genflow.gradients.loop.Task]."""

        self.descent.restore(state)

    # ---------------------------------------------------------------------- what came of it

    @torch.no_grad()
    def finish(self) -> None:
        """Takes the averages and merges the changes; after it the pipeline is an ordinary one."""

        for name, value in self.descent.averages.items():
            self.descent.variables[name].copy_(value)

        self._release()

    def _release(self) -> None:
        """Makes the network a plain one again, its parameters wanted as they were before."""

        net = self.pipe.denoiser.net
        merge(net)

        for name, p in net.named_parameters():
            p.requires_grad_(self.wanted[name])
            p.grad = None

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes ``pipeline`` and ``grid.png``; returns the report.

        The picture has the held-out samples that were worst before, and what became of them.
        """

        count = sum(v.numel() for v in self.descent.variables.values())
        unreached = self.descent.unreached()
        self.finish()
        before, after = self.before[-len(self.held) :], self._measured()
        drift = (after - before).square().mean().item()
        worst = self.losses.argsort(descending=True, stable=True)
        report = {
            "loss_before": self.loss_before,
            "loss_after": float(self._each(after).mean()),
            "drift": drift,
            "trained": count,
            "unreached": unreached,
            "skipped": self.descent.skipped,
            "picture": sketch(before[worst], after[worst]),
        }

        if isinstance(self.loss, Classified):
            report["right_before"] = self._right(before)
            report["right_after"] = self._right(after)

        self._save_pipeline(folder / "pipeline")
        return report

    @torch.no_grad()
    def _right(self, x: Tensor) -> float:
        """How many held-out samples are of the class that is wanted, in [0, 1]."""

        return float(self.loss.right(x, self.held).float().mean())

    def _save_pipeline(self, folder: Path) -> None:
        """In genflow's own format, or as the stock pipeline that this one was adapted from."""

        if self.pipe.condition is None:
            self.pipe.save(folder, overwrite=True)
        else:
            self.pipe.condition.pipeline.save_pretrained(folder, safe_serialization=True)


def _layers(net: nn.Module, layers: str) -> dict[str, nn.Parameter]:
    """The parameters that are trained; the others are kept from wanting gradients."""

    chosen, named = pattern(layers), dict(net.named_parameters())
    found = {name: p for name, p in named.items() if chosen.search(name)}

    if not found:
        raise UserError(f"layers is '{layers}', found in the name of none of the parameters.")

    for name, p in named.items():
        p.requires_grad_(name in found)

    return found

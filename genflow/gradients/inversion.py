r"""Inversion of a condition: what must a model be told, so that it makes this?

The embedding e of a class, or of a prompt, is optimised through the sampler,

.. math:: \min_e \; \frac1n \sum_i \ell\big(x(z_i; e)\big)
    + \kappa \, \frac1E \| e - e_0 \|^2,

where all samples share e. It is a table of rows, (1, R, E): the tokens of a prompt, or the class
embedding of each table of a network. Some rows may be optimised and the others kept, the prompt
kept and its padding optimised for instance. The weight of classifier-free guidance may be
optimised with it. What is found is an ordinary condition: ``pipe(16, conditions=found)``.

What is *not* promised: that e means the same to other noise than :math:`z_1, \dots, z_n`. Few
samples, or a loss that sees each pixel of one of them, fit an embedding to their noise.

References:
    | AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion
    |     Probabilistic Models
    | https://arxiv.org/abs/2307.10711

    | An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion
    | https://arxiv.org/abs/2208.01618
"""

__all__ = ["Inversion", "beginning"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.gradients.descent import Descent
from genflow.gradients.drawing import Drawn, frozen, sketch
from genflow.gradients.loop import Task
from genflow.gradients.losses import Loss, Pixel
from genflow.pipelines import Pipeline
from genflow.pipelines.conditions import save_conditions
from genflow.solvers.adjoint import Gradient


def beginning(pipe: Pipeline, start: Any = None) -> dict[str, Tensor]:
    """The conditions that an inversion begins with, a row each.

    Args:
        pipe: The pipeline.
        start: A prompt or, where there are classes, a class or its name; the empty prompt or no
            class if None.

    Returns:
        ``embedding`` with shape (1, R, E), or what a prompt stands for by name, ``prompt_embeds``
        with shape (1, R, E) first.

    Raises:
        UserError: If the pipeline takes neither prompts nor classes.
    """

    if pipe.condition is not None:
        return pipe.conditions(1, prompt=str(start or ""))
    if pipe.classes is None:
        raise UserError("this pipeline takes no condition: there is nothing to invert.")

    label = torch.tensor([pipe.classes]) if start is None else pipe.labels(start, 1)

    with torch.no_grad():
        return {"embedding": pipe.denoiser.net.embed(label.to(pipe.device))}


class Inversion(Task):
    r"""The search for an embedding.

    Args:
        pipe: The pipeline; its weights are frozen while gradients are taken, and not changed.
        loss: What the samples are to become.
        seeds: One seed a sample.
        start: Conditions to begin with, as `beginning` makes them; the first is optimised.
        rows: The rows of the embedding that are optimised; all if None.
        learn_guidance: Whether the weight of guidance is optimised as well.
        guidance: The weight of guidance, or where it begins.
        keep: κ, the pull towards the start, 0 or more.
        iterations: The number of steps, 1 or more.
        optimizer: As in [`Descent`][genflow.gradients.descent.Descent].
        lr: As there.
        clip: As there.
        batch_size: How many samples are differentiated at a time; the result does not depend on
            it but for rounding.
        gradient: The gradient policy.
        options: The sampler, as in `genflow.Pipeline.build`.

    Raises:
        UserError: If a value is out of its range, or there is nothing to invert.

    Example:
        >>> task = Inversion(pipe, Pixel(target), range(8), iterations=50)
        >>> history = iterate(task)
        >>> pipe(16, conditions=task.found())
    """

    def __init__(
        self,
        pipe: Pipeline,
        loss: Loss,
        seeds: Sequence[int],
        *,
        start: Mapping[str, Tensor] | None = None,
        rows: Sequence[int] | None = None,
        guidance: float = 1.0,
        learn_guidance: bool = False,
        keep: float = 0.0,
        iterations: int = 100,
        optimizer: str = "adam",
        lr: float = 0.05,
        clip: float | None = None,
        batch_size: int = 16,
        gradient: str | Gradient = "exact",
        **options: Any,
    ) -> None:
        if iterations < 1:
            raise UserError(f"iterations is {iterations}: it must be 1 or more.")
        if not keep >= 0:
            raise UserError(f"keep is {keep}: it must be 0 or more.")

        start = dict(start or beginning(pipe))
        self.name = next(iter(start))
        self.start = start[self.name].detach().to(torch.float32)
        self.rows = _chosen(rows, self.start.shape[1])
        self.weight = torch.tensor(float(guidance), device=pipe.device)
        self.free = self.start[:, self.rows].clone().requires_grad_(True)
        self.guided = learn_guidance or guidance != 1.0
        variables = {self.name: self.free}

        if learn_guidance:
            variables["guidance"] = self.weight.requires_grad_(True)
        if self.guided:
            options["guidance"] = self.weight

        self.pipe, self.loss, self.iterations, self.keep = pipe, loss, iterations, keep
        self.learnt = learn_guidance
        self.drawn = Drawn(
            pipe,
            seeds,
            conditions=start,
            gradient=gradient,
            batch_size=batch_size,
            **options,
        )
        self.descent = Descent(variables, optimizer=optimizer, lr=lr, clip=clip)
        self.before = self.drawn.all().cpu()
        self.loss_before = self._mean(self.before)

    def embedding(self) -> Tensor:
        """The embedding as it is now, with shape (1, R, E); its free rows want a gradient."""

        place = torch.tensor(self.rows, device=self.free.device)
        return self.start.index_copy(1, place, self.free)

    def found(self) -> dict[str, Tensor]:
        """The conditions that were found, by name, for `genflow.Pipeline`."""

        fixed = {k: v[:1] for k, v in self.drawn.cond.items() if k != self.name}
        return {self.name: self.embedding().detach(), **fixed}

    def _mean(self, x: Tensor) -> float:
        with torch.no_grad():
            return float(self.loss(x.to(self.pipe.device), torch.arange(len(x))).mean())

    def _evaluate(self) -> float:
        """The loss and its gradient, a part of the samples at a time."""

        total = torch.zeros((), device=self.free.device)

        for rows in torch.arange(len(self.drawn)).split(self.drawn.batch_size):
            x = self.drawn(rows, **{self.name: self.embedding()})
            part = self.loss(x, rows).sum() / len(self.drawn)
            if not part.requires_grad:
                raise UserError(
                    f"the loss has no gradient with respect to '{self.name}': the gradient policy "
                    "is 'none', or the loss rounds, takes an argmax, or leaves torch."
                )
            part.backward()
            total += part.detach()

        if self.keep > 0:
            pull = self.keep * (self.embedding() - self.start).square().sum()
            pull = pull / self.start.shape[-1]
            pull.backward()
            total += pull.detach()

        return float(total)

    def advance(self, k: int) -> dict[str, float]:
        """One step of the optimiser."""

        with frozen(self.pipe.denoiser, self.pipe.codec, self.loss):
            numbers = self.descent.step(self._evaluate)

        return numbers | ({"guidance": float(self.weight.detach())} if self.learnt else {})

    def state(self) -> dict[str, Any]:
        """See [`Task`][genflow.gradients.loop.Task]."""

        return self.descent.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """See [`Task`][genflow.gradients.loop.Task]."""

        self.descent.restore(state)

    # ---------------------------------------------------------------------- what came of it

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes ``embedding.safetensors`` and ``grid.png``; returns the report.

        The picture has the target on top if there is one of pixels, then the samples before and
        the samples after.
        """

        found = self.found()
        after = self.drawn.all(**{self.name: found[self.name]}).cpu()
        kept = found | ({"guidance": self.weight} if self.guided else {})
        save_conditions(folder / "embedding.safetensors", kept)
        target = [self.loss.target] if isinstance(self.loss, Pixel) else []
        moved = (found[self.name] - self.start).norm() / self.start.norm().clamp(min=1e-12)
        return {
            "loss_before": self.loss_before,
            "loss_after": self._mean(after),
            "moved": float(moved),
            "guidance": float(self.weight.detach()),
            "skipped": self.descent.skipped,
            "picture": sketch(*target, self.before, after),
        }


def _chosen(rows: Sequence[int] | None, count: int) -> list[int]:
    """The rows that are optimised."""

    chosen = list(range(count)) if rows is None else sorted(set(rows))

    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise UserError(
            f"rows is {list(rows or [])}: the embedding has the rows 0 … {count - 1}, and at "
            "least one is to be optimised."
        )

    return chosen

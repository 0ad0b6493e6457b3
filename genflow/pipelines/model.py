r"""A denoiser with what stands before and behind it: tensors in, tensors out.

A model is a record. The denoiser stands in the middle; what it is told comes from classes, from
prompts through the *condition*, or from tensors by name; where the denoiser works on latents, the
*codec* turns them into images. Guidance and clipping are put around the denoiser call by call, and
a schedule of the record is used unless a call names another.
"""

__all__ = ["DTYPES", "Model", "dtype_named"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from genflow.errors import UserError, nearest
from genflow.models import Clipped, Denoiser, Guided, Preconditioned, Rectified
from genflow.nn import Checkpointed
from genflow.pipelines.codecs import Codec
from genflow.pipelines.conditions import Prompt, Prompts, numbered, rows
from genflow.solvers import Adaptive, Sampler, SolverSchedule, Tableau, build
from genflow.solvers.adjoint import Direct, Gradient, NoGradient, policy
from genflow.solvers.registry import preset

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

DTYPES = {str(d).removeprefix("torch."): d for d in FLOATS}
"""What a pipeline may be loaded in, by name."""


def dtype_named(name: str | torch.dtype) -> torch.dtype:
    """A dtype for the weights of networks.

    Raises:
        UserError: If it is none of `DTYPES`.
    """

    short = str(name).removeprefix("torch.")

    if short not in DTYPES:
        raise UserError(f"dtype is '{short}'{nearest(short, DTYPES)}")

    return DTYPES[short]


@dataclass
class Model:
    r"""A model to sample from, as a record.

    Attributes:
        denoiser: The preconditioned network.
        shape: The shape of a state, (C, H, W) or (d): of a sample, or of its latent.
        schedule: The default schedule; if None, ``sampler`` on the path's own grid.
        sampler: The default sampler where no schedule is given.
        steps: Its number of steps.
        class_names: The names of the classes, or None.
        card: Anything worth keeping beside the weights: data, steps, distances. JSON values.
        codec: From latents to images and back; None if states are samples.
        condition: From prompts to named conditions; None if nothing is drawn from text.
        spacing: Options of the grid of times that hold unless a call gives others, as in
            ``{"shift": 3.0}``.
        source: What states at t = 1 are, in a few words, if they are data: the flow then leads
            from those data to samples. None if they are noise.

    Raises:
        UserError: If there is a source, and the path is not `Rectified`.
    """

    denoiser: Preconditioned
    shape: tuple[int, ...]
    schedule: SolverSchedule | None = None
    sampler: str = "dpmpp-2m"
    steps: int = 20
    class_names: tuple[str, ...] | None = None
    card: dict[str, Any] = field(default_factory=dict)
    codec: Codec | None = None
    condition: Prompts | None = None
    spacing: dict[str, Any] = field(default_factory=dict)
    source: str | None = None

    def __post_init__(self) -> None:
        if self.source is not None and not isinstance(self.denoiser.path, Rectified):
            raise UserError(
                f"source is '{self.source}' and the path is {self.denoiser.path}: a flow between "
                "two data sets needs the straight path (RectifiedFlow)."
            )

    def check_noise(self) -> None:
        """Refuses a flow that does not start from noise, where seeds are all there is.

        Raises:
            UserError: If there is a source.
        """

        if self.source is not None:
            raise UserError(
                f"this pipeline does not start from noise, but from data ({self.source}): give it "
                "some, as in pipe.translate(x)."
            )

    @property
    def classes(self) -> int | None:
        """The number of classes, or None."""

        return getattr(self.denoiser.net, "classes", None)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""

        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's weights; states are in float32 if it is a narrower one."""

        return next(self.denoiser.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the networks, as `torch.nn.Module.to` does; returns the pipeline.

        With ``torch.bfloat16`` or ``torch.float16`` the networks compute in that dtype, and the
        solver in float32. Samples are then near those of float32, and not equal to them.
        """

        for piece in (self.denoiser, self.codec, self.condition):
            if piece is not None:
                piece.to(*args, **kwargs)
        return self

    def compile(self, **options: Any) -> Self:
        """Compiles the network, in place; returns the pipeline.

        The first batch of each shape then takes longer, by a minute for large networks, and later
        ones less. Weights, files and seeds are as before; the samples are up to rounding. Steps
        that alter the network, by dropped or reused blocks, are compiled anew for each alteration.

        Args:
            options: Those of `torch.nn.Module.compile`, such as ``backend`` and ``mode``.

        Example:
            >>> pipe = Pipeline.from_pretrained("runs/cifar10/pipeline", device="cuda").compile()
        """

        self.denoiser.net.compile(**options)
        return self

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a sample: that of a state, or of the image behind a latent."""

        return self.shape if self.codec is None else self.codec.event(self.shape)

    def build(
        self,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        schedule: SolverSchedule | Tableau | None = None,
        guidance: float | Tensor = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        negative: Prompt | None = None,
        null: Mapping[str, Any] | None = None,
        clip: bool = False,
        gradient: str | Gradient = "none",
        **options: Any,
    ) -> Sampler | Adaptive:
        """The sampler of a call, with guidance and clipping around the denoiser.

        Args:
            sampler: A name of the registry; the default schedule if neither it, nor steps, nor a
                schedule is given.
            steps: The number of steps.
            schedule: A schedule on this pipeline's path, or a table.
            guidance: The weight of classifier-free guidance; 1 is none. A number, or a tensor with
                shape () or (B), which may want a gradient.
            interval: The times inside which guidance acts.
            negative: What guidance leads away from, instead of the empty prompt: one for all
                samples, or one each.
            null: The conditions that guidance leads away from, by name, instead of those of
                ``negative`` or of the null class.
            clip: Whether the data estimate is clamped to [−1, 1].
            gradient: The gradient policy, a name or a record of `genflow.solvers.adjoint`.
            options: Options of the sampler and of its grid.

        Raises:
            UserError: If guidance is asked of a network that knows no null condition, a negative
                prompt comes without guidance, or a schedule with a sampler or steps.
        """

        denoiser: Denoiser = self.denoiser.eval()

        if isinstance(guidance, Tensor) or guidance != 1.0:
            null = self._null(guidance, negative) if null is None else null
            denoiser = Guided(denoiser, guidance, null, interval=interval)
        elif negative is not None:
            raise UserError(
                f"negative is {negative!r}, but guidance is 1, which is none: give a weight above "
                "1, as in guidance=5."
            )
        if clip:
            denoiser = Clipped(denoiser)

        if schedule is not None:
            if sampler is not None or steps is not None or options:
                raise UserError(
                    "schedule is given together with a sampler, steps or options: a schedule "
                    "holds them all, give one or the other."
                )
            return Sampler(denoiser, schedule, gradient)

        if sampler is None and steps is None and not options and self.schedule is not None:
            return Sampler(denoiser, self.schedule, gradient)

        name = sampler or self.sampler
        count = self.steps if steps is None else steps
        spacing = self.spacing if preset(name).spaced else {}
        return build(name, denoiser, count, gradient=gradient, **{**spacing, **options})

    def _null(self, guidance: float | Tensor, negative: Prompt | None) -> dict[str, Any]:
        """What stands for no condition: the null class, or the negative prompt."""

        if self.condition is None:
            if negative is not None:
                raise UserError(f"negative is {negative!r}, but this pipeline takes no prompts.")
            if self.classes is None:
                raise UserError(
                    f"guidance is {float(guidance)}, but this pipeline has no classes: leave it "
                    "at 1."
                )
            none = torch.tensor([self.classes], device=self.device)
            return {"label": self.classes, "embedding": self.denoiser.net.embed(none).detach()}

        return self.condition.null([negative] if isinstance(negative, str) else negative)

    def conditions(
        self,
        n: int,
        *,
        label: Tensor | None = None,
        prompt: Prompt | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """The named conditions of n samples, as the denoiser takes them.

        Args:
            n: The number of samples.
            label: Class numbers, with shape (n).
            prompt: A prompt for all samples, or one each.
            given: Conditions by name, tensors with 1 or n rows or numbers; they join those of the
                prompt, and win over them, as an ``embedding`` does over classes.

        Returns:
            Tensors with n rows, by name.

        Raises:
            UserError: If there is no prompt and no condition on a pipeline that draws from text, a
                prompt on one that does not, or a wrong number of rows.
        """

        found: dict[str, Any] = {} if label is None else {"label": label}

        if prompt is not None:
            if self.condition is None:
                raise UserError(f"prompt is {prompt!r}, but this pipeline takes no prompts.")
            found |= self.condition([prompt] if isinstance(prompt, str) else prompt)
        elif self.condition is not None and not given:
            raise UserError(
                "prompt is missing: this pipeline draws from text, as in pipe('a cat')."
            )

        given = given or {}

        if "embedding" in given:
            found.pop("label", None)

        return rows({**found, **given}, n, self.device)

    def labels(self, label: Any, n: int) -> Tensor | None:
        """Class labels for n samples.

        Args:
            label: None: every class in turn, or nothing if there are no classes. A class or its
                name: that class for all. A sequence of n of them: one each.
            n: The number of samples.

        Raises:
            UserError: If a label is out of range, or their number is not n.
        """

        if self.classes is not None:
            return numbered(label, n, self.classes, self.class_names)
        if label is not None:
            raise UserError(f"label is {label!r}, but this pipeline has no classes.")
        return None

    def sample(
        self,
        x: Tensor,
        *,
        label: Tensor | None = None,
        prompt: Prompt | None = None,
        conditions: Mapping[str, Any] | None = None,
        gradient: str | Gradient = "none",
        **options: Any,
    ) -> Tensor:
        r"""From noise to data, tensor to tensor.

        Args:
            x: Initial states, with shape (B, \*shape), as ``build(...).init`` draws them.
            label: Class numbers, with shape (B).
            prompt: A prompt for all, or one each.
            conditions: Further conditions by name, with 1 or B rows.
            gradient: How gradients pass through: ``"none"``; ``"exact"``, at the memory of one
                call of the network; another name, or a record of `genflow.solvers.adjoint`. Under
                policies that repeat calls latents are decoded again, too, one by one.
            options: See [`build`][genflow.pipelines.model.Model.build].

        Returns:
            The samples, with shape (B, \*event).
        """

        cond = self.conditions(len(x), label=label, prompt=prompt, given=conditions)
        return self.decoded(self.build(gradient=gradient, **options)(x, **cond), gradient)

    def decoded(self, x: Tensor, gradient: str | Gradient) -> Tensor:
        """Samples of final states: the images of latents, or the states themselves."""

        if self.codec is None:
            return x

        kind = policy(gradient)

        with torch.set_grad_enabled(not isinstance(kind, NoGradient) and torch.is_grad_enabled()):
            again = not isinstance(kind, (NoGradient, Direct))
            return (Checkpointed(self.codec.decode) if again else self.codec.decode)(x)

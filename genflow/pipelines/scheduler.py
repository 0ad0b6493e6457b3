r"""The way out: searched schedules as a scheduler of diffusers.

A stock pipeline asks its scheduler for timesteps, calls its network at each, and hands the answer
back to ``step``. A schedule is compiled to a table whose every stage calls the network once, so to
carry out a row of the table is all there is to do (`genflow.pipelines.driven`): multistep,
singlestep and corrected steps need no cases of their own.

A network that predicts noise, v or data lives on the `Discrete` path and is told the level
:math:`N t - 1`, a float; one that predicts a flow lives on `Rectified` and is told
:math:`1000 t`. What is not assumed: that the timesteps are whole numbers, or evenly spaced.

    >>> import genflow
    >>> pipe = StableDiffusionPipeline.from_pretrained(...)
    >>> pipe.scheduler = genflow.SearchedScheduler.from_schedules({5: five}, like=pipe.scheduler)
    >>> pipe("a fox", num_inference_steps=5)

A pipeline that was saved with this scheduler is loaded by its own stock class, after
``import genflow``.
"""

__all__ = ["SchedulerMixin", "SearchedScheduler"]

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models import Discrete, Path
from genflow.models.noise import Generators
from genflow.pipelines.driven import Driven
from genflow.pipelines.runs import Runs
from genflow.pipelines.scheduler_config import (
    read_path,
    record_of,
    refuse_unwritable,
    schedule_of,
    spelled_out,
)
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau


class SearchedScheduler(SchedulerMixin, ConfigMixin):
    r"""Any `SolverSchedule` as a scheduler of diffusers, looked up by the number of steps.

    Schedules are compiled once, when the scheduler is made; tables, whose weights were tuned, are
    taken as they are. A pipeline that begins in the middle (image-to-image) runs the `remainder`
    of the schedule, which a table has not. The stock pipelines `DDPMPipeline` and
    `DiTPipeline` hand no list of times through, so the count of steps is what selects a schedule.

    Fresh noise (η above 0) is drawn from the ``generator`` that the pipeline passes; `DiTPipeline`
    passes none, so there it comes from the global one. A schedule whose first step takes its state
    for pure noise runs as it should, but saves nothing here: stock pipelines call the network at
    every timestep, and the answer to that call is not used.

    The defaults of the path are those of every scheduler of diffusers; those of checkpoints differ
    (Stable Diffusion has "scaled_linear", 0.00085, 0.012), so make it with
    [`from_schedules`][genflow.pipelines.scheduler.SearchedScheduler.from_schedules] or
    ``from_config``.

    Args:
        num_train_timesteps: The number N of levels that the network was trained at; 1000 for flow.
        beta_start: The first β.
        beta_end: The last β.
        beta_schedule: ``"linear"``, ``"scaled_linear"``, ``"squaredcos_cap_v2"``, and the others
            of `diffusers.DDPMScheduler`.
        trained_betas: All N values of β, instead of the three before, or None.
        prediction_type: ``"epsilon"``, ``"v_prediction"``, ``"sample"`` or ``"flow_prediction"``.
        rescale_betas_zero_snr: Whether the β are rescaled so that the last level has no signal.
        schedules: Schedules by the number of calls of the network, each a `SolverSchedule` or the
            dict of its times and steps; or a `Tableau` or its dict.
        fallback: The name of the sampler for counts of steps without a schedule, and for given
            timesteps; None refuses them.
        clip: Whether the data estimate is clamped to [−1, 1].
        shift: The shift of the grid of the fallback on flow models, above 0; a schedule's own
            times are final.
        format_version: The version of the format of ``schedules``.

    Raises:
        UserError: If a value is not allowed, a schedule cannot be carried out on the path, or it
            is held under a number that is not its number of calls.

    References:
        Unified Sampling Framework for Diffusion Probabilistic Models (USF)
        https://openreview.net/forum?id=W2d3LZbhhI
    """

    _compatibles = [
        *(k.name for k in KarrasDiffusionSchedulers),
        "FlowMatchEulerDiscreteScheduler",
    ]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        schedules: Mapping[Any, Any] | None = None,
        fallback: str | None = None,
        clip: bool = False,
        shift: float = 1.0,
        format_version: int = 1,
    ) -> None:
        betas = None if trained_betas is None else [float(b) for b in trained_betas]
        self.register_to_config(schedules={}, trained_betas=betas)
        refuse_unwritable(self.config)

        self.path = read_path(self.config)
        given = {
            str(n): schedule_of(n, value, format_version, self.path)
            for n, value in (schedules or {}).items()
        }
        # No value is one that another scheduler may replace by its own default.
        self.register_to_config(
            schedules={n: record_of(n, s) for n, s in given.items()}, _use_default_values=[]
        )
        if isinstance(self.path, Discrete):
            self.alphas_cumprod = torch.tensor(self.path.alphas_cumprod, dtype=torch.float32)
        else:
            # Pipelines of flow models hand a grid of their own over unless this is set.
            self.register_to_config(use_flow_sigmas=True)

        self._runs = Runs(self.config, self.path, given)
        self.timesteps = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float32) - 1
        self.num_inference_steps: int | None = None
        self._whole: Driven | None = None
        self._reset()

    # ---------------------------------------------------------------------- construction

    @classmethod
    def from_schedules(
        cls,
        schedules: Mapping[int, SolverSchedule | Tableau],
        like: Any = None,
        *,
        path: Path | None = None,
        **options: Any,
    ) -> "SearchedScheduler":
        """A scheduler that holds schedules, for the network of another scheduler.

        Args:
            schedules: Schedules by the number of calls of the network.
            like: A scheduler of diffusers, or its config, whose β and prediction are taken over,
                defaults included; None takes the defaults of diffusers.
            path: The path that the schedules were made on, if it is not the scheduler's: their
                times are moved to those with the same λ. Tables cannot be moved.
            options: Other arguments of the class, which win over ``like``.

        Returns:
            The scheduler.

        Raises:
            UserError: If ``like`` is no scheduler, or as the class itself.

        Example:
            >>> SearchedScheduler.from_schedules({5: five, 8: eight}, like=pipe.scheduler)
        """

        config = getattr(like, "config", like)

        if not (config is None or isinstance(config, Mapping)):
            raise UserError(
                f"like is a {type(like).__name__}: give a scheduler, such as pipe.scheduler, or "
                "its config."
            )

        empty = cls(**options) if config is None else cls.from_config(config, **options)

        if path is not None and path != empty.path:
            for n, found in schedules.items():
                if isinstance(found, Tableau):
                    raise UserError(
                        f"schedules[{n}] is a table of {type(path).__name__}, and the network "
                        f"lives on {type(empty.path).__name__}: a table cannot be moved, tune one "
                        "on this path."
                    )
            schedules = {n: s.on(empty.path, path) for n, s in schedules.items()}

        return cls.from_config(empty.config, schedules=schedules)

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As in diffusers, but the config of another scheduler is taken at its word.

        diffusers leaves out the values that the other scheduler has by default, and so replaces
        them by ours; here they are read like all others, whether the scheduler was made in memory
        or loaded from a file.

        Args:
            config: The config of any scheduler.
            return_unused_kwargs: Whether what was not used is returned too.
            kwargs: Arguments of the class, which win over the config.

        Returns:
            The scheduler; with what was not used if that was asked for.
        """

        if isinstance(config, Mapping) and "schedules" not in config:
            config = spelled_out(config, cls._get_init_keys(cls))

        return super().from_config(config, return_unused_kwargs, **kwargs)

    # ------------------------------------------------------------------------- the times

    def _reset(self) -> None:
        """Forgets the run: the place in the schedule, and the window."""

        if self._whole is not None:
            self._whole.restart()

        self._running = self._whole
        self._first = 0
        self._step_index: int | None = None
        self._begin_index: int | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Chooses the schedule, and forgets any run before.

        Args:
            num_inference_steps: The number of calls of the network.
            device: Where ``timesteps`` goes.
            timesteps: Decreasing timesteps for the fallback sampler, which runs through them and
                then to clean data; searched schedules have times of their own.
            mu: The logarithm of the shift of the fallback's grid, as pipelines of flow models
                compute it from the size of the image.

        Raises:
            UserError: If no schedule is held for that number and there is no fallback.
        """

        if timesteps is not None:
            run = self._runs.through(timesteps)
        else:
            run = self._runs.of(num_inference_steps, mu)

        self._whole = run
        self.timesteps = self._runs.timesteps(run).to(device)
        self.num_inference_steps = len(run)
        self._reset()

    # --------------------------------------------------------------------------- the run

    @property
    def init_noise_sigma(self) -> float:
        """The deviation σ of the initial state, at the first time of the chosen schedule."""

        if self._whole is None:
            return 1.0
        return float(self.path(self._whole.table.time[0])[1])

    @property
    def step_index(self) -> int | None:
        """The stage that the next call of ``step`` carries out; None before the first."""

        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The stage that a pipeline said it begins at, or None."""

        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Says which stage the pipeline begins at."""

        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state itself: networks of these paths take it as it is."""

        return sample

    def _begin(self, timestep: Any) -> None:
        """Finds the stage to begin at; a run from the middle gets the rest of the schedule."""

        index = self._begin_index

        if index is None:
            index = int((self.timesteps.cpu() - float(timestep)).abs().argmin())
        if index > 0:
            self._running = self._runs.rest(self._whole, index)

        self._step_index = self._first = index

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        r"""The next state, from the answer of the network at this one.

        Args:
            model_output: What the network predicts, with shape (B, \*).
            timestep: The timestep; it is looked at once, where a run begins.
            sample: The state, with shape (B, \*).
            generator: For fresh noise: one generator, or one for each sample.
            return_dict: Whether an object with ``prev_sample`` is returned, or a tuple.

        Returns:
            The next state in the dtype of ``sample``, with shape (B, \*).

        Raises:
            UserError: If ``set_timesteps`` was not called, or the schedule is at its end.
        """

        if self._whole is None:
            raise UserError("step is called before set_timesteps: call set_timesteps(n) first.")
        if self._step_index is None:
            self._begin(timestep)
        if self._step_index >= len(self.timesteps):
            raise UserError(
                f"step is called more often than the {len(self.timesteps)} timesteps: call "
                "set_timesteps again before the next run."
            )

        x = sample if sample.dtype == torch.float64 else sample.float()
        run, i = self._running, self._step_index - self._first
        moved = x if run is None else run.advance(i, x, model_output.to(x), generator)
        self._step_index += 1

        if self._step_index == len(self.timesteps) and run is not None:
            run.restart()

        prev_sample = moved.to(sample.dtype)

        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    # -------------------------------------------------------------------------- the path

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        r"""Data taken along the path: :math:`\alpha_t x + \sigma_t z`.

        Args:
            original_samples: The data x, with shape (B, \*).
            noise: The noise z, with shape (B, \*).
            timesteps: The timesteps, whole or not, with shape (B) or ().

        Returns:
            The noisy data, with shape (B, \*).
        """

        t = self._runs.time(timesteps.to(device=original_samples.device, dtype=torch.float32))
        x, z = original_samples, noise.to(original_samples)
        return self.path.perturb(x.float(), z.float(), t).to(x.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name, and in the order, that pipelines of flow models use."""

        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


# Saved pipelines name a class by its module: "genflow" stays when a file of ours moves, and is
# imported by "import genflow" alone.
SearchedScheduler.__module__ = "genflow"

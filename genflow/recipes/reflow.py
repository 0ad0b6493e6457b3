r"""Reflow and distillation: from a trained flow to its rectified successor, in one call.

Reflow draws pairs :math:`(Z_1, Z_0)` from a flow, noise and what the ODE makes of it, and trains a
flow on them as if they were noise and data, starting from the weights of the teacher. The
marginals stay, no convex transport cost grows, and paths become straighter, so that fewer steps
do. One round takes most of what there is to gain; later rounds add up the errors of teachers.

Distillation is the same with another law of times: a k-step student practises at the k times at
which it will be called, and no longer learns a flow. It freezes the pairing, so it comes last.

References:
    Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
    https://arxiv.org/abs/2209.03003
"""

__all__ = ["distill", "reflow"]

from collections.abc import Callable
import copy
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from genflow.data.base import DataModule
from genflow.data.pairs import Pairs
from genflow.data.translation import Translation
from genflow.errors import UserError
from genflow.models import Preconditioned, Rectified
from genflow.pipelines import Pipeline
from genflow.pipelines.pairs import make_pairs
from genflow.training import (
    EMA,
    Coupling,
    GenerativeModule,
    Grid,
    Independent,
    Loss,
    LossGuard,
    SafeCheckpoint,
    SafeIO,
    Taught,
    TimeLaw,
    UShaped,
)
from genflow.training.checkpoints import set_aside

Report = Callable[[str, int, int], None]
"""Called with the stage, and what is done and to do of it."""


def reflow(
    pipe: Pipeline,
    folder: Path,
    *,
    pairs: int = 20_000,
    steps: int = 3000,
    times: TimeLaw | None = None,
    loss: Loss | None = None,
    lr: float = 5e-4,
    batch_size: int = 128,
    ema: float = 0.999,
    seed: int = 0,
    pair_options: dict[str, Any] | None = None,
    online: DataModule | None = None,
    trainer: dict[str, Any] | None = None,
    report: Report | None = None,
) -> Pipeline:
    r"""Trains the rectified successor of a flow.

    Everything goes into the folder: ``pairs``, ``checkpoints``, ``metrics.csv``, and at the end
    ``pipeline``. A call that was killed goes on where it stood when it is made again.

    Args:
        pipe: The flow, on the straight path.
        folder: The folder.
        pairs: The number of pairs, 1 or more.
        steps: The number of training steps, 1 or more.
        times: The law of the training times; U-shaped if None.
        loss: How an answer is judged; the squared error if None.
        lr: The learning rate, above 0; it falls as a cosine to 0.
        batch_size: The number of pairs in a step.
        ema: The decay of the averaged weights, in [0, 1).
        seed: Names the pairs and the training.
        pair_options: Options of `make_pairs`: the sampler (dopri5 by default), ``guidance``,
            ``dtype``, ``shard_size``.
        online: Data whose classes are asked for, to draw pairs in every step instead of storing
            them; ``pair_options`` then name a sampler and its steps, ten steps of Heun's method by
            default. A flow between two data sets needs it, and a `Translation`, whose source the
            pairs start from.
        trainer: Further arguments of Lightning's trainer.
        report: Called with "pairs" and numbers, while pairs are made.

    Returns:
        The successor, with averaged weights; its own sampler is one step of Euler's method.

    Raises:
        UserError: If the pipeline is no flow on the straight path, a value is out of range, or
            the folder holds another job.
    """

    if not isinstance(pipe.denoiser.path, Rectified):
        raise UserError(
            f"the path of the pipeline is {pipe.denoiser.path}: reflow needs a flow on the "
            "straight path (RectifiedFlow)."
        )
    if steps < 1:
        raise UserError(f"steps is {steps}: it must be 1 or more.")

    options, coupling = dict(pair_options or {}), Independent()
    data: DataModule

    if online is None:
        tell = None if report is None else (lambda done, todo: report("pairs", done, todo))
        make_pairs(pipe, folder / "pairs", pairs, seed=seed, report=tell, **options)
        data = Pairs(folder / "pairs", batch_size=batch_size, seed=seed)
    else:
        if (pipe.source is None) == isinstance(online, Translation):
            raise UserError(
                f"the pipeline starts from {pipe.source or 'noise'} and the online data from "
                f"{online.origin or 'noise'}: give a Translation for a flow between data sets, "
                "and plain data for one from noise."
            )
        if tuple(online.shape) != tuple(pipe.shape):
            raise UserError(
                f"online data have shape {tuple(online.shape)} and the pipeline "
                f"{tuple(pipe.shape)}: both must be alike."
            )
        options = {"sampler": "heun", "steps": 10, **options}
        coupling, data = Taught(pipe.build(**options)), online

    module = _student(pipe, times or UShaped(), coupling, loss, lr=lr, seed=seed)
    _fit(module, data, folder, steps, ema, trainer or {})

    return _successor(pipe, module, folder, steps, options)


def distill(
    pipe: Pipeline,
    folder: Path,
    *,
    k: int = 1,
    loss: Loss | None = None,
    **options: Any,
) -> Pipeline:
    r"""Trains a student that samples in k Euler steps.

    Args:
        pipe: The teacher, best a flow that reflow has straightened.
        folder: The folder, as in `reflow`.
        k: The number of steps of the student, 1 or more.
        loss: How an answer is judged; the squared error if None.
        options: As in `reflow`, without ``times``.

    Returns:
        The student; its own sampler is k steps of Euler's method.

    Raises:
        UserError: As `reflow` does.
    """

    made = reflow(pipe, folder, times=Grid(k), loss=loss, **options)
    made.steps = k
    made.card["distilled_for"] = k
    made.save(folder / "pipeline", overwrite=True)
    return made


def _student(
    pipe: Pipeline, times: TimeLaw, coupling: Coupling, loss: Loss | None, *, lr: float, seed: int
) -> GenerativeModule:
    """The teacher's own network once more, to be trained on."""

    d = pipe.denoiser
    net = copy.deepcopy(d.net).train().requires_grad_(True)
    return GenerativeModule(
        Preconditioned(net, d.path, d.prediction, d.clock, d.sigma_data),
        times,
        coupling,
        loss,
        lr=lr,
        decay="cosine",
        label_dropout=0.0,
        seed=seed,
    )


def _fit(
    module: GenerativeModule,
    data: DataModule,
    folder: Path,
    steps: int,
    ema: float,
    options: dict[str, Any],
) -> None:
    """Trains to a number of steps, from the last checkpoint if there is one."""

    last = folder / "checkpoints" / "last.ckpt"
    keep = SafeCheckpoint(
        dirpath=folder / "checkpoints", every_n_train_steps=max(1, steps // 10), save_last=True
    )
    trainer = Trainer(
        **{
            "accelerator": "auto",
            "devices": 1,
            "max_steps": steps,
            "max_epochs": -1,
            "log_every_n_steps": 50,
            "gradient_clip_val": 1.0,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "logger": CSVLogger(folder, name="", version=""),
            "callbacks": [EMA(ema), LossGuard(), keep],
            "plugins": [SafeIO()],
            **options,
        }
    )
    set_aside(folder / "metrics.csv")
    trainer.fit(module, data, ckpt_path=last if last.exists() else None)


def _successor(
    pipe: Pipeline,
    module: GenerativeModule,
    folder: Path,
    steps: int,
    options: dict[str, Any],
) -> Pipeline:
    """The student as a pipeline, with averaged weights, saved."""

    rounds = int(pipe.card.get("rectified", 1)) + 1
    kept = {k: v for k, v in options.items() if isinstance(v, int | float | str)}
    made = Pipeline(
        module.denoiser,
        shape=tuple(pipe.shape),
        sampler="euler",
        steps=1,
        class_names=pipe.class_names,
        source=pipe.source,
        codec=pipe.codec,
        card={**pipe.card, "rectified": rounds, "training_steps": steps, "pairs": kept},
    )
    average = next(c for c in module.trainer.callbacks if isinstance(c, EMA))

    with average.average(module):
        made.save(folder / "pipeline", overwrite=True)

    return Pipeline.from_pretrained(folder / "pipeline")

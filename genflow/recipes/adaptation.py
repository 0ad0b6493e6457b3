r"""Domain adaptation of features: carried from another domain to where a classifier was trained.

A classifier is an encoder h and a head. On data of another domain the features h(x) follow another
law, and the head errs. A flow is trained from these features to those of the known domain, without
a label from either,

.. math:: Z_1 \sim \text{law of } h(x'), \qquad Z_0 \sim \text{law of } h(x),

and the fixed head is asked at the ends of its trajectories. The flow matches the *laws*; that
classes go to their own classes is hoped for, not known: it holds as far as the nearest way between
the laws keeps classes together. Where the shift is so strong that classes lie nearer to others,
or a linear map does it all, as `moments` and `coral` do, a flow brings nothing.

References:
    Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
    https://arxiv.org/abs/2209.03003

    Return of Frustratingly Easy Domain Adaptation (CORAL)
    https://arxiv.org/abs/1511.05547
"""

__all__ = ["Adapter", "accuracies", "adapt", "coral", "moments"]

from collections.abc import Callable
from dataclasses import dataclass
import tempfile
from typing import Any

from lightning.pytorch import Trainer
import torch
from torch import Tensor

from genflow.data.given import Given
from genflow.data.translation import Translation
from genflow.errors import UserError
from genflow.nn import MLP
from genflow.pipelines import Pipeline
from genflow.training import EMA, Coupling, LossGuard, OptimalTransport, RectifiedFlow

Head = Callable[[Tensor], Tensor]
"""From features with shape (n, d) to logits with shape (n, classes)."""


@dataclass(frozen=True)
class Adapter:
    """Carries features of the shifted domain to the known one.

    Attributes:
        flow: The flow, on features in units of the known domain.
        mean: The mean of the known features, with shape (d).
        std: Their standard deviation, with shape (d).
    """

    flow: Pipeline
    mean: Tensor
    std: Tensor

    def __call__(self, features: Tensor, **options: Any) -> Tensor:
        """The features where the head knows them.

        Args:
            features: Features of the shifted domain, with shape (n, d).
            options: The sampler, as in `Pipeline.translate`.

        Returns:
            The features at the other end of the flow, on their own device, with shape (n, d).
        """

        z = (features.detach().to(self.mean) - self.mean) / self.std
        return (self.flow.translate(z, **options).x * self.std + self.mean).to(features)


def adapt(
    known: Tensor,
    shifted: Tensor,
    *,
    steps: int = 1500,
    width: int = 128,
    depth: int = 3,
    coupling: Coupling | None = None,
    lr: float = 1e-3,
    batch_size: int = 128,
    ema: float = 0.995,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
) -> Adapter:
    r"""Trains a flow from the features of one domain to those of another.

    Args:
        known: Features of the domain that the head was trained on, with shape (n, d).
        shifted: Features of the other domain, with shape (m, d); no labels are needed.
        steps: The number of training steps, 1 or more.
        width: The number of hidden units.
        depth: The number of residual blocks.
        coupling: What pairs a batch; optimal transport if None, which keeps features near.
        lr: The learning rate, above 0; it falls as a cosine to 0.
        batch_size: The number of pairs in a step.
        ema: The decay of the averaged weights, in [0, 1).
        seed: Names the training, and the network that it begins with.
        trainer: Further arguments of Lightning's trainer.

    Returns:
        The adapter.

    Raises:
        UserError: If the features do not go together, or a value is out of its range.

    Example:
        >>> adapter = adapt(h(photographs), h(sketches))
        >>> head(adapter(h(new_sketches))).argmax(1)
    """

    _check(known, shifted)
    known, shifted = (f.detach().float().cpu() for f in (known, shifted))
    mean, std = known.mean(0), known.std(0).clamp_min(1e-6)
    data = Translation(
        Given((shifted - mean) / std),
        Given((known - mean) / std),
        batch_size=batch_size,
        seed=seed,
    )

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLP(known.shape[1], width=width, depth=depth)

    module = RectifiedFlow(
        net, coupling=coupling or OptimalTransport(), lr=lr, decay="cosine", seed=seed
    )
    average = EMA(ema)

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            **{
                "accelerator": "auto",
                "devices": 1,
                "max_steps": steps,
                "max_epochs": -1,
                "gradient_clip_val": 1.0,
                "logger": False,
                "enable_checkpointing": False,
                "enable_model_summary": False,
                "enable_progress_bar": False,
                "use_distributed_sampler": False,
                "default_root_dir": folder,
                "callbacks": [average, LossGuard()],
                **(trainer or {}),
            }
        ).fit(module, data)

    net.load_state_dict(net.state_dict() | average.weights())
    flow = Pipeline(
        module.denoiser.cpu(), (known.shape[1],), sampler="heun", steps=20, source="features"
    )
    return Adapter(flow, mean, std)


def moments(known: Tensor, shifted: Tensor, features: Tensor) -> Tensor:
    """Each feature shifted and scaled to the known mean and deviation: the plainest baseline.

    Args:
        known: Features of the known domain, with shape (n, d).
        shifted: Features of the other, with shape (m, d).
        features: The features to carry, with shape (k, d).
    """

    z = (features - shifted.mean(0)) / shifted.std(0).clamp_min(1e-6)
    return z * known.std(0) + known.mean(0)


def coral(known: Tensor, shifted: Tensor, features: Tensor, ridge: float = 1e-2) -> Tensor:
    r"""The linear map that matches mean and covariance.

    .. math:: \mu + (f - \mu') \, C'^{-1/2} C^{1/2}

    Args:
        known: Features of the known domain, with shape (n, d).
        shifted: Features of the other, with shape (m, d).
        features: The features to carry, with shape (k, d).
        ridge: What is added to both covariances, in units of their mean variance, above 0.
    """

    def power(x: Tensor, p: float) -> Tensor:
        C = torch.cov(x.T.double())
        C = C + ridge * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
        values, vectors = torch.linalg.eigh(C)
        return (vectors * values.pow(p)) @ vectors.T

    moved = (features - shifted.mean(0)).double() @ power(shifted, -0.5) @ power(known, 0.5)
    return moved.to(features.dtype) + known.mean(0)


@torch.no_grad()
def accuracies(
    head: Head, adapter: Adapter, known: Tensor, shifted: Tensor, features: Tensor, label: Tensor
) -> dict[str, float]:
    """The accuracy of a fixed head on features as they are, and carried in three ways.

    Args:
        head: The head.
        adapter: The adapter that was trained on ``known`` and ``shifted``.
        known: Features of the known domain, with shape (n, d).
        shifted: Features of the other, with shape (m, d).
        features: Further features of the other domain, held out, with shape (k, d).
        label: Their classes, with shape (k).

    Returns:
        The accuracies in [0, 1] by name: ``before``, ``moments``, ``coral``, ``flow``.
    """

    _check(known, shifted, features)
    ways = {
        "before": features,
        "moments": moments(known, shifted, features),
        "coral": coral(known, shifted, features),
        "flow": adapter(features),
    }
    return {name: float((head(f).argmax(1) == label).double().mean()) for name, f in ways.items()}


def _check(*features: Tensor) -> None:
    shapes = [tuple(f.shape) for f in features]

    if any(len(s) != 2 or s[0] < 2 for s in shapes) or len({s[1] for s in shapes}) > 1:
        raise UserError(
            f"features have shapes {', '.join(map(str, shapes))}: two or more vectors of the same "
            "length are needed from each domain."
        )

"""What training refuses, each in one sentence: options, data that do not fit, and divergence."""

__all__ = [
    "Diverged",
    "check_augment",
    "check_options",
    "check_unpaired",
    "diverged",
    "drops",
    "finite",
    "recompute",
    "wrong_classes",
    "wrong_record",
    "wrong_shape",
    "wrong_weights",
]

from collections.abc import Iterable, Mapping
import math
import os
from typing import Any

from lightning.pytorch import Trainer
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.dropout import _DropoutNd

from genflow.errors import UserError, nearest
from genflow.training.augment import FEATURES, Augmentation

DECAYS = ("none", "cosine")


class Diverged(UserError):
    """Training left the finite numbers."""


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the numbers that a module is trained with.

    Raises:
        UserError: If one is out of its range.
    """

    lr, betas, dropped = options["lr"], options["betas"], options["label_dropout"]

    if not (lr > 0 and math.isfinite(lr)):
        raise UserError(f"lr is {lr}: the learning rate must be above 0 (1e-4 to 1e-3 is usual).")
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(
            f"betas are {tuple(betas)}: two numbers in [0, 1) are needed (0.9, 0.999)."
        )
    if not options["weight_decay"] >= 0:
        raise UserError(f"weight_decay is {options['weight_decay']}: it must be 0 or more.")
    if options["decay"] not in DECAYS:
        raise UserError(f"decay is '{options['decay']}'{nearest(str(options['decay']), DECAYS)}")
    if not 0 <= dropped < 1:
        raise UserError(f"label_dropout is {dropped}: it must lie in [0, 1) (0.1 is usual).")
    for name in ("warmup", "seed"):
        if options[name] < 0:
            raise UserError(f"{name} is {options[name]}: it must be a whole number of 0 or more.")

    lot, backend = options["lot"], options["compile"]

    if lot is not None and lot < 1:
        raise UserError(f"lot is {lot}: it must be a divisor of the batch size, or left out.")
    if isinstance(backend, str):
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise UserError(f"compile is '{backend}'{nearest(backend, known)}")


def finite(weights: Iterable[Tensor]) -> bool:
    """Whether weights are finite numbers, with one look at the device.

    Weights that are cut over processes are looked at whole; all processes must ask.
    """

    held = [w.detach() for w in weights]
    cut = any(isinstance(w, DTensor) for w in held)  # an empty part has no largest entry
    size = nn.utils.get_total_norm(held, 2.0 if cut else math.inf)
    return bool((size.full_tensor() if cut else size).isfinite())


def recompute(net: nn.Module) -> None:
    """Lets a network compute its blocks again in the backward pass.

    Raises:
        UserError: If it cannot.
    """

    model = getattr(net, "model", net)

    if not getattr(model, "_supports_gradient_checkpointing", False):
        raise UserError(
            f"gradient_checkpointing is on, and a {type(model).__name__} has no blocks to compute "
            "again: leave it out."
        )

    model.enable_gradient_checkpointing()


def check_augment(augment: Augmentation | None, net: nn.Module) -> None:
    """Checks that a network can be told how its images were augmented.

    Raises:
        UserError: If it takes no label of an augmentation, or makes no images.
    """

    if augment is None:
        return

    shape, features = getattr(net, "shape", None), getattr(net, "augment", FEATURES)

    if shape is not None and len(shape) != 3:
        raise UserError(
            f"augment is given, and the network's samples have shape {tuple(shape)}: only images "
            "can be augmented, leave augment out."
        )
    if features != FEATURES:
        raise UserError(
            f"augment is given, and the network takes {features} features of it: set "
            f"model.net.init_args.augment to {FEATURES}."
        )


def check_unpaired(batch: Mapping[str, Tensor]) -> None:
    """Checks that augmented images do not come with an other end of their own.

    Raises:
        UserError: If they do.
    """

    if "z" in batch or "seed" in batch:
        raise UserError(
            "augment is given, and the batch brings pairs: an image that was moved no longer "
            "belongs to its other end, leave augment out."
        )


def wrong_shape(data: tuple[int, ...], net: tuple[int, ...]) -> UserError:
    """The error about data that are shaped unlike what the network takes."""

    args = "model.net.init_args."

    if len(data) == len(net) == 3:
        what = f"{data[0]} channels {data}"
        cure = [f"{args}channels to {data[0]}"] if data[0] != net[0] else []
        cure += [f"{args}size to {data[1]}"] if data[1:] != net[1:] else []
    elif len(data) == len(net) == 1:
        what, cure = f"{data[0]} features", [f"{args}features to {data[0]}"]
    else:
        what, cure = f"shape {data}", ["model.net to a network for this kind of data"]

    return UserError(f"the data has {what}, the network wants {net}: set {' and '.join(cure)}.")


def wrong_classes(data: int | None, net: int) -> UserError:
    """The error about labels that are unlike those that the network takes."""

    if data is None:
        return UserError(
            f"the data has no labels, the network wants {net} classes: remove "
            "model.net.init_args.classes, or give labelled data."
        )
    return UserError(
        f"the data has {data} classes, the network wants {net}: set model.net.init_args.classes "
        f"to {data}."
    )


def wrong_weights(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], where: str = "the checkpoint"
) -> UserError | None:
    """The error about weights that do not fit the network, or None if they fit."""

    odd = sorted(mine.keys() ^ theirs.keys())
    bent = [n for n in mine if n in theirs and mine[n].shape != theirs[n].shape]

    if not odd and not bent:
        return None

    if bent:
        name = bent[0]
        what = f"'{name}' is {tuple(theirs[name].shape)} there and {tuple(mine[name].shape)} here"
    else:
        what = f"it {'lacks' if odd[0] in mine else 'has'} '{odd[0]}'"

    return UserError(
        f"{where} is of another network: {what}, and {len(odd) + len(bent)} entries differ in "
        "all; build the network that the run was started with."
    )


def wrong_record(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> UserError | None:
    """The error about a checkpoint of another path or prediction, or None if they agree.

    Args:
        mine: The record of the denoiser in the config, as a checkpoint has it.
        theirs: That of the checkpoint; what it lacks is not compared.
    """

    here, there = _flat(mine), _flat(theirs)
    odd = [k for k in here if k in there and there[k] != here[k]]

    if not odd:
        return None
    if "path" in odd:
        odd = [k for k in odd if not k.startswith("path.")]

    values = ", ".join(f"{k} is {_brief(there[k])} there and {_brief(here[k])} here" for k in odd)
    return UserError(
        f"the checkpoint is of another model: {values}; resume with the values that the run was "
        "started with, or start a new run."
    )


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """The path's class and fields, then the fields of the denoiser, under one name each."""

    path = {"D": "inf", **record["path"]}  # a record without D is of Gaussian noise
    fields = {f"path.{k}": v for k, v in path.items() if k != "class"}
    rest = {k: record[k] for k in ("prediction", "clock", "sigma_data") if k in record}
    return {"path": path["class"], **fields, **rest}


def _brief(value: Any) -> str:
    return f"{len(value)} numbers" if isinstance(value, list) else str(value)


def diverged(trainer: Trainer, what: str) -> Diverged:
    """The error that says what is no longer finite, what to do, and what is left."""

    paths: set[str] = set()

    for callback in trainer.checkpoint_callbacks:
        found = (getattr(callback, k, "") for k in ("last_model_path", "best_model_path"))
        paths |= {p for p in (*found, *getattr(callback, "best_k_models", ())) if p}

    kept = max(filter(os.path.exists, paths), key=os.path.getmtime, default=None)
    rest = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint from before"

    return Diverged(
        f"{what}: lower model.lr, set trainer.gradient_clip_val to 1.0 or trainer.precision to "
        f"32-true, and look at the data; {rest}."
    )


def drops(module: nn.Module) -> bool:
    """Whether a module draws random masks in training: a dropout layer, or a rate it is given."""

    if isinstance(module, _DropoutNd):
        return module.p > 0

    rates = (vars(module).get(name, 0) for name in ("dropout", "dropout_p", "drop_prob"))
    return any(isinstance(r, float) and r > 0 for r in rates)

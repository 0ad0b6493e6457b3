"""References: what feature nets make of a data set, stored once."""

__all__ = ["VERBS"]

from typing import Any

from genflow.commands.choices import device_named
from genflow.errors import UserError


def make(
    data: str,
    feature: str | None = None,
    output: str | None = None,
    points: bool = True,
    inception_weights: str | None = None,
    channels: int | None = None,
    size: int | None = None,
    skip_unreadable: bool = False,
    device: str | None = None,
    overwrite: bool = False,
) -> None:
    """Look at a data set with feature nets, and keep what an evaluation needs of it.

    Args:
        data: digits, a torchvision set as in FashionMNIST:ROOT, a folder, a zip, or a .npz or .npy
            file.
        feature: Feature nets, with commas; those of "genflow evaluate" by default.
        output: A folder to store the references in; the cache folder of the user alone by default.
        points: Whether the features themselves are kept, which all metrics but the Fréchet
            distance need, and not their moments alone.
        inception_weights: The TorchScript file of the Inception network.
        channels: 1 or 3, to convert all images to grey or to colour.
        size: The side to which all images are brought.
        skip_unreadable: Whether image files that cannot be decoded are left out.
        device: cpu, cuda, ...; a GPU if there is one.
        overwrite: Whether references that are in the folder already are replaced.
    """

    from pathlib import Path

    from genflow.evaluation import opened, planned
    from genflow.evaluation.forms import Form
    from genflow.evaluation.references import reference_of

    source = opened(data, Form(channels, size), skip_unreadable=skip_unreadable)
    plan = planned(feature, "fd", source.shape, inception_weights=inception_weights)

    for name, net in plan.to(device_named(device)).nets.items():
        made = reference_of(source, net, points=points)
        if output is not None:
            made.save(Path(output) / name, overwrite=overwrite)
        print(_line(name, made))

    print(f"data: {len(source)} from {data}, sha256 {source.sha256[:12]}")
    if output is not None:
        print(f"references: {output}")


def show(folder: str) -> None:
    """Say what stored references are of.

    Args:
        folder: A folder that "genflow reference make" wrote.
    """

    from genflow.evaluation.references import References, is_reference

    if not is_reference(folder):
        raise UserError(
            f"'{folder}' holds no reference: make one by genflow reference make DATA --output "
            "FOLDER."
        )

    held = References(folder)
    shape = " × ".join(map(str, held.shape))
    print(f"data: {len(held)} of shape {shape}, sha256 {held.sha256}")

    for reference in held.held:
        print(_line(reference.feature, reference))


def _line(name: str, reference: Any) -> str:
    kept = "moments" if reference.points is None else "moments and points"
    parts = [
        reference.prefix,
        f"{len(reference.moments.mean)} wide",
        f"sha256 {reference.digest[:12]}",
        kept,
        f"resize {reference.resize}",
    ]
    return f"{name}: {', '.join(parts)}"


VERBS = {"make": make, "show": show}
"""The verbs of ``genflow reference``."""

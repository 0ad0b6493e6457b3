"""Bridges from the command line: data to data, the states between, and what a bridge is."""

__all__ = ["VERBS", "interpolate", "report", "translate"]

from collections.abc import Callable
from pathlib import Path
from typing import Any

from genflow.commands.choices import device_named
from genflow.errors import UserError


def translate(
    bridge: str,
    source: str,
    output: str = "translated.npy",
    seed: int = 0,
    label: str | None = None,
    batch_size: int = 4096,
    device: str | None = None,
) -> None:
    """Carry source points to the target, a draw for each.

    Args:
        bridge: A saved bridge, zoo:NAME, or the id of a repository of the Hugging Face hub.
        source: The points, an array (n, ...) in a .npy file, or in a .npz file as x.
        output: The .npy or .npz file to write to, points in the order of the source.
        seed: The first of n consecutive seeds, one a point.
        label: Classes to go round in, as in 3 or 0,1 or names; of a bridge with classes.
        batch_size: How many are drawn at a time; the points do not depend on it.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    pipe = _loaded(bridge, device)
    x = _array(source)
    made = pipe(x, seed=seed, label=_labels(label, len(x)), batch_size=batch_size)
    _write(output, x=made.x.numpy())
    print(f"{output}: {len(x)} points")


def interpolate(
    bridge: str,
    source: str,
    output: str = "paths.npz",
    times: list[float] | None = None,
    steps: int = 4,
    method: str = "kernel",
    seed: int = 0,
    label: str | None = None,
    batch_size: int = 4096,
    device: str | None = None,
) -> None:
    """Draw a path from each source point, and write the states on the way.

    Args:
        bridge: A saved bridge, zoo:NAME, or the id of a repository of the Hugging Face hub.
        source: The points at the first time, in a .npy file, or in a .npz file as x.
        output: The file to write to: states (times, n, ...), and in a .npz file the times.
        times: Decreasing times from 1 (source) to 0 (target), as in [1,0.5,0].
        steps: The number of equal steps from 1 to 0, if no times are given.
        method: kernel and bridge are exact on any times, euler is not.
        seed: The first of n consecutive seeds, one a point.
        label: Classes to go round in, as in 3 or 0,1 or names; of a bridge with classes.
        batch_size: How many are drawn at a time; the paths do not depend on it.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    if times is None and steps < 1:
        raise UserError(f"steps is {steps}: 1 or more are needed.")

    pipe = _loaded(bridge, device)
    x = _array(source)
    grid = times or [1 - i / steps for i in range(steps + 1)]
    options: dict[str, Any] = {"method": method, "batch_size": batch_size}
    path = pipe.trajectory(x, grid, seed=seed, label=_labels(label, len(x)), **options)
    _write(output, x=path.numpy(), times=grid)
    print(f"{output}: {len(x)} paths at {len(grid)} times")


def report(
    bridge: str,
    source: str | None = None,
    target: str | None = None,
    seed: int = 0,
    label: str | None = None,
    batch_size: int = 4096,
    device: str | None = None,
) -> None:
    """Say what a bridge is, and how well it carries a source to a target.

    Args:
        bridge: A saved bridge, zoo:NAME, or the id of a repository of the Hugging Face hub.
        source: Source points, in a .npy or .npz file: which components they use.
        target: Target points: how far the carried source is from them.
        seed: The first of n consecutive seeds, one a source point.
        label: Classes to go round in, as in 3 or 0,1 or names; of a bridge with classes.
        batch_size: How many are drawn at a time.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    pipe = _loaded(bridge, device)
    b = pipe.bridge
    rows: list[tuple[str, Any]] = [
        ("dimensions", b.dimension),
        ("components", b.components),
        ("covariance", b.covariance.kind),
        ("epsilon", f"{b.epsilon:g}"),
        ("classes", b.classes or "none"),
        *((key, value) for key, value in pipe.card.items()),
    ]

    if source is None and target is not None:
        raise UserError("target is given without a source: give the points to carry too.")
    if source is not None:
        x = _array(source)
        rows += _measured(pipe, x, target, seed, _labels(label, len(x)), batch_size)

    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        print(f"{key:<{width}}  {value}")


def _measured(
    pipe: Any, x: Any, target: str | None, seed: int, label: Any, batch_size: int
) -> list[tuple[str, str]]:
    """The components in use, and distances to the target beside its own floor."""

    import torch

    from genflow.metrics import energy_distance, sliced_wasserstein

    made = pipe(x, seed=seed, label=label, batch_size=batch_size)
    states = pipe.encoded(pipe.points(x).to(pipe.device))
    labels = None if made.label is None else made.label.to(pipe.device)
    weights = pipe.bridge.plan(states, label=labels).weights.mean(0)
    used = torch.special.entr(weights).sum().exp()
    rows = [("components in use", f"{float(used):.1f} (exponential of the entropy)")]

    if target is None:
        return rows

    y = pipe.points(_array(target), "target").flatten(1)
    halves = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))].chunk(2)

    if len(halves) < 2:
        raise UserError(f"target has {len(y)} points: two or more are needed.")

    for name, distance in (
        ("energy distance", energy_distance),
        ("sliced W2", sliced_wasserstein),
    ):
        ours, floor = distance(made.x.flatten(1), y), distance(*halves)
        before = distance(pipe.points(x).flatten(1), y)
        rows.append((name, f"{ours:.4g} (source {before:.4g}, halves of the target {floor:.4g})"))

    return rows


def _loaded(name: str, device: str | None) -> Any:
    from genflow.pipelines import BridgePipeline

    return BridgePipeline.from_pretrained(name, device=device_named(device))


def _labels(text: str | None, n: int) -> list[int | str] | None:
    """Classes gone round in for n points; numbers where they are numbers."""

    if text is None:
        return None

    names = [part.strip() for part in text.split(",")]
    return [names[i % len(names)] for i in range(n)]


def _array(file: str) -> Any:
    """The points in a file, of at least one dimension, bytes or of floating type."""

    import numpy as np

    try:
        held = np.load(file, allow_pickle=False)
        found = held if isinstance(held, np.ndarray) else held["x"]
    except KeyError:
        raise UserError(f"'{file}' holds no array x: save the points under that name.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read ({error}): a .npy or .npz is needed.") from None

    if found.ndim < 2 or found.dtype.kind not in "fiu":
        raise UserError(
            f"'{file}' holds an array of shape {found.shape} and type {found.dtype}: numbers with "
            "shape (n, ...) are needed."
        )

    kept = (np.float32, np.float64, np.uint8)  # of bytes, a bridge with a codec makes images
    return found if found.dtype in kept else found.astype(np.float32)


def _write(file: str, **arrays: Any) -> None:
    """Writes x alone to a .npy file, everything to a .npz file, whole or not at all."""

    import numpy as np

    from genflow.files import writing

    kind = Path(file).suffix

    if kind not in (".npy", ".npz"):
        raise UserError(f"output is '{file}': a name that ends in .npy or .npz is needed.")

    with writing(file) as part, part.open("wb") as stream:
        if kind == ".npy":
            np.save(stream, arrays["x"])
        else:
            np.savez(stream, **arrays)


VERBS: dict[str, Callable[..., None]] = {
    "translate": translate,
    "interpolate": interpolate,
    "report": report,
}
"""The verbs of ``genflow bridge``."""

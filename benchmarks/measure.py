"""Shared by the benchmarks: interleaved timing, counted kernels, tables, a JSON results file."""

from collections.abc import Callable
from datetime import UTC, datetime
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import statistics
import time
from typing import Any

from tables import show
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from genflow.files import write_text

GIVEN = os.environ.get("GENFLOW_RESULTS")
RESULTS = Path(GIVEN or Path(__file__).parent / "results")
"""Where results go; those of a quick run into its folder ``quick``, where none was given."""

VIEWS = {
    *("view", "_unsafe_view", "reshape", "select", "slice", "expand", "unsqueeze", "squeeze"),
    *("squeeze_", "unbind", "split", "split_with_sizes", "t", "transpose", "alias", "detach"),
    "as_strided",
}
READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique"}


def clock(device: str) -> Callable[[], float]:
    """CPU time of the process, or wall time after a synchronisation on a GPU."""

    def gpu() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return time.process_time if device == "cpu" else gpu


def contest(
    runs: dict[str, Callable[[Any], Any]], x: Any, rounds: int
) -> dict[str, dict[str, float]]:
    """Runs the contestants in turn, round after round; the first is the yardstick.

    Returns:
        For each the median seconds, the median ratio to the yardstick of the same round, its
        quartiles, and the median difference.
    """

    now = clock(x.device.type if isinstance(x, torch.Tensor) else "cpu")
    first = next(iter(runs))
    taken: dict[str, list[float]] = {name: [] for name in runs}

    for run in runs.values():
        run(x)

    for _ in range(rounds):
        for name, run in runs.items():
            start = now()
            run(x)
            taken[name].append(now() - start)

    out = {}

    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(seconds, taken[first], strict=True)]
        over = [a - b for a, b in zip(seconds, taken[first], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        out[name] = {
            "seconds": statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "low": low,
            "high": high,
            "over": statistics.median(over),
        }

    return out


class Counted(TorchDispatchMode):
    """Counts the operations that compute, and those that wait for a number on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        self.kernels += name not in VIEWS
        self.reads += name in READS
        return function(*args, **(kwargs or {}))


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Prints a table in Markdown."""

    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) for c, w in zip(cells, widths, strict=True)]
        return "| " + " | ".join(padded) + " |"

    print(line(header))
    print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    for row in rows:
        print(line(row))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""

    packages = ("genflow", "torch", "diffusers", "torchdiffeq", "torchcfm", "POT", "lightning")
    packages += ("torchvision", "pillow", "optuna", "scikit-learn")
    versions = {}

    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue

    model = ""
    info = Path("/proc/cpuinfo")

    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else ""

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def recorded(results: dict[str, Any], options: Any) -> dict[str, Any]:
    """Results with the machine, the date, the versions, and the options of the run."""

    return {"machine": machine(), "options": vars(options), **results}


def write_results(name: str, results: dict[str, Any], options: Any) -> None:
    """Prints the tables of a run, and writes ``NAME.json`` (``NAME-gpu.json`` on a GPU)."""

    record = recorded(results, options)
    show(name, record)

    device = getattr(options, "device", "cpu")
    folder = RESULTS / "quick" if getattr(options, "quick", False) and not GIVEN else RESULTS
    file = folder / f"{name}{'' if device == 'cpu' else '-gpu'}.json"
    write_text(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(
        f"\nwritten: {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}"
    )

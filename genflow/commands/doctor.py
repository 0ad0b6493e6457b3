"""What this machine has: versions, devices, caches, optional parts; and whether it computes."""

__all__ = ["doctor"]

from collections.abc import Callable, Mapping
from importlib import metadata
import json as jsons
import os
from pathlib import Path
import platform
import shutil
from typing import Any

NEEDED = (
    "torch",
    "torchvision",
    "diffusers",
    "accelerate",
    "safetensors",
    "torchdiffeq",
    "clean-fid",
    "lightning",
    "jsonargparse",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "pillow",
    "rich",
    "tensorboard",
)
"""The packages that genflow cannot do without."""

OPTIONAL = {
    "transformers": (
        "pipelines that draw from text, DINOv2 and CLIP as features",
        "pip install 'genflow[sd]'",
    ),
    "optuna": ("searching for schedules", "pip install 'genflow[search]'"),
    "cmaes": ("searching for times with CMA-ES", "pip install 'genflow[search]'"),
    "POT": ("coupling by Sinkhorn's algorithm", "pip install POT"),
    "triton": ("compile: true on a GPU", "pip install triton"),
}
"""The packages that it can do without: what for, and what installs them."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT")


def doctor(json: bool = False) -> int:
    """Say what this machine has, and check that it computes: exit code 0 if all is well, else 1.

    Args:
        json: Whether the findings are printed as JSON.
    """

    found = {
        "versions": _versions(),
        "devices": _devices(),
        "threads": _threads(),
        "caches": _caches(),
        "optional": _optional(),
        "checks": _checks(),
    }
    missing = [k for k, v in found["versions"].items() if v is None]
    failed = [k for k, v in found["checks"].items() if v != "ok"]
    found["healthy"] = not missing and not failed

    print(jsons.dumps(found, indent=1) if json else _page(found))

    return 0 if found["healthy"] else 1


def _page(found: Mapping[str, Any]) -> str:
    """The findings, for the eye."""

    lines: list[str] = []

    for title, rows in found.items():
        if isinstance(rows, Mapping):
            width = max(map(len, rows), default=0)
            lines += [title, *(f"  {k:<{width}}  {_words(v)}" for k, v in rows.items()), ""]

    verdict = "all is well" if found["healthy"] else "something is wrong: see above"
    return "\n".join([*lines, verdict])


def _words(value: Any) -> str:
    if value is None:
        return "MISSING"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items())
    return str(value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    from genflow.version import __version__

    own = {"genflow": __version__, "python": platform.python_version()}
    return {**own, "system": platform.platform(), **{name: _version(name) for name in NEEDED}}


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _devices() -> dict[str, Any]:
    """The processor and the accelerators, with their memory."""

    import torch

    found: dict[str, Any] = {"cpu": {"cores": os.cpu_count()}}

    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        found["cpu"]["memory"] = _gigabytes(page * os.sysconf("SC_PHYS_PAGES"))

    count = torch.cuda.device_count()
    seen = "" if count else ", and no GPU is seen"
    found["cuda"] = f"{torch.version.cuda}{seen}" if torch.version.cuda else "not built in"

    for k in range(count):
        free, total = torch.cuda.mem_get_info(k)
        found[f"cuda:{k}"] = {
            "name": torch.cuda.get_device_name(k),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(k))),
            "memory": _gigabytes(total),
            "free": _gigabytes(free),
            "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        }

    if torch.backends.mps.is_available():
        found["mps"] = "available"

    compiler = next((c for c in ("g++", "clang++", "cl") if shutil.which(c)), None)
    found["C++ compiler"] = compiler or "none, which compile: true needs on a CPU"
    return found


def _threads() -> dict[str, Any]:
    """How many threads torch uses, and what the environment says about them."""

    import torch

    said = {name: os.environ.get(name, "not set") for name in THREADS}
    return {"in an operation": torch.get_num_threads(), **said}


def _caches() -> dict[str, dict[str, Any]]:
    """Where weights and references are kept, how much of them there is, and what."""

    from huggingface_hub import constants
    import torch

    from genflow.files import cache_folder
    from genflow.shelves import models

    places = {
        "genflow": cache_folder(),
        "Hugging Face": Path(constants.HF_HUB_CACHE),
        "torch hub": Path(torch.hub.get_dir()),
    }
    compiled = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or _inductor())
    found = {name: _held(place) for name, place in places.items()}
    found["torch compile"] = {k: v for k, v in _held(compiled).items() if k != "holds"}
    return {**found, "zoo": {"models": ", ".join(models()) or "none"}}


def _inductor() -> str:
    """The folder where torch keeps what it has compiled, unless told otherwise."""

    import getpass
    import tempfile

    return str(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")


def _held(folder: Path) -> dict[str, Any]:
    """What a folder holds; links count as links."""

    if not folder.is_dir():
        return {"folder": str(folder), "holds": "nothing"}

    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    size = sum(
        Path(root, file).lstat().st_size for root, _, files in os.walk(folder) for file in files
    )
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return {"folder": str(folder), "size": _gigabytes(size), "holds": shown or "nothing"}


def _optional() -> dict[str, str]:
    """The optional packages: their versions, or what installs them."""

    found = {name: _version(name) for name in OPTIONAL}
    return {
        name: f"{found[name]}, for {use}" if found[name] else f"none; for {use}: {command}"
        for name, (use, command) in OPTIONAL.items()
    }


def _checks() -> dict[str, str]:
    """Small computations whose results are known: ``ok``, or what was found instead."""

    checks: dict[str, Callable[[], str]] = {
        "a step of DDIM, against its closed form": _step,
        "safetensors, there and back": _round_trip,
    }

    found: dict[str, str] = {}

    for name, check in checks.items():
        try:
            found[name] = check()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    return found


def _step() -> str:
    r"""One step from t to s for data that are N(m, v): the estimate and the step are formulas.

    On the straight path :math:`x_t = (1 - t) x + t z` the estimate is
    :math:`D = m + \frac{(1 - t) v}{(1 - t)^2 v + t^2} (x_t - (1 - t) m)`, and a first-order step
    keeps the noise :math:`(x_t - (1 - t) D)/t`.
    """

    import torch

    from genflow.models import Exact, Mixture, Rectified
    from genflow.solvers import Sampler, SolverSchedule, Step

    m, v, t, s = 0.3, 0.5, 0.8, 0.4
    law = (torch.tensor(rows, dtype=torch.float64) for rows in ([1.0], [[m]], [[v]]))
    denoiser = Exact(Rectified(), Mixture(*law))
    sampler = Sampler(denoiser, SolverSchedule((t, s), (Step(),)))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    D = m + (1 - t) * v / ((1 - t) ** 2 * v + t**2) * (x - (1 - t) * m)
    error = float((sampler(x) - ((1 - s) * D + s * (x - (1 - t) * D) / t)).abs().max())
    return "ok" if error < 1e-12 else f"off by {error:.1e}"


def _round_trip() -> str:
    """Tensors written as safetensors and read again, bit for bit."""

    from safetensors.torch import load, save
    import torch

    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    given = {str(kind): torch.linspace(-3, 3, 7).to(kind) for kind in kinds}
    back = load(save(given))
    return "ok" if all(torch.equal(given[k], back[k]) for k in given) else "other numbers"

r"""Teachers: what a solver with many steps makes of the same noise.

The error of a schedule is measured against the solution of the same probability-flow ODE from the
same noise. A teacher solves it by a Runge-Kutta method with many steps, or adaptively, on the
denoiser that is searched for; it stands for that denoiser, not for the data. The path's own habit
is kept at the end: the ODE is solved down to ``t_min``, and where samplers of this path go on to
clean data (``default_grid`` ends in "zero"), the denoised state is the target.

Targets are made once: with a folder they are kept under the digest of everything they depend on,
the weights of the network included.
"""

__all__ = ["Teacher", "digest_of", "trajectory"]

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
import hashlib
from itertools import pairwise
import json
import os
from pathlib import Path as FilePath
from typing import Any

from safetensors.torch import load_file, save
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.files import writing
from genflow.models.denoisers import Denoiser
from genflow.models.paths import broadcast
from genflow.models.records import path_to_dict
from genflow.search.population import Population
from genflow.solvers.registry import build, preset
from genflow.solvers.rollout import rollout
from genflow.solvers.tables import runge_kutta


@dataclass(frozen=True)
class Teacher:
    """A solver with many steps.

    Attributes:
        sampler: A name of the registry; ``"rk4"`` and ``"heun"`` take fixed steps, ``"dopri5"``
            chooses its own for each batch.
        steps: The number of steps, 1 or more; not read by adaptive solvers.
        grid: The kind of grid of times; the path's own if None.
        batch_size: How many samples are solved at a time; an adaptive solver's steps depend on
            them.

    Raises:
        UserError: If a value is not allowed.
    """

    sampler: str = "rk4"
    steps: int = 64
    grid: str | None = None
    batch_size: int = 1024

    def __post_init__(self) -> None:
        preset(self.sampler)
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(
                f"the teacher has steps {self.steps} and batch_size {self.batch_size}: both must "
                "be 1 or more."
            )

    def solve(
        self, population: Population, folder: str | os.PathLike[str] | None = None
    ) -> Tensor:
        r"""The targets of a population.

        Args:
            population: The noise, the conditions and the denoiser.
            folder: Where targets are kept; nowhere if None.

        Returns:
            The solutions, with shape (n, \*).
        """

        if folder is None:
            return self._solved(population)

        file = FilePath(folder) / f"teacher-{self._digest(population)}.safetensors"

        if file.exists():
            return load_file(file)["target"].to(population.z)

        target = self._solved(population)

        with writing(file) as part:
            part.write_bytes(save({"target": target.cpu().contiguous()}))

        return target

    def _solved(self, population: Population) -> Tensor:
        denoiser, path = population.denoiser, population.denoiser.path
        adaptive = preset(self.sampler).make is None
        options = {} if adaptive else {"grid": self.grid, "final": "min"}
        solver = build(self.sampler, denoiser, self.steps, **options)
        top = torch.tensor(path.t_max, dtype=torch.float64)
        low = torch.tensor(path.t_min, dtype=torch.float64)
        parts = []

        with torch.no_grad():
            for i in range(0, len(population), self.batch_size):
                rows = slice(i, i + self.batch_size)
                z = population.z[rows]
                cond = {k: v[rows] for k, v in population.cond.items()}
                x = solver(broadcast(path(top)[1].to(z), z) * z, **cond)
                if path.default_grid[1] == "zero":
                    x = denoiser(x, low.to(x), **cond)
                parts.append(x)

        return torch.cat(parts)

    def _digest(self, population: Population) -> str:
        total = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        total.update(digest_of(population.denoiser).encode())
        total.update(_bytes(population.z))

        for name, value in sorted(population.cond.items()):
            total.update(name.encode())
            total.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())

        return total.hexdigest()[:32]


def digest_of(denoiser: Denoiser) -> str:
    """The sha256 of a denoiser: its structure, its path, and every weight."""

    total = hashlib.sha256(repr(denoiser).encode())
    total.update(json.dumps(path_to_dict(denoiser.path)).encode())
    total.update(repr(_settings(denoiser)).encode())

    for name, value in denoiser.state_dict().items():
        total.update(name.encode())
        total.update(_bytes(value))

    return total.hexdigest()


def _settings(denoiser: Denoiser) -> list[Any]:
    """The plain fields of a denoiser and of those it wraps: a weight of guidance, a prediction."""

    plain = (bool, int, float, str, tuple)
    return [
        sorted((k, v) for k, v in vars(module).items() if isinstance(v, plain))
        for module in denoiser.modules()
        if isinstance(module, Denoiser)
    ]


def _bytes(value: Tensor) -> bytes:
    value = value.detach().cpu().contiguous()
    return (
        str((value.dtype, tuple(value.shape))).encode()
        + value.flatten().view(torch.uint8).numpy().tobytes()
    )


def trajectory(
    denoiser: Denoiser,
    z: Tensor,
    times: Sequence[float],
    cond: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""States and data estimates along the solution of the ODE.

    Args:
        denoiser: The denoiser.
        z: The noise of unit scale, with shape (n, \*).
        times: M + 1 decreasing times; the solver takes one step of Heun's method between them, or
            of Euler's to where the denoiser has no velocity.
        cond: Named conditions, each with n rows.

    Returns:
        The states at all times, with shape (M + 1, n, \*), and the data estimates at all but the
        last, with shape (M, n, \*).
    """

    path, cond = denoiser.path, dict(cond or {})
    times = tuple(times)
    states, data = [], []

    with torch.no_grad():
        x = broadcast(path(torch.tensor(times[0], dtype=torch.float64))[1].to(z), z) * z
        for t, s in pairwise(times):
            table = runge_kutta(path, (t, s), "heun", () if denoiser.regular(s) else (s,))
            now = torch.tensor(t, dtype=z.dtype, device=z.device)
            states.append(x)
            data.append(denoiser(x, now, **cond))
            velocity = [lambda x, t: denoiser.velocity(x, t, **cond)] * len(table.time)
            x = rollout(velocity, x, table)
        states.append(x)

    return torch.stack(states), torch.stack(data)

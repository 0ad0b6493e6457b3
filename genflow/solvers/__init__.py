"""How it is solved: schedules, the table they compile to, and the one loop."""

from genflow.solvers import adjoint
from genflow.solvers.adaptive import Adaptive
from genflow.solvers.adjoint import Continuous, Gradient, Truncated
from genflow.solvers.empirical import Statistics
from genflow.solvers.files import load_table, read_solver, save_table
from genflow.solvers.registry import PRESETS, build, register, schedule_for
from genflow.solvers.rollout import rollout
from genflow.solvers.samplers import Sampler
from genflow.solvers.schedules import Alteration, Corrector, SolverSchedule, Step
from genflow.solvers.statistics import estimate
from genflow.solvers.stress import shaken, shaken_table
from genflow.solvers.tableau import Tableau, stack, tabulate

__all__ = [
    "PRESETS",
    "Adaptive",
    "Alteration",
    "Continuous",
    "Corrector",
    "Gradient",
    "Sampler",
    "SolverSchedule",
    "Statistics",
    "Step",
    "Tableau",
    "Truncated",
    "adjoint",
    "build",
    "estimate",
    "load_table",
    "read_solver",
    "register",
    "rollout",
    "save_table",
    "schedule_for",
    "shaken",
    "shaken_table",
    "stack",
    "tabulate",
]

"""Who looks for the table: scores of schedules, spaces of schedules, and searches.

`genflow.search.spaces` says what a space and a score are, `genflow.search.evolve` is the loop,
`genflow.search.recipes` and `genflow.search.autodiffusion` are whole searches.
"""

__all__ = [
    "Archive",
    "Cached",
    "Entry",
    "Memory",
    "Population",
    "RankingPredictor",
    "Simulated",
    "SolverSpace",
    "StudyLedger",
    "Teacher",
    "evolve",
    "refine",
    "s3",
    "seeds_for",
]

from genflow.search.archive import Archive, Entry
from genflow.search.evolve import evolve
from genflow.search.ledger import Memory
from genflow.search.population import Population
from genflow.search.predictor import RankingPredictor
from genflow.search.recipes import s3
from genflow.search.refine import refine
from genflow.search.score import Cached, Simulated
from genflow.search.seeds import seeds_for
from genflow.search.study import StudyLedger
from genflow.search.teachers import Teacher
from genflow.search.usf import SolverSpace

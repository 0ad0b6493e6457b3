"""The tables of the benchmarks, from their results alone.

A benchmark prints what it found by these functions, and ``benchmarks/run.py`` writes the same into
``benchmarks/README.md``, between comments that name the table::

    <!-- table: sampling -->
    ...
    <!-- end -->

so what is printed, what is kept in ``results/NAME.json`` and what the page shows are one thing. A
table is a function from such a record to Markdown, with a line below it that says when and where
it was measured, who the peer is and in which version, and what the ratio is to. Results of a GPU,
``results/NAME-gpu.json``, are shown by the same function between marks with the name ``NAME-gpu``.
"""

__all__ = ["TABLES", "found", "markdown", "plain", "rendered", "show", "stale", "written"]

from tables import bridges, learning, metrics, sampling, search, zoo  # noqa: F401
from tables.entries import TABLES, found, markdown, show
from tables.page import plain, rendered, stale, written

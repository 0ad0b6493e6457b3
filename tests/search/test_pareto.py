"""NSGA-II's order: layers by brute force, ends and gaps before crowds."""

import math

import numpy as np

from genflow.search.archive import Archive, Entry
from genflow.search.pareto import layers, spread
from genflow.solvers import SolverSchedule, Step

ANY = SolverSchedule((1.0, 0.0), (Step(),))


def entries(pairs):
    return [Entry(i, ANY, value, cost=cost) for i, (cost, value) in enumerate(pairs)]


def beats(a, b):
    no_worse = a.cost <= b.cost and a.value <= b.value
    return no_worse and (a.cost < b.cost or a.value < b.value)


def test_layers_are_what_no_other_beats():
    rng = np.random.default_rng(0)
    points = entries(rng.integers(0, 12, (60, 2)).astype(float).tolist())
    found = layers(points)
    assert sorted(e.number for layer in found for e in layer) == list(range(60))
    rest = points
    for layer in found:
        wanted = {(e.cost, e.value) for e in rest if not any(beats(other, e) for other in rest)}
        assert {(e.cost, e.value) for e in layer} == wanted
        taken = {e.number for e in layer}
        rest = [e for e in rest if e.number not in taken]


def test_parents_spread_over_the_front():
    front = [(1.0, 9.0), (2.0, 8.9), (2.1, 8.8), (5.0, 4.0), (9.0, 1.0)]
    behind = [(9.5, 9.5), (9.6, 9.4)]
    archive = Archive([*entries(front + behind), Entry(99, ANY, math.nan, cost=0.0)])
    assert [e.number for e in spread(archive, 3)] == [0, 4, 3]
    assert {e.number for e in spread(archive, 5)} == {0, 1, 2, 3, 4}
    assert {e.number for e in spread(archive, 6)} - {0, 1, 2, 3, 4} == {5}
    assert len(spread(archive, 50)) == 7
    assert spread(Archive(), 3) == []


def test_twins_do_not_share_a_layer():
    twins = entries([(1.0, 1.0), (1.0, 1.0), (2.0, 0.5)])
    assert [[e.number for e in layer] for layer in layers(twins)] == [[0, 2], [1]]

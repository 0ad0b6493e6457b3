"""Curves show the mean of their repeats, and a band from end to end."""

import math

import numpy as np
import pytest

from genflow import viz
from genflow.errors import UserError

A = {0.0: [1.0, 3.0], 0.2: [4.0, 8.0], 0.1: [2.0, 2.0]}
B = {0.0: [2.0], 0.1: [5.0]}


def test_lines_are_means_in_order_and_bands_reach_the_ends():
    figure = viz.curves({"noise": {"a": A, "b": B}}, xlabel="α", ylabel="distance")
    (axes,) = figure.axes
    first, second = axes.lines[:2]
    np.testing.assert_allclose(first.get_xydata(), [[0, 2], [0.1, 2], [0.2, 6]])
    np.testing.assert_allclose(second.get_xydata(), [[0, 2], [0.1, 5]])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax, band.xmin, band.xmax) == (1.0, 8.0, 0.0, 0.2)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "0.1", "0.2"]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("noise", "α", "distance")


def test_a_curve_keeps_its_colour_and_is_named_once():
    figure = viz.curves({"one": {"a": A, "b": B}, "two": {"b": B}, "3": {"a": A}, "4": {"a": A}})
    assert len(figure.axes) == 4
    colours = {axes.get_title(): [line.get_color() for line in axes.lines] for axes in figure.axes}
    assert colours["two"] == colours["one"][1:] != colours["3"] == colours["one"][:1]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]


def test_scales_and_marks():
    figure = viz.curves(
        {"x": {"a": A}}, xscale="linear", yscale="log", marks={"floor": 1.5, "top": 9.0}
    )
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [1.5, 9.0]
    viz.image_of(figure)
    assert {"1", "2", "5"} <= {t.get_text() for t in axes.get_yticklabels()}
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "floor", "top"]


def test_what_is_not_finite_is_left_out():
    figure = viz.curves({"x": {"a": {1: [math.nan, 2.0], 2: [math.inf], 3: [4.0, 6.0]}}})
    y = figure.axes[0].lines[0].get_ydata()
    assert y[0] == 2.0 and math.isnan(y[1]) and y[2] == 5.0
    assert viz.image_of(figure).mode == "RGB"


def test_nothing_to_draw_is_said():
    with pytest.raises(UserError, match="panels is empty"):
        viz.curves({})
    with pytest.raises(UserError, match="'a' of 'x' has no values"):
        viz.curves({"x": {"a": {}}})
    with pytest.raises(UserError, match="'b' of 'x' has no values"):
        viz.curves({"x": {"a": A, "b": {1.0: []}}})

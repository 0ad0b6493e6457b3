"""Pictures are made of what they are given; looks are for people."""

import numpy as np
from PIL import Image
import torch

from genflow import viz
from genflow.models import Rectified, VariancePreserving
from genflow.solvers import Corrector, SolverSchedule, Step, schedule_for


def test_a_grid_shows_every_image_in_its_place():
    images = torch.arange(6, dtype=torch.uint8).mul(40).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    grid = np.asarray(viz.grid_of(images, columns=3, scale=2))
    assert grid.shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    centres = [grid[10 + 18 * r, 10 + 18 * c, 0] for r in range(2) for c in range(3)]
    assert centres == [0, 40, 80, 120, 160, 200]
    assert grid[0, 0, 0] == 128, "the frame"


def test_colours_stay_colours():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    images[:, 0] = 255
    assert np.asarray(viz.grid_of(images, scale=1))[3, 3].tolist() == [255, 0, 0]


def test_a_cloud_is_drawn_where_the_points_are():
    picture = viz.cloud(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    assert isinstance(picture, Image.Image) and picture.mode == "RGB"
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 5


def test_a_score_has_a_note_a_step_and_says_what_it_costs():
    schedule = SolverSchedule(
        (1.0, 0.6, 0.3, 0.0),
        (Step(correct=Corrector()), Step(order=2, predict="noise", relax=0.1), Step(start=1)),
    )
    figure = viz.score(schedule, Rectified())
    assert figure.axes[0].get_title(loc="left").startswith("3 steps, 3 calls")
    labels = " ".join(t.get_text() for t in figure.legends[0].get_texts())
    assert all(word in labels for word in ("data", "noise", "correct"))
    assert "empirical" not in labels

    unipc = viz.score(schedule_for("unipc", VariancePreserving(), 8), VariancePreserving())
    assert unipc.axes[0].get_title(loc="left").startswith("8 steps, 8 calls")


def test_a_journey_has_four_panels_in_one_frame():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 3, generator=g), torch.randn(300, 3, generator=g) * 0.2 + 3
    t = torch.linspace(0, 1, 5)[:, None, None]
    picture = np.asarray(viz.journey(x, y, (1 - t) * x + t * y, names=("from", "to")))
    wide = picture.shape[1]
    assert wide > 3 * picture.shape[0]
    blue = (picture[..., 2].astype(int) - picture[..., 0] > 60).any(0).nonzero()[0]
    red = (picture[..., 0].astype(int) - picture[..., 2] > 60).any(0).nonzero()[0]
    assert blue.min() < wide / 4 and not ((blue > wide / 4) & (blue < wide * 3 / 4)).any()
    assert red.min() > wide / 2 and red.max() > wide * 3 / 4


def test_costs_have_a_panel_for_each_price_and_a_line_for_each_way():
    found = {"exact": {10: 55.0, 50: 58.0}, "autograd": {10: 404.0, 50: float("nan")}}
    figure = viz.costs(
        {"memory": found, "error": {"exact": {10: 0.0, 50: 0.0}, "euler": {10: 1.0}}}
    )
    memory, error = figure.axes
    assert [line.get_ydata().tolist() for line in memory.lines] == [[55.0, 58.0], [404.0]]
    assert error.lines[0].get_ydata().tolist() == [0.5, 0.5], "0 stands on the lower edge"
    assert memory.lines[0].get_color() == error.lines[0].get_color()
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["exact", "autograd", "euler"]

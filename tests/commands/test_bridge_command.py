"""``genflow bridge``: arrays in, arrays out, and a report."""

from lightsb import bridge
import numpy as np
import pytest
import torch

from genflow.cli import main
from genflow.models import LightBridge
from genflow.pipelines import BridgePipeline


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pipe():
    pipe = BridgePipeline(bridge("full", K=3), card={"data": "two blobs"})
    pipe.save("b")
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(3))
    np.save("x.npy", x.numpy())
    return pipe


def run(capsys, *arguments):
    code = main(["bridge", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_translate(pipe, capsys):
    code, out, _ = run(capsys, "translate", "b", "x.npy", "--output", "y.npy", "--seed", "4")
    assert code == 0 and out == "y.npy: 50 points\n"
    made = np.load("y.npy")
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, pipe(np.load("x.npy"), seed=4).x, rtol=1e-6)
    # .npz files go in and out
    np.savez("x.npz", x=np.load("x.npy").astype(np.float64))
    code, _, _ = run(capsys, "translate", "b", "x.npz", "--output", "y.npz", "--seed", "4")
    assert code == 0 and np.load("y.npz")["x"].dtype == np.float64
    np.testing.assert_allclose(np.load("y.npz")["x"], made, atol=1e-5)


def test_translate_by_class(capsys):
    parts = [bridge("diagonal", seed=i) for i in (1, 2)]
    pipe = BridgePipeline(LightBridge.joined(parts), class_names=("up", "down"))
    pipe.save("b")
    np.save("x.npy", np.zeros((4, 2)))
    code, _, _ = run(capsys, "translate", "b", "x.npy", "--label", "up,1")
    assert code == 0
    expected = pipe(torch.zeros(4, 2).double(), seed=0, label=[0, 1, 0, 1]).x
    np.testing.assert_allclose(np.load("translated.npy"), expected)


def test_interpolate(pipe, capsys):
    code, out, _ = run(capsys, "interpolate", "b", "x.npy", "--steps", "2", "--seed", "4")
    assert code == 0 and out == "paths.npz: 50 paths at 3 times\n"
    held = np.load("paths.npz")
    np.testing.assert_allclose(held["times"], [1.0, 0.5, 0.0])
    expected = pipe.trajectory(np.load("x.npy"), (1.0, 0.5, 0.0), seed=4)
    np.testing.assert_allclose(held["x"], expected, rtol=1e-5)
    arguments = ("--times", "[0.9,0.1]", "--method", "bridge", "--output", "p.npy")
    code, _, _ = run(capsys, "interpolate", "b", "x.npy", *arguments)
    assert code == 0 and np.load("p.npy").shape == (2, 50, 2)


def test_report(pipe, capsys):
    code, out, _ = run(capsys, "report", "b")
    assert code == 0 and "components  3" in out and "epsilon     0.5" in out
    assert "two blobs" in out
    np.save("y.npy", pipe(np.load("x.npy"), seed=99).x.numpy())
    code, out, _ = run(capsys, "report", "b", "--source", "x.npy", "--target", "y.npy")
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert code == 0 and 1 <= float(lines["components in use"].split()[0]) <= 3
    ours, rest = lines["energy distance"].strip().split(" (source ")
    assert float(ours) < 0.5 * float(rest.split(",")[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("translate", "nowhere", "x.npy"), "pipeline 'nowhere' is no folder"),
        (("translate", "b", "z.npy"), "'z.npy' cannot be read"),
        (("translate", "b", "x.npy", "--output", "y.csv"), "output is 'y.csv'"),
        (("translate", "b", "x.npy", "--label", "1"), "this bridge has no classes"),
        (("translate", "b", "text.npy"), "numbers with shape (n, ...) are needed"),
        (("translate", "b", "line.npy"), "array of shape (3,)"),
        (("translate", "b", "named.npz"), "holds no array x"),
        (("translate", "b", "wide.npy"), "x has shape (2, 5)"),
        (("interpolate", "b", "x.npy", "--steps", "0"), "steps is 0"),
        (("interpolate", "b", "x.npy", "--times", "[0,1]"), "two or more that decrease"),
        (("interpolate", "b", "x.npy", "--method", "heun"), "method is 'heun'"),
        (("report", "b", "--target", "x.npy"), "target is given without a source"),
        (("report", "b", "--source", "x.npy", "--target", "wide.npy"), "target has shape (2, 5)"),
        (("carry", "b"), "bridge verb is 'carry'"),
    ],
)
def test_bad_values(pipe, capsys, arguments, says):
    np.save("text.npy", np.array([["a"]]))
    np.save("line.npy", np.zeros(3))
    np.save("wide.npy", np.zeros((2, 5)))
    np.savez("named.npz", y=np.zeros((2, 2)))
    code, _, err = run(capsys, *arguments)
    assert code == 2 and says in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_other_commands_send_a_bridge_away(pipe, capsys, command):
    code = main([command, "b"])
    _, err = capsys.readouterr()
    assert code == 2 and "'b' is a bridge from data to data: use genflow bridge translate" in err

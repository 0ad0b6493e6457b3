"""Flows between data sets: there and back, jobs, records, and clocks that run the other way."""

import json

import diffusers
import foreign
import numpy as np
from PIL import Image
import pytest
import torch

from genflow.data import to_float
from genflow.errors import UserError
from genflow.models import Karras, Preconditioned, Rectified
from genflow.nn import MLP
from genflow.pipelines import Pipeline
from genflow.pipelines.adapters import adapt, denoiser_of
from genflow.pipelines.jobs import generate
from genflow.pipelines.pairs import make_pairs
from genflow.pipelines.translations import translate
from genflow.solvers import Adaptive


def between(pipe, **options):
    return Pipeline(
        pipe.denoiser, pipe.shape, source="Here", class_names=pipe.class_names, **options
    )


def stirred(pipe):
    """With every weight moved: fresh networks are nearly zero at their ends."""

    foreign.randomised(pipe.denoiser.net, 0.05)
    return pipe


@pytest.fixture
def constant():
    """A flow whose velocity is (1, −2) everywhere: it leads z to z − (1, −2)."""

    net = MLP(2, width=8, depth=1)
    last = net.model.leave[-1]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([1.0, -2.0])
    return Pipeline(Preconditioned(net, Rectified()), (2,), source="Here", sampler="heun", steps=3)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m", "unipc", "dopri5"])
def test_there_and_back(constant, sampler):
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    there = constant.translate(z, sampler=sampler, steps=4)
    torch.testing.assert_close(there.x, z - torch.tensor([1.0, -2.0]), rtol=1e-4, atol=1e-4)
    back = constant.translate(there.x, reverse=True, sampler=sampler, steps=4)
    torch.testing.assert_close(back.x, z, rtol=1e-4, atol=1e-4)
    assert there.seeds == [] and there.sampler == sampler


def test_the_way_back_is_that_of_the_accurate_solver(vectors):
    """On a flow that bends: dopri5 returns, and agrees with `Adaptive.encode`."""

    pipe = stirred(vectors)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(2)).double()
    pipe.denoiser.double()
    options = {"sampler": "dopri5", "rtol": 1e-9, "atol": 1e-9}
    back = pipe.translate(x, reverse=True, **options).x
    encoded = Adaptive(pipe.denoiser, rtol=1e-9, atol=1e-9).encode(x)
    torch.testing.assert_close(back, encoded, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(pipe.translate(back, **options).x, x, rtol=1e-6, atol=1e-7)
    assert float((back - x).abs().max()) > 0.05

    step = pipe.translate(x, reverse=True, sampler="euler", steps=1).x
    truth = x + pipe.denoiser.velocity(x, torch.tensor(0.0).double())
    torch.testing.assert_close(step, truth)


def test_states_may_be_bytes_and_batches_do_not_matter(pipe):
    pipe = stirred(between(pipe, sampler="euler", steps=2))
    x = torch.randint(0, 256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(3)).byte()
    a = pipe.translate(x, label="bee")
    b = pipe.translate(to_float(x), label=1, batch_size=2)
    torch.testing.assert_close(a.x, b.x, rtol=1e-5, atol=1e-5)
    assert a.label.tolist() == b.label.tolist() == [1] * 5 and len(a.images) == 5
    assert pipe.translate(x[:0]).x.shape == (0, 1, 8, 8)


def test_a_source_is_remembered(constant, vectors, tmp_path):
    constant.save(tmp_path / "a")
    again = Pipeline.from_pretrained(tmp_path / "a")
    z = torch.randn(3, 2)
    assert again.source == "Here" and torch.equal(again.translate(z).x, constant.translate(z).x)

    vectors.save(tmp_path / "b")
    file = tmp_path / "b" / "model_index.json"
    record = json.loads(file.read_text())
    del record["source"]
    file.write_text(json.dumps(record))
    assert Pipeline.from_pretrained(tmp_path / "b").source is None


def test_seeds_are_no_data(constant, tmp_path):
    for call in (
        lambda: constant(16),
        lambda: list(constant.batches([1, 2])),
        lambda: generate(constant, tmp_path / "g", [1]),
        lambda: make_pairs(constant, tmp_path / "p", 4),
    ):
        with pytest.raises(UserError, match=r"from data \(Here\).*pipe.translate"):
            call()
    assert not list(tmp_path.iterdir())


def test_translations_that_cannot_be(constant, vectors):
    karras = Preconditioned(MLP(2, 8, 1), Karras(), "karras")
    for words, call in (
        (r"x has samples of shape \(3,\)", lambda: constant.translate(torch.zeros(2, 3))),
        ("batch_size is 0", lambda: constant.translate(torch.zeros(2, 2), batch_size=0)),
        ("needs the straight path", lambda: Pipeline(karras, (2,), source="Here")),
        (
            "cannot be turned round",
            lambda: Pipeline(karras, (2,)).translate(torch.zeros(1, 2), reverse=True),
        ),
        (
            "adds fresh noise",
            lambda: constant.translate(torch.zeros(2, 2), sampler="euler-maruyama", steps=3),
        ),
        ("no classes", lambda: constant.translate(torch.zeros(2, 2), label=1)),
    ):
        with pytest.raises(UserError, match=words):
            call()


# ------------------------------------------------------------------------------------- jobs


def test_a_job_shows_before_and_after_and_goes_on(pipe, tmp_path):
    pipe = stirred(between(pipe, sampler="euler", steps=2))
    x = torch.randint(0, 256, (7, 1, 8, 8), generator=torch.Generator().manual_seed(3)).byte()
    label = pipe.labels(None, 7)
    out = tmp_path / "out"
    meta = translate(pipe, out, x, numbers=range(10, 17), label=label, batch_size=3)
    made = pipe.translate(x, label=label.tolist()).uint8

    for k in range(7):
        png = np.asarray(Image.open(out / f"images/{k:06d}.png"))
        assert np.abs(png.astype(int) - made[k, 0].numpy()).max() <= 1
    assert [e["source"] for e in meta["images"]] == list(range(10, 17))
    assert (meta["status"], meta["reverse"], meta["nfe"]) == ("done", False, 2)

    grid = np.asarray(Image.open(out / "grid.png").convert("L"))
    tile = grid[2:50, 2:50][3::6, 3::6]
    after = grid[2:50, 52:100][3::6, 3::6]
    assert np.array_equal(tile, x[0, 0].numpy())
    assert np.abs(after.astype(int) - made[0, 0].numpy()).max() <= 1

    with pytest.raises(UserError, match="not empty"):
        translate(pipe, out, x, label=label)
    (out / "images/000004.png").unlink()
    stamp = (out / "images/000003.png").stat().st_mtime_ns
    translate(pipe, out, x, numbers=range(10, 17), label=label, resume=True)
    assert (out / "images/000004.png").exists()
    assert (out / "images/000003.png").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="another examples"):
        translate(pipe, out, 255 - x, numbers=range(10, 17), label=label, resume=True)


def test_a_job_on_vectors(constant, tmp_path):
    z = torch.randn(40, 2)
    translate(constant, tmp_path / "v", z)
    made = np.load(tmp_path / "v" / "samples.npy")
    np.testing.assert_allclose(made, (z - torch.tensor([1.0, -2.0])).numpy(), atol=1e-5)
    assert (tmp_path / "v" / "cloud.png").exists()


# ----------------------------------------------------------------------------------- clocks


def test_a_reversed_clock_is_refused_until_it_is_named():
    """diffusers' own loop with inverted sigmas, step by step, is our Euler with the name."""

    unet = foreign.unet()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)

    with pytest.raises(UserError, match="from noise at 0 to data at 1, say reverse=True"):
        denoiser_of(unet, scheduler.config)

    N = 6
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = [1 - i / N for i in range(N)]
    scheduler.set_timesteps(sigmas=sigmas)
    theirs = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(unet(theirs, t).sample, t, theirs).prev_sample

    stock = diffusers.DDPMPipeline(unet, scheduler)
    pipe = adapt(stock, reverse=True)
    ours = pipe.sample(x, sampler="euler", steps=N, grid="uniform")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (pipe.denoiser.prediction, pipe.denoiser.clock) == ("reverse-flow", "reverse-thousand")


def test_a_reversed_clock_is_kept_and_belongs_to_flows(tmp_path):
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    stock = diffusers.DDPMPipeline(foreign.unet(), flow)
    stock.save_pretrained(tmp_path / "stock")
    pipe = Pipeline.from_pretrained(tmp_path / "stock", reverse=True)
    pipe.save(tmp_path / "ours")
    again = Pipeline.from_pretrained(tmp_path / "ours")
    assert again.denoiser.clock == "reverse-thousand"
    options = {"seed": 0, "sampler": "euler", "steps": 2}
    assert torch.equal(pipe(1, **options).x, again(1, **options).x)
    assert not torch.equal(
        Pipeline.from_pretrained(tmp_path / "stock")(1, **options).x, again(1, **options).x
    )

    with pytest.raises(UserError, match="reverse is True, but .* its own"):
        Pipeline.from_pretrained(tmp_path / "ours", reverse=True)
    with pytest.raises(UserError, match="not that of a flow"):
        denoiser_of(foreign.unet(), diffusers.DDPMScheduler().config, reverse=True)


def test_turning_twice_changes_nothing(vectors):
    d = stirred(vectors).denoiser
    twice = d.turned().turned()
    assert (twice.prediction, twice.clock) == (d.prediction, d.clock)
    x, s = torch.randn(4, 2), torch.rand(4)
    torch.testing.assert_close(d.turned().velocity(x, s), -d.velocity(x, 1 - s))

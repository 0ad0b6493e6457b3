"""Reflow straightens, distillation needs one step, pairs are whole, and killed jobs go on."""

import json

import numpy as np
import pytest
import torch

from genflow.data import Manifest, Pairs, PairStore, Toy
from genflow.errors import UserError
from genflow.metrics.distances import energy_distance
from genflow.models import Karras, Preconditioned
from genflow.nn import MLP
from genflow.pipelines import Pipeline
from genflow.pipelines.pairs import fingerprint, make_pairs
from genflow.recipes import distill, reflow
from genflow.solvers.straightness import flow_report
from genflow.training import GenerativeModule, Grid, Perceptual, RectifiedFlow, Taught

QUIET = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def teacher():
    """A flow from noise to two moons that has been trained for a moment."""

    from lightning.pytorch import Trainer

    torch.manual_seed(0)
    net = MLP(2, width=64, depth=2)
    module = RectifiedFlow(net, lr=3e-3, decay="cosine", seed=1)
    data = Toy("moons", size=4000, batch_size=128)
    trainer = Trainer(
        max_steps=400,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **QUIET,
    )
    trainer.fit(module, data)
    return Pipeline(module.denoiser, shape=(2,), sampler="heun", steps=20)


HEUN = {"sampler": "heun", "steps": 10}


@pytest.fixture(scope="module")
def successor(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reflow")
    options = {"pairs": 2000, "steps": 300, "lr": 2e-3, "batch_size": 128, "ema": 0.97}
    return reflow(teacher, folder, pair_options=HEUN, trainer=QUIET, **options), folder


def one_step(pipe, n=1000):
    return pipe(n, seed=50_000, sampler="euler", steps=1, grid="uniform").x


def test_reflow_straightens(teacher, successor):
    """The successor is straighter, costs no more, and one step of it is close to the data."""

    made, _ = successor
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(7))
    before, after = (flow_report(p.denoiser, z, batch_size=1000) for p in (teacher, made))
    assert after.straightness < before.straightness / 5
    assert after.error[1] < before.error[1] / 3
    assert after.cost[2.0] < 1.05 * before.cost[2.0]

    data = Toy("moons", size=1000, seed=9).reference()
    far, near = (float(energy_distance(one_step(p), data)) for p in (teacher, made))
    assert near < far / 5


def test_the_successor_says_what_it_is(successor):
    made, folder = successor
    assert (made.sampler, made.steps, made.card["rectified"]) == ("euler", 1, 2)
    assert made.card["pairs"] == HEUN
    again = Pipeline.from_pretrained(folder / "pipeline")
    assert torch.equal(made(4, seed=0).x, again(4, seed=0).x)


def test_distillation_is_for_one_step(successor, tmp_path):
    """On the successor's own pairs one step of the student is nearer than one of the teacher."""

    made, _ = successor
    student = distill(
        made,
        tmp_path / "d",
        k=1,
        pairs=2000,
        steps=200,
        lr=1e-3,
        ema=0.98,
        batch_size=256,
        pair_options=HEUN,
        trainer=QUIET,
    )
    assert (student.steps, student.card["distilled_for"]) == (1, 1)
    truth = made(500, seed=90_000, sampler="heun", steps=20).x

    def off(p):
        x = p(500, seed=90_000, sampler="euler", steps=1, grid="uniform").x
        return float((x - truth).square().mean())

    assert off(student) < off(made)
    assert Pipeline.from_pretrained(tmp_path / "d" / "pipeline").steps == 1


def test_online_reflow(teacher, tmp_path):
    data = Toy("moons", size=500, batch_size=64)
    made = reflow(teacher, tmp_path / "o", steps=150, lr=1e-3, ema=0.9, online=data, trainer=QUIET)
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(7))
    before, after = (flow_report(p.denoiser, z, batch_size=500) for p in (teacher, made))
    assert after.straightness < before.straightness
    assert not (tmp_path / "o" / "pairs").exists()

    with pytest.raises(UserError, match=r"shape \(1, 8, 8\) and the pipeline \(2,\)"):
        from genflow.data import Digits

        reflow(teacher, tmp_path / "p", online=Digits(), trainer=QUIET)


def test_a_taught_batch(teacher):
    sampler = teacher.build(sampler="euler", steps=3)
    z = torch.randn(5, 2)
    x, same = Taught(sampler)(torch.zeros(5, 2), z)
    assert torch.equal(same, z) and torch.equal(x, sampler(z))


# ------------------------------------------------------------------------------------ pairs


def pairs(pipe, folder, n=50, **options):
    return make_pairs(pipe, folder, n, seed=3, shard_size=16, **{**HEUN, **options})


def test_a_pair_is_a_noise_and_its_sample(teacher, tmp_path):
    """The noise that training draws from a seed is the one that the teacher started from."""

    pairs(teacher, tmp_path / "p")
    store = PairStore(tmp_path / "p")
    batch = store[[49, 0, 17]]
    direct = teacher(seeds=[52, 3, 20], **HEUN).x
    torch.testing.assert_close(batch["x"], direct, rtol=0, atol=1e-6)
    assert len(store) == 50 and "z" not in batch

    module = RectifiedFlow(MLP(2, width=8, depth=1))
    x, z, *_ = module.draw(batch, module._source("train", 0, 0, 0))
    sampler = teacher.build(**HEUN)
    torch.testing.assert_close(sampler(z), x, rtol=0, atol=1e-5)


def test_shards_are_shared_resumed_and_missed(teacher, tmp_path):
    whole, parts = tmp_path / "a", tmp_path / "b"
    pairs(teacher, whole)
    pairs(teacher, parts, shard=(1, 2))

    with pytest.raises(UserError, match=r"2 of 4 shards are missing \(0, 2\)"):
        PairStore(parts)

    drawn = []
    pairs(teacher, parts, report=lambda done, todo: drawn.append((done, todo)))
    assert drawn[-1] == (50, 50)
    for k in range(4):
        name = f"x-{k:05d}.npy"
        assert (whole / name).read_bytes() == (parts / name).read_bytes()

    stamp = (whole / "x-00001.npy").stat().st_mtime_ns
    pairs(teacher, whole)
    assert (whole / "x-00001.npy").stat().st_mtime_ns == stamp

    np.save(whole / "x-00002.npy", np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(UserError, match="shard 2 .* holds 3 pairs instead of 16"):
        PairStore(whole)
    (whole / "x-00002.npy").write_bytes(b"half")
    with pytest.raises(UserError, match="shard 2 .* cannot be read"):
        PairStore(whole)


def test_pairs_of_another_job_are_refused(teacher, successor, tmp_path):
    pairs(teacher, tmp_path / "p")

    with pytest.raises(UserError, match="pairs of another job .teacher is"):
        pairs(successor[0], tmp_path / "p")
    with pytest.raises(UserError, match="pairs of another job .n is 50, not 60"):
        pairs(teacher, tmp_path / "p", n=60)
    with pytest.raises(UserError, match="holds these pairs already"):
        pairs(teacher, tmp_path / "p", resume=False)
    with pytest.raises(UserError, match="is no store of pairs"):
        PairStore(tmp_path)
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        pairs(teacher, tmp_path / "q")

    file = tmp_path / "p" / "manifest.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"format": 9}))
    with pytest.raises(UserError, match="has format 9"):
        Manifest.load(tmp_path / "p")
    file.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        Manifest.load(tmp_path / "p")


def test_the_fingerprint_is_of_the_weights_and_their_meaning(teacher):
    d = teacher.denoiser
    assert fingerprint(teacher) == fingerprint(Pipeline(d, shape=(2,), steps=3))
    other = Preconditioned(d.net, d.path, d.prediction, clock="unit")
    assert fingerprint(Pipeline(other, shape=(2,))) != fingerprint(teacher)


def test_jobs_that_cannot_be(teacher, tmp_path):
    karras = Pipeline(Preconditioned(MLP(2, width=8, depth=1), Karras(), "karras"), shape=(2,))

    for words, call in (
        ("needs a flow on the straight path", lambda: reflow(karras, tmp_path / "x")),
        ("steps is 0", lambda: reflow(teacher, tmp_path / "x", steps=0)),
        ("n is 0", lambda: reflow(teacher, tmp_path / "x", pairs=0)),
        ("steps is 0", lambda: distill(teacher, tmp_path / "x", k=0)),
        ("take float32", lambda: pairs(teacher, tmp_path / "x", dtype="uint8")),
        ("flip is True", lambda: Pairs(tmp_path, flip=True)),
    ):
        with pytest.raises(UserError, match=words):
            call()

    assert not (tmp_path / "x").exists()


def test_perceptual_distillation_has_a_loss_of_its_own(teacher):
    """The arguments of a recipe reach the module: times, loss, and no dropped labels."""

    from genflow.recipes.reflow import _student
    from genflow.training import Independent

    loss = Perceptual(lambda a, b: (a - b).abs().flatten(1).mean(1))
    module = _student(teacher, Grid(1), Independent(), loss, lr=1e-3, seed=0)
    assert isinstance(module, GenerativeModule) and module.measure is loss
    assert module.times == Grid(1) and module.hparams["label_dropout"] == 0
    weights = zip(module.net.parameters(), teacher.denoiser.net.parameters(), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in weights)

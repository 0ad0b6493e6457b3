"""Statistics in files: resumed, saved, refused."""

from oracles import mixture
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Exact, VariancePreserving
from genflow.solvers import Statistics, build, estimate
from genflow.solvers.statistics import PAIRS, _Row

PATH = VariancePreserving()
FEW = {"points": 12, "samples": 64, "batch_size": 24}


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def same(one, two):
    return all(torch.equal(getattr(one, k), getattr(two, k)) for k in ("lam", "l", "s", "b"))


def test_resumed_is_unbroken(tmp_path):
    truth, data = Exact(PATH, mixture()), mixture().sample(100)
    whole = estimate(truth, data, **FEW)

    def stop(done, total):
        assert total == 12
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate(truth, data, resume=tmp_path / "rows", report=stop, **FEW)
    rows = sorted((tmp_path / "rows").iterdir())
    assert [r.name for r in rows] == [f"{i:05d}.safetensors" for i in range(5)]

    before = [r.stat().st_mtime_ns for r in rows]
    seen = []
    options = {"resume": tmp_path / "rows", "report": lambda i, n: seen.append((i, n)), **FEW}
    assert same(estimate(truth, data, **options), whole)
    assert seen == [(i, 12) for i in range(1, 13)]
    assert [r.stat().st_mtime_ns for r in rows] == before

    for other, more in ((data + 1, {}), (data, {"seed": 1}), (data, {"probes": 1})):
        with pytest.raises(UserError, match="a row of another estimate"):
            estimate(truth, other, **options, **more)
    rows[2].write_bytes(rows[2].read_bytes()[:200])
    with pytest.raises(UserError, match=r"00002.safetensors' cannot be read"):
        estimate(truth, data, **options)


def test_moments_of_batches_add_up():
    y, D, e = torch.randn(3, 50, 4).double() + double([3.0, 0.0, -1.0])[:, None, None]

    def row(part):
        seen = torch.stack([y[part], D[part], e[part]])
        rest = seen - seen.mean(1, keepdim=True)
        spread = torch.stack([(rest[a] * rest[b]).mean(0) for a, b in PAIRS])
        return _Row(y[part].mean(0), seen.mean(1), spread, double(float(seen.shape[1])))

    whole = row(slice(None))
    parts = row(slice(0, 7)).plus(row(slice(7, 30))).plus(row(slice(30, 50)))
    for name in ("k", "mean", "spread", "count"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_saved_and_loaded(tmp_path):
    made = estimate(Exact(PATH, mixture()), mixture().sample(64), **FEW)
    file = tmp_path / "deep" / "statistics.safetensors"
    made.save(file, {"data": "gm2d"})
    assert same(Statistics.load(file), made) and not Statistics.load(file).snap
    assert [f.name for f in file.parent.iterdir()] == [file.name]

    bad = tmp_path / "bad.safetensors"
    for data in (file.read_bytes()[:-40], b"", b"{}"):
        bad.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read as safetensors"):
            Statistics.load(bad)
    with pytest.raises(UserError, match="missing"):
        Statistics.load(tmp_path / "nothing")

    from safetensors.torch import save_file

    save_file({"lam": made.lam}, bad)
    with pytest.raises(UserError, match="has format None"):
        Statistics.load(bad)
    with pytest.raises(UserError, match=r"statistics\.s holds values that are not finite"):
        Statistics(made.lam, made.l, made.s / 0, made.b)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points": 2}, "points is 2: it must be 3 or more"),
        ({"samples": 1}, "samples is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"probes": 0}, "probes is 0"),
        ({"products": "forwards"}, "did you mean 'forward'"),
        ({"label": torch.zeros(3)}, "label has 3 rows for 100 examples"),
        ({"data": torch.zeros(4, 2, dtype=torch.long)}, "dtype torch.int64"),
        ({"data": torch.zeros(0, 2)}, r"shape \(0, 2\)"),
    ],
)
def test_bad_values(options, words):
    given = {"data": mixture().sample(100), **options}
    with pytest.raises(UserError, match=words):
        estimate(Exact(PATH, mixture()), **given)


def test_statistics_of_another_shape_or_none():
    made = estimate(Exact(PATH, mixture()), mixture().sample(64), **FEW)
    sampler = build("dpm-v3", Exact(PATH, mixture()), 4, statistics=made)
    with pytest.raises(UserError, match=r"are for samples of shape \(2,\), and these have shape"):
        sampler(torch.randn(3, 2, 2))
    with pytest.raises(UserError, match="step 0 has predict 'empirical' and there are no"):
        build("dpm-v3", Exact(PATH, mixture()), 4)
    with pytest.raises(UserError, match="order is 4"):
        build("dpm-v3", Exact(PATH, mixture()), 4, order=4, statistics=made)


def test_a_channel_may_share_its_statistics():
    """Statistics with dimensions of size 1 serve every size there."""

    law = mixture()
    lam = torch.linspace(-5, 5, 30, dtype=torch.float64)
    one = [torch.full((30, 1), v, dtype=torch.float64) for v in (0.5, -0.3, 0.1)]
    shared = build("dpm-v3", Exact(PATH, law), 4, statistics=Statistics(lam, *one))
    spread = Statistics(lam, *(v.expand(30, 2) for v in one))
    x = torch.randn(3, 2).double()
    torch.testing.assert_close(
        shared(x), build("dpm-v3", Exact(PATH, law), 4, statistics=spread)(x)
    )

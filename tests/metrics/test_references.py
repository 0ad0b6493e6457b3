"""References: found again for the same images and net only, refused for another net."""

import json

import pytest
import torch

from genflow.errors import UserError
from genflow.metrics import MomentSum, Pixels, RandomConv, Reference, extract
from genflow.metrics.references import DataHash


def images(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 4, 4), generator=generator).to(torch.uint8)


def hashed(*batches):
    data = DataHash()
    for batch in batches:
        data.update(batch)
    return data.hexdigest()


def test_the_data_hash_sees_bytes_order_shape_and_count_but_no_batches():
    x = images()
    assert hashed(x) == hashed(*x.split(7)) == hashed(x.clone())
    others = [x.flip(0), x[:-1], x.float(), x.view(40, 4, 2, 2), torch.cat((x, x[:1])), x + 1]
    assert len({hashed(x), *map(hashed, others)}) == 1 + len(others)
    assert hashed(x[:0]) != hashed(x[:0], x[:1])
    with pytest.raises(UserError, match=r"uint8 \(1, 2, 2\) after uint8 \(1, 4, 4\)"):
        hashed(x, x[:, :, :2, :2])


def test_made_in_any_batches_it_holds_the_moments():
    x, feature = images(), RandomConv(1, 4)
    total = MomentSum()
    total.update(extract(feature, x))
    for given, size in [(x, 512), (x, 7), (x.split(9), 4), (iter(x.split(11)), 512)]:
        made = Reference.make(given, feature, batch_size=size)
        torch.testing.assert_close(made.moments.covariance, total.moments().covariance)
        assert made.points is None and made.data == hashed(x) and made.count == 40
    assert (made.feature, made.digest, made.prefix) == (
        feature.name,
        feature.digest,
        feature.prefix,
    )
    kept = Reference.make(x.split(9), feature, points=True)
    torch.testing.assert_close(kept.points, extract(feature, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("points", [False, True])
def test_saved_and_loaded_it_is_the_same(tmp_path, points):
    made = Reference.make(images(), Pixels(), points=points)
    made.save(tmp_path / "deep" / "ref")
    read = Reference.load(tmp_path / "deep" / "ref")
    assert torch.equal(read.moments.covariance, made.moments.covariance)
    for field in ("data", "shape", "resize", "prefix", "count", "feature", "digest", "key"):
        assert getattr(read, field) == getattr(made, field)
    assert torch.equal(read.points, made.points) if points else read.points is None
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["ref"]
    with pytest.raises(UserError, match="exists"):
        made.save(tmp_path / "deep" / "ref")
    made.save(tmp_path / "deep" / "ref", overwrite=True)


def test_another_net_or_resizing_is_refused():
    x, feature = images(), RandomConv(1, 4)
    made = Reference.make(x, feature)
    assert made.of(RandomConv(1, 4)) is made
    with pytest.raises(UserError, match=r"made with feature 'random-conv-1x4-0' .*not with 'pix"):
        made.of(Pixels())
    feature.resize = "by half"
    with pytest.raises(UserError, match=r"resize: none\), not with .* resize: by half"):
        made.of(feature)


class Counting(Pixels):
    seen = 0

    def __call__(self, images):
        Counting.seen += len(images)
        return super().__call__(images)


def test_the_cache_computes_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(Counting, "seen", 0)
    x = images()
    first = Reference.cached(x, Counting())
    again = Reference.cached(x.split(7), Counting())
    assert Counting.seen == 40 and again.key == first.key and first.points is None
    with_points = Reference.cached(x, Counting(), points=True)
    assert Counting.seen == 80 and torch.equal(with_points.points, x.flatten(1) / 255)
    assert Reference.cached(x, Counting()).points is not None and Counting.seen == 80
    Reference.cached(images(seed=1), Counting())
    assert Counting.seen == 120 and len(list((tmp_path / "references").iterdir())) == 2
    with pytest.raises(UserError, match="only once"):
        Reference.cached(iter([x]), Counting())


def test_a_damaged_cache_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path))
    x = images()
    first = Reference.cached(x, Pixels(), points=True)
    (tmp_path / "references" / first.key / "moments.safetensors").write_bytes(b"?")
    assert Reference.cached(x, Pixels(), points=True).count == 40
    assert Reference.load(tmp_path / "references" / first.key).count == 40


def test_folders_that_are_no_references_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read as a reference"):
        Reference.load(tmp_path)
    made = Reference.make(images(), Pixels(), points=True)
    made.save(tmp_path / "r")
    card = json.loads((tmp_path / "r" / "reference.json").read_text(encoding="utf-8"))
    for change, sentence in [
        ({"count": 39}, "different data or features"),
        ({"sha256": "0"}, "different data or features"),
        ({"format": "other"}, "not of the format"),
    ]:
        (tmp_path / "r" / "reference.json").write_text(json.dumps(card | change))
        with pytest.raises(UserError, match=sentence):
            Reference.load(tmp_path / "r")
    with pytest.raises(UserError, match="count: 0 points"):
        Reference.make([], Pixels())

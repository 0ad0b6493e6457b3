"""Two data sets at the ends of a flow: streams of their own, splits, flips; domains; arrays."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genflow.data import Arrays, Digits, Domain, Given, Toy, Translation, to_uint8
from genflow.data.named import named
from genflow.errors import UserError


def numbered(n, first=0):
    """Images 1×1×2 that say which one they are, and which way round."""

    k = torch.arange(first, first + n, dtype=torch.uint8)
    return Given(torch.stack([k, 255 - k], 1).reshape(n, 1, 1, 2))


def ids(x):
    return to_uint8(x).flatten(1)[:, 0].tolist() if x.is_floating_point() else x.flatten(1)[:, 0]


def batches(data, count, step=0, **trainer):
    data.trainer = SimpleNamespace(
        global_rank=0, world_size=1, global_step=step, accumulate_grad_batches=1, **trainer
    )
    return [(ids(b["x"]), ids(b["z"])) for b in islice(data.train_dataloader(), count)]


def lists(found):
    return [(list(map(int, x)), list(map(int, z))) for x, z in found]


def test_the_sides_are_streams_of_their_own():
    """Each epoch of a side holds every example once, and the sides of equal sets are unrelated."""

    data = Translation(numbered(30), numbered(20, 100), batch_size=10)
    found = lists(batches(data, 6))
    x, z = (sum((pair[i] for pair in found), []) for i in (0, 1))
    assert sorted(z[:30]) == sorted(z[30:]) == list(range(30)) and z[:30] != z[30:]
    assert sorted(x[:20]) == sorted(x[20:40]) == list(range(100, 120))

    same = lists(batches(Translation(numbered(50), numbered(50), batch_size=50), 1))[0]
    assert 0 <= sum(a == b for a, b in zip(*same, strict=True)) < 8
    assert data.shape == (1, 1, 2) and data.origin == "Given"


def test_a_stream_goes_on_where_it_stood():
    def make():
        return Translation(numbered(30), numbered(20), batch_size=7, seed=3)

    assert lists(batches(make(), 9))[4:] == lists(batches(make(), 5, step=4))


def test_pairs_stay_together():
    data = Translation(numbered(40), numbered(40, 100), paired=True, batch_size=16)
    data.setup()
    for x, z in lists(batches(data, 5)):
        assert [a - 100 for a in x] == z

    held = Translation(numbered(40), numbered(40, 100), paired=True, batch_size=4, validation=0.25)
    pairs = [(ids(b["x"]), ids(b["z"])) for b in held.val_dataloader()]
    assert [len(x) for x, _ in pairs] == [4, 4, 2]
    assert all((x - 100).tolist() == z.tolist() for x, z in pairs)


def test_held_out_examples_of_a_short_source_are_gone_round_in():
    data = Translation(numbered(8), numbered(40, 100), validation=0.25, batch_size=6)
    z = torch.cat([ids(b["z"]) for b in data.val_dataloader()]).tolist()
    assert len(z) == 10 and z[:2] * 5 == z
    assert not set(z) & set(data.source_set[:]["x"].flatten(1)[:, 0].tolist())
    assert Translation(numbered(3), numbered(3)).val_dataloader() == []


def test_both_ends_arrive_as_floats_and_flip_apart():
    n = 200
    data = Translation(numbered(n), numbered(n), batch_size=n, flip=True)
    ready = SimpleNamespace(current=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=ready))
    batches(data, 1, training=True, fit_loop=loop)
    raw = {k: torch.zeros(n, 1, 1, 2, dtype=torch.uint8) for k in "xz"}
    for v in raw.values():
        v[..., 1] = 255
    made = data.on_after_batch_transfer(raw, 0)
    flips = [made[k][:, 0, 0, 0] > 0 for k in "xz"]
    assert all(60 < int(f.sum()) < 140 for f in flips)
    assert 60 < int((flips[0] == flips[1]).sum()) < 140
    assert set(made["z"].unique().tolist()) == {-1.0, 1.0}

    vectors = Translation(Toy("moons", size=20), Toy("rings", size=20), batch_size=5)
    batch = next(iter(vectors.train_dataloader()))
    assert torch.equal(vectors.on_after_batch_transfer(batch, 0)["z"], batch["z"])


def test_starts_are_of_the_source_and_repeatable():
    data = Translation(numbered(5), numbered(9, 100))
    x = data.starts(8)
    assert x.shape == (8, 1, 1, 2) and torch.equal(x, data.starts(8))
    assert sorted(ids(x)[:5]) == [0, 1, 2, 3, 4] and ids(x)[5:] == ids(x)[:3]


def test_ends_that_do_not_fit():
    for words, data in (
        (r"shape \(2,\) and the target of shape \(1, 8, 8\)", Translation(Toy(), Digits())),
        ("source has 3 examples and the target 4", Translation(numbered(3), numbered(4), True)),
    ):
        with pytest.raises(UserError, match=words):
            data.setup()
    with pytest.raises(UserError, match="paired is True, but a mirrored"):
        Translation(numbered(3), numbered(3), paired=True, flip=True)
    with pytest.raises(UserError, match="source.flip is True"):
        Translation(Digits(flip=True), Digits())
    with pytest.raises(UserError, match=r"target.validation is 0.1"):
        Translation(Digits(), Digits(validation=0.1))


# ---------------------------------------------------------------------------------- domains


def test_classes_are_kept_and_counted_anew():
    digits, data = Digits().train_set[:], Domain(Digits(), classes=[8, 3])
    chosen = (digits["label"] == 8) | (digits["label"] == 3)
    assert torch.equal(data.train_set[:]["x"], digits["x"][chosen])
    assert torch.equal(data.train_set[:]["label"] == 0, digits["label"][chosen] == 8)
    assert (data.classes, data.class_names) == (2, ("8", "3"))
    assert data.title == "Digits (classes 8, 3)"


@pytest.mark.parametrize(
    ("change", "truth"),
    [
        ("invert", lambda x: 255 - x),
        ("mirror", lambda x: torchvision().hflip(x)),
        ("rotate-90", lambda x: torchvision().rotate(x, 90)),
        ("rotate-180", lambda x: torchvision().rotate(x, 180)),
        ("fade", lambda x: ((x.float() - 127.5) / 2 + 127.5).round().to(torch.uint8)),
        ("blur", lambda x: blurred(x)),
    ],
)
def test_changes(change, truth):
    raw = Digits().train_set[:50]["x"]
    made = Domain(Digits(), changes=[change]).train_set[:50]["x"]
    assert made.dtype == torch.uint8 and torch.equal(made, truth(raw))


def torchvision():
    from torchvision.transforms.v2 import functional

    return functional


def blurred(x):
    """A loop over pixels."""

    out = torch.empty_like(x)
    for i in range(8):
        for j in range(8):
            patch = x[..., max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].float()
            out[..., i, j] = patch.mean((-2, -1)).round().to(torch.uint8)
    return out


def test_changes_follow_each_other_and_sizes_come_last():
    data = Domain(Digits(), changes=["rotate-90", "mirror", "invert"], size=16, validation=0.1)
    raw = Digits(validation=0.1).val_set[:]["x"]
    assert data.shape == (1, 16, 16)
    want = torchvision().resize(255 - raw.rot90(1, (-2, -1)).flip(-1), [16, 16], antialias=True)
    gap = data.val_set[:]["x"].int() - want.int()
    assert int(gap.abs().max()) <= 1


def test_domains_that_cannot_be():
    with pytest.raises(UserError, match="changes is 'rotate'.*rotate-90"):
        Domain(Digits(), changes=["rotate"])
    with pytest.raises(UserError, match="data.flip is True"):
        Domain(Digits(flip=True))
    for words, data in (
        (r"classes are \[10\], but the set has the classes 0 to 9", Domain(Digits(), [10])),
        (r"classes are \[1, 1\]", Domain(Digits(), [1, 1])),
        (r"classes are \[\]", Domain(Digits(), [])),
        ("has no labels", Domain(numbered(3), [0])),
        ("only images can be changed", Domain(Toy(size=9), changes=["invert"])),
    ):
        with pytest.raises(UserError, match=words):
            data.setup()


# ----------------------------------------------------------------------------------- arrays


def test_arrays_are_read_from_files(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 3))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(6) % 2)
    made = Arrays(tmp_path / "x.npy", tmp_path / "y.npy").train_set[:]
    np.testing.assert_allclose(made["x"].numpy(), x, rtol=1e-6)
    assert made["label"].tolist() == [0, 1, 0, 1, 0, 1]
    assert named(tmp_path / "x.npy").shape == (3,)

    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("text", "object", "missing"):
        with pytest.raises(UserError, match=f"{name}.npy' cannot be read"):
            Arrays(tmp_path / f"{name}.npy").setup()

"""Splitting, streaming, scaling and flipping, with a trainer and without."""

from itertools import islice
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from genflow.data import DataModule, Tensors, mirrored, to_float, to_uint8
from genflow.data.stream import coins
from genflow.errors import UserError


class Numbers(DataModule):
    """Images 1×1×2, (i, 255 - i) for i below `count`, so that a pixel says which one it is."""

    def __init__(self, count=50, **options):
        super().__init__(**options)
        self.count = count

    def load(self):
        first = torch.arange(self.count, dtype=torch.uint8)
        x = torch.stack([first, 255 - first], 1).reshape(self.count, 1, 1, 2)
        return Tensors(x, torch.arange(self.count) % 3, class_names=["a", "b", "c"])


def ids(batch):
    return batch["x"].reshape(len(batch["x"]), -1)[:, 0].tolist()


def training(step, ready=0, *, rank=0, accumulate=1, is_training=True):
    progress = SimpleNamespace(current=SimpleNamespace(ready=ready))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(
        training=is_training,
        global_step=step,
        global_rank=rank,
        world_size=2,
        accumulate_grad_batches=accumulate,
        fit_loop=loop,
    )


def test_bytes_survive_the_round_trip():
    x = torch.arange(256, dtype=torch.uint8)
    y = to_float(x)
    assert y.dtype == torch.float32
    assert (y.min(), y.max()) == (-1, 1)
    assert torch.equal(to_uint8(y), x)
    assert torch.equal(to_uint8(y.double()), x)


def test_what_lies_outside_is_clamped_and_halves_are_rounded():
    x = torch.tensor([-9.0, 9.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1])
    kept = x.clone()
    assert to_uint8(x).tolist() == [0, 255, 0, 1]
    assert torch.equal(x, kept)
    with pytest.raises(UserError, match="float32"):
        to_float(x)


def test_a_loader_without_a_trainer_hands_out_whole_batches():
    data = Numbers(batch_size=8)
    batches = list(islice(data.train_dataloader(), 13))
    assert batches[0]["x"].shape == (8, 1, 1, 2)
    assert batches[0]["x"].dtype == torch.uint8
    assert all(b["label"].tolist() == [i % 3 for i in ids(b)] for b in batches)
    flat = sum(map(ids, batches), [])
    assert sorted(flat[:50]) == list(range(50))


def test_workers_change_nothing():
    alone = map(ids, islice(Numbers(batch_size=8).train_dataloader(), 8))
    together = map(ids, islice(Numbers(batch_size=8, workers=2).train_dataloader(), 8))
    assert list(alone) == list(together)


def test_loaders_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    next(iter(Numbers().train_dataloader()))
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_read_their_own_share():
    seen = []
    for rank in range(2):
        data = Numbers(batch_size=5)
        data.trainer = training(0, rank=rank)
        seen.append(set(sum(map(ids, islice(data.train_dataloader(), 5)), [])))
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 50


def test_the_stream_starts_at_the_trainers_step():
    whole = list(map(ids, islice(Numbers(batch_size=8).train_dataloader(), 10)))
    data = Numbers(batch_size=8)
    data.trainer = training(2, accumulate=3)
    data.trainer.world_size = 1
    assert list(map(ids, islice(data.train_dataloader(), 4))) == whole[6:]


def test_the_split_is_disjoint_complete_and_deterministic():
    def split(**options):
        data = Numbers(validation=0.2, **options)
        return ids(data.train_set[:]), ids(data.val_set[:])

    kept, out = split()
    assert len(out) == 10
    assert sorted(kept + out) == list(range(50))
    assert (kept, out) == split()
    assert out != split(seed=1)[1]


def test_validation_reads_every_held_out_example_once():
    data = Numbers(validation=0.3, batch_size=4)
    assert sum(map(ids, data.val_dataloader()), []) == ids(data.val_set[:])
    assert data.classes == 3  # though neither side need hold them all
    assert Numbers().val_dataloader() == []
    assert Numbers().val_set is None


def test_flips_repeat_by_step_and_differ_between_steps():
    def flipped(**where):
        data = Numbers(flip=True)
        data.trainer = training(**where)
        return ids(data.on_after_batch_transfer(data.train_set[:], 0))

    assert flipped(step=4) == flipped(step=4)
    # how many batches came before does not matter, only the place inside the step
    assert flipped(step=4, ready=6, accumulate=2) == flipped(step=4, ready=90, accumulate=2)
    others = [{"step": 5}, {"step": 4, "rank": 1}, {"step": 4, "ready": 1, "accumulate": 2}]
    assert all(flipped(step=4) != flipped(**other) for other in others)


def test_flips_are_for_training_only():
    data = Numbers(flip=True)
    plain = to_float(data.train_set[:]["x"])
    batch = data.train_set[:]
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["x"], plain)
    data.trainer = training(1, is_training=False)
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["x"], plain)
    assert batch["x"].dtype == torch.uint8
    data.trainer = training(1)
    assert not torch.equal(data.on_after_batch_transfer(batch, 0)["x"], plain)


def test_about_half_are_flipped_and_whole_images_at_that():
    x = torch.arange(4000 * 6, dtype=torch.float32).reshape(4000, 1, 2, 3)
    y = mirrored(x, coins("test", 0, 0, len(x)))
    turned = (y == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(turned, ~(y == x).flatten(1).all(1))
    assert abs(turned.float().mean().item() - 0.5) < 0.03


def test_reference_draws_without_repetition():
    data = Numbers(count=30)
    assert torch.equal(data.reference(), data.train_set[:]["x"])
    some = data.reference(12).flatten(1)[:, 0].tolist()
    assert len(set(some)) == 12
    assert some == data.reference(12).flatten(1)[:, 0].tolist()
    with pytest.raises(UserError, match="n is 31, but there are 30"):
        data.reference(31)


def test_examples_answer_to_one_a_list_and_a_slice():
    examples = Numbers().train_set
    assert examples[3]["x"].shape == (1, 1, 2)
    assert int(examples[-1]["label"]) == 49 % 3
    assert ids(examples[[4, 2, 4]]) == [4, 2, 4]
    assert ids(examples[5:8]) == [5, 6, 7]
    with pytest.raises(IndexError):
        examples[50]
    loader = DataLoader(examples, batch_size=10, collate_fn=lambda batch: batch)
    assert ids(next(iter(loader))) == list(range(10))


def test_vectors_pass_untouched_and_have_no_label():
    class Vectors(DataModule):
        def load(self):
            return Tensors(torch.randn(20, 3))

    batch = next(iter(Vectors(batch_size=4).train_dataloader()))
    assert set(batch) == {"x"}
    assert Vectors().on_after_batch_transfer(batch, 0)["x"] is batch["x"]
    assert (Vectors().shape, Vectors().classes) == ((3,), None)
    with pytest.raises(UserError, match="flip is True"):
        Vectors(flip=True).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"seed": True}, "seed is True"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Numbers(**options)


def test_a_split_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="leaves none to train on"):
        Numbers(count=1, validation=0.5).setup()


@pytest.mark.parametrize(
    ("x", "label", "message"),
    [
        (torch.zeros(3, 1, 2, 2), None, "float32"),
        (torch.zeros(0, 2), None, r"shape \(0, 2\)"),
        (torch.zeros(3, 2), torch.zeros(2).long(), r"label has shape \(2,\)"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 2]), "label holds -1"),
    ],
)
def test_bad_tensors_are_named(x, label, message):
    with pytest.raises(UserError, match=message):
        Tensors(x, label)


class Watch(pl.LightningModule):
    """Learns nothing, and notes each batch that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.held = [], []

    def training_step(self, batch, index):
        self.seen.append(batch["x"].clone())
        return (self.weight * batch["x"]).mean()

    def validation_step(self, batch, index):
        self.held.append(batch["x"].clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, steps, accumulate, resume=None):
    model, data = Watch(), Numbers(batch_size=7, flip=True, validation=0.2)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        check_val_every_n_epoch=None,
        val_check_interval=4,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data, ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_sees_what_an_unbroken_one_sees(tmp_path, accumulate):
    whole = fit(tmp_path, 9, accumulate).seen
    first = fit(tmp_path, 5, accumulate).seen  # in the middle of an epoch of 40 / 7 batches
    model = fit(tmp_path, 9, accumulate, resume=tmp_path / "5.ckpt")
    assert len(model.seen) == 4 * accumulate
    assert all(map(torch.equal, first + model.seen, whole))
    assert len(first + model.seen) == len(whole)
    plain = to_float(Numbers(validation=0.2).val_set[:]["x"])
    assert torch.equal(torch.cat(model.held[:2]), plain)

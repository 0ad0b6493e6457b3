"""The stream: every epoch whole, ranks apart, and any step reachable at once."""

from itertools import islice

import pytest
import torch

from genflow.data import StreamSampler, seeded
from genflow.errors import UserError


def take(sampler, count):
    return list(islice(sampler, count))


@pytest.mark.parametrize(("size", "batch"), [(12, 4), (10, 4), (7, 3), (3, 8), (1, 5)])
def test_each_epoch_covers_each_index_once(size, batch):
    epochs = 4
    flat = sum(take(StreamSampler(size, batch), -(-size * epochs // batch)), [])
    for epoch in range(epochs):
        assert sorted(flat[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ():
    first, second = take(StreamSampler(100, 100), 2)
    other = take(StreamSampler(100, 100, seed=1), 1)[0]
    assert first != second
    assert first != other
    assert first != list(range(100))


def test_two_ranks_are_disjoint_and_make_up_the_epoch():
    ranks = [take(StreamSampler(24, 3, rank=r, world=2), 4) for r in range(2)]
    seen = [set(sum(batches, [])) for batches in ranks]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(24))


def test_ranks_share_out_the_batch_of_one():
    whole = take(StreamSampler(11, 6, seed=3), 9)
    ranks = [take(StreamSampler(11, 2, seed=3, rank=r, world=3), 9) for r in range(3)]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("start", [1, 5, 13])
def test_starting_later_equals_skipping(start):
    whole = take(StreamSampler(10, 4, seed=2), start + 6)
    assert take(StreamSampler(10, 4, seed=2, start=start), 6) == whole[start:]


def test_start_is_asked_when_iteration_begins():
    step = 0
    sampler = StreamSampler(10, 4, start=lambda: step)
    step = 7
    assert take(sampler, 2) == take(StreamSampler(10, 4, start=7), 2)
    step = 1
    assert take(sampler, 2) == take(StreamSampler(10, 4, start=1), 2)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    take(StreamSampler(10, 4), 5)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_depend_on_every_word():
    words = [("a", 0), ("b", 0), ("a", 1), ("a", 0, 0), ("a", 0, 1), ("a", 1, 0)]
    assert len({seeded(*w).initial_seed() for w in words}) == len(words)
    assert seeded("a", 3, 4).initial_seed() == seeded("a", 3, 4).initial_seed()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, ["size is 0"]),
        ({"batch_size": -1}, ["batch_size is -1"]),
        ({"batch_size": 2.5}, ["batch_size is 2.5"]),
        ({"rank": 2, "world": 2}, ["rank is 2", "from 0 to 1"]),
        ({"seed": -3}, ["seed is -3"]),
    ],
)
def test_bad_numbers_are_named(options, words):
    with pytest.raises(UserError) as caught:
        StreamSampler(**{"size": 4, "batch_size": 2, **options})
    assert all(word in str(caught.value) for word in words)

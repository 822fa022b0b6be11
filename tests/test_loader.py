"""The loader: the file's own rows, ahead of the computation, and nothing left behind."""

import threading
import time

import numpy as np
import pytest
import torch
from conftest import CPU, store

from aiornot.data import hdf5
from aiornot.training import loader


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A file in which an image's first pixel is its row, and its other pixels are noise."""
    rng = np.random.default_rng(0)
    images, labels = {}, {}
    for split, count in (("train", 50), ("val", 13), ("test", 3)):
        images[split] = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        images[split][:, 0, 0, 0] = np.arange(count)
        labels[split] = rng.integers(0, 2, count)
    return store(tmp_path_factory.mktemp("loader") / "numbered.h5", images, labels)


def new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    return set(threading.enumerate()) - before


def rows_of(batches: list[torch.Tensor]) -> list[int]:
    return torch.cat(batches).tolist()


def test_a_batch_holds_the_rows_that_were_asked_for(numbered):
    split = loader.Split(numbered, "train", device=CPU)
    stored, labels = hdf5.map_images(numbered, "train"), hdf5.read_labels(numbered, "train")
    rows = [torch.tensor([3, 3, 49]), torch.tensor([0]), torch.tensor([7, 1, 30, 2])]
    for (images, targets), index in zip(split.batches(rows), rows, strict=True):
        assert images.dtype == torch.uint8
        assert np.array_equal(images.numpy(), stored[index.numpy()])
        assert targets.tolist() == labels[index.numpy()].tolist()


def test_a_split_in_order_is_the_split(numbered):
    split = loader.Split(numbered, "val", device=CPU)
    order = loader.in_order(len(split), 5)
    found = torch.cat([images.clone() for images, _ in split.batches(order)])
    assert np.array_equal(found.numpy(), hdf5.map_images(numbered, "val"))
    assert [len(rows) for rows in order] == [5, 5, 3]


def test_no_batches_are_no_work(numbered):
    before = set(threading.enumerate())
    assert list(loader.Split(numbered, "train", device=CPU).batches([])) == []
    assert not new_threads(before)


def test_a_fraction_is_the_first_rows_and_smaller_ones_lie_in_larger_ones(numbered):
    whole = hdf5.read_labels(numbered, "train").tolist()
    for fraction, count in ((0.3, 15), (0.31, 16), (1.0, 50), (1e-6, 1)):
        split = loader.Split(numbered, "train", device=CPU, fraction=fraction)
        assert len(split) == count
        assert split.labels.tolist() == whole[:count]
        (images, _) = next(split.batches([torch.arange(count)]))
        assert images[:, 0, 0, 0].tolist() == list(range(count))


def test_a_row_beyond_the_fraction_cannot_be_read(numbered):
    split = loader.Split(numbered, "train", device=CPU, fraction=0.3)
    with pytest.raises(AssertionError):
        list(split.batches([torch.tensor([15])]))


@pytest.mark.parametrize(("count", "batch_size"), [(50, 7), (50, 10), (50, 50), (9, 2)])
def test_an_epoch_takes_every_row_at_most_once_in_whole_batches(count, batch_size):
    batches = loader.shuffled(count, batch_size, seed=3, epoch=2)
    rows = rows_of(batches)
    assert len(batches) == count // batch_size
    assert {len(batch) for batch in batches} == {batch_size}
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(count))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[int]:
        return rows_of(loader.shuffled(100, 10, seed=seed, epoch=epoch))

    first = order(0, 0)
    torch.manual_seed(99)
    np.random.seed(99)
    torch.rand(17)
    assert order(0, 0) == first
    distinct = {tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(distinct) == 16


def test_every_row_is_met_over_a_few_epochs():
    epochs = [loader.shuffled(50, 12, seed=0, epoch=epoch) for epoch in range(8)]
    assert {row for batches in epochs for row in rows_of(batches)} == set(range(50))


@pytest.mark.parametrize("pause", [0.0, 0.003])
def test_a_batch_is_whole_until_the_next_one_is_asked_for(numbered, pause):
    split = loader.Split(numbered, "train", device=CPU)
    stored = hdf5.map_images(numbered, "train")
    rows = [batch for epoch in range(4) for batch in loader.shuffled(50, 7, seed=1, epoch=epoch)]
    for (images, _), index in zip(split.batches(rows), rows, strict=True):
        time.sleep(pause)  # the thread fills whatever it may meanwhile
        assert np.array_equal(images.numpy(), stored[index.numpy()])


def test_a_slow_file_gives_right_pixels_too(numbered):
    class Slow(np.ndarray):
        def take(self, *args, **kwargs):
            time.sleep(0.003)
            return np.asarray(self).take(*args, **kwargs)

    split = loader.Split(numbered, "train", device=CPU)
    split._images = split._images.view(Slow)
    rows = loader.shuffled(50, 7, seed=1, epoch=0)
    for (images, _), index in zip(split.batches(rows), rows, strict=True):
        assert images[:, 0, 0, 0].tolist() == index.tolist()


def test_the_thread_runs_no_further_ahead_than_its_buffers(numbered):
    taken = []

    class Counted(np.ndarray):
        def take(self, indices, *args, **kwargs):
            taken.append(indices)
            return np.asarray(self).take(indices, *args, **kwargs)

    split = loader.Split(numbered, "train", device=CPU)
    split._images = split._images.view(Counted)
    batches = split.batches(loader.shuffled(50, 5, seed=0, epoch=0))
    next(batches)
    time.sleep(0.05)
    assert len(taken) == loader.RING
    batches.close()


def test_an_exception_in_the_thread_reaches_the_consumer(numbered):
    class Broken(np.ndarray):
        def take(self, indices, *args, **kwargs):
            if 5 in indices:
                raise OSError("the disk is gone")
            return np.asarray(self).take(indices, *args, **kwargs)

    before = set(threading.enumerate())
    split = loader.Split(numbered, "train", device=CPU)
    split._images = split._images.view(Broken)
    received = []
    with pytest.raises(OSError, match="the disk is gone"):
        for images, _ in split.batches([torch.tensor([row]) for row in range(20)]):
            received.append(int(images[0, 0, 0, 0]))
    assert received == [0, 1, 2, 3, 4]
    assert not new_threads(before)


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_an_abandoned_iterator_leaves_no_thread_running(numbered, taken):
    before = set(threading.enumerate())
    batches = loader.Split(numbered, "train", device=CPU).batches(list(torch.arange(50).split(3)))
    for _ in range(taken):
        next(batches)
    assert len(new_threads(before)) == (taken > 0)
    del batches
    assert not new_threads(before)


def test_an_iterator_that_is_used_up_leaves_no_thread_running(numbered):
    before = set(threading.enumerate())
    split = loader.Split(numbered, "train", device=CPU)
    assert len(list(split.batches([torch.arange(9)] * 5))) == 5
    assert not new_threads(before)


def test_images_stay_off_the_cpus_device():
    assert not loader.fits(1, CPU)

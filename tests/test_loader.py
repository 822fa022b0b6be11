"""The loader: the file's own rows, ahead of the computation, and nothing left behind."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU, store

from aiornot.data import hdf5
from aiornot.training import loader, loop, ranks


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


either = pytest.mark.parametrize("prefetch", [False, True])
"""Gathered by the caller, as for a CPU, and by a thread, as for a GPU."""


def new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    return set(threading.enumerate()) - before


def rows_of(batches: list[torch.Tensor]) -> list[int]:
    return torch.cat(batches).tolist()


def assert_right(split: loader.Split, rows: list[torch.Tensor]) -> None:
    """Check that an iteration gives what plain indexing of the mapped file gives."""
    stored = np.array(split._images)
    for (images, labels), index in zip(split.batches(rows), rows, strict=True):
        assert np.array_equal(images.numpy(), stored[index.numpy()])
        assert torch.equal(labels, split.labels[index])


@pytest.mark.parametrize("where", ["caller", "thread", "resident"])
def test_a_batch_holds_the_rows_that_were_asked_for(numbered, where):
    split = loader.Split(numbered, "train", device=CPU, prefetch=where == "thread")
    if where == "resident":  # on a GPU only; the gather is the same
        split._resident = torch.from_numpy(np.array(split._images))
    stored, labels = hdf5.map_images(numbered, "train"), hdf5.read_labels(numbered, "train")
    rows = [torch.tensor([3, 3, 49]), torch.tensor([0]), torch.tensor([7, 1, 30, 2])]
    for (images, targets), index in zip(split.batches(rows), rows, strict=True):
        assert images.dtype == torch.uint8
        assert np.array_equal(images.numpy(), stored[index.numpy()])
        assert targets.tolist() == labels[index.numpy()].tolist()


def test_a_split_in_order_is_the_split(numbered):
    split = loader.Split(numbered, "val", device=CPU)
    order = loader.in_order(range(len(split)), 5)
    found = torch.cat([images.clone() for images, _ in split.batches(order)])
    assert np.array_equal(found.numpy(), hdf5.map_images(numbered, "val"))
    assert [len(rows) for rows in order] == [5, 5, 3]
    assert [rows.tolist() for rows in loader.in_order(range(7, 10), 2)] == [[7, 8], [9]]
    assert loader.in_order(range(5, 5), 2) == []


def test_no_batches_are_no_work(numbered):
    before = set(threading.enumerate())
    assert list(loader.Split(numbered, "train", device=CPU, prefetch=True).batches([])) == []
    assert not new_threads(before)


def test_a_fraction_is_the_first_rows_and_smaller_ones_lie_in_larger_ones(numbered):
    whole = hdf5.read_labels(numbered, "train").tolist()
    for fraction, count in ((0.3, 15), (0.31, 16), (1.0, 50), (1e-6, 1)):
        split = loader.Split(numbered, "train", device=CPU, fraction=fraction)
        assert len(split) == count
        assert split.labels.tolist() == whole[:count]
        (images, _) = next(split.batches([torch.arange(count)]))
        assert images[:, 0, 0, 0].tolist() == list(range(count))


@pytest.mark.parametrize("row", [15, 49, -1])
def test_a_row_beyond_the_fraction_cannot_be_read(numbered, row):
    split = loader.Split(numbered, "train", device=CPU, fraction=0.3)
    with pytest.raises(AssertionError):
        list(split.batches([torch.arange(15), torch.tensor([3, row])]))


def steps_of(
    split: loader.Split, first: int, last: int, *, batch_size: int = 6
) -> list[tuple[int, list[int], list[float]]]:
    """Return step, rows and labels of what the training loop is given for these steps."""
    config = SimpleNamespace(batch_size=batch_size, seed=2)
    run = SimpleNamespace(
        train_split=split, config=config, steps_per_epoch=len(split) // batch_size
    )
    return [
        (step, images[:, 0, 0, 0].tolist(), labels.tolist())
        for step, images, labels in loop._batches(run, first, last)
    ]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_ranks_share_every_batch_of_one_rank(numbered, monkeypatch, world):
    split = loader.Split(numbered, "train", device=CPU)
    alone = steps_of(split, 3, 20)
    monkeypatch.setattr(ranks, "world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(steps_of(split, 3, 20))
    for (step, rows, labels), *parts in zip(alone, *shares, strict=True):
        assert {part[0] for part in parts} == {step}
        assert {len(part[1]) for part in parts} == {6 // world}
        taken = [pair for part in parts for pair in zip(part[1], part[2], strict=True)]
        assert sorted(taken) == sorted(zip(rows, labels, strict=True))
        assert len({row for row, _ in taken}) == 6


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_run_resumed_at_any_step_meets_the_remaining_batches(numbered, fraction):
    def split() -> loader.Split:
        return loader.Split(numbered, "train", device=CPU, fraction=fraction)

    whole = steps_of(split(), 0, 20)  # 8 or 4 steps an epoch
    assert [step for step, _, _ in whole] == list(range(20))
    for step in range(20):
        assert steps_of(split(), step, 20) == whole[step:]
    assert whole[0][1] != whole[len(split()) // 6][1]  # epochs differ


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


@either
@pytest.mark.parametrize("pause", [0.0, 0.003])
def test_a_batch_is_whole_until_the_next_one_is_asked_for(numbered, pause, prefetch):
    split = loader.Split(numbered, "train", device=CPU, prefetch=prefetch)
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

    split = loader.Split(numbered, "train", device=CPU, prefetch=True)
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

    split = loader.Split(numbered, "train", device=CPU, prefetch=True)
    split._images = split._images.view(Counted)
    batches = split.batches(loader.shuffled(50, 5, seed=0, epoch=0))
    next(batches)
    time.sleep(0.05)
    assert len(taken) == loader.RING
    batches.close()


def test_on_a_cpu_the_caller_gathers_when_a_batch_is_asked_for(numbered):
    taken = []

    class Counted(np.ndarray):
        def take(self, indices, *args, **kwargs):
            taken.append(threading.current_thread())
            return np.asarray(self).take(indices, *args, **kwargs)

    split = loader.Split(numbered, "train", device=CPU)
    split._images = split._images.view(Counted)
    for count, _ in enumerate(split.batches([torch.arange(5)] * 4), start=1):
        assert taken == [threading.current_thread()] * count


@either
def test_an_exception_in_the_gather_reaches_the_consumer(numbered, prefetch):
    class Broken(np.ndarray):
        def take(self, indices, *args, **kwargs):
            if 5 in indices:
                raise OSError("the disk is gone")
            return np.asarray(self).take(indices, *args, **kwargs)

    before = set(threading.enumerate())
    split = loader.Split(numbered, "train", device=CPU, prefetch=prefetch)
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
    split = loader.Split(numbered, "train", device=CPU, prefetch=True)
    batches = split.batches(list(torch.arange(50).split(3)))
    for _ in range(taken):
        next(batches)
    assert len(new_threads(before)) == (taken > 0)
    del batches
    assert not new_threads(before)


def test_an_iterator_that_is_used_up_leaves_no_thread_running(numbered):
    before = set(threading.enumerate())
    split = loader.Split(numbered, "train", device=CPU, prefetch=True)
    assert len(list(split.batches([torch.arange(9)] * 5))) == 5
    assert not new_threads(before)


@either
def test_buffers_are_kept_and_replaced_only_by_longer_ones(numbered, prefetch):
    split = loader.Split(numbered, "train", device=CPU, prefetch=prefetch)

    def places(rows: list[torch.Tensor]) -> set[int]:
        return {images.data_ptr() for images, _ in split.batches(rows)}

    first = places([torch.arange(5)] * 6)
    assert len(first) == (loader.RING if prefetch else 1)
    assert places([torch.arange(5)] * 6) == first
    assert places([torch.arange(3)] * 6) == first
    assert_right(split, [torch.arange(3), torch.arange(9), torch.arange(2)])
    longer = places([torch.arange(9)] * 6)
    assert len(longer) == len(first)
    assert places([torch.arange(5)] * 6) == longer


@pytest.mark.parametrize("taken", [1, 2, 4])
@pytest.mark.parametrize("held", [False, True])
@either
def test_an_abandoned_iteration_leaves_the_next_one_whole(numbered, taken, held, prefetch):
    before = set(threading.enumerate())
    split = loader.Split(numbered, "train", device=CPU, prefetch=prefetch)
    kept = []
    for epoch in range(3):
        rows = loader.shuffled(50, 7, seed=0, epoch=epoch)
        batches = split.batches(rows)
        for _ in range(taken):
            next(batches)
        if held:  # as a traceback may
            kept.append(batches)
        del batches
        assert_right(split, rows)
        assert len(new_threads(before)) == prefetch * len(kept)
    kept.clear()
    assert not new_threads(before)
    assert_right(split, rows)


@either
def test_an_exception_in_the_consumer_leaves_the_next_iteration_whole(numbered, prefetch):
    before = set(threading.enumerate())
    split = loader.Split(numbered, "train", device=CPU, prefetch=prefetch)
    rows = loader.shuffled(50, 7, seed=0, epoch=0)
    for count in (1, 2, 4):
        with pytest.raises(RuntimeError):
            for step, _ in enumerate(split.batches(rows), start=1):
                if step == count:
                    raise RuntimeError("out of memory")
        assert not new_threads(before)
        assert_right(split, rows[::-1])


@either
def test_iterations_at_the_same_time_do_not_mix(numbered, prefetch):
    split = loader.Split(numbered, "train", device=CPU, prefetch=prefetch)
    stored = np.array(split._images)
    for _ in range(2):
        one, other = (loader.shuffled(50, 7, seed=seed, epoch=0) for seed in (1, 2))
        both = zip(split.batches(one), split.batches(other), one, other, strict=True)
        for (first, _), (second, _), index, other_index in both:
            time.sleep(0.001)
            assert np.array_equal(first.numpy(), stored[index.numpy()])
            assert np.array_equal(second.numpy(), stored[other_index.numpy()])


@either
def test_training_may_use_what_an_evaluation_has_used(numbered, prefetch):
    split = loader.Split(numbered, "train", device=CPU, prefetch=prefetch)
    with torch.inference_mode():
        assert len(list(split.batches([torch.arange(5)]))) == 1
    for images, labels in split.batches([torch.arange(5)] * 3):
        assert not images.is_inference() and not labels.is_inference()


@either
@pytest.mark.parametrize("cold", [None, 0, 3])
def test_the_disk_is_asked_ahead_once_a_batch_waited_for_it(numbered, monkeypatch, cold, prefetch):
    asked, filled = [], []
    fill = loader._Buffer.fill
    monkeypatch.setattr(
        loader._Buffer, "fill", lambda *args: (fill(*args), filled.append(len(filled)))
    )
    # Waits before, in other work of this thread, are none of the file's.
    monkeypatch.setattr(loader, "disk_waits", lambda: 7 + (cold in filled))
    monkeypatch.setattr(loader, "read_ahead", lambda _, index: asked.append(index.tolist()))
    split = loader.Split(numbered, "train", device=CPU, prefetch=prefetch)
    rows = loader.shuffled(50, 5, seed=0, epoch=0)
    assert_right(split, rows)
    later = [] if cold is None else rows[cold + loader.AHEAD :]
    assert asked == [index.tolist() for index in later]


def test_reading_ahead_covers_the_row(numbered, monkeypatch):
    mapped = hdf5.map_images(numbered, "train")
    for row in range(len(mapped)):
        start, length = loader.pages_of(mapped, row)
        assert start % loader.mmap.PAGESIZE == 0
        assert length < mapped[row].nbytes + loader.mmap.PAGESIZE
        assert mapped[row].tobytes() in mapped.base[start : start + length]
    split = loader.Split(numbered, "train", device=CPU)
    monkeypatch.setattr(loader, "disk_waits", iter(range(100)).__next__)
    assert_right(split, [torch.arange(50)] * 4)  # the system takes the advice


def test_images_stay_off_the_cpus_device():
    assert not loader.fits(1, CPU)


class Device:
    """Stands in for a GPU: streams run when somebody waits, in the order of ``eager``.

    So whatever is not held back by an event happens as early, or as late, as it ever could.
    """

    def __init__(self, eager: str) -> None:
        self.lock = threading.RLock()
        self.main, self.side = Stream(self), Stream(self)
        self.streams = [self.side, self.main] if eager == "side" else [self.main, self.side]
        self.current = threading.local()

    def run(self, done: Callable[[], bool]) -> None:
        with self.lock:
            while not done():
                assert any(stream.step() for stream in self.streams), "the streams wait for ever"

    def of_this_thread(self, device: torch.device | None = None) -> "Stream":
        return getattr(self.current, "stream", self.main)

    @contextmanager
    def within(self, stream: "Stream") -> Iterator[None]:
        self.current.stream = stream
        yield
        del self.current.stream


class Stream:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.work: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()

    def put(self, act: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        with self.device.lock:
            self.work.append((ready, act))

    def step(self) -> bool:
        """Do the next thing, if there is one and it need not wait."""
        if not self.work or not self.work[0][0]():
            return False
        self.work.popleft()[1]()
        return True

    def wait_event(self, event: "Event") -> None:
        count = event.recorded
        self.put(lambda: None, lambda: event.reached >= count)

    def wait_stream(self, other: "Stream") -> None:
        event = Event(self.device)
        event.record(other)
        self.wait_event(event)


class Event:
    def __init__(self, device: Device, blocking: bool = False) -> None:
        self.device, self.recorded, self.reached = device, 0, 0

    def record(self, stream: Stream | None = None) -> None:
        self.recorded += 1
        count = self.recorded
        stream = stream or self.device.of_this_thread()
        stream.put(lambda: setattr(self, "reached", count))

    def synchronize(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.device.run(lambda: self.reached >= self.recorded)


@pytest.fixture(params=["side", "main"])
def device(request, monkeypatch) -> Device:
    device = Device(request.param)
    empty, copy = torch.empty, torch.Tensor.copy_

    def put_copy(self: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
        device.of_this_thread().put(lambda: copy(self, source))

    monkeypatch.setattr(torch.cuda, "Event", lambda blocking=False: Event(device, blocking))
    monkeypatch.setattr(torch.cuda, "current_stream", device.of_this_thread)
    monkeypatch.setattr(torch.cuda, "stream", device.within)
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **kw: empty(*args, **kw))
    monkeypatch.setattr(torch.Tensor, "copy_", put_copy)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    return device


@pytest.mark.parametrize("taken", [1, 2, 3, 7])
def test_a_gpu_computes_on_the_rows_that_were_asked_for(numbered, device, taken):
    """Also after an iteration was left, while its last batches are still computed on."""
    split = loader.Split(numbered, "train", device=CPU, prefetch=True)
    split._side = device.side
    stored, seen = np.array(split._images), []
    for epoch in range(4):
        rows = loader.shuffled(50, 7, seed=0, epoch=epoch)
        for index, (images, _) in zip(rows[:taken], split.batches(rows), strict=False):
            device.main.put(lambda images=images, index=index: seen.append((images + 0, index)))
    device.run(lambda: not device.main.work)
    assert len(seen) == 4 * taken
    for images, index in seen:
        assert np.array_equal(images.numpy(), stored[index.numpy()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [False, True])
def test_a_real_gpu_computes_on_the_rows_that_were_asked_for(numbered, monkeypatch, resident):
    monkeypatch.setattr(loader, "fits", lambda *_: resident)
    split = loader.Split(numbered, "train", device=torch.device("cuda", 0))
    assert split.is_resident == resident
    stored, seen = np.array(split._images), []
    for epoch in range(20):
        rows = loader.shuffled(50, 7, seed=0, epoch=epoch)
        taken = rows[: 1 + epoch % 7]
        for index, (images, labels) in zip(taken, split.batches(rows), strict=False):
            torch.cuda._sleep(1_000_000)  # computation that the host runs ahead of
            seen.append((images.clone(), labels, index))
    for images, labels, index in seen:
        assert np.array_equal(images.cpu().numpy(), stored[index.numpy()])
        assert torch.equal(labels.cpu(), split.labels.cpu()[index])

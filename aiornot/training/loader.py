"""uint8 batches for the device: resident there when they fit, else gathered from mapped memory.

No worker processes: a DataLoader's hand-over costs ten times the gather itself. Normalisation and
augmentation happen on the device, so only uint8 crosses the bus. What this costs beside a plain
copy of the same bytes: ``benchmarks/loader.py``.
"""

import mmap
import queue
import resource
import threading
from collections.abc import Generator, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aiornot.data import hdf5

RESIDENT_SHARE = 0.35
"""Largest share of the device's free memory that the images may take."""

RING = 2
"""Buffers of a thread: one is filled while the other is used. A third would only cost cache."""

AHEAD = 2
"""How many batches before its turn one is asked of the disk, where the file is not in memory."""

Batch = tuple[torch.Tensor, torch.Tensor]


class Split:
    """One split of a prepared file as a source of batches.

    Args:
        path: The prepared file.
        split: ``train``, ``val`` or ``test``.
        device: Where the batches are wanted.
        fraction: First share of the rows; the file's order makes any prefix class-balanced.
        prefetch: Gather in a thread, ahead of the computation; by default for a GPU only. A CPU
            has the gather to do in any case, and a second buffer and the hand-over cost it more.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        device: torch.device,
        fraction: float = 1.0,
        prefetch: bool | None = None,
    ) -> None:
        labels = hdf5.read_labels(path, split)
        count = prefix(len(labels), fraction)
        self.device = device
        self.labels = torch.from_numpy(labels[:count]).float().to(device)
        self._mapped = hdf5.map_images(path, split)
        self._images = np.asarray(self._mapped)[:count]
        self._prefetch = device.type == "cuda" if prefetch is None else prefetch
        self._spare: list[list[_Buffer]] = []
        self._resident: torch.Tensor | None = None
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda" and fits(self._images.nbytes, device):
            self._resident = torch.from_numpy(np.array(self._images)).to(device)
        elif device.type == "cuda":
            self._side = torch.cuda.Stream(device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self._images.shape[1])

    @property
    def is_resident(self) -> bool:
        return self._resident is not None

    def batches(self, rows: list[torch.Tensor]) -> Iterator[Batch]:
        """Yield images (n, S, S, 3) uint8 and labels (n,) float32 for each index tensor.

        Images that are not resident lie in a reused buffer: they are valid until the next batch is
        asked for, of this iterator or of a later one.
        """
        if not rows:
            return
        order, lengths = torch.cat(rows), [len(index) for index in rows]
        # Once for all batches: np.take below would clip, and the device could not raise.
        assert order.numpy().min() >= 0 and order.numpy().max() < len(self)
        order = _sent(order, self.device)
        labels = self.labels.index_select(0, order).split(lengths)
        if self._resident is None:
            images = self._gather([index.numpy() for index in rows])
        else:
            resident = self._resident
            images = (resident.index_select(0, index) for index in order.split(lengths))
        yield from zip(images, labels, strict=True)

    def _gather(self, indices: list[np.ndarray]) -> Iterator[torch.Tensor]:
        """Lend buffer after buffer, filled from mapped memory, to the consumer."""
        ring = self._borrow(max(len(index) for index in indices))
        source = (
            self._ahead(indices, ring) if self._prefetch else self._filled(indices, cycle(ring))
        )
        try:
            for index, buffer in zip(indices, source, strict=True):
                yield buffer.lend(len(index))
                buffer.take_back()
        finally:
            source.close()
            self._spare = [ring]  # not before the thread has ended

    def _borrow(self, length: int) -> "list[_Buffer]":
        """Return the buffers of the last iteration: to touch new ones costs as much as a gather.

        Whoever iterates at the same time finds none and makes its own.
        """
        ring = self._spare.pop() if self._spare else []
        if not ring or len(ring[0]) < length:
            shape = (length, *self._images.shape[1:])
            count = RING if self._prefetch else 1
            ring = [_Buffer(shape, self.device, self._side) for _ in range(count)]
        if self._side is not None:
            # The device may still read an abandoned batch, or what lay in new buffers' memory.
            self._side.wait_stream(torch.cuda.current_stream(self.device))
        return ring

    def _filled(
        self, indices: list[np.ndarray], buffers: "Iterator[_Buffer]"
    ) -> "Generator[_Buffer, None, None]":
        """Gather batch after batch, each into the next buffer; numpy releases the GIL."""
        cold = False
        for step, (index, buffer) in enumerate(zip(indices, buffers, strict=False)):
            before = disk_waits()
            buffer.fill(self._images, index)
            cold = cold or disk_waits() > before
            if cold and step + AHEAD < len(indices):
                read_ahead(self._mapped, indices[step + AHEAD])
            yield buffer

    def _ahead(
        self, indices: list[np.ndarray], ring: "list[_Buffer]"
    ) -> "Generator[_Buffer, None, None]":
        """Do so in a thread, which runs ahead as far as there are buffers."""
        free: queue.SimpleQueue[_Buffer | None] = queue.SimpleQueue()
        full: queue.SimpleQueue[_Buffer | BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                for buffer in self._filled(indices, iter(free.get, None)):
                    full.put(buffer)
            except BaseException as error:  # handed to the consumer, which raises it
                full.put(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            for buffer in ring:
                free.put(buffer)
            for _ in indices:
                filled = full.get()
                if isinstance(filled, BaseException):
                    raise filled
                yield filled
                free.put(filled)
        finally:
            free.put(None)
            worker.join()


class _Buffer:
    """Memory for one batch, which is filled and used in turns.

    For a GPU the rows are gathered into pinned memory, and a side stream copies them. Two events
    keep the turns, so that the consumer's thread never waits for the device: until ``copied``, the
    pinned memory is not filled again and the consumer's stream does not compute on the images;
    until ``used``, when that stream is done with them, the side stream does not overwrite them.
    """

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, side: torch.cuda.Stream | None
    ) -> None:
        self._side = side
        # It may be made in an evaluation: nobody else may write to inference tensors.
        with torch.inference_mode(False):
            # By torch, on a cache line. 16 bytes off it, as numpy's, gathering takes 2.5 x longer.
            self._host = torch.empty(shape, dtype=torch.uint8, pin_memory=side is not None)
            self._images = self._host
            if side is not None:
                self._images = torch.empty(shape, dtype=torch.uint8, device=device)
        self._rows = self._host.numpy()
        if side is not None:
            self._copied = torch.cuda.Event(blocking=True)  # sleeps where others would spin
            self._used = torch.cuda.Event()
            self._images.record_stream(side)  # an abandoned copy may outlive the buffer

    def __len__(self) -> int:
        return len(self._rows)

    def fill(self, images: np.ndarray, index: np.ndarray) -> None:
        if self._side is not None:
            self._copied.synchronize()
        # mode="clip" writes straight into the buffer; "raise" goes through a copy, 2-4 x slower.
        np.take(images, index, axis=0, out=self._rows[: len(index)], mode="clip")
        if self._side is not None:
            with torch.cuda.stream(self._side):
                self._side.wait_event(self._used)
                self._images[: len(index)].copy_(self._host[: len(index)], non_blocking=True)
                self._copied.record()

    def lend(self, length: int) -> torch.Tensor:
        if self._side is not None:
            torch.cuda.current_stream(self._images.device).wait_event(self._copied)
        return self._images[:length]

    def take_back(self) -> None:
        if self._side is not None:
            self._used.record(torch.cuda.current_stream(self._images.device))


def _sent(index: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for it, which takes pinned memory."""
    if device.type != "cuda":
        return index
    return index.pin_memory().to(device, non_blocking=True)


def disk_waits() -> int:
    """How often this thread has met a page that was not in memory."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def read_ahead(mapped: np.ndarray, index: np.ndarray) -> None:
    """Have the system read rows in the background: page faults alone are half as fast.

    Only where the disk is waited for: to ask for what is in memory costs 20 to 60 % of its gather.
    """
    file: Any = mapped.base  # an mmap, which numpy's annotations do not know
    for row in index.tolist():
        file.madvise(mmap.MADV_WILLNEED, *pages_of(mapped, row))


def pages_of(mapped: np.ndarray, row: int) -> tuple[int, int]:
    """Return offset and length in the mapping of the whole pages that hold a row."""
    assert isinstance(mapped, np.memmap)
    # The mapping begins at the page of the first row, wherever in the file that is.
    first = mapped.offset % mmap.ALLOCATIONGRANULARITY + row * mapped[0].nbytes
    into_page = first % mmap.PAGESIZE
    return first - into_page, into_page + mapped[0].nbytes


def prefix(count: int, fraction: float) -> int:
    """Return how many of ``count`` rows a fraction of them is: at least one, if there are any."""
    return max(1, round(count * fraction)) if count else 0


def fits(num_bytes: int, device: torch.device) -> bool:
    """Whether that many bytes of images may live on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return num_bytes <= RESIDENT_SHARE * free
    return False


def in_order(rows: range, batch_size: int) -> list[torch.Tensor]:
    """Return the row indices of evaluation: every row once, the last batch may be short."""
    return list(torch.arange(rows.start, rows.stop).split(batch_size)) if rows else []


def shuffled(count: int, batch_size: int, *, seed: int, epoch: int) -> list[torch.Tensor]:
    """Return the row indices of one epoch: whole batches only, so that shapes are static.

    The order depends on ``seed`` and ``epoch`` alone: a resumed run meets the same batches.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return list(order[: count - count % batch_size].split(batch_size))

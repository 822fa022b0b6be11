"""uint8 batches for the device: resident there when they fit, else gathered from mapped memory.

No worker processes: a DataLoader's hand-over costs ten times the gather itself. Normalisation and
augmentation happen on the device, so only uint8 crosses the bus.
"""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from aiornot.data import hdf5

RESIDENT_SHARE = 0.35
"""Largest share of the device's free memory that the images may take."""

RING = 3
"""Buffers in flight: one filled, one copied, one computed on."""

Batch = tuple[torch.Tensor, torch.Tensor]


class Split:
    """One split of a prepared file as a source of batches.

    Args:
        path: The prepared file.
        split: ``train``, ``val`` or ``test``.
        device: Where the batches are wanted.
        fraction: First share of the rows; the file's order makes any prefix class-balanced.
    """

    def __init__(
        self, path: Path, split: str, *, device: torch.device, fraction: float = 1.0
    ) -> None:
        labels = hdf5.read_labels(path, split)
        count = max(1, round(len(labels) * fraction)) if len(labels) else 0
        self.device = device
        self.labels = torch.from_numpy(labels[:count]).float().to(device)
        self._images = hdf5.map_images(path, split)[:count]
        self._resident: torch.Tensor | None = None
        if device.type == "cuda" and fits(self._images.nbytes, device):
            self._resident = torch.from_numpy(np.array(self._images)).to(device)

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

        On a CPU the image tensor is a reused buffer: it is valid until the next batch is asked for.
        """
        source = self._from_device(rows) if self._resident is not None else self._gather(rows)
        for images, index in zip(source, rows, strict=True):
            yield images, self.labels.index_select(0, index.to(self.device, non_blocking=True))

    def _from_device(self, rows: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        assert self._resident is not None
        for index in rows:
            yield self._resident.index_select(0, index.to(self.device, non_blocking=True))

    def _gather(self, rows: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Fill buffers in one thread, ahead of the computation; numpy releases the GIL."""
        if not rows:
            return
        longest = max(len(index) for index in rows)
        pinned = self.device.type == "cuda"
        ring = [_Buffer(longest, self._images.shape[1:], pinned) for _ in range(RING)]
        free: queue.Queue[_Buffer | None] = queue.Queue()
        full: queue.Queue[_Buffer | BaseException] = queue.Queue()
        for buffer in ring:
            free.put(buffer)
        worker = threading.Thread(target=self._fill, args=(rows, free, full), daemon=True)
        worker.start()
        try:
            for index in rows:
                filled = full.get()
                if isinstance(filled, BaseException):
                    raise filled
                yield filled.to(self.device, len(index))
                free.put(filled)
        finally:
            free.put(None)
            worker.join()

    def _fill(
        self,
        rows: list[torch.Tensor],
        free: "queue.Queue[_Buffer | None]",
        full: "queue.Queue[_Buffer | BaseException]",
    ) -> None:
        try:
            for index in rows:
                buffer = free.get()
                if buffer is None:
                    return
                buffer.fill(self._images, index.numpy())
                full.put(buffer)
        except BaseException as error:  # handed to the consumer, which raises it
            full.put(error)


class _Buffer:
    """A host buffer that is filled by one thread and copied to the device by another."""

    def __init__(self, count: int, shape: tuple[int, ...], pinned: bool) -> None:
        self._host = torch.empty((count, *shape), dtype=torch.uint8, pin_memory=pinned)
        self._copied = torch.cuda.Event() if pinned else None

    def fill(self, images: np.ndarray, index: np.ndarray) -> None:
        assert index.min() >= 0 and index.max() < len(images)
        if self._copied is not None:
            self._copied.synchronize()  # in this thread: the training thread never waits
        # mode="clip" writes straight into the buffer; "raise" goes through a copy, 2-4 x slower.
        np.take(images, index, axis=0, out=self._host.numpy()[: len(index)], mode="clip")

    def to(self, device: torch.device, count: int) -> torch.Tensor:
        if self._copied is None:
            return self._host[:count]
        images = self._host[:count].to(device, non_blocking=True)
        self._copied.record()
        return images


def fits(num_bytes: int, device: torch.device) -> bool:
    """Whether that many bytes of images may live on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return num_bytes <= RESIDENT_SHARE * free
    return False


def in_order(count: int, batch_size: int) -> list[torch.Tensor]:
    """Return the row indices of evaluation: every row once, the last batch may be short."""
    return list(torch.arange(count).split(batch_size))


def shuffled(count: int, batch_size: int, *, seed: int, epoch: int) -> list[torch.Tensor]:
    """Return the row indices of one epoch: whole batches only, so that shapes are static.

    The order depends on ``seed`` and ``epoch`` alone: a resumed run meets the same batches.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return list(order[: count - count % batch_size].split(batch_size))

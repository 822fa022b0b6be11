"""Decoding with Ray Data: tasks read their rows and write the images straight into their slots.

Only statistics travel. Shipping decoded pixels through the object store would double the CPU cost.
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray

from aiornot import storage
from aiornot.config import InputError, WorkError
from aiornot.data import duplicates, hdf5, images, shards, splits
from aiornot.data.journal import Journal
from aiornot.data.layout import Layout, Profile

KEPT = "what is done is kept, the same command goes on"

FLUSH_SECONDS = 2.0
"""How much work, besides the blocks at hand, a kill may cost."""


def write_images(
    temporary: Path,
    layout: Layout,
    journal: Journal,
    *,
    hashing: bool,
    progress: shards.Progress = lambda what, done, total: None,
) -> None:
    """Fill the slots that the journal does not list yet, and list them.

    Args:
        temporary: The laid out file.
        layout: Which row belongs into which slot.
        journal: Gets a line for each block that is written.
        hashing: Also take the perceptual hash of every row, with or without a slot.
        progress: Called as the work proceeds.

    Raises:
        WorkError: A shard is lost or Ray stopped; what is in the journal is done.
    """
    items = list(_items(layout, hashing=hashing))
    done = journal.done()
    todo = [item for item in items if (item["first"], item["count"]) not in done]
    total = sum(item["count"] for item in items)
    finished = total - sum(item["count"] for item in todo)
    progress("decoding", finished, total)
    if not todo:
        return
    configure_ray_data()
    write = _BlockWriter(temporary.absolute(), hdf5.slots(temporary), layout.profile, hashing)
    # One block per task: a task's result is its block's journal line.
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(write)
    with _keeping(temporary, journal) as keep:
        for result in results(dataset):
            if result["failed"]:
                raise WorkError(f"{result['failed']}; {KEPT}")
            line = {"first": int(result["first"]), "count": int(result["count"])}
            keep(line | json.loads(result["found"]))
            finished += line["count"]
            progress("decoding", finished, total)


@contextmanager
def _keeping(file: Path, journal: Journal) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that adds to the journal, every few seconds, what has reached the disk.

    So the journal is true after a power cut too. A worker that waited for the disk after each block
    would stand idle for a sixth of its time.
    """
    waiting: list[dict[str, Any]] = []
    flushed = time.monotonic()

    def flush() -> None:
        nonlocal flushed
        descriptor = os.open(file, os.O_RDWR)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        for line in waiting:
            journal.add(line)
        waiting.clear()
        flushed = time.monotonic()

    def keep(line: dict[str, Any]) -> None:
        waiting.append(line)
        if time.monotonic() - flushed > FLUSH_SECONDS:
            flush()

    try:
        yield keep
    finally:  # also of an interrupted run
        flush()


def _items(layout: Layout, *, hashing: bool) -> Iterator[dict[str, Any]]:
    """Yield what the tasks are told: their rows, and the target of each."""
    targets = layout.targets()
    for block in shards.cut(layout.rows.blocks):
        wanted = targets[block.first : block.first + block.count]
        if hashing or (wanted[:, 0] >= 0).any():
            # Absolute, for a worker may live in another folder.
            path = storage.absolute(block.path)
            yield {**dataclasses.asdict(block), "path": path, "targets": wanted}


def results(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset as they are made.

    Raises:
        WorkError: Ray stopped; what its tasks have written is kept.
    """
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise WorkError(f"Ray stopped: {reason}; {KEPT}") from error


def configure_ray_data() -> None:
    """Use every core from the first task on, and leave talking to the caller."""
    context = ray.data.DataContext.get_current()
    # It holds resources back for operators to come, of which there are none here: for the first
    # second, one of two cores stood idle (docs/log.md, 2026-11-22).
    context.op_resource_reservation_enabled = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@dataclasses.dataclass(frozen=True)
class _BlockWriter:
    """A Ray Data task: decode one block and write its images into their slots."""

    path: Path
    slots: dict[str, hdf5.Slots]
    profile: Profile
    hashing: bool

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(shards.Block)]
        block = shards.Block(**{name: item[name] for name in names})
        found: dict[str, Any] = {}
        failed = ""
        try:
            found = self._write_block(block, np.asarray(item["targets"]).reshape(-1, 2))
        except (InputError, OSError) as error:
            failed = str(error)
        # As text: Ray Data has no column type for a list that is empty in most blocks.
        result = {"first": block.first, "count": block.count, "failed": failed}
        return result | {"found": json.dumps(found)}

    def _write_block(self, block: shards.Block, targets: np.ndarray) -> dict[str, Any]:
        rejected: list[tuple[int, str]] = []
        hashes: list[str | None] = []
        batches = shards.read(block, ["image.bytes"])
        contents = (data for batch in batches for data in shards.image_bytes(batch))
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            rows = zip(contents, targets.tolist(), strict=True)
            for row, (data, (split, slot)) in enumerate(rows, start=block.first):
                if split < 0 and not self.hashing:
                    continue
                try:
                    pixels = images.decode(data)
                except ValueError as error:
                    hashes.append(None)
                    if split >= 0:
                        rejected.append((row, str(error)))
                    continue
                if self.hashing:
                    hashes.append(duplicates.perceptual_hash(pixels).hex())
                if split >= 0:
                    self._write(descriptor, pixels, splits.SPLITS[split], slot)
        finally:
            os.close(descriptor)
        return {"rejected": rejected, "hashes": hashes if self.hashing else []}

    def _write(self, descriptor: int, pixels: images.Pixels, split: str, slot: int) -> None:
        geometry, resample = self.profile.geometry, self.profile.resample
        fitted = images.fit(pixels, self.profile.size, geometry=geometry, resample=resample)
        hdf5.write_image(descriptor, self.slots[split], slot, fitted)

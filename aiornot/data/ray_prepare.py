"""Parquet shards -> one HDF5 file, with Ray Data.

``aiornot prepare data/aiornot --out data/prepared --profile reduced`` runs this. Rows, splits and
slots are fixed first from the cheap columns; then tasks decode and write straight into their slots
of the file and return only statistics. Shipping decoded pixels through the object store would
double the CPU cost.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

import aiornot
from aiornot import ray_session
from aiornot.config import InputError
from aiornot.data import hdf5, images, shards, splits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """What one prepared file holds."""

    name: str
    size: int
    limit: int | None = None
    """Only the first so many rows of the source, of splits that were made on all rows."""
    geometry: images.Geometry = "resize"


PROFILES = {
    "debug": Profile(name="debug", size=256, limit=1000),
    "reduced": Profile(name="reduced", size=256, limit=5000),
    "full": Profile(name="full", size=512),
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """What ``prepare`` did."""

    path: Path
    counts: dict[str, int]
    rejected: int
    conflicts: int
    skipped: bool
    """The finished file was there already."""


def prepare(
    source: str,
    out: Path,
    profile: Profile,
    *,
    seed: int = 0,
    max_rejected: float = 0.01,
    num_cpus: int | None = None,
    progress: shards.Progress = lambda what, done, total: None,
) -> Summary:
    """Write ``out/<profile>.h5`` from parquet shards of labelled images.

    A finished file made from the same rows with the same settings is left alone; an interrupted
    one is continued. Rows that cannot be decoded are listed in ``<profile>.rejected.jsonl``.

    Args:
        source: A parquet file, a folder of them, a glob, or the same on ``s3://``.
        out: Folder of the prepared files.
        profile: Size, limit and geometry.
        seed: Of the splits and of the order within them.
        max_rejected: Share of rows that may fail to decode.
        num_cpus: Cores to use on this machine.
        progress: Called as the work proceeds.

    Raises:
        InputError: Nothing readable there, a wrong schema, wrong labels, or too many bad images.
    """
    rows = shards.read_rows(source, progress=progress)
    clusters = splits.clusters(rows.hashes)
    plan = splits.plan(rows.labels, clusters=clusters, limit=profile.limit, seed=seed)
    path = out / f"{profile.name}.h5"
    attributes = _attributes(rows, profile, seed=seed)
    conflicts = len(splits.conflicts(rows.labels, clusters))
    if path.exists() and _same(hdf5.attributes(path), attributes):
        rejected = int(hdf5.attributes(path)["rejected"])
        counts = {split: where.count for split, where in hdf5.slots(path).items()}
        return Summary(path, counts, rejected, conflicts, skipped=True)
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".h5.tmp")
    _check_space(temporary, plan, profile)
    journal = _Journal(path.with_suffix(".h5.journal"), attributes["settings"])
    if not (temporary.exists() and journal.is_open()):
        journal.start()
        _create(temporary, rows, plan, profile, attributes)
    with ray_session.connected(num_cpus=num_cpus):
        _write_images(temporary, rows, plan, profile, journal, progress)
    rejected_rows = journal.rejected()
    _report_rejected(path.with_suffix(".rejected.jsonl"), rows, rejected_rows)
    _check_rejected(rejected_rows, plan, max_rejected, path)
    kept = _without(plan, rejected_rows)
    finished = (
        _compact(temporary, rows, plan, kept, profile, attributes) if rejected_rows else temporary
    )
    _finish(finished, path, rejected=len(rejected_rows))
    temporary.unlink(missing_ok=True)
    journal.path.unlink()
    counts = {split: len(members) for split, members in kept.items()}
    return Summary(path, counts, len(rejected_rows), conflicts, skipped=False)


def _attributes(rows: shards.Rows, profile: Profile, *, seed: int) -> dict[str, Any]:
    settings = dataclasses.asdict(profile) | {"seed": seed, "resampling": "bicubic"}
    fingerprint = rows.fingerprint()
    return {
        "fingerprint": fingerprint,
        "profile": profile.name,
        "geometry": profile.geometry,
        "source_note": rows.note,
        "split_policy": "StratifiedKFold(10): fold 0 val, folds 1-2 test; duplicates whole",
        "settings": json.dumps(settings | {"fingerprint": fingerprint}, sort_keys=True),
        "versions": json.dumps({"aiornot": aiornot.__version__, "ray": ray.__version__}),
    }


def _same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return bool(found.get("settings") == wanted["settings"])


def _check_space(temporary: Path, plan: dict[str, np.ndarray], profile: Profile) -> None:
    count = sum(len(members) for members in plan.values())
    needed = count * profile.size**2 * 3
    reserved = temporary.stat().st_size if temporary.exists() else 0
    free = shutil.disk_usage(temporary.parent).free + reserved
    if needed > free:
        raise InputError(
            f"{temporary.parent}: {needed / 1e9:.1f} GB are needed for {count} images of "
            f"{profile.size} px and {free / 1e9:.1f} GB are free; free some, or lower "
            "--size or --limit"
        )


def _create(
    path: Path,
    rows: shards.Rows,
    plan: dict[str, np.ndarray],
    profile: Profile,
    attributes: dict[str, Any],
) -> None:
    hdf5.create(
        path,
        size=profile.size,
        labels={split: rows.labels[members] for split, members in plan.items()},
        ids={split: [rows.ids[row] for row in members] for split, members in plan.items()},
        attributes=attributes,
    )


class _Journal:
    """Which blocks are written, beside an unfinished file; what a resumed run starts from."""

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self._settings = settings
        self._lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def is_open(self) -> bool:
        """Whether a run with the same settings was interrupted."""
        return bool(self._lines) and self._lines[0] == self._settings

    def start(self) -> None:
        self._lines = [self._settings]
        self.path.write_text(self._settings + "\n", encoding="utf-8")

    def add(self, result: dict[str, Any]) -> None:
        line = json.dumps(result)
        self._lines.append(line)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def _results(self) -> Iterator[dict[str, Any]]:
        for line in self._lines[1:]:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return  # the last line of a killed run; its block is simply done again

    def done(self) -> set[int]:
        """Return the first row of every block that is written."""
        return {result["first"] for result in self._results()}

    def rejected(self) -> dict[int, str]:
        """Return row -> reason of the images that could not be decoded."""
        return {row: why for result in self._results() for row, why in result["rejected"]}


def _write_images(
    temporary: Path,
    rows: shards.Rows,
    plan: dict[str, np.ndarray],
    profile: Profile,
    journal: _Journal,
    progress: shards.Progress,
) -> None:
    targets = _targets(len(rows.ids), plan)
    done = journal.done()
    items = [
        {**dataclasses.asdict(block), "targets": targets[block.first : block.first + block.count]}
        for block in rows.blocks
    ]
    wanted = [item for item in items if (item["targets"][:, 0] >= 0).any()]
    total = sum(len(item["targets"]) for item in wanted)
    todo = [item for item in wanted if item["first"] not in done]
    finished = total - sum(len(item["targets"]) for item in todo)
    progress("decoding", finished, total)
    if not todo:
        return
    _quiet_ray_data()
    write = _BlockWriter(temporary, hdf5.slots(temporary), profile)
    # One block per task: a task's result is its block's journal line.
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(write)
    for result in dataset.iter_rows():
        journal.add({"first": int(result["first"]), "rejected": json.loads(result["rejected"])})
        finished += int(result["count"])
        progress("decoding", finished, total)


def _quiet_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _targets(num_rows: int, plan: dict[str, np.ndarray]) -> np.ndarray:
    """Return (num_rows, 2) split number and slot of every row, -1 where it is not wanted."""
    targets = np.full((num_rows, 2), -1, dtype=np.int64)
    for number, split in enumerate(splits.SPLITS):
        targets[plan[split], 0] = number
        targets[plan[split], 1] = np.arange(len(plan[split]))
    return targets


@dataclasses.dataclass(frozen=True)
class _BlockWriter:
    """A Ray Data task: decode one block and write its images into their slots."""

    path: Path
    slots: dict[str, hdf5.Slots]
    profile: Profile

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        block = shards.Block(item["path"], item["group"], item["first"], item["count"])
        rejected: list[tuple[int, str]] = []
        with shards.open_file(block.path) as file:
            table = file.read_row_group(block.group, columns=["image.bytes"])
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            targets = np.asarray(item["targets"]).reshape(-1, 2)
            for row, (data, target) in enumerate(
                zip(shards.image_bytes(table), targets, strict=True)
            ):
                reason = self._write(descriptor, data, target)
                if reason:
                    rejected.append((block.first + row, reason))
        finally:
            os.close(descriptor)
        # As text: Ray Data has no column type for a list that is empty in most blocks.
        return {"first": block.first, "count": block.count, "rejected": json.dumps(rejected)}

    def _write(self, descriptor: int, data: bytes | None, target: np.ndarray) -> str:
        """Write one image; return why it could not be decoded, else an empty text."""
        split, slot = int(target[0]), int(target[1])
        if split < 0:
            return ""
        try:
            pixels = images.decode(data)
        except ValueError as error:
            return str(error)
        fitted = images.fit(pixels, self.profile.size, geometry=self.profile.geometry)
        hdf5.write_image(descriptor, self.slots[splits.SPLITS[split]], slot, fitted)
        return ""


def _report_rejected(path: Path, rows: shards.Rows, rejected: dict[int, str]) -> None:
    path.unlink(missing_ok=True)
    if not rejected:
        return
    lines = []
    for row, reason in sorted(rejected.items()):
        block = next(b for b in rows.blocks if b.first <= row < b.first + b.count)
        place = {"id": rows.ids[row], "shard": block.path, "row": row, "reason": reason}
        lines.append(json.dumps(place) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _check_rejected(
    rejected: dict[int, str], plan: dict[str, np.ndarray], max_rejected: float, path: Path
) -> None:
    total = sum(len(members) for members in plan.values())
    if len(rejected) > max_rejected * total:
        raise InputError(
            f"{len(rejected)} of {total} images cannot be decoded, more than --max-rejected "
            f"{max_rejected:g}; {path.with_suffix('.rejected.jsonl')} lists each with its reason"
        )


def _without(plan: dict[str, np.ndarray], rejected: dict[int, str]) -> dict[str, np.ndarray]:
    return {split: members[~np.isin(members, list(rejected))] for split, members in plan.items()}


def _compact(
    temporary: Path,
    rows: shards.Rows,
    plan: dict[str, np.ndarray],
    kept: dict[str, np.ndarray],
    profile: Profile,
    attributes: dict[str, Any],
) -> Path:
    """Copy to a file without the slots of rejected rows; a contiguous dataset cannot shrink."""
    smaller = temporary.with_suffix(".compact")
    _create(smaller, rows, kept, profile, attributes)
    descriptor = os.open(smaller, os.O_WRONLY)
    try:
        for split, where in hdf5.slots(smaller).items():
            pixels = hdf5.map_images(temporary, split)
            for slot, source in enumerate(np.flatnonzero(np.isin(plan[split], kept[split]))):
                hdf5.write_image(descriptor, where, slot, pixels[source])
    finally:
        os.close(descriptor)
    return smaller


def _finish(temporary: Path, path: Path, *, rejected: int) -> None:
    hdf5.update_attributes(temporary, {"rejected": rejected})
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)

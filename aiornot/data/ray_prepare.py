"""Parquet shards -> one HDF5 file, with Ray Data.

``aiornot prepare data/aiornot --out data/prepared --profile reduced`` runs this. Rows, splits and
slots are fixed first from the cheap columns; then tasks decode and write straight into their slots
of the file and return only statistics. Shipping decoded pixels through the object store would
double the CPU cost.
"""

import bisect
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

import aiornot
from aiornot import ray_session, storage
from aiornot.config import InputError, WorkError
from aiornot.data import hdf5, images, shards, splits
from aiornot.data.journal import Journal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """What one prepared file holds."""

    name: str
    size: int
    limit: int | None = None
    """Only the first so many rows of the source, of splits that were made on all rows."""
    geometry: images.Geometry = "resize"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"--size {self.size} must be at least 1 pixel")


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
    replaced: bool = False
    """A finished file of other rows or settings was there."""


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

    A finished file made from the same rows with the same settings is left alone, another is
    replaced once the new one is whole; an interrupted run is continued. Rows that cannot be
    decoded are listed in ``<profile>.rejected.jsonl``.

    Args:
        source: A parquet file, a folder of them, a glob, or the same on ``s3://``.
        out: Folder of the prepared files.
        profile: Size, limit and geometry.
        seed: Of the splits and of the order within them.
        max_rejected: Share of rows that may fail to decode.
        num_cpus: Cores to use on this machine.
        progress: Called as the work proceeds.

    Raises:
        InputError: Nothing readable there, a wrong schema, wrong labels, too many bad images, no
            room, or a file in the way that is none of ours.
        WorkError: It stopped half-way; what is done is kept, and the same call goes on.
    """
    _check_arguments(out, max_rejected)
    rows = shards.read_rows(source, progress=progress)
    # Images that are missing are no duplicates of each other.
    clusters = splits.clusters([text or f"{row}" for row, text in enumerate(rows.hashes)])
    try:
        plan = splits.plan(rows.labels, clusters=clusters, limit=profile.limit, seed=seed)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    conflicts = len(splits.conflicts(rows.labels, clusters))
    path = out / f"{profile.name}.h5"
    attributes = _attributes(rows, profile, seed=seed)
    counts = {split: len(members) for split, members in plan.items()}
    summary = Summary(path, counts, rejected=0, conflicts=conflicts, skipped=False)
    found = _finished(path, attributes["settings"])
    if found is not None:
        counts = {split: where.count for split, where in hdf5.slots(path).items()}
        rejected = int(found["rejected"])
        return dataclasses.replace(summary, counts=counts, rejected=rejected, skipped=True)
    if path.exists() and not hdf5.is_ours(path):
        raise InputError(
            f"{path} is damaged or was not made by 'aiornot prepare': delete it, or give another "
            "--out"
        )
    _make_folder(out)
    with Journal.locked(path.with_suffix(".h5.journal"), attributes["settings"]) as journal:
        # Named by the settings: a worker that outlives an interrupted run finds only its own file.
        token = hashlib.sha256(attributes["settings"].encode()).hexdigest()[:8]
        temporary = path.with_suffix(f".h5.{token}.tmp")
        if not (temporary.exists() and journal.is_open):
            litter = list(out.glob(f"{path.name}.*.tmp"))
            _check_space(out, plan, profile, litter=litter)
            journal.clear()  # before the file is made: an old one must not speak for the new
            for file in litter:
                file.unlink()
            _create(temporary, rows, plan, profile, attributes, rejected=0)
            journal.start()
        with ray_session.connected(num_cpus=num_cpus):
            _write_images(temporary, rows, plan, profile, journal, progress)
        rejected_rows = journal.rejected()
        _report_rejected(path.with_suffix(".rejected.jsonl"), rows, rejected_rows)
        _check_rejected(rejected_rows, plan, max_rejected, path)
        kept = _without(plan, rejected_rows)
        finished = (
            _compact(temporary, rows, plan, kept, profile, attributes)
            if rejected_rows
            else temporary
        )
        replaced = path.exists()
        _finish(finished, path)
        temporary.unlink(missing_ok=True)
        journal.path.unlink()
    counts = {split: len(members) for split, members in kept.items()}
    return dataclasses.replace(
        summary, counts=counts, rejected=len(rejected_rows), replaced=replaced
    )


def _check_arguments(out: Path, max_rejected: float) -> None:
    if not 0 <= max_rejected <= 1:
        raise InputError(f"--max-rejected {max_rejected:g} is a share: give 0 to 1")
    if re.match(r"[a-z0-9]{2,}:/", str(out)):  # Path("s3://x") is "s3:/x"
        raise InputError(
            f"--out {out}: prepared files are mapped into memory, give a folder of this machine or "
            "of a file system that all nodes share"
        )
    if out.suffix == ".h5" or out.is_file():
        raise InputError(f"--out {out}: give a folder, the file in it is named by the profile")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from None


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


def _finished(path: Path, settings: str) -> dict[str, Any] | None:
    """Return what the finished file says of itself if it is whole and has these settings."""
    try:
        hdf5.slots(path)
        found = hdf5.attributes(path)
    except InputError:  # absent, cut short, or of another schema version
        return None
    return found if found.get("settings") == settings else None


def _check_space(
    out: Path, plan: dict[str, np.ndarray], profile: Profile, *, litter: Sequence[Path] = ()
) -> None:
    """Refuse what cannot fit, once ``litter`` is deleted."""
    count = sum(len(members) for members in plan.values())
    needed = count * profile.size**2 * 3
    free = shutil.disk_usage(out).free + sum(file.stat().st_size for file in litter)
    if needed > free:
        raise InputError(
            f"{out}: {needed / 1e9:.1f} GB are needed for {count} images of {profile.size} px and "
            f"{free / 1e9:.1f} GB are free; free some, or lower --size or --limit"
        )


def _create(
    path: Path,
    rows: shards.Rows,
    plan: dict[str, np.ndarray],
    profile: Profile,
    attributes: dict[str, Any],
    *,
    rejected: int,
) -> None:
    try:
        hdf5.create(
            path,
            size=profile.size,
            labels={split: rows.labels[members] for split, members in plan.items()},
            ids={split: [rows.ids[row] for row in members] for split, members in plan.items()},
            attributes=attributes | {"rejected": rejected},
        )
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}; mend that, or give --out") from None


def _write_images(
    temporary: Path,
    rows: shards.Rows,
    plan: dict[str, np.ndarray],
    profile: Profile,
    journal: Journal,
    progress: shards.Progress,
) -> None:
    targets = _targets(len(rows.ids), plan)
    done = journal.done()
    items = [
        {
            **dataclasses.asdict(block),
            # Absolute, for a worker may live in another folder.
            "path": block.path if storage.is_remote(block.path) else os.path.abspath(block.path),
            "targets": targets[block.first : block.first + block.count],
        }
        for block in rows.blocks
    ]
    wanted = [item for item in items if (item["targets"][:, 0] >= 0).any()]
    total = sum(len(item["targets"]) for item in wanted)
    todo = [item for item in wanted if (item["first"], item["count"]) not in done]
    finished = total - sum(len(item["targets"]) for item in todo)
    progress("decoding", finished, total)
    if not todo:
        return
    _quiet_ray_data()
    write = _BlockWriter(temporary.absolute(), hdf5.slots(temporary), profile)
    # One block per task: a task's result is its block's journal line.
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(write)
    for result in _results(dataset):
        if result["failed"]:
            raise WorkError(f"{result['failed']}; what is done is kept, the same command goes on")
        first, count = int(result["first"]), int(result["count"])
        journal.add({"first": first, "count": count, "rejected": json.loads(result["rejected"])})
        finished += count
        progress("decoding", finished, total)


def _results(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        raise WorkError(
            f"Ray stopped: {str(error).strip().splitlines()[-1]}; what is done is kept, the same "
            "command goes on"
        ) from error


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
        failed = ""
        try:
            rejected = self._write_block(block, np.asarray(item["targets"]).reshape(-1, 2))
        except (InputError, OSError) as error:
            failed = str(error)
        # As text: Ray Data has no column type for a list that is empty in most blocks.
        result = {"first": block.first, "count": block.count, "failed": failed}
        return result | {"rejected": json.dumps(rejected)}

    def _write_block(self, block: shards.Block, targets: np.ndarray) -> list[tuple[int, str]]:
        rejected: list[tuple[int, str]] = []
        batches = shards.read(block, ["image.bytes"])
        contents = (data for batch in batches for data in shards.image_bytes(batch))
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            for row, (data, target) in enumerate(zip(contents, targets, strict=True)):
                reason = self._write(descriptor, data, target)
                if reason:
                    rejected.append((block.first + row, reason))
            # The journal will say that these are written: true also after a power cut.
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        return rejected

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
    """List the rejected rows; ``row`` counts from the first row of its shard."""
    path.unlink(missing_ok=True)
    if not rejected:
        return
    firsts = [block.first for block in rows.blocks]
    shard_first: dict[str, int] = {}
    for block in rows.blocks:
        shard_first.setdefault(block.path, block.first)
    lines = []
    for row, reason in sorted(rejected.items()):
        shard = rows.blocks[bisect.bisect_right(firsts, row) - 1].path
        place = {"id": rows.ids[row], "shard": shard, "row": row - shard_first[shard]}
        lines.append(json.dumps(place | {"reason": reason}) + "\n")
    storage.write_text(str(path), "".join(lines))


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
    smaller = temporary.with_suffix(".compact.tmp")
    rejected = sum(len(members) - len(kept[split]) for split, members in plan.items())
    try:
        smaller.unlink(missing_ok=True)
        _check_space(smaller.parent, kept, profile)
    except InputError as error:
        raise WorkError(
            f"{error}: a second copy, without the {rejected} rejected; the same command goes on"
        ) from None
    _create(smaller, rows, kept, profile, attributes, rejected=rejected)
    descriptor = os.open(smaller, os.O_WRONLY)
    try:
        for split, where in hdf5.slots(smaller).items():
            pixels = hdf5.map_images(temporary, split)
            for slot, source in enumerate(np.flatnonzero(np.isin(plan[split], kept[split]))):
                hdf5.write_image(descriptor, where, slot, pixels[source])
    finally:
        os.close(descriptor)
    return smaller


def _finish(temporary: Path, path: Path) -> None:
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)

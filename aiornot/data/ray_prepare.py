"""Parquet shards -> one HDF5 file, with Ray Data.

``aiornot prepare data/aiornot --out data/prepared --profile reduced`` runs this. Rows, splits and
slots are fixed first from the cheap columns; then ``data/ray_decode.py`` fills the slots. Which
images are nearly the same is known once all are decoded: if that changes a split, the images are
copied into other slots at the end.
"""

import bisect
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aiornot import ray_session, storage
from aiornot.config import InputError
from aiornot.data import duplicates, hdf5, layout, ray_decode, shards, slices, splits
from aiornot.data.journal import Journal
from aiornot.data.layout import Layout, Profile


@dataclasses.dataclass(frozen=True)
class Summary:
    """What ``prepare`` did."""

    path: Path
    counts: dict[str, int]
    rejected: int
    duplicates: int
    """Rows of the source that show the same as an earlier row."""
    conflicts: int
    """Groups of such rows that carry both labels."""
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
    near_duplicates: int | None = duplicates.DISTANCE,
    hold_out: str | None = None,
    max_rejected: float = 0.01,
    num_cpus: int | None = None,
    alone: bool = False,
    progress: shards.Progress = lambda what, done, total: None,
) -> Summary:
    """Write ``out/<profile>.h5`` from parquet shards of labelled images.

    A finished file made from the same rows with the same settings is left alone, another is
    replaced once the new one is whole; an interrupted run is continued. Rows that cannot be
    decoded are listed in ``<profile>.rejected.jsonl``, who is in which split and which rows are
    near-duplicates in ``<profile>.splits.json``, and the generator of each image, where the source
    has a column of that name, in ``<profile>.slices.json``.

    Args:
        source: A parquet file, a folder of them, a glob, or the same on ``s3://`` or ``hf://``.
        out: Folder of the prepared files.
        profile: Size, limit and geometry.
        seed: Of the splits and of the order within them.
        near_duplicates: Bits of 128 in which the perceptual hashes of two rows may differ to be
            kept in one split; None keeps equal files together only.
        hold_out: A generator whose images stay out of train and val, to see on test how a model
            fares with one that it does not know.
        max_rejected: Share of rows that may fail to decode.
        num_cpus: Cores to use on this machine.
        alone: Use this machine only, where ``out`` is a folder that others do not share.
        progress: Called as the work proceeds.

    Raises:
        InputError: Nothing readable there, a wrong schema, wrong labels, too many bad images, no
            room, or a file in the way that is none of ours.
        WorkError: It stopped half-way; what is done is kept, and the same call goes on.
    """
    _check_arguments(out, seed, max_rejected, near_duplicates)
    rows = shards.read_rows(source, progress=progress)
    left_out = None if hold_out is None else slices.made_by(rows, hold_out)
    settings = layout.settings_of(
        rows, profile, seed=seed, near_duplicates=near_duplicates, hold_out=hold_out
    )
    path = out / f"{profile.name}.h5"
    if (found := _finished(path, settings)) is not None:
        slices.write(path, rows)
        return _summary(path, found, skipped=True)
    if path.exists() and not hdf5.is_ours(path):
        raise InputError(
            f"{path} is damaged or was not made by 'aiornot prepare': delete it, or give another "
            "--out"
        )
    job = _Job(source, path, rows, profile, settings, seed, near_duplicates, left_out, progress)
    hashes = duplicates.read_hashes(job.hashes_path, rows.fingerprint)
    hashing = near_duplicates is not None and hashes is None
    clusters = job.clusters(hashes)
    # A row that is left out of train may yet move to test, once the near-duplicates are known.
    first = job.layout(clusters, whole=hashing)
    _make_folder(out)
    # The order of slots depends on whether the hashes were known; so does what may be continued.
    header = json.dumps({"settings": settings, "hashing": hashing})
    with Journal.locked(path.with_suffix(".h5.journal"), header) as journal:
        temporary = job.open(first, journal, header)
        progress("starting Ray", 0, 1)
        with ray_session.connected(num_cpus=num_cpus, alone=alone):
            progress("starting Ray", 1, 1)
            ray_decode.write_images(temporary, first, journal, hashing=hashing, progress=progress)
        if hashing:
            hashes = journal.hashes(len(rows.ids))
            clusters = job.clusters(hashes)
        replaced = path.exists()
        facts = job.close(temporary, first, clusters, journal.rejected(), max_rejected)
        if hashing and hashes is not None:
            # Last: an interrupted run goes on from its journal, in the order of unknown hashes.
            duplicates.write_hashes(job.hashes_path, rows.fingerprint, hashes)
        journal.path.unlink()
    return dataclasses.replace(_summary(path, facts, skipped=False), replaced=replaced)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One file to be made, from its plan to its place."""

    source: str
    path: Path
    rows: shards.Rows
    profile: Profile
    settings: str
    seed: int
    near_duplicates: int | None
    left_out: np.ndarray | None
    """(N,) true for the rows that train and val do without."""
    progress: shards.Progress

    @property
    def hashes_path(self) -> Path:
        """Where the hashes of these rows are kept, for the other profiles."""
        return self.path.parent / f"hashes-{self.rows.fingerprint[:8]}.json"

    def clusters(self, hashes: Sequence[bytes | None] | None) -> splits.Rows:
        known = [None] * len(self.rows.ids) if hashes is None else hashes
        return duplicates.clusters(self.rows.hashes, known, distance=self.near_duplicates)

    def layout(self, clusters: splits.Rows, *, whole: bool = False) -> Layout:
        """Return who stands where; ``whole``: also those that are to be left out."""
        limit = self.profile.limit
        try:
            plan = splits.plan(self.rows.labels, clusters=clusters, limit=limit, seed=self.seed)
            if self.left_out is not None and not whole:
                plan = splits.thin(plan, self.rows.labels, left_out=self.left_out)
        except InputError as error:
            raise InputError(f"{self.source}: {error}") from None
        return Layout(self.rows, plan, self.profile)

    def open(self, first: Layout, journal: Journal, header: str) -> Path:
        """Return the unfinished file: an interrupted run's, or a new one."""
        # Named by the settings: a worker that outlives an interrupted run finds only its own file.
        token = hashlib.sha256(header.encode()).hexdigest()[:8]
        temporary = self.path.with_suffix(f".h5.{token}.tmp")
        if temporary.exists() and journal.is_open:
            return temporary
        litter = list(self.path.parent.glob(f"{self.path.name}.*.tmp"))
        layout.check_space(self.path.parent, first, litter=litter)
        journal.clear()  # before the file is made: an old one must not speak for the new
        for file in litter:
            file.unlink()
        layout.create(temporary, first, self.settings)
        journal.start()
        return temporary

    def close(
        self,
        temporary: Path,
        first: Layout,
        clusters: splits.Rows,
        rejected: Mapping[int, str],
        max_rejected: float,
    ) -> dict[str, Any]:
        """Bring the images into their last order and the file into its place; return its facts."""
        _report_rejected(self.path.with_suffix(".rejected.jsonl"), self.rows, rejected)
        _check_rejected(rejected, len(first), max_rejected, self.path)
        last = self.layout(clusters).without(rejected)
        finished = temporary
        if not last.equals(first):
            finished = layout.rearrange(
                temporary, first, last, self.settings, progress=self.progress
            )
        splits_path = self.path.with_suffix(".splits.json")
        facts = layout.write_splits(splits_path, last, clusters, self.settings)
        slices.write(self.path, self.rows)
        facts |= {"rejected": len(rejected)}
        layout.finish(finished, self.path, facts)
        temporary.unlink(missing_ok=True)
        return facts


def _check_arguments(
    out: Path, seed: int, max_rejected: float, near_duplicates: int | None
) -> None:
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} must lie between 0 and {2**32 - 1}")
    if not 0 <= max_rejected <= 1:
        raise InputError(f"--max-rejected {max_rejected:g} is a share: give 0 to 1")
    most = duplicates.MAX_DISTANCE
    if near_duplicates is not None and not 0 <= near_duplicates <= most:
        raise InputError(
            f"--near-duplicates {near_duplicates} is a number of bits: give 0 to {most}, or off"
        )
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


def _finished(path: Path, settings: str) -> dict[str, Any] | None:
    """Return what the finished file says of itself if it is whole and has these settings."""
    try:
        hdf5.slots(path)
        found = hdf5.attributes(path)
    except InputError:  # absent, cut short, or of another schema version
        return None
    return found if found.get("settings") == settings else None


def _summary(path: Path, facts: Mapping[str, Any], *, skipped: bool) -> Summary:
    counts = {split: where.count for split, where in hdf5.slots(path).items()}
    return Summary(
        path,
        counts,
        rejected=int(facts["rejected"]),
        duplicates=int(facts["duplicates"]),
        conflicts=int(facts["conflicts"]),
        skipped=skipped,
    )


def _report_rejected(path: Path, rows: shards.Rows, rejected: Mapping[int, str]) -> None:
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
    rejected: Mapping[int, str], total: int, max_rejected: float, path: Path
) -> None:
    if len(rejected) > max_rejected * total:
        raise InputError(
            f"{len(rejected)} of {total} images cannot be decoded, more than --max-rejected "
            f"{max_rejected:g}; {path.with_suffix('.rejected.jsonl')} lists each with its reason"
        )

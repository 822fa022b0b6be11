"""What a prepared file holds and where: from rows and a plan to the file that takes the images.

``data/ray_prepare.py`` lays a file out here, has it filled, and finishes it here.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from aiornot import storage
from aiornot.config import InputError, WorkError
from aiornot.data import duplicates, hdf5, images, shards, splits

POLICY = "StratifiedKFold(10): fold 0 val, folds 1-2 test; duplicates whole"

_NO_FACTS = {"rejected": 0, "duplicates": 0, "conflicts": 0, "splits_digest": np.bytes_("0" * 64)}
"""What is known at the end only. There from the start, so that filling it in moves no byte."""

_DECIDE_PIXELS = ("aiornot", "numpy", "pillow", "simplejpeg")

_COPY_STEP = 100
"""Images copied between two words on progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """What one prepared file holds."""

    name: str
    size: int
    limit: int | None = None
    """Only the first so many rows of the source, of splits that were made on all rows."""
    geometry: images.Geometry = "resize"
    resample: images.Resample = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"--size {self.size} must be at least 1 pixel")


PROFILES = {
    "debug": Profile(name="debug", size=256, limit=1000),
    "reduced": Profile(name="reduced", size=256, limit=5000),
    "full": Profile(name="full", size=512),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which row stands in which slot of a file."""

    rows: shards.Rows
    plan: splits.Plan
    profile: Profile

    def __len__(self) -> int:
        return sum(len(members) for members in self.plan.values())

    def counts(self) -> dict[str, int]:
        return {split: len(members) for split, members in self.plan.items()}

    def ids(self) -> dict[str, list[str]]:
        return {
            split: [self.rows.ids[row] for row in members] for split, members in self.plan.items()
        }

    def targets(self) -> np.ndarray:
        """Return (num_rows, 2): split number and slot of every row, -1 where it has none."""
        targets = np.full((len(self.rows.ids), 2), -1, dtype=np.int64)
        for number, split in enumerate(splits.SPLITS):
            targets[self.plan[split], 0] = number
            targets[self.plan[split], 1] = np.arange(len(self.plan[split]))
        return targets

    def without(self, rows: Iterable[int]) -> "Layout":
        """Return the layout with these rows left out and their slots closed."""
        left_out = list(rows)
        kept = {split: rows[~np.isin(rows, left_out)] for split, rows in self.plan.items()}
        return dataclasses.replace(self, plan=kept)

    def equals(self, other: "Layout") -> bool:
        return all(np.array_equal(rows, other.plan[split]) for split, rows in self.plan.items())


def settings_of(
    rows: shards.Rows,
    profile: Profile,
    *,
    seed: int,
    near_duplicates: int | None,
    hold_out: str | None = None,
) -> str:
    """Return all that decides the content of a file, as text: equal if and only if it is."""
    values = dataclasses.asdict(profile) | {"seed": seed, "near_duplicates": near_duplicates}
    if hold_out is not None:  # files that were prepared before know no such word
        values |= {"hold_out": hold_out}
    return json.dumps(values | {"fingerprint": rows.fingerprint}, sort_keys=True)


def check_space(folder: Path, layout: Layout, *, litter: Sequence[Path] = ()) -> None:
    """Refuse what cannot fit, once ``litter`` is deleted.

    Raises:
        InputError: The disk is too small.
    """
    size = layout.profile.size
    needed = len(layout) * size**2 * 3
    free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in litter)
    if needed > free:
        raise InputError(
            f"{folder}: {storage.spoken(needed)} are needed for {len(layout)} images of {size} px "
            f"and {storage.spoken(free)} are free; free some, or lower --size or --limit"
        )


def create(path: Path, layout: Layout, settings: str) -> None:
    """Lay a file out at its full size, its facts still to be filled in by ``finish``.

    Raises:
        InputError: There is no room, or the folder cannot be written.
    """
    profile, plan, labels = layout.profile, layout.plan, layout.rows.labels
    try:
        hdf5.create(
            path,
            size=profile.size,
            labels={split: labels[members] for split, members in plan.items()},
            ids=layout.ids(),
            attributes={
                "fingerprint": layout.rows.fingerprint,
                "profile": profile.name,
                "geometry": profile.geometry,
                "resample": profile.resample,
                "source_note": layout.rows.note,
                "split_policy": POLICY,
                "settings": settings,
                "versions": json.dumps({name: version(name) for name in _DECIDE_PIXELS}),
                **_NO_FACTS,
            },
        )
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}; mend that, or give --out") from None


def rearrange(
    temporary: Path, old: Layout, new: Layout, settings: str, *, progress: shards.Progress
) -> Path:
    """Copy the images into the slots of another layout; a contiguous dataset cannot shrink.

    Raises:
        WorkError: There is no room for a second copy.
    """
    path = temporary.with_suffix(".copy.tmp")
    try:
        path.unlink(missing_ok=True)
        check_space(path.parent, new)
        create(path, new, settings)
    except InputError as error:
        raise WorkError(
            f"{error}: a second copy, without rejected rows and with near-duplicates in one split; "
            "the same command goes on"
        ) from None
    pixels = {split: hdf5.map_images(temporary, split) for split in splits.SPLITS}
    targets, slots = old.targets(), hdf5.slots(path)
    moves = [
        (slots[split], slot, pixels[splits.SPLITS[targets[row, 0]]][targets[row, 1]])
        for split, members in new.plan.items()
        for slot, row in enumerate(members)
    ]
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for done, (where, slot, image) in enumerate(moves):
            hdf5.write_image(descriptor, where, slot, image)
            if done % _COPY_STEP == 0:
                progress("arranging", done, len(moves))
    finally:
        os.close(descriptor)
    return path


def finish(temporary: Path, path: Path, facts: dict[str, Any]) -> None:
    """Put the facts that are only known now into the file, and the file into its place."""
    hdf5.amend(temporary, facts)
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)


def write_splits(
    path: Path, layout: Layout, clusters: splits.Rows, settings: str
) -> dict[str, Any]:
    """Write who is in which split and what was kept together; return the facts of it.

    ``digest`` is taken as ``splits.digest`` says, over the ids of ``splits``.
    """
    ids, labels = layout.rows.ids, layout.rows.labels
    groups = duplicates.groups(clusters)
    mixed = duplicates.conflicts(labels, clusters)
    digest = splits.digest(layout.plan, ids)
    facts = {
        "splits_digest": np.bytes_(digest),
        "duplicates": sum(len(group) - 1 for group in groups),
        "conflicts": len(mixed),
    }
    content = {
        "digest": digest,
        "policy": POLICY,
        "settings": json.loads(settings),
        "splits": layout.ids(),
        "duplicates": [[ids[row] for row in group] for group in groups],
        "conflicts": [[ids[row] for row in group] for group in mixed],
    }
    storage.write_text(str(path), json.dumps(content, indent=1) + "\n")
    return facts


def read_clusters(path: Path, split: str) -> np.ndarray | None:
    """Return the number of each image's cluster of near-duplicates (N,), as prepare found them.

    Args:
        path: The prepared file; ``write_splits`` put their list beside it.
        split: Its images, in their order.

    Returns:
        None where the list is not there or is that of another file.
    """
    listed = path.with_suffix(".splits.json")
    try:
        content = json.loads(listed.read_text(encoding="utf-8"))
        groups, digest = content["duplicates"], content["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if digest != hdf5.attributes(path).get("splits_digest"):
        return None
    number = {name: row for row, group in enumerate(groups) for name in group}
    ids = hdf5.read_ids(path, split)
    return np.array([number.get(name, len(groups) + row) for row, name in enumerate(ids)])

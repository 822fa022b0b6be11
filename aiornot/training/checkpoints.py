"""The checkpoints of one trial: a folder per tick, of which the newest and the best are kept.

Whoever runs a trial (``aiornot train``, a Tune trial, a Ray Train worker) keeps and finds its
checkpoints through this room, so that any of them can go on where another stopped.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from aiornot import storage


def folder_of(root: str, tick: int) -> str:
    """Return where the checkpoint of a tick lies; ``root`` is the trial's folder."""
    return storage.join(root, f"tick_{tick:02d}")


def newest_tick(root: str) -> int:
    """Return the last tick whose checkpoint was kept to its end, 0 if there is none."""
    found = storage.complete_folders(root)
    return int(found[-1].rsplit("_", 1)[-1]) if found else 0


def keep(folder: Path, root: str, metrics: Mapping[str, float]) -> None:
    """Keep the checkpoint of a tick, and of the older ones only the best."""
    tick = int(metrics["tick"])
    storage.put_folder(folder, folder_of(root, tick))
    _keep_only(root, {folder_of(root, tick), folder_of(root, int(metrics["best_tick"]))})


def keep_best(root: str, best_tick: int) -> None:
    """Of a trial that has ended keep the best checkpoint alone: it will not go on."""
    _keep_only(root, {folder_of(root, best_tick)})


def _keep_only(root: str, wanted: set[str]) -> None:
    for path in storage.list_folders(root):
        if path not in wanted:
            storage.delete(path)


@contextmanager
def newest(root: str) -> Iterator[Path | None]:
    """Give the newest checkpoint that was kept to its end as a local folder, None without one."""
    found = storage.complete_folders(root)
    if not found:
        yield None
        return
    with fetched(found[-1]) as folder:
        yield folder


@contextmanager
def fetched(path: str) -> Iterator[Path]:
    """Give a checkpoint as a local folder; a remote one is copied for the while."""
    if not storage.is_remote(path):
        yield Path(path)
        return
    temporary = Path(tempfile.mkdtemp(prefix="aiornot-"))
    try:
        storage.get_folder(path, temporary / "checkpoint")
        yield temporary / "checkpoint"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

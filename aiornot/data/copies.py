"""Local copies of prepared files that lie in an object store: one per machine, made once.

``aiornot tune fast --data s3://bucket/prepared`` trains from them, since an image file is mapped
into memory; ``aiornot prepare SOURCE --out s3://bucket/prepared`` makes one and publishes it. They
lie in ``~/.cache/aiornot``, or where AIORNOT_CACHE says.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aiornot import storage
from aiornot.config import InputError, WorkError
from aiornot.data import hdf5

CACHE = "AIORNOT_CACHE"
"""Variable that names the folder of the copies, on every machine."""

BESIDE = (".splits.json", ".slices.json", ".rejected.jsonl")
"""What belongs to a prepared file and lies beside it."""

SUM = ".h5.sha256"
"""The checksum of a prepared file, as ``sha256sum`` writes it; put last."""

_NOTE = ".h5.copy.json"
"""Of what a local file is the copy."""

Progress = Callable[[str, int, int], None]


def _quiet(what: str, done: int, total: int) -> None:
    pass


def cache_folder() -> Path:
    """Return the folder of this machine that holds the copies."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE) or Path(home) / "aiornot").absolute()


def folder_of(data: str) -> Path:
    """Return the folder of prepared files on this machine.

    Of one in an object store it is that of the copies, whether or not there are any.
    """
    if not storage.is_remote(data):
        return Path(data)
    url = data.rstrip("/")
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2])
    return cache_folder() / "data" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def told(path: Path) -> dict[str, str]:
    """Return what a worker on another machine is told of a prepared file, for ``here``."""
    note = _read_note(path)
    if note and _is_copy(path, note["version"]):
        return {"data": note["source"], "version": note["version"]}
    return {"data": str(path.resolve()), "version": ""}


def here(data: str, version: str = "") -> Path:
    """Return a prepared file on this machine, fetched if it is not there yet.

    Args:
        data: A path that all machines share, or the address of a file in an object store.
        version: Of the latter, as the driver met it; with a copy of it nothing is asked of the
            store, which may be away.
    """
    if not storage.is_remote(data):
        return Path(data)
    storage.trust(data)
    return fetch(data, version=version)


def fetch(url: str, *, version: str = "", progress: Progress = _quiet) -> Path:
    """Return the local copy of a prepared file, made now if there is none or the file changed.

    Processes that need it at the same time fetch it once. What was fetched is compared with the
    checksum beside it, if there is one, and counts only when it is whole.

    Args:
        url: ``s3://.../full.h5``.
        version: The only one that will do; unsaid, it is the one that is there now.
        progress: Called as the work proceeds, in megabytes.

    Raises:
        InputError: It is not there, cannot be reached, or is no prepared file.
        WorkError: The disk is full, the checksum is another, or the file was replaced.
    """
    folder, _, name = url.rpartition("/")
    path = folder_of(folder) / name
    if version and _is_copy(path, version):
        return path
    found = _version(url)
    if version and version != found:
        raise WorkError(f"{url} was replaced since this run began; put the old file back")
    if not _is_copy(path, found):
        with _locked(path.parent, progress):
            if not _is_copy(path, found):
                _download(url, path, found, progress)
    return path


def _version(url: str) -> str:
    """Return what tells the present content of a remote file from others.

    Its checksum, or size and time where somebody put it there without.
    """
    try:
        size, changed = storage.stat(url)
    except FileNotFoundError:
        folder, _, name = url.rpartition("/")
        raise InputError(
            f"{url}: no such file; make it with 'aiornot prepare SOURCE --out {folder} "
            f"--profile {name.removesuffix('.h5')}'"
        ) from None
    return _read_sum(url) or f"{size} bytes of {changed:.0f}"


def _read_sum(url: str) -> str:
    try:
        return storage.read_text(_beside(url, SUM)).split()[0]
    except (FileNotFoundError, IndexError):
        return ""


def _beside(url: str, suffix: str) -> str:
    return url.removesuffix(".h5") + suffix


@contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold a folder of copies for this process alone; another one waits, and says so."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("a")
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; set {CACHE} to another folder") from None
    with stream:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(f"another process is at work in {folder}", 0, 1)
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(url: str, path: Path, version: str, progress: Progress) -> None:
    size, _ = storage.stat(url)
    temporary = path.with_suffix(".h5.part")
    temporary.unlink(missing_ok=True)  # of a process that was killed
    _check_room(url, size, path.parent)
    try:
        digest = storage.get_file(
            url,
            temporary,
            progress=lambda done, total: progress(f"MB of {url}", done >> 20, total >> 20),
        )
        if (expected := _read_sum(url)) not in ("", digest):
            raise WorkError(
                f"{url}: its SHA-256 is {digest[:12]}..., the file beside it says "
                f"{expected[:12]}...: it is damaged or just being replaced; try again in a "
                "minute, or prepare it anew"
            )
        try:
            hdf5.slots(temporary)
        except InputError as error:
            raise InputError(str(error).replace(str(temporary), url)) from None
        for suffix in BESIDE:
            _fetch_beside(_beside(url, suffix), path.with_suffix(suffix))
        path.with_suffix(_NOTE).unlink(missing_ok=True)
        temporary.replace(path)
        _write_note(path, url, version)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(url, size, path.parent) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _check_room(url: str, size: int, folder: Path) -> None:
    if size > shutil.disk_usage(folder).free:
        raise _no_room(url, size, folder)


def _no_room(url: str, size: int, folder: Path) -> WorkError:
    free = shutil.disk_usage(folder).free
    return WorkError(
        f"{folder}: No space left on device: {url} takes {storage.spoken(size)}, "
        f"{storage.spoken(free)} are free; make room, or set {CACHE} to a folder on a larger disk"
    )


def _fetch_beside(url: str, path: Path) -> None:
    try:
        storage.write_text(str(path), storage.read_text(url))
    except FileNotFoundError:
        path.unlink(missing_ok=True)


def _write_note(path: Path, url: str, version: str) -> None:
    state = path.stat()
    note = {"source": url, "version": version, "size": state.st_size, "changed": state.st_mtime_ns}
    storage.write_text(str(path.with_suffix(_NOTE)), json.dumps(note) + "\n")


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads(path.with_suffix(_NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return note


def _is_copy(path: Path, version: str) -> bool:
    """Tell whether a local file is a whole copy of a version, and was not touched since."""
    note = _read_note(path)
    try:
        state = path.stat()
    except OSError:
        return False
    now = {"version": version, "size": state.st_size, "changed": state.st_mtime_ns}
    return now.items() <= note.items()


@contextmanager
def published(url: str, *, progress: Progress = _quiet) -> Iterator[Path]:
    """Give the folder of this machine in which a file is to be prepared, and then publish it.

    Whatever is in it stays there, so an interrupted command goes on, and this machine trains from
    what it made. A file that was published from another machine is fetched, to be found finished.

    Raises:
        InputError: The store cannot be reached or written; nothing was prepared.
    """
    folder, _, name = url.rpartition("/")
    _check_writable(folder)
    path = folder_of(folder) / name
    with _locked(path.parent, progress):
        begun = path.exists() or path.with_suffix(".h5.journal").exists()
        if not begun and storage.exists(url):
            _download(url, path, _version(url), progress)
        yield path.parent
        _publish(path, url, progress)


def _check_writable(url: str) -> None:
    """Refuse a remote folder that cannot be written, before the work and not after it."""
    storage.check_address(url)
    if not url.removeprefix("s3://").strip("/") or not url.startswith("s3://"):
        raise InputError(f"--out {url}: give a folder of this machine, or s3://BUCKET/FOLDER")
    probe = storage.join(url, ".writable")
    try:
        storage.write_text(probe, "")
        storage.delete(probe)
    except storage.StoreError as error:
        raise InputError(f"--out {url} cannot be written: {error.reason}") from None


def _publish(path: Path, url: str, progress: Progress) -> None:
    """Put a prepared file, and what lies beside it, into an object store.

    Each file is replaced whole. Until the checksum, which comes last, whoever fetches it is told
    that it is being replaced.
    """
    progress(f"checksum of {path.name}", 0, 1)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not storage.exists(url) or digest != _read_sum(url):
        progress(f"putting {url}", 0, 1)
        storage.put_file(url, path)
        for suffix in BESIDE:
            beside = path.with_suffix(suffix)
            if beside.exists():
                storage.put_file(_beside(url, suffix), beside)
            else:
                storage.delete(_beside(url, suffix))
        storage.write_text(_beside(url, SUM), f"{digest}  {path.name}\n")
    _write_note(path, url, digest)

"""Files on a local path, ``s3://`` or ``hf://``; nothing else knows about file systems.

A write is atomic: a reader sees the old content or the new, never a half. Used by the ledger, the
checkpoints and the bundle (``aiornot tune fast --storage s3://bucket/runs``). What a run does with
its files outlasts an outage of a remote store; looking for sources does not wait.
"""

import errno
import fnmatch
import functools
import glob
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from aiornot.config import InputError, WorkError


def join(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *parts])


def is_remote(path: str) -> bool:
    return "://" in path


def absolute(path: str) -> str:
    """Return a path that means the same in every process; workers have folders of their own."""
    return path if is_remote(path) else str(Path(path).absolute())


def check_address(path: str) -> None:
    """Refuse an address that is none of ours, or holds a secret, without asking anybody.

    Raises:
        InputError: It is, and the sentence does not show the secret.
    """
    if not is_remote(path):
        return
    if path.startswith("file://"):
        raise InputError(f"{path}: write a local path without file://")
    scheme, _, rest = path.partition("://")
    host = rest.partition("/")[0]
    if "@" in host:  # Arrow takes s3://KEY:SECRET@bucket, and every message would show the secret
        raise InputError(
            f"{scheme}://...@{host.rpartition('@')[2]}: leave out what precedes the '@'; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    if "?" in path:
        # The names of the files in such a folder would come after the question mark.
        instead = "; set AWS_ENDPOINT_URL and AWS_REGION instead" if scheme == "s3" else ""
        raise InputError(f"{path}: leave out what follows the '?'{instead}")
    if scheme not in ("s3", "hf"):  # gs:// too: without a network Arrow would try for minutes
        raise InputError(f"{path}: use a local path, s3:// or hf://")


def spoken(num_bytes: float) -> str:
    """Return a size in the unit in which people would say it: 640 kB, 3.1 MB, 20 GB."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = next((p for p in range(len(units)) if abs(num_bytes) < 1000 ** (p + 1)), len(units) - 1)
    return f"{num_bytes / 1000**power:.1f}".removesuffix(".0") + f" {units[power]}"


def _open(path: str) -> tuple[fs.FileSystem, str]:
    check_address(path)
    if not is_remote(path):
        return fs.LocalFileSystem(), str(Path(path).absolute())
    scheme, _, rest = path.partition("://")
    if scheme == "hf":
        from aiornot import hub  # takes a quarter of a second

        return hub.connect(path)
    host, slash, name = rest.partition("/")
    try:
        # A name may hold what an address may not: spaces, brackets, a percent sign.
        system, inner = fs.FileSystem.from_uri(f"{scheme}://{host}{slash}{quote(name)}")
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: {error}") from None
    return system, inner


PATIENCE = 120.0
"""Seconds for which an operation is repeated, counted from its first failure."""

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 16.0
"""Seconds between two attempts; each doubles. Arrow fails after having tried for 6 s itself."""

_PASSING = re.compile(
    r"AWS Error (INTERNAL_FAILURE|NETWORK_CONNECTION|REQUEST_TIMEOUT|SERVICE_UNAVAILABLE|SLOW_DOWN"
    r"|THROTTLING|UNKNOWN \(HTTP status (429|500|502|503|504)\))"
)
"""How Arrow words what will pass; it raises a bare OSError for this and for all else."""

FAILED = "the object store failed"
"""What every StoreError says, so that it is known where only its text arrives."""


class StoreError(WorkError, OSError):
    """A store that was there refused, or stayed away for longer than is waited for."""

    def __init__(self, store: str, error: OSError) -> None:
        self.reason = _first_line(error)
        super().__init__(
            f"{store}: {FAILED}: {self.reason}; mend that, and the same command goes on"
        )


_reached: set[str] = set()
"""The stores that are known to be there, as ``s3://bucket``."""

_away: set[str] = set()
"""The stores that are being waited for; several threads may do so, and one of them says it."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _patient(operate: Callable[Concatenate[str, _P], _T]) -> Callable[Concatenate[str, _P], _T]:
    """Make an operation on a path outlast an outage: it is repeated until the store is back.

    A store that this process never reached is probably misspelt: that is an InputError at once. No
    such operation calls another, since each would wait for the full time.
    """

    @functools.wraps(operate)
    def patient(path: str, /, *args: _P.args, **options: _P.kwargs) -> _T:
        attempt = functools.partial(operate, path, *args, **options)
        if not is_remote(path):
            return attempt()
        try:
            result = attempt()
        except OSError as error:
            store, reason = _store(path), _first_line(error)
            if error.errno is None and store not in _reached:  # with one it is the path's error
                raise InputError(
                    f"{store} cannot be reached: {reason}; check the bucket, AWS_ENDPOINT_URL and "
                    "the credentials"
                ) from None
            if error.errno is not None:
                raise
            if not _passes(error):
                raise StoreError(store, error) from None
            if store not in _away:
                logging.getLogger(__name__).warning(
                    "%s cannot be reached; trying again for %.0f s: %s", store, PATIENCE, reason
                )
            _away.add(store)
            try:
                return _repeated(attempt, store)
            finally:
                _away.discard(store)
        _reached.add(_store(path))
        return result

    return patient


def _repeated(attempt: Callable[[], _T], store: str) -> _T:
    """Try again with growing pauses, until patience is at an end."""
    end = time.monotonic() + PATIENCE
    pause = SHORTEST_PAUSE
    while True:
        time.sleep(pause)
        try:
            return attempt()
        except OSError as error:
            if error.errno is not None:
                raise
            if not _passes(error) or time.monotonic() > end:
                raise StoreError(store, error) from None
        pause = min(2 * pause, LONGEST_PAUSE)


def _passes(error: OSError) -> bool:
    return bool(_PASSING.search(str(error)))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _store(path: str) -> str:
    return "/".join(path.split("/")[:3])


def trust(path: str) -> None:
    """Take a store for one that is there, since whoever started this process has reached it.

    So an outage does not end it even where it is the first thing that a process asks of its store.
    """
    _reached.add(_store(path))


@_patient
def exists(path: str) -> bool:
    system, inner = _open(path)
    return bool(system.get_file_info(inner).type != fs.FileType.NotFound)


@_patient
def stat(path: str) -> tuple[int, float]:
    """Return the size of a file in bytes, and when it was changed in seconds since 1970.

    Raises:
        FileNotFoundError: It is not there, or is a folder.
    """
    system, inner = _open(path)
    info = system.get_file_info(inner)
    if not info.is_file:
        raise FileNotFoundError(errno.ENOENT, "no such file", path)
    return int(info.size), (info.mtime_ns or 0) / 1e9


@_patient
def read_text(path: str) -> str:
    system, inner = _open(path)
    with system.open_input_stream(inner) as stream:
        return bytes(stream.read()).decode()


def write_text(path: str, text: str) -> None:
    """Write a small text as ``write_bytes`` does, in UTF-8."""
    write_bytes(path, text.encode())


@_patient
def write_bytes(path: str, data: bytes) -> None:
    """Write a small file whole. An object store's put is atomic; a local one is renamed."""
    system, inner = _open(path)
    if is_remote(path):
        with system.open_output_stream(inner) as stream:
            stream.write(data)
        return
    local = Path(inner)
    local.parent.mkdir(parents=True, exist_ok=True)
    # The name is unique: a killed writer's leftover must not meet its successor's.
    temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)


def list_files(path: str, *, suffix: str = "") -> list[str]:
    """Return the files directly in a folder, sorted; an absent folder is empty."""
    return [info for info, is_file in _list(path) if is_file and info.endswith(suffix)]


def list_folders(path: str) -> list[str]:
    """Return the folders directly in a folder, sorted; an absent folder is empty."""
    return [info for info, is_file in _list(path) if not is_file]


@_patient
def _list(path: str) -> list[tuple[str, bool]]:
    system, inner = _open(path)
    infos = system.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return sorted(
        (join(path, info.base_name), info.is_file)
        for info in infos
        if not info.base_name.startswith(".")
    )


DONE = "complete"
"""Empty file that is written last into a folder: without it the folder does not count."""

_CHUNK = 1 << 23
"""Bytes of a file that are in memory at once."""


def put_folder(local: Path, path: str) -> None:
    """Copy a local folder to ``path``; it counts once its last file, ``complete``, is there."""
    if not local.is_dir():
        raise FileNotFoundError(f"{local} is no folder")
    delete(path)
    for file in sorted(local.rglob("*")):
        if file.is_file():
            put_file(join(path, *file.relative_to(local).parts), file)
    write_text(join(path, DONE), "")


@_patient
def put_file(path: str, local: Path) -> None:
    """Copy a local file to ``path``; in an object store it is there whole or not at all."""
    system, inner = _open(path)
    if isinstance(system, fs.LocalFileSystem):  # an object store has no folders to be made
        system.create_dir(os.path.dirname(inner), recursive=True)
    # Arrow's copy_files does not tell when the end of an upload fails; closing a stream does.
    with local.open("rb") as source, system.open_output_stream(inner) as target:
        shutil.copyfileobj(source, target, _CHUNK)


_STREAMS, _PART = 8, 1 << 24
"""How many parts of a large file are fetched at a time, and their bytes."""


def get_file(
    path: str, local: Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> str:
    """Copy a large file to a local one, in several streams; return its SHA-256.

    Args:
        path: A file.
        local: Where to; written over.
        progress: Told how many bytes are there, and how many there will be.
    """
    size, _ = stat(path)
    digest, done = hashlib.sha256(), 0
    pool = ThreadPoolExecutor(_STREAMS)
    try:
        with local.open("wb") as target:
            for part in _in_order(pool, path, size):
                target.write(part)
                digest.update(part)
                done += len(part)
                progress(done, size)
            target.flush()
            os.fsync(target.fileno())
    finally:
        pool.shutdown(cancel_futures=True)
    return digest.hexdigest()


def _in_order(pool: ThreadPoolExecutor, path: str, size: int) -> Iterator[bytes]:
    """Yield the parts of a file, of which a few are read ahead."""
    ahead: deque[Future[bytes]] = deque()
    for start in range(0, size, _PART):
        ahead.append(pool.submit(_read_part, path, start, min(_PART, size - start)))
        if len(ahead) > _STREAMS:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


@_patient
def _read_part(path: str, start: int, count: int) -> bytes:
    system, inner = _open(path)
    with system.open_input_file(inner) as file:
        part = bytes(file.read_at(count, start))
    if len(part) != count:
        raise OSError(f"{path} became shorter while it was read")
    return part


def get_folder(path: str, local: Path) -> None:
    """Copy a folder to a local one, which must not exist; ``complete`` stays behind."""
    local.mkdir(parents=True)
    _download(path, local)
    # Put again, it would arrive among the first files and declare the copy done.
    (local / DONE).unlink(missing_ok=True)


@_patient
def _download(path: str, local: Path) -> None:
    system, inner = _open(path)
    fs.copy_files(inner, str(local), system, fs.LocalFileSystem())


def complete_folders(path: str) -> list[str]:
    """Return the folders in ``path`` that were put to their end, sorted by name."""
    trust(path)  # so a trial begins, in a process of its own
    return [folder for folder in list_folders(path) if exists(join(folder, DONE))]


@_patient
def delete(path: str) -> None:
    """Remove a file or a folder with all that is in it; what is absent is fine."""
    _delete(path)


def _delete(path: str) -> None:
    system, inner = _open(path)
    kind = system.get_file_info(inner).type
    if kind == fs.FileType.Directory:
        # First of all, so that a folder that is half deleted does not count as complete.
        _delete(join(path, DONE))
        system.delete_dir(inner)
    elif kind == fs.FileType.File:
        system.delete_file(inner)


def set_aside(path: str) -> str | None:
    """Move a local folder to ``<path>.old-<n>`` and return that name, None if there is none.

    Raises:
        InputError: The path is remote; an object store cannot rename a folder.
    """
    if is_remote(path):
        raise InputError(f"{path}: move the old run away by hand; an object store cannot rename")
    folder = Path(path)
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    shutil.move(folder, target)
    return str(target)


def open_input(path: str) -> pa.NativeFile:
    """Open a file for random reads."""
    system, inner = _open(path)
    return system.open_input_file(inner)


def find(source: str, *, suffix: str) -> list[str]:
    """Return the files that a source names, sorted: a file, a folder, or a glob.

    A folder without such files stands for those in the folders below it.

    Raises:
        InputError: Nothing is there, no file with that suffix, or it cannot be reached.
    """
    if not source.strip():
        raise InputError("the source is empty: name a file, a folder, a glob, s3:// or hf://")
    try:
        found = _find(source, suffix)
    except InputError:
        raise
    except Exception as error:  # each store has its own: OSError, Arrow's
        raise InputError(f"{source} cannot be reached: {_first_line(error)}") from None
    if not found:
        raise InputError(f"{source}: no {suffix} files there")
    return found


def _find(source: str, suffix: str) -> list[str]:
    system, inner = _open(source)
    kind = system.get_file_info(inner).type
    if kind == fs.FileType.File:
        return [source]
    if kind == fs.FileType.Directory:
        # On the hub the shards lie in data/, and its users name the data set alone.
        found = list_files(source, suffix=suffix)
        return found or [path for path in _list_below(source) if path.endswith(suffix)]
    if not any(mark in source for mark in "*?["):
        raise InputError(f"{source}: no such file or folder")
    if not is_remote(source):
        return sorted(path for path in glob.glob(source, recursive=True) if path.endswith(suffix))
    return [path for path in _glob(source) if path.endswith(suffix)]


def _list_below(path: str) -> list[str]:
    """Return the files in a folder and in all folders below it, sorted."""
    system, inner = _open(path)
    infos = system.get_file_info(fs.FileSelector(inner, allow_not_found=True, recursive=True))
    names = [info.path[len(inner) :].strip("/") for info in infos if info.is_file]
    return sorted(join(path, name) for name in names if "/." not in f"/{name}")


def _glob(source: str) -> list[str]:
    """Return the files that a remote glob names, sorted."""
    parts = source.split("/")
    fixed = next(number for number, part in enumerate(parts) if any(mark in part for mark in "*["))
    folder, patterns = "/".join(parts[:fixed]), parts[fixed:]
    deep = len(patterns) > 1 or patterns == ["**"]
    files = _list_below(folder) if deep else list_files(folder)
    return [path for path in files if _matches(path.split("/")[fixed:], patterns)]


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":  # any number of folders
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    here = bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0])
    return here and _matches(parts[1:], patterns[1:])

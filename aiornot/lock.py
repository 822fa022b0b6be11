"""One process at a time: a file that is locked meanwhile, and free once its process is dead.

``aiornot tune`` locks its run on this machine, so that a second one is refused.
"""

import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def held(path: Path, refuse: Callable[[str], Exception]) -> Iterator[None]:
    """Hold a lock meanwhile; on a file system that knows no locks, nothing is held.

    A process that dies holds it no more, whatever became of its children: record locks, unlike
    those of ``flock``, are not inherited. Within one process they do not exclude each other.

    Args:
        path: The file, made here and removed at the end; one that was left behind is no lock.
        refuse: Makes the exception to raise where another process holds it, told which.
    """
    was_there = path.parent.exists()
    with _locked(path, refuse) as stream:
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}")
        stream.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before it is released: see _locked
            if not was_there:
                with suppress(OSError):  # it is not empty
                    path.parent.rmdir()


def _locked(path: Path, refuse: Callable[[str], Exception]) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+")
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            stream.seek(0)
            with stream:
                raise refuse(stream.read() or "another process") from None
        except OSError:  # no locks here
            return stream
        # It may be the file that its last holder removed meanwhile, and a new one is in its place.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        stream.close()

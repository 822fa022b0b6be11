"""What a library's C++ writes to stderr, without the lines that mean nothing to a user.

``aiornot predict --parquet`` uses it: Ray's core writes there, past Python and all its settings.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO

STDERR = 2


@contextmanager
def sifted(nothing: re.Pattern[bytes]) -> Iterator[None]:
    """Leave lines out of this process's stderr meanwhile; all others pass as they are written.

    Python's own ``sys.stderr`` goes past the sieve, for a bar asks whether it is in a terminal.

    Args:
        nothing: What the lines to be left out begin with.
    """
    sys.stderr.flush()
    reader, writer = os.pipe()
    kept = os.dup(STDERR)
    os.dup2(writer, STDERR)
    os.close(writer)
    thread = threading.Thread(target=_sift, args=(reader, os.dup(kept), nothing), daemon=True)
    thread.start()
    try:
        with _past(kept):
            yield
    finally:
        os.dup2(kept, STDERR)  # the last end to write to, so the thread comes to its end
        thread.join(1.0)
        os.close(kept)


def _sift(reader: int, kept: int, nothing: re.Pattern[bytes]) -> None:
    with open(reader, "rb") as lines, open(kept, "wb", buffering=0) as out:
        for line in lines:
            if not nothing.match(line):
                out.write(line)


@contextmanager
def _past(kept: int) -> Iterator[None]:
    """Let ``sys.stderr`` write to ``kept``, if it was this process's stderr and no test's."""
    if not _is_stderr(sys.stderr):
        yield
        return
    with (
        # By the line, as stderr is.
        open(os.dup(kept), "w", 1, sys.stderr.encoding, sys.stderr.errors) as stream,
        redirect_stderr(stream),
    ):
        yield


def _is_stderr(stream: TextIO) -> bool:
    try:
        return stream.fileno() == STDERR
    except (OSError, AttributeError):  # in memory, or a proxy
        return False

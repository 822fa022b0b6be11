"""The journal of an unfinished file: which blocks are written, one JSON line each.

``aiornot prepare`` goes on from it after a crash, and holds it locked while it works.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiornot.config import InputError


class Journal:
    """Which blocks are written, beside an unfinished file; what a resumed run starts from."""

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self._settings = settings
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        self.is_open = lines[:1] == [settings]
        """Whether a run with the same settings was interrupted."""
        self._results = list(_whole(lines[1:])) if self.is_open else []
        if self.is_open:
            # Without the last line of a killed run, to which the next one would be glued.
            self.start()

    @classmethod
    @contextmanager
    def locked(cls, path: Path, settings: str) -> Iterator["Journal"]:
        """Open the journal for one run alone; an empty one is not left behind."""
        try:
            stream = path.open("a")
        except OSError as error:
            raise InputError(f"{path.parent} cannot be written: {error.strerror}") from None
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{path.with_suffix('')}: another 'aiornot prepare' is at work on it; wait, or "
                    "give another --out"
                ) from None
            except OSError:
                pass  # a file system without locks
            try:
                yield cls(path, settings)
            finally:
                if path.exists() and not path.stat().st_size:
                    path.unlink()

    def clear(self) -> None:
        self._results = []
        self.path.write_text("")

    def start(self) -> None:
        """Write the settings, and whatever is known of an interrupted run."""
        lines = [self._settings, *map(json.dumps, self._results)]
        self.path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def add(self, result: dict[str, Any]) -> None:
        self._results.append(result)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(result) + "\n")

    def done(self) -> set[tuple[int, int]]:
        """Return first row and number of rows of every block that is written.

        Both, because the same rows may meanwhile have been cut into other blocks.
        """
        return {(result["first"], result["count"]) for result in self._results}

    def rejected(self) -> dict[int, str]:
        """Return row -> reason of the images that could not be decoded."""
        return {row: why for result in self._results for row, why in result["rejected"]}

    def hashes(self, num_rows: int) -> list[bytes | None]:
        """Return the perceptual hash of every row, None where there is none."""
        found: list[bytes | None] = [None] * num_rows
        for result in self._results:
            for row, text in enumerate(result["hashes"], start=result["first"]):
                found[row] = bytes.fromhex(text) if text else None
        return found


def _whole(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return  # the last line of a killed run; its block is simply done again

"""What the tests took, and what it cost: the table that they print at their end."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager


@dataclasses.dataclass
class Row:
    """A line of the table: what was done, how long that took, and what it cost."""

    what: str
    seconds: float
    trials: str = ""
    ticks: str = ""


ROWS: list[Row] = []


@contextmanager
def timed(what: str) -> Iterator[Row]:
    """Add a line to the table; it is there also where what it times fails."""
    row = Row(what, 0.0)
    ROWS.append(row)
    begin = time.monotonic()
    try:
        yield row
    except BaseException:
        row.what += ": FAILED"
        raise
    finally:
        row.seconds = time.monotonic() - begin
        print(f"{row.what}: {row.seconds:.0f} s", flush=True)

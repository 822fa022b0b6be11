"""Rows of ``board.py`` as people read them: tables, sentences below them, and CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aiornot import storage
from aiornot.config import TICKS, InputError, TrainConfig
from aiornot.tuning import importance
from aiornot.tuning.axes import varied
from aiornot.tuning.board import Row

RUN_COLUMNS = ("run", "stages", "trials", "best", "trial time", "wall time", "delivered")
STAGE_COLUMNS = ("stage", "state", "best", "se", "trials", "trial time", "wall time", "data")
TRIAL_COLUMNS = ("trial", "state", "tick", "score", "se", "why", "seconds", "origin")
IMPORTANCE_COLUMNS = ("parameter", "share", "by chance")

MARK = "*"
LONGEST = 60
"""Characters of a reason in a table; ``--json`` has all of it."""


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: list[list[str]]
    caption: str = ""
    below: Sequence[str] = ()
    """Sentences to stand below it."""
    together: int | None = None
    """Columns that stay in one table where a terminal is too narrow for all."""


def of_runs(root: str, rows: Sequence[Row]) -> Table:
    columns = _with_devices(RUN_COLUMNS, rows)
    return Table(f"runs in {root}", columns, [_cells(row, columns) for row in rows])


def of_stages(run: str, rows: Sequence[Row]) -> Table:
    columns = _with_devices(STAGE_COLUMNS, rows)
    together = columns.index("se") + 1
    return Table(run, columns, [_cells(row, columns) for row in rows], together=together)


def _with_devices(columns: Sequence[str], rows: Sequence[Row]) -> tuple[str, ...]:
    """Show the time of devices where it is not that of the trials: several workers trained one."""
    differs = any(row["device_seconds"] != row["seconds"] for row in rows)
    extra = ("device time",) if differs else ()
    place = columns.index("wall time")
    return (*columns[:place], *extra, *columns[place:])


def of_leaderboard(board: Row) -> list[Table]:
    """Return the trials of a stage and, if there are any, the importances of its parameters."""
    rows = board["trials"]
    told = [name for name in TRIAL_COLUMNS if name != "why" or any(map(_why, rows))]
    columns = (*told, *varied([row["config"] for row in rows]))
    title = f"{board['run']} {board['stage']['stage']}: {_state(board['stage'])}"
    cells = [_cells(row, columns) for row in rows]
    together = columns.index("se") + 1
    tables = [Table(title, columns, cells, _caption(rows), together=together)]
    found = board["importances"]
    if found and found["rows"]:
        tables.append(_of_importances(found))
    tables[-1] = tables[-1]._replace(below=_notes(board))
    return tables


def _caption(rows: Sequence[Row]) -> str:
    parts = []
    if any(row["within_error"] for row in rows):
        parts.append(
            f"{MARK} within one standard error of the best: the order among these is noise"
        )
    if common := _shared(rows):
        parts.append(common)
    return "\n".join(parts)


def _of_importances(found: Row) -> Table:
    rows = [
        [row["parameter"], f"{row['share']:.0%}", f"{row['chance']:.0%}"] for row in found["rows"]
    ]
    return Table("importances", IMPORTANCE_COLUMNS, rows)


def _notes(board: Row) -> list[str]:
    found = board["importances"] or {"rows": [], "note": ""}
    notes = [found["note"]] if found["note"] else []
    if found["rows"]:
        notes.append(importance_note(found))
    notes += [
        f"best values at a bound: {sentence} (widen the range in the stage file if you mean to)"
        for sentence in board["bounds"]
    ]
    notes += [f"rank agreement: {row['verdict']}" for row in board["agreements"]]
    if any(row["traceback"] for row in board["trials"]):
        notes.append("tracebacks of failed trials: --json")
    return notes


def importance_note(found: Mapping[str, Any]) -> str:
    """Return what the shares of importances are, and when they prove nothing."""
    return (
        f"share: in being among the best {found['num_top']} of {found['num_trials']} trials at "
        f"tick {found['rung']}, stopped ones included (PED-ANOVA, less what shuffled scores "
        "give); by chance: how often shuffled scores make any parameter stand out as much, "
        f"above {importance.BY_CHANCE:.0%} it proves nothing"
    )


def _shared(rows: Sequence[Row]) -> str:
    """Return what all trials of a board have in common and is not TrainConfig's default."""
    if not rows:
        return ""
    default, differ = TrainConfig().to_dict(), varied([row["config"] for row in rows])
    common = {key: value for key, value in rows[0]["config"].items() if key not in differ}
    parts = [f"{key}={_plain(value)}" for key, value in common.items() if value != default.get(key)]
    return f"all: {', '.join(parts)}" if parts else ""


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    """Return the cells of a row; a column may be a hyper-parameter."""
    values = {**row.get("config", {}), **row}
    return [
        _CELLS[column](row) if column in _CELLS else _plain(values.get(column))
        for column in columns
    ]


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _error(row: Row) -> str:
    return "-" if row["se"] is None else f"+- {row['se']:.4f}"


def _state(row: Row) -> str:
    """Return the state, of a stage with its reason; a trial has a column for that."""
    if "by_state" in row and row["reason"]:
        return f"{row['state']}: {row['reason']}"
    return str(row["state"])


def _counts(row: Row) -> str:
    """Return how many trials there are, in a stage by their state."""
    states = row.get("by_state")
    if states is None:
        return str(row["trials"])
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "-"


def _why(row: Row) -> str:
    """Return why a trial is where it is, in a line that is not too long."""
    if row["cut"] is not None:
        return f"below the cut {row['cut']:.4f} at rung {row['tick']}"
    first = row["reason"].partition("\n")[0]
    return first if len(first) <= LONGEST else f"{first[: LONGEST - 3]}..."


def duration(seconds: float) -> str:
    """Return a time in the unit in which people would say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


_CELLS: Mapping[str, Callable[[Row], str]] = {
    "trial": lambda row: f"{MARK if row['within_error'] else ' '} {row['trial']}",
    "state": _state,
    "tick": lambda row: f"{row['tick']}/{TICKS}",
    "trials": _counts,
    "best": lambda row: _score(row["best"]),
    "score": lambda row: _score(row["score"]),
    "se": _error,
    "why": _why,
    "seconds": lambda row: f"{row['seconds']:.0f}",
    "trial time": lambda row: duration(row["seconds"]),
    "device time": lambda row: duration(row["device_seconds"]),
    "wall time": lambda row: duration(row["wall_seconds"]),
}


CSV_COLUMNS = (
    *("trial", "state", "reason", "cut", "tick", "score", "se", "within_error", "seconds"),
    *("origin", "role"),
)


def to_csv(rows: Sequence[Row]) -> str:
    """Return a leaderboard as CSV: a row per trial, with every field of its configuration."""
    names = list(dict.fromkeys(name for row in rows for name in row["config"]))
    text = io.StringIO(newline="")
    columns = [*CSV_COLUMNS, *names]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row["config"], **row} for row in rows)
    return text.getvalue()


def write_csv(path: str, rows: Sequence[Row]) -> None:
    """Write a leaderboard to a file, whole or not at all.

    Raises:
        InputError: The path is a folder.
    """
    if not storage.is_remote(path) and Path(path).is_dir():
        raise InputError(f"--csv {path}: there is a folder of that name; give a file, or -")
    storage.write_text(path, to_csv(rows))

"""Tables and any-time curves of what ``run.py`` kept.

    python -m benchmarks.search.figure spirals pairs shapes patches --out docs/search.png

The tables of ``docs/search.md`` come in Markdown on stdout: every method on every task, ``fast``
beside others with intervals (2,000 bootstrap draws of the replicates of both), and what was varied.
"""

import argparse
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from benchmarks.search import methods
from benchmarks.search.run import HOURS, Row, rows_of
from benchmarks.search.table import HOME

Rows = dict[str, list[Row]]

OURS = ("fast", "fast's fifth design")
NUM_DRAWS = 2000
PANELS = 3
"""Side by side in the figure; the legend stands where the last row ends."""

FULL_NUMBER = 40
"""Replicates; where there are fewer, the table says so."""

TARGETS = ("notebook's chain", "notebook's chain, 2 candidates", "random 128, 2 candidates")
SHOWN = {
    "fast": "tab:red",
    "fast's fifth design": "tab:orange",
    "notebook's chain": "black",
    "seed with ASHA, 2 candidates": "tab:blue",
    "random + ASHA": "tab:green",
    "random 128, 2 candidates": "tab:gray",
    "TPE": "tab:purple",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--out", type=Path, help="Write the any-time curves here.")
    options = parser.parse_args()
    found = {task: grouped(rows_of(HOME / task / "methods.jsonl")) for task in options.tasks}
    print(methods_table(found))
    print(f"\n{comparison(found)}")
    for task in options.tasks:
        for what in ("parallel", "variants", "worlds"):
            rows = grouped(rows_of(HOME / task / f"{what}.jsonl"))
            if rows:
                print(f"\n{task}, {what}\n\n{summary(rows)}")
    if options.out:
        draw(options.tasks, options.out)


def grouped(rows: Sequence[Row]) -> Rows:
    """Return the replicates of each method; trials side by side are in its name."""
    found: Rows = {}
    for row in rows:
        beside = f" ({row['places']} side by side)" if row["places"] > 1 else ""
        found.setdefault(row["method"] + beside, []).append(row)
    return found


def methods_table(found: Mapping[str, Rows]) -> str:
    """Return a table of the methods on every task, with hours of search and of what follows."""
    ordered = [name + end for name, each in methods.methods().items() for end in each.ends]
    names = [name for name in ordered if any(name in rows for rows in found.values())]
    lines = [f"| method | {' | '.join(found)} |", f"|---|{'--:|' * len(found)}"]
    for name in names:
        cells = [_cell(rows[name]) if name in rows else "" for rows in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: Sequence[Row]) -> str:
    fewer = f", {len(rows)}" if len(rows) < FULL_NUMBER else ""
    return f"{auroc(rows)} ({mean(rows, 'search'):.1f} + {mean(rows, 'full'):.1f}{fewer})"


def auroc(rows: Sequence[Row]) -> str:
    """Return the mean on test with its standard error."""
    return _bare(f"{mean(rows, 'test'):.4f} +- {error(rows):.4f}")


def _bare(text: str) -> str:
    """Return a text whose numbers below 1 have no zero before the point."""
    return re.sub(r"(?<![0-9])0\.", ".", text)


def summary(rows: Rows) -> str:
    """Return a table of what was varied on one task."""
    lines = [
        "| what | n | search, h | on the wall, h | all, h | finished | test AUROC |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in rows.items():
        search, wall, full, finished = (
            mean(found, key) for key in ("search", "wall", "full", "finished")
        )
        hours = f"{search:.1f} | {wall:.1f} | {search + full:.1f}"
        lines.append(f"| {name} | {len(found)} | {hours} | {finished:.0f} | {auroc(found)} |")
    return "\n".join(lines)


def mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def error(rows: Sequence[Row]) -> float:
    """Return the standard error of the mean AUROC on test."""
    return float(np.std([row["test"] for row in rows], ddof=1) / math.sqrt(len(rows)))


def comparison(found: Mapping[str, Rows]) -> str:
    """Return a table of ``fast`` beside other methods: quality, compute, and what it would need.

    ``to reach`` is the share of their total at which our curve is no lower from there on.
    """
    lines = [
        "| table | what | against | less theirs | its search | its total | to reach | no worse |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for task, rows in found.items():
        for ours, theirs in itertools.product(OURS, TARGETS):
            if ours in rows and theirs in rows:
                told = _compared(rows[ours], rows[theirs])
                lines.append(f"| {task} | {ours} | {theirs} | {told} |")
    return "\n".join(lines)


def _compared(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    gain = mean(ours, "test") - mean(theirs, "test")
    spread = math.hypot(error(ours), error(theirs))
    needs, spent = drawn(ours, theirs)
    parts = [
        _bare(f"{gain:+.4f} +- {spread:.4f}"),
        *(interval(spent[:, column]) for column in (0, 1)),
        interval(needs),
        f"{np.isfinite(needs).mean():.0%}",  # of the draws in which we end no lower
    ]
    return " | ".join(parts)


def drawn(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what comes of each bootstrap draw of the replicates of both.

    Returns:
        The share of their total from which on our mean is no less than theirs, infinite where it
        is less at our end (a first crossing alone would not do: of many noisy points one is soon
        above); and our shares of their search and total, (draws, 2).
    """
    rng = np.random.default_rng(0)
    values = np.column_stack([_curves(ours), [row["test"] for row in ours]])
    (search, full), (their_search, their_full) = (_hours(rows) for rows in (ours, theirs))
    final = np.array([row["test"] for row in theirs])
    needs, spent = np.full(NUM_DRAWS, np.inf), np.empty((NUM_DRAWS, 2))
    for draw in range(NUM_DRAWS):
        mine, other = (rng.integers(len(rows), size=len(rows)) for rows in (ours, theirs))
        total = (their_search + their_full)[other].mean()
        spent[draw] = (
            search[mine].mean() / their_search[other].mean(),
            (search + full)[mine].mean() / total,
        )
        enough = values[mine].mean(0) >= final[other].mean()
        good = np.flatnonzero(np.logical_and.accumulate(enough[::-1])[::-1])
        if len(good):
            hours = min((*HOURS, math.inf)[good[0]], search[mine].mean())
            needs[draw] = (hours + full[mine].mean()) / total
    return needs, spent


def _hours(rows: Sequence[Row]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the hours of search and of what follows, (replicates,) each."""
    search, full = (np.array([row[key] for row in rows]) for key in ("search", "full"))
    return search, full


def _curves(rows: Sequence[Row]) -> NDArray[Any]:
    """Return AUROC on test by hours of search, (replicates, hours); NaN where there is nothing."""
    return np.array([[np.nan if x is None else x for x in row["curve"]] for row in rows])


def interval(values: NDArray[Any]) -> str:
    low, middle, high = np.quantile(values, (0.025, 0.5, 0.975), method="nearest")
    return _bare(f"{middle:.2f} [{low:.2f}, {high:.2f}]").replace("inf", "-")


def draw(tasks: Sequence[str], path: Path) -> None:
    """Draw the mean AUROC on test by hours of search, one panel a task, with standard errors."""
    across = min(len(tasks), PANELS)
    down = math.ceil(len(tasks) / across)
    figure, grid = plt.subplots(down, across, figsize=(5 * across, 3.7 * down), squeeze=False)
    panels = grid.ravel()
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    for panel, task in zip(panels, tasks, strict=False):
        rows = grouped(rows_of(HOME / task / "methods.jsonl"))
        for name, colour in SHOWN.items():
            if name in rows:
                _draw_curve(panel, rows[name], name, colour)
        best = max(mean(rows[name], "test") for name in SHOWN if name in rows)
        worst = min(mean(rows[name], "test") for name in SHOWN if name in rows)
        spread = best - worst
        panel.set_ylim(worst - 0.5 * spread - 0.002, best + 0.2 * spread + 0.001)
        panel.set_xscale("log")
        ticks = [0.1, 0.3, 1, 3, 10]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xlabel("hours of search, as on the notebook's GPU")
        panel.set_ylabel("AUROC on test of what is delivered")
        panel.set_title(task)
        panel.grid(alpha=0.3)
    drawn = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    names = [name for name in SHOWN if name in drawn]
    figure.legend([drawn[name] for name in names], names, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def _draw_curve(panel: Any, rows: Sequence[Row], name: str, colour: str) -> None:
    """Draw a curve to the end of its search; the point is what it delivers."""
    curves = _curves(rows)
    end = mean(rows, "search")
    before = np.array(HOURS) < end
    hours = np.append(np.array(HOURS)[before], end)
    final = np.array([[row["test"]] for row in rows])
    values = np.concatenate([curves[:, before], final], 1)
    known = ~np.isnan(values).any(0)
    middle, spread = values.mean(0), values.std(0, ddof=1) / math.sqrt(len(rows))
    panel.plot(hours[known], middle[known], color=colour, label=name, lw=1.5)
    panel.plot(hours[-1], middle[-1], "o", color=colour, ms=5)
    panel.fill_between(
        hours[known], (middle - spread)[known], (middle + spread)[known], color=colour, alpha=0.2
    )


if __name__ == "__main__":
    main()

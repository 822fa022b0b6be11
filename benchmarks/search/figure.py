"""Tables and any-time curves of what ``run.py`` kept.

    python -m benchmarks.search.figure patches digits --out docs/search.png

Tables come in Markdown on stdout: every method with its standard error, and what ``fast`` needs to
reach the quality of another with an interval (2,000 bootstrap draws of the replicates of both).
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from benchmarks.search.run import HOURS, Row, rows_of
from benchmarks.search.table import HOME

Rows = dict[str, list[Row]]

NUM_DRAWS = 2000
TARGETS = ("random 128, 3 candidates", "notebook's chain", "notebook's chain, 3 candidates")
SHOWN = {
    "fast": "tab:red",
    "notebook's chain": "black",
    "seed with ASHA, 3 candidates": "tab:blue",
    "random + ASHA": "tab:green",
    "random 128, 3 candidates": "tab:gray",
    "TPE": "tab:purple",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--out", type=Path, help="Write the any-time curves here.")
    options = parser.parse_args()
    for task in options.tasks:
        for what in ("methods", "parallel", "variants", "worlds"):
            rows = grouped(rows_of(HOME / task / f"{what}.jsonl"))
            if rows:
                print(f"\n{task}, {what}\n\n{summary(rows)}")
            if what == "methods":
                print(f"\n{comparison(rows)}")
    if options.out:
        draw(options.tasks, options.out)


def grouped(rows: Sequence[Row]) -> Rows:
    """Return the replicates of each method; trials side by side are in its name."""
    found: Rows = {}
    for row in rows:
        beside = f" ({row['places']} side by side)" if row["places"] > 1 else ""
        found.setdefault(row["method"] + beside, []).append(row)
    return found


def summary(rows: Rows) -> str:
    """Return a table of the methods, hours in those of the notebook's GPU."""
    lines = [
        "| method | n | search h | wall h | full h | total h | finished | test AUROC |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in rows.items():
        search, wall, full, finished = (
            mean(found, key) for key in ("search", "wall", "full", "finished")
        )
        test = f"{mean(found, 'test'):.4f} +- {error(found):.4f}"
        hours = f"{search:.1f} | {wall:.1f} | {full:.1f} | {search + full:.1f}"
        lines.append(f"| {name} | {len(found)} | {hours} | {finished:.0f} | {test} |")
    return "\n".join(lines)


def mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def error(rows: Sequence[Row]) -> float:
    """Return the standard error of the mean AUROC on test."""
    return float(np.std([row["test"] for row in rows], ddof=1) / math.sqrt(len(rows)))


def comparison(rows: Rows, ours: str = "fast") -> str:
    """Return a table of what ``fast`` has and needs, against other methods."""
    lines = [
        "| against | difference of AUROC | share of its search | share of its total "
        "| to reach it: search | to reach it: total | reached |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in TARGETS:
        if name not in rows or ours not in rows:
            continue
        gain = mean(rows[ours], "test") - mean(rows[name], "test")
        spread = math.hypot(error(rows[ours]), error(rows[name]))
        spent = [f"{share(rows[ours], rows[name], key):.2f}" for key in ("search", "total")]
        draws = reached(rows[ours], rows[name])
        cells = [interval(draws[:, 0]), interval(draws[:, 1])]
        often = f"{np.isfinite(draws[:, 0]).mean():.0%}"
        parts = [name, f"{gain:+.4f} +- {spread:.4f}", *spent, *cells, often]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def share(ours: Sequence[Row], theirs: Sequence[Row], key: str) -> float:
    return _hours(ours, key) / _hours(theirs, key)


def _hours(rows: Sequence[Row], key: str) -> float:
    return mean(rows, "search") + (mean(rows, "full") if key == "total" else 0.0)


def reached(ours: Sequence[Row], theirs: Sequence[Row]) -> NDArray[Any]:
    """Return the shares of their search and total from which on our mean is no less than theirs.

    One for each draw; infinite where it is less at our end. A first crossing alone would not do:
    of many noisy points one is soon above.

    Returns:
        (draws, 2)
    """
    rng = np.random.default_rng(0)
    values = np.column_stack([_curves(ours), [row["test"] for row in ours]])
    full = np.array([row["full"] for row in ours])
    ends = np.array([row["search"] for row in ours])
    final = np.array([row["test"] for row in theirs])
    search = np.array([row["search"] for row in theirs])
    rest = np.array([row["full"] for row in theirs])
    draws = np.full((NUM_DRAWS, 2), np.inf)
    for draw in draws:
        mine, other = (
            rng.integers(len(ours), size=len(ours)),
            rng.integers(len(theirs), size=len(theirs)),
        )
        enough = values[mine].mean(0) >= final[other].mean()
        good = np.flatnonzero(np.logical_and.accumulate(enough[::-1])[::-1])
        if len(good):
            hours = min((*HOURS, math.inf)[good[0]], ends[mine].mean())
            draw[0] = hours / search[other].mean()
            draw[1] = (hours + full[mine].mean()) / (search[other] + rest[other]).mean()
    return draws


def _curves(rows: Sequence[Row]) -> NDArray[Any]:
    """Return AUROC on test by hours of search, (replicates, hours); NaN where there is nothing."""
    return np.array([[np.nan if x is None else x for x in row["curve"]] for row in rows])


def interval(values: NDArray[Any]) -> str:
    low, middle, high = np.quantile(values, (0.025, 0.5, 0.975), method="nearest")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]".replace("inf", "-")


def draw(tasks: Sequence[str], path: Path) -> None:
    """Draw the mean AUROC on test by hours of search, one panel a task, with standard errors."""
    figure, panels = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 4), squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        rows = grouped(rows_of(HOME / task / "methods.jsonl"))
        for name, colour in SHOWN.items():
            if name in rows:
                _draw_curve(panel, rows[name], name, colour)
        best = max(mean(rows[name], "test") for name in SHOWN if name in rows)
        worst = min(mean(rows[name], "test") for name in SHOWN if name in rows)
        spread = best - worst
        panel.set_ylim(worst - 2 * spread - 0.002, best + 0.3 * spread + 0.001)
        panel.set_xscale("log")
        ticks = [0.1, 0.3, 1, 3, 10]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xlabel("hours of search, as on the notebook's GPU")
        panel.set_ylabel("AUROC on test of what is delivered")
        panel.set_title(task)
        panel.grid(alpha=0.3)
    drawn = {line.get_label(): line for panel in panels[0] for line in panel.get_lines()}
    names = [name for name in SHOWN if name in drawn]
    figure.legend([drawn[name] for name in names], names, loc="lower center", ncol=len(names))
    figure.tight_layout(rect=(0, 0.08, 1, 1))
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

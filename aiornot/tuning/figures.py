"""Figures of a stage as PNG: learning curves, parallel coordinates, slices, importances.

``aiornot show fast explore --plot figures`` writes them. Colours are those of Okabe and Ito, which
people who are colour-blind can tell apart; what was stopped early is pale.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiornot.config import TICKS, InputError
from aiornot.tuning import asha, importance, select
from aiornot.tuning.axes import Axis, axes_of, score_axis
from aiornot.tuning.ledger import Trial
from aiornot.tuning.record import Record, space_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, GREY = "#CC79A7", "#c4c4c4"
COLOURS = {
    "finished": BLUE,
    "running": GREEN,
    "stopped": GREY,
    "diverged": ORANGE,
    "failed": PURPLE,
}
"""By state; the best trial is red."""

DOTS_PER_INCH = 130

PANELS = 4
"""Slices side by side."""

NOT_USED = -0.14
"""Where a line passes a parameter that did not apply to its trial: below the axis."""


def write(
    folder: str,
    title: str,
    record: Record,
    trials: Sequence[Trial],
    *,
    found: Mapping[str, Any] | None,
) -> list[Path]:
    """Draw a stage into a local folder and return the files.

    Left out: importances of too few trials, and parameters where no two trials differ.

    Args:
        folder: It is made if it is not there.
        title: Of the figures.
        record: Of the stage.
        trials: All of them; those without a score are not drawn.
        found: The importances, see ``importance.py``.

    Raises:
        InputError: The folder cannot be one, or no trial has a score yet.
    """
    place = Path(folder)
    if "://" in folder or place.is_file():
        raise InputError(f"--plot {folder}: give a local folder")
    drawn = [trial for trial in trials if score_curve(trial)[0]]
    if not drawn:
        raise InputError(f"{title}: no trial has a score yet, so there is nothing to plot")
    rungs = select.rungs(asha.budget_of(record))
    best = next(iter(select.rank(drawn, rungs)), None)
    rows = found["rows"] if found is not None else []
    axes = axes_of(space_of(record), drawn, first=[row["parameter"] for row in rows])
    figures = {"curves": curves(title, drawn, rungs=rungs[:-1], best=best)}
    if axes and best is not None:
        figures["parallel"] = parallel(title, drawn, axes=axes, best=best)
        figures["slices"] = slices(title, drawn, axes=axes, best=best)
    if found is not None and rows:
        figures["importances"] = importances(title, found)
    place.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(place / f"{name}.png", dpi=DOTS_PER_INCH)
    return [place / f"{name}.png" for name in figures]


def score_curve(trial: Trial) -> tuple[list[int], list[float]]:
    """Return ticks and scores; the 0 with which a diverged trial ends is no score."""
    ticks = trial.ticks[:-1] if trial.state == "diverged" else trial.ticks
    found = [tick for tick in ticks if math.isfinite(tick["score"])]
    return [int(tick["tick"]) for tick in found], [float(tick["score"]) for tick in found]


def _last(trial: Trial) -> float:
    return score_curve(trial)[1][-1]


def _figure(width: float, height: float, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def _style(trial: Trial, best: Trial | None) -> dict[str, Any]:
    """Return colour and place in depth: pale ones behind, the best in front."""
    if trial is best:
        return {"color": RED, "zorder": 4}
    return {"color": COLOURS[trial.state], "zorder": 1 if trial.state == "stopped" else 2}


def _end_style(trial: Trial, best: Trial | None) -> dict[str, Any]:
    shape = (
        {"marker": "*", "s": 110} if trial is best else {"marker": _marker(trial.state), "s": 20}
    )
    return shape | _style(trial, best)


def _marker(state: str) -> str:
    return "x" if state in ("diverged", "failed") else "o"


def _legend(figure: "Figure", trials: Sequence[Trial], best: Trial | None) -> None:
    from matplotlib.lines import Line2D

    counts = Counter(trial.state for trial in trials if trial is not best)
    handles = [
        Line2D([], [], color=COLOURS[state], marker=_marker(state), label=f"{state} ({count})")
        for state, count in sorted(counts.items())
    ]
    if best is not None:
        label = f"best: {best.id} ({best.score:.4f}, {best.state})"
        handles.insert(0, Line2D([], [], color=RED, marker="*", markersize=9, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _name_best(axes: "Axes", best: Trial, end: tuple[float, float], *, away: int) -> None:
    """Write the id of the best trial to the right of where it ends."""
    axes.annotate(
        best.id,
        end,
        xytext=(away, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        fontweight="bold",
        color=RED,
    )


def curves(
    title: str, trials: Sequence[Trial], *, rungs: Sequence[int], best: Trial | None
) -> "Figure":
    """Draw the score of every trial over its ticks, with the rungs at which ASHA decides."""
    figure = _figure(8.5, 5, f"{title}: learning curves")
    axes = figure.subplots()
    for trial in trials:
        ticks, scores = score_curve(trial)
        axes.plot(ticks, scores, linewidth=2.2 if trial is best else 1.2, **_style(trial, best))
        axes.scatter(ticks[-1:], scores[-1:], **_end_style(trial, best))
    for rung in rungs:
        axes.axvline(rung, color="black", linewidth=0.8, linestyle=":", zorder=0)
        place = axes.get_xaxis_transform()
        axes.text(rung, 1.01, f"rung {rung}", transform=place, fontsize=8, ha="center")
    if best is not None:
        _name_best(axes, best, (best.tick, _last(best)), away=9)
    axes.set_xlim(0.5, TICKS + 0.5)
    axes.set_xticks(range(1, TICKS + 1))
    axes.set_xlabel(f"tick: 1/{TICKS} of the trial's own schedule", fontsize=9)
    axes.set_ylabel("score: best validation AUROC so far", fontsize=9)
    _plain(axes)
    _legend(figure, trials, best)
    return figure


def parallel(title: str, trials: Sequence[Trial], *, axes: Sequence[Axis], best: Trial) -> "Figure":
    """Draw every trial as a line through its parameters to its last score."""
    scores = score_axis({trial.id: _last(trial) for trial in trials})
    figure = _figure(1.5 * (len(axes) + 2), 5, f"{title}: parallel coordinates")
    canvas = figure.subplots()
    canvas.set_xlim(-0.4, len(axes) + 0.6)
    canvas.set_ylim(-0.18, 1.2)
    for trial in trials:
        places = [axis.places.get(trial.id, NOT_USED) for axis in [*axes, scores]]
        canvas.plot(places, linewidth=2.2 if trial is best else 1.1, **_style(trial, best))
    for number, axis in enumerate([*axes, scores]):
        partial = any(trial.id not in axis.places for trial in trials)
        _upright(canvas, number, axis, partial=partial)
    _name_best(canvas, best, (len(axes), scores.places[best.id]), away=40)
    canvas.set_axis_off()
    _legend(figure, trials, best)
    return figure


def _upright(canvas: "Axes", number: int, axis: Axis, *, partial: bool) -> None:
    """Draw one axis of parallel coordinates with its labels."""
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    canvas.plot([number, number], [-0.05, 1.05], color="black", linewidth=0.9, zorder=3)
    for place, label in [*axis.ticks, *([(NOT_USED, "not used")] if partial else [])]:
        canvas.plot([number, number + 0.03], [place, place], color="black", linewidth=0.9, zorder=3)
        canvas.text(number + 0.05, place, label, fontsize=7, va="center", bbox=behind, zorder=5)
    canvas.text(number, 1.1, axis.name, fontsize=9, ha="center", fontweight="bold")


def slices(title: str, trials: Sequence[Trial], *, axes: Sequence[Axis], best: Trial) -> "Figure":
    """Draw the last score of every trial over each parameter, a panel for each."""
    rows, columns = math.ceil(len(axes) / PANELS), min(PANELS, len(axes))
    crowded = {number // columns for number, axis in enumerate(axes) if _is_crowded(axis)}
    height = 2.2 * rows + 1.2 * len(crowded) + 0.8
    figure = _figure(max(6.5, 2.7 * columns), height, f"{title}: slices")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel in grid.flat[len(axes) :]:
        panel.set_axis_off()
    for panel, axis in zip(grid.flat, axes, strict=False):
        _slice(panel, axis, trials, best)
    for panel in grid[:, 0]:
        panel.set_ylabel("last score", fontsize=8)
    _legend(figure, trials, best)
    return figure


def _slice(panel: "Axes", axis: Axis, trials: Sequence[Trial], best: Trial) -> None:
    used = [trial for trial in trials if trial.id in axis.places]
    for trial in used:
        panel.scatter(axis.places[trial.id], _last(trial), **_end_style(trial, best))
    panel.set_xticks(
        [place for place, _ in axis.ticks],
        [label for _, label in axis.ticks],
        rotation=90 if _is_crowded(axis) else 0,
    )
    panel.set_xlim(-0.12, 1.12)
    few = f" ({len(used)} of {len(trials)} trials)" if len(used) < len(trials) else ""
    panel.set_title(f"{axis.name}{few}", fontsize=9)
    _plain(panel)


def _is_crowded(axis: Axis) -> bool:
    """Whether the labels do not fit side by side below a panel."""
    return sum(max(map(len, label.split("\n"))) for _, label in axis.ticks) > 30


def importances(title: str, found: Mapping[str, Any]) -> "Figure":
    """Draw the share of each parameter; those that chance may explain are pale."""
    rows = found["rows"]
    figure = _figure(7, 0.36 * len(rows) + 1.6, f"{title}: importances")
    axes = figure.subplots()
    shares = [row["share"] for row in rows]
    colours = [BLUE if row["chance"] <= importance.BY_CHANCE else GREY for row in rows]
    bars = axes.barh([row["parameter"] for row in rows], shares, color=colours, height=0.7)
    texts = [f"{row['share']:.0%}   by chance {row['chance']:.0%}" for row in rows]
    axes.bar_label(bars, texts, padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(shares))  # room for the texts
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1])
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel(
        f"share in being among the best {found['num_top']} of {found['num_trials']} trials at tick "
        f"{found['rung']} (PED-ANOVA,\nless what shuffled scores give); pale: not told from chance "
        f"({importance.BY_CHANCE:.0%})",
        fontsize=8,
    )
    _plain(axes)
    return figure

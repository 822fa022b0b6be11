"""The part of a report on the search: what it narrowed and cost, how its trials learnt and ranked.

``delivery/report_page.py`` places its sections.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from aiornot.config import TICKS
from aiornot.data.markup import Html, code, fold, join, paragraph, say, table, text
from aiornot.delivery import plot
from aiornot.delivery.plot import Plot, Scale
from aiornot.tuning import importance, tables
from aiornot.tuning.tables import duration

_Table = Mapping[str, Any]

SHOWN = 12
"""Trials of a leaderboard; the JSON beside the page has the rest."""

_ROW, _MIDDLE, _HALF = 50, 64, 58


def search(report: _Table) -> Html:
    """Show what the search narrowed, what each stage was to cost and what it did."""
    return join([_funnel(report["stages"]), _spent(report["stages"])])


def _funnel(stages: Sequence[_Table]) -> Html:
    """Draw the trials of each stage, how much each may see, and the time of all."""
    counts = [stage["budget"]["trials"] for stage in stages]
    shows = [
        (stage["budget"]["images"] or 0) * (stage["budget"]["epochs"] or [0])[-1]
        for stage in stages
    ]
    seconds = [stage["stage"]["device_seconds"] for stage in stages]
    parts = [
        _heading(x, heading)
        for x, heading in ((6, "trials"), (140, "images x epochs"), (274, "time"))
    ]
    for number, stage in enumerate(stages):
        top, half = 24 + _ROW * number, max(3.0, _HALF * counts[number] / max(counts))
        parts += [
            _block(_MIDDLE - half, 2 * half, top),
            _block(140, 116 * shows[number] / (max(shows) or 1), top),
            _block(274, 60 * seconds[number] / (max(seconds) or 1), top),
            _count(half, top, counts[number]),
            _label(6, top + 32, stage["stage"]["stage"], "strong"),
            _label(140, top + 32, _seen(stage["budget"])),
            _label(274, top + 32, duration(seconds[number])),
        ]
    return Html(
        f'<figure class="plot wide"><b>From {_trials(sum(counts))} to one model</b>'
        f'<svg viewBox="0 0 {plot.WIDTH} {24 + _ROW * len(stages)}" role=img '
        f'aria-label="trials, images and time of each stage">{join(parts)}</svg>'
        "<figcaption>Images of train times epochs of each trial, and the side of an image; "
        "time of the devices. Bars are in proportion.</figcaption></figure>"
    )


def _count(half: float, top: float, count: int) -> Html:
    """Write the number of trials into its bar, or beside one that is too narrow."""
    if half > 14:
        return _label(_MIDDLE, top + 13, f"{count:,}", "strong inside", anchor="middle")
    return _label(_MIDDLE + half + 4, top + 13, f"{count:,}", "strong")


def _trials(count: int) -> str:
    return f"{count:,} trial{'s' * (count != 1)}"


def _heading(x: float, told: str) -> Html:
    return Html(f'<text class=dim x="{x}" y="14">{say(told)}</text>')


def _block(x: float, width: float, top: float) -> Html:
    return Html(
        f'<rect class=one x="{x:.1f}" y="{top}" width="{max(2.0, width):.1f}" height="18" rx="2"/>'
    )


def _label(x: float, y: float, told: str, kind: str = "", *, anchor: str = "start") -> Html:
    return Html(
        f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor={anchor}>{text(told)}</text>'
    )


def _seen(budget: _Table) -> str:
    if budget["images"] is None or budget["epochs"] is None:
        return "unknown"
    low, high = budget["epochs"]
    epochs = str(high) if low == high else f"{low}-{high}"
    size = f", {budget['size']} px" if budget["size"] else ""
    return f"{budget['images']:,} x {epochs}{size}"


def _spent(stages: Sequence[_Table]) -> Html:
    saved = sum(stage["budget"]["whole_ticks"] - stage["budget"]["ticks"] for stage in stages)
    whole = sum(stage["budget"]["whole_ticks"] for stage in stages)
    limits = (
        " Allowed: what --hours and --gpu-hours left to a search before it had to end."
        if any(stage["budget"]["allowed"] for stage in stages)
        else ""
    )
    ended = all(stage["budget"]["ended"] >= stage["budget"]["trials"] for stage in stages)
    spared = f" Of {whole:,} ticks {saved / whole:.0%} were spared." if ended and saved else ""
    note = paragraph(
        "A tick is 1/16 of a trial's own training. Expected: what is trained where ASHA lets as "
        f"many pass as its factor says.{limits}{spared} Device time is that of all devices.",
        dim=True,
    )
    return join([_budget(stages), note])


def _budget(stages: Sequence[_Table]) -> Html:
    """Show what each stage was to cost and what it did."""
    total = sum(stage["stage"]["device_seconds"] for stage in stages) or 1.0
    limited = any(stage["budget"]["allowed"] for stage in stages)
    cells = []
    for stage in stages:
        plan, row = stage["budget"], stage["stage"]
        cells.append(
            [
                text(row["stage"]),
                Html(f"{plan['trials']:,}"),
                say(", ".join(f"{n} {state}" for state, n in row["by_state"].items()) or "-"),
                Html(f"{plan['expected_ticks']:,}"),
                Html(f"{plan['ticks']:,} of {plan['whole_ticks']:,}"),
                Html(f"{plan['samples']:,}"),
                *([say(_allowed(plan["allowed"]))] if limited else []),
                Html(
                    f"{say(duration(row['device_seconds']))}, {row['device_seconds'] / total:.0%}"
                ),
                say(duration(row["wall_seconds"])),
            ]
        )
    columns = ["stage", "trials", "came to", "ticks expected", "ticks", "images trained on"]
    columns += [*(["allowed"] if limited else []), "device time", "wall time"]
    return table(columns, cells, words={2})


def _allowed(found: _Table | None) -> str:
    if not found:
        return "no limit"
    words = {"wall_seconds": "wall", "device_seconds": "devices"}
    return ", ".join(f"{duration(seconds)} {words[name]}" for name, seconds in found.items())


def learning_curves(report: _Table) -> Html:
    drawn = [figure for stage in report["stages"] if (figure := _learning(stage))]
    if not drawn:
        return paragraph("No trial has a score yet.")
    return Html(f"<div class='charts two'>{join(drawn)}</div>")


def _learning(stage: _Table) -> Html | None:
    """Draw the score of every trial of a stage over its ticks; None where none has a score."""
    curves = stage["curves"]
    if not curves:
        return None
    ranked = [row["trial"] for row in stage["trials"]]
    able = {one["trial"] for one in curves if one["role"] == "candidate"}
    best = next((name for name in ranked if name in able), None)
    scores = [score for one in curves for score in one["scores"]]
    frame = Plot(
        Scale(
            0.5, TICKS + 0.5, [(n, str(n)) for n in (1, 4, 8, 12, 16)], "tick, 1/16 of a training"
        ),
        plot.around(scores, "validation AUROC, best so far"),
    )
    parts = [frame.upright(rung, "rung") for rung in stage["rungs"]]
    for one in sorted(curves, key=lambda one: (one["trial"] == best, one["state"] != "stopped")):
        kind = "best" if one["trial"] == best else _kind(one)
        points = list(zip(one["ticks"], one["scores"], strict=True))
        tip = f"{one['trial']}, {one['state']}: {points[-1][1]:.4f} at tick {points[-1][0]}"
        parts += [
            frame.line(points, f"curve {kind}", tip=tip),
            frame.dot(points[-1], kind, radius=4 if kind == "best" else 2.5, tip=tip),
        ]
    kinds = {_kind(one) for one in curves if one["trial"] != best}
    names = [("line", f"curve {kind}", name) for kind, name in _KINDS.items() if kind in kinds]
    names = [("line", "curve best", f"best: {best}"), *names] if best else names
    names += [("line", "rung", "where ASHA decides")] if stage["rungs"] else []
    title = f"{stage['stage']['stage']}, {_trials(len(curves))}"
    return plot.figure(title, frame, parts, legend=plot.key(names))


_KINDS = {
    "one": "finished or running",
    "pale": "stopped early, or failed",
    "control": "control",
    "baseline": "baseline",
}


def _kind(curve: _Table) -> str:
    if curve["role"] != "candidate":
        return str(curve["role"])
    return "one" if curve["state"] in ("finished", "running") else "pale"


def leaderboards(report: _Table) -> Html:
    return join([_leaderboard(report["run"], stage) for stage in report["stages"]])


def _leaderboard(run: str, stage: _Table) -> Html:
    """Show the best trials of a stage."""
    rows = [row | {"traceback": ""} for row in stage["trials"]]
    shown = tables.of_leaderboard({**stage, "run": run, "trials": rows})[0]
    order = sorted(range(len(shown.columns)), key=lambda n: shown.columns[n] == "why")
    columns = [shown.columns[n] for n in order]  # sentences last, behind what was searched
    cells = [[text(row[n]) for n in order] for row in shown.rows[:SHOWN]]
    words = {n for n, name in enumerate(columns) if name in ("state", "origin", "why", "model")}
    more = f", the first {SHOWN} of {len(rows)}" if len(rows) > SHOWN else ""
    notes = [paragraph(line, dim=True) for line in shown.caption.split("\n") if line]
    notes += [paragraph(f"At a bound: {line}", dim=True) for line in stage["bounds"]]
    notes += [paragraph(line, dim=True) for line in stage["stage"]["warnings"]]
    title = f"{stage['stage']['stage']}: {_trials(len(rows))}{more}"
    return fold(title, join([table(columns, cells, words=words), *notes]))


def parameters(report: _Table) -> Html | None:
    """Show which hyper-parameters mattered; None where none was searched."""
    found = [_importances(stage) for stage in report["stages"] if stage["importances"]]
    return join(found) if found else None


def _importances(stage: _Table) -> Html:
    """Show which hyper-parameters mattered, or why that cannot be said."""
    found, name = stage["importances"], text(stage["stage"]["stage"])
    head = Html(f"<h3>{name}</h3>")
    if not found["rows"]:
        return join([head, paragraph(_sentence(found["note"]))])
    top = max(row["share"] for row in found["rows"]) or 1.0
    cells = []
    for row in found["rows"]:
        pale = " class=pale" * (row["chance"] > importance.BY_CHANCE)
        bar = (
            f'<span class=share><i{pale} style="width:{100 * row["share"] / top:.1f}%"></i></span>'
        )
        cells.append(
            [
                code(row["parameter"]),
                Html(bar),
                Html(f"{row['share']:.0%}"),
                Html(f"{row['chance']:.0%}"),
            ]
        )
    note = paragraph(_sentence(tables.importance_note(found)), dim=True)
    return join([head, table(["parameter", "", "share", "by chance"], cells), note])


def _sentence(told: str) -> str:
    return f"{told[:1].upper()}{told[1:]}."


def agreements(report: _Table) -> Html | None:
    """Show how well each stage ranked for the next; None where there is but one."""
    if len(report["stages"]) < 2:
        return None
    rows = [row for stage in report["stages"] for row in stage["agreements"]]
    if not rows:
        return paragraph("No configuration ran in two stages yet.")
    told = [Html(f"<li>{say(_sentence(row['verdict']))}</li>") for row in rows]
    drawn = [figure for row in rows if (figure := _agreement(row))]
    return Html(f"<ul>{join(told)}</ul><div class=charts>{join(drawn)}</div>")


def _agreement(row: _Table) -> Html | None:
    """Draw the scores of configurations that ran in two stages."""
    pairs = [(one["parent_score"], one["child_score"], one["trial"]) for one in row["pairs"]]
    if len(pairs) < 2:
        return None
    frame = Plot(
        plot.around([one for one, _, _ in pairs], f"score in {row['parent']}"),
        plot.around([other for _, other, _ in pairs], f"score in {row['child']}"),
    )
    parts = [
        frame.dot(
            (one, other), "control" if name in row["controls"] else "one", radius=4.5, tip=name
        )
        for one, other, name in pairs
    ]
    names = [("dot", "one", "taken as one of the best"), ("dot", "control", "control")]
    return plot.figure(
        f"{row['parent']} and {row['child']}",
        frame,
        parts,
        legend=plot.key(names[: 1 + bool(row["controls"])]),
    )

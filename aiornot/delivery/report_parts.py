"""The tables of a report: results, budget, leaderboards, importances, errors, where it comes from.

``delivery/report_page.py`` puts them and the figures in order.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aiornot.config import TrainConfig
from aiornot.data.hdf5 import CLASSES
from aiornot.data.markup import Html, code, join, paragraph, say, table, text
from aiornot.delivery.report_results import METRICS
from aiornot.tuning import importance, tables
from aiornot.tuning.tables import duration

_Table = Mapping[str, Any]

SHOWN = 12
"""Trials of a leaderboard, and errors of a kind; the JSON beside the page has the rest."""


def results(rows: Sequence[_Table]) -> Html:
    """Show baseline against final, a table for each split."""
    parts = []
    for split in dict.fromkeys(row["split"] for row in rows):
        cells = [
            [
                say(METRICS[row["metric"]]),
                value(row["baseline"]),
                value(row["final"]),
                _difference(row["difference"]),
            ]
            for row in rows
            if row["split"] == split
        ]
        columns = ["", "baseline", "final", "difference"]
        if split == "train":  # no difference was asked for
            columns, cells = columns[:3], [cell[:3] for cell in cells]
        parts.append(Html(f"<h3>On {say(split)}</h3>{table(columns, cells)}"))
    return join(parts[::-1])


def value(found: _Table | None) -> Html:
    """Show a figure with its interval."""
    if found is None or found["value"] is None:
        return Html("-")
    return Html(f"{found['value']:.4f}{_interval(found['interval'])}")


def _interval(ends: Sequence[float | None] | None) -> str:
    if not ends or ends[0] is None:
        return ""
    return f" <span class=dim>[{ends[0]:.3f}, {ends[1]:.3f}]</span>"


def _difference(found: _Table | None) -> Html:
    if found is None:
        return Html("")
    low, high = found["interval"]
    told = {True: "better", False: "worse", None: "may be chance"}[found["better"]]
    return Html(
        f"{found['difference']:+.4f} <span class=dim>[{low:+.3f}, {high:+.3f}] {told}</span>"
    )


def people(rows: Sequence[_Table], *, with_person: bool) -> Html:
    """Show person against model."""
    columns = ["metric", *(["person here"] if with_person else []), "final, test"]
    columns += ["notebook: person", "notebook: its final model"]
    cells = []
    for row in rows:
        own = [value(row["person"])] if with_person else []
        theirs = row["notebook_final"]
        last = Html("-" if theirs is None else f"{theirs:.4f}")
        cells.append(
            [say(row["metric"]), *own, value(row["final"]), value(row["notebook_person"]), last]
        )
    return table(columns, cells)


def budget(stages: Sequence[_Table]) -> Html:
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
    columns = ["stage", "trials", "came to", "ticks expected", "trained", "images trained on"]
    columns += [*(["allowed"] if limited else []), "device time", "wall time"]
    return table(columns, cells)


def _allowed(found: _Table | None) -> str:
    if not found:
        return "no limit"
    words = {"wall_seconds": "wall", "device_seconds": "devices"}
    return ", ".join(f"{duration(seconds)} {words[name]}" for name, seconds in found.items())


def leaderboard(run: str, stage: _Table) -> Html:
    """Show the best trials of a stage."""
    rows = [row | {"traceback": ""} for row in stage["trials"]]
    shown = tables.of_leaderboard({**stage, "run": run, "trials": rows})[0]
    cells = [[text(cell) for cell in row] for row in shown.rows[:SHOWN]]
    more = f", the first {SHOWN} of {len(rows)}" if len(rows) > SHOWN else ""
    notes = [paragraph(line, dim=True) for line in shown.caption.split("\n") if line]
    notes += [paragraph(f"At a bound: {line}", dim=True) for line in stage["bounds"]]
    notes += [paragraph(line, dim=True) for line in stage["stage"]["warnings"]]
    name = text(stage["stage"]["stage"])
    return Html(
        f"<details><summary>{name}: {len(rows)} trials{more}</summary>"
        f"{table(shown.columns, cells)}{join(notes)}</details>"
    )


def importances(stage: _Table) -> Html:
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


def tiers(robustness: _Table) -> Html:
    """Show the tiers of damage."""
    metrics = {
        "auroc": "AUROC",
        "balanced_accuracy@threshold": "balanced accuracy",
        "fpr@threshold": "real called generated",
        "flip_rate": "verdict flips",
    }
    cells = [
        [
            text(row["name"]),
            *(
                value({"value": row["metrics"][m], "interval": row["intervals"][m]})
                for m in metrics
            ),
        ]
        for row in robustness["tiers"]
    ]
    return table(["tier", *metrics.values()], cells)


def generators(robustness: _Table) -> Html:
    """Show what is said of each generator's images, where the source names them."""
    rows = robustness.get("generators")
    if not rows:
        return Html("")
    names = list(rows[0]["called_generated"])
    cells = []
    for row in rows:
        held = " (held out of training)" * (row["generator"] == robustness.get("held_out"))
        shares = [row["called_generated"][name] for name in names]
        cells.append(
            [
                text(row["generator"] + held),
                text(row["class"]),
                Html(f"{row['num']:,}"),
                *(value({"value": one["share"], "interval": one["interval"]}) for one in shares),
            ]
        )
    head = Html("<h3>Called generated, by generator</h3>")
    return join([head, table(["generator", "class", "images", *names], cells)])


KINDS = {"false_positives": "Real, called generated", "false_negatives": "Generated, called real"}


def error_counts(errors: _Table) -> Html:
    cells = [[say(told), *_count(errors[kind])] for kind, told in KINDS.items()]
    return table(["error", "images", "wrong", "share, 95 % interval"], cells)


def _count(found: _Table) -> list[Html]:
    share = value({"value": found["share"], "interval": found["interval"]})
    return [Html(f"{found['images']:,}"), Html(f"{found['errors']:,}"), share]


def slices(errors: _Table) -> Html:
    """Show how often it errs on which images."""
    parts = []
    for name, rows in errors["slices"].items():
        cells = [
            [text(row["value"]), *_count(row["false_positives"]), *_count(row["false_negatives"])]
            for row in rows
        ]
        columns = [name, "real", "wrong", "share", "generated", "wrong", "share"]
        parts.append(
            Html(f"<details><summary>By {text(name)}</summary>{table(columns, cells)}</details>")
        )
    return join(parts)


def worst(errors: _Table) -> Html:
    """Name the most confident errors; ids alone, no image."""
    parts = []
    for kind, told in KINDS.items():
        rows = errors["worst"][kind][:SHOWN]
        if rows:
            cells = [[code(row["id"]), Html(f"{row['probability']:.4f}")] for row in rows]
            parts.append(
                Html(
                    f"<div><h3>{told}</h3>{table(['id', 'probability of generated'], cells)}</div>"
                )
            )
    return Html(f"<div class=tables>{join(parts)}</div>")


def model(delivered: _Table) -> Html:
    """Show what the model is and where it comes from."""
    config, lineage = delivered["config"], delivered["lineage"]
    default, prepared = TrainConfig().to_dict(), delivered["preprocessing"]
    changed = {k: v for k, v in config.items() if v != default.get(k) and k != "model"}
    rows: dict[str, Any] = {
        "architecture": config["model"],
        "hyper-parameters": ", ".join(f"{k}={_short(v)}" for k, v in changed.items()) or "defaults",
        "input": f"{prepared['size']} px, {prepared['geometry']}, {prepared['resample']}",
        "calibration": ", ".join(f"{k} {_short(v)}" for k, v in delivered["calibration"].items()),
        **{f"lineage: {key}": _plain(one) for key, one in lineage.items()},
        "weights, SHA-256": delivered["sha256"],
        "data fingerprint": delivered["data"]["fingerprint"],
        "versions": ", ".join(f"{k} {v}" for k, v in delivered["versions"].items()),
    }
    cells = [[say(name), code_of(shown)] for name, shown in rows.items()]
    return table(["", ""], cells, wide=1)


def code_of(shown: Any) -> Html:
    """Show a value in full, which may be long."""
    return Html(f"<code>{say(str(shown))}</code>")


def _plain(found: Any) -> str:
    if isinstance(found, list):
        return " -> ".join(map(str, found))
    if isinstance(found, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in found.items())
    return str(found)


def _short(found: Any) -> str:
    if isinstance(found, list):
        return json.dumps([round(one, 4) for one in found])
    return f"{found:.4g}" if isinstance(found, float) else str(found)


def splits(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Html:
    """Show how many images of each class every prepared file holds."""
    cells = [
        [text(name), text(split), *(Html(f"{counts[word]:,}") for word in CLASSES)]
        for name, each in found.items()
        for split, counts in each.items()
    ]
    return table(["prepared file", "split", *CLASSES], cells)

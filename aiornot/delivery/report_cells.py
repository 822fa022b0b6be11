"""The figures of a report as cells of its tables and tiles: a value, its interval, a difference."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from aiornot.data.markup import Html, commands, join, paragraph

_Table = Mapping[str, Any]

Interval: TypeAlias = Sequence[float | None] | None
"""Both ends; None where a statistic was undefined in too many draws, or where none was kept."""

WORDS = {True: "better", False: "worse", None: "may be chance"}
"""What is said of a difference, by its ``better``."""


def absent(report: _Table, name: str) -> Html | None:
    """Return what stands for something that is not there: a sentence, the command that makes it."""
    missing = report["missing"]
    told = missing.get("delivered") or missing.get(name)
    if told is None:
        return None
    typed = [commands([told["command"]])] if told["command"] else []
    return join([paragraph(told["sentence"]), *typed])


def judged(report: _Table) -> tuple[str, _Table]:
    """Return the evaluation to show: of test where that was opened, else of val."""
    test = report["evaluations"].get("test")
    return ("test", test) if test else ("val", report["evaluations"]["val"])


def value(found: _Table | None) -> Html:
    """Show a figure with its interval."""
    if found is None or found["value"] is None:
        return Html("-")
    return Html(f"{found['value']:.4f}{_interval(found['interval'])}")


def known(interval: Interval) -> tuple[float, float] | None:
    """Return the ends of an interval; None where there is none, or it is undefined."""
    if not interval or interval[0] is None or interval[1] is None:
        return None
    return interval[0], interval[1]


def _interval(interval: Interval) -> str:
    ends = known(interval)
    return f" <span class=dim>[{ends[0]:.3f}, {ends[1]:.3f}]</span>" if ends else ""


def difference(found: _Table | None) -> Html:
    if found is None:
        return Html("")
    low, high = found["interval"]
    return Html(
        f"{found['difference']:+.4f} <span class=dim>[{low:+.3f}, {high:+.3f}]</span> "
        f"<span class=dim>{WORDS[found['better']]}</span>"
    )


def number(found: float | None) -> str:
    return "-" if found is None else f"{found:.3f}"


def percent(found: float | None) -> str:
    return "-" if found is None else f"{found:.1%}"


def rate(found: float | None, interval: Interval) -> Html:
    """Show a share as a percentage with its interval."""
    ends = known(interval)
    if ends is None:
        return Html(percent(found))
    low, high = (100 * end for end in ends)
    return Html(f"{percent(found)} <span class=dim>[{low:.1f}, {high:.1f}]</span>")


def counted(part: int, whole: int) -> Html:
    return Html(f"<span class=dim>{part:,} of {whole:,}</span>")


def flipped(interval: Interval) -> tuple[float, float] | None:
    """Return the interval of what is left to 1, such as misses from recall."""
    ends = known(interval)
    return (1 - ends[1], 1 - ends[0]) if ends else None

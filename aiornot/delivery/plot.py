"""A small chart as inline SVG: axes, lines, dots, bands. It takes its colours from the page.

``report_search.py``, ``report_scores.py`` and ``report_damage.py`` draw with it. A chart is as wide
as a phone and stands beside others where there is room, so that its letters are as large as those
around it. No script, no picture file: it is sharp in print and follows the reader's dark mode.
"""

import dataclasses
from collections.abc import Sequence

from aiornot.data.markup import Html, join, say, text

WIDTH, HEIGHT = 340, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class Scale:
    """One axis: ``low`` is where it begins, which may be the larger end."""

    low: float
    high: float
    ticks: Ticks
    title: str

    def share(self, value: float) -> float:
        """Return how far along the axis a value lies, 0 to 1 on it."""
        return (value - self.low) / (self.high - self.low)


def around(values: Sequence[float], title: str, *, least: float = 0.02) -> Scale:
    """Return an axis on which all values have room, with round numbers.

    Args:
        values: At least one.
        title: With the unit, if there is one.
        least: The axis is at least so long.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    middle, half = (low + high) / 2, max(high - low, least) * 0.54
    locator = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
    ticks = [float(tick) for tick in locator.tick_values(middle - half, middle + half)]
    inside = [tick for tick in ticks if middle - half <= tick <= middle + half]
    return Scale(middle - half, middle + half, [(tick, f"{tick:g}") for tick in inside], title)


def shares(top: float, title: str) -> Scale:
    """Return an axis of percentages from 0 to a share, with round numbers."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(0, 100 * top)
    inside = [float(tick) for tick in ticks if tick <= 100 * top]
    return Scale(0.0, top, [(tick / 100, f"{tick:g}%") for tick in inside], title)


def unit(title: str) -> Scale:
    """Return an axis from 0 to 1."""
    return Scale(0.0, 1.0, [(tick / 5, f"{tick / 5:g}") for tick in range(6)], title)


@dataclasses.dataclass(frozen=True)
class Plot:
    """Where values come to lie in pixels of the drawing."""

    x: Scale
    y: Scale

    def at(self, point: Point) -> Point:
        across = LEFT + self.x.share(point[0]) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - self.y.share(point[1]) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    def path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{x:g},{y:g}" for x, y in map(self.at, points))

    def line(self, points: Sequence[Point], kind: str, *, tip: str = "") -> Html:
        """Draw a line; ``kind`` is a class of the style sheet, ``tip`` is told on hovering."""
        title = f"<title>{text(tip)}</title>" if tip else ""
        return Html(f'<polyline class="{kind}" points="{self.path(points)}">{title}</polyline>')

    def area(self, points: Sequence[Point], kind: str) -> Html:
        return Html(f'<polygon class="{kind}" points="{self.path(points)}"/>')

    def dot(self, point: Point, kind: str, *, radius: float = 3.0, tip: str = "") -> Html:
        x, y = self.at(point)
        title = f"<title>{text(tip)}</title>" if tip else ""
        return Html(f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}">{title}</circle>')

    def bar(self, left: float, right: float, height: float, kind: str) -> Html:
        """Draw a bar that stands on the lower end of the axis."""
        corners = [(left, self.y.low), (left, height), (right, height), (right, self.y.low)]
        return self.area(corners, kind)

    def upright(self, value: float, kind: str = "mark") -> Html:
        return self.line([(value, self.y.low), (value, self.y.high)], kind)

    def words(self, point: Point, told: str, kind: str = "", *, anchor: str = "start") -> Html:
        x, y = self.at(point)
        return Html(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text(told)}</text>'
        )


_MARKS = {
    "line": '<polyline class="{}" points="0,6 26,6"/>',
    "dot": '<circle class="{}" cx="13" cy="6" r="4"/>',
    "area": '<polygon class="{}" points="7,1 7,11 19,11 19,1"/>',
}


def key(names: Sequence[tuple[str, str, str]]) -> Html:
    """Explain the marks, each drawn as it is in the chart.

    Args:
        names: Of each mark ``line``, ``dot`` or ``area``, its class of the style sheet, and what it
            stands for.
    """
    found = [
        Html(
            f'<span><svg viewBox="0 0 26 12" aria-hidden=true>{_MARKS[mark].format(kind)}</svg>'
            f"{say(name)}</span>"
        )
        for mark, kind, name in names
    ]
    return Html(f"<div class=keys>{join(found)}</div>")


def figure(
    title: str, plot: Plot, parts: Sequence[Html], *, legend: Html | None = None, below: str = ""
) -> Html:
    """Put a chart together: heading, drawing with its axes, explanation of marks, a sentence."""
    note = f"<figcaption>{say(below)}</figcaption>" if below else ""
    heard = f"{title}: {plot.y.title}, over {plot.x.title}"
    return Html(
        f"<figure class=plot><b>{say(title)}</b>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{say(heard)}">'
        f"{_axes(plot)}{join(parts)}</svg>{legend or ''}{note}</figure>"
    )


def _axes(plot: Plot) -> Html:
    parts = []
    for value, label in plot.y.ticks:
        x, y = plot.at((plot.x.low, value))
        parts.append(f'<path class=grid d="M{LEFT},{y:g}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{x - 5:g}" y="{y + 4:g}" text-anchor=end>{say(label)}</text>')
    for value, label in plot.x.ticks:
        x, y = plot.at((value, plot.y.low))
        parts.append(f'<path class=axis d="M{x:g},{y:g}v4"/>')
        parts.append(f'<text x="{x:g}" y="{y + 16:g}" text-anchor=middle>{say(label)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    height = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<path class=axis d="M{LEFT},{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(
        f'<text x="{middle:g}" y="{HEIGHT - 6}" text-anchor=middle>{say(plot.x.title)}</text>'
        f'<text transform="translate(11,{height:g}) rotate(-90)" text-anchor=middle>'
        f"{say(plot.y.title)}</text>"
    )
    return Html("".join(parts))

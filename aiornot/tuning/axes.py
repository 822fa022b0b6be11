"""Where the parameters of trials lie on an axis from 0 to 1, for the figures of a stage.

Ranges are those that were searched, on a log scale where the search had one; categories stand at
equal distances in the order of the stage file.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from aiornot.tuning.ledger import Trial
from aiornot.tuning.narrow import Numeric
from aiornot.tuning.select import applied
from aiornot.tuning.space import Distribution, choice, loguniform, uniform

Ticks: TypeAlias = list[tuple[float, str]]

LONGEST = 22
"""Characters of a line of a category's label."""

JITTER = 0.02
"""Share of the distance of two categories by which equal ones are drawn apart."""

MANY_TIMES = 30
"""Values that differ by this factor are drawn on a log scale where no range says so."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One parameter."""

    name: str
    places: Mapping[str, float]
    """By trial; one to which the parameter did not apply is absent."""
    ticks: Ticks


def axes_of(
    space: Mapping[str, Distribution], trials: Sequence[Trial], *, first: Sequence[str] = ()
) -> list[Axis]:
    """Return an axis for each parameter that was searched; else for each in which trials differ.

    Args:
        space: The stage's resolved space, empty where nothing was searched.
        trials: Its trials.
        first: Parameters that come first, in this order; the others follow by name.
    """
    if space:
        values = {trial.id: applied(trial) for trial in trials}
        names = [name for name, domain in space.items() if not domain.single()]
    else:
        values = {trial.id: trial.config for trial in trials}
        names = varied(list(values.values()))
    order = {name: place for place, name in enumerate(first)}
    names = sorted(names, key=lambda name: (order.get(name, len(order)), name))
    return [
        _axis(name, space.get(name), {id_: v[name] for id_, v in values.items() if name in v})
        for name in names
    ]


def varied(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the hyper-parameters in which configurations differ, by name."""
    names = sorted({name for config in configs for name in config})
    return [name for name in names if len({str(config.get(name)) for config in configs}) > 1]


def _axis(name: str, domain: Distribution | None, values: Mapping[str, Any]) -> Axis:
    domain = domain or _guess(list(values.values()))
    if isinstance(domain, Numeric):
        return _numbers(name, domain, values)
    return _categories(name, domain.choices, values)  # type: ignore[attr-defined]  # no third kind


def score_axis(scores: Mapping[str, float]) -> Axis:
    """Return an axis for the scores of trials, from the worst to the best."""
    low, high = min(scores.values()), max(scores.values())
    # Equal scores need some width to stand in the middle of.
    margin = 0.0 if high > low else 0.01
    return _numbers("score", uniform(low - margin, high + margin), scores)


def _numbers(name: str, domain: Numeric, values: Mapping[str, float]) -> Axis:
    low, high = _scaled(domain.low, domain), _scaled(domain.high, domain)

    def place(value: float) -> float:
        return (_scaled(value, domain) - low) / (high - low)

    ticks = [(place(value), f"{value:g}") for value in _round_numbers(domain)]
    return Axis(name, {id_: place(value) for id_, value in values.items()}, ticks)


def _guess(values: Sequence[Any]) -> Distribution:
    """Return a range for values of which no stage file says one."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return choice(*sorted(set(values), key=str))
    low, high = min(values), max(values)
    if low == high:
        return choice(low)
    return loguniform(low, high) if low > 0 and high / low >= MANY_TIMES else uniform(low, high)


def _categories(name: str, choices: Sequence[Any], values: Mapping[str, Any]) -> Axis:
    last = max(1, len(choices) - 1)
    # A little apart, or equal ones would lie on top of each other.
    apart = {id_: (number % 7 - 3) * JITTER / last for number, id_ in enumerate(values)}
    places = {id_: choices.index(value) / last + apart[id_] for id_, value in values.items()}
    return Axis(name, places, [(place / last, _short(str(c))) for place, c in enumerate(choices)])


def _short(text: str) -> str:
    """Return a label that is not too wide; a long name of timm stands in two lines."""
    if len(text) > LONGEST / 2:
        text = text.replace(".", "\n.", 1)
    lines = text.split("\n")
    return "\n".join(s if len(s) <= LONGEST else f"{s[: LONGEST - 3]}..." for s in lines)


def _scaled(value: float, domain: Numeric) -> float:
    return math.log(value) if domain.log else float(value)


def _round_numbers(domain: Numeric) -> list[float]:
    """Return a few round numbers in a range: powers of ten on a log scale that holds two."""
    from matplotlib.ticker import MaxNLocator

    low, high = domain.low, domain.high
    if domain.log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        # Read and not computed: 10.0**-5 is not 1e-5.
        powers = [float(f"1e{power}") for power in range(first, last + 1)]
        inside = [power for power in powers if low <= power <= high]
        if len(inside) > 1:
            return inside
    locator = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10], integer=isinstance(low, int))
    return [float(value) for value in locator.tick_values(low, high) if low <= value <= high]

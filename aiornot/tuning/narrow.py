"""Narrowing: a parent's ranges cut to the padded box round its best trials.

Plain data in, distributions out; nothing here knows trials, files or Ray. ``aiornot tune fast``
narrows each parameter that a stage file marks with ``narrowed(...)`` when the stage starts. Only
configurations pass from stage to stage, never scores: those were paid for with another budget.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeGuard

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from aiornot.config import LIMITS
from aiornot.tuning.space import Distribution, Narrowed, Value

Params: TypeAlias = Mapping[str, Value]
Numeric: TypeAlias = FloatDistribution | IntDistribution

TRIM = 0.1
"""Share of the best values left out at each end of the hull, so that one outlier cannot hold it."""

PADDING = 0.1
"""Share of the parent's width added at each side of the hull of a float."""

KEEP = 0.4
"""Share of the parent's width that is always kept: ranks after short training are noisy."""

ENOUGH = 5
"""Trials that a category must have had before it may be dropped."""

ON_BOUND = 0.02
"""Share of the width within which a value sits on a bound."""


def num_top(num_trials: int) -> int:
    """Return how many of a stage's trials count as its best; it may be more than there are."""
    return max(5, math.ceil(0.15 * num_trials))


def narrow(
    space: Mapping[str, Distribution | Narrowed],
    *,
    parent: Mapping[str, Distribution],
    best: Sequence[Params],
    others: Sequence[Params],
) -> dict[str, Distribution]:
    """Resolve a stage's space: what is marked is cut from the parent's range, the rest passes.

    Numeric ranges, on a log scale where the parent's is one: the hull of the best values without
    the outermost tenth at each end, one grid step wider at each side for whole numbers, a tenth of
    the parent's width wider at each side for floats ("old width" is the only width the rule names,
    and it still pads a hull that is a single point), widened about its centre to two fifths of the
    parent's width, and never beyond the parent's range. Whole numbers are rounded outwards.

    A category is dropped if it had at least five trials and none of them is among the best.

    Args:
        parent: The parent's resolved space; a parameter that is absent is cut from its original.
        best: Parameters of the parent's top trials. With fewer than two values of a parameter its
            range is kept.
        others: Parameters of all other trials of the parent.
    """
    return {
        name: _cut(name, parent.get(name, domain.original), best=best, others=others)
        if isinstance(domain, Narrowed)
        else domain
        for name, domain in space.items()
    }


def _cut(
    name: str, old: Distribution, *, best: Sequence[Params], others: Sequence[Params]
) -> Distribution:
    values = [params[name] for params in best if name in params]
    if isinstance(old, CategoricalDistribution):
        return _cut_choices(old, values, [params[name] for params in others if name in params])
    assert isinstance(old, Numeric), f"{name}: no rule to narrow {old!r}"
    numbers = [value for value in values if _is_number(value)]
    return old if len(numbers) < 2 or old.single() else _cut_range(old, numbers)


def _cut_choices(
    old: CategoricalDistribution, best: Sequence[Value], others: Sequence[Value]
) -> CategoricalDistribution:
    if len(best) < 2:
        return old
    kept = [value for value in old.choices if value in best or others.count(value) < ENOUGH]
    # Nothing is left only if every best value came from outside the range; that is no evidence.
    return CategoricalDistribution(kept or old.choices)


def _cut_range(old: Numeric, values: Sequence[float]) -> Numeric:
    low, high = _trimmed_hull([min(max(value, old.low), old.high) for value in values])
    if isinstance(old, IntDistribution):
        start = _scale(max(low - old.step, old.low), log=old.log)
        stop = _scale(min(high + old.step, old.high), log=old.log)
    else:
        pad = PADDING * _width(old)
        start, stop = _scale(low, log=old.log) - pad, _scale(high, log=old.log) + pad
    return _between(old, *_widen(old, start, stop))


def _trimmed_hull(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    outermost = int(TRIM * len(ordered))
    return ordered[outermost], ordered[-1 - outermost]


def _widen(old: Numeric, start: float, stop: float) -> tuple[float, float]:
    """Clip a scaled range to the old one and keep at least ``KEEP`` of the old width."""
    floor, ceiling = _scale(old.low, log=old.log), _scale(old.high, log=old.log)
    start, stop = max(start, floor), min(stop, ceiling)
    missing = max(0.0, KEEP * (ceiling - floor) - (stop - start))
    start, stop = start - missing / 2, stop + missing / 2
    # What sticks out at one end is given back at the other.
    below, above = max(0.0, floor - start), max(0.0, stop - ceiling)
    return max(floor, start - above), min(ceiling, stop + below)


def _between(old: Numeric, start: float, stop: float) -> Numeric:
    """Return the old distribution between two scaled ends."""
    # exp(log(1e-5)) is not 1e-5, so an end that did not move keeps its number.
    low = old.low if start <= _scale(old.low, log=old.log) else _unscale(start, log=old.log)
    high = old.high if stop >= _scale(old.high, log=old.log) else _unscale(stop, log=old.log)
    if isinstance(old, FloatDistribution):
        assert old.step is None, "space.py makes no stepped floats"
        return FloatDistribution(low, high, log=old.log)
    # The tolerance undoes exp(log(5)) = 4.999999999999999, which would cost a step.
    first = math.floor((low - old.low) / old.step + 1e-9)
    last = math.ceil((high - old.low) / old.step - 1e-9)
    return IntDistribution(
        old.low + first * old.step, old.low + last * old.step, log=old.log, step=old.step
    )


def _scale(value: float, *, log: bool) -> float:
    return math.log(value) if log else float(value)


def _unscale(value: float, *, log: bool) -> float:
    return math.exp(value) if log else value


def _width(domain: Numeric) -> float:
    return _scale(domain.high, log=domain.log) - _scale(domain.low, log=domain.log)


def _is_number(value: Value) -> TypeGuard[int | float]:
    # A bool is an int to Python, and NaN a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def bound_hits(original: Mapping[str, Distribution], best: Sequence[Params]) -> list[str]:
    """Return a sentence for each numeric bound of the first space that a best value sits on.

    It is for the report: a range is never widened, since its bound may be a limit of the
    hardware or of sense. Beyond the limit of the hyper-parameter itself lies nothing: no sentence.
    The sentence counts the values, because one of many may be chance.
    """
    return [
        sentence
        for name, domain in original.items()
        if isinstance(domain, Numeric) and not domain.single()
        for sentence in _hits(name, domain, [params[name] for params in best if name in params])
    ]


def _hits(name: str, domain: Numeric, values: Sequence[Value]) -> list[str]:
    numbers = [value for value in values if _is_number(value)]
    bounds = {"lower": domain.low, "upper": domain.high}
    counts = {
        word: sum(_is_near(value, bound, domain) for value in numbers)
        for word, bound in bounds.items()
        if bound not in LIMITS.get(name, ())
    }
    return [
        f"{name}: {count} of the {len(numbers)} best values {'sit' if count > 1 else 'sits'} on "
        f"the {word} bound {bounds[word]:g}; the best may lie beyond it"
        for word, count in counts.items()
        if count
    ]


def _is_near(value: float, bound: float, domain: Numeric) -> bool:
    # Beyond the bound counts too, and has no logarithm where it is not positive.
    value = min(max(value, domain.low), domain.high)
    distance = abs(_scale(value, log=domain.log) - _scale(bound, log=domain.log))
    return distance <= ON_BOUND * _width(domain)


def enqueued(points: Sequence[Params], space: Mapping[str, Distribution]) -> list[dict[str, Value]]:
    """Return a parent's configurations as points to try first, each inside the new space.

    Numbers are clipped, because Optuna 5 only warns about an enqueued value that is out of range,
    and then trains it. Left out: parameters that the new space does not have, categories that it no
    longer has, points of which nothing is left, and points that are there already.
    """
    kept: list[dict[str, Value]] = []
    for point in points:
        inside = {
            name: _clip(point[name], domain)
            for name, domain in space.items()
            if name in point and _fits(point[name], domain)
        }
        if inside and inside not in kept:
            kept.append(inside)
    return kept


def _fits(value: Value, domain: Distribution) -> bool:
    if isinstance(domain, CategoricalDistribution):
        return value in domain.choices
    return _is_number(value)


def _clip(value: Value, domain: Distribution) -> Value:
    if isinstance(domain, CategoricalDistribution):
        # The choice and not the value: 1 == True, but a config takes only one of them.
        return domain.choices[domain.choices.index(value)]
    assert isinstance(domain, Numeric) and _is_number(value), f"cannot clip {value!r}"
    value = min(max(value, domain.low), domain.high)
    if isinstance(domain, FloatDistribution):
        assert domain.step is None, "space.py makes no stepped floats"
        return float(value)
    return domain.low + round((value - domain.low) / domain.step) * domain.step

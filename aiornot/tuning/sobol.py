"""Points that fill a space evenly: a scrambled Sobol sequence over numbers and categories alike.

Of 64 points each of 7 models has 8 to 10, with learning rates from all over the range. Independent
draws give some model no good rate now and then, and a chain that never saw its best model at its
best cannot mend that (docs/search.md).

Optuna's ``QMCSampler`` draws categories independently, and by the trials that its study has seen;
here a point follows from its number alone, so that a resumed search draws as one without a break.
"""

import math
from collections.abc import Mapping

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import qmc

from aiornot.tuning.space import Distribution, Value


def point(space: Mapping[str, Distribution], *, seed: int, number: int) -> dict[str, Value]:
    """Return a point of the sequence.

    Args:
        space: What is searched; the order of its names does not matter.
        seed: Of the scrambling, which keeps how even the points lie.
        number: Place in the sequence, from 0. Any first 2, 4, 8, ... points lie evenly.
    """
    names = sorted(space)
    sequence = qmc.Sobol(len(names), scramble=True, rng=seed)
    shares = sequence.random_base2(number.bit_length())[number]
    return {name: _at(space[name], float(share)) for name, share in zip(names, shares, strict=True)}


def _at(domain: Distribution, share: float) -> Value:
    """Return the value below which this share (0 to below 1) of a distribution lies."""
    if isinstance(domain, CategoricalDistribution):
        return domain.choices[int(share * len(domain.choices))]
    assert isinstance(domain, FloatDistribution | IntDistribution), f"no rule for {domain!r}"
    if isinstance(domain, IntDistribution):
        return _whole(domain, share)
    if domain.log:
        low, high = math.log(domain.low), math.log(domain.high)
        value = math.exp(low + share * (high - low))
    else:
        value = domain.low + share * (domain.high - domain.low)
    return min(max(value, domain.low), domain.high)  # rounding may leave the range


def _whole(domain: IntDistribution, share: float) -> int:
    if domain.log:
        # Each whole number has the share of the log scale that is rounded to it, as in Optuna.
        low, high = math.log(domain.low - 0.5), math.log(domain.high + 0.5)
        return min(max(round(math.exp(low + share * (high - low))), domain.low), domain.high)
    count = (domain.high - domain.low) // domain.step + 1
    return int(domain.low + int(share * count) * domain.step)

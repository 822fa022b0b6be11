"""Which hyper-parameters matter: PED-ANOVA of Optuna on the scores at the first rung.

``aiornot show fast explore`` prints it. Trials that ASHA stopped count as much as those that
finished, since all of them reported at the first rung, after equal shares of their schedules.

PED-ANOVA finds importance in noise too, and more of it in numbers than in categories. So what
shuffled scores give on average is taken off. In simulated searches of 12 and 24 trials in which
a category alone mattered, it then came first in .53 and .79 of them, before in .36 and .67.
"""

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna

from aiornot.tuning import asha, select
from aiornot.tuning.ledger import Trial
from aiornot.tuning.space import Distribution

Floats = npt.NDArray[np.float64]

MIN_TRIALS = 10
"""With fewer the order says little: a learning rate that mattered most of five parameters came
first in .70 of simulated searches of 10 trials, .85 of 16, .95 of 24."""

TOP = 1 / 3
"""Share of the trials that count as good. With a tenth, Optuna's default, that learning rate came
first in .28, .62 and .80 of them (before anything was taken off; with a third .68, .86, .96)."""

MIN_TOP = 5
"""Trials that count as good, at least: what Optuna advises."""

SHUFFLES = 99
"""Random orders of the scores that a parameter's importance is compared with."""

BY_CHANCE = 0.05
"""Above it what a parameter has to do with the scores is not told from chance."""


def importances(
    space: Mapping[str, Distribution], trials: Sequence[Trial], *, rung: int
) -> dict[str, Any]:
    """Return what each parameter has to do with a good score at the first rung.

    Args:
        space: The stage's resolved space.
        trials: Its trials; those that diverged before the rung count as the worst.
        rung: The tick of the first rung.

    Returns:
        ``rung``, ``num_trials``, ``num_top`` (those that count as good), ``note`` (why there are
        no rows, or empty) and ``rows``, the most important first: ``parameter``, ``share`` (of
        what is beyond chance; all add up to 1) and ``chance`` (how often shuffled scores make any
        parameter stand out as much).
    """
    valued = [(trial, value) for trial in trials if (value := _value(trial, rung)) is not None]
    values = [value for _, value in valued]
    num_top = max(MIN_TOP, math.ceil(TOP * len(values)))
    found = {"rung": rung, "num_trials": len(values), "num_top": num_top, "note": "", "rows": []}
    used = {name for trial, _ in valued for name in select.applied(trial)}
    free = {name: space[name] for name in used & space.keys() if not space[name].single()}
    if len(values) < MIN_TRIALS:
        missing = f"importances need {MIN_TRIALS} trials at tick {rung}, there are {len(values)}"
        return found | {"note": missing}
    if not free:
        return found | {"note": "no importances: there was nothing to choose"}
    if sorted(values)[-num_top] == min(values):
        return found | {"note": f"no importances: too many scores at tick {rung} are equal"}
    rows = _rows(_study(free, [trial for trial, _ in valued]), values, num_top=num_top)
    note = "" if rows else "no importances: no parameter does better than by chance"
    return found | {"note": note, "rows": rows}


def _value(trial: Trial, rung: int) -> float | None:
    value = asha.score_at(trial, rung)
    return 0.0 if value is None and trial.state == "diverged" else value


def _study(space: Mapping[str, Distribution], trials: Sequence[Trial]) -> optuna.Study:
    """Make a throw-away study; a parameter that did not apply is absent from its trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    for trial in trials:
        params = {name: value for name, value in select.applied(trial).items() if name in space}
        distributions = {name: space[name] for name in params}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=0.0)
        )
    return study


def _rows(study: optuna.Study, values: Sequence[float], *, num_top: int) -> list[dict[str, Any]]:
    """Return a row for each parameter, none where no parameter does better than by chance."""
    found = _evaluate(study, values, num_top)
    # By name: Optuna's own order changes from process to process.
    names = sorted(found)
    order = random.Random(0)
    shuffles = [order.sample(values, len(values)) for _ in range(SHUFFLES)]
    noises = [_evaluate(study, shuffled, num_top) for shuffled in shuffles]
    noise = np.array([[one[name] for name in names] for one in noises])
    observed = np.array([found[name] for name in names])
    above = (observed - noise.mean(axis=0)).clip(0)
    shares, chances = above / (above.sum() or 1.0), _chances(observed, noise)
    rows = [
        {"parameter": name, "share": float(share), "chance": float(chance)}
        for name, share, chance in zip(names, shares, chances, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["share"]) if shares.any() else []


def _chances(observed: Floats, noise: Floats) -> Floats:
    """Return how often shuffled scores make any parameter stand out as much as each does here.

    Any, because among twelve parameters one that stands out at 5 % is no surprise. Each is measured
    in its own standard deviations, since PED-ANOVA's noise differs from parameter to parameter. In
    180 simulated searches where nothing mattered one or more stood out in 7, as it should be.
    """
    mean, spread = noise.mean(axis=0), np.maximum(noise.std(axis=0), 1e-12)
    largest = ((noise - mean) / spread).max(axis=1)
    reached: Floats = (largest[:, None] >= (observed - mean) / spread).mean(axis=0)
    return (1 + len(noise) * reached) / (1 + len(noise))


def _evaluate(study: optuna.Study, values: Sequence[float], num_top: int) -> dict[str, float]:
    # It brings scikit-learn along, a second and a half that a table of stages need not wait for.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    # Half a trial below the border, for 5 / 22 * 22 may be above 5.
    quantile = (num_top - 0.5) / len(values)
    with warnings.catch_warnings():
        # It says that the target is minimised, and which conditional parameters are rare.
        warnings.simplefilter("ignore")
        return get_param_importances(
            study,
            evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile),
            target=lambda trial: -values[trial.number],
            normalize=False,
        )

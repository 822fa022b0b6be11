"""What ASHA saw, read back from the ledger: rungs, the scores there, the cut that stopped a trial.

``aiornot show fast explore`` says with it why a trial was stopped. Nothing here decides.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from aiornot.config import TICKS
from aiornot.tuning import select
from aiornot.tuning.ledger import Trial, contenders
from aiornot.tuning.space import Budget

Standing: TypeAlias = tuple[int, float]
"""The highest rung that was reached, and the score there: more training comes first."""


def budget_of(record: Mapping[str, Any]) -> Budget:
    """Return what decides on stops in a stage; where nothing is searched, nothing is stopped."""
    meaning = record.get("meaning", {})
    if meaning.get("sampler") is None:
        return Budget(num_trials=1, grace_period=TICKS)
    names = ("grace_period", "reduction_factor")
    return Budget(num_trials=1, **{name: meaning["budget"][name] for name in names})


def score_at(trial: Trial, rung: int) -> float | None:
    """Return the score that a trial reported at a rung, None where it did not get so far.

    NaN is 0, the worst AUROC there is, as it is to ASHA.
    """
    for tick in trial.ticks:
        if int(tick["tick"]) >= rung:
            return _worst_if_nan(float(tick["score"]))
    return None


def _worst_if_nan(score: float) -> float:
    return 0.0 if math.isnan(score) else score


def standing(trials: Sequence[Trial], rungs: Sequence[int]) -> Standing:
    """Return how trials of one configuration stand: at the highest rung that all reached.

    One that diverged, or reached no rung, makes it the lowest there is.
    """
    ticks = [0 if trial.state == "diverged" else trial.tick for trial in trials]
    rung = max((rung for rung in rungs if rung <= min(ticks)), default=0)
    scores = [score_at(trial, rung) or 0.0 for trial in trials] if rung else [0.0]
    return rung, sum(scores) / len(scores)


def cut(trial: Trial, trials: Sequence[Trial], budget: Budget) -> float | None:
    """Return the score that a stopped trial had to reach at its last rung.

    It is the percentile of the scores that other trials had reported there before. None where the
    ledger does not explain the stop, such as one whose evidence was trained again after a kill.
    """
    rung = trial.tick
    if trial.state != "stopped" or rung not in select.rungs(budget)[:-1]:
        return None
    now = _time_at(trial, rung)
    earlier = [other for other in contenders(trials) if _time_at(other, rung) < now < math.inf]
    scores = [score for other in earlier if (score := score_at(other, rung)) is not None]
    if not scores:
        return None
    share = 1 - 1 / budget.reduction_factor
    found = float(np.percentile(scores, 100 * share))
    return found if _worst_if_nan(trial.score) < found else None


def _time_at(trial: Trial, rung: int) -> float:
    """Return when a trial reported at a rung, in seconds; never is infinity."""
    times = [tick.get("time", math.inf) for tick in trial.ticks if int(tick["tick"]) == rung]
    return float(times[0]) if times else math.inf

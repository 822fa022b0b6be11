"""Selection: which trials go on to the full stage, and which of those is delivered.

Pure functions over the trials of the ledger; ``aiornot tune fast`` calls them between stages and
``aiornot show fast`` to order its table. Every order ends with the trial's number, so that the
same ledger always gives the same answer.
"""

import math
from collections.abc import Sequence
from typing import Any

from aiornot.config import TICKS, InputError
from aiornot.tuning.ledger import Trial, contenders
from aiornot.tuning.narrow import num_top
from aiornot.tuning.space import Budget

NEAR_TIE = 0.25
"""Share of a standard error within which two scores are called equal."""

DIFFERENT = 2
"""Hyper-parameters in which two candidates of one model must differ."""

CONTROLS = (0.5, 0.9)
"""Where in the order of a stage its controls stand. Not at its end: what is broken there any stage
would tell from the rest."""


def rungs(budget: Budget) -> list[int]:
    """Return the ticks at which ASHA decides, and the last tick."""
    ticks = []
    tick = budget.grace_period
    while tick < TICKS:
        ticks.append(tick)
        tick *= budget.reduction_factor
    return [*ticks, TICKS]


def rank(trials: Sequence[Trial], rungs: Sequence[int]) -> list[Trial]:
    """Return the trials, best first, by the highest rung reached and the score at that rung.

    Scores at different rungs are not compared: each rung is more training than the one before.
    Diverged and failed trials and those without a score are left out, so that a caller who takes
    from the top never gets one.
    """
    usable = [trial for trial in trials if _is_usable(trial)]
    return sorted(usable, key=lambda trial: _standing(trial, rungs))


def _is_usable(trial: Trial) -> bool:
    return trial.state not in ("diverged", "failed") and math.isfinite(trial.score)


def _standing(trial: Trial, rungs: Sequence[int]) -> tuple[int, float, int]:
    rung = max((rung for rung in rungs if rung <= trial.tick), default=0)
    score = _score_at(trial, rung)
    # A score may be NaN at a rung and finite later; NaN has no place in an order.
    return -rung, math.inf if math.isnan(score) else -score, trial.number


def _score_at(trial: Trial, rung: int) -> float:
    """Return the score at a rung, the newest for a trial that is still below the first."""
    reached = [tick for tick in trial.ticks if int(tick["tick"]) <= rung] or trial.ticks
    return float(reached[-1]["score"])


def split_top(
    trials: Sequence[Trial], rungs: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the parameters of the best candidates and of all others, as ``narrow`` takes them.

    Diverged and failed trials are among the others: they too are evidence against a category. A
    trial that has not reported yet is evidence of nothing, nor is a parameter that did not apply.
    """
    trials = contenders(trials)
    best = rank(trials, rungs)[: num_top(len(trials))]
    chosen = {trial.id for trial in best}
    others = [
        trial
        for trial in trials
        if trial.id not in chosen and (trial.ticks or trial.state != "running")
    ]
    return [applied(trial) for trial in best], [applied(trial) for trial in others]


def applied(trial: Trial) -> dict[str, Any]:
    """Return the parameters that were trained; ``only_for`` gives the others their default."""
    return {
        name: value
        for name, value in trial.params.items()
        if trial.config.get(name, value) == value
    }


def standard_error(auroc: float, *, num_positive: int, num_negative: int) -> float:
    """Return the standard error of an AUROC after Hanley and McNeil (1982)."""
    assert num_positive > 0 and num_negative > 0, "an AUROC needs both classes"
    square = auroc**2
    two_positives = auroc / (2 - auroc) - square
    two_negatives = 2 * square / (1 + auroc) - square
    variance = (
        auroc * (1 - auroc)
        + (num_positive - 1) * two_positives
        + (num_negative - 1) * two_negatives
    ) / (num_positive * num_negative)
    # Both differences are zero at an AUROC of 1, where rounding may take them below.
    return math.sqrt(max(0.0, variance))


def candidates(
    trials: Sequence[Trial],
    count: int,
    *,
    num_positive: int,
    num_negative: int,
    rungs: Sequence[int],
) -> list[Trial]:
    """Return up to ``count`` trials for the next budget, first choice first.

    Finished trials within one standard error of the best are eligible. They are taken in the order
    of their score (near ties: see ``_order``) where they differ from all that were taken before,
    by the model or by two hyper-parameters. If that gives too few, the rest of the eligible follow,
    then the other finished trials by score, then the stopped trials by rank.

    Args:
        num_positive: Positive images in the validation split that gave the scores.
        num_negative: Negative ones.
    """
    trials = contenders(trials)
    finished = _finished(trials)
    eligible, error = _within_error(finished, num_positive=num_positive, num_negative=num_negative)
    ordered = _order(eligible, margin=NEAR_TIE * error)
    stopped = rank([trial for trial in trials if trial.state == "stopped"], rungs)
    preferred = [*_diverse(ordered), *ordered, *finished, *stopped]
    return list({trial.id: trial for trial in preferred}.values())[: max(0, count)]


def controls(
    trials: Sequence[Trial], chosen: Sequence[Trial], count: int, *, rungs: Sequence[int]
) -> list[Trial]:
    """Return up to ``count`` trials that were not chosen: the middle one, and one far down.

    Where those were chosen, or are equal to what was, the nearest ones stand for them.
    """
    ended = [trial for trial in contenders(trials) if trial.state in ("finished", "stopped")]
    ranked = list(enumerate(rank(ended, rungs)))
    found: list[Trial] = []
    for share in CONTROLS[:count]:
        taken = [trial.config for trial in (*chosen, *found)]
        left = [(place, trial) for place, trial in ranked if trial.config not in taken]
        wanted = share * (len(ranked) - 1)
        # Of two that are as near, the lower: it is further from the winners.
        left.sort(key=lambda one: (abs(one[0] - wanted), -one[0]))
        found += [trial for _, trial in left[:1]]
    return found


def _finished(trials: Sequence[Trial]) -> list[Trial]:
    finished = [
        trial for trial in trials if trial.state == "finished" and math.isfinite(trial.score)
    ]
    return sorted(finished, key=lambda trial: (-trial.score, trial.number))


def _within_error(
    finished: Sequence[Trial], *, num_positive: int, num_negative: int
) -> tuple[list[Trial], float]:
    """Return the trials within one standard error of the first, the best, and that error."""
    if not finished:
        return [], 0.0
    best = finished[0].score
    error = standard_error(best, num_positive=num_positive, num_negative=num_negative)
    return [trial for trial in finished if trial.score >= best - error], error


def _order(trials: Sequence[Trial], *, margin: float) -> list[Trial]:
    """Order trials that come best first by score, and near ties among them by preference.

    "Nearly equal" is not transitive, so groups are formed from the top: the best trial left and
    all within ``margin`` below it are one group, and no later trial overtakes a member of it.
    """
    ordered: list[Trial] = []
    while len(ordered) < len(trials):
        rest = trials[len(ordered) :]
        group = [trial for trial in rest if rest[0].score - trial.score <= margin]
        ordered += sorted(group, key=_preference)
    return ordered


def _preference(trial: Trial) -> tuple[float, float, float, int]:
    """Sort key among equals: the smaller train-validation gap, then the cheaper."""
    # Rounded, because two gaps are never equal to the last digit and cost would never be asked.
    gap = round(trial.last("train/auroc") - trial.last("val/auroc"), 3)
    return math.inf if math.isnan(gap) else gap, trial.seconds, -trial.score, trial.number


def _diverse(trials: Sequence[Trial]) -> list[Trial]:
    chosen: list[Trial] = []
    for trial in trials:
        if all(_differ(trial, other) for other in chosen):
            chosen.append(trial)
    return chosen


def _differ(one: Trial, other: Trial) -> bool:
    """Compare what is trained: a drawn parameter that does not apply makes no difference."""
    names = (one.config.keys() | other.config.keys()) - {"seed"}
    different = {name for name in names if one.config.get(name) != other.config.get(name)}
    return "model" in different or len(different) >= DIFFERENT


def final_choice(trials: Sequence[Trial], *, num_positive: int, num_negative: int) -> Trial:
    """Return the full-stage trial to deliver, of its candidates: never a control or the baseline.

    It is the best, unless others are within one standard error of it: then the one of these with
    the smallest train-validation gap, and of equal gaps the cheapest.

    Raises:
        InputError: No trial finished.
    """
    trials = contenders(trials)
    equals, _ = _within_error(
        _finished(trials), num_positive=num_positive, num_negative=num_negative
    )
    if not equals:
        raise InputError(
            f"none of the {len(trials)} trials of the full stage finished, so there is nothing to "
            "deliver; run the same command again to resume them"
        )
    return min(equals, key=_preference)

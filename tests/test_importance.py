"""Importances: found where there is an effect, admitted to be chance where there is none."""

import math
import random

import pytest

from aiornot.tuning.importance import BY_CHANCE, MIN_TRIALS, importances
from aiornot.tuning.ledger import Trial
from aiornot.tuning.select import applied
from aiornot.tuning.space import choice, loguniform, randint, uniform

SPACE = {
    "lr": loguniform(1e-4, 1e-1),
    "drop_rate": uniform(0.0, 0.5),
    "clip_grad": choice(None, 1.0, 5.0),
    "random_resized_crop": choice(False, True),
    "epochs": randint(2, 8),
    "model": choice("a"),
}


def make(number, params, score, *, state="stopped", num_ticks=4, **config) -> Trial:
    """Build a trial with its score at tick 4; what it learns later is another matter."""
    scores = [0.5, 0.5, 0.5, score, *[random.random() for _ in range(12)]][:num_ticks]
    return Trial(
        id=f"t{number}",
        number=number,
        state=state,
        params=params,
        config=params | config,
        ticks=[{"tick": k, "score": value, "seconds": 1.0} for k, value in enumerate(scores, 1)],
    )


def search(count, score, *, seed=0, **kwargs):
    """Draw trials at random; ``score`` gives that of a configuration, but for noise."""
    draw = random.Random(seed)
    trials = []
    for number in range(count):
        params = {
            "lr": 10 ** draw.uniform(-4, -1),
            "drop_rate": draw.uniform(0, 0.5),
            "clip_grad": draw.choice([None, 1.0, 5.0]),
            "random_resized_crop": draw.choice([False, True]),
            "epochs": draw.randint(2, 8),
            "model": "a",
        }
        trials.append(make(number, params, score(params) + draw.gauss(0, 0.01), **kwargs))
    return trials


def by_lr(params):
    return 0.8 - 0.1 * abs(math.log10(params["lr"]) + 2.5)


def shares(found):
    return {row["parameter"]: row["share"] for row in found["rows"]}


def chances(found):
    return {row["parameter"]: row["chance"] for row in found["rows"]}


def test_the_parameter_that_decides_comes_first():
    found = importances(SPACE, search(48, by_lr), rung=4)
    assert found["rows"][0]["parameter"] == "lr" and found["rows"][0]["share"] > 0.5
    assert sum(shares(found).values()) == pytest.approx(1)
    assert min(shares(found).values()) == 0  # it has no more than shuffled scores give
    assert chances(found)["lr"] <= BY_CHANCE < chances(found)["drop_rate"]
    assert (found["rung"], found["num_trials"], found["num_top"]) == (4, 48, 16)
    assert found["note"] == ""
    assert "model" not in shares(found)  # there was nothing to choose


def test_a_category_counts_as_much_as_a_number():
    def score(params):
        return {None: 0.6, 1.0: 0.6, 5.0: 0.8}[params["clip_grad"]]

    found = importances(SPACE, search(48, score), rung=4)
    assert found["rows"][0]["parameter"] == "clip_grad" and chances(found)["clip_grad"] <= BY_CHANCE


def test_where_nothing_matters_nothing_stands_out():
    """Shares alone would name a winner here too."""
    searches = [search(24, lambda _: 0.7, seed=seed) for seed in range(8)]
    boards = [importances(SPACE, trials, rung=4) for trials in searches]
    for found in boards:
        nothing = [name for name, share in shares(found).items() if share == 0]
        assert nothing == sorted(nothing)
    assert max(max(shares(found).values(), default=0) for found in boards) > 0.5
    assert sum(min(chances(found).values(), default=1) <= BY_CHANCE for found in boards) <= 1


def test_values_are_those_of_the_first_rung():
    """Of trials that went on, what came later does not count; stopped ones count as much."""
    stopped = search(40, by_lr)
    went_on = search(40, by_lr, state="finished", num_ticks=16)
    assert importances(SPACE, stopped, rung=4) == importances(SPACE, went_on, rung=4)


def test_the_answer_is_the_same_every_time_and_in_any_order():
    trials = search(20, by_lr)
    one, other = (importances(SPACE, some, rung=4) for some in (trials, trials[::-1]))
    assert one == importances(SPACE, trials, rung=4)
    assert shares(one) == pytest.approx(shares(other))


def test_a_trial_that_diverged_early_is_the_worst_and_a_silent_one_is_nothing():
    trials = search(40, lambda _: 0.7)
    too_fast = [trial for trial in trials if trial.params["lr"] > 1e-2]
    for trial in too_fast:
        trial.state, trial.ticks = "diverged", trial.ticks[:2]
    silent = [make(40, trials[0].params, 0.0, state="failed", num_ticks=0)]
    silent.append(make(41, trials[0].params, 0.9, state="running", num_ticks=3))
    found = importances(SPACE, [*trials, *silent], rung=4)
    assert len(too_fast) > 9 and found["num_trials"] == 40
    assert found["rows"][0]["parameter"] == "lr" and chances(found)["lr"] <= BY_CHANCE


def test_nan_at_the_rung_is_the_worst_score():
    trials = search(12, by_lr) + [make(12, search(1, by_lr)[0].params, math.nan)]
    found = importances(SPACE, trials, rung=4)
    assert found["num_trials"] == 13 and all(math.isfinite(row["share"]) for row in found["rows"])


def test_a_parameter_counts_only_where_it_applied():
    """``only_for`` gives the others their default: they are no evidence for or against it."""
    trials = search(30, lambda p: 0.8 - 0.4 * p["drop_rate"])
    for trial in trials[:20]:
        trial.config["drop_rate"] = -1.0
    assert "drop_rate" not in applied(trials[0]) and applied(trials[29]) == trials[29].params
    space = {"drop_rate": SPACE["drop_rate"], "lr": SPACE["lr"]}
    told = importances(space, trials, rung=4)
    for trial in trials[:20]:
        trial.params["drop_rate"] = 0.25
    assert importances(space, trials, rung=4) == told


@pytest.mark.parametrize("count", [0, 1, MIN_TRIALS - 1])
def test_too_few_trials_are_a_note(count):
    found = importances(SPACE, search(count, by_lr), rung=4)
    assert found["rows"] == [] and f"need {MIN_TRIALS}" in found["note"]
    assert found["note"].endswith(f"there are {count}")


def test_equal_scores_are_a_note():
    trials = [make(k, t.params, 0.5) for k, t in enumerate(search(20, by_lr))]
    found = importances(SPACE, trials, rung=4)
    assert found["rows"] == [] and "are equal" in found["note"]


def test_a_stage_that_searches_nothing_has_no_rows():
    assert importances({}, search(12, by_lr), rung=4)["rows"] == []

"""What ASHA saw, read back: compared with the scheduler that decides."""

import math
import random

import pytest

from aiornot.tuning import asha, select
from aiornot.tuning.ledger import Trial
from aiornot.tuning.ray_search import Rungs
from aiornot.tuning.space import Budget


def make(number, scores, *, state="stopped", start=0.0) -> Trial:
    ticks = [
        {"tick": tick, "score": score, "seconds": 1.0, "time": start + tick}
        for tick, score in enumerate(scores, 1)
    ]
    config = {"lr": number}
    return Trial(
        id=f"t{number}", number=number, state=state, params=config, config=config, ticks=ticks
    )


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("grace", [1, 2])
def test_the_cut_is_the_one_the_scheduler_used(grace, factor):
    """Trials side by side, their reports mixed in time, one of them NaN."""
    budget = Budget(num_trials=1, grace_period=grace, reduction_factor=factor)
    scheduler, draw = Rungs(budget), random.Random(0)
    trials = [make(number, [], state="running") for number in range(40)]
    going, used, clock = list(trials), {}, 0.0
    while going:
        trial = draw.choice(going[:4])
        score = math.nan if draw.random() < 0.02 else 0.5 + trial.number / 100 + draw.random() / 3
        tick = {"tick": trial.tick + 1, "score": score, "seconds": 1.0, "time": clock}
        clock += 1.0
        rung = dict(scheduler._brackets[0]._rungs).get(tick["tick"], {})
        cut = scheduler._brackets[0].cutoff(dict(rung))
        trial.ticks.append(tick)
        if scheduler.decide(trial.id, tick) == "STOP":
            trial.state, used[trial.id] = "stopped", cut
        elif trial.tick == 16:
            trial.state = "finished"
        if trial.state != "running":
            going.remove(trial)
    assert len(used) > 10
    found = {trial.id: asha.cut(trial, trials, budget) for trial in trials}
    assert {id_: cut for id_, cut in found.items() if cut is not None} == pytest.approx(used)


def test_without_evidence_there_is_no_cut():
    budget = Budget(num_trials=1, grace_period=1, reduction_factor=2)
    low, high = make(0, [0.6], start=9.0), make(1, [0.7, 0.8, 0.8], state="running")
    assert asha.cut(low, [low, high], budget) == 0.7
    assert asha.cut(low, [low], budget) is None  # nothing came before it
    assert asha.cut(make(2, [0.9], start=9.0), [low, high], budget) is None  # it lies above
    assert asha.cut(high, [low, high], budget) is None  # it was not stopped
    between = make(3, [0.1, 0.1, 0.1], start=9.0)
    assert asha.cut(between, [high, between], budget) is None  # 3 is no rung
    old = make(4, [0.1])
    del old.ticks[0]["time"]
    assert asha.cut(old, [high, old], budget) is None


def test_the_score_at_a_rung_is_the_one_reported_there():
    trial = make(0, [0.5, math.nan, 0.7])
    assert [asha.score_at(trial, rung) for rung in (1, 2, 3, 4)] == [0.5, 0.0, 0.7, None]


def test_trials_of_one_configuration_stand_where_all_of_them_have_been():
    one, other = make(0, [0.5, 0.6, 0.7, 0.8]), make(1, [0.5, 0.9])
    assert asha.standing([one], [1, 4, 16]) == (4, 0.8)
    assert asha.standing([one, other], [1, 2, 16]) == (2, 0.75)
    assert asha.standing([one, make(2, [])], [1, 4, 16]) == (0, 0.0)
    diverged = make(3, [0.9, 0.9, 0.9, 0.9], state="diverged")
    assert asha.standing([diverged], [1, 4, 16]) == (0, 0.0)


def test_where_nothing_is_searched_nothing_is_stopped():
    budget = {"grace_period": 2, "reduction_factor": 3, "epochs": 5}
    searching = {"meaning": {"sampler": "random", "budget": budget}}
    full = {"meaning": {"sampler": None, "budget": budget}}
    rungs = [select.rungs(asha.budget_of(record)) for record in (searching, full, {})]
    assert rungs == [[2, 6, 16], [16], [16]]

"""The searcher and the scheduler: they decide after a kill as they would have without it.

A stage is played by a small stand-in for Tune: it asks ``Suggestions``, reports invented scores to
``Rungs`` and writes the ledger in Tune's order. Every write may be its last.
"""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import math
import pickle
import random
import threading
import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray import cloudpickle
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from aiornot.config import TICKS, TrainConfig
from aiornot.tuning import select
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.ray_search import Plan, Rungs, Suggestions
from aiornot.tuning.space import Budget, Stage, choice, configure, loguniform, randint, uniform

SPACE = {
    "model": choice("a", "b", "c"),
    "lr": loguniform(1e-5, 1e-1),
    "epochs": randint(2, 20),
    "hflip": uniform(0.0, 0.5),
    "clip_grad": choice(None, 1.0),
}


def plan(
    num_trials=8, *, sampler="random", budget=None, first=(), base=None, seeds=(0,), beside=()
) -> Plan:
    stage = Stage(
        name="explore",
        space=SPACE,
        sampler=sampler,
        seeds=seeds,
        budget=budget or Budget(num_trials=num_trials, grace_period=1),
    )
    origins = [f"from parent-{number:03d}" for number in range(len(first))]
    return Plan(
        stage=stage,
        space=SPACE,
        first=first,
        origins=origins,
        base=base,
        num_trials=num_trials,
        beside=beside,
    )


class Killed(Exception):
    """The driver's process died."""


class MemoryLedger(Ledger):
    """A ledger without a disk, whose driver dies after a number of writes."""

    def __init__(self, files=None, *, writes=None, observers=()):
        super().__init__("memory", observers=observers)
        self.files = dict(files or {})
        self.writes = writes
        self.count = 0

    def _write(self, trial):
        self.files[trial.id] = copy.deepcopy(trial)
        self.count += 1
        if self.count == self.writes:
            raise Killed

    def read(self):
        return sorted(copy.deepcopy(list(self.files.values())), key=lambda trial: trial.number)


class Tune:
    """What Tune does with a searcher, a scheduler and a callback, one report at a time."""

    def __init__(self, what: Plan, ledger, *, concurrent=1, seed=0):
        self.ledger = ledger
        trials = ledger.read()
        first = len(what.first)
        apart = [f"explore-{number:03d}" for number in range(first, first + len(what.beside))]
        self.rungs = Rungs(what.stage.budget, trials=trials, apart=apart)
        self.stopped_before = set(self.rungs.stopped)
        for trial in trials:
            if trial.state == "running" and trial.id in self.rungs.stopped:
                ledger.end(trial)
        self.suggestions = Suggestions(what, ledger=ledger, trials=trials, job={"data": "/data.h5"})
        self.concurrent = concurrent
        self.active = {}
        self.random = random.Random(seed)
        self.suggested = []

    def play(self):
        while self._fill() or self.active:
            name = self.random.choice(list(self.active))
            self._report(name)
        return self

    def _fill(self):
        while len(self.active) < self.concurrent:
            job = self.suggestions.suggest(f"tune{len(self.suggested)}")
            if job == Searcher.FINISHED:
                return False
            self.suggested.append(job["trial"])
            # A trial that goes on reports the tick of its checkpoint again.
            self.active[job["trial"]] = max(1, self.suggestions.trials[job["trial"]].tick)
        return True

    def _report(self, name):
        trial, tick = self.suggestions.trials[name], self.active[name]
        metrics = invented(trial.config, tick)
        job = FakeTrial(name)
        decision = self.rungs.on_trial_result(None, job, metrics | {"training_iteration": 99})
        self.ledger.tick(trial, metrics)
        self.active[name] += 1
        if decision == TrialScheduler.STOP or metrics["finished"]:
            del self.active[name]
            self.rungs.on_trial_complete(None, job, metrics)
            self.ledger.end(trial)
            self.suggestions.tell(trial)


@dataclasses.dataclass
class FakeTrial:
    trial_id: str

    @property
    def config(self):
        return {"trial": self.trial_id}


def invented(config, tick) -> dict:
    """Invent a report that depends on nothing but the configuration and the tick."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).digest()
    quality = 0.9 - 0.1 * abs(math.log10(config["lr"]) + 3)
    noise = 0.02 * digest[tick] / 255
    diverged = float(config["lr"] > 0.02 and tick == 1 + digest[0] % 3)
    return {
        "tick": tick,
        "score": 0.0 if diverged else quality * (1 - 0.4 / (1 + tick)) + noise,
        "diverged": diverged,
        "finished": float(tick == TICKS or diverged == 1.0),
        "seconds": 1.0,
    }


def timeless(trials):
    """Leave out of trials what the clock says."""
    kept = copy.deepcopy(sorted(trials, key=lambda trial: trial.number))
    for trial in kept:
        trial.started = 0.0
        for tick in trial.ticks:
            del tick["time"]
    return kept


def params_of(trials):
    return {trial.number: trial.params for trial in trials}


def test_a_stage_runs_its_trials_to_their_number():
    tune = Tune(plan(8), MemoryLedger(), concurrent=3).play()
    trials = tune.ledger.read()
    assert [trial.number for trial in trials] == list(range(8))
    assert [trial.id for trial in trials] == tune.suggested
    states = {trial.state for trial in trials}
    assert {"finished", "stopped"} <= states <= {"finished", "stopped", "diverged"}
    assert tune.suggestions.suggest("x") == Searcher.FINISHED
    assert tune.suggestions.suggest("y") == Searcher.FINISHED


def test_a_suggestion_is_a_job_that_a_worker_can_run():
    ledger = MemoryLedger()
    suggestions = Suggestions(plan(), ledger=ledger, trials=[], job={"data": "/data.h5"})
    job = suggestions.suggest("tune0")
    assert job["trial"] == "explore-000"
    assert job["job"]["data"] == "/data.h5"
    assert job["job"]["root"] == ledger.trial_folder("explore-000")
    (trial,) = ledger.read()
    assert TrainConfig.from_dict(job["job"]["config"]).to_dict() == trial.config
    assert (trial.state, trial.origin, set(trial.params)) == ("running", "sampled", set(SPACE))


def test_a_trial_is_recorded_before_it_is_suggested():
    suggestions = Suggestions(plan(), ledger=MemoryLedger(writes=1), trials=[], job={})
    with pytest.raises(Killed):
        suggestions.suggest("tune0")


def test_enqueued_points_come_first_and_what_they_leave_open_is_drawn():
    whole = {"model": "b", "lr": 1e-3, "epochs": 7, "hflip": 0.25, "clip_grad": None}
    first = [whole, {"lr": 2e-2, "clip_grad": 1.0}, {"model": "c"}]
    tune = Tune(plan(5, first=first), MemoryLedger(), concurrent=5).play()
    trials = tune.ledger.read()
    for trial, point in zip(trials, first, strict=False):
        assert point.items() <= trial.params.items()
        assert trial.params.keys() == SPACE.keys()
        assert trial.origin == f"from parent-{trial.number:03d}"
    assert [trial.origin for trial in trials[3:]] == ["sampled"] * 2
    undisturbed = Tune(plan(5), MemoryLedger(), concurrent=5).play().ledger.read()
    assert params_of(trials[3:]) == params_of(undisturbed[3:])
    # What is drawn for an open parameter is not what another trial drew.
    assert len({trial.params["epochs"] for trial in trials}) > 2


def test_more_enqueued_points_than_trials_are_cut():
    first = [{"lr": 10.0**-k} for k in (2, 3, 4)]
    tune = Tune(plan(2, first=first), MemoryLedger()).play()
    assert [trial.params["lr"] for trial in tune.ledger.read()] == [1e-2, 1e-3]


BESIDE = [
    {
        "role": "control",
        "origin": f"control from parent-{number:03d}",
        "params": {"lr": lr, "model": "z"},  # no longer among the models
        "config": TrainConfig(lr=lr).to_dict(),
    }
    for number, lr in enumerate((0.5, 3e-5))  # beyond the range; low in it
]


def test_controls_are_trained_as_they_are_and_optuna_hears_nothing_of_them():
    first = [{"lr": 1e-3}]
    what = plan(7, first=first, beside=BESIDE, sampler="tpe")
    tune = Tune(what, MemoryLedger(), concurrent=2).play()
    trials = tune.ledger.read()
    assert [trial.role for trial in trials] == ["candidate", *["control"] * 2, *["candidate"] * 4]
    for trial, fields in zip(trials[1:3], BESIDE, strict=True):
        assert (trial.config, trial.params) == (fields["config"], fields["params"])
        assert trial.origin == fields["origin"] and trial.state != "running"
    assert len(ended(tune)) == 5
    resumed = Suggestions(what, ledger=tune.ledger, trials=trials, job={})
    assert len(resumed._study.trials) == 5


def test_a_search_with_controls_that_is_killed_ends_as_if_it_had_not_been():
    what = plan(7, beside=BESIDE)
    whole = Tune(what, MemoryLedger()).play().ledger
    for writes in range(1, whole.count, 5):
        ledger = MemoryLedger(killed_after(writes, what).files)
        assert timeless(Tune(what, ledger).play().ledger.read()) == timeless(whole.read())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_trial_is_stopped_or_spared_by_the_score_of_a_control(data):
    budget = Budget(num_trials=1, grace_period=data.draw(st.integers(1, 4)))
    order = data.draw(st.lists(st.integers(0, 5), max_size=80))
    values = data.draw(st.lists(st.floats(0, 1), min_size=80, max_size=80))
    apart = {"t0", "t1"}
    with_controls = Rungs(budget, apart=apart)
    found = list(stream([f"t{n}" for n in order], values, with_controls.decide))
    alone = Rungs(budget)
    for (name, tick, decision), score in zip(found, _scores(found, order, values), strict=True):
        if name not in apart:
            assert alone.decide(name, {"tick": tick, "score": score}) == decision
    assert with_controls.rungs() == alone.rungs()
    # Told again, as after a resume, a control is not judged anew.
    for name, tick, _ in found:
        again = with_controls.decide(name, {"tick": tick, "score": 0.0})
        assert again == TrialScheduler.CONTINUE


def _scores(found, order, values):
    """Return the scores of the reports that were made: who is stopped makes no more."""
    left = iter(found)
    name, over, scores, ticks = next(left, None), set(), [], {}
    for number, score in zip(order, values, strict=False):
        if name is None:
            break
        who = f"t{number}"
        if who in over:
            continue
        scores.append(score)
        ticks[who] = ticks.get(who, 0) + 1
        if name[2] == TrialScheduler.STOP or ticks[who] == TICKS:
            over.add(who)
        name = next(left, None)
    return scores


def test_what_the_stage_leaves_open_is_the_parents_best():
    base = TrainConfig(weight_decay=0.7, hflip=0.5).to_dict()
    tune = Tune(plan(3, base=base), MemoryLedger()).play()
    for trial in tune.ledger.read():
        assert trial.config["weight_decay"] == 0.7
        assert trial.config["hflip"] == trial.params["hflip"]
        assert configure(plan().stage, trial.params, base=base).to_dict() == trial.config


def test_the_points_of_a_random_search_differ_and_cover_the_space():
    trials = Tune(plan(40), MemoryLedger(), concurrent=40).play().ledger.read()
    lrs = sorted(trial.params["lr"] for trial in trials)
    assert len(set(lrs)) == 40
    assert lrs[0] < 1e-4 and lrs[-1] > 1e-2
    assert {trial.params["model"] for trial in trials} == {"a", "b", "c"}
    assert {trial.params["clip_grad"] for trial in trials} == {None, 1.0}


def test_even_points_are_counted_from_the_first_that_is_drawn():
    """What is enqueued and what runs beside takes none of them away."""
    what = plan(12, sampler="sobol", first=[{"lr": 1e-3}, {"model": "a"}], beside=BESIDE)
    drawn = Tune(what, MemoryLedger(), concurrent=12).play().ledger.read()[2 + len(BESIDE) :]
    alone = Tune(plan(12, sampler="sobol"), MemoryLedger()).play().ledger.read()
    assert [trial.params for trial in drawn] == [trial.params for trial in alone[: len(drawn)]]
    assert len(drawn) == 8
    assert {trial.origin for trial in drawn} == {"sampled"}


@pytest.mark.parametrize("sampler", ["random", "sobol"])
def test_another_seed_is_another_search(sampler):
    draws = [
        params_of(
            Tune(plan(3, sampler=sampler, seeds=(seed,)), MemoryLedger()).play().ledger.read()
        )
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


def num_writes(what, **kwargs) -> int:
    return Tune(what, MemoryLedger(), **kwargs).play().ledger.count


def killed_after(writes, what, **kwargs) -> MemoryLedger:
    """Play a search that dies after some writes; it may come to its end before that."""
    ledger = MemoryLedger(writes=writes)
    with contextlib.suppress(Killed):
        Tune(what, ledger, **kwargs).play()
    return MemoryLedger(ledger.files)


@pytest.mark.parametrize(("sampler", "num_trials"), [("random", 10), ("sobol", 10), ("tpe", 16)])
def test_a_search_killed_at_any_write_ends_as_if_it_had_not_been(sampler, num_trials):
    what = plan(num_trials, sampler=sampler, first=[{"lr": 1e-3}, {"model": "a"}])
    straight = timeless(Tune(what, MemoryLedger()).play().ledger.read())
    total = num_writes(what)
    assert total > 50
    # Every write of the random search; of the others every seventh: TPE costs more.
    for writes in range(1, total, 1 if sampler == "random" else 7):
        resumed = Tune(what, killed_after(writes, what)).play()
        assert timeless(resumed.ledger.read()) == straight, f"killed after write {writes}"


def test_a_search_killed_again_and_again_ends_as_if_it_had_not_been():
    what = plan(9)
    ledger = MemoryLedger(writes=5)
    for _ in range(100):
        try:
            Tune(what, ledger).play()
            break
        except Killed:
            ledger = MemoryLedger(ledger.files, writes=5)
    assert timeless(ledger.read()) == timeless(Tune(what, MemoryLedger()).play().ledger.read())


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_trials_side_by_side_draw_the_same_whatever_the_kill(writes, concurrent, before, after):
    what = plan(8, first=[{"lr": 1e-3}])
    straight = Tune(what, MemoryLedger(), concurrent=concurrent).play().ledger.read()
    ledger = killed_after(writes, what, concurrent=concurrent, seed=before)
    known = {trial.id: trial for trial in ledger.read()}
    tune = Tune(what, ledger, concurrent=concurrent, seed=after).play()
    trials = tune.ledger.read()
    assert params_of(trials) == params_of(straight)
    assert {t.number: t.origin for t in trials} == {t.number: t.origin for t in straight}
    # Nothing is run twice: what had ended is not suggested, what had not comes first, by its id.
    assert len(tune.suggested) == len(set(tune.suggested))
    ended = {name for name, trial in known.items() if trial.state != "running"}
    assert not ended & set(tune.suggested)
    unfinished = [name for name in sorted(set(known) - ended) if name not in tune.stopped_before]
    assert tune.suggested[: len(unfinished)] == unfinished
    for name in ended:
        assert next(trial for trial in trials if trial.id == name) == known[name]
    # A trial that goes on keeps the ticks it had.
    for trial in trials:
        assert [tick["tick"] for tick in trial.ticks] == list(range(1, trial.tick + 1))


def test_an_unfinished_trial_is_suggested_under_its_id_with_its_configuration():
    what = plan(4)
    ledger = killed_after(num_writes(what) - 1, what)
    (running,) = [trial for trial in ledger.read() if trial.state == "running"]
    suggestions = Suggestions(what, ledger=ledger, trials=ledger.read(), job={})
    job = suggestions.suggest("anything")
    assert job["trial"] == running.id and job["job"]["config"] == running.config
    assert suggestions.suggest("anything") == Searcher.FINISHED


def test_a_resume_through_the_files_draws_the_same(tmp_path):
    what = plan(6)
    straight = Tune(what, MemoryLedger(), concurrent=2).play().ledger.read()
    first = Suggestions(what, ledger=Ledger(str(tmp_path)), trials=[], job={})
    for index in range(3):
        first.suggest(f"tune{index}")
    ledger = Ledger(str(tmp_path))
    ledger.end(ledger.read()[1], error="OSError: no room")
    tune = Tune(what, ledger, concurrent=2).play()
    assert tune.suggested == [f"explore-{number:03d}" for number in (0, 2, 3, 4, 5)]
    assert params_of(ledger.read()) == params_of(straight)


def test_an_extended_stage_adds_new_numbers_only():
    tune = Tune(plan(5), MemoryLedger()).play()
    more = Tune(plan(9), MemoryLedger(tune.ledger.files)).play()
    assert more.suggested == [f"explore-{number:03d}" for number in range(5, 9)]
    straight = Tune(plan(9), MemoryLedger()).play()
    assert timeless(more.ledger.read()) == timeless(straight.ledger.read())
    fewer = Suggestions(plan(3), ledger=tune.ledger, trials=tune.ledger.read(), job={})
    assert fewer.suggest("x") == Searcher.FINISHED


def test_a_trial_whose_file_was_deleted_is_drawn_again():
    tune = Tune(plan(5), MemoryLedger()).play()
    files = {name: trial for name, trial in tune.ledger.files.items() if name != "explore-002"}
    again = Tune(plan(5), MemoryLedger(files)).play()
    assert again.suggested == ["explore-002"]
    assert params_of(again.ledger.read()) == params_of(tune.ledger.read())


def test_a_second_run_of_a_finished_stage_suggests_nothing():
    tune = Tune(plan(5), MemoryLedger()).play()
    again = Tune(plan(5), MemoryLedger(tune.ledger.files)).play()
    assert again.suggested == [] and again.ledger.count == 0


def ended(tune) -> dict[int, optuna.trial.FrozenTrial]:
    """Return what Optuna knows, by the number of the trial in the ledger."""
    by_params = {json.dumps(t.params, sort_keys=True): t.number for t in tune.ledger.read()}
    return {
        by_params[json.dumps(trial.params, sort_keys=True)]: trial
        for trial in tune.suggestions._study.trials
    }


def test_optuna_is_told_how_each_trial_ended_and_all_its_scores():
    tune = Tune(plan(16, first=[{"lr": 0.05}]), MemoryLedger()).play()
    told = ended(tune)
    expected = {
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "diverged": TrialState.FAIL,
    }
    assert {trial.state for trial in tune.ledger.read()} == set(expected)
    for trial in tune.ledger.read():
        known = told[trial.number]
        assert known.state == expected[trial.state]
        assert known.intermediate_values == {t["tick"]: t["score"] for t in trial.ticks}
        if trial.state == "finished":
            assert known.value == trial.score
    best = max(t.score for t in tune.ledger.read() if t.state == "finished")
    assert tune.suggestions._study.best_value == best


def test_a_trial_that_failed_is_a_failure_with_and_without_a_report():
    ledger = MemoryLedger()
    suggestions = Suggestions(plan(), ledger=ledger, trials=[], job={})
    for _ in range(2):
        suggestions.suggest("x")
    silent, reported = ledger.read()
    ledger.tick(reported, invented(reported.config, 1))
    for trial in (silent, reported):
        ledger.end(trial, error="OSError: no room")
        suggestions.tell(trial)
    known = suggestions._study.trials
    assert [trial.state for trial in known] == [TrialState.FAIL] * 2
    assert [len(trial.intermediate_values) for trial in known] == [0, 1]


@pytest.mark.parametrize("last", [1, TICKS])
def test_a_score_that_is_no_number_does_not_break_the_search(last):
    ledger = MemoryLedger()
    suggestions = Suggestions(plan(2), ledger=ledger, trials=[], job={})
    suggestions.suggest("x")
    (trial,) = ledger.read()
    trial.add_tick({"tick": last, "score": math.nan, "seconds": 1.0})
    ledger.end(trial)
    suggestions.tell(trial)
    again = Suggestions(plan(2, sampler="tpe"), ledger=ledger, trials=ledger.read(), job={})
    for study in (suggestions._study, again._study):
        state = study.trials[0].state
        assert state == (TrialState.FAIL if last == TICKS else TrialState.PRUNED)
    assert suggestions.suggest("x")["trial"] == again.suggest("x")["trial"] == "explore-001"


def test_optuna_knows_the_same_after_a_resume():
    tune = Tune(plan(16, sampler="tpe"), MemoryLedger()).play()
    again = Tune(plan(16, sampler="tpe"), MemoryLedger(tune.ledger.files))
    before, after = ended(tune), ended(again)
    assert before.keys() == after.keys()
    for number, one in before.items():
        other = after[number]
        assert (one.state, one.params, one.distributions, one.intermediate_values) == (
            other.state,
            other.params,
            other.distributions,
            other.intermediate_values,
        )
        # Optuna gives a pruned trial its last score as a value only when it is told, and TPE
        # does not look at it.
        assert one.value == other.value or one.state == TrialState.PRUNED


def drawn_next(trials, sampler) -> list[dict]:
    """Return the next ten points after these trials."""
    what = plan(len(trials) + 10, sampler=sampler)
    ledger = MemoryLedger()
    suggestions = Suggestions(what, ledger=ledger, trials=copy.deepcopy(trials), job={})
    for _ in range(10):
        suggestions.suggest("x")
    return [trial.params for trial in ledger.read()]


def finished_at(number, lr, score) -> Trial:
    params = {"model": "a", "lr": lr, "epochs": 5, "hflip": 0.1, "clip_grad": None}
    ticks = [{"tick": tick, "score": score, "seconds": 1.0} for tick in range(1, TICKS + 1)]
    return Trial(
        id=f"explore-{number:03d}",
        number=number,
        state="finished",
        params=params,
        config=configure(plan().stage, params).to_dict(),
        ticks=ticks,
    )


def test_tpe_learns_from_the_ledger_and_random_search_does_not():
    spread = [10 ** (-5 + 4 * index / 29) for index in range(30)]
    low = [finished_at(n, lr, 0.9 - 0.1 * (math.log10(lr) + 5)) for n, lr in enumerate(spread)]
    high = [finished_at(n, lr, 0.5 + 0.1 * (math.log10(lr) + 5)) for n, lr in enumerate(spread)]
    assert drawn_next(low, "random") == drawn_next(high, "random")
    centres = [
        sum(math.log10(params["lr"]) for params in drawn_next(trials, "tpe")) / 10
        for trials in (low, high)
    ]
    assert centres[0] < -3.6 and centres[1] > -2.4


def test_tpe_learns_from_trials_that_were_stopped():
    def stopped(number, lr, score):
        trial = finished_at(number, lr, score)
        return dataclasses.replace(trial, state="stopped", ticks=trial.ticks[:1])

    spread = [10 ** (-5 + 4 * index / 29) for index in range(30)]
    low = [stopped(n, lr, 0.9 - 0.1 * (math.log10(lr) + 5)) for n, lr in enumerate(spread)]
    high = [stopped(n, lr, 0.5 + 0.1 * (math.log10(lr) + 5)) for n, lr in enumerate(spread)]
    assert drawn_next(low, "tpe") != drawn_next(high, "tpe")


def test_no_warning_is_raised_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sampler in ("random", "sobol", "tpe"):
            what = plan(14, sampler=sampler, first=[{"lr": 1e-3}])
            tune = Tune(what, MemoryLedger(), concurrent=2).play()
            Tune(what, MemoryLedger(tune.ledger.files)).play()


class Unpicklable:
    """An observer that holds what no pickle can: a thread and its lock."""

    def __init__(self):
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=print)

    def begin(self, trial): ...
    def tick(self, trial, metrics): ...
    def end(self, trial): ...


def test_tune_may_pickle_a_live_search():
    observer = Unpicklable()
    with pytest.raises(TypeError):
        cloudpickle.dumps(observer)
    tune = Tune(plan(4), MemoryLedger(observers=[observer]))
    tune._fill()
    tune._report("explore-000")
    for dump in (pickle.dumps, cloudpickle.dumps):
        assert isinstance(pickle.loads(dump(tune.suggestions)), Suggestions)
        assert pickle.loads(dump(tune.rungs)).rungs() == tune.rungs.rungs()
    tune.play()


def test_tune_may_save_a_search_and_nothing_restores_it(tmp_path):
    suggestions = Suggestions(plan(), ledger=MemoryLedger(), trials=[], job={})
    suggestions.save(str(tmp_path / "searcher.pkl"))
    assert (tmp_path / "searcher.pkl").read_bytes() == b""
    with pytest.raises(NotImplementedError):
        suggestions.restore(str(tmp_path / "searcher.pkl"))


budgets = st.builds(
    Budget,
    num_trials=st.just(1),
    grace_period=st.integers(1, TICKS),
    reduction_factor=st.integers(2, 5),
)
scores = st.sampled_from([0.0, 0.5, 0.6, 0.7, 0.9, 1.0]) | st.floats(0, 1)


class Ray:
    """Ray's own scheduler, fed as Tune feeds it."""

    def __init__(self, budget):
        self.scheduler = AsyncHyperBandScheduler(
            time_attr="tick",
            metric="score",
            mode="max",
            max_t=TICKS,
            grace_period=budget.grace_period,
            reduction_factor=budget.reduction_factor,
        )
        self.known = {}

    def decide(self, name, result):
        if name not in self.known:
            self.known[name] = FakeTrial(name)
            self.scheduler.on_trial_add(None, self.known[name])
        trial = self.known[name]
        decision = self.scheduler.on_trial_result(None, trial, result)
        if decision == TrialScheduler.STOP:
            self.scheduler.on_trial_complete(None, trial, result)
        return decision

    def rungs(self):
        return {int(tick): dict(found) for tick, found in self.scheduler._brackets[0]._rungs}


def stream(order, values, decide):
    """Report side by side in a given order; a trial that is stopped or at its end says no more."""
    ticks, over = {}, set()
    for name, score in zip(order, values, strict=False):
        if name in over:
            continue
        tick = ticks[name] = ticks.get(name, 0) + 1
        decision = decide(name, {"tick": tick, "score": score})
        if decision == TrialScheduler.STOP or tick == TICKS:
            over.add(name)
        yield name, tick, decision


names = st.integers(0, 5).map(lambda number: f"t{number}")


@given(budgets, st.lists(names, max_size=120), st.lists(scores, min_size=120, max_size=120))
@settings(max_examples=100, deadline=None)
def test_decisions_and_rungs_are_those_of_ray(budget, order, values):
    ours, rays = Rungs(budget), Ray(budget)
    decided = list(stream(order, values, ours.decide))
    expected = list(stream(order, values, rays.decide))
    for (name, tick, decision), (_, _, other) in zip(decided, expected, strict=True):
        # Ray stops a trial at its last tick; it ends there by itself.
        assert decision == (TrialScheduler.CONTINUE if tick == TICKS else other), (name, tick)
    assert ours.rungs() == rays.rungs()


def test_the_rungs_that_select_ranks_by_are_those_that_decide():
    for grace_period, factor in itertools.product(range(1, TICKS + 1), range(2, 17)):
        budget = Budget(num_trials=1, grace_period=grace_period, reduction_factor=factor)
        wanted = [tick for tick in select.rungs(budget) if tick < TICKS]
        assert [tick for tick in Rungs(budget).rungs() if tick < TICKS] == wanted, budget


def test_three_of_four_are_stopped_at_a_rung():
    rungs = Rungs(Budget(num_trials=1, grace_period=1))
    decisions = [
        rungs.decide(f"t{n}", {"tick": 1, "score": score})
        for n, score in enumerate([0.5, 0.6, 0.7, 0.8, 0.72, 0.74, 0.9, 0.5])
    ]
    stop, go = TrialScheduler.STOP, TrialScheduler.CONTINUE
    assert decisions == [go, go, go, go, stop, go, go, stop]
    assert rungs.decide("t7", {"tick": 2, "score": 0.0}) == go  # there is no rung at 2


def test_tick_16_never_stops():
    for grace_period in (1, 4, 16):
        rungs = Rungs(Budget(num_trials=1, grace_period=grace_period))
        for name, score in (("a", 0.9), ("b", 0.1), ("c", math.nan)):
            decision = rungs.decide(name, {"tick": TICKS, "score": score})
            assert decision == TrialScheduler.CONTINUE


def test_a_repeated_tick_changes_nothing():
    what = plan(8)
    tune = Tune(what, MemoryLedger(), concurrent=3).play()
    before = tune.rungs.rungs()
    for trial in tune.ledger.read():
        for tick in trial.ticks:
            decision = tune.rungs.decide(trial.id, tick | {"score": 0.001})
            assert decision == TrialScheduler.CONTINUE
    assert tune.rungs.rungs() == before


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_the_worst_there_is(score):
    rungs = Rungs(Budget(num_trials=1, grace_period=1))
    for number in range(4):
        rungs.decide(f"t{number}", {"tick": 1, "score": 0.6})
    assert rungs.decide("bad", {"tick": 1, "score": score}) == TrialScheduler.STOP
    assert rungs.rungs()[1]["bad"] == 0.0
    # Nor does it spoil the cut for those that follow.
    assert rungs.decide("low", {"tick": 1, "score": 0.5}) == TrialScheduler.STOP
    assert rungs.decide("high", {"tick": 1, "score": 0.7}) == TrialScheduler.CONTINUE


def test_a_diverged_trial_scores_zero_and_is_never_let_on_for_it():
    rungs = Rungs(Budget(num_trials=1, grace_period=1))
    rungs.decide("a", {"tick": 1, "score": 0.5})
    diverged = {"tick": 1, "score": 0.0, "diverged": 1.0, "finished": 1.0}
    assert rungs.decide("b", diverged) == TrialScheduler.STOP
    assert rungs.rungs()[1] == {"a": 0.5, "b": 0.0}


class Snapshots(MemoryLedger):
    """Remembers after every write what is on disk and what the scheduler knows."""

    def __init__(self):
        super().__init__()
        self.tune = None
        self.taken = []

    def _write(self, trial):
        super()._write(trial)
        if self.tune is not None:
            self.taken.append((dict(self.files), self.tune.rungs.rungs()))


@pytest.mark.parametrize("concurrent", [1, 4])
@pytest.mark.parametrize("budget", [(1, 4), (2, 3), (1, 2), (16, 4)])
def test_the_rungs_after_a_replay_are_those_of_the_live_search_at_every_write(concurrent, budget):
    grace_period, reduction_factor = budget
    chosen = Budget(num_trials=12, grace_period=grace_period, reduction_factor=reduction_factor)
    ledger = Snapshots()
    tune = Tune(plan(12, budget=chosen), ledger, concurrent=concurrent)
    ledger.tune = tune
    tune.play()
    assert len(ledger.taken) > 60
    pending = 0
    for files, live in ledger.taken:
        trials = MemoryLedger(files).read()
        replayed = Rungs(chosen, trials=random.Random(0).sample(trials, len(trials)))
        assert replayed.rungs() == live
        # A stop that was decided but not carried out, and all those that were.
        stopped = {trial.id for trial in trials if trial.state == "stopped"}
        assert stopped <= set(replayed.stopped)
        waiting = set(replayed.stopped) - {trial.id for trial in trials if trial.state != "running"}
        assert len(waiting) <= 1
        pending += len(waiting)
    # Each stopped trial was for one write decided on and not yet ended.
    assert pending >= sum(trial.state == "stopped" for trial in ledger.read())


def test_a_rung_that_was_skipped_is_not_filled_later():
    """A trial may go on from a checkpoint although its file in the ledger was deleted."""
    rungs = Rungs(Budget(num_trials=2, grace_period=1))
    for tick in (5, 6, 7):
        rungs.decide("late", {"tick": tick, "score": 0.9})
    assert rungs.rungs() == {1: {}, 4: {}, 16: {}}
    assert rungs.decide("early", {"tick": 1, "score": 0.6}) == TrialScheduler.CONTINUE
    for _ in range(2):
        rungs.decide("late", {"tick": 4, "score": 0.8})
    assert rungs.rungs() == {1: {"early": 0.6}, 4: {"late": 0.8}, 16: {}}


def test_a_clock_that_was_set_back_does_not_spoil_the_rungs():
    tune = Tune(plan(8), MemoryLedger(), concurrent=1).play()
    trials = tune.ledger.read()
    for trial in trials:
        for tick in trial.ticks[trial.tick // 2 :]:
            tick["time"] -= 1e6
    replayed = Rungs(Budget(num_trials=8, grace_period=1), trials=trials).rungs()
    for rung, found in replayed.items():
        by_id = {trial.id: trial for trial in trials}
        assert found == {
            name: by_id[name].ticks[rung - 1]["score"] for name in by_id if by_id[name].tick >= rung
        }

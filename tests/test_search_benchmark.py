"""The benchmark of the search: its clock decides as Tune does, and ``fast`` is worth its compute.

All of it is played on a quick table of real trainings, made once per session.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray.tune
from ray import cloudpickle

from aiornot.tuning import ray_tuner
from aiornot.tuning import record as records
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.space import Budget

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are no package of the wheel

from benchmarks.search import grid, methods, replay, run, table  # noqa: E402
from benchmarks.search.replay import World  # noqa: E402

REPLICATES = 8
MARGIN = 0.002
"""Of AUROC on test."""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A quick table: 504 real trainings, in about ten CPU seconds."""
    folder = tmp_path_factory.mktemp("tables")
    for profile in ("reduced", "full"):
        table.write(folder, "patches", profile, quick=True)
    return folder


@pytest.fixture(scope="module")
def where(home: Path) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        yield run.world("patches", Path(folder), home=home, quick=True)


def mean_test(name: str, where: World) -> tuple[float, float]:
    """Return what a method delivers and spends on its search, both as means."""
    method = methods.methods()[name]
    rows = [run.replicate(method, where, number)[""] for number in range(REPLICATES)]
    return np.mean([row["test"] for row in rows]), np.mean([row["search"] for row in rows])


def test_fast_at_a_third_of_the_compute_is_no_worse_than_a_long_random_search(where):
    ours, hours = mean_test("fast", where)
    theirs, their_hours = mean_test("random 128", where)
    assert hours < their_hours / 3
    assert ours > theirs - MARGIN


def test_that_comparison_fails_where_a_search_cannot_tell_good_from_bad(where):
    """What the searches see are the curves of other configurations."""
    reduced = where.tables["reduced"]
    order = np.random.default_rng(0).permutation(reduced.train[0].size)

    def shuffled(values: np.ndarray) -> np.ndarray:
        rows = values.reshape(len(values), order.size, -1)
        return rows[:, order].reshape(values.shape)

    names = ("val", "small", "train")
    changes = {name: shuffled(getattr(reduced, name)) for name in names}
    blind = dataclasses.replace(reduced, **changes)
    ours, _ = mean_test(
        "fast", dataclasses.replace(where, tables={**where.tables, "reduced": blind})
    )
    theirs, _ = mean_test("random 128", where)
    assert ours < theirs - MARGIN


def decisions(trials: list[Trial]) -> list[tuple]:
    """Return all that was reported, in the order in which it came, and how each trial ended."""
    ticks = [(tick["time"], trial.id, tick) for trial in trials for tick in trial.ticks]
    ordered = sorted(ticks, key=lambda found: found[:2])
    reported = [(name, tick["tick"], tick["score"]) for _, name, tick in ordered]
    return reported + [(trial.id, trial.state, trial.tick, trial.params) for trial in trials]


@pytest.mark.ray
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_real_tuner_decides_as_the_clock_does(sampler, where, ray_cluster, tmp_path, monkeypatch):
    """24 trials, one after the other, of a real Tuner whose trials read their reports."""
    explore = methods.folder("fast")[0]
    stage = dataclasses.replace(explore, sampler=sampler, budget=Budget(num_trials=24, epochs=8))
    (played,) = replay.play([stage], where)
    for module in (replay, table, grid):
        cloudpickle.register_pickle_by_value(module)  # no worker could import them
    told = dataclasses.replace(where, files={})

    def read_reports(config: dict) -> None:
        for report in told.reports("reduced", config["job"]["config"]):
            ray.tune.report(report)

    monkeypatch.setattr(
        ray_tuner, "_in_process", lambda: ray.tune.with_resources(read_reports, {"CPU": 1})
    )
    monkeypatch.setattr(ray_tuner, "num_concurrent", lambda num_workers: 1)
    record = records.begin(
        stage, where.files["reduced"], num_trials=24, parent=None, parent_trials=[]
    )
    ledger = Ledger(str(tmp_path))
    terms = ray_tuner.Terms()
    ray_tuner.search(stage, record, ledger, data=where.files["reduced"], terms=terms)
    trials = ledger.read()
    assert decisions(trials) == decisions(played.ledger.read())
    assert {trial.state for trial in trials} == {"finished", "stopped"}
    assert len(trials) == 24

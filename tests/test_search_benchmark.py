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
from aiornot.tuning.outlook import Machines
from aiornot.tuning.space import Budget

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are no package of the wheel

from benchmarks.search import grid, methods, replay, run, table, worlds  # noqa: E402
from benchmarks.search.worlds import World  # noqa: E402

REPLICATES = 8
MARGIN = 0.002
"""Of AUROC on test."""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where a quick table of short trainings lies: 252 of them, in six CPU seconds."""
    folder = tmp_path_factory.mktemp("tables")
    table.write(folder, "patches", "reduced", quick=True)
    return folder


@pytest.fixture(scope="module")
def where(home: Path) -> Iterator[World]:
    """A world of that and of 252 long trainings, in eight CPU seconds more."""
    table.write(home, "patches", "full", quick=True)
    with tempfile.TemporaryDirectory() as folder:
        yield run.world("patches", Path(folder), home=home, quick=True)


def mean_of(name: str, where: World, *, end: str = "") -> tuple[float, float]:
    """Return the AUROC that a method delivers and the hours of its search, both as means."""
    method = methods.methods()[name]
    rows = [run.replicate(method, where, number)[end] for number in range(REPLICATES)]
    return float(np.mean([row["test"] for row in rows])), np.mean([row["search"] for row in rows])


@pytest.fixture(scope="module")
def long_search(where: World) -> tuple[float, float]:
    return mean_of("random 128", where, end=", 2 candidates")


def test_fast_at_a_third_of_the_compute_is_no_worse_than_a_long_random_search(where, long_search):
    ours, hours = mean_of("fast", where)
    theirs, their_hours = long_search
    assert hours < their_hours / 3
    assert ours > theirs - MARGIN


def test_that_comparison_fails_where_the_search_prefers_what_is_bad(where, long_search):
    reduced = where.tables["reduced"]
    upside_down = dataclasses.replace(reduced, val=1 - reduced.val)
    tables = {**where.tables, "reduced": upside_down}
    ours, _ = mean_of("fast", dataclasses.replace(where, tables=tables))
    assert ours < long_search[0] - MARGIN


def decisions(trials: list[Trial]) -> list[tuple]:
    """Return all that was reported, in the order in which it came, and how each trial ended."""
    ticks = [(tick["time"], trial.id, tick) for trial in trials for tick in trial.ticks]
    ordered = sorted(ticks, key=lambda found: found[:2])
    reported = [(name, tick["tick"], tick["score"]) for _, name, tick in ordered]
    return reported + [(trial.id, trial.state, trial.tick, trial.params) for trial in trials]


@pytest.mark.ray
def test_a_real_tuner_decides_as_the_clock_does(home, ray_cluster, tmp_path, monkeypatch):
    """24 trials, one after the other, of a real Tuner whose trials read their reports.

    TPE, because it draws by what it was told before, and in which order.
    """
    reduced = table.read(table.path_of(home, "patches", "reduced"), quick=True)
    where = worlds.world({"reduced": reduced}, tmp_path)
    explore = methods.folder("fast")[0]
    stage = dataclasses.replace(explore, sampler="tpe", budget=Budget(num_trials=24, epochs=8))
    (played,) = replay.play([stage], where)
    for module in (worlds, table, grid):
        cloudpickle.register_pickle_by_value(module)  # no worker could import them
    told = dataclasses.replace(where, files={})

    def read_reports(config: dict) -> None:
        for report in told.reports("reduced", config["job"]["config"]):
            ray.tune.report(report)

    monkeypatch.setattr(
        ray_tuner, "_in_process", lambda: ray.tune.with_resources(read_reports, {"CPU": 1})
    )
    one = Machines(num_gpus=0, num_cpus=1)
    monkeypatch.setattr(ray_tuner, "machines", lambda num_workers: one)
    record = records.begin(
        stage, where.files["reduced"], num_trials=24, parent=None, parent_trials=[]
    )
    ledger = Ledger(str(tmp_path / "ledger"))
    terms = ray_tuner.Terms()
    ray_tuner.search(stage, record, ledger, data=where.files["reduced"], terms=terms)
    trials = ledger.read()
    assert decisions(trials) == decisions(played.ledger.read())
    assert {trial.state for trial in trials} == {"finished", "stopped"}
    assert len(trials) == 24

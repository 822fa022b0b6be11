"""What a search does when something dies, hangs, fails or runs out: real Ray, real training."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import prepare, run_verb
from ray import cloudpickle
from test_chain import FINAL, read_trials, write_chain

from aiornot.tuning import ray_tuner

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]

EXPLORE = """
from aiornot.tuning.space import Budget, Stage, loguniform

stage = Stage(
    name="explore",
    space={"lr": loguniform(1e-7, 1e-2)},
    fixed={"model": "test_resnet.r160_in1k", "pretrained": False, "batch_size": 8},
    first=({"lr": 1e-2}, {"lr": 1e-7}),
    sampler="random",
    %s
)
"""
TWO = "budget=Budget(num_trials=2, epochs=3, grace_period=16),"
SIX = "budget=Budget(num_trials=6, epochs=3, grace_period=16),"
TICKS = list(range(1, 17))


@pytest.fixture
def home(easy, tmp_path, monkeypatch) -> Path:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/full.h5").symlink_to(easy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tune(explore: str, *options: str) -> Any:
    if not Path("mine").exists():
        write_chain(Path("mine"), explore=EXPLORE % explore, final=FINAL.format(parent="explore"))
    options = ("--wandb", "off", "--only", "explore", *options)
    return run_verb("tune", "mine", "--data", "prepared", *options)


def trials() -> dict[str, dict]:
    return read_trials(Path("runs/mine"))


def ticks(trial: dict) -> list[int]:
    return [tick["tick"] for tick in trial["ticks"]]


def are_whole(found: dict[str, dict], count: int) -> bool:
    """Whether so many trials finished, none with a tick that is missing or there twice."""
    whole = [trial["state"] == "finished" and ticks(trial) == TICKS for trial in found.values()]
    return len(whole) == count and all(whole)


# What happens in the worker ----------------------------------------------------------------------


@pytest.fixture
def plant(home, monkeypatch):
    """Have something happen in the worker of a trial after each of its ticks."""
    trainable = ray_tuner._in_process
    # The workers cannot import this module.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def planted(act) -> None:
        folder = str(home)

        def in_process() -> Any:
            whole = trainable()

            def faulty(config: dict) -> None:
                with acting(act, folder):
                    whole(config)

            return ray.tune.with_resources(faulty, {"CPU": 1.0})

        monkeypatch.setattr(ray_tuner, "_in_process", in_process)

    yield planted
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@contextmanager
def acting(act, folder: str):
    """Call ``act(trial, tick, marks)`` after each tick; a mark is for what happens only once."""
    from aiornot.training import job

    run = job.run

    def faulty(config, **how):
        tell, name = how["tell"], Path(how["root"]).name

        def told(metrics):
            tell(metrics)
            act(name, int(metrics["tick"]), Path(folder, f"happened-{name}"))

        run(config, **how | {"tell": told})

    job.run = faulty
    try:
        yield
    finally:
        job.run = run


def once(name: str, tick: int, mark: Path) -> bool:
    if tick != 5 or not name.endswith("000") or mark.exists():
        return False
    mark.touch()
    return True


def die(name: str, tick: int, mark: Path) -> None:
    if once(name, tick, mark):
        os.kill(os.getpid(), signal.SIGKILL)


def hang(name: str, tick: int, mark: Path) -> None:
    if once(name, tick, mark):
        time.sleep(1000)


def fill_the_disk(name: str, tick: int, mark: Path) -> None:
    if once(name, tick, mark):
        raise OSError(28, "No space left on device")


def lose_the_store(name: str, tick: int, mark: Path) -> None:
    if once(name, tick, mark):
        from aiornot import storage

        raise storage.StoreError("s3://bucket", OSError("AWS Error SLOW_DOWN"))


def fail(name: str, tick: int, mark: Path) -> None:
    raise RuntimeError(f"{name} meets the bug of {mark}")


HANG = pytest.param(hang, ("--tick-minutes", "0.1"), marks=pytest.mark.slow)


@pytest.mark.parametrize(("fault", "options"), [(die, ()), HANG])
def test_a_process_that_is_killed_or_hangs_costs_no_trial_and_no_tick(fault, options, home, plant):
    """Slow where it hangs: the time limit of a tick has to pass."""
    plant(fault)
    result = tune(TWO, *options)
    assert result.code == 0, result.err
    assert (home / "happened-explore-000").exists()
    assert are_whole(trials(), 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [(fill_the_disk, "No space left on device"), (lose_the_store, "the object store failed")],
)
def test_a_full_disk_or_a_lost_store_stops_the_stage_and_costs_no_trial(fault, words, plant):
    """Slow: two searches, each with processes of its own."""
    plant(fault)
    result = tune(TWO)
    assert result.code == 1 and words in result.err
    assert result.err.count("the same command goes on") == 1 and "Traceback" not in result.err
    assert len(ticks(trials()["explore-000"])) == 5
    assert tune(TWO).code == 0
    assert are_whole(trials(), 2)


def test_three_equal_errors_in_a_row_stop_the_stage_and_cost_no_trial(plant):
    plant(fail)
    result = tune(SIX)
    assert result.code == 1 and "Traceback" not in result.err
    assert "3 trials in a row failed in the same way: RuntimeError: explore-00" in result.err
    stopped = trials()
    assert len(stopped) <= 5 and not any(t["state"] == "finished" for t in stopped.values())
    assert any("meets the bug" in trial["traceback"] for trial in stopped.values())
    plant(lambda *_: None)
    assert tune(SIX).code == 0
    assert are_whole(trials(), 6)


@pytest.mark.slow
def test_a_ledger_that_cannot_be_written_stops_the_stage(home, monkeypatch):
    """Slow: two searches, each with processes of its own."""
    from aiornot import storage

    write = storage.write_text

    def full(path: str, text: str) -> None:
        if path.endswith("explore-000.json") and '"tick": 5' in text:
            raise OSError(28, "No space left on device")
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_text", full)
        result = tune(TWO)
    assert result.code == 1 and "cannot be written" in result.err and "goes on" in result.err
    assert tune(TWO).code == 0
    assert are_whole(trials(), 2)


# What a search may spend -------------------------------------------------------------------------


def test_a_spent_budget_ends_the_search_and_a_larger_one_reopens_it(home):
    assert tune(SIX, "--trials", "explore=2").code == 0
    spent = sum(tick["seconds"] for trial in trials().values() for tick in trial["ticks"])
    # Of seven equal trainings six are explore's; a quarter more than they took is left for it.
    limit = ("--gpu-hours", str(1.25 * spent * 7 / 6 / 3600))
    result = tune(SIX, *limit)
    assert result.code == 0, result.err
    assert "its share of the budget was spent" in result.err
    record = json.loads((home / "runs/mine/explore/stage.json").read_text())
    assert record["closed"] and len(record["sessions"]) == 2
    # One that had just begun has nothing to give up, and begins anew when there are more hours.
    before = {name: trial for name, trial in trials().items() if trial["ticks"]}
    assert {trial["state"] for trial in before.values()} == {"finished", "stopped"}
    assert "the budget of the stage was spent, at tick" in before["explore-002"]["reason"]
    left = trials()
    assert tune(SIX, *limit).code == 0
    assert trials() == left  # the same command finds it finished
    assert tune(SIX).code == 0
    after = trials()
    assert len(after) == 6 and {name: after[name] for name in before} == before


# Ray Train inside of Tune ------------------------------------------------------------------------


def test_trials_that_are_ray_train_runs_leave_when_told_and_leave_nothing_behind(home):
    (home / "prepared/full.h5").unlink()
    prepare(home / "prepared/full.h5")  # hard enough for the bad trial to be the worse one at once
    explore = 'trainer="ray_train", budget=Budget(num_trials=2, epochs=3, grace_period=1),'
    result = tune(explore, "--workers", "2")
    assert result.code == 0, result.err
    good, bad = trials().values()
    assert good["state"] == "finished" and ticks(good) == TICKS
    assert bad["state"] == "stopped" and ticks(bad) == [1]
    groups = ray.util.placement_group_table().values()
    assert [group["state"] for group in groups if group["state"] != "REMOVED"] == []
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2.0:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


NO_STATE_API = """
import ray
from aiornot import ray_session
from aiornot.config import InputError
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
try:
    with ray_session.connected(state_api=True):
        raise SystemExit("it went on")
except InputError as error:
    print(error)
"""


BESIDE_ANOTHER = """
import ray
from aiornot import ray_session
with ray_session.connected(state_api=True):
    print("both are there, this one with cores:", ray.cluster_resources().get("CPU", 0) > 0)
    assert ray.get(ray.remote(lambda: "well").remote()) == "well"
"""


def test_a_ray_of_ones_own_starts_beside_another_also_on_the_head_of_a_cluster():
    # What every job inherits there; the package lies in the GCS of the cluster.
    job = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"}}
    head = {
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 0}',
        "RAY_OVERRIDE_LABELS": '{"of": "the head"}',
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
    }
    result = subprocess.run(  # beside the one of these tests
        [sys.executable, "-c", BESIDE_ANOTHER],
        env=os.environ | head,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout == "both are there, this one with cores: True\n", result.stderr


def test_a_ray_without_the_state_api_is_refused_in_one_sentence():
    result = subprocess.run(
        [sys.executable, "-c", NO_STATE_API], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "needs Ray's State API" in result.stdout and len(result.stdout.splitlines()) == 1

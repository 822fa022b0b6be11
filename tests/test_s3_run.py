"""A whole run whose data and results lie in an object store: real Ray, Arrow's client, our S3."""

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import KEY_ID, SECRET, run_verb, set_store
from stores import FakeS3
from test_chain import EXPLORE, FINAL, start, wait_for, write_chain

from aiornot import storage

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

DATA, RUNS = "s3://bucket/prepared", "s3://bucket/runs"
TUNE = ("tune", "mine", "--data", DATA, "--storage", RUNS)
AWAY = 20.0
"""Seconds for which the store refuses connections in the midst of a run."""
TICKS = list(range(1, 17))


def lay_out(server: FakeS3, home: Path, data: Path, *, epochs: int) -> Path:
    explore = EXPLORE.replace("num_trials=3, epochs=3", f"num_trials=2, epochs={epochs}")
    explore = explore.replace("grace_period=4", "grace_period=16")
    final = FINAL.format(parent="explore").replace("epochs=3", f"epochs={epochs}")
    write_chain(home / "mine", explore=explore, final=final)
    server.objects.clear()
    server.objects["bucket/prepared/full.h5"] = data.read_bytes()
    return home


def trials(server: FakeS3) -> dict[str, dict]:
    found = [
        json.loads(content)
        for key, content in list(server.objects.items())
        if "/trials/" in key and key.endswith(".json")
    ]
    return {trial["id"]: trial for trial in found}


def ticks(trial: dict) -> list[int]:
    return [tick["tick"] for tick in trial["ticks"]]


def goes_away(server: FakeS3) -> threading.Thread:
    """Have the store refuse connections once the first trials are in their fifth tick."""

    def watch() -> None:
        while not any("tick_05/complete" in key for key in list(server.objects)):
            time.sleep(0.02)
        server.go_down(AWAY)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def leaks(root: Path) -> list[str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    secrets = (KEY_ID.encode(), SECRET.encode())
    return [str(path) for path in files if any(word in path.read_bytes() for word in secrets)]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("AIORNOT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_search_outlasts_an_outage_and_is_read_from_anywhere(
    ray_cluster, store_of_ray, easy, home, monkeypatch
):
    server, address = store_of_ray
    set_store(monkeypatch, address)
    lay_out(server, home, easy, epochs=3)
    outage = goes_away(server)
    done = run_verb(*TUNE, "--only", "explore")
    assert done.code == 0, done.err
    assert not outage.is_alive()
    found = trials(server)
    assert sorted(found) == ["explore-000", "explore-001"]
    assert all(trial["state"] == "finished" and ticks(trial) == TICKS for trial in found.values())
    # Once for the driver, once for all trials: their processes have a folder of their own.
    assert server.asked.count("GET bucket/prepared/full.h5") == 2
    (home / "laptop").mkdir()
    monkeypatch.chdir(home / "laptop")
    rows = json.loads(run_verb("show", "mine", "--storage", RUNS, "--json").out)
    assert [(row["stage"], row["state"]) for row in rows] == [("explore", "finished")]
    nothing = run_verb("fetch", "mine", "--storage", RUNS)
    assert nothing.code == 2 and "no model is delivered there" in nothing.err
    assert leaks(home) == []
    assert not [key for key, content in server.objects.items() if SECRET.encode() in content]
    assert SECRET not in done.out + done.err and KEY_ID not in done.out + done.err


def test_a_store_that_stays_away_ends_the_run_in_a_sentence(s3, easy, home, monkeypatch):
    """Before a stage begins, by a store that was there a moment ago."""
    monkeypatch.setattr(storage, "PATIENCE", 0.1)
    lay_out(s3, home, easy, epochs=3)
    assert run_verb("doctor", "--storage", RUNS).code == 0
    s3.failures.extend(["503 SlowDown"] * 1000)
    done = run_verb(*TUNE)
    assert done.code == 1 and "Traceback" not in done.err
    assert "s3://bucket: the object store failed: " in done.err
    assert "the same command goes on" in done.err and SECRET not in done.err


@pytest.mark.slow
def test_a_killed_driver_goes_on_from_the_store_and_delivers_to_it(s3, easy, home, monkeypatch):
    """Slow: three starts of Ray, and two of Ray Train runs; then fetched, and found again."""
    lay_out(s3, home, easy, epochs=12)
    log = home / "log"

    def is_halfway() -> bool:
        return any(len(trial["ticks"]) in range(3, 14) for trial in trials(s3).values())

    process = start(home, log, *TUNE)
    wait_for(is_halfway, process, log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = trials(s3)
    shutil.rmtree(home / "runs")  # another machine has nothing of it
    shutil.rmtree(home / "cache")
    assert start(home, log, *TUNE).wait() == 0, log.read_text()
    assert "goes on after tick" in log.read_text()
    after = trials(s3)
    for name, trial in before.items():
        assert after[name]["ticks"][: len(trial["ticks"])] == trial["ticks"]  # none run twice
    assert all(ticks(trial) == TICKS for trial in after.values())
    assert "bucket/runs/mine/report.html" in s3.objects
    kept = {key: content for key, content in s3.objects.items() if "/bundle/" in key}

    (home / "laptop").mkdir()
    monkeypatch.chdir(home / "laptop")
    fetched = run_verb("fetch", "mine", "--storage", RUNS)
    assert fetched.code == 0 and fetched.out == "runs/mine/bundle\n", fetched.err
    for path in Path("runs/mine/bundle").iterdir():
        assert kept[f"bucket/runs/mine/bundle/{path.name}"] == path.read_bytes()
    assert run_verb("verify", "runs/mine/bundle", "--data", f"{DATA}/full.h5").code == 0

    # A new head: what is done is not done again, and the model is not sent again.
    shutil.rmtree(home / "runs")
    s3.asked.clear()
    assert start(home, log, *TUNE).wait() == 0, log.read_text()
    assert trials(s3) == after
    assert not [asked for asked in s3.asked if asked.startswith("PUT") and "bundle" in asked]
    assert SECRET not in log.read_text() and KEY_ID not in log.read_text()
    assert leaks(home) == []

"""W&B: what it gets is what was given, and whatever it does no trial is lost for it."""

import importlib.util
import json
import logging
import math
import os
import struct
import subprocess
import sys
import threading
import time
import types

import pytest
from conftest import run_verb

from aiornot.config import InputError
from aiornot.training import strips, track, watch
from aiornot.training.account import resolve_mode
from aiornot.training.track import Tracker

KEY = "0123456789abcdef0123456789abcdefdeadbeef"
"""An API key in shape, of nobody."""


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """No account, and no file outside the test's own folder."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        folder = tmp_path / "outside" / name
        folder.mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))


@pytest.fixture(scope="module", autouse=True)
def no_process_stays_behind():
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def records(path) -> list:
    """Read a ``.wandb`` file: a log in blocks of 32 KiB, as LevelDB writes it, of protobufs."""
    from wandb.proto import wandb_internal_pb2

    data, where, text, found = path.read_bytes(), 7, b"", []
    while where < len(data):
        if 32768 - where % 32768 < 7:  # no room for a header: the block is padded
            where += 32768 - where % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[where : where + 7].ljust(7, b"\0"))
        if where + 7 + length > len(data):
            break  # still being written
        text += data[where + 7 : where + 7 + length]
        where += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            found.append(wandb_internal_pb2.Record.FromString(text))
            text = b""
    return found


def whole(path) -> list:
    """Return the records of a run that ended: W&B's own process writes the last a moment later."""
    patience = time.monotonic() + 20
    while not (found := records(path)) or not found[-1].HasField("exit"):
        assert time.monotonic() < patience, f"{path} has no end"
        time.sleep(0.02)
    return found


def read(path) -> dict:
    """Return what a file says of its run."""
    told = {"history": [], "summary": {}, "artifacts": {}}
    for record in whole(path):
        if record.HasField("run"):
            run = record.run
            told |= {"id": run.run_id, "name": run.display_name, "group": run.run_group}
            told |= {"tags": list(run.tags), "project": run.project, "job_type": run.job_type}
            told["config"] = values_of(run.config.update)
        if record.HasField("config"):
            told["config"] |= values_of(record.config.update)
        if record.HasField("artifact"):
            files = {entry.path: entry.local_path for entry in record.artifact.manifest.contents}
            told["artifacts"][record.artifact.name] = (record.artifact.type, files)
        if record.HasField("history"):
            told["history"].append(values_of(record.history.item))
            assert told["history"][-1]["tick"] == record.history.step.num
        if record.HasField("summary"):
            told["summary"] |= values_of(record.summary.update)
    return told


def values_of(items) -> dict:
    named = ((item.key or "/".join(item.nested_key), item.value_json) for item in items)
    return {name: json.loads(text) for name, text in named if not name.startswith("_")}


def files_of(folder, run_id) -> list:
    return sorted(folder.rglob(f"run-{run_id}.wandb"))


def of_ledger(ticks) -> list:
    """Return the ticks of a trial's JSON as they are tracked: null there is NaN here."""
    return [{k: math.nan if v is None else v for k, v in tick.items()} for tick in ticks]


def in_order(ticks) -> str:
    """Return a text of all numbers: NaN is not equal to itself, and W&B writes 0.0 as 0."""
    return repr([sorted((name, float(value)) for name, value in tick.items()) for tick in ticks])


def assert_tracked(folder, trial, run, *, also="nothing") -> dict:
    """Compare all that the newest file of a trial's run says with its JSON in the ledger.

    But for what begins with ``also``, which does not come from there.
    """
    told = read(files_of(folder, f"{trial['id']}-{run}")[-1])
    history = [{k: v for k, v in t.items() if not k.startswith(also)} for t in told["history"]]
    assert in_order(history) == in_order(of_ledger(trial["ticks"]))
    assert told["config"] == trial["config"] | {"effective": trial["effective"]}
    assert told["summary"]["state"] == trial["state"]
    assert told["summary"]["score"] == trial["ticks"][-1]["score"]
    return told


def metrics(tick, **changes) -> dict:
    values = {"tick": tick, "score": 0.5 + tick / 100, "val/auroc": 1 / (1 + tick), "time": 1.7e9}
    return values | changes


def start(tracker, run_id, ticks=()):
    config = {"lr": 1e-3, "clip_grad": None, "random_resized_crop": False, "model": "a.b"}
    tracker.start(
        run_id,
        name=f"name of {run_id}",
        group="explore",
        tags=["reduced"],
        config=config,
        ticks=ticks,
    )
    return config


def test_an_offline_run_says_how_to_send_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = track.Tracker("project", tmp_path)
    tracker.start("a-1", name="a", group="g", tags=[], config={})
    tracker.tick("a-1", {"tick": 1, "score": 0.5})
    assert tracker.close() == (
        f"W&B ran offline; to send its runs: wandb sync {tmp_path}/wandb/offline-run-*"
    )
    idle = track.Tracker("project", tmp_path)
    start(idle, "b-2")  # a run that failed before its first tick is nothing to look at
    assert idle.close() == ""
    assert track.Tracker("project", tmp_path, mode="off").close() == ""
    with pytest.raises(InputError, match="use auto or off"):
        resolve_mode("online")


def test_two_trials_side_by_side_are_written_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = Tracker("aiornot", tmp_path / "wandb")
    given = {"explore-000-ab": [], "explore-001-ab": []}
    configs = {run_id: start(tracker, run_id) for run_id in given}
    for tick in range(1, 17):
        for index, (run_id, ticks) in enumerate(given.items()):
            if index == 0 or tick <= 4:  # the second is stopped at tick 4
                ticks.append(metrics(tick, score=tick / 16 + index, note="x" * 5000))
                tracker.tick(run_id, ticks[-1])
        if tick == 4:
            tracker.end("explore-001-ab", {"state": "stopped", "reason": "", "score": 1.25})
    tracker.end("explore-000-ab", {"state": "finished", "reason": "", "score": 1.0})
    tracker.close()
    assert not tracker._errands.thread.is_alive()
    states = {"explore-000-ab": "finished", "explore-001-ab": "stopped"}
    for run_id, ticks in given.items():
        (path,) = files_of(tmp_path / "wandb", run_id)
        told = read(path)
        assert told["history"] == ticks
        assert told["config"] == configs[run_id]
        assert (told["id"], told["name"]) == (run_id, f"name of {run_id}")
        assert (told["group"], told["tags"], told["project"]) == ("explore", ["reduced"], "aiornot")
        assert told["summary"]["state"] == states[run_id]
        assert told["summary"]["score"] == ticks[-1]["score"]
    # Two blocks at least, or the reader above was not tried.
    assert files_of(tmp_path / "wandb", "explore-000-ab")[0].stat().st_size > 2 * 32768


def test_after_a_restart_the_file_holds_the_earlier_ticks_too(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    ticks = [metrics(tick) for tick in range(1, 7)]
    before = Tracker("aiornot", tmp_path)
    start(before, "explore-000-cd")
    for values in ticks[:4]:
        before.tick("explore-000-cd", values)
    before.close()  # without an end
    after = Tracker("aiornot", tmp_path)
    kept = ticks[:4]
    start(after, "explore-000-cd", ticks=kept)
    for values in ticks[4:]:
        kept.append(values)  # the ledger's list goes on, as a trial's does
        after.tick("explore-000-cd", values)
    after.end("explore-000-cd", {"state": "stopped", "score": math.nan})
    after.close()
    (path,) = files_of(tmp_path, "explore-000-cd")
    assert read(path)["history"] == ticks


def test_an_empty_file_of_a_killed_process_is_gone_when_its_run_has_ended(tmp_path, monkeypatch):
    """One such file, and ``wandb sync`` sends nothing at all."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    torn = tmp_path / "wandb" / "offline-run-20260101_000000-torn" / "run-torn.wandb"
    other = tmp_path / "wandb" / "offline-run-20260101_000000-torn-torn" / "run-torn-torn.wandb"
    for path in (torn, other):
        path.parent.mkdir(parents=True)
        path.write_bytes(b":W&B" + bytes(3))
    tracker = Tracker("aiornot", tmp_path)
    assert tracker.lacks("torn")
    start(tracker, "torn", ticks=[metrics(1)])
    tracker.end("torn", {"state": "stopped"})
    tracker.close()
    assert not torn.exists() and other.exists()
    assert len(files_of(tmp_path, "torn")) == 1
    other_time = Tracker("aiornot", tmp_path)
    start(other_time, "interrupted")
    other_time.close()
    assert other_time.lacks("interrupted")
    assert not tracker.lacks("torn") and not Tracker("aiornot", tmp_path).lacks("torn")
    assert tracker.lacks("torn-torn") and not Tracker("aiornot", tmp_path, mode="off").lacks("x")


def test_a_histogram_is_written_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = Tracker("aiornot", tmp_path)
    start(tracker, "drawn")
    counts = list(range(watch.BINS))
    seen = watch.Histogram(counts=counts, zeros=5, beyond=1)
    tracker.tick("drawn", metrics(1) | {"probe/grad/fc": seen})
    tracker.close()
    (told,) = read(files_of(tmp_path, "drawn")[0])["history"]
    drawn = {"_type": "histogram", "values": counts, "bins": watch.EDGES}
    assert told == metrics(1) | {f"probe/grad/fc/{name}": value for name, value in drawn.items()}


@pytest.mark.timeout(120)
def test_what_a_watched_run_found_is_tracked_also_after_a_restart(easy, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = ["--data", str(easy), "--out", str(tmp_path / "run"), "--watch", "1,3"]
    arguments += ["--set=model=test_resnet.r160_in1k", "--set=pretrained=false", "--set=epochs=6"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(strips, "draw", lambda found, path: found.tick == 3 and stop())
        result = run_verb("train", *arguments)
    assert result.code == 1 and f"wandb sync {tmp_path}/run/wandb/wandb/offline" in result.err
    assert run_verb("train", *arguments).code == 0
    (path,) = (tmp_path / "run").rglob("*.wandb")  # of three: interrupted, trained, delivered
    history = read(path)["history"]
    (trial,) = (json.loads(path.read_text()) for path in tmp_path.glob("run/trials/*.json"))
    told = assert_tracked(tmp_path, trial, trial["params"]["run"], also="probe/")
    assert (told["group"], told["job_type"], told["tags"]) == ("train", "train", ["easy"])
    assert told["artifacts"]["run-model"][0] == "model"
    assert [told["tick"] for told in history] == list(range(1, 17))
    seen = [told["tick"] for told in history if "probe/grad_norm" in told]
    assert seen == [1, 3]
    found = watch.load(tmp_path / "run/probes/tick_01.json")
    assert history[0]["probe/grad_norm"] == found.grad_norm
    assert history[0]["probe/act/fc/values"] == found.activations["fc"].counts


def test_a_number_that_is_not_finite_does_not_end_the_tracking(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = Tracker("aiornot", tmp_path)
    start(tracker, "odd")
    tracker.tick("odd", metrics(1, loss=math.nan))
    tracker.tick("odd", metrics(2))
    tracker.close()
    first, second = read(files_of(tmp_path, "odd")[0])["history"]
    assert math.isnan(first.pop("loss")) and first == metrics(1)
    assert second == metrics(2)


SECRETIVE = """
import logging, pathlib, sys
logging.basicConfig(level=logging.DEBUG)
from aiornot.training.track import Tracker
tracker = Tracker("aiornot", pathlib.Path(sys.argv[1]))
assert tracker.mode == "offline"
tracker.start("t", name="t", group="g", tags=[], config={"lr": 1e-3})
tracker.tick("t", {"tick": 1, "score": 0.5})
tracker.end("t", {"state": "stopped"})
tracker.close()
"""


def test_the_key_of_an_account_is_in_no_file_and_no_log(tmp_path):
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-c", SECRETIVE, str(tmp_path / "wandb")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=50,
    )
    assert files_of(tmp_path, "t")
    assert KEY.encode() not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


class FakeRun:
    def __init__(self, fake, settings):
        self.fake, self.settings, self.logged, self.finished = fake, settings, [], False
        self.step = fake.steps.get(settings["id"], 0)
        self.summary = {}

    def log(self, values, step):
        self.fake.maybe_fail("log")
        self.logged.append((step, values))

    def log_artifact(self, artifact):
        self.fake.maybe_fail("log_artifact")

    def finish(self):
        self.fake.maybe_fail("finish")
        self.finished = True


class FakeWandb(types.ModuleType):
    """Stands for the package: keeps what it is given, and fails where it is told to."""

    def __init__(self, fails=(), steps=None):
        super().__init__("wandb")
        self.fails, self.steps, self.runs, self.wait = set(fails), steps or {}, {}, 0.0

    def Settings(self, **settings):  # noqa: N802  # its name in wandb
        return settings

    def Artifact(self, name, type):  # noqa: N802
        return types.SimpleNamespace(name=name, type=type, add_file=lambda *_, **__: None)

    def init(self, **settings):
        time.sleep(self.wait)
        self.maybe_fail("init")
        run = self.runs[settings["id"]] = FakeRun(self, settings)
        return run

    def maybe_fail(self, where):
        if where in self.fails:
            raise RuntimeError(f"{where} failed")


@pytest.fixture
def fake(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return module


@pytest.mark.parametrize("where", ["init", "log", "finish"])
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_of_wandb_is_one_warning_and_nothing_else(tmp_path, fake, caplog, where):
    fake.fails.add(where)
    tracker = Tracker("aiornot", tmp_path)
    with caplog.at_level(logging.WARNING):
        for run_id in ("a", "b"):
            start(tracker, run_id)
            tracker.tick(run_id, metrics(1))
        tracker.end("a", {"state": "finished"})
        tracker.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"W&B is switched off: {where} failed"
    ]
    assert not tracker._errands.thread.is_alive()
    tracker.tick("a", metrics(2))  # nor does anything after that
    tracker.close()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_cannot_be_closed_does_not_keep_the_others_open(tmp_path, fake):
    tracker = Tracker("aiornot", tmp_path)
    for run_id in ("a", "b"):
        start(tracker, run_id)
    tracker.tick("b", metrics(1))
    while len(fake.runs) < 2:
        time.sleep(0.01)
    fake.runs["a"].finish = lambda: fake.runs["missing"]
    tracker.close()
    assert fake.runs["b"].finished


def test_a_tick_of_an_unknown_run_does_not_reach_the_caller(tmp_path, fake, caplog):
    tracker = Tracker("aiornot", tmp_path)
    tracker.tick("never-started", metrics(1))
    tracker.close()
    assert "W&B is switched off" in caplog.text


def test_a_slow_wandb_does_not_hold_up_the_caller(tmp_path, fake):
    fake.wait = 0.5
    tracker = Tracker("aiornot", tmp_path)
    began = time.monotonic()
    start(tracker, "a")
    for tick in range(1, 17):
        tracker.tick("a", metrics(tick))
    tracker.end("a", {})
    assert time.monotonic() - began < 0.4
    tracker.close()
    assert [step for step, _ in fake.runs["a"].logged] == list(range(1, 17))


def test_a_dead_wandb_holds_up_the_end_for_so_long_only(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(track, "CLOSE_SECONDS", 0.2)
    fake.wait = 1.5
    tracker = Tracker("aiornot", tmp_path)
    start(tracker, "a")
    began = time.monotonic()
    tracker.close()
    assert time.monotonic() - began < 1.0
    assert tracker._errands.thread.daemon
    tracker._errands.thread.join()


def test_what_is_changed_after_it_was_given_is_written_as_it_was_given(tmp_path, fake):
    fake.wait = 0.2
    tracker = Tracker("aiornot", tmp_path)
    values, summary = metrics(1), {"state": "stopped"}
    config = start(tracker, "a")
    tracker.tick("a", values)
    tracker.end("a", summary)
    values["score"] = config["lr"] = summary["state"] = None
    tracker.close()
    assert fake.runs["a"].logged == [(1, metrics(1))]
    assert fake.runs["a"].settings["config"]["lr"] == 1e-3
    assert fake.runs["a"].summary == {"state": "stopped"}


@pytest.mark.parametrize("server_has", [0, 1, 4])
def test_online_a_restart_sends_what_the_server_lacks(tmp_path, fake, monkeypatch, server_has):
    monkeypatch.setenv("WANDB_MODE", "online")
    if server_has:
        fake.steps["a"] = server_has + 1
    tracker = Tracker("aiornot", tmp_path)
    start(tracker, "a", ticks=[metrics(tick) for tick in range(1, 5)])
    tracker.tick("a", metrics(5))
    tracker.close()
    run = fake.runs["a"]
    assert run.settings["resume"] == "allow" and run.settings["mode"] == "online"
    assert [step for step, _ in run.logged] == list(range(server_has + 1, 6))


def test_a_trial_that_did_not_end_is_closed_with_the_stage(tmp_path, fake):
    tracker = Tracker("aiornot", tmp_path)
    start(tracker, "a")
    tracker.close()
    assert fake.runs["a"].finished
    tracker.close()


def test_without_an_account_the_files_stay_here():
    assert resolve_mode("auto") == "offline"


@pytest.mark.parametrize("base", [None, "https://wandb.example.org:8080"])
def test_an_account_is_a_key_in_the_environment_or_in_netrc(monkeypatch, base):
    if base:
        monkeypatch.setenv("WANDB_BASE_URL", base)
    host = "wandb.example.org:8080" if base else "api.wandb.ai"
    path = os.path.join(os.environ["HOME"], ".netrc")
    for text, mode in (
        ("machine example.com\n  login user\n  password x\n", "offline"),
        (f"machine {host}\n  login user\n  password {KEY}\n", "online"),
        ("machine\n", "offline"),  # not a netrc file
    ):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o600)
        assert resolve_mode("auto") == mode
    os.remove(path)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve_mode("auto") == "online"


def test_a_netrc_elsewhere_counts(tmp_path, monkeypatch):
    path = tmp_path / "accounts"
    path.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    assert resolve_mode("auto") == "online"


@pytest.mark.parametrize(
    ("chosen", "mode"),
    [("disabled", "off"), ("offline", "offline"), ("dryrun", "offline"), ("online", "online")],
)
def test_the_mode_of_the_environment_is_obeyed(monkeypatch, chosen, mode):
    monkeypatch.setenv("WANDB_MODE", chosen)
    assert resolve_mode("auto") == mode
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve_mode("auto") == mode
    assert resolve_mode("off") == "off"


def test_without_the_package_it_is_off(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_mode("auto") == "off"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_off_leaves_no_thread_no_folder_and_no_import(tmp_path, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    before = threading.active_count()
    tracker = Tracker("aiornot", tmp_path / "wandb", mode="off" if how == "argument" else "auto")
    start(tracker, "a")
    tracker.tick("a", metrics(1))
    tracker.end("a", {})
    assert threading.active_count() == before
    tracker.close()
    assert tracker.mode == "off" and not (tmp_path / "wandb").exists()

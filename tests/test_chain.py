"""The main job through the verbs: real parquet, real Ray Data, Tune and Train, real W&B files."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import timm
from conftest import run_verb
from test_events import as_kept, curves
from test_mirror import assert_mirrored, read
from test_track import assert_tracked, of_ledger
from test_track import read as read_run

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

EXPLORE = """
from aiornot.tuning.space import Budget, Stage, choice, loguniform

stage = Stage(
    name="explore",
    space={"lr": loguniform(1e-3, 1e-2), "hflip": choice(0.0, 0.5)},
    fixed={"model": "test_resnet.r160_in1k", "pretrained": False, "batch_size": 8},
    sampler="random",
    budget=Budget(num_trials=3, epochs=3, grace_period=4),
)
"""
EXPLOIT = """
from aiornot.tuning.space import Budget, Stage, narrowed
from . import explore as parent

stage = Stage(
    name="exploit",
    after=parent.stage,
    space=narrowed(parent.stage.space),
    fixed=parent.stage.fixed,
    sampler="tpe",
    enqueue=1,
    controls=1,
    budget=Budget(num_trials=2, epochs=3, grace_period=4),
)
"""
FINAL = """
from aiornot.tuning.space import Budget, Stage
from . import {parent} as parent

stage = Stage(
    name="final", after=parent.stage, enqueue=1, seeds=(1,), budget=Budget(num_trials=1, epochs=3)
)
"""


def write_chain(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def read_trials(root: Path) -> dict[str, dict]:
    found = (json.loads(path.read_text()) for path in sorted(root.glob("*/trials/*.json")))
    return {trial["id"]: trial for trial in found}


def written(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*.json")}


@pytest.fixture(scope="module")
def walk(ray_cluster, tmp_path_factory) -> SimpleNamespace:
    """Walk from parquet that ``datasets`` wrote to a bundle, in a folder with relative paths."""
    home = tmp_path_factory.mktemp("walk")
    photos = runpy.run_path(str(EXAMPLES / "photos.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("WANDB_MODE", "offline")
        photos["write"](home / "parquet", num_images=120, seed=0)
        chain = write_chain(
            home / "mine", explore=EXPLORE, exploit=EXPLOIT, final=FINAL.format(parent="exploit")
        )
        prepared = run_verb(
            *("prepare", "parquet", "--out", "prepared", "--size", "64", "--geometry", "crop")
        )
        tuned = run_verb("tune", "mine", "--data", "prepared", "--tensorboard")
    return SimpleNamespace(home=home, chain=chain, prepared=prepared, tuned=tuned)


@pytest.fixture
def at_home(walk, monkeypatch) -> SimpleNamespace:
    monkeypatch.chdir(walk.home)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return walk


def test_the_walk_ends_in_a_bundle_that_plain_timm_loads(walk):
    assert walk.prepared.code == 0 and "train " in walk.prepared.out
    assert walk.tuned.code == 0, walk.tuned.err
    assert walk.tuned.out.strip() == "runs/mine/bundle"
    model = timm.create_model(f"local-dir:{walk.home}/runs/mine/bundle", pretrained=True)
    assert model.num_classes == 1


def test_the_walk_ends_with_a_report(walk):
    assert "all of it on one page: runs/mine/report.html" in walk.tuned.err
    found = json.loads((walk.home / "runs/mine/report.json").read_text())
    assert [stage["budget"]["ended"] for stage in found["stages"]] == [3, 3, 1]
    assert found["splits"]["full"]["test"] == {"real": 12, "generated": 12}
    assert set(found["missing"]) == {"test", "comparison", "robustness", "errors", "human"}


def test_every_trial_is_in_the_ledger_once_with_every_tick_once(walk):
    trials = read_trials(walk.home / "runs/mine")
    assert sorted(trials) == [
        *("exploit-000", "exploit-001", "exploit-002"),
        *("explore-000", "explore-001", "explore-002", "final-000"),
    ]
    for trial in trials.values():
        ticks = [tick["tick"] for tick in trial["ticks"]]
        assert ticks == list(range(1, len(ticks) + 1)) and ticks[-1] in (4, 16)
        assert trial["state"] == ("finished" if ticks[-1] == 16 else "stopped")


def test_the_parents_best_configuration_runs_first_in_the_child(walk):
    trials = read_trials(walk.home / "runs/mine")
    assert trials["exploit-000"]["origin"].startswith("from explore-")
    assert trials["exploit-001"]["origin"].startswith("control from explore-")
    roles = [trials[f"exploit-00{number}"]["role"] for number in range(3)]
    assert roles == ["candidate", "control", "candidate"]
    assert trials["final-000"]["origin"].startswith("from exploit-")
    assert trials["final-000"]["config"]["seed"] == 1


def test_checkpoints_lie_where_the_relative_storage_says(walk):
    """Workers run in folders of their own: a relative root once put the checkpoints there."""
    for trial_id, trial in read_trials(walk.home / "runs/mine").items():
        stage, last = trial_id.split("-")[0], trial["ticks"][-1]
        home = walk.home / "runs/mine" / stage / "checkpoints" / trial_id
        if trial["role"] == "control":
            assert not home.exists()
            continue
        # Of an ended trial the best one; all of a stage's candidates are among its best three.
        assert [folder.name for folder in home.iterdir()] == [f"tick_{int(last['best_tick']):02d}"]


LABELS = {
    "explore": ("explore", "search", ["full"]),
    "exploit": ("exploit", "search", ["full"]),
    "final": ("final", "retrain", ["full", "final"]),
}
"""Group, job type and tags of a stage's runs."""


def assert_told(root: Path, trial: dict, *, tensorboard: bool) -> dict:
    """Compare what W&B, TensorBoard and Optuna are told of a trial with the ledger."""
    stage = trial["id"].split("-")[0]
    record = json.loads((root / stage / "stage.json").read_text())
    told = assert_tracked(root / "wandb", trial, record["run"])
    group, job_type, tags = LABELS[stage]
    if trial["role"] != "candidate":
        tags = ["full", trial["role"]]
    assert (told["group"], told["job_type"], told["tags"]) == (group, job_type, tags)
    if tensorboard:
        found = curves(root / "tensorboard" / f"{trial['id']}-{record['run']}")
        assert found == as_kept(of_ledger(trial["ticks"]))
    if LABELS[stage][1] == "search":
        assert_mirrored(read(root / stage / "optuna.journal"), root / stage)
    return told


def test_every_value_of_the_ledger_is_tracked(walk):
    """Without an account W&B has one offline file per trial."""
    root = walk.home / "runs/mine"
    trials = read_trials(root)
    for trial in trials.values():
        told = assert_told(root, trial, tensorboard=True)
        assert all(tick["device/images_per_second"] > 0 for tick in told["history"])
    assert len(list(root.rglob("*.wandb"))) == len(trials)
    assert f"wandb sync {root.relative_to(walk.home)}/wandb/wandb/offline-run-*" in walk.tuned.err
    assert "tensorboard --logdir runs/mine/tensorboard" in walk.tuned.err


def test_the_bundle_is_an_artifact_of_its_trial(walk):
    root = walk.home / "runs/mine"
    files = {path.name: path.read_bytes() for path in (root / "bundle").iterdir()}
    (path,) = root.rglob("run-final-000-*.wandb")
    told = read_run(path)
    (kind, kept) = told["artifacts"]["mine-model"]
    assert kind == "model" and {"bundle.json", "config.json", "model.safetensors"} <= set(kept)
    assert {name: Path(path).read_bytes() for name, path in kept.items()} == files


def test_tuning_again_runs_nothing(at_home):
    before = written(at_home.home / "runs/mine")
    result = run_verb("tune", "mine", "--data", "prepared")
    assert result.code == 0 and "delivered" in result.err
    assert written(at_home.home / "runs/mine") == before


def test_a_changed_stage_file_is_refused_with_the_difference(at_home):
    before = written(at_home.home / "runs/mine")
    text = (at_home.chain / "explore.py").read_text()
    try:
        (at_home.chain / "explore.py").write_text(text.replace("1e-2)", "1e-1)"))
        result = run_verb("tune", "mine", "--data", "prepared")
    finally:
        (at_home.chain / "explore.py").write_text(text)
    assert result.code == 2 and "space.lr" in result.err and "--fresh" in result.err
    assert written(at_home.home / "runs/mine") == before


def test_the_leaderboard_and_the_stages_are_shown_and_are_json(at_home):
    table = run_verb("show", "mine", "--trials").out
    assert "explore-002" in table and "final-000" in table
    rows = json.loads(run_verb("show", "mine", "--json").out)
    assert [row["stage"] for row in rows] == ["explore", "exploit", "final"]
    best = json.loads(run_verb("show", "mine", "explore", "--json").out)
    scores = [row["score"] for row in best["trials"] if row["state"] == "finished"]
    assert scores == sorted(scores, reverse=True)


def test_the_test_split_is_opened_once_and_then_recorded(at_home):
    command = ("evaluate", "runs/mine/bundle", "--data", "prepared", "--split", "test")
    first = json.loads(run_verb(*command, "--json").out)
    assert first["num_real"] + first["num_generated"] == 24 and first["opened_before"] == 0
    low, high = first["intervals"]["auroc"]
    assert low <= first["metrics"]["auroc"] <= high
    second = run_verb(*command, "--json")
    assert json.loads(second.out) == first and "recorded" in second.err
    again = run_verb(*command, "--again")
    assert "opened 1 time(s) before" in again.err and "wandb sync" in again.err
    root = at_home.home / "runs/mine"
    told = assert_told(root, read_trials(root)["final-000"], tensorboard=True)
    scores = {
        f"test/{name}": value for name, value in first["metrics"].items() if value is not None
    }
    assert scores.items() <= told["summary"].items()
    assert [told["summary"][f"test/auroc/{end}"] for end in ("low", "high")] == [low, high]


def test_images_from_the_source_are_predicted(at_home):
    rows = pq.read_table("parquet/train-00000-of-00002.parquet").slice(0, 3).to_pylist()
    for row in rows:
        Path(f"{row['id']}.img").write_bytes(row["image"]["bytes"])
    files = [f"{row['id']}.img" for row in rows]
    result = run_verb("predict", "runs/mine/bundle", *files)
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 0 and [line["file"] for line in lines] == files
    assert all(line["label"] in ("real", "generated") for line in lines)


def test_a_finished_stage_is_extended_by_the_missing_trials_alone(at_home):
    before = read_trials(at_home.home / "runs/mine")
    result = run_verb(
        "tune", "mine", "--data", "prepared", "--trials", "explore=4", "--only", "explore"
    )
    after = read_trials(at_home.home / "runs/mine")
    assert result.code == 0, result.err
    assert set(after) - set(before) == {"explore-003"}
    assert {name: after[name] for name in before} == before


def start_tune(home: Path, log: Path, *, wandb: str = "disabled") -> subprocess.Popen[bytes]:
    return start(home, log, "tune", "mine", "--data", "prepared", wandb=wandb)


def start(
    home: Path, log: Path, *arguments: str, wandb: str = "offline"
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "WANDB_MODE": wandb}
    # Of a run in this process: the killed driver's runs would go on being open in that service.
    environment.pop("WANDB_SERVICE", None)
    command = [sys.executable, "-m", "aiornot", *arguments]
    with log.open("wb") as stream:
        return subprocess.Popen(command, cwd=home, stderr=stream, stdout=stream, env=environment)


def wait_for(
    condition, process: subprocess.Popen[bytes], log: Path, *, seconds: float = 400
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(easy, tmp_path_factory) -> Path:
    """The uninterrupted run that the killed ones are compared with."""
    home = prepare_home(tmp_path_factory.mktemp("whole") / "home", easy)
    assert start_tune(home, home / "log").wait() == 0, (home / "log").read_text()
    return home


@pytest.mark.parametrize("stage", ["explore", pytest.param("final", marks=pytest.mark.slow)])
def test_a_killed_driver_goes_on_where_it_was_and_ends_as_if_never_killed(
    stage, easy, whole, tmp_path
):
    """SIGKILL while Tune trials (explore) or a Ray Train run (final) are under way.

    The latter is slow: two starts of Ray and of a Ray Train run, two minutes. The former goes
    through a Ray Train run after its kill as well.
    """
    home = prepare_home(tmp_path / "killed", easy)
    if stage == "final":  # explore is as it was: only its last stage is run and killed
        shutil.copytree(whole / "runs/mine/explore", home / "runs/mine/explore")
    log = home / "log"

    def is_halfway() -> bool:
        trials = read_trials(home / "runs/mine")
        return any(len(t["ticks"]) in range(3, 14) for i, t in trials.items() if stage in i)

    process = start_tune(home, log, wandb="offline")
    wait_for(is_halfway, process, log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read_trials(home / "runs/mine")
    assert start_tune(home, log, wandb="offline").wait() == 0, log.read_text()
    after = read_trials(home / "runs/mine")
    for name, trial in before.items():
        assert after[name]["ticks"][: len(trial["ticks"])] == trial["ticks"]  # none run twice
    assert "goes on after tick" in log.read_text()
    for trouble in ("switched off", "did not take all"):
        assert trouble not in log.read_text(), log.read_text()
    for name in before.keys() | {"final-000"}:
        if stage in name:
            assert_told(home / "runs/mine", after[name], tensorboard=False)
    # Of the other stage nothing is asked: near ties go to the trial that took fewer seconds.
    assert results(after, stage) == results(read_trials(whole / "runs/mine"), stage)


def results(trials: dict[str, dict], stage: str) -> dict[str, list[float]]:
    mine = {name: trial["ticks"] for name, trial in trials.items() if name.startswith(stage)}
    return {name: [tick["val/log_loss"] for tick in ticks] for name, ticks in mine.items()}


def prepare_home(home: Path, data: Path) -> Path:
    # Nothing is stopped, so that the order in which trials report decides nothing.
    explore = EXPLORE.replace(
        "num_trials=3, epochs=3, grace_period=4", "num_trials=2, epochs=12, grace_period=16"
    )
    final = FINAL.format(parent="explore").replace("epochs=3", "epochs=12")
    write_chain(home / "mine", explore=explore, final=final)
    (home / "prepared").mkdir()
    shutil.copy(data, home / "prepared/full.h5")
    return home

"""A stage that searches nothing: which trials it has, and how they run side by side."""

import json
import signal
from pathlib import Path

import pytest
from conftest import run_verb
from test_chain import read_trials, start_tune, wait_for, write_chain

from aiornot.config import TrainConfig
from aiornot.tuning.ledger import Trial
from aiornot.tuning.ray_runs import planned
from aiornot.tuning.space import Budget, Stage, choice

EXPLORE = """
from aiornot.tuning.space import Budget, Stage, choice

stage = Stage(
    name="explore",
    space={"lr": choice(1e-2, 3e-3, 1e-3)},
    first=({"lr": 1e-2}, {"lr": 3e-3}, {"lr": 1e-3}),
    fixed={"model": "test_resnet.r160_in1k", "pretrained": False, "batch_size": 8},
    sampler="random",
    budget=Budget(num_trials=3, epochs=EPOCHS, grace_period=16),
)
"""
FULL = """
from aiornot.tuning.space import Budget, Stage
from . import explore as parent

stage = Stage(
    name="full",
    after=parent.stage,
    enqueue=1,
    controls=1,
    baseline={"model": "test_resnet.r160_in1k", "pretrained": False, "batch_size": BATCH},
    budget=Budget(num_trials=1, epochs=EPOCHS),
)
"""


def test_the_candidates_come_first_and_what_they_are_compared_with_behind_them():
    explore = Stage(
        name="explore", space={"lr": choice(1e-3)}, sampler="random", budget=Budget(num_trials=2)
    )
    full = Stage(
        name="full", after=explore, enqueue=2, seeds=(0, 1), budget=Budget(num_trials=2, epochs=7)
    )
    parents = [
        Trial(id=f"explore-{n}", number=n, params={"lr": n}, config=TrainConfig(lr=n).to_dict())
        for n in (1, 2)
    ]
    fields = {"role": "baseline", "origin": "baseline", "params": {}, "config": {"lr": 3}}
    record = {"selected": ["explore-2", "explore-1"], "beside": [fields]}
    found = list(planned(full, record, parents))
    assert [trial.id for trial in found] == [f"full-{n:03d}" for n in range(5)]
    assert [trial.role for trial in found] == ["candidate"] * 4 + ["baseline"]
    assert [(t.config["lr"], t.config["seed"]) for t in found[:4]] == [
        *((2, 0), (2, 1), (1, 0), (1, 1))
    ]
    assert all(trial.config["epochs"] == 7 for trial in found[:4])
    assert found[4].config == {"lr": 3}
    # Begun before there were any: the same trials, without them.
    del record["beside"]
    assert list(planned(full, record, parents)) == found[:4]


def prepare_home(home: Path, data: Path, *, epochs: int = 3, batch: int = 8) -> Path:
    texts = (text.replace("EPOCHS", str(epochs)) for text in (EXPLORE, FULL))
    explore, full = (text.replace("BATCH", str(batch)) for text in texts)
    write_chain(home / "mine", explore=explore, full=full)
    (home / "prepared").mkdir()
    (home / "prepared/full.h5").symlink_to(data)
    return home


def times(trial: dict) -> tuple[float, float]:
    return trial["started"], trial["ticks"][-1]["time"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_runs_are_side_by_side_and_one_that_fails_costs_no_other(
    easy, tmp_path, monkeypatch, ray_cluster
):
    """Slow: three Ray Train runs of many processes; the one that fails is tried three times."""
    monkeypatch.chdir(prepare_home(tmp_path, easy, batch=99))  # too few steps to be reported
    result = run_verb("tune", "mine", "--data", "prepared", "--wandb", "off")
    assert result.code == 0, result.err
    trials = read_trials(tmp_path / "runs/mine")
    candidate, control, baseline = (trials[f"full-00{number}"] for number in range(3))
    assert (candidate["state"], control["state"]) == ("finished", "finished")
    assert baseline["state"] == "failed" and "fewer than the 16 reports" in baseline["reason"]
    (one, end), (other, other_end) = times(candidate), times(control)
    assert max(one, other) < min(end, other_end)
    shown = run_verb("show", "mine", "full").out
    assert "baseline" in shown and f"control from {control['origin'][-11:]}" in shown
    bundle = json.loads(Path("runs/mine/bundle/bundle.json").read_text())
    assert bundle["lineage"]["trial"] == "full-000"
    assert not Path("runs/mine/bundle/baseline").exists()
    assert "no baseline finished: there is nothing to compare with" in result.err


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_is_interrupted_side_by_side_goes_on_from_its_last_ticks(easy, tmp_path, how):
    """Slow: drivers of their own, each with its Ray, and several Ray Train runs."""
    home = prepare_home(tmp_path / "home", easy, epochs=12)
    log = tmp_path / "log"

    def several_are_under_way() -> bool:
        trials = read_trials(home / "runs/mine")
        running = [t for n, t in trials.items() if n.startswith("full") and len(t["ticks"]) > 1]
        return len(running) > 1 and any(len(t["ticks"]) < 12 for t in running)

    process = start_tune(home, log)
    wait_for(several_are_under_way, process, log)
    process.send_signal(how)
    code = process.wait(60)
    if how == signal.SIGINT:
        assert code == 1 and "same command" in log.read_text(), log.read_text()
    before = read_trials(home / "runs/mine")
    assert {t["state"] for n, t in before.items() if n.startswith("full")} >= {"running"}
    again = start_tune(home, log)
    assert again.wait() == 0, log.read_text()
    after = read_trials(home / "runs/mine")
    for name, trial in before.items():
        assert after[name]["ticks"][: len(trial["ticks"])] == trial["ticks"]  # none run twice
        assert [tick["tick"] for tick in after[name]["ticks"]] == list(range(1, 17))
    assert "goes on after tick" in log.read_text()
    found = json.loads((home / "runs/mine/bundle/comparison.json").read_text())
    assert found["models"]["baseline"]["trial"] == "full-002"

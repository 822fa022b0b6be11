"""The delivered model in W&B: once, found again by its bundle, and never in the way."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from conftest import run_verb
from test_track import fake, files_of, no_process_stays_behind, nobody, read

from aiornot.delivery import manifest, registry
from aiornot.training.track import Tracker
from aiornot.training.watch import BINS, Histogram
from aiornot.tuning import tracking
from aiornot.tuning.ledger import Trial

__all__ = ["fake", "no_process_stays_behind", "nobody"]  # fixtures

LABELS = tracking.Labels(run="ab", group="final", job_type="retrain", tags=["full", "final"])
SEEN = Histogram(counts=[1] * BINS, zeros=2, beyond=3)
RESULT = {
    "split": "test",
    "metrics": {"auroc": 0.9, "precision@0.5": None},
    "intervals": {"auroc": [0.8, 0.95], "precision@threshold": [None, None]},
}


def more(tick: int) -> dict:
    return {"probe/grad/fc": SEEN} if tick == 2 else {}


@pytest.fixture
def trial() -> Trial:
    ticks = [{"tick": tick, "score": tick / 20, "seconds": 1.0} for tick in range(1, 17)]
    return Trial(
        id="final-000", number=0, state="finished", params={}, config={"lr": 0.1}, ticks=ticks
    )


@pytest.fixture
def bundle(delivered, tmp_path) -> Path:
    return Path(shutil.copytree(delivered.folder, tmp_path / "mine" / "bundle"))


def deliver(bundle: Path, trial: Trial, *, mode="auto", more=tracking.nothing_more) -> Tracker:
    tracker = Tracker("aiornot", bundle.parent / "wandb", mode=mode)
    registry.deliver(tracker, bundle, trial, LABELS, more=more)
    tracker.close()
    return tracker


def test_a_model_is_logged_once_and_its_run_goes_on_with_the_scores(bundle, trial, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    deliver(bundle, trial, more=more)
    assert not deliver(bundle, trial, more=more)._errands.has_begun
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    (path,) = files_of(bundle.parent, "final-000-ab")
    first = read(path)
    assert "wandb sync" in registry.evaluated(bundle, RESULT, mode="auto")
    (path,) = files_of(bundle.parent, "final-000-ab")
    scored = read(path)
    for told in (first, scored):  # each stands for the whole run: the newest is all there is
        assert told["id"] == "final-000-ab"
        assert [tick["score"] for tick in told["history"]] == [t["score"] for t in trial.ticks]
        assert told["history"][1]["probe/grad/fc/values"] == SEEN.counts
        assert told["summary"]["state"] == "finished" and told["tags"] == ["full", "final"]
        kept = told["artifacts"]["mine-model"][1]
        assert {name: Path(path).read_bytes() for name, path in kept.items()} == before
    assert "test/auroc" not in first["summary"]
    scores = {name: value for name, value in scored["summary"].items() if name.startswith("test/")}
    assert scores == {"test/auroc": 0.9, "test/auroc/low": 0.8, "test/auroc/high": 0.95}
    # What is sent later is what was delivered, whatever became of the bundle.
    shutil.rmtree(bundle)
    assert {name: Path(path).read_bytes() for name, path in kept.items()} == before


def test_what_has_no_run_is_not_tracked(bundle, trial, fake, tmp_path):
    deliver(bundle, trial, mode="off")
    assert registry.evaluated(bundle, RESULT, mode="auto") == ""
    note = bundle.parent / "wandb" / registry.NOTE
    note.parent.mkdir()
    weights = manifest.read(bundle)["sha256"]
    whole = {"bundle": "", "weights": weights, "story": {}, "summary": {}, "files": []}
    other = json.dumps(whole | {"weights": "of another model"})
    for text in ("{", "[]", "{}", json.dumps({"weights": weights}), other):
        note.write_text(text)
        assert registry.evaluated(bundle, RESULT, mode="auto") == ""
    note.write_text(json.dumps(whole))
    assert registry.evaluated(bundle, RESULT | {"split": "val"}, mode="auto") == ""
    moved = bundle.rename(tmp_path / "elsewhere")
    assert registry.evaluated(moved, RESULT, mode="auto") == ""
    assert not fake.runs


@pytest.mark.parametrize("where", ["init", "log_artifact", "finish"])
def test_a_dead_wandb_costs_neither_bundle_nor_score(bundle, trial, delivered, fake, caplog, where):
    fake.fails.add(where)
    with caplog.at_level(logging.WARNING):
        deliver(bundle, trial)
    assert f"W&B is switched off: {where} failed" in caplog.text
    note = bundle.parent / "wandb" / registry.NOTE
    assert note.exists() == (where == "finish")  # else the next delivery tries again
    fake.fails = {"init"}
    story = tracking.story(trial, LABELS)
    note.parent.mkdir(exist_ok=True)
    known = {"bundle": "", "weights": manifest.read(bundle)["sha256"], "story": story}
    note.write_text(json.dumps(known | {"summary": {}, "files": ["config.json", "gone"]}))
    command = ("evaluate", str(bundle), "--data", str(delivered.data), "--device", "cpu", "--json")
    result = run_verb(*command)
    assert result.code == 0 and json.loads(result.out)["split"] == "test"

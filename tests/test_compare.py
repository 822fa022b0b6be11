"""Final against baseline in a bundle: what it keeps, prints, and keeps sealed."""

import json
import shutil

import numpy as np
import pytest
from conftest import CPU, RESNET, run_verb, train

from aiornot.config import InputError, TrainConfig
from aiornot.data import hdf5
from aiornot.delivery import bundle, compare, evaluate, manifest


@pytest.fixture(scope="module")
def checkpoint(delivered, tmp_path_factory):
    """The baseline: the same model, hardly trained."""
    config = TrainConfig.from_dict(RESNET | {"lr": 1e-5, "seed": 1})
    out = tmp_path_factory.mktemp("baseline") / "checkpoint"
    return train(config, data=delivered.data, out=out)


@pytest.fixture
def copy(delivered, tmp_path):
    return shutil.copytree(delivered.folder, tmp_path / "bundle")


@pytest.fixture
def both(copy, delivered, checkpoint):
    compare.deliver(copy, checkpoint, data=delivered.data, device=CPU, lineage={"trial": "full-3"})
    return copy


def kept(folder):
    return json.loads((folder / compare.COMPARISON).read_text())


def test_the_baseline_is_a_bundle_in_the_bundle(both, delivered):
    loaded = bundle.load(both / "baseline", device=CPU)
    assert loaded.description["lineage"] == {"trial": "full-3"}
    assert bundle.load(both, device=CPU).sha256 != loaded.sha256
    found = kept(both)
    assert found["models"]["baseline"]["trial"] == "full-3"
    assert found["models"]["baseline"]["sha256"] == loaded.sha256
    assert list(found["splits"]) == ["train", "val"]  # test is sealed
    val, train = found["splits"]["val"], found["splits"]["train"]
    assert val["num_images"] == train["num_images"] == val["num_clusters"] == 64
    assert "verdict" not in train and "than the baseline by AUROC +" in val["verdict"]
    for who, folder in (("final", both), ("baseline", both / "baseline")):
        said = json.loads((folder / "bundle.json").read_text())["val"]["metrics"]
        for name, value in val["metrics"][who].items():
            assert value == pytest.approx(said[name], abs=1e-6)


def test_what_is_compared_stays_until_one_of_the_models_is_another(both, delivered, checkpoint):
    before = (both / compare.COMPARISON).stat().st_ino
    compare.deliver(both, checkpoint, data=delivered.data, device=CPU, lineage={"trial": "full-3"})
    assert (both / compare.COMPARISON).stat().st_ino == before
    path = both / "bundle.json"
    said = json.loads(path.read_text())
    said["calibration"]["threshold"] = 0.9  # chosen anew: other verdicts
    path.write_text(json.dumps(said))
    assert compare.read(both) is None
    compare.deliver(both, checkpoint, data=delivered.data, device=CPU)
    assert kept(both)["models"]["final"]["calibration"]["threshold"] == 0.9


def test_a_chain_without_a_baseline_leaves_none(both, delivered):
    assert compare.deliver(both, None, data=delivered.data, device=CPU) is None
    assert not (both / "baseline").exists() and compare.read(both) is None
    assert compare.complete(both, data=delivered.data, split="test", device=CPU) is None


def test_the_test_split_is_not_compared_behind_its_seal(both, delivered):
    with pytest.raises(InputError, match="'aiornot evaluate' opens the test split"):
        compare.on_split(both, data=delivered.data, split="test", device=CPU)
    assert evaluate.open_split(both, "test") == 0


def test_a_train_split_shorter_than_val_is_taken_whole(both, delivered, monkeypatch):
    labels = {"train": np.arange(40) % 2, "val": np.arange(64) % 2, "test": np.arange(48) % 2}
    monkeypatch.setattr(hdf5, "read_labels", lambda path, split: labels[split])
    found = compare.on_split(both, data=delivered.data, split="train", device=CPU, again=True)
    assert found is not None and found["num_images"] == 40


def test_a_comparison_of_which_a_byte_was_changed_is_refused(both, delivered):
    assert manifest.unlisted(both) == []
    assert "baseline/model.safetensors" in manifest.check_sums(both)
    path = both / compare.COMPARISON
    path.write_text(path.read_text().replace("better than", "bitter than", 1))
    with pytest.raises(InputError, match="was changed"):
        compare.read(both)
    with pytest.raises(InputError, match="was changed"):
        manifest.check_sums(both)


def test_evaluate_opens_test_once_for_both_and_prints_the_table_of_results(both, delivered):
    command = ("evaluate", str(both), "--data", str(delivered.data), "--device", "cpu")
    table = run_verb(*command)
    assert table.code == 0, table.err
    for words in ("train AUROC", "val precision", "test recall", "test log loss"):
        assert words in table.out
    assert table.out.splitlines()[-1].startswith("test: ")
    found = json.loads(run_verb(*command, "--json").out)
    assert found["opened_before"] == 0 and len(evaluate.history(both)) == 1
    test = found["comparison"]["splits"]["test"]
    assert test["num_images"] == 48 and test["verdict"] in table.out
    assert test["metrics"]["final"]["auroc"] == pytest.approx(found["metrics"]["auroc"])
    assert evaluate.open_split(both, "test") == 1


def test_the_baseline_is_calibrated_by_the_rule_of_the_model(both, delivered):
    """Else their accuracies would be compared at thresholds that mean different things."""
    bundle.recalibrate(both, rule="fpr<=0.1", data=delivered.data, device=CPU)
    for folder in (both, both / "baseline"):
        assert manifest.read(folder)["calibration"]["rule"] == "fpr<=0.1"
    manifest.check_sums(both)
    assert compare.read(both) is None  # of the former thresholds
    found = compare.complete(both, data=delivered.data, split="val", device=CPU)
    assert found["models"]["baseline"]["calibration"]["rule"] == "fpr<=0.1"

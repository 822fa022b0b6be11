"""The bundle: equal to the checkpoint, readable by plain timm, and refused when changed."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from conftest import CPU, RESNET, prepare, train

from aiornot.config import InputError, TrainConfig
from aiornot.data import hdf5
from aiornot.delivery import bundle, evaluate
from aiornot.training import augment

FILES = ("README.md", "bundle.json", "config.json", "model.safetensors")


@pytest.fixture
def copy(delivered, tmp_path):
    """Return a bundle that a test may change."""
    return shutil.copytree(delivered.folder, tmp_path / "bundle")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def images_of(data, loaded):
    pixels = torch.from_numpy(np.array(hdf5.map_images(data, "val")))
    return augment.normalize(pixels, mean=loaded.mean, std=loaded.std)


def test_a_bundle_says_what_it_is(delivered):
    said = json.loads((delivered.folder / "bundle.json").read_text())
    files = {path.name for path in delivered.folder.iterdir()}
    assert files == {*FILES, "SHA256SUMS"}
    assert said["classes"] == ["real", "generated"]
    assert said["lineage"] == {"stage": "test", "seed": 0}
    assert said["data"]["fingerprint"] == "f0"
    assert said["preprocessing"]["size"] == 32
    assert said["versions"]["timm"] == timm.__version__
    assert TrainConfig.from_dict(said["config"]) == TrainConfig.from_dict(RESNET)
    assert 0.5 < said["val"]["metrics"]["auroc"] <= 1


def test_a_loaded_bundle_reproduces_the_val_metrics_it_reports(copy, delivered):
    found = bundle.evaluate_split(copy, data=delivered.data, split="val", device=CPU)
    said = json.loads((copy / "bundle.json").read_text())
    assert found["metrics"] == pytest.approx(said["val"]["metrics"], abs=1e-9)
    assert found["intervals"] == said["val"]["intervals"]


@torch.inference_mode()
def check_plain_timm(folder, data):
    loaded = bundle.load(folder, device=CPU)
    inputs = images_of(data, loaded)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.allclose(plain(inputs), loaded.module(inputs), atol=1e-6)
    settings = timm.data.resolve_model_data_config(plain)
    assert tuple(settings["input_size"]) == (3, 32, 32)
    assert settings["mean"] == pytest.approx(tuple(loaded.mean.tolist()))
    return plain


def test_plain_timm_loads_the_same_model(delivered):
    check_plain_timm(delivered.folder, delivered.data)


@pytest.mark.parametrize(
    "changed",
    [
        {"global_pool": "catavgmax", "drop_rate": 0.2, "drop_path_rate": 0.1},
        {"model": "test_vit.r160_in1k", "global_pool": "avg", "lr": 1e-3, "ema_decay": 0.9},
    ],
)
def test_model_arguments_survive(delivered, tmp_path, changed):
    config = TrainConfig.from_dict(RESNET | changed)
    checkpoint = train(config, data=delivered.data, out=tmp_path / "checkpoint")
    folder = bundle.write(checkpoint, tmp_path / "out", data=delivered.data, device=CPU, lineage={})
    check_plain_timm(folder, delivered.data)
    arguments = json.loads((folder / "config.json").read_text())["model_args"]
    assert arguments["global_pool"] == config.global_pool
    assert arguments["drop_rate"] == config.drop_rate


def write(delivered, out, **kwargs):
    values = {"data": delivered.data, "device": CPU, "lineage": {"stage": "test", "seed": 0}}
    return bundle.write(delivered.checkpoint, out, **(values | kwargs))


def test_an_equal_bundle_is_left_alone(copy, delivered):
    before = (copy / "bundle.json").stat()
    write(delivered, copy)
    assert (copy / "bundle.json").stat().st_ino == before.st_ino


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
def test_an_equal_bundle_with_a_damaged_file_is_mended(copy, delivered, name):
    (copy / name).write_bytes(b"short")
    write(delivered, copy)
    assert (copy / name).read_bytes() == (delivered.folder / name).read_bytes()


def test_another_bundle_is_replaced_and_remembers_that_test_was_opened(copy, delivered):
    evaluate.open_split(copy, "test")
    (copy / "leftover.txt").write_text("of the old bundle")
    write(delivered, copy, rule="fpr<=0.05")
    assert bundle.load(copy, device=CPU).calibration.rule == "fpr<=0.05"
    assert evaluate.open_split(copy, "test") == 1
    assert not (copy / "leftover.txt").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]


def test_a_rule_is_kept_until_another_is_asked_for(copy, delivered):
    write(delivered, copy, rule="fpr<=0.05")
    write(delivered, copy)
    assert bundle.load(copy, device=CPU).calibration.rule == "fpr<=0.05"
    write(delivered, copy, rule="balanced")
    assert (copy / "bundle.json").read_bytes() == (delivered.folder / "bundle.json").read_bytes()


def test_a_bundle_is_calibrated_by_another_rule_and_keeps_all_else(copy, delivered):
    scored = bundle.evaluate_split(copy, data=delivered.data, split="test", device=CPU)
    before = json.loads((copy / "bundle.json").read_text())
    found = bundle.recalibrate(copy, rule="fpr<=0", data=delivered.data, device=CPU)
    said = json.loads((copy / "bundle.json").read_text())
    assert said == found
    assert {key for key in said if said[key] != before[key]} == {"calibration", "val"}
    assert said["val"]["metrics"]["fpr@threshold"] == 0
    assert said["calibration"]["temperature"] == before["calibration"]["temperature"]
    assert bundle.load(copy, device=CPU).calibration.rule == "fpr<=0"
    assert evaluate.history(copy) == [scored]
    # What is on record was made at the former threshold: it does not speak for this one.
    assert evaluate.recorded(copy, data=delivered.data, split="test") is None
    bundle.recalibrate(copy, rule="balanced", data=delivered.data, device=CPU)
    assert (copy / "bundle.json").read_bytes() == (delivered.folder / "bundle.json").read_bytes()
    assert evaluate.recorded(copy, data=delivered.data, split="test") == scored


def test_other_data_may_not_choose_the_threshold(copy, tmp_path):
    before = (copy / "bundle.json").read_bytes()
    other = prepare(tmp_path / "other.h5", seed=7)
    with pytest.raises(InputError, match="only the val split"):
        bundle.recalibrate(copy, rule="fpr<=0.01", data=other, device=CPU)
    with pytest.raises(InputError, match="rule 'best' is not known"):
        bundle.recalibrate(copy, rule="best", data=other, device=CPU)
    assert (copy / "bundle.json").read_bytes() == before


def test_a_killed_replacement_is_mended_by_the_next_write(copy, delivered):
    evaluate.open_split(copy, "test")
    copy.rename(copy.with_name(".bundle.replaced"))
    copy.with_name("bundle.tmp").mkdir()
    write(delivered, copy)
    assert evaluate.open_split(copy, "test") == 1
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]


def test_a_failed_write_leaves_nothing(delivered, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bundle.loop, "evaluate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        write(delivered, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_a_bundle_is_never_replaced(delivered, tmp_path):
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match="not a bundle"):
        write(delivered, out)
    assert (out / "holiday.jpg").read_bytes() == b"precious"


def test_other_data_than_that_of_training_is_refused(delivered, tmp_path):
    other = prepare(tmp_path / "other.h5", seed=1)
    with pytest.raises(InputError, match="fingerprint"):
        write(delivered, tmp_path / "out", data=other)
    split_otherwise = prepare(tmp_path / "seed.h5", settings='{"seed": 1}')
    with pytest.raises(InputError, match="settings"):
        write(delivered, tmp_path / "out", data=split_otherwise)


def test_what_is_not_a_checkpoint_and_a_bad_rule_are_refused(delivered, tmp_path):
    with pytest.raises(InputError, match="not a checkpoint"):
        bundle.write(tmp_path, tmp_path / "o", data=delivered.data, device=CPU, lineage={})
    with pytest.raises(InputError, match="rule"):
        write(delivered, tmp_path / "out", rule="best")


def test_what_is_not_a_bundle_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a bundle"):
        bundle.load(tmp_path, device=CPU)
    (tmp_path / "bundle.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        bundle.load(tmp_path, device=CPU)


@pytest.mark.parametrize("version", [0, 1, 3, None])
def test_another_schema_version_is_refused(copy, version):
    edit(copy / "bundle.json", schema_version=version)
    with pytest.raises(InputError, match=f"schema version {version}"):
        bundle.load(copy, device=CPU)


@pytest.mark.parametrize("position", [0, 5000, -1])
def test_a_flipped_bit_in_the_weights_is_refused(copy, position):
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[position] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="SHA-256"):
        bundle.load(copy, device=CPU)


def test_missing_weights_are_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match="missing"):
        bundle.load(copy, device=CPU)


def test_the_test_split_counts_its_openings_and_says_what_it_measured(copy, delivered):
    for opened in range(2):
        found = bundle.evaluate_split(copy, data=delivered.data, split="test", device=CPU)
        assert found["opened_before"] == opened
    assert found["model"] == bundle.load(copy, device=CPU).name
    assert evaluate.history(copy)[-1] == found


def test_data_that_cannot_be_scored_fairly_does_not_open_the_test_split(copy, tmp_path):
    for wrong, match in (({"geometry": "crop"}, "geometry"), ({"settings": "{1}"}, "training")):
        other = prepare(tmp_path / "other.h5", **wrong)
        with pytest.raises(InputError, match=match):
            bundle.evaluate_split(copy, data=other, split="test", device=CPU)
    assert evaluate.open_split(copy, "test") == 0


def test_a_reduced_file_of_the_same_splits_may_be_scored(tmp_path):
    """A limit leaves rows out and moves none: nothing that was trained on is in its test split."""
    full = json.dumps({"name": "full", "limit": None, "seed": 0})
    data = prepare(tmp_path / "full.h5", settings=full)
    checkpoint = train(TrainConfig.from_dict(RESNET), data=data, out=tmp_path / "checkpoint")
    folder = bundle.write(checkpoint, tmp_path / "bundle", data=data, device=CPU, lineage={})
    for name, seed, fair in (("reduced", 0, True), ("reduced", 1, False)):
        settings = json.dumps({"name": name, "limit": 50, "seed": seed})
        other = prepare(tmp_path / f"{name}-{seed}.h5", settings=settings)
        if fair:
            assert bundle.evaluate_split(folder, data=other, split="test", device=CPU)["metrics"]
        else:
            with pytest.raises(InputError, match="another way"):
                bundle.evaluate_split(folder, data=other, split="test", device=CPU)


def test_other_images_may_be_scored_and_their_note_is_kept(copy, tmp_path):
    other = prepare(tmp_path / "other.h5", seed=7, source_note="synthetic")
    found = bundle.evaluate_split(copy, data=other, split="test", device=CPU)
    assert found["data"]["fingerprint"] == "f7"
    assert found["data"]["source_note"] == "synthetic"

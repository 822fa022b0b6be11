"""Robustness: damages are Pillow's, clean is the evaluation, flips are counted, the seal holds."""

import io
import json
import shutil

import numpy as np
import pytest
from conftest import CPU, SIZE, prepare
from PIL import Image, ImageFilter

from aiornot.config import InputError
from aiornot.data import hdf5
from aiornot.delivery import bundle, damage, errors, evaluate, manifest, robustness
from aiornot.delivery.damage import Damage


@pytest.fixture
def copy(delivered, tmp_path):
    return shutil.copytree(delivered.folder, tmp_path / "bundle")


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_damages_are_what_pillow_does(noise):
    image = Image.fromarray(noise)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    expected = {
        Damage(): image,
        Damage(quality=40): Image.open(file),
        Damage(blur=1.5): image.filter(ImageFilter.GaussianBlur(1.5)),
        Damage(scale=1.25): image.resize((100, 75), Image.Resampling.BICUBIC),
        Damage(crop=0.5): image.crop((20, 15, 60, 45)),
    }
    for one, picture in expected.items():
        assert np.array_equal(damage.apply(one, noise), np.asarray(picture)), one


def test_damages_come_in_the_order_of_an_upload(noise):
    at_once = damage.apply(Damage(scale=0.5, blur=1.0, quality=60), noise)
    steps = noise
    for one in (Damage(scale=0.5), Damage(blur=1.0), Damage(quality=60)):
        steps = damage.apply(one, steps)
    assert np.array_equal(at_once, steps) and steps.shape == (30, 40, 3)


@pytest.mark.parametrize(
    "size, web, hard", [(64, 48, 32), (512, 384, 256), (1024, 768, 512), (2048, 768, 512)]
)
def test_the_tiers_keep_their_limits_and_scale_them_with_smaller_images(size, web, hard):
    found = damage.tiers(size)
    assert found["clean"] == Damage()
    assert [round(size * found[name].scale) for name in ("web", "hard")] == [web, hard]
    assert [found[name].quality for name in ("web", "hard")] == [60, 40]


def test_clean_is_what_evaluation_says_and_flips_are_verdicts_that_change(copy, delivered):
    told: list[tuple[str, int, int]] = []
    found = robustness.measure(
        copy,
        data=delivered.data,
        split="val",
        device=CPU,
        progress=lambda *what: told.append(what),
    )
    num_conditions = len(damage.tiers(SIZE)) + sum(map(len, damage.CURVES.values()))
    for phase, total in (("damaging and scoring", 64 * num_conditions), ("drawing again", 2000)):
        counts = [done for what, done, all_of_it in told if what == phase and all_of_it == total]
        assert counts == sorted(counts) and counts[-1] == total
    said = json.loads((copy / "bundle.json").read_text())["val"]
    clean, web, hard = found["tiers"]
    for name in ("auroc", "balanced_accuracy@threshold", "fpr@threshold"):
        assert clean["metrics"][name] == pytest.approx(said["metrics"][name], abs=1e-9)
        assert clean["intervals"][name] == pytest.approx(said["intervals"][name], abs=1e-9)
    assert clean["metrics"]["flip_rate"] == 0 and clean["damage"] == {}
    assert web["damage"] == {"scale": 0.75, "quality": 60}

    loaded = bundle.load(copy, device=CPU)
    labels = hdf5.read_labels(delivered.data, "val")
    verdicts = []
    for one in (Damage(), Damage(scale=0.5, quality=40)):
        left = [
            np.asarray(
                Image.fromarray(damage.apply(one, image)).resize((SIZE, SIZE), Image.BICUBIC)
            )
            for image in hdf5.map_images(delivered.data, "val")
        ]
        logits = bundle.forward(loaded.module, np.stack(left), mean=loaded.mean, std=loaded.std)
        verdicts.append(loaded.calibration.verdicts(logits))
    flips = verdicts[0] != verdicts[1]
    assert hard["metrics"]["flip_rate"] == pytest.approx(flips.mean())
    assert hard["metrics"]["flip_rate_real"] == pytest.approx(flips[labels == 0].mean())
    assert hard["metrics"]["fpr@threshold"] == pytest.approx(verdicts[1][labels == 0].mean())
    for row in [*found["tiers"], *found["curves"]["blur_sigma"]]:
        for name, (low, high) in row["intervals"].items():
            assert low <= row["metrics"][name] <= high
    assert [row["value"] for row in found["curves"]["jpeg_quality"]] == list(
        damage.CURVES["jpeg_quality"]
    )
    assert found["generators"] is None


def test_results_of_both_splits_are_kept_and_the_seal_is_broken_once(copy, delivered):
    for split, opened in (("val", 0), ("test", 1), ("test", 1)):
        robustness.measure(copy, data=delivered.data, split=split, device=CPU)
        assert len(evaluate._read(copy)["test_opened"]) == opened
    kept = json.loads((copy / manifest.ROBUSTNESS).read_text())
    assert set(kept["splits"]) == {"val", "test"}
    scored = bundle.evaluate_split(copy, data=delivered.data, split="test", device=CPU)
    assert scored["opened_before"] == 1  # it has been seen


def test_what_cannot_be_scored_opens_nothing(copy, tmp_path, delivered):
    other = prepare(tmp_path / "other.h5", geometry="crop")
    with pytest.raises(InputError, match="geometry"):
        robustness.measure(copy, data=other, split="test", device=CPU)
    for split in ("train", "nosuch"):
        for room in (robustness, errors):
            with pytest.raises(InputError, match="use 'val' or 'test'"):
                room.measure(copy, data=delivered.data, split=split, device=CPU)
    assert {path.name for path in copy.iterdir()} == {*manifest.FILES, manifest.SUMS}


def test_each_generator_is_judged_against_all_real_images():
    labels = np.array([0, 0, 0, 1, 1, 1, 1]).astype(bool)
    names = ["camera", "camera", "", "a", "a", "b", "camera"]
    logits = np.array([0.0, 1.0, 2.0, 3.0, 1.5, -1.0, 9.0])
    rows = robustness.by_generator(names, labels, {"clean": logits > 1.2}, logits)
    found = {(row["generator"], row["class"]): row for row in rows}
    assert set(found) == {("camera", "real"), ("a", "generated"), ("b", "generated")} | {
        ("camera", "generated")
    }
    assert found["a", "generated"]["num"] == 2
    assert found["a", "generated"]["called_generated"]["clean"]["share"] == 1
    assert found["a", "generated"]["auroc"] == pytest.approx(5 / 6)
    assert found["b", "generated"]["auroc"] == 0
    assert found["camera", "real"]["called_generated"]["clean"]["share"] == 0
    assert found["camera", "real"]["auroc"] is None
    assert robustness.by_generator(None, labels, {}, logits) is None

"""The model card: a header that the hub reads, licences by name, and code that does what we do."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from aiornot.data import images
from aiornot.delivery import card, licence, manifest
from aiornot.delivery.card_code import LOADING, PREPARING


@pytest.fixture
def said(delivered):
    return manifest.read(delivered.folder)


@pytest.fixture
def timm_config(delivered):
    return json.loads((delivered.folder / "config.json").read_text())


def pretrained(said, timm_config, name):
    timm_config["pretrained_cfg"]["license"] = name
    said["config"] |= {"pretrained": True}
    return card.text(said, timm_config)


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_what_the_hub_reads(said, timm_config):
    found = header(pretrained(said, timm_config, "apache-2.0"))
    assert found["library_name"] == "timm" and found["pipeline_tag"] == "image-classification"
    assert found["license"] == "apache-2.0"
    assert found["base_model"] == "timm/test_resnet.r160_in1k"


@pytest.mark.parametrize(
    ("name", "key", "sentence"),
    [
        ("mit", "mit", "allows commercial use"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", "**Not for commercial use**"),
        ("fair-noncommercial-research-license", "other", "**Not for commercial use**"),
        ("dinov3-license", "other", "**A licence of its own, with conditions**"),
        (None, None, "does not say which licence"),
    ],
)
def test_a_licence_is_named_and_one_with_conditions_flagged(said, timm_config, name, key, sentence):
    text = pretrained(said, timm_config, name)
    assert header(text).get("license") == key and sentence in text
    assert header(text).get("license_name") == (name if key == "other" else None)


def test_random_weights_and_a_file_of_weights_have_no_licence_of_timm(said, timm_config):
    text = card.text(said, timm_config)
    assert "license" not in header(text) and "base_model" not in header(text)
    assert "random weights" in text
    said["config"] |= {"weights": "/home/me/secret/mine.safetensors"}
    text = card.text(said, timm_config)
    assert "license" not in header(text) and "`mine.safetensors`" in text and "/home" not in text


def test_scores_stand_at_both_thresholds_with_their_intervals(said, timm_config):
    text = card.text(said, timm_config)
    metrics, intervals = said["val"]["metrics"], said["val"]["intervals"]
    low, high = intervals["precision@threshold"]
    at_half = metrics["precision@0.5"]
    row = next(line for line in text.splitlines() if line.startswith("| precision |"))
    assert f"| {at_half:.4f}" in row
    assert f"{metrics['precision@threshold']:.4f} [{low:.4f}, {high:.4f}]" in row
    assert f"| AUROC | {metrics['auroc']:.4f} [" in text
    assert said["data"]["fingerprint"] in text and "`balanced`" in text
    said["val"]["metrics"]["precision@threshold"] = None
    assert " | - |" in card.text(said, timm_config)


def test_the_unsure_band_is_said_where_there_is_one(said, timm_config):
    said["calibration"]["unsure"] = [0.25, 0.75]
    assert "From 0.25 to below 0.75 it is *unsure*" in card.text(said, timm_config)
    said["calibration"]["unsure"] = None
    assert "unsure" not in card.text(said, timm_config).split("## From logit")[1].split("##")[0]


def test_a_synthetic_source_is_said_first(said, timm_config):
    said["data"]["source_note"] = "synthetic stand-in"
    assert "**The training data says of itself: synthetic stand-in.**" in card.text(
        said, timm_config
    )


def test_a_model_that_timm_refuses_gets_no_code_for_timm(said, timm_config):
    said["config"] |= {"stem_stride": 1}
    text = card.text(said, timm_config)
    assert "plain timm refuses it" in text and "```python" not in text


@pytest.mark.parametrize("shape", [(50, 41), (32, 32), (20, 70), (9, 1)])
@pytest.mark.parametrize("how", PREPARING)
def test_the_code_of_a_card_prepares_an_image_as_we_do(how, shape):
    geometry, resample = how
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    names = {"pixels": pixels, "size": 32, "np": np, "Image": Image}
    exec("import torch\n" + PREPARING[how], names)
    expected = images.fit(pixels, 32, geometry=geometry, resample=resample)
    assert np.array_equal(names["pixels"], expected)


def test_the_code_holds_the_place_of_the_preparation():
    assert LOADING.count("# PREPARE\n") == 1


def test_every_licence_that_timm_knows_has_a_sentence():
    for name in ("apple-amlr", "fastvit-license", "gemma", "cc-by-4.0", "unknown"):
        config = {"model": "m", "pretrained": True, "weights": None}
        found, sentence = licence.of_weights(config, {"pretrained_cfg": {"license": name}})
        assert sentence.startswith(("Training began", "timm does not say"))
        assert found == (None if name == "unknown" else name)

"""Where a model looks: covering finds the place that carries the evidence, whatever the model."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image
from torch import nn

from aiornot.config import TrainConfig
from aiornot.data import hdf5
from aiornot.delivery import bundle, predict, saliency
from aiornot.training import model

SIDE = 96


class Traces(nn.Module):
    """A detector of high frequencies, as real ones are: the logit is their energy."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rough = images[:, :, 1:, 1:] - images[:, :, :-1, 1:] - images[:, :, 1:, :-1]
        rough = rough + images[:, :, :-1, :-1]
        return rough.square().mean(dim=(1, 2, 3))[:, None] * 100


class Brightness(nn.Module):
    """The logit is the mean of the left half."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., : images.shape[-1] // 2].mean(dim=(1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def loaded(delivered):
    return bundle.load(delivered.folder, device=CPU)


def with_module(loaded: bundle.Bundle, module: nn.Module) -> bundle.Bundle:
    return dataclasses.replace(loaded, module=module.eval())


def slope() -> np.ndarray:
    """An image without traces: a soft slope of colours."""
    level = np.linspace(60, 180, SIDE)
    return np.stack([*np.meshgrid(level, level), np.full((SIDE, SIDE), 90)], axis=2).astype(
        np.uint8
    )


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 9), (7, 4), (11, 11)])
def test_the_map_peaks_at_a_planted_trace(loaded, row, column):
    pixels = slope()
    place = np.s_[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
    pixels[place] += np.random.default_rng(0).integers(0, 40, (8, 8, 3), dtype=np.uint8)
    found = saliency.occlude(with_module(loaded, Traces()), pixels)
    assert found.change.shape == (12, 12)
    assert found.strongest() == (row, column)
    far = np.hypot(*(np.indices((12, 12)) - np.array([row, column])[:, None, None])) >= 2
    assert np.abs(found.change[far]).max() < 0.02 * found.change[row, column]


def test_what_a_place_adds_has_its_sign_and_all_places_together_have_all(loaded):
    """For a linear model the changes add up: to cover every place is to cover the image."""
    pixels = np.full((SIDE, SIDE, 3), 100, dtype=np.uint8)
    pixels[:24, :24] = 250  # left, bright: for generated
    pixels[-24:, :24] = 10  # left, dark: against
    pixels[:24, -24:] = 250  # right: not looked at
    linear = with_module(loaded, Brightness())
    found = saliency.occlude(linear, pixels)
    assert found.change[1, 1] > 0 > found.change[10, 1]
    assert np.abs(found.change[:, 8:]).max() < 1e-6
    flat = np.broadcast_to(pixels.mean(axis=(0, 1)), pixels.shape).round().astype(np.uint8)
    gone = saliency.occlude(linear, np.ascontiguousarray(flat)).logit
    assert found.change.sum() == pytest.approx(found.logit - gone, abs=0.01)


def test_a_featureless_image_has_a_flat_map_and_little_paint(loaded):
    pixels = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
    found = saliency.occlude(with_module(loaded, Traces()), pixels)
    assert found.is_flat
    painted = saliency.paint(pixels, found.change)
    assert np.ptp(painted.reshape(-1, 3).astype(int), axis=0).max() <= 1


@pytest.mark.parametrize(
    "name",
    [
        *("test_resnet.r160_in1k", "test_convnext.r160_in1k", "test_efficientnet.r160_in1k"),
        *("test_vit.r160_in1k", "test_byobnet.r160_in1k"),
    ],
)
def test_every_family_has_a_map(loaded, name):
    config = TrainConfig.from_dict({"model": name, "pretrained": False})
    module = model.skeleton(config, size=32).to(memory_format=torch.channels_last)
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    seen = []
    found = saliency.occlude(
        with_module(loaded, module),
        pixels,
        grid=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found.covered.shape == (4, 4) and np.isfinite(found.covered).all()
    assert np.ptp(found.covered) > 0
    assert seen == [(8, 16), (16, 16)]


def test_a_tiny_image_has_fewer_places(loaded):
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    assert saliency.occlude(loaded, pixels, grid=12).covered.shape == (8, 8)


def test_the_logit_is_that_of_prediction(loaded, delivered, tmp_path):
    pixels = np.array(hdf5.map_images(delivered.data, "val")[0])
    found = saliency.occlude(loaded, pixels, grid=2)
    file = tmp_path / "same.png"
    Image.fromarray(pixels).save(file)
    (predicted,) = predict.predict(loaded, [file])
    expected = loaded.calibration.probabilities(np.array([found.logit]))[0]
    assert predicted.probability == pytest.approx(expected, abs=1e-6)


def test_paint_shows_both_directions_in_their_colours_on_an_enlarged_image():
    change = np.zeros((4, 4))
    change[0, 0], change[3, 3] = 2.0, -2.0
    painted = saliency.paint(np.full((32, 32, 3), 128, dtype=np.uint8), change)
    assert painted.shape == (384, 384, 3)
    assert painted[40, 40, 0] > painted[40, 40, 2] + 40  # orange
    assert painted[-40, -40, 2] > painted[-40, -40, 0] + 40  # blue
    assert np.ptp(painted[150:230, 150:230].astype(int)) < 40

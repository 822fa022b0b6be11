"""Degradations: what Pillow and torchvision do to one image at a time, done to a batch."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TV

from aiornot.config import TrainConfig
from aiornot.data import synthesis
from aiornot.training import degrade, jpeg
from aiornot.training.augment import NUM_DRAWS, augment, normalize, strengths

TABLES = jpeg.tables()
NO = torch.inf
"""The quality that compresses nothing."""


def make_levels(*, count: int = 4, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """(N, 3, H, W) whole grey levels of scenes that have the spectrum of photographs."""
    rng = np.random.default_rng(seed)
    side = 8 * math.ceil(max(height, width) / 8)
    scenes = [synthesis.camera(rng, synthesis.scene(rng, side)) for _ in range(count)]
    levels = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).mul(255).round()
    return levels[..., :height, :width].contiguous()


def images_of(levels: Tensor) -> list[Image.Image]:
    stored = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(one) for one in stored]


def levels_of(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.array(one) for one in images])).permute(0, 3, 1, 2).float()


def through_pillow(levels: Tensor, qualities: list[int]) -> Tensor:
    decoded = []
    for image, quality in zip(images_of(levels), qualities, strict=True):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        decoded.append(Image.open(buffer).convert("RGB"))
    return levels_of(decoded)


def compress(levels: Tensor, qualities: list[float]) -> Tensor:
    return jpeg.compress(
        levels, quality=torch.tensor(qualities, dtype=torch.float32), tables=TABLES
    )


def multiplied(pixels: Tensor, *, rows: Tensor, columns: Tensor) -> Tensor:
    return degrade.along(degrade.across(pixels, columns=columns), rows=rows)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# --- JPEG is Pillow's ----------------------------------------------------------------------------


def test_the_tables_of_all_qualities_are_libjpegs() -> None:
    qualities = range(1, 101)
    ours = jpeg.scaled_steps(TABLES.steps, quality=torch.tensor(qualities).float())
    for quality, tables in zip(qualities, ours.int().tolist(), strict=True):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
        theirs = Image.open(buffer).quantization
        assert tables == [list(theirs[0]), list(theirs[1])], quality


@pytest.mark.parametrize("size", [(64, 64), (50, 71), (33, 40), (17, 19)])
def test_each_sample_is_compressed_as_pillow_would_at_its_quality(size: tuple[int, int]) -> None:
    """libjpeg's transform is rounded to 13 bits, so that a coefficient now and then falls on the
    other side of a half; everything else is equal to the bit."""
    qualities = [10, 30, 50, 60, 75, 90, 95, 100]
    levels = make_levels(count=8, height=size[0], width=size[1])
    theirs = through_pillow(levels, qualities)
    apart = (compress(levels, qualities) - theirs).abs()
    assert (apart.mean((1, 2, 3)) < 0.25).all()
    assert (apart > 1).float().mean() < 0.03
    damage = (levels - theirs).abs().mean((1, 2, 3))
    assert (damage > 10 * apart.mean((1, 2, 3))).all()


def test_a_block_of_one_colour_comes_back_as_from_pillow_to_the_bit() -> None:
    """Colours, their rounding and the tables, without the transform."""
    colours = torch.randint(0, 256, (512, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    colours[:4] = torch.tensor([[0, 0, 0], [255, 255, 255], [0, 0, 255], [255, 0, 0]])[
        ..., None, None
    ]
    levels = colours.float().expand(-1, -1, 16, 16)
    for quality in (40, 90, 100):
        theirs = through_pillow(levels, [quality] * 512)
        assert torch.equal(compress(levels, [quality] * 512), theirs)


def test_chroma_is_halved_and_doubled_as_in_libjpeg() -> None:
    """Quality 100 keeps colours but for the halving: sharp edges show its filter and its phase."""
    levels = torch.zeros(2, 3, 32, 32)
    levels[0, 0, :, 7:20], levels[1, 2, 11:, :] = 255, 255
    apart = (compress(levels, [100, 100]) - through_pillow(levels, [100, 100])).abs()
    assert apart.max() <= 2


def test_a_sample_without_compression_is_returned_to_the_bit() -> None:
    levels = make_levels(count=2)
    got = compress(levels, [NO, 50])
    assert torch.equal(got[0], levels[0])
    assert not torch.equal(got[1], levels[1])


# --- scaling and blur are torchvision's ----------------------------------------------------------


@pytest.mark.parametrize("side", [32, 57, 256])
def test_scaling_down_and_up_equals_torchvisions_sample_by_sample(side: int) -> None:
    pixels = make_levels(height=side, width=side) / 255
    scale = torch.tensor([0.07, 0.31, 0.5, 0.83])
    down, up = degrade.there_and_back(scale, side=side)
    reduced = multiplied(pixels, rows=down, columns=down)
    for index, share in enumerate(scale.tolist()):
        small = round(share * side)
        sizes = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
        one = reduced[index, :, :small, :small]
        assert_close(one, TV.resize(pixels[index], [small, small], **sizes))
        assert not reduced[index, :, small:].any() and not reduced[index, :, :, small:].any()
        restored = multiplied(reduced, rows=up, columns=up)[index]
        assert_close(restored, TV.resize(one, [side, side], **sizes))


@pytest.mark.parametrize("size", [(64, 64), (48, 72)])
def test_rescaled_images_are_pillows(size: tuple[int, int]) -> None:
    """But for Pillow's weights, which are rounded to 22 bits."""
    levels, scale = make_levels(height=size[0], width=size[1]), [0.25, 0.5, 0.7, 1.0]
    theirs = []
    for image, share in zip(images_of(levels), scale, strict=True):
        small = image.resize((round(share * size[1]), round(share * size[0])), Image.BICUBIC)
        theirs.append(small.resize(image.size, Image.BICUBIC))
    apart = (degrade.rescale(levels, scale=torch.tensor(scale)) - levels_of(theirs)).abs()
    assert apart.max() <= 2 and apart.mean() < 0.02
    assert torch.equal(apart[3], torch.zeros_like(apart[3]))


@pytest.mark.parametrize("scale", [0.05, 0.33, 0.62, 0.999])
def test_scaling_leaves_one_colour_what_it_is(scale: float) -> None:
    levels = torch.full((1, 3, 40, 40), 200.0)
    assert torch.equal(degrade.rescale(levels, scale=torch.tensor([scale])), levels)


@pytest.mark.parametrize("size", [(32, 32), (48, 33)])
def test_blur_equals_torchvisions_sample_by_sample(size: tuple[int, int]) -> None:
    """Ours is not cut off: torchvision's largest kernel that its mirroring allows."""
    pixels, sigmas = make_levels(height=size[0], width=size[1]) / 255, [0.3, 1.0, 2.2, 4.0]
    kernel = [2 * size[1] - 1, 2 * size[0] - 1]
    rows, columns = (degrade.gaussian(torch.tensor(sigmas), side=side) for side in size)
    got = multiplied(pixels, rows=rows, columns=columns)
    pairs = zip(pixels, sigmas, strict=True)
    assert_close(got, torch.stack([TV.gaussian_blur(p, kernel, [s, s]) for p, s in pairs]))


def test_blur_cut_off_at_three_and_a_half_sigma_is_the_same_within_a_level() -> None:
    levels = make_levels(count=1)
    theirs = TV.gaussian_blur(levels, [15, 15], [2.0, 2.0])
    assert (degrade.blur(levels, sigma=torch.tensor([2.0])) - theirs).abs().max() < 1


def test_scale_one_and_sigma_zero_change_no_bit() -> None:
    levels = make_levels(height=37, width=50)
    assert torch.equal(degrade.rescale(levels, scale=torch.ones(4)), levels)
    assert torch.equal(degrade.blur(levels, sigma=torch.zeros(4)), levels)


# --- the chain -----------------------------------------------------------------------------------


def worsened(
    pixels: Tensor, *, scale: list[float], sigma: list[float], quality: list[float]
) -> Tensor:
    return degrade.degrade(
        pixels,
        scale=torch.tensor(scale),
        sigma=torch.tensor(sigma),
        quality=torch.tensor(quality),
        tables=TABLES,
    )


def test_the_file_is_written_last_and_scaled_first() -> None:
    levels, scale, sigma = make_levels(), torch.full((4,), 0.5), torch.full((4,), 1.5)
    wanted = degrade.blur(degrade.rescale(levels, scale=scale), sigma=sigma)
    wanted = compress(wanted, [40.0] * 4)
    got = worsened(levels / 255, scale=[0.5] * 4, sigma=[1.5] * 4, quality=[40.0] * 4)
    assert torch.equal(got, wanted / 255)


def test_what_is_degraded_holds_whole_grey_levels_and_the_rest_is_untouched() -> None:
    pixels = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    got = worsened(pixels, scale=[0.6, 1, 1, 1], sigma=[0, 0.7, 0, 0], quality=[NO, NO, 80, NO])
    levels = torch.round(got * 255)
    assert torch.equal(got[:3], levels[:3] / 255)
    assert levels.min() >= 0 and levels.max() <= 255
    assert torch.equal(got[3], pixels[3])
    for before, after in zip(pixels[:3], got[:3], strict=True):
        assert (before - after).abs().mean() > 0.02


def test_degradations_are_the_last_thing_before_normalisation() -> None:
    """After it, rotation and colour would have left fractions of a grey level."""
    worse = {"rescale": 1.0, "blur": 1.0, "jpeg": 1.0}
    config = TrainConfig.from_dict(worse | {"degrees": 20.0, "brightness": 0.5, "sharpness": 1.0})
    images = make_levels(count=2).to(torch.uint8).permute(0, 2, 3, 1)
    draws = torch.rand((2, NUM_DRAWS), generator=torch.Generator().manual_seed(0))
    nothing, everything = torch.zeros(3), torch.ones(3)
    got = augment(images, draws=draws, strengths=strengths(config), mean=nothing, std=everything)
    assert torch.equal(got, torch.round(got * 255) / 255)


def test_a_degraded_sample_does_not_depend_on_its_neighbours() -> None:
    strong = {"scale": [0.4, 0.9], "sigma": [2.0, 0.5], "quality": [20.0, 80.0]}
    pixels, others = (make_levels(count=2, seed=seed) / 255 for seed in (0, 1))
    alone = worsened(pixels, **strong)
    beside = worsened(torch.stack((pixels[0], others[1])), **strong)
    assert torch.equal(alone[0], beside[0])
    assert not torch.equal(alone[1], beside[1])


@pytest.mark.parametrize(("name", "column"), [("rescale", 49), ("blur", 51), ("jpeg", 53)])
def test_each_operation_is_reached_from_the_configuration(name: str, column: int) -> None:
    images = make_levels(count=2).to(torch.uint8).permute(0, 2, 3, 1)
    draws = torch.full((2, NUM_DRAWS), 0.5)
    draws[0, column], draws[1, column] = 0.2, 0.4
    config = TrainConfig.from_dict({name: 0.3})
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    got = augment(images, draws=draws, strengths=strengths(config), mean=mean, std=std)
    plain = normalize(images, mean=mean, std=std)
    assert torch.equal(got[1], plain[1])
    levels = images[:1].permute(0, 3, 1, 2).float()
    wanted = {
        "rescale": degrade.rescale(levels, scale=torch.tensor([0.75])),
        "blur": degrade.blur(levels, sigma=torch.tensor([0.5])),
        "jpeg": compress(levels, [80.0]),
    }[name]
    assert_close(got[:1], (wanted / 255 - 0.5) / 0.25)

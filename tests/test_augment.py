"""Augmentation: equal to torchvision, exact where it can be, one set of parameters per sample."""

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as TV

from aiornot.config import TrainConfig
from aiornot.training import augment as room
from aiornot.training import boxes, colour, warp
from aiornot.training.augment import (
    NUM_DRAWS,
    Parameters,
    augment,
    compiled,
    draw,
    normalize,
    strengths,
    transform,
)

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
# The largest float32 below 1, the largest number torch.rand can draw.
ALMOST_ONE = 1 - 2**-24
EVERYTHING = TrainConfig(
    hflip=0.5,
    vflip=0.5,
    degrees=15.0,
    random_resized_crop=True,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.05,
    sharpness=0.5,
    dihedral=True,
    rescale=0.5,
    blur=0.5,
    jpeg=0.5,
    re_prob=0.5,
)


# Turns need squares.
EVERYTHING_OBLONG = dataclasses.replace(EVERYTHING, dihedral=False)


def make_images(*, count: int = 4, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """(N, H, W, 3) uint8 noise, with a grey, a black and a white patch in every image."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, height, width, 3), generator=generator)
    images[:, :4, :4], images[:, :4, 4:8], images[:, :4, 8:12] = 128, 0, 255
    return images.to(torch.uint8)


def make_pixels(*, height: int = 32, width: int = 32) -> Tensor:
    return make_images(height=height, width=width).permute(0, 3, 1, 2) / 255


def make_smooth(*, height: int = 64, width: int = 64) -> Tensor:
    """(2, 3, H, W) pixels without hard edges, for comparing interpolations."""
    coarse = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def make_draws(*, count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand((count, NUM_DRAWS), generator=torch.Generator().manual_seed(seed))


def run(images: Tensor, config: TrainConfig, *, draws: Tensor | None = None) -> Tensor:
    drawn = make_draws(count=len(images)) if draws is None else draws
    return augment(images, draws=drawn, strengths=strengths(config), mean=MEAN, std=STD)


def choose(
    config: TrainConfig, *, draws: Tensor, height: int = 256, width: int = 256
) -> Parameters:
    return room.choose(draws, strengths=strengths(config), height=height, width=width)


def warped(pixels: Tensor, **changes: Tensor) -> Tensor:
    """Warp with arguments that change nothing, but for the ones given."""
    count, _, height, width = pixels.shape
    nowhere = torch.zeros(count, dtype=torch.bool)
    arguments: dict[str, Any] = {
        "box": torch.tensor([0.0, 0.0, height, width]).expand(count, 4),
        "angle": torch.zeros(count),
        "eighth": None,
        "hflip": nowhere,
        "vflip": nowhere,
    }
    return torch.stack(warp.warp(pixels, **(arguments | changes)), dim=1)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# --- each operation is torchvision's -------------------------------------------------------------


def joined(operation: Callable[..., colour.Planes]) -> Callable[..., Tensor]:
    """Let an operation on planes work on pixels (N, 3, H, W)."""
    return lambda pixels, **how: torch.stack(operation(pixels.unbind(1), **how), dim=1)


COLOUR: list[tuple[Callable[..., Tensor], Callable[..., Tensor], list[float], str]] = [
    (joined(colour.adjust_brightness), TV.adjust_brightness, [0.0, 0.6, 1.0, 1.7], "factor"),
    (joined(colour.adjust_contrast), TV.adjust_contrast, [0.0, 0.6, 1.0, 1.7], "factor"),
    (joined(colour.adjust_saturation), TV.adjust_saturation, [0.0, 0.6, 1.0, 1.7], "factor"),
    (joined(colour.adjust_sharpness), TV.adjust_sharpness, [0.0, 0.6, 1.0, 2.5], "factor"),
    (joined(colour.shift_hue), TV.adjust_hue, [-0.5, -0.05, 0.0, 0.45], "shift"),
]


@pytest.mark.parametrize("size", [(32, 32), (20, 36)])
@pytest.mark.parametrize(("ours", "theirs", "values", "word"), COLOUR)
def test_colour_operation_equals_torchvision_sample_by_sample(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    values: list[float],
    word: str,
    size: tuple[int, int],
) -> None:
    pixels = make_pixels(height=size[0], width=size[1])
    got = ours(pixels, **{word: torch.tensor(values)})
    wanted = torch.stack([theirs(p, v) for p, v in zip(pixels, values, strict=True)])
    assert_close(got, wanted)


@pytest.mark.parametrize(("ours", "word"), [(row[0], row[3]) for row in COLOUR[:4]])
def test_factor_of_one_changes_no_bit(ours: Callable[..., Tensor], word: str) -> None:
    pixels = make_pixels()
    assert torch.equal(ours(pixels, **{word: torch.ones(4)}), pixels)


def test_sharpening_leaves_an_image_of_two_rows_alone() -> None:
    pixels = make_pixels(height=2)
    assert torch.equal(
        joined(colour.adjust_sharpness)(pixels, factor=torch.full((4,), 2.0)), pixels
    )


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_crop_equals_torchvision_inside(size: tuple[int, int]) -> None:
    """At the rim ours sees the real neighbour outside the crop, torchvision repeats the edge."""
    pixels = make_smooth(height=size[0], width=size[1])
    box = [3, 9, 30, 32]
    theirs = TV.resized_crop(pixels, *box, size=list(size), antialias=False)
    got = warped(pixels, box=torch.tensor([box, box]).float())
    assert_close(got[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2])


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
@pytest.mark.parametrize("angle", [15.0, -30.0, 90.0])
def test_rotation_equals_torchvision_inside(angle: float, size: tuple[int, int]) -> None:
    pixels = make_smooth(height=size[0], width=size[1])
    theirs = TV.rotate(pixels, angle, interpolation=InterpolationMode.BILINEAR)
    got = warped(pixels, angle=torch.full((2,), angle))
    assert_close(TV.center_crop(got, [24, 24]), TV.center_crop(theirs, [24, 24]))


def test_one_warp_is_crop_then_rotation_then_flip() -> None:
    """torchvision interpolates twice, hence the tolerance; a wrong order gives 0.15 or more."""
    pixels, box = make_smooth(), [5, 9, 40, 32]
    theirs = TV.resized_crop(pixels, *box, size=[64, 64], antialias=False)
    theirs = TV.rotate(theirs, 20.0, interpolation=InterpolationMode.BILINEAR)
    theirs = TV.horizontal_flip(theirs)
    changes = {"box": torch.tensor([box, box]).float(), "angle": torch.full((2,), 20.0)}
    got = warped(pixels, hflip=torch.tensor([True, True]), **changes)
    difference = TV.center_crop(got - theirs, [40, 40]).abs().mean()
    assert difference < 5e-3


def test_rotated_out_corners_are_black_before_normalisation() -> None:
    white = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    draws = torch.full((1, NUM_DRAWS), ALMOST_ONE)
    got = run(white, TrainConfig(degrees=45.0), draws=draws)
    assert torch.equal(got[0, :, 0, 0], -MEAN / STD)
    assert torch.equal(got[0, :, 16, 16], (1 - MEAN) / STD)


# --- exact where it can be -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (20, 36)])
def test_everything_off_is_normalize_to_the_bit(size: tuple[int, int]) -> None:
    images = make_images(height=size[0], width=size[1])
    assert torch.equal(run(images, TrainConfig()), normalize(images, mean=MEAN, std=STD))


def test_whole_box_without_rotation_is_the_identity() -> None:
    pixels = make_pixels()
    assert torch.equal(warped(pixels), pixels)
    odd = make_pixels(height=21, width=37)
    assert_close(warped(odd), odd)


@pytest.mark.parametrize("size", [(32, 32), (21, 37)])
@pytest.mark.parametrize(
    ("config", "axes"),
    [
        (TrainConfig(hflip=1.0), [2]),
        (TrainConfig(vflip=1.0), [1]),
        (TrainConfig(hflip=1.0, vflip=1.0), [1, 2]),
    ],
)
def test_flips_are_exact(config: TrainConfig, axes: list[int], size: tuple[int, int]) -> None:
    images = make_images(height=size[0], width=size[1])
    assert torch.equal(run(images, config), normalize(images.flip(axes), mean=MEAN, std=STD))


def test_flips_inside_the_warp_are_the_same_flips() -> None:
    pixels = make_pixels(height=21, width=37)
    some, others = (
        torch.tensor([True, False, True, False]),
        torch.tensor([True, True, False, False]),
    )
    got = warped(pixels, hflip=some, vflip=others)
    assert_close(got, warp.flip(pixels, horizontal=some, vertical=others))


def test_equal_draws_give_equal_batches() -> None:
    images = make_images()
    assert torch.equal(run(images, EVERYTHING), run(images, EVERYTHING))
    assert not torch.equal(
        run(images, EVERYTHING), run(images, EVERYTHING, draws=make_draws(seed=1))
    )


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    images, draws = make_images(), make_draws()
    others, redrawn = make_images(seed=1), make_draws(seed=1)
    others[2], redrawn[2] = images[2], draws[2]
    got, among_others = (
        run(x, EVERYTHING, draws=d) for x, d in ((images, draws), (others, redrawn))
    )
    assert torch.equal(got[2], among_others[2])
    assert not torch.equal(got[1], among_others[1])


def test_a_sample_does_not_depend_on_its_place_in_the_batch() -> None:
    images, draws = make_images(count=8), make_draws(count=8)
    order = torch.tensor([3, 7, 0, 4, 6, 1, 5, 2])
    got = run(images[order], EVERYTHING, draws=draws[order])
    assert_close(got, run(images, EVERYTHING, draws=draws)[order])


# Which columns of the draw decide what; a column once given is never moved.
OWNERS = (
    ["box"] * 40
    + ["angle", "hflip", "vflip", "brightness", "contrast", "saturation", "hue", "sharpness"]
    + ["eighth", "scale", "scale", "sigma", "sigma", "quality", "quality", "hole"]
    + ["hole"] * 40
)


def test_every_column_of_the_draw_decides_one_thing_and_keeps_its_place() -> None:
    assert len(OWNERS) == NUM_DRAWS
    before, fresh = make_draws(count=64), make_draws(count=64, seed=1)
    chosen = choose(EVERYTHING, draws=before)
    unseen = []
    for column, owner in enumerate(OWNERS):
        draws = before.clone()
        draws[:, column] = fresh[:, column]
        pairs = zip(Parameters._fields, chosen, choose(EVERYTHING, draws=draws), strict=True)
        moved = [name for name, old, new in pairs if not torch.equal(old, new)]
        assert moved in ([], [owner]), column
        unseen += [column] if not moved else []
    # The second to tenth try of a rectangle matter only where those before them did not fit.
    tries = [start + column for start in (0, 56) for column in range(40) if column % 10]
    assert set(unseen) <= set(tries)


def test_one_switch_does_not_move_the_draws_of_another() -> None:
    everything = choose(EVERYTHING, draws=make_draws())._asdict()
    for name, parameter in [
        *[("random_resized_crop", "box"), ("degrees", "angle"), ("hflip", "hflip")],
        *[("vflip", "vflip"), ("dihedral", "eighth"), ("brightness", "brightness")],
        *[("contrast", "contrast"), ("saturation", "saturation"), ("hue", "hue")],
        *[("sharpness", "sharpness"), ("rescale", "scale"), ("blur", "sigma")],
        *[("jpeg", "quality"), ("re_prob", "hole")],
    ]:
        alone = TrainConfig.from_dict({name: getattr(EVERYTHING, name)})
        found = choose(alone, draws=make_draws())._asdict()[parameter]
        assert torch.equal(found, everything[parameter]), name


def test_a_seed_goes_on_to_mean_what_it_meant_in_the_first_release() -> None:
    """It drew 48 columns; the draws of its operations are those again."""
    then = torch.rand((6, 48), generator=torch.Generator().manual_seed(7))
    now = draw(6, generator=torch.Generator().manual_seed(7))
    assert now.shape == (6, NUM_DRAWS)
    assert torch.equal(now[:, :48], then)
    assert 0.4 < now[:, 48:].mean() < 0.6


def test_what_the_draw_declines_is_not_done_to_the_bit() -> None:
    config = dataclasses.replace(
        TrainConfig(), rescale=0.9, blur=0.9, jpeg=0.9, re_prob=0.9, hflip=0.9, sharpness=0.9
    )
    draws = make_draws()
    for chance in (41, 47, 49, 51, 53, 55):
        draws[:, chance] = 0.95
    images = make_images()
    assert torch.equal(run(images, config, draws=draws), normalize(images, mean=MEAN, std=STD))


# --- quarter turns -------------------------------------------------------------------------------


def symmetries(image: Tensor) -> list[Tensor]:
    """The eight of a square image (..., H, W), by torch's own operations."""
    turned = [torch.rot90(image, quarter, (-2, -1)) for quarter in range(4)]
    return turned + [one.flip(-1) for one in turned]


def dihedral_draws() -> Tensor:
    draws = make_draws(count=8)
    draws[:, 48] = torch.arange(8) / 8
    return draws


def test_dihedral_gives_each_of_the_eight_symmetries_once_and_exactly() -> None:
    images = make_images(count=1).expand(8, -1, -1, -1)
    got = run(images, TrainConfig(dihedral=True), draws=dihedral_draws())
    wanted = symmetries(normalize(images[:1], mean=MEAN, std=STD)[0])
    matches = [[torch.equal(one, other) for other in wanted] for one in got]
    assert (torch.tensor(matches).sum(0) == 1).all() and (torch.tensor(matches).sum(1) == 1).all()
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[5], torch.rot90(got[0], -1, (1, 2)))


def test_the_eight_are_drawn_evenly() -> None:
    draws = torch.cat([make_draws(count=8000), torch.full((1, NUM_DRAWS), ALMOST_ONE)])
    eighth = choose(TrainConfig(dihedral=True), draws=draws).eighth
    assert eighth is not None
    counts = torch.bincount(eighth.long(), minlength=8)
    assert len(counts) == 8
    assert ((counts - 1000).abs() < 4 * math.sqrt(1000)).all()


@pytest.mark.parametrize("size", [32, 21])
def test_turns_inside_the_warp_are_the_same_turns(size: int) -> None:
    pixels, eighth = make_smooth(height=size, width=size)[:1].expand(8, -1, -1, -1), torch.arange(8)
    assert_close(warped(pixels, eighth=eighth), warp.turn(pixels, eighth=eighth))
    some = torch.arange(8) % 3 == 0
    crooked = {"angle": torch.full((8,), 20.0), "box": torch.tensor([[2.0, 3.0, 15.0, 16.0]] * 8)}
    wanted = warp.turn(warped(pixels, **crooked), eighth=eighth)
    wanted = warp.flip(wanted, horizontal=some, vertical=~some)
    assert_close(warped(pixels, eighth=eighth, hflip=some, vflip=~some, **crooked), wanted)


def test_a_flip_on_top_of_a_turn_is_one_more_flip() -> None:
    images = make_images(count=8)
    turned = run(images, TrainConfig(dihedral=True), draws=dihedral_draws())
    both = run(images, TrainConfig(dihedral=True, hflip=1.0), draws=dihedral_draws())
    assert torch.equal(both, turned.flip(3))


# --- erasing -------------------------------------------------------------------------------------


def test_erased_is_the_mean_colour_and_the_rest_is_untouched() -> None:
    images, draws = make_images(count=16), make_draws(count=16)
    config = TrainConfig(re_prob=0.5)
    hole = choose(config, draws=draws, height=32, width=32).hole
    got, whole = run(images, config, draws=draws), normalize(images, mean=MEAN, std=STD)
    assert hole is not None
    for one, before, box in zip(got, whole, hole.int().tolist(), strict=True):
        top, left, tall, wide = box
        before[:, top : top + tall, left : left + wide] = 0
        assert torch.equal(one, before)
    erased = (hole[:, 2] > 0) & (hole[:, 3] > 0)
    assert 0 < erased.sum() < 16
    assert torch.equal(erased, draws[:, 55] < 0.5)


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_holes_are_distributed_as_timms(size: tuple[int, int]) -> None:
    count, (height, width) = 2000, size
    config = TrainConfig(re_prob=1.0)
    ours = choose(config, draws=make_draws(count=count), height=height, width=width).hole
    random.seed(0)
    timms, theirs = RandomErasing(probability=1.0, device="cpu"), torch.zeros(count, 4)
    for row in theirs:
        rows, columns = torch.nonzero(timms(torch.ones(1, *size))[0] == 0).unbind(1)
        row[:] = torch.stack((rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    theirs[:, 2:] -= theirs[:, :2]
    assert ours is not None
    ours, theirs = (torch.cat((x, traits(x)), dim=1) for x in (ours, theirs))
    four_sigma = 4 * theirs.std(0) * math.sqrt(2 / count)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < four_sigma).all()
    assert ((ours.std(0) / theirs.std(0) - 1).abs() < 0.1).all()


def traits(boxes: Tensor) -> Tensor:
    """Area and the logarithm of the aspect, (N, 2)."""
    tall, wide = boxes[:, 2], boxes[:, 3]
    return torch.stack((tall * wide, torch.log(wide / tall)), dim=1)


# --- the notebook's mistakes ---------------------------------------------------------------------


def test_mistake_2_pixels_are_normalised_exactly_once() -> None:
    images = make_images()
    wanted = TV.normalize(images.permute(0, 3, 1, 2) / 255, MEAN.tolist(), STD.tolist())
    assert_close(normalize(images, mean=MEAN, std=STD), wanted)
    assert_close(run(images, TrainConfig(sharpness=1.0, sharpness_factor=1.0)), wanted)


def test_mistake_3_colour_comes_before_normalisation() -> None:
    """After it, clamping to 0..1 destroyed 71 % of the values even for a factor of 1."""
    images, config = make_images(), TrainConfig(brightness=0.3, contrast=0.3, saturation=0.3)
    middle = torch.full((4, NUM_DRAWS), 0.5)
    assert torch.equal(run(images, config, draws=middle), normalize(images, mean=MEAN, std=STD))


def test_mistake_4_samples_of_one_batch_get_different_parameters() -> None:
    twins = make_images(count=1).expand(2, -1, -1, -1)
    for name in ("brightness", "contrast", "saturation", "hue"):
        first, second = run(twins, TrainConfig(**{name: 0.3}), draws=make_draws(count=2))
        assert not torch.allclose(first, second), name
    chosen = choose(EVERYTHING, draws=make_draws(count=64))
    distinct = [len(column.unique(dim=0)) for column in chosen]
    one_of = {"hflip": 2, "vflip": 2, "sharpness": 2, "eighth": 8}
    for name, found in zip(Parameters._fields, distinct, strict=True):
        # Half of the samples are not degraded, and there are only 41 qualities.
        wanted = one_of.get(name, 15 if name in ("scale", "sigma", "quality", "hole") else 64)
        assert found == wanted or (wanted == 15 and found > 15), name


# --- what is drawn -------------------------------------------------------------------------------


def test_parameters_lie_in_the_ranges_of_the_config() -> None:
    config = TrainConfig(degrees=30.0, brightness=1.0, contrast=0.4, saturation=0.2, hue=0.1)
    draws = torch.cat([make_draws(count=2000), torch.zeros(1, NUM_DRAWS)])
    chosen = choose(config, draws=draws)
    for column, low, high in [
        (chosen.angle, -30, 30),
        (chosen.brightness, 0, 2),
        (chosen.contrast, 0.6, 1.4),
        (chosen.saturation, 0.8, 1.2),
        (chosen.hue, -0.1, 0.1),
    ]:
        slack = 0.01 * (high - low)
        assert low - 1e-6 <= column.min() < low + slack
        assert high - slack < column.max() <= high + 1e-6


def test_degradations_lie_in_the_ranges_of_the_config() -> None:
    config = TrainConfig(
        rescale=1.0, rescale_min=0.4, blur=1.0, blur_sigma=3.0, jpeg=1.0, jpeg_quality=30
    )
    draws = torch.cat([make_draws(count=4000), torch.full((1, NUM_DRAWS), ALMOST_ONE)])
    chosen = choose(config, draws=draws)
    assert chosen.scale is not None and chosen.sigma is not None and chosen.quality is not None
    for column, low, high in [(chosen.scale, 0.4, 1), (chosen.sigma, 0, 3)]:
        slack = 0.01 * (high - low)
        assert low <= column.min() < low + slack
        assert high - slack < column.max() <= high
        assert column.mean() == pytest.approx((low + high) / 2, rel=0.03)
    assert chosen.quality.unique().tolist() == list(range(30, 101))
    assert chosen.quality.mean() == pytest.approx(65, abs=2)
    best = choose(dataclasses.replace(config, jpeg_quality=100), draws=draws).quality
    assert best is not None and (best == 100).all()


def test_probabilities_are_those_of_the_config() -> None:
    config = TrainConfig(hflip=0.5, vflip=0.1, sharpness=0.3, sharpness_factor=2.0)
    chosen = choose(config, draws=make_draws(count=4000))
    assert chosen.hflip.float().mean() == pytest.approx(0.5, abs=0.04)
    assert chosen.vflip.float().mean() == pytest.approx(0.1, abs=0.03)
    assert (chosen.hflip & chosen.vflip).float().mean() == pytest.approx(0.05, abs=0.02)
    worse = choose(
        TrainConfig(rescale=0.1, blur=0.4, jpeg=0.7, re_prob=0.2), draws=make_draws(count=4000)
    )
    assert worse.scale is not None and worse.sigma is not None
    assert worse.quality is not None and worse.hole is not None
    assert (worse.scale < 1).float().mean() == pytest.approx(0.1, abs=0.03)
    assert (worse.sigma > 0).float().mean() == pytest.approx(0.4, abs=0.04)
    assert worse.quality.isfinite().float().mean() == pytest.approx(0.7, abs=0.04)
    assert (worse.hole[:, 2] > 0).float().mean() == pytest.approx(0.2, abs=0.04)
    assert (chosen.sharpness == 2.0).float().mean() == pytest.approx(0.3, abs=0.04)
    assert chosen.sharpness.unique().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("size", [(256, 256), (120, 200)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    count, config = 2000, TrainConfig(random_resized_crop=True)
    ours = choose(config, draws=make_draws(count=count), height=size[0], width=size[1]).box
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blank, scale, ratio = torch.empty(3, *size), [0.08, 1.0], list(boxes.RATIO)
        drawn = [RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(count)]
    theirs = torch.tensor(drawn).float()
    four_sigma = 4 * theirs.std(0) * math.sqrt(2 / count)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < four_sigma).all()
    assert ((ours.std(0) / theirs.std(0) - 1).abs() < 0.1).all()


@pytest.mark.parametrize("size", [(20, 100), (100, 20), (64, 64)])
def test_crop_that_never_fits_falls_back_as_torchvisions(size: tuple[int, int]) -> None:
    """The whole area has one aspect only, the image's own: all ten tries fail."""
    config = TrainConfig(random_resized_crop=True, crop_scale=1.0)
    draws = torch.full((1, NUM_DRAWS), 0.9)  # an aspect of 1.26 in every try
    box = choose(config, draws=draws, height=size[0], width=size[1]).box
    blank, ratio = torch.empty(3, *size), list(boxes.RATIO)
    assert box[0].tolist() == list(RandomResizedCrop.get_params(blank, [1.0, 1.0], ratio))


@pytest.mark.parametrize("size", [33, 224, 517])
def test_largest_draw_reaches_the_far_edge_and_not_beyond(size: int) -> None:
    draws = torch.full((1, NUM_DRAWS), ALMOST_ONE)
    draws[:, : boxes.TRIES], draws[:, boxes.TRIES : 2 * boxes.TRIES] = 0.0, 0.5
    config = TrainConfig(random_resized_crop=True)
    top, left, tall, wide = choose(config, draws=draws, height=size, width=size).box[0].tolist()
    assert (tall, wide) < (size, size)
    assert (top + tall, left + wide) == (size, size)


def test_crop_at_the_edge_of_the_image_has_no_dark_rim() -> None:
    pixels = torch.ones(1, 3, 32, 32)
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    assert_close(warped(pixels, box=box), pixels)


@pytest.mark.parametrize("draw", [0.0, 0.5, ALMOST_ONE])
@pytest.mark.parametrize("size", [(33, 33), (20, 36)])
def test_extreme_draws_stay_inside_the_image(draw: float, size: tuple[int, int]) -> None:
    height, width = size
    draws = torch.full((2, NUM_DRAWS), draw)
    config = EVERYTHING if height == width else EVERYTHING_OBLONG
    chosen = choose(config, draws=draws, height=height, width=width)
    for box in (chosen.box, chosen.hole):
        assert box is not None
        top, left, tall, wide = box.unbind(1)
        assert (top >= 0).all() and (left >= 0).all()
        assert (top + tall <= height).all() and (left + wide <= width).all()
    out = run(make_images(count=2, height=height, width=width), config, draws=draws)
    pixels = out * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5


# --- what the device sees ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [TrainConfig(), TrainConfig(hflip=0.5), TrainConfig(jpeg=0.5), EVERYTHING_OBLONG],
)
def test_output_is_float32_and_channels_last(config: TrainConfig) -> None:
    out = run(make_images(height=20, width=36), config)
    assert out.shape == (4, 3, 20, 36) and out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_read_back_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    images, draws, strong = make_images(), make_draws(), strengths(EVERYTHING)

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a host read makes every step wait for the device")

    reads = ["item", "tolist", "numpy", "cpu", "nonzero"]
    for name in [*reads, "__bool__", "__float__", "__int__", "__index__"]:
        monkeypatch.setattr(Tensor, name, refuse)
    augment(images, draws=draws, strengths=strong, mean=MEAN, std=STD)
    normalize(images, mean=MEAN, std=STD)


def test_every_tensor_lives_on_the_device_of_the_batch() -> None:
    """The meta device refuses a CPU tensor beside it, as a GPU does, and has no values to read."""
    images, draws, mean = (x.to("meta") for x in (make_images(), make_draws(), MEAN))
    strong = strengths(EVERYTHING, device="meta")
    assert augment(images, draws=draws, strengths=strong, mean=mean, std=mean).is_meta


def test_other_strengths_reuse_the_one_graph() -> None:
    """fullgraph refuses a graph break; nothing is generated, for that would take a while."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    fast = compiled(backend=keep)
    images, draws = make_images(), make_draws()
    for share in (0.1, 0.2, 0.3):
        changes: dict[str, Any] = {"degrees": 100 * share, "hue": share, "brightness": share}
        changes |= {"rescale_min": 1 - share, "blur_sigma": 5 * share, "re_prob": share}
        changes |= {"jpeg": share, "jpeg_quality": round(100 * share)}
        config = TrainConfig.from_dict(EVERYTHING.to_dict() | changes)
        strong = strengths(config)
        got = fast(images, draws=draws, strengths=strong, mean=MEAN, std=STD)
        assert_close(got, run(images, config, draws=draws))
    assert len(graphs) == 1


def test_what_cannot_be_compiled_is_not(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        raise OSError("no C++ compiler here")

    torch.compiler.reset()
    fast = compiled(backend=broken)
    images, draws = make_images(), make_draws()
    for _ in range(2):
        got = fast(images, draws=draws, strengths=strengths(EVERYTHING), mean=MEAN, std=STD)
        assert_close(got, run(images, EVERYTHING, draws=draws))
    (said,) = [record for record in caplog.records if record.name == "aiornot.training.augment"]
    assert "no C++ compiler here" in said.getMessage()


def test_a_cpu_compiles_only_when_asked_to() -> None:
    assert transform(torch.device("cpu")) is augment
    assert transform(torch.device("cpu"), compile=True) is compiled()
    assert transform(torch.device("cuda")) is compiled()
    assert transform(torch.device("cuda"), compile=False) is augment


def test_compiled_by_inductor_it_is_the_same_augmentation() -> None:
    torch.compiler.reset()
    images, draws = make_images(), make_draws()
    fast = transform(torch.device("cpu"), compile=True)
    # Without JPEG, where a last bit may become a whole step of quantisation.
    config = dataclasses.replace(EVERYTHING, jpeg=0.0)
    got = fast(images, draws=draws, strengths=strengths(config), mean=MEAN, std=STD)
    torch.testing.assert_close(got, run(images, config, draws=draws), atol=1e-4, rtol=0)

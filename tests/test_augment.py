"""Augmentation: equal to torchvision, exact where it can be, one set of parameters per sample."""

import math
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as TV

from aiornot.config import TrainConfig
from aiornot.training import augment as room
from aiornot.training.augment import NUM_DRAWS, Parameters, augment, normalize, strengths

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
)


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


def parameters(pixels: Tensor, **changes: Any) -> Parameters:
    """Parameters that change nothing, but for the ones given."""
    count, _, height, width = pixels.shape
    ones, nowhere = torch.ones(count), torch.zeros(count, dtype=torch.bool)
    box = torch.tensor([0.0, 0.0, height, width]).expand(count, 4)
    neutral = Parameters(box, 0 * ones, nowhere, nowhere, ones, ones, ones, 0 * ones, ones)
    return neutral._replace(**changes)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# --- each operation is torchvision's -------------------------------------------------------------

COLOUR: list[tuple[Callable[..., Tensor], Callable[..., Tensor], list[float], str]] = [
    (room.adjust_brightness, TV.adjust_brightness, [0.0, 0.6, 1.0, 1.7], "factor"),
    (room.adjust_contrast, TV.adjust_contrast, [0.0, 0.6, 1.0, 1.7], "factor"),
    (room.adjust_saturation, TV.adjust_saturation, [0.0, 0.6, 1.0, 1.7], "factor"),
    (room.adjust_sharpness, TV.adjust_sharpness, [0.0, 0.6, 1.0, 2.5], "factor"),
    (room.shift_hue, TV.adjust_hue, [-0.5, -0.05, 0.0, 0.45], "shift"),
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
    assert torch.equal(room.adjust_sharpness(pixels, factor=torch.full((4,), 2.0)), pixels)


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_crop_equals_torchvision_inside(size: tuple[int, int]) -> None:
    """At the rim ours sees the real neighbour outside the crop, torchvision repeats the edge."""
    pixels = make_smooth(height=size[0], width=size[1])
    box = [3, 9, 30, 32]
    theirs = TV.resized_crop(pixels, *box, size=list(size), antialias=False)
    got = room.warp(pixels, parameters(pixels, box=torch.tensor([box, box]).float()))
    assert_close(got[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2])


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
@pytest.mark.parametrize("angle", [15.0, -30.0, 90.0])
def test_rotation_equals_torchvision_inside(angle: float, size: tuple[int, int]) -> None:
    pixels = make_smooth(height=size[0], width=size[1])
    theirs = TV.rotate(pixels, angle, interpolation=InterpolationMode.BILINEAR)
    got = room.warp(pixels, parameters(pixels, angle=torch.full((2,), angle)))
    assert_close(TV.center_crop(got, [24, 24]), TV.center_crop(theirs, [24, 24]))


def test_one_warp_is_crop_then_rotation_then_flip() -> None:
    """torchvision interpolates twice, hence the tolerance; a wrong order gives 0.15 or more."""
    pixels, box = make_smooth(), [5, 9, 40, 32]
    theirs = TV.resized_crop(pixels, *box, size=[64, 64], antialias=False)
    theirs = TV.rotate(theirs, 20.0, interpolation=InterpolationMode.BILINEAR)
    theirs = TV.horizontal_flip(theirs)
    changes = {"box": torch.tensor([box, box]).float(), "angle": torch.full((2,), 20.0)}
    got = room.warp(pixels, parameters(pixels, hflip=torch.tensor([True, True]), **changes))
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
    assert torch.equal(room.warp(pixels, parameters(pixels)), pixels)
    odd = make_pixels(height=21, width=37)
    assert_close(room.warp(odd, parameters(odd)), odd)


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
    got = room.warp(pixels, parameters(pixels, hflip=some, vflip=others))
    assert_close(got, room.flip(pixels, horizontal=some, vertical=others))


def test_equal_draws_give_equal_batches() -> None:
    images = make_images()
    assert torch.equal(run(images, EVERYTHING), run(images, EVERYTHING))
    assert not torch.equal(
        run(images, EVERYTHING), run(images, EVERYTHING, draws=make_draws(seed=1))
    )


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    images, draws = make_images(), make_draws()
    assert_close(
        run(images[1:2], EVERYTHING, draws=draws[1:2]), run(images, EVERYTHING, draws=draws)[1:2]
    )


def test_one_switch_does_not_move_the_draws_of_another() -> None:
    alone = choose(TrainConfig(brightness=0.2), draws=make_draws())
    assert torch.equal(choose(EVERYTHING, draws=make_draws()).brightness, alone.brightness)


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
    assert distinct == [64, 64, 2, 2, 64, 64, 64, 64, 2]


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


def test_probabilities_are_those_of_the_config() -> None:
    config = TrainConfig(hflip=0.5, vflip=0.1, sharpness=0.3, sharpness_factor=2.0)
    chosen = choose(config, draws=make_draws(count=4000))
    assert chosen.hflip.float().mean() == pytest.approx(0.5, abs=0.04)
    assert chosen.vflip.float().mean() == pytest.approx(0.1, abs=0.03)
    assert (chosen.hflip & chosen.vflip).float().mean() == pytest.approx(0.05, abs=0.02)
    assert (chosen.sharpness == 2.0).float().mean() == pytest.approx(0.3, abs=0.04)
    assert chosen.sharpness.unique().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("size", [(256, 256), (120, 200)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    count, config = 2000, TrainConfig(random_resized_crop=True)
    ours = choose(config, draws=make_draws(count=count), height=size[0], width=size[1]).box
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blank, scale, ratio = torch.empty(3, *size), [0.08, 1.0], list(room.RATIO)
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
    blank, ratio = torch.empty(3, *size), list(room.RATIO)
    assert box[0].tolist() == list(RandomResizedCrop.get_params(blank, [1.0, 1.0], ratio))


@pytest.mark.parametrize("size", [33, 224, 517])
def test_largest_draw_reaches_the_far_edge_and_not_beyond(size: int) -> None:
    draws = torch.full((1, NUM_DRAWS), ALMOST_ONE)
    draws[:, : room.TRIES], draws[:, room.TRIES : 2 * room.TRIES] = 0.0, 0.5
    config = TrainConfig(random_resized_crop=True)
    top, left, tall, wide = choose(config, draws=draws, height=size, width=size).box[0].tolist()
    assert (tall, wide) < (size, size)
    assert (top + tall, left + wide) == (size, size)


def test_crop_at_the_edge_of_the_image_has_no_dark_rim() -> None:
    pixels = torch.ones(1, 3, 32, 32)
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    assert_close(room.warp(pixels, parameters(pixels, box=box)), pixels)


@pytest.mark.parametrize("draw", [0.0, 0.5, ALMOST_ONE])
@pytest.mark.parametrize("size", [(33, 33), (20, 36)])
def test_extreme_draws_stay_inside_the_image(draw: float, size: tuple[int, int]) -> None:
    height, width = size
    draws = torch.full((2, NUM_DRAWS), draw)
    top, left, tall, wide = choose(EVERYTHING, draws=draws, height=height, width=width).box.unbind(
        1
    )
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + tall <= height).all() and (left + wide <= width).all()
    out = run(make_images(count=2, height=height, width=width), EVERYTHING, draws=draws)
    pixels = out * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5


# --- what the device sees ------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(hflip=0.5), EVERYTHING])
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
    compiled = torch.compile(augment, backend=keep, fullgraph=True, dynamic=False)
    images, draws = make_images(), make_draws()
    for share in (0.1, 0.2, 0.3):
        changes = {"degrees": 100 * share, "hue": share, "brightness": share}
        config = TrainConfig.from_dict(EVERYTHING.to_dict() | changes)
        strong = strengths(config)
        got = compiled(images, draws=draws, strengths=strong, mean=MEAN, std=STD)
        assert_close(got, run(images, config, draws=draws))
    assert len(graphs) == 1

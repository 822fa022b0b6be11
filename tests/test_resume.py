"""Whatever is switched on and wherever it stopped: a resumed run is the run it would have been.

The configurations are drawn at random over all that ``TrainConfig`` offers, with fixed seeds.
"""

import dataclasses
import random
from typing import Any

import pytest
import torch
from conftest import follow
from test_loop import assert_same_checkpoint, timeless

from aiornot.config import TICKS, TrainConfig

CASES = range(9)

MODELS = ("test_byobnet", "test_efficientnet", "test_vit", "test_convnext", "test_resnet")
NO_PATCHES = ("test_byobnet", "test_efficientnet", "test_resnet")
"""Models that may keep every pixel in their stem, and whose head may grow wider."""

OPTIONAL: dict[str, tuple[Any, ...]] = {
    "drop_rate": (0.2, 0.5),
    "drop_path_rate": (0.1, 0.3),
    "micro_batch_size": (4, 7),
    "train_fraction": (0.97,),
    "layer_decay": (0.6, 0.9),
    "unfreeze": (0.3, 0.8),
    "clip_grad": (0.1, 1.0),
    "label_smoothing": (0.1, 0.3),
    "ema_decay": (0.5, 0.99),
    "precision": ("bf16",),
    "hflip": (0.5,),
    "vflip": (0.5,),
    "dihedral": (True,),
    "degrees": (20.0,),
    "random_resized_crop": (True,),
    "brightness": (0.2,),
    "contrast": (0.2,),
    "saturation": (0.2,),
    "hue": (0.1,),
    "sharpness": (0.5,),
    "rescale": (0.5,),
    "blur": (0.5,),
    "jpeg": (0.5,),
    "re_prob": (0.5,),
}
"""What is off or plain by default, and values that switch it on."""

ALWAYS: dict[str, tuple[Any, ...]] = {
    # 99 images in batches of 12 or 14 are 8 or 7 steps: most ticks end in the midst of an epoch.
    "batch_size": (12, 14),
    "epochs": (3, 4),
    "lr": (1e-3, 1e-2),
    "pct_start": (0.1, 0.3, 0.7),
    "weight_decay": (0.0, 0.1),
    "seed": (0, 7, 2**31 - 1),
    "crop_scale": (0.3, 0.8),
    "sharpness_factor": (0.5, 2.0),
    "rescale_min": (0.3, 0.7),
    "blur_sigma": (0.5, 2.0),
    "jpeg_quality": (30, 80),
}

NOT_DRAWN = {"pretrained", "weights"}
"""What the weights are before the first step is no matter of resuming."""


def drawn(case: int) -> tuple[dict[str, Any], int]:
    """Return a configuration, and the tick after which it is interrupted."""
    chance = random.Random(case)
    values = {name: chance.choice(options) for name, options in ALWAYS.items()}
    for name, options in OPTIONAL.items():
        if chance.random() < 0.6:
            values[name] = chance.choice(options)
    values |= {"model": MODELS[case % len(MODELS)], "pretrained": False}
    poolings = ["avg", "max", "avgmax"]
    if values["model"] in NO_PATCHES:
        poolings.append("catavgmax")
        if chance.random() < 0.5:
            values["stem_stride"] = 1
    values["global_pool"] = chance.choice(poolings)
    return values, chance.randint(1, TICKS - 1)


def test_each_hyper_parameter_takes_more_than_one_value_in_these_tests():
    configs = [TrainConfig.from_dict(drawn(case)[0]) for case in CASES]
    for field in dataclasses.fields(TrainConfig):
        values = {getattr(config, field.name) for config in configs}
        assert len(values) > 1 or field.name in NOT_DRAWN, (
            f"{field.name} is always {values}: give it a place in OPTIONAL or ALWAYS"
        )


@pytest.mark.timeout(180)  # seconds each, and many more where the cores are shared
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(easy, tmp_path, case):
    values, tick = drawn(case)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    reports = follow(values, easy, out=straight)
    assert [one["diverged"] for one in reports] == [0.0] * TICKS
    torch.manual_seed(case + 1)  # another process has other generators
    again = follow(values, easy, checkpoint=straight / str(tick), out=resumed)
    assert timeless(again) == timeless(reports[tick - 1 :])
    assert len(list(resumed.iterdir())) == TICKS - tick
    for folder in resumed.iterdir():
        assert_same_checkpoint(folder, straight / folder.name)

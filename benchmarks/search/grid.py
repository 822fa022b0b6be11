"""The grid that is trained, and where a ``TrainConfig`` of a stage lies on it.

Nothing else knows how the house's hyper-parameters and those of the small networks correspond.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MODELS = {
    "resnet18.a1_in1k": 0,
    "resnet50.a1_in1k": 1,
    "efficientnet_b1.ra4_e3600_r240_in1k": 2,
    "tf_efficientnetv2_b0.in1k": 3,
    "regnety_004.tv2_in1k": 4,
    "convnext_nano.in12k_ft_in1k": 5,
    "convnext_tiny.fb_in22k": 6,
    "convnext_small.fb_in22k": 7,
}
"""Every backbone of ``tune_spaces`` stands for one network of a task, fixed before any result."""

LR_SCALE = 10.0
"""Small networks want higher learning rates than a pretrained backbone: 1e-5 is 1e-4 here."""

DECAY_SCALE = 5.0

AXES = ("model", "augmentation", "epochs", "lr", "weight_decay", "label_smoothing", "layer_decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The values of each axis, as a stage would say them."""

    num_models: int = 8
    augmentations: tuple[str, ...] = ("none", "flip", "light", "both")
    epochs: tuple[int, ...] = (4, 8, 16)
    # Two decades and a half beyond the stages' range are for a space twice as wide.
    lrs: tuple[float, ...] = tuple(
        10.0**power for power in (-6.5, -5.75, -5, -4.5, -4, -3.5, -3, -2.5, -2, -1.25, -0.5)
    )
    weight_decays: tuple[float, ...] = (0.004, 0.06)
    label_smoothings: tuple[float, ...] = (0.02, 0.08)
    layer_decays: tuple[float, ...] = (0.7, 0.9)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values there are on each axis of ``AXES``."""
        groups = (self.num_models, len(self.augmentations), len(self.epochs))
        return *groups, *(len(values) for values in self._inner())

    def _inner(self) -> tuple[tuple[float, ...], ...]:
        return self.lrs, self.weight_decays, self.label_smoothings, self.layer_decays

    def recipes(self) -> Iterator[tuple[float, ...]]:
        """Yield learning rate, decay, smoothing and layer decay of what is trained in one go."""
        return itertools.product(*self._inner())

    def cell(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the place of a configuration: the nearest value on each axis."""
        return (
            MODELS[config["model"]] % self.num_models,
            self._augmentation(config) % len(self.augmentations),
            _nearest(self.epochs, config["epochs"]),
            _nearest(self.lrs, config["lr"]),
            _nearest(self.weight_decays, config["weight_decay"]),
            _nearest(self.label_smoothings, config["label_smoothing"], log=False),
            _nearest(self.layer_decays, config["layer_decay"], log=False),
        )

    def _augmentation(self, config: Mapping[str, Any]) -> int:
        """Return 0 to 3: whether it mirrors, and whether it changes the brightness much."""
        return int(config["hflip"] >= 0.25) + 2 * int(config["brightness"] >= 0.2)

    def num_epochs(self, config: Mapping[str, Any]) -> int:
        """Return the epochs that were trained for a configuration, and are paid for."""
        return self.epochs[_nearest(self.epochs, config["epochs"])]


IN_RANGE = tuple(10.0**power for power in (-5, -4.5, -4, -3.5, -3, -2.5, -2))

SMALL = Grid(num_models=4, augmentations=("none", "flip"), lrs=IN_RANGE)
"""A sixth of the trainings: for tables of which only the methods are compared."""

QUICK = Grid(
    num_models=3,
    augmentations=("none",),
    lrs=IN_RANGE,
    weight_decays=(0.06,),
    label_smoothings=(0.02,),
    layer_decays=(0.7, 0.9),
)
"""For tests: seconds instead of minutes."""


def _nearest(values: Sequence[float], wanted: float, *, log: bool = True) -> int:
    def scale(value: float) -> float:
        return math.log(value) if log else value

    # A decay of 0 has no logarithm; it is as far below as can be.
    wanted = max(wanted, 1e-9) if log else wanted

    def away(index: int) -> tuple[float, int]:
        # Rounded, so that of two values as near, such as those about .05, the later one is taken.
        return round(abs(scale(values[index]) - scale(wanted)), 9), -index

    return min(range(len(values)), key=away)

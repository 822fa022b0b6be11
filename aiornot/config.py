"""Every hyper-parameter of one training run, flat, frozen and checked.

``TrainConfig()`` is the baseline of the project: a pretrained ResNet-18 with every augmentation
off. ``aiornot train --set lr=3e-4`` changes one field.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

Pooling = Literal["avg", "max", "avgmax", "catavgmax"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]

TICKS = 16
"""Reports per trial, at equal shares of the trial's own schedule."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where and how to mend it."""


class WorkError(RuntimeError):
    """The work itself failed or was interrupted; the message says what is kept and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One configuration. Names are those of the timm or torch argument a value is passed to."""

    model: str = "resnet18.a1_in1k"
    """Full timm name, ``arch.tag``: a bare name may mean other weights in the next release."""
    pretrained: bool = True
    """Start from timm's pretrained weights (fetched once, then cached by timm)."""
    global_pool: Pooling = "avg"
    """Pooling before the head. ``catavgmax`` exists only where the head may grow wider."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    drop_path_rate: float = 0.0
    """Stochastic depth; refused by the few models that have none."""
    stem_stride: Literal[1] | None = None
    """1: the first convolution keeps every pixel, at four times the cost; None: the model's own."""
    weights: str | None = None
    """A safetensors file to start from instead of timm's download, for machines without network."""

    epochs: int = 5
    batch_size: int = 32
    """Global: the number of workers must not change the mathematics."""
    micro_batch_size: int | None = None
    """Images in memory at once, of all workers together; gradients add up to ``batch_size``."""
    train_fraction: float = 1.0
    """The first share of the train split, the same images for every trial."""
    lr: float = 1e-3
    """Peak learning rate of the one-cycle schedule."""
    pct_start: float = 0.3
    """Share of the steps in which the learning rate rises (OneCycleLR)."""
    weight_decay: float = 0.03
    layer_decay: float = 1.0
    """Factor on ``lr`` per layer group below the head; 1 treats all alike."""
    unfreeze: float = 0.0
    """Share of the steps in which the model thaws from head to stem; 0: all learns at once."""
    clip_grad: float | None = None
    """Largest gradient norm, or None."""
    label_smoothing: float = 0.05
    ema_decay: float | None = None
    """Decay per step of the averaged weights that are evaluated and kept, or None."""
    precision: Precision = "auto"
    """auto: bf16 where the GPU has it, else fp16 with a gradient scaler; fp32 on a CPU."""
    seed: int = 0

    hflip: float = 0.0
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    dihedral: bool = False
    """One of the eight flips and quarter turns, all alike; nothing is resampled."""
    degrees: float = 0.0
    """Rotation by up to this many degrees either way."""
    random_resized_crop: bool = False
    """Crop of random area and aspect, scaled back to the full size."""
    crop_scale: float = 0.08
    """Smallest area of that crop as a share of the image."""
    brightness: float = 0.0
    """Factor drawn from [1 - b, 1 + b]."""
    contrast: float = 0.0
    """Factor drawn from [1 - c, 1 + c]."""
    saturation: float = 0.0
    """Factor drawn from [1 - s, 1 + s]."""
    hue: float = 0.0
    """Shift drawn from [-h, h] of the colour circle."""
    sharpness: float = 0.0
    """Probability of sharpening by ``sharpness_factor``."""
    sharpness_factor: float = 1.5
    rescale: float = 0.0
    """Probability of scaling down and up again, which is what a copy of a copy goes through."""
    rescale_min: float = 0.5
    """Smallest scale; drawn from [s, 1]."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: float = 1.0
    """Largest standard deviation in pixels; drawn from [0, s]."""
    jpeg: float = 0.0
    """Probability of JPEG compression."""
    jpeg_quality: int = 60
    """Lowest quality; drawn from [q, 100]."""
    re_prob: float = 0.0
    """Probability of erasing a rectangle of 2 % to 33 % of the image (timm's random erasing)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name))
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name}={value!r} must lie between {low:g} and {high:g}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Build from plain values; an unknown name is refused with the nearest known one."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise InputError(f"unknown hyper-parameter {name!r}{nearest(name, names)}")
        return cls(**values)

    @classmethod
    def from_settings(cls, settings: list[str]) -> "TrainConfig":
        """Build from ``KEY=VALUE`` texts, as ``aiornot train --set`` gives them."""
        values: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise InputError(f"--set {setting!r}: write KEY=VALUE, for example --set lr=3e-4")
            values[name] = parse_value(name, text)
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, 10_000),
    "batch_size": (1, 65_536),
    "train_fraction": (1e-6, 1.0),
    "lr": (1e-12, 1e3),
    "pct_start": (0.01, 0.99),
    "weight_decay": (0.0, 10.0),
    "layer_decay": (1e-3, 1.0),
    "clip_grad": (1e-9, math.inf),
    "label_smoothing": (0.0, 0.99),
    "ema_decay": (0.0, 1.0),
    "drop_rate": (0.0, 0.99),
    "drop_path_rate": (0.0, 0.99),
    "seed": (0, 2**31 - 1),
    "hflip": (0.0, 1.0),
    "vflip": (0.0, 1.0),
    "degrees": (0.0, 180.0),
    "crop_scale": (1e-3, 1.0),
    "brightness": (0.0, 1.0),
    "contrast": (0.0, 1.0),
    "saturation": (0.0, 1.0),
    "hue": (0.0, 0.5),
    "sharpness": (0.0, 1.0),
    "sharpness_factor": (0.0, 10.0),
    "micro_batch_size": (1, 65_536),
    "unfreeze": (0.0, 1.0),
    "rescale": (0.0, 1.0),
    "rescale_min": (0.05, 1.0),
    "blur": (0.0, 1.0),
    "blur_sigma": (0.0, 5.0),
    "jpeg": (0.0, 1.0),
    "jpeg_quality": (1, 100),
    "re_prob": (0.0, 1.0),
}
"""Closed intervals; less than any sensible value stands for an open bound at zero."""


def nearest(name: str, known: list[str]) -> str:
    """Return ``; did you mean 'x'?`` when a known name is close, else the list of known names."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}"


def parse_value(name: str, text: str) -> Any:
    """Read the text of one hyper-parameter as its declared type."""
    known = typing.get_type_hints(TrainConfig)
    if name not in known:
        raise InputError(f"unknown hyper-parameter {name!r}{nearest(name, list(known))}")
    options = _options(known[name])
    if text.lower() == "none" and type(None) in options:
        return None
    if bool in options:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise InputError(f"{name}={text}: write true or false")
    for value in (value for option in options for value in typing.get_args(option)):
        if text == str(value):
            return value
    for kind in (int, float):
        if kind in options:
            try:
                return kind(text)
            except ValueError:
                word = "a whole number" if kind is int else "a number"
                raise InputError(f"{name}={text}: expected {word}") from None
    return text


def _options(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return typing.get_args(annotation)
    return (annotation,)


@functools.cache
def _annotations() -> dict[str, Any]:
    """Return the type of every field; asking Python anew was 85 % of the time of a search."""
    return typing.get_type_hints(TrainConfig)


def _check_type(name: str, value: object) -> None:
    """Refuse "False" for a bool and "1e-3" for a number; both were silent bugs elsewhere."""
    options = _options(_annotations()[name])
    if not any(_is_a(value, option) for option in options):
        raise InputError(f"{name}={value!r} must be {' or '.join(map(_describe, options))}")


def _is_a(value: object, option: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return value in typing.get_args(option)
    # bool is an int to Python, so it is asked for by name; an int is a fine float.
    if isinstance(value, bool) or option is bool:
        return isinstance(value, bool) and option is bool
    if option is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, option)


def _describe(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(option)))}"
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
    return words.get(option, "none")

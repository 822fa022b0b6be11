"""From a configuration to a timm model, its head, its parameter groups, optimizer and schedule."""

import dataclasses
import difflib
import math
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from aiornot.config import InputError, TrainConfig
from aiornot.training import thaw, weights

HEAD_STD = 0.01
"""timm's own initialisation of a one-output EfficientNet head starts at a loss of 5, not ln 2."""


def build(config: TrainConfig, *, size: int, prior: float = 0.5) -> nn.Module:
    """Create the model with one logit, for images of ``size`` x ``size`` pixels.

    Args:
        config: Its fields up to ``weights`` are used.
        size: Side of the images in pixels; fixed-size models (ViT, Swin) are built for it.
        prior: Share of generated images, from which the head's bias starts.

    Raises:
        InputError: Unknown name, unsupported pooling or stem, or weights that cannot be had.
    """
    _check_name(config.model)
    with weights.source(config) as overlay:
        model = _create(config, size=size, pretrained=bool(overlay) or config.pretrained, **overlay)
    if config.weights is None:
        settings: Any = model.pretrained_cfg
        settings.pop("file", None)  # a place in the cache
    _init_head(model, prior)
    return model


def skeleton(config: TrainConfig, *, size: int) -> nn.Module:
    """Create the model as ``build`` does, for weights that are loaded next instead of its first."""
    return build(dataclasses.replace(config, pretrained=False, weights=None), size=size)


def check(config: TrainConfig, *, size: int) -> None:
    """Refuse a model that cannot be built, without allocating or fetching any weight.

    Raises:
        InputError: As ``build``, or timm does not know the stages that ``unfreeze`` needs.
    """
    _check_name(config.model)
    weights.check(config)
    with torch.device("meta"):
        model = _create(config, size=size, pretrained=False)
        if config.global_pool == "catavgmax" and (config.pretrained or config.weights):
            plain = dataclasses.replace(config, global_pool="avg")
            _check_widths(model, _create(plain, size=size, pretrained=False), config)
    if config.unfreeze:
        thaw.parts(model)


def _create(config: TrainConfig, *, size: int, pretrained: bool, **overlay: Any) -> nn.Module:
    options: dict[str, Any] = {"global_pool": config.global_pool, "drop_rate": config.drop_rate}
    if config.drop_path_rate:  # a few models do not know the argument
        options["drop_path_rate"] = config.drop_path_rate
    if _has_fixed_size(config.model):
        options["img_size"] = size
    try:
        model = timm.create_model(
            config.model,
            pretrained=pretrained,
            num_classes=1,
            pretrained_cfg_overlay=overlay,
            **options,
        )
    except InputError:
        raise
    except Exception as error:  # of the network's client, too
        if pretrained and not isinstance(error, AssertionError | TypeError | ValueError):
            raise weights.refusal(config, weights.first_line(error)) from None
        raise InputError(
            f"model={config.model!r} cannot be built with global_pool={config.global_pool!r}, "
            f"drop_path_rate={config.drop_path_rate:g} at {size} px: {error}"
        ) from None
    if config.stem_stride:
        _widen_stem(model, config.model)
    return model


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; see timm.list_models()"
        raise InputError(f"model={name!r}: timm knows no {architecture!r}{hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture + ".*")]
    if tag and tag not in tags:
        raise InputError(f"model={name!r}: {architecture} has no weights {tag!r}; it has {tags}")


def _has_fixed_size(name: str) -> bool:
    settings = timm.get_pretrained_cfg(name.partition(".")[0])
    return bool(settings and settings.fixed_input_size)


def _widen_stem(model: nn.Module, name: str) -> None:
    """Give the first convolution stride 1: no trace of a generator is lost to down-sampling.

    The weights keep their shapes; every feature map is twice as wide and high.
    """
    named = model.pretrained_cfg["first_conv"]  # type: ignore[index]
    # Parallel branches, as in RepVGG, are several.
    names = [named] if isinstance(named, str) else list(named or ())
    convolutions = [model.get_submodule(each) for each in names]
    reason = _why_no_stem(convolutions, has_fixed_size=_has_fixed_size(name))
    if reason:
        raise InputError(
            f"model={name!r} cannot have stem_stride=1: {reason}; it is for models that begin with "
            "an overlapping convolution of stride 2: ResNet, RegNet, MobileNet, EfficientNet"
        )
    for convolution in convolutions:
        convolution.stride = (1, 1)  # type: ignore[assignment]


def _why_no_stem(convolutions: list[nn.Module], *, has_fixed_size: bool) -> str | None:
    known = [each for each in convolutions if isinstance(each, nn.Conv2d)]
    if not known or len(known) < len(convolutions):
        return "timm names no first convolution"
    kernel, stride = known[0].kernel_size[0], known[0].stride[0]
    if stride == 1:
        return "its first convolution keeps every pixel already"
    if kernel <= stride:
        return f"it cuts the image into patches of {kernel} x {kernel} pixels"
    if stride != 2:
        return f"its first convolution has stride {stride}"
    if has_fixed_size:
        return "its attention is built for one size of its feature maps"
    return None


def _check_widths(wide: nn.Module, plain: nn.Module, config: TrainConfig) -> None:
    """Refuse a doubled width that reaches beyond the head, where pretrained weights do not fit."""
    shapes, head = wide.state_dict(), weights.classifiers(wide)
    for name, tensor in plain.state_dict().items():
        if shapes[name].shape != tensor.shape and name.rpartition(".")[0] not in head:
            raise InputError(
                f"model={config.model!r} cannot have global_pool={config.global_pool!r} with "
                f"pretrained weights: theirs of {name} are made for half the width; use avg or max"
            )


def _init_head(model: nn.Module, prior: float) -> None:
    for name in weights.classifiers(model):
        layer: Any = model.get_submodule(name)
        nn.init.normal_(layer.weight, std=HEAD_STD)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation (3,) the weights were trained with."""
    settings = resolve_model_data_config(model)
    return tuple(settings["mean"]), tuple(settings["std"])


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Split the parameters by weight decay and depth, each parameter in exactly one group.

    timm leaves the layer's factor in ``lr_scale``, which only timm's own schedulers read: torch's
    would train every layer at the full rate, so it goes into ``lr`` here (timm PR 2532).
    """
    # What the model itself wants spared, such as position embeddings; timm's factory asks too.
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    decay: dict[str, Any] = {"weight_decay": config.weight_decay, "no_weight_decay_list": spared}
    if config.layer_decay == 1.0:
        groups = param_groups_weight_decay(model, **decay)
    else:
        groups = param_groups_layer_decay(model, layer_decay=config.layer_decay, **decay)
    return [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": config.lr * group.get("lr_scale", 1.0),
        }
        for group in groups
        if group["params"]
    ]


def optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    # Fused: one kernel per step, and under fp16 it takes found_inf as a device tensor (no sync).
    return torch.optim.AdamW(parameter_groups(model, config), fused=True)


def schedule(
    adamw: torch.optim.AdamW, config: TrainConfig, *, num_steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """One cycle over ``num_steps`` optimizer steps, each group to its own peak."""
    peaks = [group["lr"] for group in adamw.param_groups]
    # At least one step rises: a share of exactly one step divides by zero in torch, and a smaller
    # one begins at the peak.
    rising = max(config.pct_start, 2 / num_steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        adamw, max_lr=peaks, total_steps=num_steps, pct_start=rising
    )

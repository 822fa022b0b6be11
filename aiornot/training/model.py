"""From a configuration to a timm model, its head, its parameter groups, optimizer and schedule."""

import difflib
import math
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from aiornot.config import InputError, TrainConfig

HEAD_STD = 0.01
"""timm's own initialisation of a one-output EfficientNet head starts at a loss of 5, not ln 2."""


def build(config: TrainConfig, *, size: int, prior: float = 0.5) -> nn.Module:
    """Create the model with one logit, for images of ``size`` x ``size`` pixels.

    Args:
        config: The fields ``model``, ``pretrained``, ``global_pool`` and the drop rates are used.
        size: Side of the images in pixels; fixed-size models (ViT, Swin) are built for it.
        prior: Share of generated images, from which the head's bias starts.

    Raises:
        InputError: Unknown name, unsupported pooling, or weights that cannot be fetched.
    """
    model = _create(config, size=size, pretrained=config.pretrained)
    _init_head(model, prior)
    return model


def check(config: TrainConfig, *, size: int) -> None:
    """Refuse a model that cannot be built, without allocating or fetching any weight.

    Raises:
        InputError: As ``build``.
    """
    with torch.device("meta"):
        _create(config, size=size, pretrained=False)


def _create(config: TrainConfig, *, size: int, pretrained: bool) -> nn.Module:
    _check_name(config.model)
    options: dict[str, Any] = {"global_pool": config.global_pool, "drop_rate": config.drop_rate}
    if config.drop_path_rate:  # a few models do not know the argument
        options["drop_path_rate"] = config.drop_path_rate
    if _has_fixed_size(config.model):
        options["img_size"] = size
    try:
        return timm.create_model(config.model, pretrained=pretrained, num_classes=1, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f"model={config.model!r} cannot be built with global_pool={config.global_pool!r}, "
            f"drop_path_rate={config.drop_path_rate:g} at {size} px: {error}"
        ) from None
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the pretrained weights of {config.model!r} cannot be had ({_first_line(error)}); "
            "check the network and HF_HOME, or train from scratch with --set pretrained=false"
        ) from None


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


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _init_head(model: nn.Module, prior: float) -> None:
    head = model.get_classifier()  # type: ignore[operator]
    layers = [module for module in head.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert layers, f"no linear layer in the head {head}"
    nn.init.normal_(layers[-1].weight, std=HEAD_STD)
    if layers[-1].bias is not None:
        nn.init.constant_(layers[-1].bias, math.log(prior / (1 - prior)))


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

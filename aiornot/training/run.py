"""A run: everything that one training holds between two steps, and how it is made."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from aiornot.config import TICKS, InputError, TrainConfig
from aiornot.training import augment, loader, model, ranks, thaw


@dataclasses.dataclass(kw_only=True)
class Run:
    """Everything that one run holds between two ticks."""

    config: TrainConfig
    data: Path
    device: torch.device
    train_split: loader.Split
    val_split: loader.Split
    module: nn.Module
    """The bare model; ``parallel`` may wrap it."""
    parallel: nn.Module
    ema: ModelEmaV3 | None
    thawing: thaw.Thaw
    adamw: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    dtype: torch.dtype
    transform: augment.Transform
    strengths: augment.Strengths
    mean: torch.Tensor
    std: torch.Tensor
    steps_per_epoch: int
    parameters: list[nn.Parameter]
    micro_batch: int
    """Images of this rank in memory at once."""
    tick: int = 0
    best: float = 0.0
    best_tick: int = 0
    reports: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """What was reported at each tick so far."""

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def end_of(self, tick: int) -> int:
        """The optimizer step at which a tick ends."""
        return math.ceil(self.num_steps * tick / TICKS)


def start(
    config: TrainConfig,
    data: Path,
    device: torch.device,
    *,
    is_fresh: bool = True,
    compile_augment: bool | None = None,
) -> Run:
    """Make a run at its first step; with ``is_fresh`` off, its weights are still to be read.

    Raises:
        InputError: The configuration does not fit the data, the model or the device.
    """
    torch.manual_seed(config.seed)
    _prepare_backend(device)
    train_split = loader.Split(data, "train", device=device, fraction=config.train_fraction)
    val_split = loader.Split(data, "val", device=device)
    _check_sizes(config, train_split, val_split, data)
    prior = float(train_split.labels.mean())
    if is_fresh:
        module = model.build(config, size=train_split.size, prior=prior)
    else:  # a resumed run needs neither the network nor the file of the first weights
        module = model.skeleton(config, size=train_split.size)
    module = module.to(device).to(memory_format=torch.channels_last)
    steps_per_epoch = len(train_split) // config.batch_size
    adamw = model.optimizer(module, config)
    dtype = resolve_precision(config, device)
    mean, std = model.normalization(module)
    return Run(
        config=config,
        data=data,
        device=device,
        train_split=train_split,
        val_split=val_split,
        module=module,
        parallel=ranks.wrap(module, device),
        ema=ModelEmaV3(module, decay=config.ema_decay) if config.ema_decay else None,
        # Made after the optimizer: its groups are those of a model of which all learns.
        thawing=thaw.Thaw(module, config, num_steps=steps_per_epoch * config.epochs),
        adamw=adamw,
        schedule=model.schedule(adamw, config, num_steps=steps_per_epoch * config.epochs),
        # 500 and not torch's 2000: a trial has a few thousand steps to recover from a back-off.
        scaler=torch.amp.GradScaler(
            device.type, enabled=dtype == torch.float16, growth_interval=500
        ),
        dtype=dtype,
        transform=augment.transform(device, compile=compile_augment),
        strengths=augment.strengths(config, device=device),
        mean=torch.tensor(mean, device=device),
        std=torch.tensor(std, device=device),
        steps_per_epoch=steps_per_epoch,
        parameters=[p for group in adamw.param_groups for p in group["params"]],
        micro_batch=max(1, (config.micro_batch_size or config.batch_size) // ranks.world_size()),
    )


@contextmanager
def aside(config: TrainConfig, data: Path, device: torch.device, *, steps: int) -> Iterator[Run]:
    """Give a run to be measured and thrown away; random state is then what it was before.

    Args:
        config: Of which only ``epochs`` and ``unfreeze`` change: all of the model learns.
        data: A prepared file.
        device: Where to train.
        steps: How many its schedule must at least have.

    Raises:
        InputError: As ``start``.
    """
    longer = dataclasses.replace(config, epochs=steps + 1, unfreeze=0.0)
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with torch.random.fork_rng(devices):  # start seeds all of them
        yield start(longer, data, device)


def _prepare_backend(device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are static
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def check_steps(config: TrainConfig, *, num_train: int, data: Path) -> None:
    """Refuse a schedule that is shorter than its reports.

    Raises:
        InputError: As said.
    """
    steps = num_train // config.batch_size * config.epochs
    if steps < TICKS:
        raise InputError(
            f"{data}: {num_train} training images in batches of {config.batch_size} for "
            f"{config.epochs} epochs are {steps} steps, fewer than the {TICKS} reports of a trial; "
            "lower batch_size or raise epochs or train_fraction"
        )


def _check_sizes(
    config: TrainConfig, train_split: loader.Split, val_split: loader.Split, data: Path
) -> None:
    check_steps(config, num_train=len(train_split), data=data)
    if config.batch_size % ranks.world_size():
        raise InputError(
            f"batch_size={config.batch_size} does not divide among {ranks.world_size()} workers"
        )
    for name, split in (("train", train_split), ("val", val_split)):
        if not len(split) or split.labels.min() == split.labels.max():
            raise InputError(f"{data}: the {name} split needs images of both classes")


def resolve_precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Return the autocast dtype.

    Raises:
        InputError: fp16 without a GPU.
    """
    if config.precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if _has_bf16() else torch.float16
    if config.precision == "fp16" and device.type != "cuda":
        raise InputError("precision='fp16' needs a GPU; use auto, fp32 or bf16 here")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.precision]


def _has_bf16() -> bool:
    # Emulated on a T4 it "is supported", and slower than fp32.
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))

"""The training loop: one configuration on one device, or as one of several ranks.

It knows neither Ray nor W&B: two values and one function cross the seam of ``train``.
``aiornot train --set lr=3e-4`` runs it alone.
"""

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from aiornot.config import TICKS, InputError, TrainConfig, WorkError
from aiornot.data import hdf5
from aiornot.training import augment, loader, metrics, model, thaw

Report = Callable[[dict[str, float], Path | None], None]

WEIGHTS = "model.safetensors"
STATE = "state.pt"
METRICS = "metrics.json"
DESCRIPTION = "training.json"

EVAL_BATCH = 4
"""Evaluation holds no activations for a backward pass: its batches may be this much larger."""


def train(
    config: TrainConfig,
    *,
    data: Path,
    device: torch.device,
    report: Report,
    checkpoint: Path | None = None,
) -> None:
    """Fine-tune one configuration.

    Works alone or as one of several ranks: if a process group is initialised, it is used.
    ``report`` is called by every rank at each of 16 ticks, with the metrics and (rank 0 only) a
    folder that holds the checkpoint; the folder is gone when ``report`` returns. It may not return
    at all if the trial is stopped. A resumed run first repeats the report of its checkpoint,
    without a folder: so a tick whose report was lost after its checkpoint was kept is not missing.

    A loss that is no longer finite ends the run with ``diverged`` 1 and the worst score, 0.

    Args:
        config: The hyper-parameters.
        data: A file made by ``aiornot prepare``.
        device: Where to train.
        report: Receives metrics such as ``val/auroc`` and the checkpoint folder.
        checkpoint: A folder once given to ``report``, to go on from.

    Raises:
        InputError: The configuration does not fit the data, the model or the checkpoint.
    """
    run = _start(config, data, device, is_fresh=checkpoint is None)
    if checkpoint is not None:
        _resume(run, checkpoint)
        report(dict(run.reported), None)
    while run.tick < TICKS and not run.reported.get("diverged"):
        started = time.perf_counter()
        losses, logits, labels = _train_tick(run)
        values = _measure(run, losses, logits, labels)
        run.reported = values | {"seconds": time.perf_counter() - started}
        with _checkpoint(run) as folder:
            report(dict(run.reported), folder)


@dataclasses.dataclass(kw_only=True)
class _Run:
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
    schedule: torch.optim.lr_scheduler.OneCycleLR
    scaler: torch.amp.GradScaler
    dtype: torch.dtype
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
    reported: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def end_of(self, tick: int) -> int:
        """The optimizer step at which a tick ends."""
        return math.ceil(self.num_steps * tick / TICKS)


def _start(config: TrainConfig, data: Path, device: torch.device, *, is_fresh: bool = True) -> _Run:
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
    return _Run(
        config=config,
        data=data,
        device=device,
        train_split=train_split,
        val_split=val_split,
        module=module,
        parallel=_wrap(module, device),
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
        strengths=augment.strengths(config, device=device),
        mean=torch.tensor(mean, device=device),
        std=torch.tensor(std, device=device),
        steps_per_epoch=steps_per_epoch,
        parameters=[p for group in adamw.param_groups for p in group["params"]],
        micro_batch=max(1, (config.micro_batch_size or config.batch_size) // world_size()),
    )


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
    if config.batch_size % world_size():
        raise InputError(
            f"batch_size={config.batch_size} does not divide among {world_size()} workers"
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


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _wrap(module: nn.Module, device: torch.device) -> nn.Module:
    if world_size() == 1:
        return module
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


def _train_tick(run: _Run) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take the steps up to the next tick; nothing in it waits for the device.

    Returns:
        Mean loss (), and logits and labels (n,) of the images trained on by this rank.
    """
    run.parallel.train()
    first, last = run.end_of(run.tick), run.end_of(run.tick + 1)
    loss_sum = torch.zeros((), device=run.device)
    logits, labels = [], []
    for step, images, targets in _batches(run, first, last):
        if run.thawing.at(step):
            run.parallel = _wrap(run.module, run.device)
        loss, output = _step(run, step, images, targets)
        loss_sum += loss
        logits.append(output)
        labels.append(targets)
    run.tick += 1
    return loss_sum / (last - first), torch.cat(logits), torch.cat(labels)


def _batches(run: _Run, first: int, last: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (step, images, labels) of this rank for the optimizer steps first .. last - 1."""
    for epoch in range(first // run.steps_per_epoch, math.ceil(last / run.steps_per_epoch)):
        start = epoch * run.steps_per_epoch
        steps = range(max(first, start), min(last, start + run.steps_per_epoch))
        rows = loader.shuffled(
            len(run.train_split), run.config.batch_size, seed=run.config.seed, epoch=epoch
        )
        mine = [rows[step - start][rank() :: world_size()] for step in steps]
        for step, (images, labels) in zip(steps, run.train_split.batches(mine), strict=True):
            yield step, images, labels


def _step(
    run: _Run, step: int, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    config = run.config
    inputs = augment.augment(
        images,
        draws=_draws(run, step),
        strengths=run.strengths,
        mean=run.mean,
        std=run.std,
    )
    targets = labels * (1 - config.label_smoothing) + config.label_smoothing / 2
    loss, logits = _fitting(run, inputs, targets)
    if config.clip_grad is not None:
        run.scaler.unscale_(run.adamw)
        nn.utils.clip_grad_norm_(run.parameters, config.clip_grad, foreach=True)
    run.scaler.step(run.adamw)
    run.scaler.update()
    run.adamw.zero_grad(set_to_none=True)
    if step + 1 < run.num_steps:  # beyond its last step torch's cycle rises again
        run.schedule.step()
    if run.ema is not None:
        run.ema.update(run.module)
    return loss, logits


def _fitting(
    run: _Run, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add up the gradients of a batch, in micro-batches that are halved until they fit."""
    while True:
        try:
            return _gradients(run, inputs, targets)
        except torch.OutOfMemoryError as error:
            # The other ranks wait in a collective call that this one has left.
            if run.micro_batch == 1 or world_size() > 1:
                raise WorkError(
                    f"out of memory with {run.micro_batch} images at a time on each worker: give "
                    "a smaller micro_batch_size (gradients add up, batch_size stays), or less size"
                ) from error
        # Not in the handler: its traceback holds the tensors that are to go.
        run.adamw.zero_grad(set_to_none=True)
        run.micro_batch = math.ceil(run.micro_batch / 2)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def _gradients(
    run: _Run, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean loss () and the logits (n,) of a batch, its gradients added up."""
    losses, outputs = [], []
    parts = list(zip(inputs.split(run.micro_batch), targets.split(run.micro_batch), strict=True))
    for number, (part, wanted) in enumerate(parts):
        with _synchronised(run, last=number == len(parts) - 1):
            with _autocast(run):
                output = run.parallel(part)
            logits = output.float().flatten()
            loss = F.binary_cross_entropy_with_logits(logits, wanted) * (len(part) / len(inputs))
            run.scaler.scale(loss).backward()
        losses.append(loss.detach())
        outputs.append(logits.detach())
    return torch.stack(losses).sum(), torch.cat(outputs)


def _synchronised(run: _Run, *, last: bool) -> AbstractContextManager[Any]:
    """Have DDP exchange gradients once per batch, with its last micro-batch."""
    if last or world_size() == 1:
        return nullcontext()
    return run.parallel.no_sync()  # type: ignore[operator, no-any-return]


def _draws(run: _Run, step: int) -> torch.Tensor:
    """Uniform draws (n, NUM_DRAWS) of this rank, from (seed, step) alone.

    Drawn for the global batch and then cut, so that the number of ranks changes nothing.
    """
    generator = torch.Generator(run.device).manual_seed(run.config.seed * 1_000_003 + step)
    draws = augment.draw(run.config.batch_size, generator=generator)
    return draws[rank() :: world_size()]


def _autocast(run: _Run) -> AbstractContextManager[Any]:
    if run.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(run.device.type, dtype=run.dtype)


def _measure(
    run: _Run, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
) -> dict[str, float]:
    """Evaluate and return the report of this tick; the one place where the host waits."""
    train_loss = _mean_over_ranks(loss)
    _share_buffers(run.module)
    if run.ema is not None:
        _share_buffers(run.ema.module)
    step = run.end_of(run.tick)
    values: dict[str, float] = {
        "tick": run.tick,
        "epoch": step / run.steps_per_epoch,
        "samples": step * run.config.batch_size,
        "lr": run.adamw.param_groups[-1]["lr"],
    }
    val_logits = evaluate(
        run.ema.module if run.ema is not None else run.module,
        run.val_split,
        batch_size=EVAL_BATCH * run.config.batch_size,
        mean=run.mean,
        std=run.std,
        dtype=run.dtype,
    )
    val = metrics.summary(val_logits, run.val_split.labels, split="val")
    if not math.isfinite(train_loss) or not all(map(math.isfinite, val.values())):
        return values | {"score": 0.0, "best_tick": run.best_tick, "diverged": 1.0, "finished": 1.0}
    if not run.best_tick or val["val/auroc"] > run.best:
        run.best, run.best_tick = val["val/auroc"], run.tick
    trained = metrics.auroc(gather(logits), gather(labels))
    return (
        values
        | val
        | {
            "score": run.best,
            "best_tick": run.best_tick,
            "train/loss": train_loss,
            "train/auroc": trained if math.isfinite(trained) else 0.5,
            "diverged": 0.0,
            "finished": float(run.tick == TICKS),
        }
    )


def _mean_over_ranks(value: torch.Tensor) -> float:
    if world_size() > 1:
        dist.all_reduce(value)
        value = value / world_size()
    return float(value)


def _share_buffers(module: nn.Module) -> None:
    """Give every rank rank 0's batch statistics, which are those that the checkpoint holds."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather(values: torch.Tensor) -> torch.Tensor:
    """Concatenate the equally long (n,) tensors of all ranks."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    split: loader.Split,
    *,
    batch_size: int,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the logits (N,) of a whole split, in its order; the ranks share the work."""
    module.eval()
    count = len(split)
    share = math.ceil(count / world_size())
    # The last rank's share may be short; the padding is cut off again below.
    mine = range(count)[rank() * share : (rank() + 1) * share]
    logits = torch.zeros(share, device=split.device)
    done = 0
    enabled = dtype != torch.float32
    for images, labels in split.batches(loader.in_order(mine, batch_size)):
        inputs = augment.normalize(images, mean=mean, std=std)
        with torch.autocast(split.device.type, dtype=dtype, enabled=enabled):
            output = module(inputs)
        logits[done : done + len(labels)] = output.float().flatten()
        done += len(labels)
    return gather(logits)[:count].clone()


@contextmanager
def _checkpoint(run: _Run) -> Iterator[Path | None]:
    """Give the checkpoint of the current tick in a temporary folder, on rank 0; None elsewhere."""
    if rank() != 0 or run.reported.get("diverged"):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="aiornot-") as name:
        _save(run, Path(name))
        yield Path(name)


def _save(run: _Run, folder: Path) -> None:
    kept = run.ema.module if run.ema is not None else run.module
    save_file(_contiguous(kept.state_dict()), folder / WEIGHTS)
    state = {
        "tick": run.tick,
        "best": run.best,
        "best_tick": run.best_tick,
        "micro_batch": run.micro_batch,
        "model": run.module.state_dict() if run.ema is not None else None,
        "optimizer": run.adamw.state_dict(),
        "schedule": run.schedule.state_dict(),
        "scaler": run.scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
    }
    torch.save(state, folder / STATE)
    (folder / METRICS).write_text(json.dumps(run.reported), encoding="utf-8")
    (folder / DESCRIPTION).write_text(json.dumps(describe(run), indent=1), encoding="utf-8")


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors stores plain memory; channels-last weights are not contiguous."""
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def describe(run: _Run) -> dict[str, Any]:
    """Return what is needed to use the weights elsewhere: configuration, input, data."""
    attributes = hdf5.attributes(run.data)
    return {
        "config": run.config.to_dict(),
        "mean": run.mean.tolist(),
        "std": run.std.tolist(),
        "size": run.train_split.size,
        "num_train": len(run.train_split),
        "pretrained_cfg": _plain(getattr(run.module, "pretrained_cfg", {})),
        "data": {key: value for key, value in attributes.items() if key != "schema_version"},
        "effective_lr": sorted({group["max_lr"] for group in run.adamw.param_groups}),
    }


def _plain(values: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in dict(values).items()
        if isinstance(value, str | int | float | bool | list | tuple)
    }


def _resume(run: _Run, folder: Path) -> None:
    saved = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["config"]
    if saved != run.config.to_dict():
        changed = [key for key, value in run.config.to_dict().items() if saved.get(key) != value]
        raise InputError(
            f"{folder} was trained with other values of {', '.join(changed)}; "
            "give the same values, or start in another folder"
        )
    state = torch.load(folder / STATE, map_location=run.device, weights_only=True)
    weights = load_file(folder / WEIGHTS, device=str(run.device))
    if run.ema is not None:
        run.ema.module.load_state_dict(weights)
        weights = state["model"]
    run.module.load_state_dict(weights)
    run.adamw.load_state_dict(state["optimizer"])
    run.schedule.load_state_dict(state["schedule"])
    run.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"].cpu())
    if state["cuda_rng"] is not None:
        torch.cuda.set_rng_state(state["cuda_rng"].cpu(), run.device)
    run.tick, run.best, run.best_tick = state["tick"], state["best"], state["best_tick"]
    run.micro_batch = state["micro_batch"]
    run.reported = json.loads((folder / METRICS).read_text(encoding="utf-8"))

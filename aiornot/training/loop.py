"""The training loop: one configuration on one device, or as one of several ranks.

It knows neither Ray nor W&B: two values and one function cross the seam of ``train``.
``aiornot train --set lr=3e-4`` runs it alone.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aiornot.config import TICKS, TrainConfig, WorkError
from aiornot.training import augment, loader, metrics, ranks, snapshot
from aiornot.training.gauge import Gauge
from aiornot.training.run import Run, start
from aiornot.training.watch import Probe, Watch

Report = Callable[[dict[str, float], Path | None], None]


class OutOfMemory(WorkError):
    """The device has no room for so many images at a time."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch
        super().__init__(
            f"out of memory with {micro_batch} images at a time on each worker: give a smaller "
            "micro_batch_size (gradients add up, batch_size stays), or less size"
        )


EVAL_BATCH = 4
"""Evaluation holds no activations for a backward pass: its batches may be this much larger."""


def train(
    config: TrainConfig,
    *,
    data: Path,
    device: torch.device,
    report: Report,
    checkpoint: Path | None = None,
    told: int = TICKS,
    micro_batch: int | None = None,
    compile_augment: bool | None = None,
    watch: Watch | None = None,
) -> None:
    """Fine-tune one configuration.

    Works alone or as one of several ranks: if a process group is initialised, it is used.
    ``report`` is called by every rank at each of 16 ticks, with the metrics and (rank 0 only) a
    folder that holds the checkpoint; the folder is gone when ``report`` returns. It may not return
    at all if the trial is stopped. A resumed run first repeats, without a folder, the report of
    its checkpoint, and before it those that ``told`` says were lost: a disk may have been full for
    the caller's own notes while checkpoints were still kept.

    A loss that is no longer finite ends the run with ``diverged`` 1 and the worst score, 0.

    Args:
        config: The hyper-parameters.
        data: A file made by ``aiornot prepare``.
        device: Where to train.
        report: Receives metrics such as ``val/auroc`` and the checkpoint folder.
        checkpoint: A folder once given to ``report``, to go on from.
        told: The last tick that the caller still knows of.
        micro_batch: At most so many images of a rank in memory at once; unsaid, as configured.
        compile_augment: Whether to compile the augmentation; unsaid, on a GPU only. Compiled, its
            last bits differ.
        watch: At which ticks to look inside a step; it changes nothing of the training.

    Raises:
        InputError: The configuration does not fit the data, the model or the checkpoint.
    """
    run = start(config, data, device, is_fresh=checkpoint is None, compile_augment=compile_augment)
    if checkpoint is not None:
        snapshot.resume(run, checkpoint)
        for lost in run.reports[min(told, run.tick - 1) :]:
            report(dict(lost), None)
    run.micro_batch = min(run.micro_batch, micro_batch or run.micro_batch)
    with Gauge(device) as gauge:
        while run.tick < TICKS and not (run.reports and run.reports[-1].get("diverged")):
            _tick(run, gauge, watch)
            with _snapshot(run) as folder:
                report(dict(run.reports[-1]), folder)


def steps(run: Run, count: int) -> Iterator[torch.Tensor]:
    """Take the first ``count`` optimizer steps one by one, and yield the mean loss () of each.

    For what measures a run (see ``run.aside``): there are no ticks, and nothing thaws.
    """
    run.parallel.train()
    for step, images, targets in _batches(run, 0, count):
        yield _step(run, step, images, targets)[0]


def _tick(run: Run, gauge: Gauge, watch: Watch | None) -> None:
    """Train and evaluate up to the next tick, and add its report to the run's."""
    started = time.perf_counter()
    gauge.start()
    probe = watch.probe(run.tick + 1) if watch is not None else None
    loss, logits, labels = _train_tick(run, probe)
    values = _measure(run, gauge, loss, logits, labels) | gauge.read()
    run.reports.append(values | {"seconds": time.perf_counter() - started})
    if watch is not None and probe is not None:
        watch.keep(probe.findings(run))


def _train_tick(
    run: Run, probe: Probe | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take the steps up to the next tick; nothing in it waits for the device.

    Args:
        run: Between two ticks.
        probe: Looks inside the last step.

    Returns:
        Mean loss (), and logits and labels (n,) of the images trained on by this rank.
    """
    run.parallel.train()
    first, last = run.end_of(run.tick), run.end_of(run.tick + 1)
    loss_sum = torch.zeros((), device=run.device)
    logits, labels = [], []
    for step, images, targets in _batches(run, first, last):
        if run.thawing.at(step):
            run.parallel = ranks.wrap(run.module, run.device)
        loss, output = _step(run, step, images, targets, probe if step == last - 1 else None)
        loss_sum += loss
        logits.append(output)
        labels.append(targets)
    run.tick += 1
    return loss_sum / (last - first), torch.cat(logits), torch.cat(labels)


def _batches(run: Run, first: int, last: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (step, images, labels) of this rank for the optimizer steps first .. last - 1."""
    for epoch in range(first // run.steps_per_epoch, math.ceil(last / run.steps_per_epoch)):
        start = epoch * run.steps_per_epoch
        steps = range(max(first, start), min(last, start + run.steps_per_epoch))
        rows = loader.shuffled(
            len(run.train_split), run.config.batch_size, seed=run.config.seed, epoch=epoch
        )
        mine = [rows[step - start][ranks.rank() :: ranks.world_size()] for step in steps]
        for step, (images, labels) in zip(steps, run.train_split.batches(mine), strict=True):
            yield step, images, labels


def _step(
    run: Run,
    step: int,
    images: torch.Tensor,
    labels: torch.Tensor,
    probe: Probe | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    config = run.config
    inputs = run.transform(
        images,
        draws=_draws(run, step),
        strengths=run.strengths,
        mean=run.mean,
        std=run.std,
        dtype=run.dtype,
    )
    targets = labels * (1 - config.label_smoothing) + config.label_smoothing / 2
    with probe.looking(run.module) if probe is not None else nullcontext():
        loss, logits = _fitting(run, inputs, targets)
    _update(run, probe)
    if step + 1 < run.num_steps:  # beyond its last step torch's cycle rises again
        run.schedule.step()
    if run.ema is not None:
        run.ema.update(run.module)
    return loss, logits


def _update(run: Run, probe: Probe | None) -> None:
    """Let the optimizer use up the gradients."""
    if run.config.clip_grad is not None:
        run.scaler.unscale_(run.adamw)
    if probe is not None:
        probe.before(run)
    if run.config.clip_grad is not None:
        nn.utils.clip_grad_norm_(run.parameters, run.config.clip_grad, foreach=True)
    run.scaler.step(run.adamw)
    run.scaler.update()
    if probe is not None:
        probe.after(run)
    run.adamw.zero_grad(set_to_none=True)


def _fitting(
    run: Run, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add up the gradients of a batch, in micro-batches that are halved until they fit."""
    while True:
        try:
            return _gradients(run, inputs, targets)
        except torch.OutOfMemoryError as error:
            # The other ranks wait in a collective call that this one has left.
            if run.micro_batch == 1 or ranks.world_size() > 1:
                raise OutOfMemory(run.micro_batch) from error
        # Not in the handler: its traceback holds the tensors that are to go.
        run.adamw.zero_grad(set_to_none=True)
        run.micro_batch = math.ceil(run.micro_batch / 2)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def _gradients(
    run: Run, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean loss () and the logits (n,) of a batch, its gradients added up."""
    losses, outputs = [], []
    # Of equal sizes, as far as that goes: a rest of one image has no batch statistics.
    count = math.ceil(len(inputs) / run.micro_batch)
    parts = list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))
    for number, (part, wanted) in enumerate(parts):
        with ranks.synchronised(run.parallel, last=number == len(parts) - 1):
            with _autocast(run):
                output = run.parallel(part)
            logits = output.float().flatten()
            loss = F.binary_cross_entropy_with_logits(logits, wanted) * (len(part) / len(inputs))
            run.scaler.scale(loss).backward()
        losses.append(loss.detach())
        outputs.append(logits.detach())
    return torch.stack(losses).sum(), torch.cat(outputs)


def _draws(run: Run, step: int) -> torch.Tensor:
    """Uniform draws (n, NUM_DRAWS) of this rank, from (seed, step) alone.

    Drawn for the global batch and then cut, so that the number of ranks changes nothing.
    """
    generator = torch.Generator(run.device).manual_seed(run.config.seed * 1_000_003 + step)
    draws = augment.draw(run.config.batch_size, generator=generator)
    return draws[ranks.rank() :: ranks.world_size()]


def _autocast(run: Run) -> AbstractContextManager[Any]:
    if run.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(run.device.type, dtype=run.dtype)


def _measure(
    run: Run, gauge: Gauge, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
) -> dict[str, float]:
    """Evaluate and return the report of this tick; the one place where the host waits."""
    train_loss = ranks.mean(loss)
    gauge.trained((run.end_of(run.tick) - run.end_of(run.tick - 1)) * run.config.batch_size)
    ranks.share_buffers(run.module)
    if run.ema is not None:
        ranks.share_buffers(run.ema.module)
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
    trained = metrics.auroc(ranks.gather(logits), ranks.gather(labels))
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
    share = math.ceil(count / ranks.world_size())
    # The last rank's share may be short; the padding is cut off again below.
    mine = range(count)[ranks.rank() * share : (ranks.rank() + 1) * share]
    logits = torch.zeros(share, device=split.device)
    done = 0
    enabled = dtype != torch.float32
    for images, labels in split.batches(loader.in_order(mine, batch_size)):
        inputs = augment.normalize(images, mean=mean, std=std)
        with torch.autocast(split.device.type, dtype=dtype, enabled=enabled):
            output = module(inputs)
        logits[done : done + len(labels)] = output.float().flatten()
        done += len(labels)
    return ranks.gather(logits)[:count].clone()


@contextmanager
def _snapshot(run: Run) -> Iterator[Path | None]:
    """Give the checkpoint of the current tick in a temporary folder, on rank 0; None elsewhere."""
    if ranks.rank() != 0 or run.reports[-1].get("diverged"):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="aiornot-") as name:
        snapshot.save(run, Path(name))
        yield Path(name)

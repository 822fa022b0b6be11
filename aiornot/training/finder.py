"""The learning-rate finder: a hundred steps, each at a higher rate, and where the loss falls best.

``aiornot probe`` runs it. It centres a search; it does not replace one.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR

from aiornot.config import TrainConfig
from aiornot.training import loop, model
from aiornot.training.run import aside

NUM_STEPS = 100
LOWEST, HIGHEST = 1e-7, 1.0
BETA = 0.98
"""Of the moving average of the loss."""

SKIPPED = 10
"""First steps that no valley begins in: their average is of too few."""

WEAK = 0.05
"""A smaller fall of the loss than by this share says little."""

TOO_HIGH = 4.0
"""The search ends where the averaged loss is so many times its lowest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The steps that count, and what they suggest."""

    rates: list[float]
    """(n,) learning rates as ``TrainConfig.lr`` means them: of the head, where layers differ."""
    losses: list[float]
    """(n,) training losses."""
    smoothed: list[float]
    """(n,) their moving average."""
    suggestion: float | None
    """Peak learning rate, or None if the loss never fell."""

    @property
    def fall(self) -> float:
        """By what share of itself the moving average fell to its lowest, after the first steps."""
        kept = [pair[1] for pair in _kept(self.rates, self.smoothed)]
        return 1 - min(kept) / kept[0] if kept else 0.0


def find(
    config: TrainConfig,
    *,
    data: Path,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Train a model of its own at rates from 1e-7 to 1, and suggest a learning rate.

    All that the configuration says of a step holds, and the layers' rates keep their ratios; but
    nothing is averaged or frozen (``ema_decay``, ``unfreeze``), and there is no schedule.

    Args:
        config: Its ``lr`` and ``epochs`` do not matter.
        data: A prepared file.
        device: Where to train.
        progress: Told after each step how many are done, of how many.

    Raises:
        InputError: The configuration does not fit the data, the model or the device.
    """
    plain = dataclasses.replace(config, ema_decay=None)
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    with aside(plain, data, device, steps=NUM_STEPS) as run:
        run.adamw = model.optimizer(run.module, plain)  # whose momentum no cycle has touched
        run.schedule = LambdaLR(run.adamw, lambda step: rate_at(step) / plain.lr)
        scale, average = run.scaler.get_scale(), 0.0
        for step, value in enumerate(loop.steps(run, NUM_STEPS)):
            loss, before, scale = float(value), scale, run.scaler.get_scale()
            if progress is not None:
                progress(step + 1, NUM_STEPS)
            if not math.isfinite(loss) or scale < before:  # the scaler left this step out
                continue
            average = BETA * average + (1 - BETA) * loss
            rates.append(rate_at(step))
            losses.append(loss)
            smoothed.append(average / (1 - BETA ** len(rates)))
            if smoothed[-1] > TOO_HIGH * min(smoothed):
                break
    return Found(rates=rates, losses=losses, smoothed=smoothed, suggestion=suggest(rates, smoothed))


def rate_at(step: int) -> float:
    """Return the learning rate of a step: equal factors apart."""
    factor: float = (HIGHEST / LOWEST) ** (step / (NUM_STEPS - 1))
    return LOWEST * factor


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """Return the rate in the middle of the longest valley, without the first steps."""
    kept = _kept(rates, smoothed)
    index = valley([loss for _, loss in kept])
    return None if index is None else kept[index][0]


def _kept(rates: Sequence[float], smoothed: Sequence[float]) -> list[tuple[float, float]]:
    """Leave out the first steps, of whatever could be kept of them."""
    pairs = zip(rates, smoothed, strict=True)
    return [(rate, loss) for rate, loss in pairs if rate >= rate_at(SKIPPED)]


def valley(losses: Sequence[float]) -> int | None:
    """Return the index that fastai's rule of the same name chooses, or None if no loss falls.

    The valley ends where the longest falling subsequence does, and is as long as that has members.
    Chosen is what lies half of that before its end.
    """
    lengths: list[int] = []
    for loss in losses:
        lower = (length for length, one in zip(lengths, losses, strict=False) if loss < one)
        lengths.append(1 + max(lower, default=0))
    length = max(lengths, default=0)
    if length < 2:
        return None
    end = lengths.index(length)
    third = length / 3
    return max(0, end - length + int(third) + int(third / 2))


def plot(found: Found, path: Path, *, title: str) -> None:
    """Draw losses over rates, and the suggestion, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, ".", color="#a9bcd0", label="loss of each step")
    axes.plot(found.rates, found.smoothed, color="#1f4e79", linewidth=2, label="moving average")
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color="#c8102e", linestyle="--", linewidth=1.2)
        loss = found.smoothed[found.rates.index(found.suggestion)]
        axes.plot(found.suggestion, loss, "o", color="#c8102e")
        label = f"  lr = {found.suggestion:.1e}"
        axes.annotate(label, (found.suggestion, 0.96), xycoords=("data", "axes fraction"), va="top")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=title)
    if found.losses:  # the last ones may be a thousand times the others
        low, high = min(found.losses), min(max(found.losses), 2.5 * min(found.smoothed))
        axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

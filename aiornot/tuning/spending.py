"""What a chain spends, and how much of it a stage may: the end of the chain is paid for first.

Pure functions; ``aiornot tune fast --hours 8`` asks them before a stage and while it runs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from aiornot.config import TICKS, TrainConfig
from aiornot.tuning import select
from aiornot.tuning.ledger import Trial
from aiornot.tuning.space import Budget, Stage, extremes, original

PASSED_BESIDES = 0.05
"""More trials pass a rung than one in ``reduction_factor``, since the first ones always do: of 48
random trials .515, .372 and .303 at the factors 2, 3 and 4 (the design's research, replayed)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a chain may spend in all its sessions; None: as much as it takes."""

    wall_seconds: float | None = None
    device_seconds: float | None = None
    """Of GPUs, or of cores where there is none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spent:
    wall_seconds: float = 0.0
    device_seconds: float = 0.0

    def below(self, allowed: "Spent") -> bool:
        """Whether none of it has reached what is allowed."""
        return (
            self.wall_seconds < allowed.wall_seconds
            and self.device_seconds < allowed.device_seconds
        )

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            wall_seconds=self.wall_seconds + other.wall_seconds,
            device_seconds=self.device_seconds + other.device_seconds,
        )


def spent(record: Mapping[str, Any] | None, trials: Sequence[Trial]) -> Spent:
    """Return what a stage has spent so far, from its record and its trials.

    Wall time is that of the driver's sessions, so a night between two of them costs nothing.
    """
    if record is None:
        return Spent()
    sessions = record.get("sessions", [])
    return Spent(
        wall_seconds=sum(last - first for first, last in sessions),
        device_seconds=sum(trial.seconds for trial in trials) * record.get("num_workers", 1),
    )


def expected_share(budget: Budget) -> float:
    """Return which share of a whole training a trial of a search costs on average."""
    passing = min(1.0, 1 / budget.reduction_factor + PASSED_BESIDES)
    share, reached, last = 0.0, 1.0, 0
    for rung in select.rungs(budget):
        share += reached * (rung - last) / TICKS
        reached, last = reached * passing, rung
    return share


def weight(stage: Stage, *, num_train: int, size: int) -> float:
    """Return what a stage costs beside the others of its chain, in trained pixels.

    Models are taken to be equally expensive: which of them a search will like is not known.

    Args:
        stage: The stage.
        num_train: Images in the train split of its file.
        size: Pixels per side.
    """
    share = expected_share(stage.budget) if stage.searches() else 1.0
    pixels = num_train * stage.budget.train_fraction * size**2
    num_trials = stage.budget.num_trials + stage.num_beside()
    return num_trials * share * epochs(stage)[0] * pixels


def epochs(stage: Stage) -> tuple[float, int]:
    """Return the mean and the largest number of epochs that a trial of a stage may have."""
    if stage.budget.epochs is not None:
        return stage.budget.epochs, stage.budget.epochs
    if "epochs" in stage.space:
        ends = extremes(original(stage.space["epochs"]))
        return (min(ends) + max(ends)) / 2, max(ends)
    if "epochs" in stage.fixed or stage.after is None:
        fixed = int(stage.fixed.get("epochs") or TrainConfig().epochs)
        return fixed, fixed
    return epochs(stage.after)


def allowance(limit: float | None, *, spent: float, weights: Sequence[float], index: int) -> float:
    """Return what the stage at ``index`` may have spent in all when it has to end.

    What lies behind it keeps its share, in proportion to the weights; what the stages before it
    left over is its own. Infinite without a limit.

    Args:
        limit: Of the whole chain.
        spent: By the stages before this one.
        weights: Of all stages, in their order, see ``weight``.
        index: Of a searching stage.
    """
    if limit is None:
        return math.inf
    reserved = limit * sum(weights[index + 1 :]) / sum(weights)
    return max(0.0, limit - spent - reserved)

"""What lies ahead of a stage: its machines, the configurations of its trials, the ticks to come.

Pure functions over a stage and what its ledger holds; ``plan.py`` makes hours of it for
``aiornot tune fast --plan``.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aiornot.config import TICKS, TrainConfig
from aiornot.tuning import select, spending
from aiornot.tuning.ledger import Trial, contenders
from aiornot.tuning.record import Record, space_of
from aiornot.tuning.space import Stage, Value, configure, extremes, original

COSTLY = ("model", "stem_stride")
"""A trial's cost depends on these most: each of their choices counts alike."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machines:
    """What trains: all of a machine, or of a cluster."""

    num_gpus: int
    num_cpus: int
    num_workers: int = 1
    """Of each Ray Train run."""
    nodes: tuple[tuple[int, int], ...] = ()
    """Cores and GPUs of each machine; unsaid, all are one machine's."""

    def workers(self, stage: Stage) -> int:
        """Return how many devices a trial of a stage takes."""
        return 1 if stage.searches() and not stage.nested() else self.num_workers

    def concurrent(self, stage: Stage) -> int:
        """Return how many trials of a stage run side by side."""
        return max(1, (self.num_gpus or self.num_cpus) // self.workers(stage))

    def threads(self, stage: Stage, num_trials: int) -> int:
        """Return the CPU threads of each worker; a search takes a core each."""
        if self.num_gpus:
            return self.cpus_per_gpu()
        if stage.searches():
            return 1
        # Of fewer runs than there is room for, each has a larger share.
        workers = min(self.concurrent(stage), num_trials) * self.num_workers
        share = max(1, self.num_cpus // workers)
        # No worker takes cores of two machines.
        while share > 1 and sum(cpus // share for cpus, _ in self._nodes()) < workers:
            share -= 1
        return share

    def cpus_per_gpu(self) -> int:
        """Return the cores that every GPU finds beside it, whichever machine it is in."""
        return max(1, min(cpus // gpus for cpus, gpus in self._nodes() if gpus))

    def _nodes(self) -> tuple[tuple[int, int], ...]:
        return self.nodes or ((self.num_cpus, self.num_gpus),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A stage of a chain with its data, and what there is of it already."""

    stage: Stage
    num_trials: int
    data: Path
    num_train: int
    """Images in the train split of the file."""
    num_val: int
    size: int
    """Of the images, pixels per side."""
    record: Record | None = None
    """As the stage was begun, or would be now; None where that depends on trials to come."""
    trials: Sequence[Trial] = ()

    def left(self) -> list[int]:
        """Return, of each trial that is still to run, how many ticks it has behind it."""
        states = ["running"]
        if not self.stage.searches() and not self.has_finished():
            states.append("failed")  # tried again: without a finished one the chain cannot go on
        begun = [trial.tick for trial in self.trials if trial.state in states]
        return begun + [0] * max(0, self.num_trials - len(self.trials))

    def has_finished(self) -> bool:
        return any(trial.state == "finished" for trial in contenders(self.trials))


class Case(NamedTuple):
    """What a pace is measured of."""

    config: TrainConfig
    data: Path
    num_threads: int


def case(part: Part, config: TrainConfig, machines: Machines) -> Case:
    """Return what to measure for a configuration; what a step's time does not depend on is equal.

    That holds of a frozen model too: thawed, as it is in the end, it takes longest.
    """
    default = TrainConfig().to_dict()
    names = ("epochs", "seed", "lr", "weight_decay", "unfreeze", "weights")
    bare = dataclasses.replace(config, pretrained=False, **{name: default[name] for name in names})
    return Case(bare, part.data, machines.threads(part.stage, part.num_trials))


def configurations(parts: Sequence[Part]) -> list[list[TrainConfig]]:
    """Return, for each stage of a chain, configurations that stand for its trials, all alike.

    A stage that does not say which model it trains has those of the stage before it.
    """
    found: list[list[TrainConfig]] = []
    candidates: list[TrainConfig] = []
    for number, part in enumerate(parts):
        record = part.record or {}
        bases: list[Mapping[str, Value] | None] = [None]
        if "selected" in record:
            known = {trial.id: trial.config for each in parts[:number] for trial in each.trials}
            bases = [known[trial_id] for trial_id in record["selected"]]
        elif "base" in record:
            bases = [record["base"]]
        elif found:
            bases = [config.to_dict() for config in candidates]
        candidates = _configurations(part, bases)
        found.append(list(dict.fromkeys([*candidates, *_baseline(part)])))
    return found


def _baseline(part: Part) -> list[TrainConfig]:
    """Return what a stage compares its candidates with, where that is to be trained."""
    stage, record = part.stage, part.record
    if stage.baseline is None:
        return []
    # One that was begun before there were any goes on without.
    begun_without = record is not None and not record.get("beside")
    return [] if begun_without else [configure(stage, stage.baseline)]


def _configurations(part: Part, bases: Sequence[Mapping[str, Value] | None]) -> list[TrainConfig]:
    space = {name: original(domain) for name, domain in part.stage.space.items()}
    space |= space_of(part.record or {})  # narrowed
    ends = {name: extremes(domain) for name, domain in space.items()}
    points = itertools.product(
        *[[(name, value) for value in ends[name]] for name in COSTLY if name in ends]
    )
    middles = {name: middle(values) for name, values in ends.items()}
    pairs = itertools.product(bases, [middles | dict(point) for point in points])
    return list(dict.fromkeys(configure(part.stage, point, base=base) for base, point in pairs))


def middle(values: Sequence[Any]) -> Any:
    """Return what stands for a range or for choices; an augmentation that may be on is on.

    Args:
        values: The lowest and the highest, or all choices.
    """
    known = [value for value in values if value is not None]
    if not known or isinstance(known[0], str):
        return values[0]
    if len(known) != 2 or isinstance(known[0], bool):
        return statistics.median_high(known)
    mean = sum(known) / 2
    return mean if any(isinstance(value, float) for value in known) else round(mean)


def epochs(part: Part, configs: Sequence[TrainConfig]) -> tuple[float, int]:
    """Return the mean and the largest number of epochs of the trials of a stage."""
    if "selected" in (part.record or {}):
        lengths = [config.epochs for config in configs]
        return statistics.fmean(lengths), max(lengths)
    return spending.epochs(part.stage)


def passing(count: int, factor: int) -> float:
    """Return how many of ``count`` trials should pass a rung, if chance alone orders their scores.

    The cut is a percentile of the scores that came before. So the first trial passes in any case,
    and early ones more easily than the one in ``factor`` that it is in the end.
    """
    later = (1 / factor + (1 - 2 / factor) / (before + 1) for before in range(1, count))
    return min(count, 1) + sum(later)


def per_rung(stage: Stage, num_trials: int) -> list[int]:
    """Return how many trials should reach each rung, of which the last is the last tick."""
    counts = [num_trials]
    if stage.searches():
        for _ in select.rungs(stage.budget)[1:]:
            counts.append(round(passing(counts[-1], stage.budget.reduction_factor)))
    return counts


def ticks_to_come(part: Part, done: int) -> float:
    """Return how many ticks more a trial should run, of which ``done`` lie behind it."""
    if not part.stage.searches():
        return TICKS - done
    rungs = select.rungs(part.stage.budget)
    counts = per_rung(part.stage, part.num_trials)
    ahead = [(rung, count) for rung, count in zip(rungs, counts, strict=True) if rung > done]
    ticks, last = 0.0, done
    for rung, count in ahead:
        ticks += (rung - last) * count / ahead[0][1]
        last = rung
    return ticks

"""What a chain will cost, before it starts or in its midst: trials, time, disk.

Pure functions over stages, what their ledgers hold and measured paces; ``aiornot tune fast --plan``
prints what they return.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from aiornot.config import TICKS, TrainConfig
from aiornot.training.loader import prefix
from aiornot.training.pace import Pace
from aiornot.tuning import outlook, retention, select, spending
from aiornot.tuning.outlook import Case, Machines, Part

Row: TypeAlias = dict[str, Any]
Measured: TypeAlias = tuple[TrainConfig, Pace]
Pick: TypeAlias = Callable[[Sequence[float]], float]

SEARCH_SECONDS = 10.0
"""To start Tune and the processes of its trials, once per search: 9 to 11 s on two idle cores."""

RUN_SECONDS = 20.0
"""To start and to end one Ray Train run: 20 to 24 s on two idle cores."""

TIMES = (
    *("expected_wall_seconds", "worst_wall_seconds"),
    *("expected_device_seconds", "worst_device_seconds"),
)
NOTHING: Row = dict.fromkeys(TIMES, 0.0) | {"kept_bytes": 0, "most_bytes": 0}
"""What a finished stage still costs, and the names of all costs."""


def cases(parts: Sequence[Part], machines: Machines) -> list[Case]:
    """Return what has to be measured for the rows of a plan."""
    found = [
        outlook.case(part, config, machines)
        for part, configs in zip(parts, outlook.configurations(parts), strict=True)
        for config in configs
        if part.left()
    ]
    return list(dict.fromkeys(found))


def rows(parts: Sequence[Part], paces: Mapping[Case, Pace], machines: Machines) -> list[Row]:
    """Return what is left of each stage of a chain, and what that will cost.

    Args:
        parts: The stages, from the first on.
        paces: Of all ``cases``.
        machines: Where they run.
    """
    both = zip(parts, outlook.configurations(parts), strict=True)
    return [_row(part, configs, paces, machines) for part, configs in both]


def _row(
    part: Part, configs: Sequence[TrainConfig], paces: Mapping[Case, Pace], machines: Machines
) -> Row:
    stage, left = part.stage, part.left()
    mean_epochs, most_epochs = outlook.epochs(part, configs)
    costs = NOTHING
    if left:
        measured = [(each, paces[outlook.case(part, each, machines)]) for each in configs]
        costs = _time(part, measured, machines) | _disk(part, measured, machines)
    return {
        "stage": stage.name,
        "trials": part.num_trials,
        "trials_left": len(left),
        "rungs": select.rungs(stage.budget) if stage.searches() else [TICKS],
        "per_rung": outlook.per_rung(stage, part.num_trials),
        "data": stage.data,
        "size": part.size,
        "num_train": prefix(part.num_train, stage.budget.train_fraction),
        "num_val": part.num_val,
        "mean_epochs": mean_epochs,
        "most_epochs": most_epochs,
        "models": sorted({config.model for config in configs}),
        **costs,
    }


def _disk(part: Part, measured: Sequence[Measured], machines: Machines) -> Row:
    """Return the bytes of the checkpoints that stay, and of those there are at most meanwhile."""
    each = max(pace.checkpoint_bytes for _, pace in measured)
    kept = min(retention.KEPT, part.num_trials) if part.stage.searches() else part.num_trials
    places = min(machines.concurrent(part.stage), len(part.left()))
    running = 2 * places  # the newest and the best of each
    return {"kept_bytes": kept * each, "most_bytes": (kept + running) * each}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cost:
    """Of a trial, in seconds."""

    begin: float
    tick: float
    """Training and validation: what the ledger counts."""
    keep: float
    """The checkpoint of a tick."""

    def of(self, ticks: float) -> float:
        return self.begin + ticks * (self.tick + self.keep)


def _cost(
    part: Part,
    measured: Sequence[Measured],
    *,
    workers: int,
    epochs: float,
    pick: Pick,
) -> _Cost:
    stage = part.stage
    start = 0.0 if stage.searches() and not stage.nested() else RUN_SECONDS
    num_train = prefix(part.num_train, stage.budget.train_fraction)

    def tick(config: TrainConfig, pace: Pace) -> float:
        images = num_train // config.batch_size * config.batch_size * epochs / TICKS
        train = images / pace.train_images_per_second
        return (train + part.num_val / pace.val_images_per_second) / workers

    return _Cost(
        begin=start + pick([pace.start_seconds for _, pace in measured]),
        tick=pick([tick(config, pace) for config, pace in measured]),
        keep=pick([pace.checkpoint_seconds for _, pace in measured]),
    )


def _time(part: Part, measured: Sequence[Measured], machines: Machines) -> Row:
    """Return seconds on the wall, and of all devices together: as expected and at worst."""
    left, workers = part.left(), machines.workers(part.stage)
    mean, most = outlook.epochs(part, [config for config, _ in measured])
    usual = _cost(part, measured, workers=workers, epochs=mean, pick=statistics.fmean)
    worst = _cost(part, measured, workers=workers, epochs=most, pick=max)
    expected_ticks = [outlook.ticks_to_come(part, done) for done in left]
    worst_ticks = [TICKS - done for done in left]
    fixed = SEARCH_SECONDS if part.stage.searches() else 0.0
    places, longest = min(machines.concurrent(part.stage), len(left)), max(worst_ticks)
    expected = sum(map(usual.of, expected_ticks)) / places
    # Whatever the order of the trials, no place is idle before the last one begins (Graham, 1969).
    last = worst.of(longest) * (1 - 1 / places)
    return {
        "expected_wall_seconds": fixed + max(expected, usual.of(longest)),
        "worst_wall_seconds": fixed + sum(map(worst.of, worst_ticks)) / places + last,
        "expected_device_seconds": sum(expected_ticks) * usual.tick * workers,
        "worst_device_seconds": sum(worst_ticks) * worst.tick * workers,
    }


def total(rows: Sequence[Row]) -> Row:
    """Return the sums of a plan; of the disk the most that is taken at any time."""
    kept, most = 0, 0
    for row in rows:
        most = max(most, kept + row["most_bytes"])
        kept += row["kept_bytes"]
    times = {key: sum(row[key] for row in rows) for key in TIMES}
    return {
        "stage": "total",
        "trials": sum(row["trials"] for row in rows),
        "trials_left": sum(row["trials_left"] for row in rows),
        **times,
        "kept_bytes": kept,
        "most_bytes": most,
    }


def within(
    parts: Sequence[Part], rows: Sequence[Row], *, limit: float, what: str, weights: Sequence[float]
) -> Row:
    """Return what a limit leaves for each search, and whether the stages that repeat then fit.

    Args:
        parts: Of the chain.
        rows: What they will cost; the chain may end before its last part.
        limit: Seconds for the whole chain.
        what: ``wall`` or ``device``.
        weights: Of all parts, see ``spending.weight``.
    """
    used, then, searches, names = 0.0, 0.0, [], []
    for index, (part, row) in enumerate(zip(parts, rows, strict=False)):
        before = getattr(spending.spent(part.record, part.trials), f"{what}_seconds")
        needed = row[f"expected_{what}_seconds"]
        if part.stage.searches():
            allowed = spending.allowance(limit, spent=used, weights=weights, index=index)
            left = max(0.0, allowed - before)
            if needed:
                searches.append(_fitting(row, needed=needed, left=left))
            needed = min(needed, left)
        elif needed:
            then += needed
            names.append(row["stage"])
        used += before + needed
    return {
        "limit_seconds": limit,
        "searches": searches,
        "then": names,
        "then_seconds": then,
        "then_left_seconds": max(0.0, limit - used + then),
        "fits": used <= limit,
    }


def _fitting(row: Row, *, needed: float, left: float) -> Row:
    share = min(1.0, left / needed)
    trials = row["trials_left"] if share == 1.0 else math.floor(row["trials_left"] * share)
    return {
        "stage": row["stage"],
        "left_seconds": left,
        "trials": trials,
        "trials_left": row["trials_left"],
    }


def pace_row(case: Case, found: Pace) -> Row:
    """Return a measurement with what it is of."""
    return {
        "model": case.config.model,
        "stem_stride": case.config.stem_stride,
        "data": case.data.stem,
        "num_threads": case.num_threads,
        **dataclasses.asdict(found),
    }

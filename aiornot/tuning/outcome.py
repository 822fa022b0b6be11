"""What a chain delivers: the better run of the configuration it chose, and of its baseline.

``aiornot tune fast`` makes the bundle of it. Pure but for reading ledgers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiornot.config import WorkError
from aiornot.training import checkpoints
from aiornot.tuning import tracking
from aiornot.tuning.ledger import Ledger, Trial, contenders
from aiornot.tuning.record import Record
from aiornot.tuning.space import Stage


@dataclasses.dataclass(frozen=True)
class Weights:
    """A finished trial, and where its best weights lie."""

    trial: Trial
    checkpoint: str
    lineage: dict[str, Any]
    """Plain JSON values."""
    labels: tracking.Labels
    """What W&B knows the trial by."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a chain delivers."""

    final: Weights
    baseline: Weights | None
    """What it is compared with; None where none was run to its end."""
    data: Path


def of_chain(stages: Sequence[Stage], ledgers: Mapping[str, Ledger], *, data: Path) -> Outcome:
    """Return the better final trial or earlier run of its configuration, and the baseline's best.

    Both are the best of the runs that there are: were one of them the better of two seeds and the
    other a single run, their difference would be that of the seeds, too.

    Args:
        stages: The chain.
        ledgers: Of its stages, by name.
        data: The prepared file of its last stage.

    Raises:
        WorkError: No candidate of the last stage finished.
    """
    last = stages[-1]
    trials = _finished(ledgers[last.name])
    rivals = [(last, trial) for trial in contenders(trials)]
    if not rivals:
        raise WorkError(f"no trial of stage {last.name!r} finished; see 'aiornot show'")
    baselines = [(last, trial) for trial in trials if trial.role == "baseline"]
    if not (last.searches() or last.after is None or last.after.searches()):
        origins = {trial.origin.removeprefix("from ") for _, trial in rivals}
        earlier = _finished(ledgers[last.after.name])
        rivals += [(last.after, trial) for trial in earlier if trial.id in origins]
        baselines += [(last.after, trial) for trial in earlier if trial.role == "baseline"]
    baseline = _best(baselines, stages, ledgers) if baselines else None
    return Outcome(final=_best(rivals, stages, ledgers), baseline=baseline, data=data)


def _finished(ledger: Ledger) -> list[Trial]:
    return [trial for trial in ledger.read() if trial.state == "finished"]


def _best(
    rivals: Sequence[tuple[Stage, Trial]], chain: Sequence[Stage], ledgers: Mapping[str, Ledger]
) -> Weights:
    stage, chosen = max(rivals, key=lambda rival: rival[1].score)
    best_tick = int(chosen.last("best_tick"))
    root = ledgers[stage.name].trial_folder(chosen.id)
    return Weights(
        trial=chosen,
        checkpoint=checkpoints.folder_of(root, best_tick),
        lineage={
            "chain": [each.name for each in chain],
            "trial": chosen.id,
            "origin": chosen.origin,
            "tick": best_tick,
            "scores": {trial.id: trial.score for _, trial in rivals},
            "seeds": {trial.id: trial.config["seed"] for _, trial in rivals},
        },
        labels=labels(stage, chain, ledgers[stage.name].read_stage() or {}),
    )


def labels(stage: Stage, chain: Sequence[Stage], record: Record) -> tracking.Labels:
    """Return what W&B knows the trials of a stage by."""
    tags: list[str] = [stage.data]
    if not stage.searches():
        tags.append("final" if stage.name == chain[-1].name else "candidate")
    return tracking.Labels(
        run=record["run"],
        group=stage.name,
        job_type="search" if stage.searches() else "retrain",
        tags=tags,
    )

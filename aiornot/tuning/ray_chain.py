"""A chain of stages, run as ``make`` would: what is finished is skipped, the rest goes on.

``aiornot tune fast`` is this room. The ledger is the memory: an interrupted stage continues its
unfinished trials from their last tick, and nothing finished is run again.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from aiornot import ray_session, storage
from aiornot.config import InputError, WorkError
from aiornot.data import hdf5
from aiornot.training import model
from aiornot.tuning import (
    meter,
    mirror,
    ray_machines,
    ray_runs,
    ray_tuner,
    spending,
    tracking,
    twins,
)
from aiornot.tuning import options as choices
from aiornot.tuning import outcome as outcomes
from aiornot.tuning import record as records
from aiornot.tuning.ledger import Observer, Trial, contenders
from aiornot.tuning.mirror import Mirror
from aiornot.tuning.options import Options
from aiornot.tuning.outcome import Outcome
from aiornot.tuning.record import Record
from aiornot.tuning.space import Stage, models
from aiornot.tuning.stages import load_chain, sources


def run_chain(folder: Path, options: Options) -> Outcome | None:
    """Run every stage of a chain that is not finished yet.

    Returns:
        The delivered trial, None where ``only`` ends the chain early.

    Raises:
        InputError: A stage file, the data or the options cannot be used; nothing was started.
        WorkError: A stage ended without a trial to go on with, or was interrupted.
    """
    options = dataclasses.replace(options, root=storage.absolute(options.root))
    stages = load_chain(folder)
    choices.check(stages, options)
    if options.fresh and (moved := storage.set_aside(options.root)):
        options.say(f"the earlier run is now in {moved}")
    for stage in stages:
        old = options.ledger(stage).read_stage()
        if old is not None:
            records.check_unchanged(stage, options.data_file(stage), old, place=options.root)
    wanted = list(_until(stages, options.only))
    if not all(_is_finished(stage, stages, options) for stage in wanted):
        _check_models(stages, options)
        _run_stages(wanted, stages, options)
    if options.only and wanted != stages:
        return None
    ledgers = {stage.name: options.ledger(stage) for stage in stages}
    outcome = outcomes.of_chain(stages, ledgers, data=options.data_file(stages[-1]))
    if outcome.baseline is None and any(stage.baseline is not None for stage in stages):
        options.say("no baseline finished: there is nothing to compare with, see 'aiornot show'")
    return outcome


def _until(stages: Sequence[Stage], only: str | None) -> Iterator[Stage]:
    for stage in stages:
        yield stage
        if stage.name == only:
            return


def _check_models(stages: Sequence[Stage], options: Options) -> None:
    """Refuse models that timm cannot build, or whose weights cannot be had, before all else.

    One sentence here instead of every trial failing; and the trials find the weights in the cache.
    """
    fetched: set[str] = set()
    for stage in stages:
        size = int(hdf5.attributes(options.data_file(stage))["size"])
        try:
            for config in models(stage):
                model.check(config, size=size)
                if (config.pretrained or config.weights) and config.model not in fetched:
                    options.say(f"{stage.name}: looking for the weights of {config.model}")
                    model.build(config, size=size)
                    fetched.add(config.model)
        except InputError as error:
            raise InputError(f"stage {stage.name!r}: {error}") from None


def num_trials(stage: Stage, options: Options, record: Record | None) -> int:
    """Return the trials of a searching stage: as its file says or as was asked for, and controls.

    How many of these there are is known once the stage is begun.
    """
    asked = options.num_trials.get(stage.name, stage.budget.num_trials)
    return asked + (stage.controls if record is None else len(record.get("beside", [])))


def _is_finished(stage: Stage, chain: Sequence[Stage], options: Options) -> bool:
    ledger = options.ledger(stage)
    record = ledger.read_stage()
    if record is None:
        return False
    trials = ledger.read()
    if "closed" in record and not spending.spent(record, trials).below(
        _allowed(stage, chain, options)
    ):
        return True
    ended = sum(trial.state != "running" for trial in trials)
    if stage.searches():
        return ended >= num_trials(stage, options, record)
    # Without a finished one the chain cannot go on: the failed ones are tried again.
    finished = any(trial.state == "finished" for trial in contenders(trials))
    return bool(finished and ended >= record["num_trials"])


def _run_stages(stages: Sequence[Stage], chain: Sequence[Stage], options: Options) -> None:
    with ray_session.connected(state_api=any(stage.nested() for stage in stages)):
        check_workers(options.num_workers)
        ray_machines.check_shared(options.root)
        for stage in stages:
            if _is_finished(stage, chain, options):
                options.say(f"{stage.name}: finished before")
            else:
                _run_stage(stage, chain, options)


def check_workers(num_workers: int) -> None:
    """Refuse more workers than there are GPUs, or cores where there is no GPU: a run would wait."""
    found = ray_machines.machines(num_workers)
    total = found.num_gpus or found.num_cpus
    if num_workers > total:
        raise InputError(f"--workers {num_workers}: this Ray has room for {total} at most")


def _run_stage(stage: Stage, chain: Sequence[Stage], options: Options) -> None:
    record = _open_record(stage, options)
    known = options.ledger(stage).read()
    observers: list[Observer] = []
    if options.observe is not None:
        observers.append(options.observe(stage, record["num_trials"], known))
    labels = outcomes.labels(stage, chain, record)
    observers.append(tracking.Tracking(options.trackers, labels, known=known))
    mirrored = _mirror(stage, record, options)
    observers += mirrored
    clock = meter.Meter(
        options.ledger(stage),
        record,
        num_workers=1 if stage.searches() and not stage.nested() else options.num_workers,
        allowed=_allowed(stage, chain, options),
    )
    alarm = twins.Alarm(known, options.say)
    ledger, data = options.ledger(stage, [clock, alarm, *observers]), options.data_file(stage)
    started = time.monotonic()
    if stage.searches():
        terms = ray_tuner.Terms(
            num_workers=options.num_workers,
            tick_seconds=options.tick_seconds,
            may_go_on=clock.may_go_on,
        )
        ray_tuner.search(stage, record, ledger, data=data, terms=terms)
        if not clock.may_go_on():
            record["closed"] = "its share of the budget was spent"
            options.say(f"{stage.name}: {record['closed']}; with more --hours it would go on")
    else:
        ray_runs.train_selected(
            stage,
            record,
            ledger,
            parents=_source_trials(stage, options),
            data=data,
            num_workers=options.num_workers,
            tick_seconds=options.tick_seconds,
        )
    clock.close()
    for each in mirrored:
        each.close()
    trials = ledger.read()
    _check_end(stage, trials, record, ledger.root)
    options.say(f"{stage.name}: {_ends(trials)}; {time.monotonic() - started:.0f} s")


def _mirror(stage: Stage, record: Record, options: Options) -> list[Mirror]:
    if options.local is None or not stage.searches():
        return []
    path = options.local / stage.name / mirror.NAME
    space = records.space_of(record)
    return [Mirror(path, name=stage.name, space=space, read=options.ledger(stage).read)]


def _open_record(stage: Stage, options: Options) -> Record:
    """Return what the stage draws from: as it was begun, or fixed now."""
    ledger, data = options.ledger(stage), options.data_file(stage)
    record = ledger.read_stage()
    if record is None:
        parent = options.ledger(stage.after) if stage.after else None
        record = records.begin(
            stage,
            data,
            num_trials=options.num_trials.get(stage.name, stage.budget.num_trials),
            parent=parent.read_stage() if parent else None,
            parent_trials=_source_trials(stage, options),
        )
        for warning in record["warnings"]:
            options.say(f"{stage.name}: {warning}")
    record.pop("closed", None)
    if stage.searches():
        record["num_trials"] = num_trials(stage, options, record)
    ledger.write_stage(record)
    return record


def _source_trials(stage: Stage, options: Options) -> list[Trial]:
    return [trial for each in sources(stage) for trial in options.ledger(each).read()]


def _check_end(stage: Stage, trials: Sequence[Trial], record: Record, root: str) -> None:
    ended = sum(trial.state != "running" for trial in trials)
    wanted = record["num_trials"]
    if ended < wanted and "closed" not in record:
        raise WorkError(
            f"stage {stage.name!r} was interrupted after {ended} of {wanted} trials; "
            "run the same command to go on"
        )
    if not any(trial.state == "finished" for trial in contenders(trials)):
        failed = {trial.reason for trial in contenders(trials) if trial.reason}
        reasons = "; ".join(sorted(failed)[:3])
        raise WorkError(f"no trial of stage {stage.name!r} finished: {reasons}; see {root}")


def _allowed(stage: Stage, chain: Sequence[Stage], options: Options) -> spending.Spent:
    """Return what a stage may have spent when it has to end; only a search ever has to."""
    if not stage.searches():
        return meter.UNLIMITED
    index = list(chain).index(stage)
    before = spending.Spent()
    for earlier in chain[:index]:
        ledger = options.ledger(earlier)
        before += spending.spent(ledger.read_stage(), ledger.read())
    weights = [_weight(each, options) for each in chain]
    limits = options.limits
    return spending.Spent(
        wall_seconds=spending.allowance(
            limits.wall_seconds, spent=before.wall_seconds, weights=weights, index=index
        ),
        device_seconds=spending.allowance(
            limits.device_seconds, spent=before.device_seconds, weights=weights, index=index
        ),
    )


def _weight(stage: Stage, options: Options) -> float:
    path = options.data_file(stage)
    size = int(hdf5.attributes(path)["size"])
    return spending.weight(stage, num_train=hdf5.slots(path)["train"].count, size=size)


def _ends(trials: Sequence[Trial]) -> str:
    states = ("finished", "stopped", "diverged", "failed")
    counts = {state: sum(trial.state == state for trial in trials) for state in states}
    best = max(trial.score for trial in contenders(trials) if trial.state == "finished")
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    return f"{', '.join(parts)}; best score {best:.4f}"

"""Plan a chain where it would run: read its ledgers, measure its models, start nothing of it.

``aiornot tune fast --plan`` is this room. The models are measured in this process, or in a task of
Ray where Ray has GPUs and this machine has none.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import torch

from aiornot import ray_session, storage
from aiornot.config import InputError, WorkError
from aiornot.data import copies, hdf5
from aiornot.training import pace
from aiornot.training.loader import prefix
from aiornot.training.pace import Pace
from aiornot.training.run import check_steps
from aiornot.tuning import options as choices
from aiornot.tuning import outlook, plan, ray_chain, ray_machines, spending
from aiornot.tuning import record as records
from aiornot.tuning.ledger import Trial
from aiornot.tuning.options import Options
from aiornot.tuning.outlook import Case, Machines, Part
from aiornot.tuning.plan import Row
from aiornot.tuning.record import Record
from aiornot.tuning.space import Stage
from aiornot.tuning.stages import load_chain, sources

CALIBRATION_SECONDS = 60.0
"""For all models together, warming up not counted."""

LONGEST_SECONDS = 2.0
"""To train one model; as much again goes into the rest of its measurement."""

Progress = Callable[[str, int, int], None]


def make(folder: Path, options: Options, *, progress: Progress) -> Row:
    """Return what is left of a chain and what that will cost; nothing is written.

    Args:
        folder: Of the stage files.
        options: As for ``ray_chain.run_chain``.
        progress: Told what is measured, how many models are done, and how many there are.

    Raises:
        InputError: A stage file, the data, a model or the options cannot be used.
        WorkError: Not even one image of a model fits into memory.
    """
    options = dataclasses.replace(options, root=storage.absolute(options.root))
    stages = load_chain(folder)
    choices.check(stages, options)
    parts = _parts(stages, options)
    names = [stage.name for stage in stages]
    wanted = parts[: names.index(options.only) + 1] if options.only else parts
    _check_lengths(wanted)
    load_per_core = os.getloadavg()[0] / (os.cpu_count() or 1)
    with ray_session.connected():
        ray_chain.check_workers(options.num_workers)
        machines = ray_machines.machines(options.num_workers)
        cases = plan.cases(wanted, machines)
        paces = dict(zip(cases, _measured(cases, machines, progress), strict=True))
    rows = plan.rows(wanted, paces, machines)
    weights = [spending.weight(p.stage, num_train=p.num_train, size=p.size) for p in parts]
    limits = {
        "--hours": ("wall", options.limits.wall_seconds),
        "--gpu-hours": ("device", options.limits.device_seconds),
    }
    return {
        "chain": folder.name,
        "storage": options.root,
        "free_bytes": _free_bytes(options.root),
        "load_per_core": load_per_core,
        **dataclasses.asdict(machines),
        "stages": rows,
        "total": plan.total(rows),
        "limits": {
            option: plan.within(wanted, rows, limit=limit, what=what, weights=weights)
            for option, (what, limit) in limits.items()
            if limit is not None
        },
        "paces": [plan.pace_row(case, found) for case, found in paces.items()],
    }


def _parts(stages: Sequence[Stage], options: Options) -> list[Part]:
    parts: list[Part] = []
    for stage in stages:
        ledger = options.ledger(stage)
        record = None if options.fresh else ledger.read_stage()
        trials = [] if options.fresh else ledger.read()
        data = options.data_file(stage)
        if record is not None:
            records.check_unchanged(stage, data, record, place=options.root)
        elif parts and not parts[-1].left() and parts[-1].has_finished():
            record = _would_begin(stage, data, parts)
        parts.append(_part(stage, options, record, trials))
    return parts


def _would_begin(stage: Stage, data: Path, before: Sequence[Part]) -> Record:
    names = {each.name for each in sources(stage)}
    return records.begin(
        stage,
        data,
        num_trials=stage.budget.num_trials,
        parent=before[-1].record,
        parent_trials=[
            trial for part in before if part.stage.name in names for trial in part.trials
        ],
    )


def _part(stage: Stage, options: Options, record: Record | None, trials: Sequence[Trial]) -> Part:
    data = options.data_file(stage)
    slots = hdf5.slots(data)
    if stage.searches():
        num_trials = ray_chain.num_trials(stage, options, record)
    elif record:
        num_trials = record["num_trials"]
    else:
        num_trials = stage.enqueue * len(stage.seeds) + stage.num_beside()
    return Part(
        stage=stage,
        num_trials=num_trials,
        data=data.resolve(),
        num_train=slots["train"].count,
        num_val=slots["val"].count,
        size=int(hdf5.attributes(data)["size"]),
        record=record,
        trials=trials,
    )


def _check_lengths(parts: Sequence[Part]) -> None:
    """Refuse schedules that are too short to be reported: each of their trials would fail."""
    for part, configs in zip(parts, outlook.configurations(parts), strict=True):
        num_train = prefix(part.num_train, part.stage.budget.train_fraction)
        try:
            for config in configs if part.left() else []:
                check_steps(config, num_train=num_train, data=part.data)
        except InputError as error:
            raise InputError(f"stage {part.stage.name!r}: {error}") from None


def _measured(cases: Sequence[Case], machines: Machines, progress: Progress) -> Iterator[Pace]:
    """Yield the pace of each case, from here or from where the GPUs are."""
    seconds = min(LONGEST_SECONDS, CALIBRATION_SECONDS / 2 / max(1, len(cases)))
    if machines.num_gpus and not torch.cuda.is_available():
        cpus = max((case.num_threads for case in cases), default=1)
        task = ray.remote(_paces).options(num_gpus=1, num_cpus=cpus, num_returns="streaming")
        told = [copies.told(case.data) for case in cases]
        found: Iterator[Pace] = map(_got, task.remote(cases, seconds, told))
    else:
        found = _paces(cases, seconds, on_gpu=machines.num_gpus > 0)
    for number, case in enumerate(cases):
        progress(f"measuring {case.config.model} at {case.data.stem}", number, len(cases))
        yield next(found)


def _paces(
    cases: Sequence[Case],
    seconds: float,
    told: Sequence[Mapping[str, str]] | None = None,
    *,
    on_gpu: bool = True,
) -> Iterator[Pace]:
    """Measure one case after the other; ``told`` is needed on another machine than the driver's."""
    device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
    for number, case in enumerate(cases):
        yield pace.measure(
            case.config,
            data=copies.here(**told[number]) if told else case.data,
            device=device,
            seconds=seconds,
            num_threads=case.num_threads,
        )


def _got(reference: Any) -> Pace:
    try:
        found: Pace = ray.get(reference)
        return found
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | WorkError):
            raise error.cause from None
        raise


def _free_bytes(root: str) -> int | None:
    """Return the free bytes where checkpoints will lie; nobody knows those of a bucket."""
    if storage.is_remote(root):
        return None
    here = Path(root)
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free

"""The verbs of training one configuration: ``train``, ``probe``."""

import dataclasses
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from aiornot.config import TICKS, InputError, TrainConfig, WorkError
from aiornot.verbs import common
from aiornot.verbs.common import (
    PREPARED,
    DataOption,
    DeviceOption,
    JsonOption,
    RuleOption,
    TensorboardOption,
    WandbOption,
)

_SWITCH = {"auto": None, "on": True, "off": False}


def train(
    data: DataOption = PREPARED,
    profile: Annotated[str, typer.Option(help="debug, reduced or full.")] = "full",
    out: Annotated[Path, typer.Option(help="Folder of this run.")] = Path("runs/train"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, a field of TrainConfig.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="First weights from a file, or a bundle's folder.")
    ] = None,
    overfit_one_batch: Annotated[
        bool, typer.Option("--overfit-one-batch", help="Can the model learn one batch by heart?")
    ] = False,
    profiler: Annotated[
        Path | None, typer.Option(help="Folder for a torch trace of a few steps.")
    ] = None,
    compile_augment: Annotated[str, typer.Option(help="on, off, or auto: on a GPU only.")] = "auto",
    watch: Annotated[
        str | None, typer.Option(help="Look inside the last step of these ticks: 1,8,16, or all.")
    ] = None,
    rule: RuleOption = None,
    device: DeviceOption = "auto",
    wandb: WandbOption = "auto",
    tensorboard: TensorboardOption = False,
) -> None:
    """Train one configuration here and now, without Ray; the same command resumes it.

    Example: aiornot train --out runs/baseline --set lr=3e-4 --set hflip=0.5
    """
    # What was misspelt is told now: the imports below take seconds.
    if compile_augment not in _SWITCH:
        raise InputError(f"--compile-augment {compile_augment}: use {', '.join(_SWITCH)}")
    watched = watched_ticks(watch)
    config = _config(settings, weights)
    common.check_folders({"--out": out, "--profiler": profiler})
    path = common.prepared(data, profile)

    from aiornot import console
    from aiornot.data import hdf5
    from aiornot.delivery import bundle, registry
    from aiornot.training import checkpoints, job, strips, trace
    from aiornot.training import watch as watching
    from aiornot.tuning import tracking
    from aiornot.tuning.ledger import Ledger

    if overfit_one_batch:
        config = job.one_batch(config, num_train=hdf5.slots(path)["train"].count)
    common.check_trainable(config, path)
    place = common.torch_device(device)
    with (
        common.alone(out),
        tracking.opened(out, wandb=wandb, tensorboard=tensorboard, say=console.say) as trackers,
    ):
        with console.observing() as observe:
            ledger = Ledger(str(out), observers=[observe("train", 1, each_tick=True)])
            trial = _only_trial(ledger, config, hdf5.attributes(path)["settings"])
            labels = tracking.Labels(
                run=trial.params["run"],
                group="train",
                job_type="train",
                tags=[path.stem],
                name=str(out),
            )
            probes = out / "probes"
            more = partial(watching.logged, probes)
            ledger.observe(tracking.Tracking(trackers.all, labels, more=more, known=[trial]))
            if trial.state == "running":
                ledger.rewind(trial)
                if not trial.ticks:  # another run may have begun here
                    watching.clear(probes)
                ledger.begin(trial)
                with trace.profiled(profiler) if profiler else nullcontext():
                    job.run(
                        trial.config,
                        data=path,
                        device=place,
                        root=ledger.trial_folder(trial.id),
                        tell=partial(ledger.tick, trial),
                        told=trial.tick,
                        compile_augment=_SWITCH[compile_augment],
                        watch=strips.watch(watched, probes),
                    )
                ledger.end(trial)
            elif watched:
                console.say(f"{out} was finished before: nothing is left to watch")
        if trial.state != "finished":
            raise WorkError(f"{out}: the trial {trial.state}: {trial.reason}")
        if overfit_one_batch:
            _check_by_heart(trial, out)
            return
        tick = int(trial.last("best_tick"))
        best = Path(checkpoints.folder_of(ledger.trial_folder(trial.id), tick))
        lineage = {"trial": trial.id, "tick": tick, "folder": str(out)}
        delivered = bundle.write(
            best, out / "bundle", data=path, device=place, rule=rule, lineage=lineage
        )
        common.print_bundle(delivered)
        registry.deliver(trackers.wandb, delivered, trial, labels, more=more)


def watched_ticks(text: str | None) -> frozenset[int]:
    """Return the ticks that ``--watch`` names, such as ``1,8,16`` or ``all``; unsaid, none.

    Raises:
        InputError: It names no ticks, or some that there are not.
    """
    if text is None:
        return frozenset()
    words = map(str, range(1, TICKS + 1)) if text == "all" else text.replace(" ", "").split(",")
    ticks = [int(word) if word.isdecimal() else 0 for word in words]
    if not all(1 <= tick <= TICKS for tick in ticks):
        raise InputError(f"--watch {text}: give ticks from 1 to {TICKS}, such as 1,8,16, or all")
    return frozenset(ticks)


def _config(settings: list[str] | None, weights: Path | None) -> TrainConfig:
    config = TrainConfig.from_settings(settings or [])
    if weights is None:
        return config
    if not weights.exists():
        raise InputError(f"--weights {weights}: no such file or folder")
    # Absolute, for it is kept with the run, which may go on elsewhere.
    return dataclasses.replace(config, weights=str(weights.absolute()))


def _check_by_heart(trial: Any, out: Path) -> None:
    from aiornot import console
    from aiornot.training import job

    loss, epochs = trial.last("train/loss"), trial.config["epochs"]
    if loss > job.BY_HEART:
        raise WorkError(
            f"{out}: after {epochs} steps on one batch the loss is {loss:.4f}, above "
            f"{job.BY_HEART}: raise lr, or look for what keeps this model from learning"
        )
    console.say(f"one batch is known by heart: loss {loss:.4f} after {epochs} steps")


def _only_trial(ledger: Any, config: TrainConfig, data_settings: str) -> Any:
    """Return the trial of an earlier, equal command, or a new one."""
    import uuid

    from aiornot.tuning.ledger import Trial

    # A run that stopped before its first tick holds nothing worth keeping.
    found = [trial for trial in ledger.read() if trial.ticks]
    if not found:
        params = {"data": data_settings, "run": uuid.uuid4().hex[:8]}
        return Trial(id="train-000", number=0, params=params, config=config.to_dict())
    trial = found[0]
    changes = [
        f"{key} was {trial.config.get(key)!r}, is {value!r}"
        for key, value in config.to_dict().items()
        if trial.config.get(key) != value
    ]
    if trial.params["data"] != data_settings:
        changes.append("the data is another")
    if changes:
        raise InputError(
            f"{ledger.root} holds another run: {'; '.join(changes)}; "
            "give the same command to resume it, or another --out"
        )
    return trial


def probe(
    data: DataOption = PREPARED,
    profile: Annotated[str, typer.Option(help="debug, reduced or full.")] = "full",
    out: Annotated[Path, typer.Option(help="Folder of lr.png and probe.json.")] = Path(
        "runs/probe"
    ),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, a field of TrainConfig.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Suggest a learning rate, and on a GPU measure how many images fit into memory at once.

    Example: aiornot probe --set model=resnet18.a1_in1k
    """
    config = TrainConfig.from_settings(settings or [])
    common.check_folders({"--out": out})
    path = common.prepared(data, profile)

    from aiornot import console
    from aiornot.training import probes

    common.check_trainable(config, path)
    place = common.torch_device(device)
    with console.counting() as counter:
        report = probes.probe(config, data=path, device=place, out=out, progress=counter.update)
    console.say(f"the curve is in {out / probes.PLOT}")
    if as_json:
        console.print_json(report)
    else:
        print("\n".join(report["summary"]))

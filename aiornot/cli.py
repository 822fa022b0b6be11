"""The verbs. Each imports what it needs when it runs: ``aiornot train`` needs no Ray.

stdout is the result, stderr the talk. Exit code 0: done, 1: the work failed, 2: used wrongly.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from aiornot.config import InputError, TrainConfig, WorkError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tune a detector of AI-generated images: parquet in, calibrated model out.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto prefers a GPU.")]


_SWITCH = {"auto": None, "on": True, "off": False}
_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


def main() -> None:
    """Run a verb; turn what the user can mend into one sentence and an exit code."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        _stop(error, 2)
    except WorkError as error:
        _stop(error, 1)
    except ModuleNotFoundError as error:
        extra = {"ray": "ray", "optuna": "ray", "wandb": "wandb"}.get(error.name or "")
        if extra is None:
            raise
        _stop(f"{error.name} is not installed; pip install 'aiornot[{extra}]'", 2)
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        _stop("interrupted; the same command goes on from here", 1)


def _stop(message: object, code: int) -> None:
    sys.stderr.write(f"aiornot: {message}\n")
    sys.exit(code)


@app.command("demo-data")
def demo_data(
    out: Annotated[Path, typer.Argument(help="Folder of the parquet shards.")],
    num_images: Annotated[int, typer.Option(help="How many, half of each class.")] = 4000,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 64,
    difficulty: Annotated[float, typer.Option(help="0 (plain traces) to 1 (none).")] = 0.25,
    generators: Annotated[str, typer.Option(help="Families of traces, comma-separated.")] = "",
    bias: Annotated[str, typer.Option(help="format: plant a leak (generated = PNG).")] = "none",
    seed: Annotated[int, typer.Option()] = 0,
    num_files: Annotated[
        int, typer.Option(help="Also write this many further images as files, to predict.")
    ] = 0,
) -> None:
    """Write the synthetic stand-in dataset: same columns as the real one, no download.

    Example: aiornot demo-data demo/parquet
    """
    from aiornot import console
    from aiornot.data import demo, synthesis

    if bias not in ("none", "format"):
        raise InputError(f"--bias {bias}: use none or format")
    chosen = tuple(generators.split(",")) if generators else synthesis.GENERATORS
    with console.counting() as counter:
        made = 0

        def progress(count: int) -> None:
            nonlocal made
            made += count
            counter.update("making images", made, num_images)

        paths = demo.write(
            out,
            num_images=num_images,
            size=size,
            difficulty=difficulty,
            generators=chosen,
            bias=bias,  # type: ignore[arg-type]  # checked above
            seed=seed,
            progress=progress,
        )
    paths += demo.write_files(
        out / "images",
        first=num_images,
        count=num_files,
        size=size,
        difficulty=difficulty,
        seed=seed,
    )
    for path in paths:
        print(path)


@app.command()
def audit(
    source: Annotated[str, typer.Argument(help="Parquet file, folder, glob, s3:// or hf://...")],
    out: Annotated[str, typer.Option(help="Folder of the page, or s3://...")] = "runs/audit",
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Show small samples in the page.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the splits and the samples.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what in a source would let a detector cheat: formats, sizes, duplicates, metadata.

    Writes audit.html, one page that needs no other file, and audit.json.

    Example: aiornot audit data/aiornot --out runs/audit
    """
    from aiornot import console
    from aiornot.data import audit as auditing
    from aiornot.data import audit_page

    audit_page.check_out(out)
    with console.counting() as counter:
        found = auditing.measure(source, with_images=images, seed=seed, progress=counter.update)
    path = audit_page.write(out, found)
    for line in auditing.summary(found.report):
        console.say(line)
    if as_json:
        console.print_json(found.report)
    else:
        print(path)


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="Parquet file, folder, glob, s3:// or hf://...")],
    out: Annotated[Path, typer.Option(help="Folder of the prepared files.")] = Path(
        "data/prepared"
    ),
    profile: Annotated[str, typer.Option(help="debug, reduced or full.")] = "full",
    size: Annotated[int | None, typer.Option(help="Side in pixels instead of the profile's.")] = (
        None
    ),
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the source.")] = None,
    geometry: Annotated[str, typer.Option(help="resize, or crop: no resampling.")] = "resize",
    resample: Annotated[
        str, typer.Option(help="bicubic: Pillow's to the bit; fast: a few grey levels off.")
    ] = "bicubic",
    near_duplicates: Annotated[
        str, typer.Option(help="Bits of 128 in which hashes of one image may differ, or off.")
    ] = "10",
    max_rejected: Annotated[float, typer.Option(help="Share of images that may be bad.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the splits.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Decode parquet shards of labelled images into one HDF5 file, with Ray Data.

    Example: aiornot prepare data/aiornot --out data/prepared --profile reduced
    """
    from aiornot import console
    from aiornot.data import layout, ray_prepare

    if profile not in layout.PROFILES:
        raise InputError(f"--profile {profile}: use {', '.join(layout.PROFILES)}")
    if geometry not in ("resize", "crop"):
        raise InputError(f"--geometry {geometry}: use resize or crop")
    if resample not in ("bicubic", "fast"):
        raise InputError(f"--resample {resample}: use bicubic or fast")
    if near_duplicates != "off" and not near_duplicates.isdigit():
        raise InputError(f"--near-duplicates {near_duplicates}: give a number of bits, or off")
    base = layout.PROFILES[profile]
    wanted = dataclasses.replace(
        base,
        size=base.size if size is None else size,
        limit=base.limit if limit is None else limit,
        geometry=geometry,  # type: ignore[arg-type]  # checked above
        resample=resample,  # type: ignore[arg-type]  # checked above
    )
    with console.counting() as counter:
        summary = ray_prepare.prepare(
            source,
            out,
            wanted,
            seed=seed,
            near_duplicates=None if near_duplicates == "off" else int(near_duplicates),
            max_rejected=max_rejected,
            progress=counter.update,
        )
    if as_json:
        console.print_json(dataclasses.asdict(summary))
        return
    counts = ", ".join(f"{split} {count}" for split, count in summary.counts.items())
    print(f"{summary.path}: {counts}; {summary.rejected} rejected")
    if summary.skipped:
        console.say(f"{summary.path} was finished before, from the same rows and settings")
    if summary.replaced:
        console.say(f"{summary.path} was of another source or other settings, and was replaced")
    if summary.duplicates:
        console.say(
            f"{summary.duplicates} rows show the same as an earlier one and stand in its split, "
            f"{summary.conflicts} groups of them under both labels; "
            f"{summary.path.with_suffix('.splits.json')} lists them"
        )


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder of the prepared files, or one file.")] = Path(
        "data/prepared"
    ),
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
    device: DeviceOption = "auto",
    wandb: Annotated[str, typer.Option(help="auto, or off.")] = "auto",
) -> None:
    """Train one configuration here and now, without Ray; the same command resumes it.

    Example: aiornot train --out runs/baseline --set lr=3e-4 --set hflip=0.5
    """
    from aiornot import console
    from aiornot.data import hdf5
    from aiornot.delivery import bundle
    from aiornot.training import checkpoints, job, strips, trace, track
    from aiornot.training import watch as watching
    from aiornot.tuning.ledger import Ledger

    if compile_augment not in _SWITCH:
        raise InputError(f"--compile-augment {compile_augment}: use {', '.join(_SWITCH)}")
    watched = watching.parse(watch) if watch is not None else frozenset()
    config = TrainConfig.from_settings(settings or [])
    if weights is not None:  # absolute, for it is kept with the run, which may go on elsewhere
        config = dataclasses.replace(config, weights=str(weights.absolute()))
    path = _prepared(data, profile)
    if overfit_one_batch:
        config = job.one_batch(config, num_train=hdf5.slots(path)["train"].count)
    _check_folders({"--out": out, "--profiler": profiler})
    _check_trainable(config, path)
    place = _device(device)
    tracker = track.Tracker("aiornot", out / "wandb", mode=wandb)
    with console.observing() as observe:
        ledger = Ledger(str(out), observers=[observe("train", 1, each_tick=True)])
        trial = _only_trial(ledger, config, hdf5.attributes(path)["settings"])
        probes = out / "probes"
        if trial.state == "running":
            ledger.rewind(trial)
            if not trial.ticks:  # another run may have begun here
                watching.clear(probes)
            run_id = f"{trial.id}-{trial.params['run']}"
            tracker.start(
                run_id,
                name=str(out),
                group="train",
                tags=[path.stem],
                config=trial.config,
                ticks=[tick | watching.logged(probes, int(tick["tick"])) for tick in trial.ticks],
            )
            ledger.begin(trial)

            def tell(metrics: dict[str, float]) -> None:
                ledger.tick(trial, metrics)
                tracker.tick(run_id, metrics | watching.logged(probes, int(metrics["tick"])))

            root = ledger.trial_folder(trial.id)
            with trace.profiled(profiler) if profiler else nullcontext():
                job.run(
                    trial.config,
                    data=path,
                    device=place,
                    root=root,
                    tell=tell,
                    told=trial.tick,
                    compile_augment=_SWITCH[compile_augment],
                    watch=strips.watch(watched, probes),
                )
            ledger.end(trial)
            tracker.end(run_id, {"state": trial.state, "score": trial.score})
        elif watched:
            console.say(f"{out} was finished before: nothing is left to watch")
    if hint := tracker.close():
        console.say(hint)
    if trial.state != "finished":
        raise WorkError(f"{out}: the trial {trial.state}: {trial.reason}")
    if overfit_one_batch:
        loss = trial.last("train/loss")
        if loss > job.BY_HEART:
            raise WorkError(
                f"{out}: after {config.epochs} steps on one batch the loss is {loss:.4f}, above "
                f"{job.BY_HEART}: raise lr, or look for what keeps this model from learning"
            )
        console.say(f"one batch is known by heart: loss {loss:.4f} after {config.epochs} steps")
        return
    best = checkpoints.folder_of(ledger.trial_folder(trial.id), int(trial.last("best_tick")))
    lineage = {"trial": trial.id, "tick": int(trial.last("best_tick")), "folder": str(out)}
    delivered = bundle.write(Path(best), out / "bundle", data=path, device=place, lineage=lineage)
    _print_bundle(delivered)


def _check_folders(folders: dict[str, Path | None]) -> None:
    for name, folder in folders.items():
        if folder is not None and folder.is_file():
            raise InputError(f"{name} {folder}: there is a file of that name; give a folder")


def _check_trainable(config: TrainConfig, path: Path) -> None:
    """Refuse what cannot be trained on a prepared file before anything is written."""
    from aiornot.data import hdf5
    from aiornot.training import loader, model
    from aiornot.training import run as runs

    model.check(config, size=int(hdf5.attributes(path)["size"]))
    num_train = loader.prefix(hdf5.slots(path)["train"].count, config.train_fraction)
    runs.check_steps(config, num_train=num_train, data=path)


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


@app.command()
def probe(
    data: Annotated[Path, typer.Option(help="Folder of the prepared files, or one file.")] = Path(
        "data/prepared"
    ),
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
    from aiornot import console
    from aiornot.training import probes

    config = TrainConfig.from_settings(settings or [])
    path = _prepared(data, profile)
    _check_folders({"--out": out})
    _check_trainable(config, path)
    place = _device(device)
    with console.counting() as counter:
        report = probes.probe(config, data=path, device=place, out=out, progress=counter.update)
    console.say(f"the curve is in {out / probes.PLOT}")
    if as_json:
        console.print_json(report)
    else:
        print("\n".join(report["summary"]))


@app.command()
def tune(
    chain: Annotated[str, typer.Argument(help="Name below tune_spaces/, or a folder of stages.")],
    data: Annotated[Path, typer.Option(help="Folder of the prepared files.")] = Path(
        "data/prepared"
    ),
    storage: Annotated[str, typer.Option(help="Where runs lie: a folder or s3://...")] = "runs",
    workers: Annotated[int, typer.Option(min=1, help="Workers of each Ray Train run (DDP).")] = 1,
    trials: Annotated[
        list[str] | None, typer.Option(help="STAGE=N: more trials than the file says.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    hours: Annotated[
        float | None, typer.Option(help="Hours for the chain; full and final keep their share.")
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option(help="The same in hours of GPUs (of cores without one).")
    ] = None,
    tick_minutes: Annotated[
        float, typer.Option(help="End a process whose tick takes longer: it hangs.")
    ] = 120.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an old run aside first.")] = False,
    wandb: Annotated[str, typer.Option(help="auto, or off.")] = "auto",
    plan: Annotated[
        bool, typer.Option("--plan", help="Measure a minute, say what it would cost, and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a chain of stages to a delivered model; the same command resumes or extends it.

    Example: aiornot tune fast --data data/prepared
    """
    from aiornot import console
    from aiornot.delivery import bundle
    from aiornot.storage import is_remote, join
    from aiornot.training import checkpoints, track
    from aiornot.tuning import ray_chain, spending, stages

    track.resolve_mode(wandb)
    if as_json and not plan:
        raise InputError("--json goes with --plan; 'aiornot show' prints JSON of what ran")
    for name, value in (
        ("--hours", hours),
        ("--gpu-hours", gpu_hours),
        ("--tick-minutes", tick_minutes),
    ):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} {value:g}: give a number above 0")
    folder = stages.find_chain(chain)
    root = join(storage, folder.name)
    local = Path("runs") / folder.name if is_remote(root) else Path(root)
    options = ray_chain.Options(
        data=data,
        root=root,
        num_workers=workers,
        tick_seconds=60 * tick_minutes,
        limits=spending.Limits(
            wall_seconds=hours and 3600 * hours, device_seconds=gpu_hours and 3600 * gpu_hours
        ),
        num_trials=_stage_counts(trials or []),
        only=only,
        fresh=fresh,
        say=console.say,
        make_tracker=lambda: track.Tracker("aiornot", local / "wandb", mode=wandb),
    )
    if plan:
        _plan(folder, options, as_json=as_json)
        return
    with console.observing() as observe:
        observed = dataclasses.replace(
            options,
            observe=lambda stage, count, trials: observe(
                stage.name, count, each_tick=not stage.searches(), trials=trials
            ),
        )
        outcome = ray_chain.run_chain(folder, observed)
    if outcome is None:
        console.say(f"stopped after {only}, as asked; without --only the chain goes on")
        return
    with checkpoints.fetched(outcome.checkpoint) as checkpoint:
        out = bundle.write(
            checkpoint,
            local / "bundle",
            data=outcome.data,
            device=_device("auto"),
            lineage=outcome.lineage,
        )
    _print_bundle(out)


def _plan(folder: Path, options: Any, *, as_json: bool) -> None:
    from aiornot import console
    from aiornot.tuning import plan_tables, ray_plan

    with console.counting() as counter:
        found = ray_plan.make(folder, options, progress=counter.update)
    if as_json:
        console.print_json(found)
    for page in [] if as_json else plan_tables.of_plan(found):
        console.print_table(page.title, page.columns, page.rows, caption=page.caption)
        for line in page.below:
            print(line)


def _stage_counts(texts: Sequence[str]) -> dict[str, int]:
    counts = {}
    for text in texts:
        name, _, count = text.partition("=")
        if not count.isdigit() or int(count) < 1:
            raise InputError(f"--trials {text}: write STAGE=N, for example --trials explore=64")
        counts[name] = int(count)
    return counts


def _print_bundle(folder: Path) -> None:
    from aiornot import console
    from aiornot.delivery import manifest

    description = manifest.read(folder)
    note = description["data"].get("source_note")
    print(folder)
    auroc = description["val"]["metrics"]["auroc"]
    console.say(f"delivered {folder}: val AUROC {auroc:.4f}" + (f" ({note})" if note else ""))


@app.command()
def show(
    run: Annotated[str | None, typer.Argument(help="Chain or run below --storage.")] = None,
    stage: Annotated[str | None, typer.Argument(help="One stage of it.")] = None,
    storage: Annotated[str, typer.Option(help="Where runs lie.")] = "runs",
    trials: Annotated[bool, typer.Option("--trials", help="Every stage's leaderboard.")] = False,
    csv: Annotated[
        str | None, typer.Option(help="Write a stage's leaderboard to a file; - is stdout.")
    ] = None,
    plot: Annotated[str | None, typer.Option(help="Draw a stage into a folder, as PNG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what ran: the stages of a chain, or one stage and what its trials tell.

    Example: aiornot show demo explore
    """
    from aiornot import console
    from aiornot.tuning import board, tables

    if (csv or plot) and stage is None:
        raise InputError("--csv and --plot show one stage: aiornot show RUN STAGE")
    if csv == "-" and (as_json or plot):
        raise InputError("--csv - takes stdout for itself: give it a file, or --csv alone")
    found: Any
    if run is None:
        found = board.runs(storage)
        pages = [tables.of_runs(storage, found)]
    elif stage is None:
        found = board.stages(storage, run)
        pages = [tables.of_stages(run, found)]
        if trials:
            found = [board.leaderboard(storage, run, row["stage"]) for row in found]
            pages += [page for one in found for page in tables.of_leaderboard(one)]
    else:
        found = board.leaderboard(storage, run, stage)
        pages = tables.of_leaderboard(found)
    if csv == "-":
        print(tables.to_csv(found["trials"]), end="")
        return
    say = console.say if as_json else print
    if csv:
        tables.write_csv(csv, found["trials"])
        say(csv)
    if plot and run and stage:
        from aiornot.tuning import figures

        read = board.read_stage(storage, run, stage)
        for path in figures.write(plot, f"{run} {stage}", *read, found=found["importances"]):
            say(str(path))
    if as_json:
        console.print_json(found)
    for page in [] if as_json or csv or plot else pages:
        console.print_table(page.title, page.columns, page.rows, caption=page.caption)
        for line in page.below:
            print(line)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of a delivered model.")],
    data: Annotated[Path, typer.Option(help="Folder of the prepared files, or one file.")] = Path(
        "data/prepared"
    ),
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    again: Annotated[bool, typer.Option("--again", help="Score anew what is recorded.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score a delivered model on a split; opening the test split is recorded in the bundle.

    A score that is recorded already is shown and not made again.

    Example: aiornot evaluate runs/fast/bundle --data data/prepared
    """
    from aiornot import console
    from aiornot.delivery import evaluate as evaluating
    from aiornot.delivery import manifest

    profile = manifest.read(bundle)["data"]["profile"]
    path = _prepared(data, profile)
    result = None if again else evaluating.recorded(bundle, data=path, split=split)
    if result is not None:
        console.say(f"recorded at {result['time']}; --again scores it once more")
    else:
        from aiornot.delivery import bundle as bundles

        result = bundles.evaluate_split(bundle, data=path, split=split, device=_device(device))
        if result["opened_before"]:
            console.say(
                f"the test split was opened {result['opened_before']} time(s) before for this "
                "bundle: a choice made after seeing it makes this score too good"
            )
    if as_json:
        console.print_json(result)
        return
    note = result["data"]["source_note"]
    count = result["num_real"] + result["num_generated"]
    title = f"{bundle}: {split}, {count} images" + (f"; {note}" if note else "")
    rows = []
    for name, value in result["metrics"].items():
        low, high = result["intervals"].get(name, (None, None))
        interval = f"{low:.4f} - {high:.4f}" if low is not None else ""
        rows.append([name, "-" if value is None else f"{value:.4f}", interval])
    console.print_table(title, ["metric", "value", "95 % interval"], rows)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Folder of a delivered model.")],
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of them.")],
    batch_size: Annotated[int, typer.Option()] = 32,
    device: DeviceOption = "auto",
) -> None:
    """Print one JSON line per image: probability of being generated, verdict, threshold, model.

    Example: aiornot predict runs/fast/bundle photo.jpg holiday/
    """
    from aiornot.delivery import bundle as bundles
    from aiornot.delivery import predict as predicting

    loaded = bundles.load(bundle, device=_device(device))
    failed = 0
    for prediction in predicting.predict(loaded, images, batch_size=batch_size):
        failed += prediction.error is not None
        print(json.dumps(prediction.to_dict()), flush=True)
    if failed:
        raise WorkError(f"{failed} file(s) could not be read; their lines say why")


def _prepared(data: Path, profile: str) -> Path:
    """Return the prepared file that ``--data`` means: itself, or the profile's in a folder."""
    return data if data.is_file() else data / f"{profile}.h5"


def _device(name: str) -> Any:
    """Return the torch device of a name."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: there is no GPU here; use --device cpu")
    return device

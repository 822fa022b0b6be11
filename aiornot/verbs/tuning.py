"""The verbs of the search: ``tune``, ``show``."""

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiornot.config import InputError
from aiornot.verbs import common, reporting
from aiornot.verbs.common import PREPARED, JsonOption, RuleOption, TensorboardOption, WandbOption

if TYPE_CHECKING:
    from aiornot.tuning.options import Options
    from aiornot.tuning.tables import Table


def tune(
    chain: Annotated[str, typer.Argument(help="Name below tune_spaces/, or a folder of stages.")],
    data: Annotated[
        str, typer.Option(help="Folder of the prepared files; s3://... is fetched once per node.")
    ] = PREPARED,
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
    rule: RuleOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an old run aside first.")] = False,
    wandb: WandbOption = "auto",
    tensorboard: TensorboardOption = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Measure a minute, say what it would cost, and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a chain of stages to a delivered model; the same command resumes or extends it.

    Example: aiornot tune fast --data data/prepared
    """
    if as_json and not plan:
        raise InputError("--json goes with --plan; 'aiornot show' prints JSON of what ran")
    for name, value in (
        ("--hours", hours),
        ("--gpu-hours", gpu_hours),
        ("--tick-minutes", tick_minutes),
    ):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} {value:g}: give a number above 0")
    folder, options = _options(
        chain,
        data,
        storage,
        num_workers=workers,
        tick_seconds=60 * tick_minutes,
        wall_seconds=hours and 3600 * hours,
        device_seconds=gpu_hours and 3600 * gpu_hours,
        num_trials=_stage_counts(trials or []),
        only=only,
        fresh=fresh,
    )
    if plan:
        _plan(folder, options, as_json=as_json)
        return
    local = _folder_here(storage, folder.name)
    with common.alone(local):
        if _run(folder, options, local, wandb=wandb, tensorboard=tensorboard, rule=rule):
            _finish(folder.name, local, storage=storage, data=data)


def _folder_here(storage: str, run: str) -> Path:
    """Return the folder of a run on this machine: all of it, or what is not kept in the store."""
    from aiornot.storage import is_remote

    return Path("runs" if is_remote(storage) else storage, run)


def _options(
    chain: str,
    data: str,
    storage: str,
    *,
    wall_seconds: float | None,
    device_seconds: float | None,
    **values: Any,
) -> tuple[Path, "Options"]:
    """Return the folder of a chain and with what it is to run, both checked.

    Nothing heavy is imported for it: whoever misspelt a name is told at once.
    """
    from aiornot import console
    from aiornot.data import copies
    from aiornot.storage import check_address, join
    from aiornot.tuning import options, spending, stages

    check_address(storage)
    folder = stages.find_chain(chain)
    loaded = stages.load_chain(folder)
    found = options.Options(
        data=copies.folder_of(data),
        root=join(storage, folder.name),
        limits=spending.Limits(wall_seconds=wall_seconds, device_seconds=device_seconds),
        say=console.say,
        local=_folder_here(storage, folder.name),
        **values,
    )
    options.check_names(loaded, found)
    common.prepared_folder(data, dict.fromkeys(stage.data for stage in loaded))
    options.check(loaded, found)
    return folder, found


def _run(
    folder: Path,
    options: "Options",
    local: Path,
    *,
    wandb: str,
    tensorboard: bool,
    rule: str | None,
) -> bool:
    """Run a chain and deliver its model; return whether it got so far, or ``--only`` ended it."""
    from aiornot import console
    from aiornot.delivery import bundle, registry
    from aiornot.training import checkpoints
    from aiornot.tuning import ray_chain, tracking

    with tracking.opened(local, wandb=wandb, tensorboard=tensorboard, say=console.say) as trackers:
        with common.results_alone(), console.observing() as observe:
            observed = dataclasses.replace(
                options,
                trackers=trackers.all,
                observe=lambda stage, count, trials: observe(
                    stage.name, count, each_tick=not stage.searches(), trials=trials
                ),
            )
            outcome = ray_chain.run_chain(folder, observed)
        if outcome is None:
            console.say(f"stopped after {options.only}, as asked; without --only the chain goes on")
            return False
        with checkpoints.fetched(outcome.final.checkpoint) as checkpoint:
            out = bundle.write(
                checkpoint,
                local / "bundle",
                data=outcome.data,
                device=common.torch_device("auto"),
                rule=rule,
                lineage=outcome.final.lineage,
            )
        _compare(out, outcome)
        common.print_bundle(out)
        registry.deliver(trackers.wandb, out, outcome.final.trial, outcome.final.labels)
    return True


def _finish(run: str, local: Path, *, storage: str, data: str) -> None:
    """Write the report, and put what was delivered where the run lies."""
    from aiornot import console
    from aiornot.delivery import shelf
    from aiornot.storage import is_remote, join

    _report(run, storage=storage, data=data)
    if is_remote(storage):
        root = join(storage, run)
        shelf.keep(local, root)
        console.say(f"also in {root}; anywhere: aiornot fetch {run} --storage {storage}")


def _compare(bundle: Path, outcome: Any) -> None:
    """Compare what is delivered with the baseline on train and val, and say what came of it."""
    from aiornot import console
    from aiornot.delivery import compare
    from aiornot.training import checkpoints

    with ExitStack() as stack:
        baseline = outcome.baseline and Path(
            stack.enter_context(checkpoints.fetched(outcome.baseline.checkpoint))
        )
        found = compare.deliver(
            bundle,
            baseline,
            data=outcome.data,
            device=common.torch_device("auto"),
            lineage=outcome.baseline and outcome.baseline.lineage,
        )
    if found is None:
        return
    val = found["splits"]["val"]
    console.say(f"val, by which it was chosen: {val['verdict']}")
    if val["differences"]["auroc"]["better"] is False:
        console.say(f"the baseline is a bundle, too, and the better one: {bundle}/baseline")


def _report(run: str, *, storage: str, data: str) -> None:
    """Write the page; whatever is wrong with it, the model is delivered."""
    from aiornot import console

    try:
        path, _ = reporting.write(run, storage=storage, data=data)
    except InputError as error:
        console.say(f"no report was written: {error}")
    else:
        console.say(f"all of it on one page: {path}")


def _plan(folder: Path, options: "Options", *, as_json: bool) -> None:
    from aiornot import console
    from aiornot.tuning import plan_tables, ray_plan

    with common.results_alone(), console.counting() as counter:
        found = ray_plan.make(folder, options, progress=counter.update)
    if as_json:
        console.print_json(found)
    for page in [] if as_json else plan_tables.of_plan(found):
        _print(page)


def _print(page: "Table") -> None:
    from aiornot import console

    console.print_table(
        page.title, page.columns, page.rows, caption=page.caption, together=page.together
    )
    for line in page.below:
        console.print_text(line)


def _stage_counts(texts: Sequence[str]) -> dict[str, int]:
    counts = {}
    for text in texts:
        name, _, count = text.partition("=")
        if not count.isdigit() or int(count) < 1:
            raise InputError(f"--trials {text}: write STAGE=N, for example --trials explore=64")
        counts[name] = int(count)
    return counts


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
        _print(page)

"""The verbs of a delivered model: to calibrate, judge and use it, ``predict`` being the last."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from aiornot.config import InputError, WorkError
from aiornot.verbs import common
from aiornot.verbs.common import PREPARED, DataOption, DeviceOption, JsonOption, WandbOption

BundleArgument = Annotated[Path, typer.Argument(help="Folder of a delivered model.")]


def calibrate(
    bundle: BundleArgument,
    rule: Annotated[
        str,
        typer.Option(
            help='balanced, "fpr<=0.01", "fnr<=0.01" or cost:FP=5.', callback=common.a_rule
        ),
    ],
    data: DataOption = PREPARED,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Choose another threshold for a delivered model, on val; nothing is trained.

    Temperature and unsure band are fitted anew, too. Evaluations on record stay as they are.

    Example: aiornot calibrate runs/fast/bundle --rule "fpr<=0.01"
    """
    path = common.prepared_for(bundle, data)

    from aiornot import console
    from aiornot.delivery import bundle as bundles
    from aiornot.delivery import manifest

    former = manifest.read(bundle)
    found = bundles.recalibrate(bundle, rule=rule, data=path, device=common.torch_device(device))
    if (bundle / manifest.ROBUSTNESS).exists() and found["calibration"] != former["calibration"]:
        console.say(f"{bundle / manifest.ROBUSTNESS} is of the former threshold: measure it again")
    if as_json:
        console.print_json({key: found[key] for key in ("calibration", "val")})
        return
    rows = [
        [name, *(_cell(each["calibration"][name]) for each in (former, found))]
        for name in found["calibration"]
    ]
    rows += [
        [name, *(_cell(each["val"]["metrics"][name]) for each in (former, found))]
        for name in found["val"]["metrics"]
        if name.endswith("@threshold") or "sure" in name
    ]
    console.print_table(f"{bundle}: on val", ["", "before", "now"], rows)


def fetch(
    chain: Annotated[str, typer.Argument(help="Chain or run below --storage.")],
    storage: Annotated[str, typer.Option(help="Where runs lie: s3://...")],
    out: Annotated[Path, typer.Option(help="Folder of runs on this machine.")] = Path("runs"),
) -> None:
    """Fetch the delivered model and the report of a run that lies in an object store.

    Every byte is compared with its hash. A bundle that is here already stays as it is.

    Example: aiornot fetch fast --storage s3://bucket/runs
    """
    from aiornot import console
    from aiornot.delivery import shelf
    from aiornot.storage import is_remote, join

    if not is_remote(storage):
        raise InputError(f"--storage {storage}: what lies on this machine needs no fetching")
    common.check_folders({"--out": out})
    if not shelf.bring(join(storage, chain), out / chain):
        console.say(f"{out / chain / shelf.BUNDLE} was here before")
    print(out / chain / shelf.BUNDLE)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " - ".join(map(_cell, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value or "-")


def evaluate(
    bundle: BundleArgument,
    data: DataOption = PREPARED,
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    again: Annotated[bool, typer.Option("--again", help="Score anew what is recorded.")] = False,
    device: DeviceOption = "auto",
    wandb: WandbOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score a delivered model on a split; opening the test split is recorded in the bundle.

    A score that is recorded already is shown and not made again. That of the test split goes into
    the W&B run of the trial that was delivered.

    Example: aiornot evaluate runs/fast/bundle --data data/prepared
    """
    path = common.prepared_for(bundle, data)

    from aiornot import console
    from aiornot.delivery import evaluate as evaluating
    from aiornot.delivery import manifest, registry

    result = None if again else evaluating.recorded(bundle, data=path, split=split)
    if result is not None:
        console.say(f"recorded at {result['time']}; --again scores it once more")
    else:
        from aiornot.delivery import bundle as bundles

        result = bundles.evaluate_split(
            bundle, data=path, split=split, device=common.torch_device(device)
        )
        if result["opened_before"]:
            console.say(
                f"the test split was opened {result['opened_before']} time(s) before for this "
                "bundle: a choice made after seeing it makes this score too good"
            )
        if hint := registry.evaluated(bundle, result, mode=wandb):
            console.say(hint)
    compared = None
    if (bundle / manifest.BASELINE).is_dir():
        from aiornot.delivery import compare

        compared = compare.complete(
            bundle, data=path, split=split, device=common.torch_device(device), again=again
        )
    if as_json:
        console.print_json(result | ({"comparison": compared} if compared else {}))
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
    if compared is not None:
        console.print_table("results", compare.COLUMNS, compare.rows(compared))
        print(f"{split}: {compared['splits'][split]['verdict']}")


def robustness(
    bundle: BundleArgument,
    data: DataOption = PREPARED,
    split: Annotated[str, typer.Option(help="val, or test: it counts as opened then.")] = "val",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say how a delivered model holds up on images that were scaled, cropped, blurred, compressed.

    Writes robustness.json into the bundle.

    Example: aiornot robustness runs/fast/bundle --data data/prepared
    """
    path = common.prepared_for(bundle, data)

    from aiornot import console
    from aiornot.delivery import robustness as robust

    place = common.torch_device(device)
    with console.counting() as counter:
        found = robust.measure(
            bundle, data=path, split=split, device=place, progress=counter.update
        )
    _say_opened(found)
    if as_json:
        console.print_json(found)
        return
    metrics = ("auroc", "balanced_accuracy@threshold", "fpr@threshold", "flip_rate")
    conditions = [(row["name"], row) for row in found["tiers"]]
    for curve, points in found["curves"].items():
        conditions += [(f"{curve} {row['value']:g}", row) for row in points]
    rows = [[name, *(_with_interval(row, key) for key in metrics)] for name, row in conditions]
    count, rule = found["num_real"] + found["num_generated"], found["calibration"]["rule"]
    title = f"{bundle}: {split}, {count} images, threshold by {rule}"
    console.print_table(title, ["condition", *metrics], rows, caption=found["about"])
    if found["generators"]:
        tiers = list(found["generators"][0]["called_generated"])
        console.print_table(
            "called generated, by generator",
            ["generator", "class", "images", *tiers],
            [
                [
                    row["generator"] + " (held out)" * (row["generator"] == found["held_out"]),
                    row["class"],
                    str(row["num"]),
                    *(_share(row["called_generated"][tier]) for tier in tiers),
                ]
                for row in found["generators"]
            ],
        )


def _with_interval(row: dict[str, Any], metric: str) -> str:
    return _share({"share": row["metrics"][metric], "interval": row["intervals"][metric]})


def _share(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['share']:.3f} [{low:.3f}, {high:.3f}]"


def _say_opened(result: dict[str, Any]) -> None:
    from aiornot import console

    if result["opened"]:
        console.say("this opened the test split: whatever is chosen from now on has seen it")


def errors(
    bundle: BundleArgument,
    data: DataOption = PREPARED,
    split: Annotated[str, typer.Option(help="val, or test: it counts as opened then.")] = "val",
    source: Annotated[
        str | None,
        typer.Option(help="The parquet it was prepared from: slices by size, format, quality."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the page; errors, beside the bundle.")
    ] = None,
    with_images: Annotated[
        bool, typer.Option("--with-images", help="Show the images: mind the terms of the data.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what a delivered model gets wrong, false positives first, and on which images it errs.

    Writes errors.html, one page that needs no other file, and errors.json.

    Example: aiornot errors runs/fast/bundle --data data/prepared
    """
    path = common.prepared_for(bundle, data)

    from aiornot import console
    from aiornot.data import pages
    from aiornot.delivery import errors as erring
    from aiornot.delivery import errors_page

    folder = out or str(bundle.absolute().parent / errors_page.NAME)
    pages.check_out(folder)
    with console.counting() as counter:
        found = erring.measure(
            bundle,
            data=path,
            split=split,
            device=common.torch_device(device),
            source=source,
            with_images=with_images,
            progress=counter.update,
        )
    _say_opened(found.report)
    written = errors_page.write(folder, found)
    for kind, (heading, word) in errors_page.KINDS.items():
        count = found.report[kind]
        console.say(f"{heading.lower()}: {count['errors']} of {count['images']} {word}")
    if as_json:
        console.print_json(found.report)
    else:
        print(written)


def verify(
    bundle: BundleArgument,
    data: Annotated[
        str | None, typer.Option(help="The prepared files, to score val again; or one file.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="By how much a metric of val may differ.")
    ] = (1e-6),
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a delivered model, and that it computes here what it says it does.

    Without --data: hashes, weights, logits of made-up images, and plain timm. Nothing is written.

    Example: aiornot verify runs/fast/bundle --data data/prepared
    """
    from aiornot.delivery import manifest

    manifest.read(bundle)
    path = common.prepared_for(bundle, data) if data else None

    from aiornot import console
    from aiornot.delivery import verify as verifying

    found = verifying.verify(
        bundle, data=path, device=common.torch_device(device), tolerance=tolerance
    )
    if as_json:
        console.print_json(found.to_dict())
        return
    for name, value in verifying.lines(found):
        print(f"{name:<18}{value}")


def export(
    bundle: BundleArgument,
    onnx: Annotated[Path, typer.Option(help="File to write.")],
    check: Annotated[
        list[Path] | None, typer.Option(help="Images to compare on, and folders of them.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a delivered model as ONNX: uint8 images in, calibrated probabilities out.

    What is written was compared with torch in onnxruntime, on made-up images and on --check.

    Example: aiornot export runs/fast/bundle --onnx detector.onnx --check holiday/
    """
    from aiornot.delivery import manifest

    manifest.read(bundle)

    from aiornot import console
    from aiornot.delivery import bundle as bundles
    from aiornot.delivery import export as exporting

    loaded = bundles.load(bundle, device=common.torch_device("cpu"))
    found = exporting.export(loaded, onnx, images=check or [])
    if found.difference is None:
        console.say("onnxruntime is not installed, so the file was not compared with torch")
    else:
        made_up = f"{found.num_compared - found.num_given} made-up images"
        given = f" and the {found.num_given} of --check" if found.num_given else ""
        console.say(
            f"{made_up}{given} in onnxruntime: probabilities differ from torch's by at most "
            f"{found.difference:.2g}"
        )
    if as_json:
        console.print_json(found.to_dict())
    else:
        print(onnx)


def predict(
    bundle: BundleArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Image files and folders of them; - reads a list of them from stdin."),
    ] = None,
    parquet: Annotated[
        str | None, typer.Option(help="Instead of files: parquet, a folder, glob, s3:// or hf://.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="With --parquet: folder of the results, or s3://...")
    ] = None,
    table: Annotated[
        bool | None, typer.Option("--table/--json", help="Default: a table in a terminal.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 32,
    device: DeviceOption = "auto",
) -> None:
    """Say of each image how probable it is generated: a table, or one JSON line each.

    A file that cannot be read gives a line with its error, and exit code 1 at the end.
    With --parquet it is Ray Data that reads, and parquet that is written; the same command goes on.

    Example: aiornot predict runs/fast/bundle photo.jpg holiday/
    """
    from aiornot.delivery import manifest

    if parquet is not None:
        if images or out is None:
            raise InputError("--parquet IN needs --out FOLDER, and takes no image files")
        manifest.read(bundle)
        _predict_parquet(
            bundle, parquet, out, batch_size=batch_size, device=device, as_json=table is False
        )
        return
    if not images or out is not None:
        raise InputError("name image files or folders, or give --parquet IN --out FOLDER")
    manifest.read(bundle)
    as_table = sys.stdout.isatty() if table is None else table
    with warnings.catch_warnings():
        # What Pillow has to say of odd files; their lines say what matters.
        warnings.filterwarnings("ignore", module="PIL")
        _predict_files(bundle, images, batch_size=batch_size, device=device, as_table=as_table)


def _predict_files(
    bundle: Path, images: Sequence[str], *, batch_size: int, device: str, as_table: bool
) -> None:
    from aiornot import console
    from aiornot.delivery import bundle as bundles
    from aiornot.delivery import predict as predicting

    listed = predicting.read_list(sys.stdin.buffer) if "-" in images else []
    files = predicting.find([Path(one) for one in images if one != "-"], listed=listed)
    loaded = bundles.load(bundle, device=common.torch_device(device))
    found = []
    failed = 0
    # A bar would stand among the lines where both go to one terminal.
    with nullcontext() if _lines_in_terminal(as_table) else console.counting() as counter:
        predictions = predicting.predict_files(loaded, files, batch_size=batch_size)
        for number, one in enumerate(predictions, 1):
            failed += one.error is not None
            if as_table:
                found.append(one)
            else:
                print(json.dumps(one.to_dict()), flush=True)
            if counter is not None:
                counter.update("predicting", number, len(files))
    if as_table:
        threshold = f"generated from {loaded.calibration.threshold:.4f} on"
        console.print_table(f"{bundle}: {threshold}", *predicting.table(found), firm=3)
    if failed:
        raise WorkError(f"{failed} of {len(files)} files could not be read; their lines say why")


def _lines_in_terminal(as_table: bool) -> bool:
    return not as_table and sys.stdout.isatty()


def _predict_parquet(
    bundle: Path, source: str, out: str, *, batch_size: int, device: str, as_json: bool
) -> None:
    from aiornot import console, sieve
    from aiornot.delivery import ray_predict

    with (
        sieve.sifted(ray_predict.NOISE),
        common.results_alone(),
        console.counting() as counter,
    ):
        found = ray_predict.predict(
            bundle, source, out, batch_size=batch_size, device=device, progress=counter.update
        )
    if as_json:
        console.print_json(dataclasses.asdict(found))
    else:
        print(out)
    kept = f", {found.kept} of {found.parts} parts were there before" if found.kept else ""
    console.say(f"{found.rows} rows predicted{kept}")
    if found.errors:
        raise WorkError(f"{found.errors} of {found.rows} rows have no probability, see 'error'")

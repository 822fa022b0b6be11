"""The verbs of a delivered model: to calibrate, judge and use it, ``predict`` being the last."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from aiornot.config import WorkError
from aiornot.verbs import common
from aiornot.verbs.common import DataOption, DeviceOption, JsonOption

BundleArgument = Annotated[Path, typer.Argument(help="Folder of a delivered model.")]


def calibrate(
    bundle: BundleArgument,
    rule: Annotated[str, typer.Option(help='balanced, "fpr<=0.01", "fnr<=0.01" or cost:FP=5.')],
    data: DataOption = Path("data/prepared"),
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Choose another threshold for a delivered model, on val; nothing is trained.

    Temperature and unsure band are fitted anew, too. Evaluations on record stay as they are.

    Example: aiornot calibrate runs/fast/bundle --rule "fpr<=0.01"
    """
    from aiornot import console
    from aiornot.delivery import bundle as bundles
    from aiornot.delivery import manifest, robustness

    former = manifest.read(bundle)
    path = common.prepared(data, former["data"]["profile"])
    found = bundles.recalibrate(bundle, rule=rule, data=path, device=common.torch_device(device))
    if (bundle / robustness.FILE).exists() and found["calibration"] != former["calibration"]:
        console.say(f"{bundle / robustness.FILE} is of the former threshold: measure it again")
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


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " - ".join(map(_cell, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value or "-")


def evaluate(
    bundle: BundleArgument,
    data: DataOption = Path("data/prepared"),
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
    path = common.prepared(data, profile)
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


def robustness(
    bundle: BundleArgument,
    data: DataOption = Path("data/prepared"),
    split: Annotated[str, typer.Option(help="val, or test: it counts as opened then.")] = "val",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say how a delivered model holds up on images that were scaled, cropped, blurred, compressed.

    Writes robustness.json into the bundle.

    Example: aiornot robustness runs/fast/bundle --data data/prepared
    """
    from aiornot import console
    from aiornot.delivery import manifest
    from aiornot.delivery import robustness as robust

    path = common.prepared(data, manifest.read(bundle)["data"]["profile"])
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
    data: DataOption = Path("data/prepared"),
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
    from aiornot import console
    from aiornot.data import pages
    from aiornot.delivery import errors as erring
    from aiornot.delivery import errors_page, manifest

    folder = out or str(bundle.absolute().parent / errors_page.NAME)
    path = common.prepared(data, manifest.read(bundle)["data"]["profile"])
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


def predict(
    bundle: BundleArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of them.")],
    batch_size: Annotated[int, typer.Option()] = 32,
    device: DeviceOption = "auto",
) -> None:
    """Print one JSON line per image: probability of being generated, verdict, threshold, model.

    Example: aiornot predict runs/fast/bundle photo.jpg holiday/
    """
    from aiornot.delivery import bundle as bundles
    from aiornot.delivery import predict as predicting

    loaded = bundles.load(bundle, device=common.torch_device(device))
    failed = 0
    for prediction in predicting.predict(loaded, images, batch_size=batch_size):
        failed += prediction.error is not None
        print(json.dumps(prediction.to_dict()), flush=True)
    if failed:
        raise WorkError(f"{failed} file(s) could not be read; their lines say why")

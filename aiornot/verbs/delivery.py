"""The verbs of a delivered model: ``evaluate``, ``verify``, ``predict``."""

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


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a delivered model.")],
    data: Annotated[
        Path | None, typer.Option(help="The prepared files, to score val again; or one file.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="By how much a metric of val may differ.")] = (
        1e-6
    ),
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a delivered model, and that it computes here what it says it does.

    Without --data: hashes, weights, logits of made-up images, and plain timm. Nothing is written.

    Example: aiornot verify runs/fast/bundle --data data/prepared
    """
    from aiornot import console
    from aiornot.delivery import manifest
    from aiornot.delivery import verify as verifying

    path = data and common.prepared(data, manifest.read(bundle)["data"]["profile"])
    found = verifying.verify(
        bundle, data=path, device=common.torch_device(device), tolerance=tolerance
    )
    if as_json:
        console.print_json(found.to_dict())
        return
    for name, value in verifying.lines(found):
        print(f"{name:<18}{value}")


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

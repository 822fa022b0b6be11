"""The verbs of a delivered model: ``evaluate``, ``predict``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from aiornot.config import WorkError
from aiornot.verbs import common
from aiornot.verbs.common import DeviceOption, JsonOption


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

    loaded = bundles.load(bundle, device=common.torch_device(device))
    failed = 0
    for prediction in predicting.predict(loaded, images, batch_size=batch_size):
        failed += prediction.error is not None
        print(json.dumps(prediction.to_dict()), flush=True)
    if failed:
        raise WorkError(f"{failed} file(s) could not be read; their lines say why")

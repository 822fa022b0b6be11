"""The model card of a bundle: ``README.md`` with the header that the Hugging Face hub reads.

It is made from ``bundle.json`` and ``config.json`` alone, and equal ones give equal cards.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aiornot import storage
from aiornot.delivery import licence, manifest
from aiornot.delivery.card_code import LOADING, PREPARING

_SUFFIXES = ("@0.5", "@threshold")

_WORDS = {
    "auroc": "AUROC",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "fpr": "false positive rate",
    "tpr@fpr=0.01": "recall at 1 % false positives",
    "tpr@fpr=0.05": "recall at 5 % false positives",
}


def write(folder: Path) -> None:
    """Write the card of the bundle in a folder; do so again whenever ``bundle.json`` changed."""
    timm_config = manifest.read_json(folder / manifest.CONFIG, why="not a bundle")
    storage.write_text(str(folder / manifest.CARD), text(manifest.read(folder), timm_config))


def text(description: Mapping[str, Any], timm_config: Mapping[str, Any]) -> str:
    """Return the card.

    Args:
        description: ``bundle.json``.
        timm_config: ``config.json``.
    """
    name, sentence = licence.of_weights(description["config"], timm_config)
    parts = [
        _header(description, name),
        _what(description),
        _limits(description),
        _scores(description),
        _verdicts(description),
        _preprocessing(description),
        _loading(description),
        f"## Licence of the weights\n\n{sentence}\n",
        _origin(description),
    ]
    return "\n".join(parts)


def _header(description: Mapping[str, Any], name: str | None) -> str:
    config = description["config"]
    lines = ["library_name: timm", "pipeline_tag: image-classification"]
    if name in licence.OPEN or name == "cc-by-nc-4.0":  # names that the hub knows
        lines.append(f"license: {name}")
    elif name is not None:
        lines += ["license: other", f"license_name: {name}"]
    if config["pretrained"] and not config["weights"]:
        lines.append(f"base_model: timm/{config['model']}")
    lines += ["tags:", "- timm", "- ai-generated-image-detection", "- aiornot"]
    return "\n".join(["---", *lines, "---", ""])


def _what(description: Mapping[str, Any]) -> str:
    return (
        "# A detector of AI-generated images\n\n"
        f"`{description['config']['model']}`, fine-tuned with aiornot "
        f"{description['versions']['aiornot']} to tell generated images from real ones. It gives "
        f"one logit per image; the positive class is *{description['positive_class']}*.\n"
        f"Weights: SHA-256 `{description['sha256']}`.\n"
    )


def _limits(description: Mapping[str, Any]) -> str:
    note = description["data"]["source_note"]
    warning = f"**The training data says of itself: {note}.**\n\n" if note else ""
    return (
        f"## Intended use and limits\n\n{warning}"
        "- For sorting and flagging images, with a person to look at what is flagged. No score "
        "proves that one image is generated, or that it is not.\n"
        "- It knows generators like those of its training data. On images of newer generators, of "
        "other cameras, or from sites that compress and rescale, expect worse than below; measure "
        "on your own images and train again on newer data.\n"
        "- It was not made to withstand someone who wants to deceive it.\n"
        "- Drawings, screenshots and edited photographs are neither class, unless the training "
        "data held them.\n"
    )


def _scores(description: Mapping[str, Any]) -> str:
    val = description["val"]
    count = val["num_real"] + val["num_generated"]
    names = list(dict.fromkeys(name.partition("@")[0] for name in _at_thresholds(val["metrics"])))
    lines = [
        "## Scores\n",
        f"On the {count} images of the validation split ({val['num_real']} real, "
        f"{val['num_generated']} generated), which also chose the model, the temperature and the "
        "threshold: on new images expect somewhat less. Brackets are 95 % bootstrap intervals. "
        "What was measured later, on the test split too, is in `evaluations.json`.\n",
        f"| | at .5 | at the threshold ({description['calibration']['threshold']:.4f}) |",
        "|---|--:|--:|",
    ]
    for name in names:
        cells = [_cell(val, name + suffix) for suffix in _SUFFIXES]
        lines.append(f"| {_words(name)} | {cells[0]} | {cells[1]} |")
    lines += ["", "| whatever the threshold | |", "|---|--:|"]
    rest = [name for name in val["metrics"] if name not in _at_thresholds(val["metrics"])]
    lines += [f"| {_words(name)} | {_cell(val, name)} |" for name in rest]
    return "\n".join([*lines, ""])


def _at_thresholds(metrics: Mapping[str, Any]) -> list[str]:
    return [name for name in metrics if name.endswith(_SUFFIXES)]


def _words(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))


def _cell(val: Mapping[str, Any], name: str) -> str:
    value = val["metrics"].get(name)
    low, high = val["intervals"].get(name) or (None, None)
    interval = f" [{low:.4f}, {high:.4f}]" if low is not None and high is not None else ""
    return "-" if value is None else f"{value:.4f}{interval}"


def _verdicts(description: Mapping[str, Any]) -> str:
    calibration = description["calibration"]
    low, high = calibration["unsure"] or (None, None)
    unsure = "" if low is None else f" From {low:.6g} to below {high:.6g} it is *unsure*."
    return (
        "## From logit to verdict\n\n"
        f"probability = sigmoid(logit / {calibration['temperature']:.6g}); *generated* from "
        f"{calibration['threshold']:.6g} on.{unsure} Temperature and threshold were fitted on the "
        f"validation split, the threshold by the rule `{calibration['rule']}`; the exact numbers "
        "are in `bundle.json`.\n"
    )


def _preprocessing(description: Mapping[str, Any]) -> str:
    prepared = description["preprocessing"]
    side = f"{prepared['size']} x {prepared['size']}"
    geometry = {
        "resize": f"squeezed as a whole to {side} pixels, bicubic with antialiasing; an image of "
        "this size is left as it is",
        "crop": f"cut to its central {side} pixels and never resampled, which would blur the "
        "traces of generators; a side that is too short is continued by its mirror image",
    }[prepared["geometry"]]
    if prepared["geometry"] == "resize" and prepared["resample"] == "fast":
        geometry += " (by PyTorch, not Pillow)"
    mean, std = (", ".join(f"{x:g}" for x in prepared[key]) for key in ("mean", "std"))
    return (
        "## Preprocessing\n\n"
        "EXIF orientation is applied, transparency lies on white, the first frame of an animation "
        f"counts. Then RGB, {geometry}. Last, values of 0 to 1 minus ({mean}) over ({std}). "
        "Another preprocessing gives other probabilities.\n"
    )


def _loading(description: Mapping[str, Any]) -> str:
    if description["config"]["stem_stride"]:
        plain = (
            "This model keeps full resolution in its first convolution (`stem_stride`), for which "
            "timm has no word: plain timm refuses it. Use aiornot, or its ONNX export.\n"
        )
    else:
        prepared = description["preprocessing"]
        prepare = PREPARING[prepared["geometry"], prepared["resample"]]
        plain = f"With timm alone, in the folder of the bundle:\n\n```python\n{LOADING}```\n"
        plain = plain.replace("# PREPARE\n", prepare)
    return (
        f"## How to use it\n\n{plain}\n"
        "With aiornot, which reads more kinds of files, checks every byte, and exports:\n\n"
        "```console\n$ aiornot predict BUNDLE photo.jpg folder/\n"
        "$ aiornot verify BUNDLE --data data/prepared\n"
        "$ aiornot export BUNDLE --onnx model.onnx\n```\n\n"
        f"`sha256sum --check {manifest.SUMS}` compares the files with their hashes, too.\n"
    )


def _origin(description: Mapping[str, Any]) -> str:
    data, versions = description["data"], description["versions"]
    rows = {
        "data, fingerprint": data["fingerprint"],
        "data, profile": data["profile"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    lines = ["## Where it comes from\n", "| | |", "|---|---|"]
    lines += [f"| {name} | `{value}` |" for name, value in rows.items()]
    lines += [f"| {name} | `{value}` |" for name, value in _flat(description["lineage"])]
    config = dict(description["config"])
    if config["weights"]:  # no folders of the machine that trained: cards are published
        config["weights"] = Path(config["weights"]).name
    shown = json.dumps(config, indent=1)
    return "\n".join([*lines, "", "Every hyper-parameter:\n", "```json", shown, "```", ""])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested values with their paths, one line of text each."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}, ")
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            yield f"{prefix}{name}", shown.replace("|", "/").replace("`", "'").replace("\n", " ")

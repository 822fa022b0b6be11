"""The commands that a report names: those that make the run again, and those for what it lacks."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiornot.config import TrainConfig
from aiornot.data import layout
from aiornot.delivery.calibrate import DEFAULT_RULE


def remaking(
    run: str,
    root: str,
    bundle: Path,
    data: str,
    stages: Sequence[Mapping[str, Any]],
    *,
    rule: str,
) -> list[str]:
    """Return the commands that make all of this again, with this rule for the threshold."""
    prepared = {s["settings"]["name"]: s["settings"] for s in stages if "name" in s["settings"]}
    places = ["--data", data]
    chosen = [] if rule == DEFAULT_RULE else ["--rule", rule]
    lines = [["prepare", "SOURCE", "--out", data, *_prepare(s)] for s in prepared.values()]
    if stages[0]["created"] is None:  # no stage.json: one trial, without a chain
        config = stages[0]["trials"][0]["config"]
        options = [word for name in prepared for word in ("--profile", name)] + _settings(config)
        lines.append(["train", *places, "--out", str(bundle.parent), *options, *chosen])
    else:
        lines.append(["tune", run, *places, "--storage", root, *chosen])
    lines += [
        ["evaluate", str(bundle), *places, "--split", "test"],
        ["report", run, *places, "--storage", root],
    ]
    return [shlex.join(["aiornot", *line]) for line in lines]


def _settings(config: Mapping[str, Any]) -> list[str]:
    default = TrainConfig().to_dict()
    changed = {key: value for key, value in config.items() if value != default.get(key)}
    return [f"--set={key}={_word(value)}" for key, value in changed.items()]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _prepare(settings: Mapping[str, Any]) -> list[str]:
    """Return the options that differ from those of the profile."""
    name = str(settings["name"])
    profile = layout.PROFILES.get(name)
    found = ["--profile", name]
    for key in ("size", "limit", "geometry", "resample"):
        value = settings.get(key)
        if value is not None and value != getattr(profile, key, None):
            found += [f"--{key}", str(value)]
    if settings.get("near_duplicates", 10) != 10:
        found += ["--near-duplicates", str(settings["near_duplicates"] or "off")]
    if settings.get("hold_out"):
        found += ["--hold-out", settings["hold_out"]]
    return found + (["--seed", str(settings["seed"])] if settings.get("seed") else [])


def missing(found: Mapping[str, Any], bundle: Path, data: str) -> dict[str, dict[str, str | None]]:
    """Return a ``sentence`` for each part without a figure, and the ``command`` that makes it."""
    if found["delivered"] is None:
        none = "No model is delivered yet: the chain has not reached its end."
        return {"delivered": {"sentence": none, "command": None}}
    place, beside = shlex.quote(str(bundle)), f"--data {shlex.quote(data)}"
    test = found["evaluations"]["test"]
    shown = test or found["evaluations"]["val"]
    evaluate = f"aiornot evaluate {place} {beside} --split test"
    opened = len(found["test_opened"])
    sealed = (
        f"The test split was opened {opened} time(s), not scored at this threshold. To score it:"
        if opened
        else "The test split is sealed still. To open it, once:"
    )
    old = "No curves are kept of this evaluation, which an older version made. "
    parts: dict[str, tuple[Any, str, str | None]] = {
        "test": (test, sealed, evaluate),
        "comparison": (
            found["comparison"],
            "Nothing was compared with a baseline: the chain names none, or the model was "
            "calibrated anew since.",
            None,
        ),
        "curves": (
            "curves" in shown,
            old + ("To add them:" if test else "To have them, deliver the model again."),
            f"{evaluate} --again" if test else None,
        ),
        "robustness": (
            found["robustness"],
            "It was not measured on damaged images at its threshold. To do so:",
            f"aiornot robustness {place} {beside}",
        ),
        "errors": (
            found["errors"],
            "Its errors at its threshold were not looked at. To list them:",
            f"aiornot errors {place} {beside}",
        ),
        "human": (
            found["human"],
            "Nobody measured themselves against it. To do so, in the browser:",
            f"aiornot human {beside} --bundle {place}",
        ),
    }
    return {
        name: {"sentence": sentence, "command": command}
        for name, (there, sentence, command) in parts.items()
        if not there
    }

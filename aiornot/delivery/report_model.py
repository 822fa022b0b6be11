"""The end of a report: the model, where it and its data come from, how to make and use it."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from aiornot.config import TrainConfig
from aiornot.data.hdf5 import CLASSES
from aiornot.data.markup import Html, commands, join, listing, paragraph, say, table, text
from aiornot.delivery.report_cells import absent

_Table = Mapping[str, Any]


def model(report: _Table) -> Html:
    parts = [absent(report, "delivered") or _origin(report["delivered"])]
    if report["splits"]:
        parts.append(_splits(report["splits"]))
    return join(parts)


def _origin(delivered: _Table) -> Html:
    """Show what the model is and where it comes from."""
    config, lineage = delivered["config"], delivered["lineage"]
    default, prepared = TrainConfig().to_dict(), delivered["preprocessing"]
    changed = {k: v for k, v in config.items() if v != default.get(k) and k != "model"}
    rows: dict[str, Any] = {
        "architecture": config["model"],
        "hyper-parameters": ", ".join(f"{k}={_short(v)}" for k, v in changed.items()) or "defaults",
        "input": f"{prepared['size']} px, {prepared['geometry']}, {prepared['resample']}",
        "calibration": ", ".join(f"{k} {_short(v)}" for k, v in delivered["calibration"].items()),
        **{f"lineage: {key}": _plain(one) for key, one in lineage.items()},
        "weights, SHA-256": delivered["sha256"],
        "data fingerprint": delivered["data"]["fingerprint"],
        "versions": ", ".join(f"{k} {v}" for k, v in delivered["versions"].items()),
    }
    cells = [[say(name), _code(shown)] for name, shown in rows.items()]
    return table(["", ""], cells, wide=1)


def _code(shown: Any) -> Html:
    """Show a value in full, which may be long."""
    return Html(f"<code>{say(str(shown))}</code>")


def _plain(found: Any) -> str:
    if isinstance(found, list):
        return " -> ".join(map(str, found))
    if isinstance(found, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in found.items())
    return str(found)


def _short(found: Any) -> str:
    if isinstance(found, list):
        return json.dumps([round(one, 4) for one in found])
    return f"{found:.4g}" if isinstance(found, float) else str(found)


def _splits(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Html:
    """Show how many images of each class every prepared file holds."""
    cells = [
        [text(name), text(split), *(Html(f"{counts[word]:,}") for word in CLASSES)]
        for name, each in found.items()
        for split, counts in each.items()
    ]
    return table(["prepared file", "split", *CLASSES], cells, words={1})


def use(report: _Table) -> Html:
    """Show how to ask the model about an image, in a shell and in Python."""
    if told := absent(report, "delivered"):
        return told
    delivered = report["delivered"]
    folder = shlex.quote(delivered["folder"])
    lines = [f"aiornot predict {folder} photo.jpg", f"aiornot app {folder}"]
    note = "Or in Python; the README.md of the bundle has the whole program, from a file on:"
    return join([commands(lines), paragraph(note, dim=True), listing(_python(delivered))])


def _python(delivered: _Table) -> str:
    calibration, size = delivered["calibration"], delivered["preprocessing"]["size"]
    return (
        f"model = timm.create_model({'local-dir:' + delivered['folder']!r}, pretrained=True)\n"
        f"logit = model.eval()(images)  # (N, 3, {size}, {size}), normalised\n"
        f"probability = torch.sigmoid(logit / {calibration['temperature']:.6g})\n"
        f"generated = probability >= {calibration['threshold']:.6g}"
    )


def again(report: _Table) -> Html:
    return commands(report["commands"])

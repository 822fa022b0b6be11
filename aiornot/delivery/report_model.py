"""The end of a report: the model, where it and its data come from, how to make and use it."""

import json
from collections.abc import Mapping
from typing import Any

from aiornot.config import TrainConfig
from aiornot.data.hdf5 import CLASSES
from aiornot.data.markup import Html, join, say, table, text
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
    return table(["prepared file", "split", *CLASSES], cells)


def again(report: _Table) -> Html:
    parts = [Html("<h3>Make it again</h3>"), _commands(report["commands"])]
    if report["delivered"] is not None:
        folder = report["delivered"]["folder"]
        lines = [
            f"aiornot predict {folder} photo.jpg",
            "",
            "# in Python, one logit, before calibration",
        ]
        lines.append(f'timm.create_model("local-dir:{folder}", pretrained=True).eval()')
        parts += [Html("<h3>Use it</h3>"), _commands(lines)]
    return join(parts)


def _commands(lines: list[str]) -> Html:
    return Html(f"<pre>{join([say(line) for line in lines], chr(10))}</pre>")

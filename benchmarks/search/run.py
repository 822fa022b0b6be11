"""Play the methods on a table, many times each, and keep what came of it.

    python -m benchmarks.search.run patches
    python -m benchmarks.search.run patches --what variants --replicates 24

Each replicate has draws and seeds of its own. The rows go to ``demo/search/<task>/<what>.jsonl``,
one replicate a line; what is there already is not played again.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.search import methods, replay, worlds
from benchmarks.search.methods import Method
from benchmarks.search.replay import Played
from benchmarks.search.sources import TASKS
from benchmarks.search.table import HOME, path_of, read
from benchmarks.search.worlds import Score, World

HOURS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6.5, 8, 10, 13)
"""Where the any-time curves are read, in hours of search."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--what", choices=PLANS, default="methods")
    parser.add_argument("--only", default="", help="Methods whose name holds this text.")
    parser.add_argument("--replicates", type=int, default=40)
    options = parser.parse_args()
    out = HOME / options.task / f"{options.what}.jsonl"
    known = {(row["method"], row["places"], row["replicate"]) for row in rows_of(out)}
    out.parent.mkdir(parents=True, exist_ok=True)
    plans = [plan for plan in PLANS[options.what]() if options.only in plan[0]]
    if not plans:
        parser.error(f"--only {options.only}: no method of {options.what} has that in its name")
    for name, method, how in plans:
        places = how.pop("places", 1)
        curve = options.what == "methods"
        missing = [
            number
            for number in range(options.replicates)
            if any((name + end, places, number) not in known for end in method.ends)
        ]
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder, out.open("a") as file:
            where = world(options.task, Path(folder), **how)
            for number in missing:
                for end, row in replicate(method, where, number, places, curve=curve).items():
                    about = {"method": name + end, "places": places, "replicate": number}
                    if (*about.values(),) not in known:
                        file.write(json.dumps(about | row) + "\n")
                file.flush()
        seconds = time.process_time() - started
        print(f"{name}, {places}: {seconds:.0f} s for {len(missing)}", file=sys.stderr)


def rows_of(path: Path) -> list[Row]:
    """Read the rows that were kept."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def world(
    task: str,
    folder: Path,
    *,
    home: Path = HOME,
    quick: bool = False,
    score: Score = "best",
    reduced: str = "reduced",
) -> World:
    """Read the tables of a task."""
    profiles = {"reduced": reduced, "full": "full"}
    tables = {
        name: read(path_of(home, task, profile), quick=quick) for name, profile in profiles.items()
    }
    return worlds.world(tables, folder, score=score)


def replicate(
    method: Method, where: World, number: int, places: int = 1, *, curve: bool = False
) -> dict[str, Row]:
    """Play a method once; return a row for each of its ends. Hours are the notebook's GPU's."""
    searches, ends = method.seeded(number)
    found = replay.play(searches, where, places=places, last_tick=method.last_tick)
    trials = [trial for each in found for trial in each.ledger.read()]
    told = {
        "search": sum(_hours(each) for each in found),
        "wall": max(found[-1].ends.values()) / 3600,
        "trials": len(trials),
        "finished": sum(trial.state == "finished" for trial in trials),
    }
    rows = {}
    for name, end in ends.items():
        rest = replay.play(end, where, parent=found[-1])
        played = [*found, *rest]
        rows[name] = told | {
            "test": replay.delivered(played, where),
            "full": sum(_hours(each) for each in rest),
        }
        if curve:
            rows[name]["curve"] = replay.at(played, where, [hours * 3600 for hours in HOURS])
    return rows


def _hours(played: Played) -> float:
    return sum(trial.seconds for trial in played.ledger.read()) / 3600


Plan = Iterator[tuple[str, Method, dict[str, Any]]]


def _methods() -> Plan:
    for name, method in methods.methods().items():
        yield name, method, {}


def _parallel() -> Plan:
    found = methods.methods()
    for name in ("fast", "random + ASHA", "random 128", "notebook's chain"):
        ends = {end: stages for end, stages in found[name].ends.items() if "16" not in end}
        for places in (1, 4, 16):
            yield name, dataclasses.replace(found[name], ends=ends), {"places": places}


def _variants() -> Plan:
    for name, make in methods.variants().items():
        yield name, make(), {}


def _worlds() -> Plan:
    """``fast`` in other worlds: what the rungs see, the noise of val, the number of images."""
    fast = methods.methods()["fast"]
    yield "as it is", fast, {}
    yield "newest score instead of the best so far", fast, {"score": "raw"}
    yield "a quarter of val", fast, {"score": "small"}
    yield "320 reduced images", fast, {"reduced": "reduced-320"}
    yield "1,280 reduced images", fast, {"reduced": "reduced-1280"}


PLANS = {"methods": _methods, "parallel": _parallel, "variants": _variants, "worlds": _worlds}


if __name__ == "__main__":
    main()

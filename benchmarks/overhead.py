"""What a trial costs besides training, and what the controller of a search costs by itself.

    python benchmarks/overhead.py --json
    python benchmarks/overhead.py --simulate 500

The first runs a stage of tiny trials on two cores, one worker in the reused Tune process against
nested Ray Train runs, A B A B. What is not training is the stage's wall time on all cores less the
trials' own seconds, from the second trial of each core on: the first pays for its process.

The second plays trials of 16 ticks that report without training, through the real controller,
searcher, rungs and ledger.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
import synthetic
import tables
import torch

from aiornot import ray_session
from aiornot.config import TICKS
from aiornot.tuning import ray_tuner, record
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.space import Budget, Stage, loguniform

CORES = 2
TINY = {"model": "test_resnet.r160_in1k", "pretrained": False, "batch_size": 8}


def stage(name: str, num_trials: int, **how: Any) -> Stage:
    """Return a stage that stops no trial."""
    return Stage(
        name=name,
        space={"lr": loguniform(1e-4, 1e-2)},
        fixed=TINY,
        sampler="random",
        budget=Budget(num_trials=num_trials, epochs=4, grace_period=TICKS),
        **how,
    )


class Clock:
    """An observer: when trials began and ended, on the clock of the driver."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.seconds: list[float] = []

    def begin(self, trial: Trial) -> None:
        self.begun.append(time.perf_counter())

    def tick(self, trial: Trial, metrics: dict[str, Any]) -> None:
        pass

    def end(self, trial: Trial) -> None:
        self.ended.append(time.perf_counter())
        self.seconds.append(trial.seconds)


def search(what: Stage, data: Path, folder: Path, *observers: Any) -> Ledger:
    ledger = Ledger(str(folder / what.name), observers=observers)
    begun = record.begin(
        what, data, num_trials=what.budget.num_trials, parent=None, parent_trials=[]
    )
    ledger.write_stage(begun)
    ray_tuner.search(what, begun, ledger, data=data, terms=ray_tuner.Terms())
    return ledger


# Trials that train ---------------------------------------------------------------------------


def per_trial(what: Stage, data: Path, folder: Path) -> dict[str, float]:
    """Return seconds per trial: not training, training, and the driver's CPU."""
    clock, cpu = Clock(), driver_cpu()
    search(what, data, folder, clock)
    # The first trial of each core starts its process (or all of Ray Train's): for a reused one
    # that is paid once.
    first = sorted(clock.ended)[CORES - 1] if not what.nested() else min(clock.begun)
    later = [ended for ended in clock.ended if ended > first]
    wall = max(clock.ended) - first
    training = statistics.mean(clock.seconds)
    return {
        "s not training": CORES * wall / len(later) - training,
        "s training": training,
        "s driver CPU": (driver_cpu() - cpu) / len(clock.ended),
        "s first end": min(clock.ended) - min(clock.begun),
    }


def driver_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compare(rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {"one worker, reused": [], "nested Ray Train": []}
    with (
        tempfile.TemporaryDirectory() as name,
        ray_session.connected(num_cpus=CORES, state_api=True),
    ):
        data = Path(name, "tiny.h5")
        device = torch.device("cpu")
        synthetic.write(data, size=32, train=96, val=48, device=device, wrong=0.0)
        for number in range(rounds):
            folder = Path(name, str(number))
            reused, nested = stage("reused", 12), stage("nested", 4, trainer="ray_train")
            found["one worker, reused"].append(per_trial(reused, data, folder))
            found["nested Ray Train"].append(per_trial(nested, data, folder))
    return {way: _middle(rows) for way, rows in found.items()}


def _middle(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


# Trials that only report ---------------------------------------------------------------------


def _reporting() -> Any:
    """Stand in for a trainable: what the loop reports, without its training."""

    def report_all(config: dict[str, Any]) -> None:
        lr = config["job"]["config"]["lr"]
        for tick in range(1, TICKS + 1):
            score = 0.5 + 0.02 * tick - lr
            values = {"tick": tick, "score": score, "best_tick": tick, "seconds": 0.0}
            losses = {"train/loss": lr * tick, "val/log_loss": lr, "val/auroc": score}
            ray.tune.report(values | losses | {"finished": float(tick == TICKS)})

    return ray.tune.with_resources(report_all, {"CPU": 1.0})


class Growth:
    """An observer: memory and time of the driver as trials end."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, float]] = []

    def begin(self, trial: Trial) -> None:
        pass

    def tick(self, trial: Trial, metrics: dict[str, Any]) -> None:
        pass

    def end(self, trial: Trial) -> None:
        self.rows.append((time.perf_counter(), driver_cpu(), resident_mb()))


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def simulate(num_trials: int) -> dict[str, Any]:
    """Return rows of the driver's cost, a tenth of the trials each."""
    growth, writes = Growth(), []
    write = Ledger._write

    def timed(self: Ledger, trial: Trial) -> None:
        started = time.perf_counter()
        write(self, trial)
        writes.append(time.perf_counter() - started)

    with tempfile.TemporaryDirectory() as name, ray_session.connected(num_cpus=CORES):
        data = Path(name, "tiny.h5")
        synthetic.write(data, size=32, train=96, val=48, device=torch.device("cpu"), wrong=0.0)
        with (
            patch.object(ray_tuner, "_in_process", _reporting),
            patch.object(Ledger, "_write", timed),
        ):
            ledger = search(stage("simulated", num_trials), data, Path(name), growth)
            reports = sum(len(trial.ticks) for trial in ledger.read())
    assert reports == num_trials * TICKS, f"{reports} reports"
    part = max(1, num_trials // 10)
    rows: dict[str, dict[str, float]] = {}
    for last in range(2 * part - 1, len(growth.rows), part):
        (begun, cpu, _), (ended, cpu_after, memory) = growth.rows[last - part], growth.rows[last]
        rows[f"trials {last - part + 2} to {last + 1}"] = {
            "wall ms per report": 1e3 * (ended - begun) / part / TICKS,
            "driver CPU ms per report": 1e3 * (cpu_after - cpu) / part / TICKS,
            "driver MB": memory,
        }
    return {"rows": rows, "ms per ledger write": 1e3 * statistics.median(writes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--simulate", type=int, metavar="TRIALS")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    count = options.simulate
    result: dict[str, Any] = simulate(count) if count else {"rows": compare(options.rounds)}
    result["about"] = tables.environment("ray", "optuna", "torch")
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print("\n".join(result["about"].values()))
    print(tables.text(result["rows"]))
    if "ms per ledger write" in result:
        print(f"a ledger write takes {result['ms per ledger write']:.2f} ms (median)")


if __name__ == "__main__":
    main()

"""Faults and what a search makes of them: kills, hangs, errors, a full disk, a lost node.

    python benchmarks/faults.py

Each fault meets a search of four trials of its own, in processes of its own, real Ray and real
training. Afterwards the same command is given again where it stopped. Lost trials are those that
did not end as they would have; repeated ticks are those trained more than once, counted in the
processes that train; replayed says whether the ledger's reports, put through fresh rungs, stop the
same trials at the same ticks.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import synthetic
import tables
import torch

from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.ray_search import Rungs
from aiornot.tuning.space import Budget

EXPLORE = """
from aiornot.tuning.space import Budget, Stage, loguniform

stage = Stage(
    name="explore",
    space={"lr": loguniform(1e-7, 1e-2)},
    fixed={"model": "test_resnet.r160_in1k", "pretrained": False, "batch_size": 8},
    sampler="random",
    trainer=%r,
    budget=Budget(num_trials=4, epochs=12, grace_period=4),
)
"""
FULL = """
from aiornot.tuning.space import Budget, Stage
from . import explore as parent

stage = Stage(name="full", after=parent.stage, enqueue=1, budget=Budget(num_trials=1, epochs=12))
"""
BUDGET = Budget(num_trials=4, grace_period=4)

PLANTED = '''
"""Loaded by every Python process meanwhile: notes ticks, and does what FAULT says."""

import importlib.abc
import os
import signal
import sys
import time
from pathlib import Path

FAULT, FOLDER = os.environ.get("FAULT"), Path(os.environ.get("FAULT_FOLDER", "."))


def act(name, tick, seconds):
    with (FOLDER / "ticks").open("a") as log:
        log.write(f"{name} {tick} {seconds!r}\\n")
    mark = FOLDER / f"done-{FAULT}"
    if FAULT == "raise":
        raise RuntimeError(f"{name} meets the same bug")
    if tick != 6 or mark.exists():
        return
    mark.touch()
    if FAULT == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == "hang":
        time.sleep(1000)
    if FAULT == "disk":
        raise OSError(28, "No space left on device")


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "aiornot.training.ray_worker":
            sys.meta_path.remove(self)
            plant()
        return None


def plant():
    from aiornot.training import job

    run = job.run

    def planted(config, **how):
        tell, name = how["tell"], Path(how["root"]).name

        def told(metrics):
            tell(metrics)
            act(name, int(metrics["tick"]), metrics["seconds"])

        return run(config, **how | {"tell": told})

    job.run = planted


if os.environ.get("FAULT_FOLDER"):
    sys.meta_path.insert(0, Finder())
'''


class Home:
    """A folder with data, a chain and a planted fault, and the commands that run there."""

    def __init__(self, folder: Path, data: Path, *, fault: str = "", trainer: str = "auto") -> None:
        self.folder, self.fault = folder, fault
        self.address = ""
        for name, text in (("explore", EXPLORE % trainer), ("full", FULL)):
            self._write(f"mine/{name}.py", text)
        self._write("planted/sitecustomize.py", PLANTED)
        (folder / "prepared").mkdir()
        (folder / "prepared/full.h5").symlink_to(data)

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def environment(self) -> dict[str, str]:
        planted = str(self.folder / "planted")
        own = {"FAULT": self.fault, "FAULT_FOLDER": planted, "PYTHONPATH": planted}
        # The folder of the trials is no working folder of the workers: they write into this one.
        return {**os.environ, **own} | ({"RAY_ADDRESS": self.address} if self.address else {})

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "aiornot", "tune", "mine", "--data", "prepared"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--wandb", "off", *options],
                cwd=self.folder,
                env=self.environment(),
                stdout=log,
                stderr=log,
            )

    def trained(self) -> list[str]:
        path = self.folder / "planted/ticks"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_ticks(self, count: int, process: subprocess.Popen[bytes]) -> None:
        while len(self.trained()) < count:
            if process.poll() is not None:
                raise SystemExit((self.folder / "log").read_text())
            time.sleep(0.05)

    def trials(self, stage: str) -> list[Trial]:
        return Ledger(str(self.folder / "runs/mine" / stage)).read()


def outcome(home: Home, commands: int) -> dict[str, Any]:
    """Return a row of the table."""
    trials = [*home.trials("explore"), *home.trials("full")]
    ended = [trial for trial in trials if trial.state in ("finished", "stopped")]
    missing = [t.id for t in ended if [x["tick"] for x in t.ticks] != list(range(1, t.tick + 1))]
    # What a resumed process tells again from its checkpoint took exactly as long as before.
    trained = {tuple(line.split()) for line in home.trained()}
    repeated = len(trained) - len({(name, tick) for name, tick, _ in trained})
    return {
        "commands": commands,
        "trials": len(trials),
        "lost": len(trials) - len(ended),
        "ticks missing": len(missing),
        "ticks repeated": repeated,
        "replayed": same_decisions(home.trials("explore")),
    }


def same_decisions(trials: list[Trial]) -> bool:
    """Whether fresh rungs, fed the ledger's reports, stop the same trials at the same ticks."""
    replayed = Rungs(BUDGET, trials=trials).stopped
    return replayed == {trial.id: trial.tick for trial in trials if trial.state == "stopped"}


def run_to_end(home: Home, *options: str, most: int = 3) -> int:
    """Give the command until it is done; return how often."""
    for count in range(1, most + 1):
        if home.start(*options).wait() == 0:
            return count
        home.fault = ""  # mended
    raise SystemExit((home.folder / "log").read_text())


def nothing(home: Home) -> int:
    return run_to_end(home)


def kill_driver(home: Home) -> int:
    process = home.start()
    home.wait_for_ticks(10, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return 1 + run_to_end(home)


def hang(home: Home) -> int:
    return run_to_end(home, "--tick-minutes", "0.5")


def kill_node(home: Home) -> int:
    """Two nodes of one core each; the second one's raylet is killed with all that it runs."""
    from ray.cluster_utils import Cluster

    for name, value in home.environment().items():
        os.environ[name] = value  # the raylets hand it on to their workers
    arguments = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    second = cluster.add_node(num_cpus=1)
    home.address = cluster.address
    try:
        process = home.start()
        home.wait_for_ticks(10, process)
        cluster.remove_node(second, allow_graceful=False)
        code = process.wait()
        return 1 if code == 0 else 1 + run_to_end(home)
    finally:
        cluster.shutdown()


FAULTS: dict[str, tuple[str, str, Callable[[Home], int]]] = {
    "none": ("", "auto", nothing),
    "SIGKILL of the driver": ("", "auto", kill_driver),
    "SIGKILL of a trial's process": ("die", "auto", nothing),
    "SIGKILL of a nested Ray Train worker": ("die", "ray_train", nothing),
    "SIGKILL of the second node's raylet": ("", "auto", kill_node),
    "a trial that hangs": ("hang", "auto", hang),
    "a full disk": ("disk", "auto", nothing),
    "every trial raises, then mended": ("raise", "auto", nothing),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="Faults whose name holds this text.", default="")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name, "data.h5")
        synthetic.write(data, size=32, train=192, val=96, device=torch.device("cpu"), wrong=0.2)
        for number, (title, (fault, trainer, play)) in enumerate(FAULTS.items()):
            if options.only not in title:
                continue
            folder = Path(name, str(number))
            folder.mkdir()
            started = time.monotonic()
            home = Home(folder, data, fault=fault, trainer=trainer)
            rows[title] = outcome(home, play(home)) | {"seconds": time.monotonic() - started}
            print(title, rows[title], file=sys.stderr)
    about = tables.environment("ray", "optuna", "torch")
    if options.json:
        print(json.dumps({"rows": rows, "about": about}, indent=1))
        return
    print("\n".join(about.values()))
    print(tables.text(rows))


if __name__ == "__main__":
    main()

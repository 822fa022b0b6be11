"""Where reports go besides the ledger: W&B, written by the process that owns the ledger.

The writing happens in a thread of its own, so that a slow or dead W&B never holds up the search.
Without an account it writes offline files; ``wandb sync`` sends them later. The only wandb import.
"""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aiornot.training.account import resolve_mode
from aiornot.training.errands import Errands, Job
from aiornot.training.watch import EDGES, Histogram

Metrics = Mapping[str, Any]

EFFECTIVE = "effective"
"""Among the metrics: what was built, read back from it. It goes into a run's configuration."""

CLOSE_SECONDS = 60.0
"""How long to wait at the end for the last reports."""

SLOWEST = 1e6
"""Bytes of a model that are to be sent in a second, or it is given up."""


class Tracks(Protocol):
    """Where reports of trials go; W&B is one, event files are another."""

    def lacks(self, run_id: str) -> bool: ...
    def start(
        self,
        run_id: str,
        *,
        name: str,
        group: str,
        tags: Iterable[str],
        config: Mapping[str, Any],
        job_type: str = "",
        ticks: Iterable[Metrics] = (),
    ) -> None: ...
    def tick(self, run_id: str, metrics: Metrics) -> None: ...
    def end(self, run_id: str, summary: Metrics) -> None: ...
    def close(self) -> str: ...


class Tracker:
    """One W&B run per trial: run id = the trial's own id, group = its stage.

    Nothing is begun, no folder and no thread, before there is something to write.

    Args:
        project: Name of the W&B project.
        folder: Where offline files go.
        mode: ``auto``: online with an account, else offline. ``off``: no W&B at all.
    """

    def __init__(self, project: str, folder: Path, *, mode: str = "auto") -> None:
        self.mode = resolve_mode(mode)
        self.folder = folder
        self._project = project
        self._errands = Errands("W&B", at_end=self._finish_all)
        self._runs: dict[str, Any] = {}
        self._ended = Ended(folder)
        self._has_ticks = False
        self._patience = CLOSE_SECONDS

    def lacks(self, run_id: str) -> bool:
        """Whether a run is to be written here and was never written to its end."""
        return self.mode != "off" and run_id not in self._ended

    def start(
        self,
        run_id: str,
        *,
        name: str,
        group: str,
        tags: Iterable[str],
        config: Mapping[str, Any],
        job_type: str = "",
        ticks: Iterable[Metrics] = (),
    ) -> None:
        """Open a trial's run; ``ticks`` are those from before a restart.

        Offline a restart opens a new file, so they are all written again, and at its end it
        replaces the older one; online, those that did not reach the server before the driver died.
        Either way the curve has no gap.
        """
        settings = {
            "name": name,
            "group": group,
            "job_type": job_type or None,
            "tags": list(tags),
            "config": dict(config),
        }
        earlier = [dict(metrics) for metrics in ticks]
        self._has_ticks |= bool(earlier)
        self._put(lambda: self._open(run_id, settings, earlier))

    def tick(self, run_id: str, metrics: Metrics) -> None:
        """Log one report: numbers, and histograms such as ``watch.logged`` gives."""
        values = dict(metrics)
        self._has_ticks = True
        self._put(lambda: _log(self._runs[run_id], values))

    def model(
        self, run_id: str, *, name: str, files: Sequence[Path], then: Job = lambda: None
    ) -> None:
        """Log files as an artifact of type ``model``.

        They are linked or copied first: what is sent later, from offline files, is what was given.

        Args:
            run_id: A run that is open.
            name: Of the artifact; W&B counts its versions.
            files: Of a delivered model.
            then: Done when W&B has taken it.
        """
        self._patience += sum(path.stat().st_size for path in files) / SLOWEST

        def log() -> None:
            kept = _kept(files, self.folder / "models")
            _log_model(self._runs[run_id], name, kept)
            then()

        self._put(log)

    def end(self, run_id: str, summary: Metrics) -> None:
        """Close a run; ``summary`` is what is shown of it beside its last values."""
        values = dict(summary)
        self._put(lambda: self._end(run_id, values))

    def close(self) -> str:
        """Write what is left, giving up after a minute; say how offline runs are sent."""
        is_whole = self._errands.close(self._patience)
        if not self._errands.has_begun:
            return ""
        hints = [] if is_whole else [f"W&B did not take all within {self._patience:.0f} s"]
        # Of a run that failed before its first tick there is nothing to look at.
        is_told = self.mode == "offline" and self._has_ticks
        if is_told and any(self.folder.glob("wandb/offline-run-*")):
            runs = f"{self.folder}/wandb/offline-run-*"
            hints.append(f"W&B ran offline; to send its runs: wandb sync {runs}")
        return "; ".join(hints)

    def _put(self, job: Job) -> None:
        if self.mode != "off":
            self._errands.put(job)

    def _open(self, run_id: str, settings: dict[str, Any], earlier: list[dict[str, Any]]) -> None:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        run = self._runs[run_id] = wandb.init(
            project=self._project,
            id=run_id,
            dir=str(self.folder),
            mode="offline" if self.mode == "offline" else "online",
            resume="allow",
            reinit="create_new",  # runs of several trials are open at once
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            **settings,
        )
        next_step = run.step  # behind what the server has of a resumed run, else 0
        for metrics in earlier:
            if int(metrics["tick"]) >= next_step:
                _log(run, metrics)

    def _end(self, run_id: str, summary: dict[str, Any]) -> None:
        if run_id in self._runs:
            self._finish(run_id, summary)
            self._ended.add(run_id)

    def _finish(self, run_id: str, summary: dict[str, Any]) -> None:
        run = self._runs.pop(run_id)
        run.summary.update(summary)
        run.finish()
        if self.mode == "offline":
            self._remove_older(run_id)

    def _remove_older(self, run_id: str) -> None:
        """Remove the offline files that the newest of a run stands for.

        That of a process that was killed is empty or torn, and ``wandb sync`` (0.31) sends nothing
        of any run if one of its files is empty.
        """
        name = f"wandb/offline-run-*/run-{glob.escape(run_id)}.wandb"
        for older in sorted(self.folder.glob(name))[:-1]:  # their folders begin with the time
            shutil.rmtree(older.parent, ignore_errors=True)

    def _finish_all(self) -> None:
        for run_id in list(self._runs):
            self._errands.attempt(partial(self._finish, run_id, {}))


class Ended:
    """The runs that were written to their end below a folder, kept there in a file.

    What a trial was told last may be lost with a killed process though the ledger has its end.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ended.txt"
        self._runs = set(self._path.read_text().split()) if self._path.is_file() else set()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def add(self, run_id: str) -> None:
        if run_id not in self._runs:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{run_id}\n")
            self._runs.add(run_id)


def _kept(files: Iterable[Path], root: Path) -> list[Path]:
    """Give files a second name in a new folder; a copy where the disk knows no links."""
    root.mkdir(parents=True, exist_ok=True)
    # Absolute: offline files are sent from any folder.
    folder, kept = Path(tempfile.mkdtemp(dir=root.absolute())), []
    for path in files:
        kept.append(folder / path.name)
        try:
            os.link(path, kept[-1])
        except OSError:
            shutil.copyfile(path, kept[-1])
    return kept


def _log_model(run: Any, name: str, files: Iterable[Path]) -> None:
    import wandb

    artifact = wandb.Artifact(name, type="model")
    for path in files:
        # Immutable, or W&B would keep a copy of its own in the home folder.
        artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def _log(run: Any, metrics: dict[str, Any]) -> None:
    values = {name: _translated(value) for name, value in metrics.items() if name != EFFECTIVE}
    effective = metrics.get(EFFECTIVE)
    if effective and EFFECTIVE not in dict(run.config):
        run.config.update({EFFECTIVE: effective}, allow_val_change=True)
    run.log(values, step=int(metrics["tick"]))


def _translated(value: Any) -> Any:
    if not isinstance(value, Histogram):
        return value
    import wandb

    return wandb.Histogram(np_histogram=(np.array(value.counts), np.array(EDGES)))

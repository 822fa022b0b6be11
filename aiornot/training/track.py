"""Where reports go besides the ledger: W&B, written by the process that owns the ledger.

The writing happens in a thread of its own, so that a slow or dead W&B never holds up the search.
Without an account it writes offline files; ``wandb sync`` sends them later. The only wandb import.
"""

import importlib.util
import logging
import netrc
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from aiornot.config import InputError
from aiornot.training.watch import EDGES, Histogram

Metrics = Mapping[str, Any]

EFFECTIVE = "effective"
"""Among the metrics: what was built, read back from it. It goes into a run's configuration."""

CLOSE_SECONDS = 60.0
"""How long to wait for the last reports at the end of a stage."""


class Tracker:
    """One W&B run per trial: run id = the trial's own id, group = its stage.

    Args:
        project: Name of the W&B project.
        folder: Where offline files go.
        mode: ``auto``: online with an account, else offline. ``off``: no W&B at all.
    """

    def __init__(self, project: str, folder: Path, *, mode: str = "auto") -> None:
        self.mode = resolve_mode(mode)
        self._project = project
        self._folder = folder
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._runs: dict[str, Any] = {}
        self._broken = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if self.mode != "off":
            folder.mkdir(parents=True, exist_ok=True)
            self._thread.start()

    def start(
        self,
        run_id: str,
        *,
        name: str,
        group: str,
        tags: Iterable[str],
        config: Mapping[str, Any],
        ticks: Iterable[Metrics] = (),
    ) -> None:
        """Open a trial's run; ``ticks`` are those from before a restart.

        Offline a restart opens a new file, so they are all written again; online, those that did
        not reach the server before the driver died. Either way the curve has no gap.
        """
        settings = {"name": name, "group": group, "tags": list(tags), "config": dict(config)}
        earlier = [dict(metrics) for metrics in ticks]
        self._put(lambda: self._open(run_id, settings, earlier))

    def tick(self, run_id: str, metrics: Metrics) -> None:
        """Log one report: numbers, and histograms such as ``watch.logged`` gives."""
        values = dict(metrics)
        self._put(lambda: _log(self._runs[run_id], values))

    def end(self, run_id: str, summary: Metrics) -> None:
        values = dict(summary)
        self._put(lambda: self._finish(run_id, values))

    def close(self) -> str:
        """Write what is left, giving up after a minute; say how offline runs are sent."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join(CLOSE_SECONDS)
        if self.mode != "offline" or not any(self._folder.glob("wandb/offline-run-*")):
            return ""
        return f"W&B ran offline; to send its runs: wandb sync {self._folder}/wandb/offline-run-*"

    def _put(self, job: Callable[[], None]) -> None:
        if self.mode != "off" and not self._broken:
            self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._broken:
                self._try(job)
        for run_id in list(self._runs):
            self._try(partial(self._finish, run_id, {}))

    def _try(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # tracking must never cost a trial
            if not self._broken:
                logging.getLogger(__name__).warning("W&B is switched off: %s", error)
            self._broken = True

    def _open(self, run_id: str, settings: dict[str, Any], earlier: list[dict[str, Any]]) -> None:
        import wandb

        run = self._runs[run_id] = wandb.init(
            project=self._project,
            id=run_id,
            dir=str(self._folder),
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

    def _finish(self, run_id: str, summary: dict[str, Any]) -> None:
        run = self._runs.pop(run_id, None)
        if run is not None:
            run.summary.update(summary)
            run.finish()


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


def resolve_mode(mode: str) -> str:
    """Return ``online``, ``offline`` or ``off``.

    Raises:
        InputError: The mode is neither auto nor off.
    """
    if mode not in ("auto", "off"):
        raise InputError(f"--wandb {mode}: use auto or off; WANDB_MODE chooses online or offline")
    if mode == "off" or importlib.util.find_spec("wandb") is None:
        return "off"
    chosen = os.environ.get("WANDB_MODE", "")
    if chosen in ("offline", "online"):
        return chosen
    if chosen in ("disabled", "dryrun"):
        return "off" if chosen == "disabled" else "offline"
    return "online" if _has_account() else "offline"


def _has_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False

"""From the ledger to W&B and TensorBoard: which run a trial is, and what it is told.

``aiornot tune`` and ``aiornot train`` both track through this room.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiornot.training import events, track
from aiornot.tuning.ledger import Trial

PROJECT = "aiornot"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What W&B knows the trials of one ledger by."""

    run: str
    """A trial's id is unique in its ledger only; a run's must be in the whole project."""
    group: str
    job_type: str
    tags: Sequence[str]
    name: str = ""
    """Of the only trial of its ledger; unsaid, a run has its trial's id."""


def run_id(trial: Trial, labels: Labels) -> str:
    return f"{trial.id}-{labels.run}"


More = Callable[[int], Mapping[str, Any]]


def nothing_more(tick: int) -> Mapping[str, Any]:
    return {}


def story(trial: Trial, labels: Labels, *, more: More = nothing_more) -> dict[str, Any]:
    """Return what ``Tracks.start`` is to be told of a trial, as it stands in the ledger.

    Args:
        trial: The trial.
        labels: Of its ledger.
        more: What else is known of a tick, such as the findings of a watch.
    """
    effective = {track.EFFECTIVE: trial.effective} if trial.effective else {}
    return {
        "run_id": run_id(trial, labels),
        "name": labels.name or trial.id,
        "group": labels.group,
        "job_type": labels.job_type,
        "tags": _tags(trial, labels),
        "config": trial.config | effective,
        "ticks": [tick | dict(more(int(tick["tick"]))) for tick in trial.ticks],
    }


def _tags(trial: Trial, labels: Labels) -> list[str]:
    """What is there to be compared with is neither a candidate nor final."""
    if trial.role == "candidate":
        return list(labels.tags)
    return [*(tag for tag in labels.tags if tag not in ("candidate", "final")), trial.role]


def summary(trial: Trial) -> dict[str, Any]:
    """Return what a run says of its end."""
    return {"state": trial.state, "reason": trial.reason, "score": trial.score}


class Tracking:
    """An observer that hands a ledger's changes on.

    Args:
        trackers: W&B and the like.
        labels: Of the ledger's trials.
        more: As for ``story``.
        known: The trials so far: what a tracker lacks of those that have ended is told now, for a
            killed process may have taken it along.
    """

    def __init__(
        self,
        trackers: Sequence[track.Tracks],
        labels: Labels,
        *,
        more: More = nothing_more,
        known: Sequence[Trial] = (),
    ) -> None:
        self._trackers = trackers
        self._labels = labels
        self._more = more
        self._begun: set[str] = set()
        for trial in known:
            for tracker in trackers if trial.state != "running" else ():
                if tracker.lacks(run_id(trial, labels)):
                    self._whole(tracker, trial)

    def _whole(self, tracker: track.Tracks, trial: Trial) -> None:
        tracker.start(**story(trial, self._labels, more=self._more))
        tracker.end(run_id(trial, self._labels), summary(trial))

    def begin(self, trial: Trial) -> None:
        self._begun.add(trial.id)
        for tracker in self._trackers:
            tracker.start(**story(trial, self._labels, more=self._more))

    def tick(self, trial: Trial, metrics: dict[str, Any]) -> None:
        more = {track.EFFECTIVE: trial.effective, **self._more(int(metrics["tick"]))}
        for tracker in self._trackers:
            tracker.tick(run_id(trial, self._labels), metrics | more)

    def end(self, trial: Trial) -> None:
        for tracker in self._trackers:
            if trial.id in self._begun:
                tracker.end(run_id(trial, self._labels), summary(trial))
            else:  # the driver died before it could end it
                self._whole(tracker, trial)


@dataclasses.dataclass(frozen=True)
class Trackers:
    """Where the trials of a command are tracked."""

    wandb: track.Tracker
    events: events.EventFiles | None

    @property
    def all(self) -> list[track.Tracks]:
        return [self.wandb] if self.events is None else [self.wandb, self.events]


@contextmanager
def opened(
    folder: Path, *, wandb: str, tensorboard: bool, say: Callable[[str], None]
) -> Iterator[Trackers]:
    """Give the trackers of a command; at its end, whatever that is, say how runs are looked at.

    Args:
        folder: Of this machine; theirs are below it.
        wandb: ``auto`` or ``off``.
        tensorboard: Whether to write event files.
        say: Told what a user should know at the end.

    Raises:
        InputError: They are not to be had.
    """
    trackers = Trackers(
        track.Tracker(PROJECT, folder / "wandb", mode=wandb),
        events.EventFiles(folder / "tensorboard") if tensorboard else None,
    )
    try:
        yield trackers
    finally:
        for hint in [tracker.close() for tracker in trackers.all]:
            if hint:
                say(hint)

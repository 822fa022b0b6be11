"""The meter of a stage: how long its driver works on it, and whether it may go on.

An observer of the stage's ledger. It notes the time in ``stage.json`` as it goes, so that after a
kill at most half a minute is missing.
"""

import dataclasses
import math
import time
from typing import Any

from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.record import Record
from aiornot.tuning.spending import Spent, spent

NOTED_SECONDS = 30.0


class Meter:
    """One session of one driver on one stage.

    Args:
        ledger: Of the stage; its record is written through it.
        record: Gets one more session, and the workers per trial.
        num_workers: Devices of each trial.
        allowed: What the stage may have spent in all when it has to end.
    """

    def __init__(self, ledger: Ledger, record: Record, *, num_workers: int, allowed: Spent) -> None:
        self._ledger = ledger
        self._record = record
        self._num_workers = num_workers
        self._allowed = allowed
        self._before = spent(record, ledger.read())
        self._device_seconds = 0.0
        self._session = [time.time(), time.time()]
        record.setdefault("sessions", []).append(self._session)
        record["num_workers"] = num_workers
        record["allowed"] = _limits(allowed)
        self.close()

    def begin(self, trial: Trial) -> None:
        self._note()

    def tick(self, trial: Trial, metrics: dict[str, Any]) -> None:
        self._device_seconds += float(metrics["seconds"]) * self._num_workers
        self._note()

    def end(self, trial: Trial) -> None:
        self._note()

    def _note(self) -> None:
        if time.time() - self._session[1] > NOTED_SECONDS:
            self.close()

    def close(self) -> None:
        """Note the time up to now."""
        self._session[1] = time.time()
        self._ledger.write_stage(self._record)

    def spent(self) -> Spent:
        """Return what the stage has spent, earlier sessions included."""
        session = Spent(
            wall_seconds=time.time() - self._session[0], device_seconds=self._device_seconds
        )
        return self._before + session

    def may_go_on(self) -> bool:
        return self.spent().below(self._allowed)


def _limits(allowed: Spent) -> dict[str, float]:
    """Return the limits there are, for a report: JSON has no word for infinity."""
    found = dataclasses.asdict(allowed)
    return {name: value for name, value in found.items() if math.isfinite(value)}


UNLIMITED = Spent(wall_seconds=math.inf, device_seconds=math.inf)

"""Errands: jobs done one after another in a thread, for what may be slow or dead.

W&B, event files and the mirror of a study are written so; none of them may hold up the search or
cost it a trial.
"""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

Job = Callable[[], None]


class Errands:
    """A queue of jobs and the thread that does them; the first failure ends it with one warning.

    Args:
        name: Of what they are done for, as a user knows it.
        at_end: Done in the thread when it is closed, failure or not.
    """

    def __init__(self, name: str, *, at_end: Job = lambda: None) -> None:
        self._name = name
        self._at_end = at_end
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._starting = threading.Lock()
        self.is_broken = False
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)

    @property
    def has_begun(self) -> bool:
        return self.thread.ident is not None

    def put(self, job: Job) -> None:
        """Have a job done after those before it; the first one starts the thread."""
        if self.is_broken:
            return
        with self._starting:
            if not self.has_begun:
                self.thread.start()
        self._jobs.put(job)

    def close(self, seconds: float) -> bool:
        """Wait until all is done, for so long; return whether it is."""
        if self.thread.is_alive():
            self._jobs.put(None)
            self.thread.join(seconds)
        return not self.thread.is_alive()

    def attempt(self, job: Job) -> None:
        """Do a job here and now; a failure is no exception but the end of all errands."""
        try:
            job()
        except Exception as error:  # whatever it is, it is not worth a trial
            if not self.is_broken:
                warning = "%s is switched off: %s"
                logging.getLogger(__name__).warning(warning, self._name, error)
            self.is_broken = True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self.is_broken:
                self.attempt(job)
        self.attempt(self._at_end)

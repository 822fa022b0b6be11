"""A live table at the foot of a terminal: the trials of a stage, or the ticks of a lone trial.

``aiornot tune`` and ``aiornot train`` show it; ``console.observing`` makes and closes it.
"""

import dataclasses
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aiornot.config import TICKS
from aiornot.tuning.ledger import Trial

NUM_ENDED = 8
"""How many of the trials that ended last are shown."""

_FIXED_LINES = 4
"""Of a table of trials, beside its rows: the heading, and the names of the columns twice."""

_STYLES = {"finished": "green", "diverged": "red", "failed": "red"}

_TICK_COLUMNS = {
    "tick": ("tick", ".0f"),
    "epoch": ("epoch", ".1f"),
    "lr": ("lr", ".1e"),
    "train/\nloss": ("train/loss", ".4f"),
    "val/\nlog_loss": ("val/log_loss", ".4f"),
    "val/\nauroc": ("val/auroc", ".4f"),
    "\nbest": ("score", ".4f"),
    "\nseconds": ("seconds", ".1f"),
}
"""Name, metric and format of each column; together they fit into a terminal of 60."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """What is known of a stage at one moment."""

    name: str
    num_trials: int
    """How many there will be."""
    trials: tuple[Trial, ...] = ()
    """In the order in which they last began or ended."""
    num_ticks: int = 0
    """Reports that came while it was shown."""
    seconds: float = 0.0
    """For how long it was."""
    is_over: bool = False
    """Whether this is the last picture: it may be longer than the terminal, and scroll."""

    def running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "running"]

    def ended(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state != "running"]

    def with_last(self, trial: Trial) -> "Scene":
        others = (known for known in self.trials if known.id != trial.id)
        return dataclasses.replace(self, trials=(*others, trial))


class LiveTable:
    """An observer of a ledger that draws what it is told, and the time, twice a second.

    It opens with the first trial that begins, and closes with the last one that ends or when it is
    told to; the last picture stays. Any thread may call it. What is printed meanwhile, by whomever,
    stands above the table.

    Args:
        name: Of the stage.
        num_trials: How many there will be.
        trials: Those that the ledger holds already.
        console: Where to draw.
    """

    def __init__(
        self, name: str, num_trials: int, *, trials: Sequence[Trial] = (), console: Console
    ) -> None:
        ended = tuple(trial for trial in trials if trial.state != "running")
        self._scene = Scene(name=name, num_trials=num_trials, trials=ended)
        self._console = console
        self._started = time.monotonic()
        # For those who change the scene. To draw takes none: the display has a lock of its own.
        self._lock = threading.RLock()
        self._display = Live(
            get_renderable=self._draw,
            console=console,
            refresh_per_second=2,  # a picture of thirty rows takes 20 ms of a busy core
            # Results on their way to a file or a pipe are to arrive there.
            redirect_stdout=sys.stdout.isatty(),
        )

    def begin(self, trial: Trial) -> None:
        with self._lock:
            self._scene = self._scene.with_last(trial)
            if not self._scene.is_over:
                self._display.start(refresh=True)

    def tick(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        with self._lock:
            self._scene = dataclasses.replace(self._scene, num_ticks=self._scene.num_ticks + 1)

    def end(self, trial: Trial) -> None:
        with self._lock:
            self._scene = self._scene.with_last(trial)
            if len(self._scene.ended()) >= self._scene.num_trials:
                self.close()

    def close(self) -> None:
        """Draw for the last time and give the cursor back; once is enough."""
        with self._lock:
            self._scene = dataclasses.replace(self._scene, is_over=True)
            self._display.stop()

    def _draw(self) -> RenderableType:
        width, height = self._console.size
        seconds = time.monotonic() - self._started
        picture = draw(dataclasses.replace(self._scene, seconds=seconds), height=height)
        # Narrower by the "^C" of an interrupt: where that wraps, the cursor is a line too low.
        return Constrain(picture, width - 2)


def draw(scene: Scene, *, height: int) -> Group:
    """Draw a scene in at most so many lines, unless it is over; a line is never wrapped."""
    bound = None if scene.is_over else height
    return Group(*(_lone(scene, bound) if scene.num_trials == 1 else _stage(scene, bound)))


def _lone(scene: Scene, height: int | None) -> Iterator[RenderableType]:
    """Draw the ticks of a trial, the newest ones where there is no room for all."""
    if not scene.trials:
        return
    trial = scene.trials[-1]
    state = f"tick {trial.tick} of {TICKS}" if trial.state == "running" else trial.state
    reason = f": {trial.reason}" if trial.reason else ""
    yield _line(f"{trial.id}: {state}{reason}; {_times(scene)}", "bold")
    table = _table(*_TICK_COLUMNS, gap=1)
    room = len(trial.ticks) if height is None else max(1, height - 3)
    for tick in trial.ticks[-room:]:
        best = "bold" if tick["tick"] == tick.get("best_tick") else ""
        cells = (_cell(tick, metric, form) for metric, form in _TICK_COLUMNS.values())
        table.add_row(*cells, style=best)
    yield table


def _cell(tick: Mapping[str, Any], metric: str, form: str) -> str:
    value = tick.get(metric, math.nan)
    return format(value, form) if math.isfinite(value) else "-"


def _stage(scene: Scene, height: int | None) -> Iterator[RenderableType]:
    """Draw the running trials and those that ended last."""
    running, ended = scene.running(), scene.ended()
    num_running, num_ended = _fitting(len(running), len(ended), height)
    counts = Counter(trial.state for trial in ended)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    of_them = f": {states}" if states else ""
    yield _line(f"{scene.name}: {len(ended)} of {scene.num_trials} trials ended{of_them}", "bold")
    yield _line(f"{_best(scene)}; {_times(scene)}")
    if num_running:
        yield _running(running[:num_running])
    if num_running < len(running):
        yield _line(f"and {len(running) - num_running} more", "dim")
    if num_ended:
        yield _ended(ended[-num_ended:])


def _fitting(num_running: int, num_ended: int, height: int | None) -> tuple[int, int]:
    """Return how many rows of either table there is room for; a third of it is for the ended."""
    num_ended = min(num_ended, NUM_ENDED)
    if height is None:
        return num_running, num_ended
    room = max(0, height - _FIXED_LINES)
    num_ended = min(num_ended, max(room // 3, room - num_running))
    if num_running + num_ended > room:
        num_running = max(0, room - num_ended - 1)  # one line says how many are left out
    return num_running, num_ended


def _running(trials: Sequence[Trial]) -> Table:
    table = _table("trial", "origin", "", "tick", "score", "seconds")
    for trial in trials:
        bar = ProgressBar(total=TICKS, completed=trial.tick, width=TICKS // 2)
        tick = f"{trial.tick}/{TICKS}"
        table.add_row(trial.id, _line(trial.origin), bar, tick, _score(trial), _seconds(trial))
    return table


def _ended(trials: Sequence[Trial]) -> Table:
    table = _table("trial", "state", "score", "seconds", "reason")
    for trial in trials:
        state = Text(trial.state, style=_STYLES.get(trial.state, ""))
        table.add_row(trial.id, state, _score(trial), _seconds(trial), _line(trial.reason))
    return table


def _table(*names: str, gap: int = 2) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        is_text = name in ("trial", "origin", "state", "reason", "")
        # Where the terminal is narrow, what may be long is cut, and nothing else.
        is_long = name in ("origin", "reason")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_long)
    return table


def _line(text: str, style: str = "") -> Text:
    """Return one line that is cut where it is too long; errors may come in colours."""
    line = Text.from_ansi(" ".join(text.split()), style=style, no_wrap=True, overflow="ellipsis")
    line.end = "\n"
    return line


def _score(trial: Trial) -> str:
    return f"{trial.score:.4f}" if math.isfinite(trial.score) else "-"


def _seconds(trial: Trial) -> str:
    return f"{trial.seconds:.0f}"


def _best(scene: Scene) -> str:
    rivals = [t for t in scene.trials if t.state not in ("diverged", "failed")]
    known = [trial for trial in rivals if math.isfinite(trial.score)]
    if not known:
        return "no score yet"
    best = max(known, key=lambda trial: trial.score)
    return f"best {best.score:.4f} ({best.id})"


def _times(scene: Scene) -> str:
    left = None if scene.is_over else seconds_left(scene)
    return _duration(scene.seconds) + (f", about {_duration(left)} left" if left else "")


def seconds_left(scene: Scene) -> float | None:
    """Guess from the pace of the ticks so far; None before the first.

    A trial is taken to end where those before it did on average, and one that is past that point
    to finish.
    """
    if not scene.num_ticks:
        return None
    ended, running = scene.ended(), scene.running()
    usual = sum(trial.tick for trial in ended) / len(ended) if ended else TICKS
    missing = (scene.num_trials - len(scene.trials)) * usual
    missing += sum((usual if trial.tick < usual else TICKS) - trial.tick for trial in running)
    return missing * scene.seconds / scene.num_ticks


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

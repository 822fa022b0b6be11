"""What the verbs show: progress and events on stderr, tables and JSON on stdout.

In a terminal there is a live bar or table; elsewhere a line per event, and none more often than it
tells something.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from aiornot.config import TICKS
from aiornot.live import LiveTable
from aiornot.tuning.ledger import Observer, Trial

LINE_SECONDS = 5.0
"""Without a terminal, how often a long piece of work says how far it is."""


@functools.cache
def talk() -> Console:
    """Return the console of the talk, which is stderr: stdout is for results.

    There is one: what is said through it while a table is live stands above the table.
    """
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    talk().print(text, markup=False)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    firm: int = 4,
    together: int | None = None,
) -> None:
    """Print a table on stdout; its first column is text, the others are aligned right.

    In a narrow terminal the columns behind the ``firm`` ones shrink, and never a name or a score.
    Those behind the first ``together`` may go into further tables, which repeat the first column.
    """
    console = _page()
    parts = _parts(columns, rows, width=console.width, together=together or len(columns))
    for part in parts:
        table = Table(title=title, title_justify="left")
        for number in part:
            justify: Literal["left", "right"] = "right" if number else "left"
            table.add_column(columns[number], justify=justify, no_wrap=number < firm)
        for row in rows:
            table.add_row(*(row[number] for number in part))
        console.print(table)
        title = ""
    if caption:  # below the last, and not as narrow as that may be
        console.print(caption, style="dim italic", markup=False)


def print_text(sentence: str) -> None:
    """Print a sentence on stdout, which a terminal breaks between words and a pipe nowhere."""
    _page().print(sentence, markup=False, soft_wrap=not sys.stdout.isatty())


def _page() -> Console:
    """Return stdout. A pipe has no width, and rich would squeeze a table into 80 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 400)


def _widest(columns: Sequence[str], rows: Sequence[Sequence[str]], number: int) -> int:
    return max(len(cells[number]) for cells in (columns, *rows))


def _parts(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int, together: int
) -> list[list[int]]:
    """Return the columns of each table: one, if all fit or none may be put apart."""
    border = 3  # a line and two blanks
    widths = [_widest(columns, rows, number) + border for number in range(len(columns))]
    if sum(widths) < width or together >= len(columns):
        return [list(range(len(columns)))]
    parts = [list(range(together))]
    for number in range(together, len(columns)):
        if number == together or sum(widths[n] for n in (*parts[-1], number)) >= width:
            parts.append([0])
        parts[-1].append(number)
    return parts


class Counter:
    """Progress of work that is counted, such as images: a bar, or a line every few seconds."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task: Any = None
        self._what = ""
        self._started = self._said = time.monotonic()
        self._first = 0

    def update(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what, self._started, self._first = what, time.monotonic(), done
            self._task = self._bar.add_task(what, total=total, rate="") if self._bar else None
        if self._bar is not None:
            rate = self._rate(done, total)
            self._bar.update(self._task, completed=done, total=total, rate=rate)
        elif time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            say(f"{what}: {done} of {total}  {self._rate(done, total)}")

    def _rate(self, done: int, total: int) -> str:
        seconds = time.monotonic() - self._started
        if done == self._first or seconds == 0 or total == 1:  # one thing has no rate
            return ""
        rate = (done - self._first) / seconds
        return f"{rate:.0f}/s, {(total - done) / rate:.0f} s left"


@contextmanager
def counting() -> Iterator[Counter]:
    """Give a counter; its bar, if any, is gone at the end."""
    console = talk()
    if not console.is_terminal:
        yield Counter(None)
        return
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate)
    with Progress(*columns, console=console, transient=True) as bar:
        yield Counter(bar)


class Events:
    """An observer of a ledger: a line when a trial ends, and for a lone trial at each tick.

    Args:
        name: Of the stage.
        num_trials: How many there will be.
        each_tick: Say every tick; else only how trials end.
        trials: Those of the ledger so far.
    """

    def __init__(
        self, name: str, num_trials: int, *, each_tick: bool, trials: Sequence[Trial] = ()
    ) -> None:
        self._num_trials = num_trials
        self._each_tick = each_tick
        self._best = max((trial.score for trial in trials if trial.ticks), default=0.0)
        self._said = time.monotonic()
        say(f"{name}: {num_trials} trial{'s' * (num_trials > 1)}")

    def begin(self, trial: Trial) -> None:
        origin = "" if trial.origin == "sampled" else f" ({trial.origin})"
        verb = "goes on after" if trial.ticks else "begins"
        where = f" tick {trial.tick}" if trial.ticks else ""
        say(f"  {trial.id} {verb}{where}{origin}")

    def tick(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        self._best = max(self._best, float(metrics["score"]))
        if self._each_tick or time.monotonic() - self._said > LINE_SECONDS:
            say(f"  {tick_line(trial.id, metrics)}")
            self._said = time.monotonic()

    def end(self, trial: Trial) -> None:
        number = f"{trial.number + 1}/{self._num_trials}"
        reason = f": {trial.reason}" if trial.reason else ""
        score = f"{trial.score:.4f}" if trial.ticks else "-"
        say(
            f"  {trial.id} ({number}) {trial.state}{reason}; score {score}, "
            f"best so far {self._best:.4f}, {trial.seconds:.0f} s"
        )


@contextmanager
def observing() -> Iterator[Callable[..., Observer]]:
    """Give what makes the observers of ledgers, of one stage after the other.

    It takes the arguments of ``Events``. In a terminal an observer is a ``LiveTable``, closed when
    the next one is made and when the context is left, whatever happened. Elsewhere it is an
    ``Events``.
    """
    console = talk()
    with ExitStack() as shown:

        def observe(
            name: str, num_trials: int, *, each_tick: bool, trials: Sequence[Trial] = ()
        ) -> Observer:
            shown.close()
            # FORCE_COLOR makes rich take any file for a terminal.
            if not (console.is_interactive and console.file.isatty()):
                return Events(name, num_trials, each_tick=each_tick, trials=trials)
            table = LiveTable(name, num_trials, trials=trials, console=console)
            shown.callback(table.close)
            return table

        yield observe


def tick_line(name: str, metrics: Mapping[str, Any]) -> str:
    """Return one report as a line; a diverged one has no losses."""
    line = f"{name} tick {int(metrics['tick']):2d}/{TICKS}"
    for key in ("train/loss", "val/log_loss", "val/auroc"):
        if key in metrics:
            line += f"  {key} {metrics[key]:.4f}"
    return f"{line}  best {metrics['score']:.4f}"

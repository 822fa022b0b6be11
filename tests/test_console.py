"""The console: a live table that stays whole in a terminal, and plain lines elsewhere."""

import dataclasses
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, suppress

import pytest
from rich.console import Console

from aiornot import console
from aiornot.config import TICKS, TrainConfig
from aiornot.live import LiveTable, Scene, draw, seconds_left
from aiornot.tuning.ledger import Ledger, Trial

CONFIG = TrainConfig(pretrained=False).to_dict()
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(autouse=True)
def new_talk() -> Iterator[None]:
    """A console looks at its terminal once, when it is made."""
    console.talk.cache_clear()
    yield
    console.talk.cache_clear()


def make(number: int = 0, *, ticks: int = 0, score: float = 0.9, **values: object) -> Trial:
    trial = Trial(id=f"explore-{number:03d}", number=number, params={}, config=CONFIG)
    for name, value in values.items():
        setattr(trial, name, value)
    for tick in range(1, ticks + 1):
        trial.add_tick(report(tick, score=score))
    return trial


def report(tick: int, *, score: float = 0.9, **values: float) -> dict[str, float]:
    return {
        "tick": tick,
        "epoch": tick / 4,
        "lr": 1e-3,
        "train/loss": 0.6,
        "val/log_loss": 0.5,
        "val/auroc": score,
        "score": score,
        "best_tick": tick,
        "seconds": 2.0,
    } | values


def terminal(width: int = 80, height: int = 24) -> Console:
    """A terminal that keeps what is written to it; ``screen`` reads it."""
    return Console(
        force_terminal=True,
        width=width,
        height=height,
        file=io.StringIO(),
        color_system=None,
        soft_wrap=True,
        highlight=False,
        _environ={"TERM": "xterm"},
    )


def written(place: Console) -> str:
    assert isinstance(place.file, io.StringIO)
    return place.file.getvalue()


def screen(place: Console) -> list[str]:
    """Return all lines that stand in a terminal, as it would have carried out what was written."""
    lines, row, column = [""], 0, 0
    for code, text in re.findall(r"(\x1b\[[?\d;]*[A-Za-z]|[\r\n])|([^\x1b\r\n])", written(place)):
        if text:
            if column == place.width:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
        elif code == "\r":
            column = 0
        elif code == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif code.endswith("A"):
            # What has left the window at its top is out of reach.
            row = max(row - int(code[2:-1]), len(lines) - place.height, 0)
        elif code == "\x1b[2K":
            lines[row] = ""
        else:
            assert code in (HIDE, SHOW), repr(code)
    return [line.rstrip() for line in lines]


def drawn(scene: Scene, *, width: int = 100, height: int = 30) -> list[str]:
    """Draw a scene into so many lines and return them."""
    place = terminal(width, height)
    place.print(draw(scene, height=height))
    return [line.rstrip() for line in written(place).splitlines()]


def stage(*trials: Trial, num_trials: int = 20, **values: object) -> Scene:
    scene = Scene(name="explore", num_trials=num_trials, trials=trials, seconds=30.0)
    return dataclasses.replace(scene, **values)


# --- what is drawn -------------------------------------------------------------------------------


def test_a_stage_shows_its_running_trials_and_those_that_ended_last():
    scene = stage(
        make(0, ticks=16, score=0.95, state="finished"),
        make(1, ticks=1, score=0.6, state="stopped", reason="below the cut at tick 1"),
        make(2, ticks=3, score=0.99, state="failed", reason="RuntimeError:\n  out of memory"),
        make(3, ticks=4, score=0.7, origin="from parent-007"),
        make(4),
    )
    heading, best, names, third, fourth, ended_names, *ended = drawn(scene)
    assert heading == "explore: 3 of 20 trials ended: 1 finished, 1 stopped, 1 failed"
    assert best == "best 0.9500 (explore-000); 30 s"
    assert names.split() == ["trial", "origin", "tick", "score", "seconds"]
    assert re.sub(r"[^ -~]+", "", third).split() == [
        *("explore-003", "from", "parent-007", "4/16", "0.7000", "8")
    ]
    assert fourth.split()[-3:] == ["0/16", "-", "0"]
    assert ended_names.split() == ["trial", "state", "score", "seconds", "reason"]
    assert ended == [
        "explore-000  finished  0.9500       32",
        "explore-001  stopped   0.6000        2  below the cut at tick 1",
        "explore-002  failed    0.9900        6  RuntimeError: out of memory",
    ]


def test_a_stage_before_its_first_tick_has_no_score_and_no_end_in_sight():
    assert drawn(stage(make(0)))[:2] == ["explore: 0 of 20 trials ended", "no score yet; 30 s"]


@pytest.mark.parametrize(("width", "height"), [(100, 30), (60, 15), (40, 8), (30, 4)])
@pytest.mark.parametrize(("num_running", "num_ended"), [(0, 0), (2, 0), (1, 40), (64, 2), (64, 99)])
def test_a_stage_is_never_larger_than_the_terminal(width, height, num_running, num_ended):
    long = "a very long reason " * 20
    ended = [make(n, ticks=9, state="failed", reason=long) for n in range(num_ended)]
    running = [make(100 + n, ticks=3, origin="from " + "9" * 50) for n in range(num_running)]
    lines = drawn(stage(*ended, *running, num_trials=200), width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith("explore-")]
    (left_out,) = [int(line.split()[1]) for line in lines if line.startswith("and ")] or [0]
    assert sum("failed" not in row for row in rows) + left_out == num_running
    assert sum("failed" in row for row in rows) == min(num_ended, 8) or height < 30


def test_many_running_trials_leave_room_for_those_that_ended():
    running, ended = [make(n) for n in range(64)], [make(64 + n, state="stopped") for n in range(9)]
    lines = drawn(stage(*running, *ended), width=80, height=15)
    assert len(lines) == 15
    assert lines[-3].startswith("explore-070") and lines[-1].startswith("explore-072")
    assert "and 57 more" in lines


def test_a_reason_is_text_and_neither_markup_nor_colour():
    reason = "\x1b[31mKeyError\x1b[0m: [bold]x[/bold]"
    *_, line = drawn(stage(make(state="failed", reason=reason)))
    assert line.endswith("KeyError: [bold]x[/bold]")


def test_a_lone_trial_shows_its_ticks():
    scene = stage(make(ticks=2), num_trials=1, num_ticks=2, seconds=10.0)
    heading, above, names, *rows = drawn(scene, width=60)
    assert heading == "explore-000: tick 2 of 16; 10 s, about 70 s left"
    assert [*above.split(), *names.split()] == [
        *("train/", "val/", "val/", "tick", "epoch", "lr", "loss", "log_loss", "auroc"),
        *("best", "seconds"),
    ]
    assert [row.split() for row in rows] == [
        ["1", "0.2", "1.0e-03", "0.6000", "0.5000", "0.9000", "0.9000", "2.0"],
        ["2", "0.5", "1.0e-03", "0.6000", "0.5000", "0.9000", "0.9000", "2.0"],
    ]


def test_a_lone_trial_that_diverged_says_so():
    trial = make(state="diverged", reason="the loss was not finite at tick 1")
    trial.add_tick({"tick": 1, "epoch": 0.25, "lr": 1e-3, "score": 0.0, "seconds": 2.0})
    heading, _, _, row = drawn(stage(trial, num_trials=1))
    assert heading == "explore-000: diverged: the loss was not finite at tick 1; 30 s"
    assert row.split() == ["1", "0.2", "1.0e-03", "-", "-", "-", "0.0000", "2.0"]


def test_a_low_terminal_shows_the_newest_ticks_and_at_the_end_all_of_them():
    scene = stage(make(ticks=TICKS), num_trials=1)
    lines = drawn(scene, height=10)
    assert [line.split()[0] for line in lines[3:]] == ["10", "11", "12", "13", "14", "15", "16"]
    last = drawn(dataclasses.replace(scene, is_over=True), height=10)
    assert len(last) == 3 + TICKS


@pytest.mark.parametrize(
    ("trials", "num_trials", "num_ticks", "expected"),
    [
        ([make()], 1, 0, None),
        ([make(ticks=4)], 1, 4, 90.0),  # 12 ticks at 7.5 s
        # Those that ended did so at tick 3: one tick of the running trial and twice 3 are missing.
        ([make(0, ticks=3, state="stopped"), make(1, ticks=2)], 4, 5, 42.0),
        # Past that point, a trial will finish.
        ([make(0, ticks=3, state="stopped"), make(1, ticks=3)], 2, 6, 65.0),
        ([make(0, ticks=16, state="finished")], 1, 16, 0.0),
        # Ticks of an earlier attempt took no time of this one.
        ([make(ticks=14)], 1, 2, 30.0),
    ],
)
def test_the_time_left_is_guessed_from_the_ticks_so_far(trials, num_trials, num_ticks, expected):
    assert seconds_left(stage(*trials, num_trials=num_trials, num_ticks=num_ticks)) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_times_are_told_in_the_unit_that_fits(seconds, text):
    assert drawn(stage(make(), seconds=seconds))[1] == f"no score yet; {text}"


# --- in a terminal -------------------------------------------------------------------------------


@pytest.fixture
def place() -> Console:
    return terminal(60, 15)


@pytest.fixture
def table(place) -> Iterator[LiveTable]:
    """The table of a stage of four trials."""
    with closing(LiveTable("explore", 4, console=place)) as table:
        yield table


@pytest.fixture
def ledger(tmp_path, table) -> Ledger:
    return Ledger(str(tmp_path), observers=[table])


def run_trial(ledger: Ledger, number: int, *, ticks: int, error: str = "") -> None:
    trial = make(number)
    ledger.begin(trial)
    for tick in range(1, ticks + 1):
        ledger.tick(trial, report(tick))
    ledger.end(trial, error=error)


def refresh(table: LiveTable) -> None:
    """Do now what the display does by itself twice a second."""
    table._display.refresh()


def first_words(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines if line]


def test_a_table_opens_with_its_first_trial_and_closes_with_its_last(place, table, ledger):
    assert written(place) == ""
    for number, ticks in enumerate((16, 1, 4, 16)):
        assert SHOW not in written(place)
        run_trial(ledger, number, ticks=ticks)
    place.print("said afterwards")
    lines = screen(place)
    assert lines[0] == "explore: 4 of 4 trials ended: 2 finished, 2 stopped"
    assert first_words(lines[2:]) == ["trial", *(f"explore-{n:03d}" for n in range(4)), "said"]
    assert written(place).endswith(SHOW + "said afterwards\n")


def test_what_is_printed_meanwhile_stands_above_the_table(place, table, ledger, monkeypatch):
    monkeypatch.setattr(console, "talk", lambda: place)
    ledger.begin(make(0))
    console.say("said [by us], " + "longer than the terminal is wide " * 3)
    run_trial(ledger, 1, ticks=1)
    refresh(table)
    sys.stderr.write("written by a library\n")
    console.say("said once more")
    lines = screen(place)
    (heading,) = (number for number, line in enumerate(lines) if "trials ended" in line)
    assert lines[0].startswith("said [by us], longer than")
    assert lines[heading - 2 : heading] == ["written by a library", "said once more"]
    assert first_words(lines[heading + 2 :]) == ["trial", "explore-000", "trial", "explore-001"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_happens_the_cursor_comes_back_and_the_table_is_whole(place, table, ledger, error):
    before = sys.stderr
    with pytest.raises(error), closing(table):
        run_trial(ledger, 0, ticks=16)
        run_trial(ledger, 1, ticks=2, error="OSError: " + "no room " * 20)
        ledger.begin(make(2))
        refresh(table)
        assert sys.stderr is not before
        place.file.write("^C")  # which the terminal itself writes
        raise error
    assert sys.stderr is before
    assert written(place).endswith(SHOW)
    heading, best, *lines = screen(place)
    assert heading.startswith("explore: 2 of 4 trials ended: 1 finished, 1 failed")
    assert best.startswith("best 0.9000 (explore-000); ")
    assert first_words(lines) == ["trial", "explore-002", "trial", "explore-000", "explore-001"]


def test_the_last_picture_may_be_longer_than_the_terminal(tmp_path):
    place = terminal(60, 8)
    with closing(LiveTable("explore", 40, console=place)) as table:
        ledger = Ledger(str(tmp_path), observers=[table])
        for number in range(20):
            ledger.begin(make(number))
            refresh(table)
            assert len(screen(place)) <= 8
    lines = screen(place)
    assert first_words(lines) == ["explore:", "no", "trial"] + [
        f"explore-{number:03d}" for number in range(20)
    ]


def test_a_table_that_was_closed_does_not_open_again(place, table, ledger):
    run_trial(ledger, 0, ticks=1)
    table.close()
    before = written(place)
    run_trial(ledger, 1, ticks=1)
    table.close()
    assert written(place) == before


def test_trials_of_an_earlier_attempt_are_counted(place, tmp_path):
    earlier = [make(0, ticks=16, score=0.97, state="finished"), make(1, ticks=2)]
    with closing(LiveTable("explore", 3, trials=earlier, console=place)) as table:
        Ledger(str(tmp_path), observers=[table]).begin(earlier[1])
    heading, best, *lines = screen(place)
    assert heading == "explore: 1 of 3 trials ended: 1 finished"
    assert best.startswith("best 0.9700 (explore-000); ")
    assert first_words(lines) == ["trial", "explore-001", "trial", "explore-000"]


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1000)
    yield
    sys.setswitchinterval(before)


def test_many_threads_may_tell_it_at_once(tmp_path, hasty_threads):
    place = terminal(100, 30)
    with closing(LiveTable("explore", 48, console=place)) as table:
        ledger = Ledger(str(tmp_path), observers=[table])

        def work(first: int) -> None:
            for number in range(first, first + 6):
                run_trial(ledger, number, ticks=3)

        workers = [threading.Thread(target=work, args=(6 * number,)) for number in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    heading, _, *lines = screen(place)
    assert heading == "explore: 48 of 48 trials ended: 48 stopped"
    assert len(first_words(lines)) == 1 + 8
    assert table._scene.num_ticks == 48 * 3


# --- which of the two ----------------------------------------------------------------------------


@contextmanager
def pseudo_terminal(monkeypatch, *, kind: str = "xterm") -> Iterator[list[bytes]]:
    """Make stderr a terminal meanwhile, and give what it was sent, whole once this is over."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", kind)
    ours, theirs = os.openpty()
    sent: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the other side was closed
            while True:
                sent.append(os.read(ours, 4096))

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w", encoding="utf-8") as file, redirect_stderr(file):
        yield sent
    reader.join()
    os.close(ours)


def test_in_a_terminal_one_stage_is_shown_after_the_other(monkeypatch, tmp_path):
    stdout = sys.stdout
    with pseudo_terminal(monkeypatch) as sent, console.observing() as observe:
        first = observe("explore", 4, each_tick=False)
        run_trial(Ledger(str(tmp_path / "1"), observers=[first]), 0, ticks=1)
        assert isinstance(first, LiveTable) and sys.stdout is stdout
        second = observe("exploit", 4, each_tick=False)
        assert first._scene.is_over and not second._scene.is_over
        Ledger(str(tmp_path / "2"), observers=[second]).begin(make(7))
        console.say("said")
    assert second._scene.is_over
    shown = b"".join(sent).decode()
    assert shown.count(HIDE) == shown.count(SHOW) == 2
    assert shown.index("explore: 1 of 4") < shown.index("exploit: 0 of 4") < shown.index("said")
    assert shown.rindex("exploit: 0 of 4") > shown.index("said")


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch, tmp_path):
    with pseudo_terminal(monkeypatch, kind="dumb") as sent, console.observing() as observe:
        observer = observe("explore", 1, each_tick=False)
        run_trial(Ledger(str(tmp_path), observers=[observer]), 0, ticks=1)
    shown = b"".join(sent).decode()
    assert shown.startswith("explore: 1 trial\r\n  explore-000 begins") and "\x1b" not in shown


def test_what_is_said_and_what_is_drawn_share_one_console():
    assert console.talk() is console.talk()


PLAIN = """\
explore: 2 trials
  explore-000 begins
  explore-000 tick  1/16  train/loss 0.6000  val/log_loss 0.5000  val/auroc 0.9000  best 0.9000
  explore-000 (1/2) stopped: below the cut at tick 1; score 0.9000, best so far 0.9000, 2 s
  explore-001 goes on after tick 3 (from parent-007)
  explore-001 (2/2) failed: OSError; score 0.8000, best so far 0.9000, 6 s
"""


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"TTY_INTERACTIVE": "1"}])
def test_elsewhere_there_is_a_line_per_event(variables, capsys, monkeypatch, tmp_path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with console.observing() as observe:
        observer = observe("explore", 2, each_tick=True, trials=[make(0)])
        ledger = Ledger(str(tmp_path), observers=[observer])
        run_trial(ledger, 0, ticks=1)
        resumed = make(1, ticks=3, score=0.8, origin="from parent-007")
        ledger.begin(resumed)
        ledger.end(resumed, error="OSError")
    told = capsys.readouterr()
    assert re.sub(r"\x1b\[[\d;]*m", "", told.err) == PLAIN
    assert told.out == ""


def test_the_best_so_far_is_that_of_all_sessions(capsys, tmp_path):
    with console.observing() as observe:
        before = [make(0, ticks=2, score=0.95), make(1)]
        observer = observe("explore", 3, each_tick=False, trials=before)
        run_trial(Ledger(str(tmp_path), observers=[observer]), 2, ticks=1)
    assert "score 0.9000, best so far 0.9500" in capsys.readouterr().err

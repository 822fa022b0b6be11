"""The cluster tests: a lab for all of them, and a table of what they took at the end."""

import os
from collections.abc import Iterator

import lab as labs
import pytest
from launcher import HOSTS, NETWORK, open_lab
from timetable import ROWS, timed


def pytest_configure(config: pytest.Config) -> None:
    if reason := labs.why_not():
        pytest.exit(reason, returncode=1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROWS:
        return
    load = " ".join(f"{value:.0f}" for value in os.getloadavg())
    terminalreporter.section(f"on {os.cpu_count()} cores, load {load}")
    terminalreporter.line("| | s | trials lost | ticks repeated |")
    terminalreporter.line("|---|--:|---|---|")
    for row in ROWS:
        cells = (row.what, f"{row.seconds:.0f}", row.trials, row.ticks)
        terminalreporter.line(f"| {' | '.join(cells)} |")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[labs.Lab]:
    """Four machines, powered on: ``head``, ``w1``, ``w2`` and ``laptop``."""
    opened = open_lab(tmp_path_factory.mktemp("lab"), NETWORK, HOSTS)
    with timed("four hosts powered on"):
        opened.__enter__()
    try:
        yield opened
    finally:
        opened.__exit__()

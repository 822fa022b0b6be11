"""The cluster tests: a lab for all of them, and a table of what they took at the end."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import lab as labs
import pytest
from launcher import HOSTS, REPOSITORY, stamp
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


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[labs.Lab]:
    """Four machines, powered on: ``head``, ``w1``, ``w2`` and ``laptop``."""
    environment = Path(sys.prefix)
    profile = {
        "PATH": f"{environment}/bin:$PATH",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "AIORNOT_VENV": str(environment),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "WANDB_MODE": "offline",
    }
    folder = tmp_path_factory.mktemp("lab")
    files = {environment / ".aiornot-node": stamp()}
    binds = [environment, Path(sys.base_prefix), REPOSITORY]
    with timed("four hosts powered on"):
        opened = labs.Lab(folder, HOSTS, profile=profile, files=files, binds=binds).__enter__()
    try:
        yield opened
    finally:
        opened.__exit__()

"""The benchmark of preparing: its ways write the same file, and what they use is counted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "prepare.py"
WAYS = ["notebook", "ours", "pool"]


@pytest.mark.ray
@pytest.mark.timeout(240)  # three fresh processes, one of which starts a Ray of its own
def test_every_way_prepares_the_same_images(tmp_path: Path) -> None:
    arguments = ["--images", "24", "--size", "64", "--rounds", "1", "--data", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--json"],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )
    assert ended.returncode == 0, ended.stderr
    (report,) = json.loads(ended.stdout)
    assert report["difference"] == 0
    assert [run["way"] for run in report["runs"]] == WAYS
    for run in report["runs"]:
        check_clocks(run)
    assert [path.name for path in tmp_path.iterdir()] == ["photos-24"]


def check_clocks(run: dict[str, Any]) -> None:
    """Compare the CPU seconds that were seen with those that the kernel adds up at the end.

    Ray's workers and daemons are not the process's to wait for: there, more is seen.
    """
    assert 0 < run["work"]["cpu"] < run["life"]["seen"]
    assert run["life"]["seen"] > 0.8 * run["life"]["waited"]
    if run["way"] == "ours":
        assert run["life"]["seen"] > 1.2 * run["life"]["waited"]

"""Two commands on one run: the second is refused, and a dead one holds nothing."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_verb

from aiornot import lock

HOLDER = """
import os, sys, time
from pathlib import Path
from aiornot import lock

with lock.held(Path(sys.argv[1]), RuntimeError):
    child = os.fork()  # which keeps every file that is open
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of the run ``runs/demo``, and has forked a child."""
    command = [sys.executable, "-c", HOLDER, tmp_path / "runs/.demo.lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        yield process
        os.kill(child, signal.SIGKILL)  # it is there still, or this raises
        process.kill()


SETTINGS = ("model=test_resnet.r160_in1k", "pretrained=false", "epochs=8")
TRAIN = ("train", "--out", "runs/demo", *(f"--set={setting}" for setting in SETTINGS))


@pytest.mark.parametrize("command", [("tune", "demo"), TRAIN], ids=lambda command: command[0])
def test_a_run_at_which_another_process_works_is_refused(
    holder, command, easy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").mkdir()
    for profile in ("full", "reduced"):
        shutil.copy(easy, tmp_path / f"prepared/{profile}.h5")
    found = run_verb(*command, "--data", "prepared")
    assert found.code == 2 and found.err.startswith(f"aiornot: runs/demo: process {holder.pid} on ")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".demo.lock"]


def test_a_killed_process_holds_nothing_though_its_child_lives_on(holder, tmp_path):
    path = tmp_path / "runs/.demo.lock"
    with pytest.raises(RuntimeError, match=f"process {holder.pid}"), lock.held(path, RuntimeError):
        pass
    holder.kill()
    holder.wait()
    with lock.held(path, RuntimeError):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert not path.exists()


def test_whatever_happens_meanwhile_the_lock_is_gone(tmp_path):
    path = Path(tmp_path / "runs/.demo.lock")
    with pytest.raises(KeyError), lock.held(path, RuntimeError):
        raise KeyError
    assert not path.parent.exists()

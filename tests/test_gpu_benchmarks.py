"""The benchmarks of the training step, tiny and on a CPU: they run, and count what they should."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Seconds alone; each starts a process that imports Lightning.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Callable[[str], ModuleType]]:
    """Import a benchmark as its neighbours do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_smoke_runs_everything_and_says_that_it_is_none(
    benchmarks: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("gpu_throughput.py", "--smoke", "--compile-augment", "--out", str(tmp_path))
    (kept,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    assert kinds == ["machine", "throughput", "throughput", "notebook", "auroc", "auroc"]
    assert [row["augmentation"] for row in rows[1:3]] == ["notebook, eager", "notebook, compiled"]
    assert all(min(row["ours_over_ceiling"]) > 0 and row["host_ms"] > 0 for row in rows[1:3])
    assert min(rows[3]["notebook_img_s"]) > 0
    assert [row["loop"] for row in rows[4:]] == ["ours", "notebook"]
    assert len(rows[4]["curve"]) == 16
    label, table = printed.index("**CPU smoke"), printed.index("| model |")
    assert label < table  # whoever reads the figures has read what they are
    benchmarks("gpu_throughput").show(rows)  # what a call with --rows does
    assert capsys.readouterr().out == printed[printed.index("\n**CPU smoke") :]


def test_without_a_gpu_nothing_is_measured(
    benchmarks: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_throughput.py", "canary"])
    with pytest.raises(SystemExit, match="this needs a GPU"):
        benchmarks("gpu_throughput").main()


def test_our_steps_read_nothing_on_the_host_and_the_notebooks_do() -> None:
    report = json.loads(run("train_step.py", "--rounds", "1", "--steps", "4", "--json"))
    reads = report["reads_per_step"]
    assert reads["ours"] == {}
    assert sum(reads["notebook"].values()) > 4
    assert any(caller.startswith("torchmetrics") for caller in reads["notebook"])
    # Row numbers that never leave the host, once an epoch and not once a step.
    assert set(reads["our loader, of row numbers"]) <= {"aiornot.training.loader"}
    assert all(spent > 0 for spent in report["host_us_per_step"].values())


VECTOR = torch.tensor([1.0, 2.0])
NUMBER = torch.tensor(1)


@pytest.mark.parametrize(
    "read",
    [
        lambda: NUMBER.item(),
        lambda: VECTOR.tolist(),
        lambda: bool(NUMBER),
        lambda: float(NUMBER),
        lambda: int(NUMBER),
        lambda: "ab"[NUMBER],
        lambda: VECTOR.cpu(),
        lambda: VECTOR.numpy(),
        lambda: VECTOR.nonzero(),
        lambda: VECTOR.unique(),
        lambda: VECTOR[VECTOR > 1],
        lambda: torch.equal(VECTOR, VECTOR),
    ],
)
def test_a_host_read_is_counted_once(
    benchmarks: Callable[[str], ModuleType], read: Callable[[], object]
) -> None:
    reads = benchmarks("train_step").HostReads()
    with reads:
        read()
        torch.where(VECTOR > 1, VECTOR, 0.0).sum()  # no read
    assert reads.callers == {__name__: 1}
    read()
    assert reads.callers == {__name__: 1}  # no longer

"""Two hundred hostile files: as many answers, no crash, and bounds on memory and time."""

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest
from conftest import run_verb
from hostile import write


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    # "up" leads to the whole folder again, so its files come twice.
    paths = write(tmp_path_factory.mktemp("hostile") / "files")
    return [path for path in paths if path.name != "up"]


def listing(monkeypatch, paths, end=b"\0"):
    data = b"".join(os.fsencode(path) + end for path in paths)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def peak_memory() -> int:
    """Return the most bytes that this process has held since the last ``forget_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def answered(files, delivered):
    """Predict all of them with the verb; return the result, its lines, and what it took."""
    with pytest.MonkeyPatch.context() as patch:
        listing(patch, files)
        forget_peak()
        before, started = peak_memory(), time.process_time()
        result = run_verb("predict", str(delivered.folder), "-", "--json")
        took = time.process_time() - started, peak_memory() - before
    return result, [json.loads(line) for line in result.out.splitlines()], *took


def test_each_of_two_hundred_files_has_an_answer(answered, files):
    result, told, _, _ = answered
    assert len(files) >= 200 and len(told) == len(files)
    assert [os.fsencode(one["file"]) for one in told] == [os.fsencode(path) for path in files]
    assert all(("error" in one) != ("probability" in one) for one in told)
    assert all(0 < one["probability"] < 1 for one in told if "probability" in one)
    assert result.code == 1 and "Traceback" not in result.err
    failed = sum("error" in one for one in told)
    assert f"{failed} of {len(files)} files could not be read" in result.err


def test_whole_images_are_predicted_and_bombs_and_strangers_are_not(answered):
    names = {Path(one["file"]).name: one for one in answered[1]}
    for name, one in names.items():
        if name.startswith(("odd-", "lies-")):
            assert "probability" in one, one
        if name.startswith(("cut-JPEG", "cut-PNG")):
            assert "error" in one, one
    for name in ("svg", "html", "eps", "pickle", "empty", "heic"):
        assert "error" in names[f"{name}.png"]
    for name in ("png-50000", "png-wide", "jpeg", "jpeg-scans", "gif", "bmp"):
        assert "allowed" in names[f"bomb-{name}.png"]["error"]
    reasons = {name: names[name]["error"] for name in ("itself", "zero", "pipe.jpg", "sparse.jpg")}
    assert "symbolic links" in reasons["itself"] and "not a regular file" in reasons["zero"]
    assert reasons["pipe.jpg"] == "not a regular file" and "bytes" in reasons["sparse.jpg"]
    assert "URLs are not fetched" in names["a.png"]["error"]


def test_memory_and_time_are_bounded(answered):
    _, _, seconds, memory = answered
    assert seconds < 20
    assert memory < 700_000_000  # two images of 81 megapixels at once


def test_no_line_is_longer_than_a_reason(answered):
    assert all(len(one.get("error", "")) < 250 for one in answered[1])


def test_a_table_shows_no_name_that_a_terminal_would_obey(files, delivered, monkeypatch):
    small = [path for path in files if path.suffix == ".png" and "bomb" not in path.name]
    listing(monkeypatch, small)
    shown = run_verb("predict", str(delivered.folder), "-", "--table")
    assert shown.code == 1
    assert "\x1b" not in shown.out and "\\x1b[31mred" in shown.out
    assert "new\\nline.png" in shown.out and "[bold]markup[0].png" in shown.out
    shown.out.encode()  # no half of a surrogate pair: a terminal takes UTF-8 only


def test_a_list_of_lines_is_read_too(files, delivered, monkeypatch, tmp_path):
    odd = next(path for path in files if path.name == "odd-1x1.png")
    listing(monkeypatch, [odd, tmp_path / "absent.png", odd.parent / "cut-PNG-1.jpg"], end=b"\n")
    result = run_verb("predict", str(delivered.folder), "-", str(odd), "--json")
    told = [json.loads(line) for line in result.out.splitlines()]
    assert [Path(one["file"]).name for one in told] == [
        *("odd-1x1.png", "odd-1x1.png", "absent.png", "cut-PNG-1.jpg")
    ]
    assert told[0]["probability"] == pytest.approx(told[1]["probability"])
    assert "No such file" in told[2]["error"] and result.code == 1


def test_a_folder_of_them_is_walked_once(files, delivered):
    result = run_verb("predict", str(delivered.folder), str(files[0].parent), "--json")
    told = [json.loads(line)["file"] for line in result.out.splitlines()]
    assert len(told) == len(set(told)) > 150 and result.code == 1

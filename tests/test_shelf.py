"""A delivered model beside its run in an object store."""

import shutil
from pathlib import Path

import pytest
from conftest import run_verb

from aiornot import storage
from aiornot.config import InputError
from aiornot.delivery import manifest, shelf

ROOT = "s3://bucket/runs/mine"


@pytest.fixture
def home(s3, delivered, tmp_path) -> Path:
    """The folder of a run, kept in the store."""
    shutil.copytree(delivered.folder, tmp_path / "home/bundle")
    shutil.copytree(delivered.folder, tmp_path / "home/bundle" / manifest.BASELINE)
    (tmp_path / "home/report.html").write_text("<p>")
    shelf.keep(tmp_path / "home", ROOT)
    return tmp_path / "home"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_is_kept_comes_back_whole(home, tmp_path):
    assert shelf.bring(ROOT, tmp_path / "laptop")
    assert contents(tmp_path / "laptop") == contents(home)
    assert not shelf.bring(ROOT, tmp_path / "laptop")


def test_an_equal_model_is_not_sent_again_and_another_is(home, s3):
    s3.asked.clear()
    shelf.keep(home, ROOT)
    assert not any(
        "bundle" in asked and not asked.startswith(("GET", "HEAD")) for asked in s3.asked
    )
    shutil.rmtree(home / "bundle" / manifest.BASELINE)
    (home / "bundle" / manifest.SUMS).write_text("another")
    shelf.keep(home, ROOT)
    assert storage.read_text(f"{ROOT}/bundle/{manifest.SUMS}") == "another"
    assert not any(manifest.BASELINE in key for key in s3.objects)


def test_another_model_here_is_left_alone(home, tmp_path):
    shelf.bring(ROOT, tmp_path / "laptop")
    (tmp_path / "laptop/bundle" / manifest.SUMS).write_text("another")
    before = contents(tmp_path / "laptop")
    with pytest.raises(InputError, match="is another model; move it away, or give another --out"):
        shelf.bring(ROOT, tmp_path / "laptop")
    assert contents(tmp_path / "laptop") == before


def test_a_byte_that_is_wrong_is_found_and_nothing_is_left(home, s3, tmp_path):
    key = "bucket/runs/mine/bundle/model.safetensors"
    s3.objects[key] = s3.objects[key][:-1] + bytes([s3.objects[key][-1] ^ 1])
    with pytest.raises(InputError, match="was changed: its SHA-256"):
        shelf.bring(ROOT, tmp_path / "laptop")
    assert [path.name for path in (tmp_path / "laptop").iterdir()] == ["report.html"]


def test_a_model_that_was_put_in_part_does_not_count(home, s3, tmp_path):
    del s3.objects[f"bucket/runs/mine/bundle/{storage.DONE}"]
    with pytest.raises(InputError, match="no model is delivered there"):
        shelf.bring(ROOT, tmp_path / "laptop")


def test_a_folder_of_this_machine_needs_no_fetching(tmp_path):
    result = run_verb("fetch", "mine", "--storage", str(tmp_path))
    assert result.code == 2 and "needs no fetching" in result.err

"""Prepared files in an object store: fetched once per machine, whole or not at all."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import prepare, run_verb
from stores import FakeS3

from aiornot import storage
from aiornot.config import InputError, WorkError
from aiornot.data import copies, demo

FOLDER = "s3://bucket/prepared"
URL = f"{FOLDER}/full.h5"
KEY = "bucket/prepared/full"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(copies.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published(s3, tmp_path) -> Path:
    """A file that lies in the store with its checksum, as ``aiornot prepare`` leaves it."""
    return publish(s3, prepare(tmp_path / "one.h5"))


def publish(server: FakeS3, path: Path) -> Path:
    content = path.read_bytes()
    server.objects[f"{KEY}.h5"] = content
    server.objects[f"{KEY}.splits.json"] = b'{"digest": "d"}'
    digest = hashlib.sha256(content).hexdigest()
    server.objects[f"{KEY}.h5.sha256"] = f"{digest}  full.h5\n".encode()
    return path


def num_fetched(server: FakeS3) -> int:
    """Return how often the file itself was read; these are smaller than one part."""
    return server.asked.count(f"GET {KEY}.h5")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_a_file_is_fetched_once_with_what_lies_beside_it(s3, published):
    path = copies.fetch(URL)
    assert path.read_bytes() == published.read_bytes()
    assert path.with_suffix(".splits.json").read_text() == '{"digest": "d"}'
    assert copies.fetch(URL) == path and num_fetched(s3) == 1
    assert files(path.parent) == {"full.h5", "full.splits.json", "full.h5.copy.json", "lock"}


def test_a_worker_that_has_the_copy_asks_nothing_of_the_store(s3, published):
    told = copies.told(copies.fetch(URL))
    assert told["data"] == URL
    s3.asked.clear()
    assert copies.here(**told).read_bytes() == published.read_bytes()
    assert s3.asked == []


def test_a_worker_on_another_machine_fetches_the_version_of_the_driver(
    s3, published, tmp_path, monkeypatch
):
    told = copies.told(copies.fetch(URL))
    monkeypatch.setenv(copies.CACHE, str(tmp_path / "another"))
    assert copies.here(**told).read_bytes() == published.read_bytes()
    publish(s3, prepare(tmp_path / "two.h5", seed=1))
    monkeypatch.setenv(copies.CACHE, str(tmp_path / "third"))
    with pytest.raises(WorkError, match="was replaced since this run began"):
        copies.here(**told)


def test_a_local_file_is_told_as_it_is(tmp_path):
    path = prepare(tmp_path / "full.h5")
    assert copies.told(path) == {"data": str(path), "version": ""}
    assert copies.here(**copies.told(path)) == path


FETCH = "from aiornot.data import copies; import sys; print(copies.fetch(sys.argv[1]))"


def test_processes_that_need_it_at_once_fetch_it_once(s3, published):
    both = [
        subprocess.Popen([sys.executable, "-c", FETCH, URL], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    paths = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0] and len(paths) == 1
    assert num_fetched(s3) == 1


def test_a_changed_file_is_fetched_anew(s3, published, tmp_path):
    path = copies.fetch(URL)
    s3.objects[f"{KEY}.slices.json"] = b"{}"
    other = publish(s3, prepare(tmp_path / "two.h5", seed=1))
    assert copies.fetch(URL) == path and path.read_bytes() == other.read_bytes()
    assert path.with_suffix(".slices.json").exists()
    del s3.objects[f"{KEY}.slices.json"]
    publish(s3, published)
    copies.fetch(URL)
    assert not path.with_suffix(".slices.json").exists()


@pytest.mark.parametrize("harm", ["cut short", "written to", "half a note"])
def test_a_copy_that_is_no_longer_what_was_fetched_is_fetched_anew(s3, published, harm):
    path = copies.fetch(URL)
    told = copies.told(path)
    if harm == "half a note":
        path.with_suffix(".h5.copy.json").write_text('{"source": "s3:')
    else:
        os.truncate(path, 1000) if harm == "cut short" else path.write_bytes(b"x")
    assert copies.told(path)["version"] == ""
    assert copies.here(**told).read_bytes() == published.read_bytes() and num_fetched(s3) == 2


def test_a_file_of_which_a_byte_is_wrong_does_not_count(s3, published, cache):
    damaged = bytearray(s3.objects[f"{KEY}.h5"])
    damaged[-1] ^= 1
    s3.objects[f"{KEY}.h5"] = bytes(damaged)
    with pytest.raises(WorkError, match="its SHA-256 is .* damaged or just being replaced"):
        copies.fetch(URL)
    assert files(copies.folder_of(FOLDER)) == {"lock"}


def test_without_a_checksum_size_and_time_tell_versions_apart(s3, published):
    del s3.objects[f"{KEY}.h5.sha256"]
    path = copies.fetch(URL)
    assert copies.fetch(URL) == path and num_fetched(s3) == 1
    s3.objects[f"{KEY}.h5"] = s3.objects[f"{KEY}.h5"][:-100]
    with pytest.raises(InputError, match=f"^{URL} cannot be read as HDF5"):
        copies.fetch(URL)
    assert path.read_bytes() == published.read_bytes()  # the copy before is untouched


def test_a_disk_that_is_too_small_is_one_sentence(s3, published, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 0, 10))
    with pytest.raises(WorkError, match="No space left on device: s3://.*set AIORNOT_CACHE"):
        copies.fetch(URL)
    assert num_fetched(s3) == 0


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(s3, published, monkeypatch):
    def get_file(url: str, path: Path, **options: object) -> str:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "get_file", get_file)
    with pytest.raises(WorkError, match="No space left on device: s3://"):
        copies.fetch(URL)
    assert files(copies.folder_of(FOLDER)) == {"lock"}


def test_a_file_that_is_not_there_says_how_to_make_it(s3):
    with pytest.raises(InputError, match=f"'aiornot prepare SOURCE --out {FOLDER} --profile full'"):
        copies.fetch(URL)


def test_a_store_that_goes_away_in_the_middle_is_waited_for(s3, published, monkeypatch, caplog):
    """Many small parts in several threads; it is said once."""
    monkeypatch.setattr(storage, "_PART", 10_000)
    s3.failures.extend([""] * 12 + ["hang up"] * 30)
    assert copies.fetch(URL).read_bytes() == published.read_bytes()
    assert not s3.failures and len(caplog.records) <= 1


def test_a_verb_reads_from_the_store(s3, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ("--set", "model=nothing", "--set", "pretrained=false")
    result = run_verb("probe", "--data", FOLDER, *settings)
    assert result.code == 2 and "nothing" in result.err  # it came as far as the model
    assert num_fetched(s3) == 1
    result = run_verb("probe", "--data", "s3://bucket/nowhere", *settings)
    assert result.code == 2 and "aiornot prepare SOURCE --out s3://bucket/nowhere" in result.err


# Publishing ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("parquet") / "0.parquet"
    rows = [
        {
            "id": str(row),
            "image": {"bytes": demo.make_image(row, label=row % 2, size=16)[0], "path": None},
            "label": row % 2,
        }
        for row in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_prepared_file_is_published_with_its_checksum(s3, parquet, tmp_path, monkeypatch):
    arguments = ("prepare", str(parquet), "--out", FOLDER, "--size", "16", "--json")
    first = run_verb(*arguments)
    assert first.code == 0, first.err
    found = json.loads(first.out)
    assert found["path"] == URL and not found["skipped"]
    digest = hashlib.sha256(s3.objects[f"{KEY}.h5"]).hexdigest()
    assert s3.objects[f"{KEY}.h5.sha256"].decode() == f"{digest}  full.h5\n"
    assert json.loads(s3.objects[f"{KEY}.splits.json"])["splits"]["train"]
    # Here it is a copy already, and another machine finds it finished.
    assert copies.told(copies.fetch(URL))["version"] == digest and num_fetched(s3) == 0
    monkeypatch.setenv(copies.CACHE, str(tmp_path / "another"))
    s3.asked.clear()
    again = run_verb(*arguments)
    assert json.loads(again.out) | {"skipped": False} == found and json.loads(again.out)["skipped"]
    assert num_fetched(s3) == 1 and f"PUT {KEY}.h5" not in s3.asked
    # Other settings replace it.
    changed = json.loads(run_verb(*arguments, "--seed", "1").out)
    assert changed["replaced"]
    assert hashlib.sha256(s3.objects[f"{KEY}.h5"]).hexdigest() != digest


def test_a_store_that_may_not_be_written_is_told_before_the_work(s3, parquet):
    s3.refused = "POST"
    storage.exists(f"{FOLDER}/full.h5")
    result = run_verb("prepare", str(parquet), "--out", FOLDER, "--size", "16")
    assert result.code == 2 and result.err.count("\n") == 1, result.err
    assert f"aiornot: --out {FOLDER} cannot be written: " in result.err
    assert s3.objects == {}


@pytest.mark.parametrize("out", ["s3://", "hf://datasets/a/b", "gs://bucket/x", "s3://a:b@c/d"])
def test_a_place_that_is_none_is_refused(out, parquet):
    result = run_verb("prepare", str(parquet), "--out", out)
    assert result.code == 2 and result.err.count("\n") == 1, result.err
    assert ".writable" not in result.err and "a:b" not in result.err


def test_what_could_not_be_published_is_put_by_the_same_command(s3, tmp_path):
    def make() -> None:
        with copies.published(URL) as folder:
            if not (folder / "full.h5").exists():
                prepare(folder / "full.h5")
            s3.refused = refused

    refused = "POST"
    with pytest.raises(storage.StoreError, match="the same command goes on"):
        make()
    s3.refused = refused = ""
    assert f"{KEY}.h5" not in s3.objects
    made = copies.folder_of(FOLDER) / "full.h5"
    before = made.stat()
    make()
    assert s3.objects[f"{KEY}.h5"] == made.read_bytes() and made.stat() == before

"""The same operations on a local folder and on S3, the latter by Arrow's client against a fake."""

import errno
import os
import threading
from pathlib import Path

import pytest
from pyarrow import fs
from stores import FakeS3

from aiornot import storage
from aiornot.config import InputError


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    if request.param == "local":
        return str(tmp_path / "runs")
    request.getfixturevalue("s3")
    return "s3://bucket/runs"


def make_folder(path: Path) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "weights").write_bytes(bytes(range(256)) * 100)
    (path / "inner" / "note.txt").write_text("\u00e9")
    (path / "empty").write_text("")
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [
        *((0, "0 bytes"), (999, "999 bytes"), (122_880, "122.9 kB"), (3_140_000, "3.1 MB")),
        *((20e9, "20 GB"), (139.6e9, "139.6 GB"), (5e15, "5000 TB")),
    ],
)
def test_a_size_is_said_in_the_unit_that_fits_it(num_bytes, said):
    assert storage.spoken(num_bytes) == said


def test_a_text_comes_back_as_it_was_written(root):
    path = storage.join(root, "deep", "er", "note.json")
    assert not storage.exists(path)
    storage.write_text(path, "first \u00e9\n")
    storage.write_text(path, "second \u00e9\n")
    assert storage.exists(path)
    assert storage.read_text(path) == "second \u00e9\n"
    with storage.open_input(path) as file:
        file.seek(7)
        assert file.read().decode() == "\u00e9\n"


@pytest.mark.parametrize("name", ["two words", "50%", "a%20b", "set[1]", "caf\u00e9", "a+b", "a#b"])
def test_any_name_will_do(root, name):
    path = storage.join(root, name, f"{name}.json")
    storage.write_text(path, "text")
    assert storage.read_text(path) == "text"
    assert storage.list_folders(root) == [storage.join(root, name)]
    assert storage.list_files(storage.join(root, name)) == [path]
    assert storage.find(path, suffix=".json") == [path]


def test_a_listing_is_sorted_and_tells_files_from_folders(root):
    for name in ("b.json", "a.json", "c.txt", ".hidden.json", "folder/x.json"):
        storage.write_text(storage.join(root, name), "")
    assert storage.list_files(root, suffix=".json") == [f"{root}/a.json", f"{root}/b.json"]
    assert storage.list_files(root + "/") == [
        f"{root}/{name}" for name in ("a.json", "b.json", "c.txt")
    ]
    assert storage.list_folders(root) == [f"{root}/folder"]


def test_an_absent_folder_is_empty(root):
    absent = storage.join(root, "absent")
    assert storage.list_files(absent) == storage.list_folders(absent) == []
    assert storage.complete_folders(absent) == []
    assert not storage.exists(absent)


def test_what_is_deleted_is_gone_and_what_is_absent_is_fine(root):
    for name in ("folder/a", "folder/inner/b", "beside"):
        storage.write_text(storage.join(root, name), "x")
    storage.delete(storage.join(root, "folder"))
    storage.delete(storage.join(root, "absent"))
    assert not storage.exists(storage.join(root, "folder"))
    assert storage.list_files(root) == [f"{root}/beside"]
    storage.delete(storage.join(root, "beside"))
    assert storage.list_files(root) == []


def test_a_folder_comes_back_as_it_was_put(root, tmp_path):
    local = make_folder(tmp_path / "local")
    storage.put_folder(local, storage.join(root, "one"))
    assert storage.complete_folders(root) == [f"{root}/one"]
    storage.get_folder(storage.join(root, "one"), tmp_path / "deep" / "back")
    assert contents(tmp_path / "deep" / "back") == contents(local)


def test_a_folder_that_is_put_again_keeps_nothing_of_the_old(root, tmp_path):
    local = make_folder(tmp_path / "local")
    storage.put_folder(local, storage.join(root, "one"))
    (local / "weights").unlink()
    storage.put_folder(local, storage.join(root, "one"))
    assert not storage.exists(storage.join(root, "one", "weights"))
    assert storage.complete_folders(root) == [f"{root}/one"]


def test_a_folder_is_not_copied_over_another(root, tmp_path):
    storage.put_folder(make_folder(tmp_path / "local"), storage.join(root, "one"))
    with pytest.raises(FileExistsError):
        storage.get_folder(storage.join(root, "one"), tmp_path / "local")


def test_a_folder_without_its_last_file_does_not_count(root, tmp_path):
    for name in ("two", "one", "half"):
        storage.put_folder(make_folder(tmp_path / name), storage.join(root, name))
    storage.delete(storage.join(root, "half", storage.DONE))
    assert storage.complete_folders(root) == [f"{root}/one", f"{root}/two"]


def test_a_copy_that_was_fetched_can_be_put_without_its_mark(root, tmp_path):
    """Otherwise the mark arrives among the first files and declares the copy done."""
    storage.put_folder(make_folder(tmp_path / "local"), storage.join(root, "one"))
    storage.get_folder(storage.join(root, "one"), tmp_path / "back")
    assert storage.DONE not in contents(tmp_path / "back")


def test_a_folder_that_is_half_deleted_does_not_count(s3, tmp_path):
    """A run that is killed while it replaces a checkpoint must not leave half of it as whole."""
    folder = "s3://bucket/runs/one"
    storage.put_folder(make_folder(tmp_path / "local"), folder)
    s3.refused = "POST"  # the many at once; single files go by DELETE
    with pytest.raises(OSError):
        storage.put_folder(tmp_path / "local", folder)
    s3.refused = ""
    assert storage.exists(f"{folder}/weights")
    assert storage.complete_folders("s3://bucket/runs") == []


def test_a_reader_sees_the_old_text_or_the_new_and_never_a_half(tmp_path):
    path = str(tmp_path / "note")
    texts = {letter * 200_000 for letter in "ab"}
    storage.write_text(path, "a" * 200_000)
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(storage.read_text(path))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        for text in sorted(texts):
            storage.write_text(path, text)
    stop.set()
    reader.join()
    assert seen == texts
    assert storage.list_files(str(tmp_path)) == [path]


def test_a_write_that_fails_leaves_the_old_text_and_no_litter(tmp_path, monkeypatch):
    storage.write_text(str(tmp_path / "note"), "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        storage.write_text(str(tmp_path / "note"), "new")
    assert contents(tmp_path) == {"note": b"old"}


def test_a_source_may_be_a_file_a_folder_or_a_glob(root):
    for name in ("b.parquet", "a.parquet", "c.txt", "other/d.parquet"):
        storage.write_text(storage.join(root, name), "")
    a, b = f"{root}/a.parquet", f"{root}/b.parquet"
    assert storage.find(a, suffix=".parquet") == [a]
    assert storage.find(root, suffix=".parquet") == [a, b]
    assert storage.find(f"{root}/*.parquet", suffix=".parquet") == [a, b]
    assert storage.find(f"{root}/[b-z]*", suffix=".parquet") == [b]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("**/*.parquet", ["a", "x/b", "x/y/c", "z/d"]),
        ("x/**/*.parquet", ["x/b", "x/y/c"]),
        ("*/*", ["x/b", "z/d"]),
        ("[xy]/*.parquet", ["x/b"]),
        ("*/y/*.parquet", ["x/y/c"]),
        ("**", ["a", "x/b", "x/y/c", "z/d"]),
    ],
)
def test_a_glob_may_span_folders(root, pattern, expected):
    for name in ("z/d", "a", "x/b", "x/y/c", ".h/e", "x/.h/f"):
        storage.write_text(storage.join(root, f"{name}.parquet"), "")
    storage.write_text(storage.join(root, "x", "note.txt"), "")
    found = storage.find(storage.join(root, pattern), suffix=".parquet")
    assert found == [f"{root}/{name}.parquet" for name in expected]


def test_a_folder_without_files_stands_for_the_folders_in_it(root):
    """On the Hugging Face hub the shards lie in data/; Spark writes a folder per table."""
    for name in ("data/b", "data/a", "data/more/c", "also/d", ".cache/e", "data/.cache/f"):
        storage.write_text(storage.join(root, f"{name}.parquet"), "")
    storage.write_text(storage.join(root, "README.md"), "")
    expected = [f"{root}/{name}.parquet" for name in ("also/d", "data/a", "data/b", "data/more/c")]
    assert storage.find(root, suffix=".parquet") == expected
    assert storage.find(f"{root}/", suffix=".parquet") == expected
    assert storage.find(f"{root}/data", suffix=".parquet") == expected[1:3]
    storage.write_text(storage.join(root, "direct.parquet"), "")
    assert storage.find(root, suffix=".parquet") == [f"{root}/direct.parquet"]


def test_a_relative_folder_names_relative_files(tmp_path, monkeypatch):
    storage.write_text(str(tmp_path / "set" / "data" / "a.parquet"), "")
    (tmp_path / "here").mkdir()
    for folder, source in ((tmp_path, "set"), (tmp_path, "./set/"), (tmp_path / "here", "../set")):
        monkeypatch.chdir(folder)
        found = storage.find(source, suffix=".parquet")
        assert found == [f"{source.rstrip('/')}/data/a.parquet"]
        assert storage.exists(found[0])


def test_a_name_with_brackets_is_a_name_if_it_exists(tmp_path):
    storage.write_text(str(tmp_path / "set[1]" / "a.parquet"), "")
    found = storage.find(str(tmp_path / "set[1]"), suffix=".parquet")
    assert found == [str(tmp_path / "set[1]" / "a.parquet")]


def test_a_folder_may_be_named_like_a_file(tmp_path):
    """Spark writes such folders."""
    part = str(tmp_path / "set.parquet" / "part-0.parquet")
    storage.write_text(part, "")
    assert storage.find(str(tmp_path / "set.parquet"), suffix=".parquet") == [part]


@pytest.mark.parametrize(
    "name, words",
    [
        ("absent", "no such file or folder"),
        ("absent.parquet", "no such file or folder"),
        ("full", "no .parquet files there"),
        ("full/*.txt", "no .parquet files there"),
        ("*.parquet", "no .parquet files there"),
    ],
)
def test_a_source_with_nothing_there_is_refused(root, name, words):
    storage.write_text(storage.join(root, "full", "a.txt"), "")
    with pytest.raises(InputError) as raised:
        storage.find(storage.join(root, name), suffix=".parquet")
    assert str(raised.value) == f"{root}/{name}: {words}"


@pytest.mark.parametrize(
    "source, words",
    [
        ("http://example.org/a.parquet", "use a local path, s3:// or hf://"),
        ("gs://bucket/a.parquet", "use a local path, s3:// or hf://"),
        ("s4://bucket/a.parquet", "use a local path, s3:// or hf://"),
        ("file:///data/a.parquet", "write a local path without file://"),
        ("s3://bucket/a.parquet?region=eu-west-1", "set AWS_ENDPOINT_URL and AWS_REGION instead"),
        ("https://huggingface.co/datasets/one/two", "use a local path, s3:// or hf://"),
        ("hf://datasets/one/two/a.parquet?download=true", r"leave out what follows the '\?'$"),
    ],
)
def test_an_address_that_is_not_understood_is_refused(source, words):
    with pytest.raises(InputError, match=words) as raised:
        storage.find(source, suffix=".parquet")
    assert source in str(raised.value)
    with pytest.raises(InputError, match=words):
        storage.write_text(source, "")


@pytest.mark.parametrize(
    "address", ["s3://someone:secret@bucket/a", "hf://secret@datasets/one/two"]
)
def test_a_secret_in_an_address_is_refused_and_not_shown(address):
    for use in (storage.read_text, storage.open_input, storage.list_files, storage.exists):
        with pytest.raises(InputError, match="set AWS_ACCESS_KEY_ID and .* instead") as raised:
            use(address)
        assert "secret" not in str(raised.value) and "someone" not in str(raised.value)
    with pytest.raises(InputError) as raised:
        storage.find(address + "?region=x", suffix=".parquet")
    assert "secret" not in str(raised.value)


def test_a_store_that_cannot_be_reached_is_one_sentence(s3, monkeypatch):
    s3.refused = "HEAD"
    with pytest.raises(InputError, match=r"s3://bucket/a\.parquet cannot be reached: .*HeadObject"):
        storage.find("s3://bucket/a.parquet", suffix=".parquet")

    class ConnectError(Exception):
        """As the client of hf:// raises: no OSError."""

    def unreachable(path: str) -> None:
        raise ConnectError("Name or service not known\nand much more")

    monkeypatch.setattr(storage, "_open", unreachable)
    with pytest.raises(InputError) as raised:
        storage.find("hf://datasets/one/two", suffix=".parquet")
    expected = "hf://datasets/one/two cannot be reached: Name or service not known"
    assert str(raised.value) == expected


def test_what_is_set_aside_is_numbered_and_kept(tmp_path):
    run = tmp_path / "run"
    for number in (1, 2, 3):
        storage.write_text(str(run / "note"), str(number))
        assert storage.set_aside(f"{run}/") == f"{run}.old-{number}"
        assert not run.exists()
    assert [(tmp_path / f"run.old-{n}" / "note").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]


def test_nothing_is_set_aside_where_nothing_is(tmp_path):
    assert storage.set_aside(str(tmp_path / "run")) is None
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_sets_nothing_aside():
    with pytest.raises(InputError, match="move the old run away by hand"):
        storage.set_aside("s3://bucket/run")


def test_an_empty_source_is_refused():
    """And not taken for the working folder."""
    with pytest.raises(InputError, match="the source is empty"):
        storage.find(" ", suffix=".parquet")


# Outages ------------------------------------------------------------------------------------------

RUNS = "s3://bucket/runs"


@pytest.fixture
def outage(s3, monkeypatch) -> FakeS3:
    """A store that was reached, by a client that does not try again itself; pauses are short."""
    system = fs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{s3.server_port}",
        scheme="http",
        region="us-east-1",
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    monkeypatch.setattr(storage, "_open", lambda path: (system, path.removeprefix("s3://")))
    monkeypatch.setattr(storage, "_reached", {"s3://bucket"})
    monkeypatch.setattr(storage, "SHORTEST_PAUSE", 0.01)
    return s3


@pytest.fixture
def no_pause(monkeypatch) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("waits for what does not pass")

    monkeypatch.setattr(storage.time, "sleep", sleep)


@pytest.mark.parametrize(
    "failure",
    [
        "hang up",
        "429 TooManyRequests",
        "500 InternalError",
        "502 BadGateway",
        "503 SlowDown",
        "503 ServiceUnavailable",
        "504 GatewayTimeout",
    ],
)
def test_an_outage_is_waited_for_and_said_once(outage, tmp_path, caplog, failure):
    note, folder = f"{RUNS}/note", f"{RUNS}/one"
    storage.put_folder(make_folder(tmp_path / "local"), folder)

    def meets_an_outage(operate, *arguments):
        outage.failures.extend([failure] * 3)
        result = operate(*arguments)
        assert not outage.failures
        [record] = caplog.records
        assert record.levelname == "WARNING" and record.name == "aiornot.storage"
        assert record.getMessage().startswith("s3://bucket cannot be reached; trying again for 120")
        caplog.clear()
        return result

    meets_an_outage(storage.write_text, note, "text")
    assert meets_an_outage(storage.read_text, note) == "text"
    assert meets_an_outage(storage.exists, note)
    assert meets_an_outage(storage.list_files, RUNS) == [note]
    assert meets_an_outage(storage.list_folders, RUNS) == [folder]
    assert meets_an_outage(storage.complete_folders, RUNS) == [folder]
    meets_an_outage(storage.get_folder, folder, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "local")
    meets_an_outage(storage.delete, folder)
    assert storage.list_folders(RUNS) == []


def test_a_folder_is_put_whole_wherever_an_outage_meets_it(outage, tmp_path, monkeypatch):
    local = make_folder(tmp_path / "local")
    too_early: list[str] = []
    monkeypatch.setattr(storage.time, "sleep", lambda _: too_early.extend(_complete(outage)))
    for number in range(100):
        folder, back = f"{RUNS}/{number}", tmp_path / str(number)
        outage.failures.extend([""] * number + ["503 SlowDown", "hang up"])
        storage.put_folder(local, folder)
        if outage.failures:  # all requests have had theirs
            break
        storage.get_folder(folder, back)
        assert contents(back) == contents(local)
        assert _complete(outage) == [f"bucket/runs/{number}/{storage.DONE}"]
        storage.delete(folder)
    assert number > 10 and too_early == []


def test_a_folder_does_not_count_where_a_single_request_is_refused(outage, no_pause, tmp_path):
    """Small files are sent when they are closed, and Arrow's own copy does not look at that."""
    local = make_folder(tmp_path / "local")
    for number in range(100):
        outage.failures.extend([""] * number + ["403 AccessDenied", ""])
        try:
            storage.put_folder(local, f"{RUNS}/{number}")
        except OSError:
            assert _complete(outage) == []
            outage.failures.clear()
        else:
            break
    assert number > 10 and outage.failures, "a refusal was passed over"


def _complete(server: FakeS3) -> list[str]:
    return [key for key in server.objects if key.endswith(storage.DONE)]


def test_a_store_that_refuses_connections_is_waited_for(outage, caplog):
    outage.go_down(0.5)
    storage.write_text(f"{RUNS}/note", "text")
    assert storage.read_text(f"{RUNS}/note") == "text"
    assert len(caplog.records) == 1


def test_patience_comes_to_an_end(outage, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.05)
    outage.failures.extend(["503 SlowDown"] * 1000)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        storage.write_text(f"{RUNS}/note", "text")
    assert len(outage.failures) < 999


@pytest.mark.parametrize(
    "failure",
    [
        "400 ExpiredToken",
        "403 AccessDenied",
        "403 InvalidAccessKeyId",
        "404 NoSuchBucket",
        "501 NotImplemented",
        "507 InsufficientStorage",
    ],
)
def test_what_does_not_pass_is_raised_at_once(outage, no_pause, failure):
    outage.failures.append(failure)
    with pytest.raises(OSError, match="CreateMultipartUpload"):
        storage.write_text(f"{RUNS}/note", "text")
    with pytest.raises(FileNotFoundError):
        storage.read_text(f"{RUNS}/note")


@pytest.mark.parametrize("failure", ["hang up", "503 SlowDown", "403 AccessDenied"])
def test_a_store_that_was_never_reached_is_refused_at_once(outage, no_pause, monkeypatch, failure):
    monkeypatch.setattr(storage, "_reached", set())
    for use in (storage.exists, storage.list_files, storage.delete):
        outage.failures.extend([failure] * 9)
        with pytest.raises(InputError, match="^s3://bucket cannot be reached: .*AWS_ENDPOINT_URL"):
            use(f"{RUNS}/note")
        outage.failures.clear()


def test_a_store_that_was_reached_is_waited_for_from_then_on(outage, monkeypatch):
    monkeypatch.setattr(storage, "_reached", set())
    assert not storage.exists(f"{RUNS}/note")
    outage.failures.extend(["503 SlowDown"] * 5)
    storage.write_text(f"{RUNS}/note", "text")
    assert storage.exists(f"{RUNS}/note")


def test_a_trial_that_begins_in_an_outage_waits(outage, monkeypatch):
    """In a process of its own: the driver has reached the store, and the trial has not."""
    monkeypatch.setattr(storage, "_reached", set())
    outage.failures.extend(["503 SlowDown"] * 5)
    assert storage.complete_folders(RUNS) == []


def test_sources_are_not_waited_for(outage, no_pause):
    outage.failures.append("503 SlowDown")
    with pytest.raises(InputError, match="cannot be reached"):
        storage.find(f"{RUNS}/a.parquet", suffix=".parquet")

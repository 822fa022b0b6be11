"""The same operations on a local folder and on S3, the latter by Arrow's client against a fake."""

import errno
import io
import os
import threading
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from aiornot import storage
from aiornot.config import InputError


class FakeS3(ThreadingHTTPServer):
    """As much of S3 as Arrow's client asks for; it checks no signature."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.refused = ""
        """Method that is answered with 403."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeS3

    def log_message(self, *args: object) -> None:
        pass

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.command == self.server.refused:
            self.close_connection = True
            self.send_error(403)
            return False
        address = urllib.parse.urlsplit(self.path)
        self.key = urllib.parse.unquote(address.path).strip("/")
        if address.path.endswith("/") and "/" in self.key:
            self.key += "/"  # the mark of an empty folder
        self.query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        return True

    def do_HEAD(self) -> None:
        found = "/" not in self.key or self.key in self.server.objects
        body = self.server.objects.get(self.key, b"")
        self._answer(body, 200 if found else 404)

    def do_GET(self) -> None:
        if "/" not in self.key:
            return self._list()
        body = self.server.objects.get(self.key)
        if body is None:
            return self._answer(b"<Error><Code>NoSuchKey</Code></Error>", 404)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1]
        self._answer(part, 206, {"Content-Range": f"bytes {first}-{last}/{len(body)}"})

    def do_PUT(self) -> None:
        body = self._body()
        if "partNumber" in self.query:
            self.server.parts[self.query["uploadId"], int(self.query["partNumber"])] = body
        else:
            self.server.objects[self.key] = body
        self._answer()

    def do_POST(self) -> None:
        body = self._body()
        if "delete" in self.query:
            for node in ET.fromstring(body).iter():
                if node.tag.endswith("Key"):
                    self.server.objects.pop(f"{self.key}/{node.text}", None)
            return self._answer(b"<DeleteResult/>")
        if "uploads" in self.query:
            name = f"<UploadId>{escape(self.key)}</UploadId>"
            return self._answer(
                f"<InitiateMultipartUploadResult>{name}</InitiateMultipartUploadResult>".encode()
            )
        numbers = sorted(key for key in self.server.parts if key[0] == self.query["uploadId"])
        self.server.objects[self.key] = b"".join(self.server.parts.pop(key) for key in numbers)
        self._answer(
            b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        )

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.key, None)
        self._answer(status=204)

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        contents, folders = "", set()
        for path in sorted(self.server.objects):
            bucket, _, key = path.partition("/")
            if bucket != self.key or not key.startswith(prefix):
                continue
            head, cut, _ = key[len(prefix) :].partition(delimiter or "\0")
            if cut:
                folders.add(prefix + head + cut)
            else:
                size = len(self.server.objects[path])
                date = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                contents += (
                    f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size>{date}</Contents>"
                )
        for folder in sorted(folders):
            contents += f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
        contents += f"<KeyCount>{contents.count('<Key>') + len(folders)}</KeyCount>"
        self._answer(f"<ListBucketResult>{contents}</ListBucketResult>".encode())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = _chunks(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        coded = "aws-chunked" in self.headers.get("Content-Encoding", "")
        return _chunks(io.BytesIO(body)) if coded else body

    def _answer(
        self, body: bytes = b"", status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        dated = {"ETag": '"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        for name, value in (dated | {"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _chunks(stream: io.BufferedIOBase) -> bytes:
    body = b""
    while size := int(stream.readline().split(b";")[0], 16):
        body += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass  # checksums
    return body


@pytest.fixture
def s3(monkeypatch) -> Iterator[FakeS3]:
    with FakeS3() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
        yield server
        server.shutdown()


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


def test_a_glob_may_span_folders(tmp_path):
    for name in ("a.parquet", "x/b.parquet", "x/y/c.parquet"):
        storage.write_text(str(tmp_path / name), "")
    found = storage.find(f"{tmp_path}/**/*.parquet", suffix=".parquet")
    assert [Path(path).name for path in found] == ["a.parquet", "b.parquet", "c.parquet"]


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
        ("http://example.org/a.parquet", "use a local path, s3://, gs:// or hf://"),
        ("s4://bucket/a.parquet", "use a local path, s3://, gs:// or hf://"),
        ("file:///data/a.parquet", "write a local path without file://"),
        ("s3://bucket/a.parquet?region=eu-west-1", "set AWS_ENDPOINT_URL and AWS_REGION instead"),
    ],
)
def test_an_address_that_is_not_understood_is_refused(source, words):
    with pytest.raises(InputError, match=words) as raised:
        storage.find(source, suffix=".parquet")
    assert source in str(raised.value)
    with pytest.raises(InputError, match=words):
        storage.write_text(source, "")


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

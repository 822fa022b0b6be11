"""Datasets of the Hugging Face hub as a source, by the hub's own client against a fake."""

import io
import socket
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem, constants

from aiornot import storage
from aiornot.config import InputError
from aiornot.data import shards

DATASET = "hf://datasets/some.one/photos-2"
PAGE = "https://huggingface.co/datasets/some.one/photos-2"
TOKEN = "hf_secretOfSomeone"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def shard(*ids: str) -> bytes:
    images = pa.array([{"bytes": name.encode(), "path": None} for name in ids], IMAGE)
    buffer = io.BytesIO()
    columns = {"id": ids, "image": images, "label": [row % 2 for row in range(len(ids))]}
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.fixture
def photos(hub):
    """A hub with one dataset, laid out as the hub's converters do."""
    names = ["data/train-1.parquet", "data/train-0.parquet", "data/val-0.parquet"]
    files = {name: shard(f"{name}-a", f"{name}-b") for name in names}
    files |= {"README.md": b"...", ".gitattributes": b"", "old/set@1 [50%].parquet": shard("x")}
    hub.files = {f"some.one/photos-2/{name}": content for name, content in files.items()}
    return hub


def names(source: str) -> list[str]:
    """Return what a source names, without the dataset."""
    return [path.removeprefix(DATASET) for path in storage.find(source, suffix=".parquet")]


def refusal(source: str = DATASET) -> str:
    HfFileSystem.clear_instance_cache()  # a user who mends something starts another process
    with pytest.raises(InputError) as raised:
        shards.read_rows(source)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# What an address names.


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/data/train-0.parquet", ["train-0"]),
        ("/data", ["train-0", "train-1", "val-0"]),
        ("/data/", ["train-0", "train-1", "val-0"]),
        ("/data/train*", ["train-0", "train-1"]),
        ("/data/*-[0]*", ["train-0", "val-0"]),
        ("/*/train*", ["train-0", "train-1"]),
        ("/**/*-0.parquet", ["train-0", "val-0"]),
    ],
)
def test_an_address_is_a_file_a_folder_or_a_glob(photos, path, expected):
    assert names(DATASET + path) == [f"/data/{name}.parquet" for name in expected]


def test_the_dataset_alone_stands_for_the_shards_in_its_folders(photos):
    shards_of_all = [f"/data/{name}.parquet" for name in ("train-0", "train-1", "val-0")]
    assert names(DATASET) == names(DATASET + "/") == [*shards_of_all, "/old/set@1 [50%].parquet"]


def test_any_file_name_will_do(photos):
    path = f"{DATASET}/old/set@1 [50%].parquet"
    assert storage.find(path, suffix=".parquet") == [path]
    assert shards.read_rows(path).ids == ["x"]


@pytest.mark.parametrize("revision", ["v2", "refs/convert/parquet", "feature%2Fone"])
def test_a_revision_is_kept(photos, revision):
    photos.revisions = {revision.replace("%2F", "/")}
    source = f"{DATASET}@{revision}"
    assert names(f"{source}/data/val*") == [f"@{revision}/data/val-0.parquet"]
    assert names(source)[0] == f"@{revision}/data/train-0.parquet"
    assert len(shards.read_rows(f"{source}/data").ids) == 6


def test_rows_come_in_the_order_of_the_shards(photos):
    rows = shards.read_rows(f"{DATASET}/data/train*")
    train = [f"data/train-{number}.parquet" for number in (0, 1)]
    assert rows.ids == [f"{name}-{row}" for name in train for row in "ab"]


def test_a_file_is_read_in_ranges(photos):
    content = bytes(range(256)) * 50_000  # more than the client reads ahead
    photos.files["some.one/photos-2/big"] = content
    with storage.open_input(f"{DATASET}/big") as file:
        assert file.size() == len(content)
        file.seek(9_000_001)
        assert file.read(3) == content[9_000_001:9_000_004]
    ranges = [asked for address, asked in photos.asked if address.startswith("/store")]
    assert [asked.partition("-")[0] for asked in ranges] == ["bytes=9000001"]


@pytest.mark.parametrize(
    "source, meant",
    [
        ("hf://some.one/photos-2/data", f"{DATASET}/data"),
        ("hf://some.one/photos-2@v2", f"{DATASET}@v2"),
        ("hf://models/some.one/photos-2", DATASET),
        ("hf://dataset/some.one/photos-2/*.parquet", f"{DATASET}/*.parquet"),
        ("hf://spaces/some.one/photos-2", DATASET),
        ("hf://datasets/photos-2", "hf://datasets/OWNER/NAME[@REVISION][/PATH]"),
        ("hf://datasets/some.one/*", "hf://datasets/OWNER/NAME[@REVISION][/PATH]"),
        ("hf://datasets", "hf://datasets/OWNER/NAME[@REVISION][/PATH]"),
        ("hf://", "hf://datasets/OWNER/NAME[@REVISION][/PATH]"),
    ],
)
def test_another_spelling_is_refused_with_the_right_one(photos, source, meant):
    assert refusal(source) == f"{source}: only datasets of the hub are read; write {meant}"
    assert photos.asked == []


# What is not for everyone.


def test_a_gated_dataset_says_where_to_accept_its_conditions(photos):
    """The hub lists its files to everyone and refuses to serve them."""
    photos.access = "gated"
    assert refusal() == (
        f"{DATASET}/data/train-0.parquet is gated and no token is set: accept the conditions at "
        f"{PAGE}, then set HF_TOKEN or run 'hf auth login'"
    )


def test_a_private_dataset_cannot_be_told_from_an_absent_one(photos):
    photos.access = "private"
    expected = (
        f"does not exist, or is private or gated and no token is set: check the name; for access "
        f"accept the conditions at {PAGE}, then set HF_TOKEN or run 'hf auth login'"
    )
    assert refusal() == f"{DATASET} {expected}"
    absent = DATASET.replace("photos-2", "photos-3")
    assert refusal(absent) == f"{absent} {expected.replace('photos-2', 'photos-3')}"


@pytest.mark.parametrize("access", ["gated", "private"])
def test_a_token_with_access_opens_it(photos, monkeypatch, access):
    photos.access = access
    photos.tokens = {TOKEN: True}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(shards.read_rows(DATASET).ids) == 7


@pytest.mark.parametrize(
    "access, known, words",
    [
        (
            "gated",
            True,
            "is gated and the hub refused the token that is set: accept the conditions",
        ),
        (
            "private",
            True,
            "does not exist, or the token that is set may not see it: check the name",
        ),
        ("public", False, "cannot be read: the hub refused the token that is set (401); set HF_"),
    ],
)
def test_a_token_that_is_refused_is_said_and_not_shown(photos, monkeypatch, access, known, words):
    photos.access = access
    photos.tokens = {TOKEN: False} if known else {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    sentence = refusal()
    assert words in sentence and TOKEN not in sentence
    assert "no token is set" not in sentence


def test_what_is_absent_is_said(photos):
    sentence = refusal(f"{DATASET}@v9")
    assert sentence == f"{DATASET}@v9 does not exist: some.one/photos-2 has no such revision"
    assert refusal(f"{DATASET}/absent") == f"{DATASET}/absent: no such file or folder"
    with pytest.raises(InputError, match="/absent does not exist$"):
        storage.open_input(f"{DATASET}/absent")
    assert refusal(f"{DATASET}/README.md*") == f"{DATASET}/README.md*: no .parquet files there"


def test_the_hub_is_not_written_to(photos):
    with pytest.raises(InputError, match="/note: the hub is only read here; give a folder or s3"):
        storage.write_text(f"{DATASET}/note", "")
    assert len(photos.files) == 6


@pytest.mark.parametrize("token", ["hf_secret\x01Of", "hf_secret Of", "hf_s\u00e9cret"])
def test_what_is_no_token_is_said_and_not_shown(photos, monkeypatch, token):
    """The HTTP client's own message holds it."""
    monkeypatch.setenv("HF_TOKEN", token)
    expected = (
        f"{DATASET}: what is set as HF_TOKEN is no token; set HF_TOKEN or run 'hf auth login'"
    )
    assert refusal() == expected


def test_no_secret_of_a_strange_error_is_shown(photos, monkeypatch):
    def fail(self: object, path: str) -> None:
        raise RuntimeError(f"Bearer {TOKEN} by http://me:password@proxy:80\nand more")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(HfFileSystem, "resolve_path", fail)
    assert refusal() == f"{DATASET} cannot be reached: Bearer *** by http://proxy:80"


# A hub that does not answer.


def test_without_a_network_it_is_said_at_once(hub, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        start = time.monotonic()
        for source in (DATASET, f"{DATASET}/data/train-0.parquet", f"{DATASET}/data/*.parquet"):
            assert refusal(source).startswith(f"{source} cannot be reached: ")
    assert time.monotonic() - start < 5  # one round of the client's retries is 23 s


@pytest.mark.parametrize(
    "broken, path, named",
    [
        ("/api/datasets", "", ""),
        ("/tree/", "", ""),
        ("/tree/", "/data", "/data"),
        ("/resolve/", "", "/data/train-0.parquet"),
    ],
)
def test_a_hub_that_fails_is_one_sentence(photos, monkeypatch, broken, path, named):
    photos.broken = broken
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's retries
    expected = f"{DATASET}{named} cannot be read: the hub answers 503 Service Unavailable"
    assert refusal(DATASET + path) == expected

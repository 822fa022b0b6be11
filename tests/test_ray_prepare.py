"""Parquet to HDF5 with a real Ray: the right pixels at the right place, whatever happens."""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from aiornot import ray_session
from aiornot.config import InputError, WorkError
from aiornot.data import demo, duplicates, hdf5, images, layout, shards, slices, splits
from aiornot.data.journal import Journal
from aiornot.data.layout import Profile
from aiornot.data.ray_prepare import Summary, prepare

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

COUNT = 40
SIZE = 32
PROFILE = Profile(name="tiny", size=SIZE)
LABELS = [row % 2 for row in range(COUNT)]
IDS = [f"row-{row}" for row in range(COUNT)]
TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(row: int) -> bytes:
    """Encode noise: JPEG and PNG, of the profile's size and others, grey and colour."""
    shape = [(SIZE, SIZE, 3), (50, 41, 3), (20, 60), (SIZE, SIZE)][row % 4]
    pixels = np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if row % 3 else "PNG", quality=90)
    return buffer.getvalue()


PICTURES = [picture(row) for row in range(COUNT)]


def as_pillow_sees(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def write(
    folder: Path,
    *,
    pictures: Sequence[bytes | None] = PICTURES,
    labels: Sequence[int] = LABELS,
    kinds: Sequence[str] | None = None,
    cuts: Sequence[int] = (25,),
    group: int = 6,
) -> str:
    """Write the shards of a source, cut before these rows."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    edges = [0, *cuts, len(pictures)]
    for number, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        contents = [{"bytes": content, "path": None} for content in pictures[start:stop]]
        ids = [f"row-{row}" for row in range(start, stop)]
        columns = {"id": ids, "image": pa.array(contents, TYPE), "label": labels[start:stop]}
        if kinds is not None:
            columns["generator"] = kinds[start:stop]
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=group)
    return str(folder)


@pytest.fixture
def source(tmp_path) -> str:
    return write(tmp_path / "source")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "prepared"


DONE = ["hashes", "tiny.h5", "tiny.splits.json"]
"""What a finished run leaves."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plan_of(pictures: Sequence[bytes | None], **options: Any) -> splits.Plan:
    hashes = [
        hashlib.sha256(content or IDS[n].encode()).hexdigest() for n, content in enumerate(pictures)
    ]
    clusters = duplicates.clusters(hashes, [None] * len(hashes))
    return splits.plan(LABELS, clusters=clusters, **options)


def check(path: Path, plan: splits.Plan, pictures: Sequence[bytes | None] = PICTURES) -> None:
    """Compare every id, label and pixel with the plan."""
    for split, rows in plan.items():
        assert hdf5.read_ids(path, split) == [IDS[row] for row in rows]
        assert hdf5.read_labels(path, split).tolist() == [LABELS[row] for row in rows]
        pixels = hdf5.map_images(path, split)
        assert len(pixels) == len(rows)
        for found, row in zip(pixels, rows, strict=True):
            np.testing.assert_array_equal(found, as_pillow_sees(pictures[row] or b""))


class Stop(Exception):
    """Raised where a run is interrupted."""


def stop_after(count: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what == "decoding" and done >= count:
            raise Stop

    return progress


def interrupt(source: str, out: Path, *, after: int = 1, profile: Profile = PROFILE) -> None:
    with pytest.raises(Stop):
        prepare(source, out, profile, progress=stop_after(after))


def forget(out: Path, *, first: int) -> None:
    """Make an interrupted run look as if it had only written the rows before ``first``."""
    journal = out / "tiny.h5.journal"
    settings, *blocks = journal.read_text().splitlines()
    kept = [line for line in blocks if json.loads(line)["first"] < first]
    journal.write_text("\n".join([settings, *kept, ""]))
    (temporary,) = out.glob("*.tmp")
    with temporary.open("r+b") as file:
        for split, where in hdf5.slots(temporary).items():
            for slot, row in enumerate(plan_of(PICTURES)[split]):
                if row >= first:
                    nothing = np.zeros((SIZE, SIZE, 3), np.uint8)
                    hdf5.write_image(file.fileno(), where, slot, nothing)


def unfinished(out: Path) -> bool:
    """Tell whether there is what a run goes on from, and nothing else."""
    temporary, journal = sorted(names(out))
    return (
        bool(re.fullmatch(r"tiny\.h5\.[0-9a-f]{8}\.tmp", temporary))
        and journal == "tiny.h5.journal"
    )


def names(folder: Path) -> list[str]:
    """List a folder; the kept hashes are named by their source, here only ``hashes``."""
    kept = re.compile(r"hashes-[0-9a-f]{8}\.json")
    return sorted({kept.sub("hashes", path.name) for path in folder.iterdir()})


# What is in the file.


def test_the_file_holds_pillows_pixels_in_the_plans_order(source, out):
    seen = []
    summary = prepare(source, out, PROFILE, progress=lambda *now: seen.append(now))
    plan = plan_of(PICTURES)
    counts = {split: len(rows) for split, rows in plan.items()}
    assert summary == Summary(
        out / "tiny.h5", counts, rejected=0, duplicates=0, conflicts=0, skipped=False
    )
    assert sum(counts.values()) == COUNT
    check(summary.path, plan)
    assert names(out) == DONE
    assert seen[-1] == ("decoding", COUNT, COUNT)


def test_duplicates_stay_in_one_split_and_conflicts_are_counted(out, tmp_path):
    pictures = list(PICTURES)
    pictures[11] = pictures[21] = pictures[30] = pictures[1]  # 30 carries the other label
    summary = prepare(write(tmp_path / "source", pictures=pictures), out, PROFILE)
    assert (summary.duplicates, summary.conflicts) == (3, 1)
    check(summary.path, plan_of(pictures), pictures)
    homes = {name for name in splits.SPLITS if "row-1" in hdf5.read_ids(summary.path, name)}
    (home,) = homes
    assert {"row-11", "row-21", "row-30"} <= set(hdf5.read_ids(summary.path, home))


def resaved(content: bytes, quality: int) -> bytes:
    """Show the same in another file: at twice the size, as JPEG."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((2 * image.width, 2 * image.height)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


# Row 21 shows what row 1 shows, 30 too (with the other label), and 19 what 5 shows.
NEAR = {21: resaved(PICTURES[1], 95), 30: resaved(PICTURES[1], 85), 19: resaved(PICTURES[5], 90)}
NEARLY = [NEAR.get(row, content) for row, content in enumerate(PICTURES)]
TOGETHER = [1 if row in (21, 30) else 5 if row == 19 else row for row in range(COUNT)]


def test_near_duplicates_stay_in_one_split_and_are_listed(out, tmp_path):
    plan = splits.plan(LABELS, clusters=TOGETHER)
    assert digest_of(plan) != digest_of(splits.plan(LABELS)), "they must be worth moving"
    summary = prepare(write(tmp_path / "source", pictures=NEARLY), out, PROFILE)
    assert (summary.duplicates, summary.conflicts) == (3, 1)
    check(summary.path, plan, NEARLY)
    found = json.loads((out / "tiny.splits.json").read_text())
    assert found["duplicates"] == [["row-1", "row-21", "row-30"], ["row-5", "row-19"]]
    assert found["conflicts"] == [["row-1", "row-21", "row-30"]]
    assert found["splits"] == {name: hdf5.read_ids(summary.path, name) for name in splits.SPLITS}
    assert found["digest"] == digest_of(plan) == hdf5.attributes(summary.path)["splits_digest"]
    assert found["settings"]["near_duplicates"] == duplicates.DISTANCE
    for split, rows in plan.items():
        clusters = layout.read_clusters(summary.path, split)
        _, expected = np.unique(np.array(TOGETHER)[rows], return_inverse=True)
        assert (np.equal.outer(clusters, clusters) == np.equal.outer(expected, expected)).all()
    (out / "tiny.splits.json").write_text(json.dumps(found | {"digest": "of another file"}))
    assert layout.read_clusters(summary.path, "val") is None


def test_a_generator_is_held_out_of_train_and_val(out, tmp_path):
    """Also a row that moves to test only when the near-duplicates are known, and back."""
    kinds = ["camera" if not label else "ab"[row % 4 == 1] for row, label in enumerate(LABELS)]
    source = write(tmp_path / "source", pictures=NEARLY, kinds=kinds)
    left_out = np.array(kinds) == "b"
    plan = splits.thin(splits.plan(LABELS, clusters=TOGETHER), LABELS, left_out=left_out)
    for folder in (out, out):  # with the hashes unknown, then known
        summary = prepare(source, folder, PROFILE, hold_out="b")
        check(summary.path, plan, NEARLY)
        told = {split: slices.generators(summary.path, split) for split in splits.SPLITS}
        assert "b" in told["test"] and "b" not in told["train"] + told["val"]
        assert told["test"] == [kinds[row] for row in plan["test"]]
        summary.path.unlink()
    with pytest.raises(InputError, match="--hold-out c: .*there is a, b"):
        prepare(source, out, PROFILE, hold_out="c")


def digest_of(plan: splits.Plan) -> str:
    return splits.digest(plan, IDS)


def test_near_duplicates_may_be_left_where_they_are(out, tmp_path):
    source = write(tmp_path / "source", pictures=NEARLY)
    summary = prepare(source, out, PROFILE, near_duplicates=None)
    assert (summary.duplicates, summary.conflicts) == (0, 0)
    check(summary.path, splits.plan(LABELS), NEARLY)
    assert names(out) == ["tiny.h5", "tiny.splits.json"]


def test_known_hashes_change_no_byte_and_move_no_image(out, tmp_path):
    """A second profile finds them: images go straight to where they belong."""
    source = write(tmp_path / "source", pictures=NEARLY)
    straight = prepare(source, tmp_path / "straight", PROFILE)
    prepare(source, out, Profile(name="other", size=16))
    seen = set()
    summary = prepare(source, out, PROFILE, progress=lambda what, *_: seen.add(what))
    assert digest(summary.path) == digest(straight.path)
    assert "arranging" not in seen


def test_a_limited_file_holds_rows_of_the_full_files_splits_with_near_duplicates(
    source, out, monkeypatch
):
    """Also where two rows are close only by way of a third, which lies beyond the limit."""
    near = {5: b"\x00\x00", 19: b"\xff\x0f", 30: b"\xf0\x00"}
    # 4 and 8 bits from row 30, 12 from each other.
    random = np.random.default_rng(0).bytes
    hashes = [bytes(14) + near[row] if row in near else random(16) for row in range(COUNT)]
    monkeypatch.setattr(duplicates, "read_hashes", lambda path, fingerprint: hashes)
    full = prepare(source, out, PROFILE)
    assert full.duplicates == 2
    part = prepare(source, out, Profile(name="part", size=SIZE, limit=25))
    for split in splits.SPLITS:
        wanted = {name for name in hdf5.read_ids(full.path, split) if int(name[4:]) < 25}
        assert set(hdf5.read_ids(part.path, split)) == wanted
        assert {"row-5", "row-19"} <= wanted or not {"row-5", "row-19"} & wanted


@pytest.mark.parametrize("bits", [-1, 33])
def test_a_distance_of_hashes_is_a_number_of_bits(source, out, bits):
    with pytest.raises(InputError, match="--near-duplicates .* give 0 to 32, or off"):
        prepare(source, out, PROFILE, near_duplicates=bits)
    assert not out.exists()


def test_hashes_that_appear_meanwhile_do_not_mix_two_orders(out, tmp_path):
    """The half-written file has the order of a run that knew none."""
    source = write(tmp_path / "source", pictures=NEARLY)
    straight = prepare(source, tmp_path / "straight", PROFILE)
    interrupt(source, out, after=20)
    prepare(source, out, Profile(name="other", size=16))
    assert digest(prepare(source, out, PROFILE).path) == digest(straight.path)


def test_a_fast_resize_is_close_to_pillows_and_says_so(source, out):
    fast = prepare(source, out, dataclasses.replace(PROFILE, resample="fast")).path
    assert hdf5.attributes(fast)["resample"] == "fast"
    row = hdf5.read_ids(fast, "train").index("row-1")
    exact = as_pillow_sees(PICTURES[1]).astype(int)
    difference = np.abs(hdf5.map_images(fast, "train")[row] - exact)
    assert 0 < difference.max() <= 8


def test_a_crop_never_resamples(source, out):
    path = prepare(source, out, dataclasses.replace(PROFILE, geometry="crop")).path
    assert hdf5.attributes(path)["geometry"] == "crop"
    row = hdf5.read_ids(path, "train").index("row-1")
    whole = np.asarray(Image.open(io.BytesIO(PICTURES[1])).convert("RGB"))
    top, left = (50 - SIZE) // 2, (41 - SIZE) // 2
    cut = whole[top : top + SIZE, left : left + SIZE]
    np.testing.assert_array_equal(hdf5.map_images(path, "train")[row], cut)


@pytest.mark.parametrize("cuts, group", [((), COUNT), ((1, 2, 30), 3), ((20,), 1)])
def test_how_rows_are_cut_changes_no_byte(source, out, tmp_path, cuts, group):
    path = prepare(source, out, PROFILE).path
    other = write(tmp_path / "other", cuts=cuts, group=group)
    assert digest(prepare(other, tmp_path / "again", PROFILE).path) == digest(path)


def test_a_limited_file_holds_rows_of_the_same_splits(source, out):
    full = prepare(source, out, PROFILE).path
    part = prepare(source, out, Profile(name="part", size=SIZE, limit=25)).path
    for split in splits.SPLITS:
        ids = hdf5.read_ids(full, split)
        chosen = hdf5.read_ids(part, split)
        assert set(chosen) == {name for name in ids if int(name[4:]) < 25}
        wanted = hdf5.map_images(full, split)[[ids.index(name) for name in chosen]]
        np.testing.assert_array_equal(hdf5.map_images(part, split), wanted)


@pytest.mark.parametrize("near_duplicates", [None, 10])
def test_bad_images_beyond_the_limit_are_no_reason_to_stop(out, tmp_path, near_duplicates):
    pictures = [*PICTURES[:30], *[b"bad"] * 10]
    source = write(tmp_path / "source", pictures=pictures, cuts=(30,))
    profile = Profile(name="part", size=SIZE, limit=30)
    seen = []
    summary = prepare(
        source,
        out,
        profile,
        near_duplicates=near_duplicates,
        progress=lambda *now: seen.append(now),
    )
    assert summary.rejected == 0 and sum(summary.counts.values()) == 30
    # Only to compare them are images beyond it decoded at all.
    assert seen[-1] == ("decoding", *([30, 30] if near_duplicates is None else [COUNT, COUNT]))


def test_the_note_of_the_demo_data_travels_along(out, tmp_path):
    demo.write(tmp_path / "demo", num_images=COUNT, size=16, workers=1)
    path = prepare(str(tmp_path / "demo"), out, Profile(name="tiny", size=16)).path
    found = hdf5.attributes(path)
    assert found["source_note"] == demo.NOTE
    assert found["fingerprint"] == shards.read_rows(str(tmp_path / "demo")).fingerprint
    assert json.loads(found["settings"])["size"] == 16


def test_relative_paths_are_those_of_the_caller(source, out, tmp_path, monkeypatch):
    """The workers of a running cluster live in another folder."""
    monkeypatch.chdir(tmp_path)
    summary = prepare("source", Path("prepared"), PROFILE)
    check(tmp_path / summary.path, plan_of(PICTURES))


# The same command again.


def test_a_finished_file_is_recognised_and_nothing_is_written(source, out):
    first = prepare(source, out, PROFILE)
    before = {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]}
    second = prepare(source, out, PROFILE)
    assert second == dataclasses.replace(first, skipped=True)
    assert {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]} == before


def test_rejected_images_are_counted_again_when_the_file_is_recognised(out, tmp_path):
    source = write(tmp_path / "source", pictures=[*PICTURES[:39], b"bad"])
    first = prepare(source, out, PROFILE, max_rejected=0.1)
    assert first.rejected == 1
    assert prepare(source, out, PROFILE) == dataclasses.replace(first, skipped=True)


def test_a_changed_source_is_noticed_and_done_again(source, out, tmp_path):
    prepare(source, out, PROFILE)
    pictures = [PICTURES[1][:-2] + b"x" + PICTURES[1][-2:], *PICTURES[1:]]  # behind the pixels
    summary = prepare(write(tmp_path / "source", pictures=pictures), out, PROFILE)
    assert not summary.skipped and summary.replaced
    check(summary.path, plan_of(pictures), pictures)
    assert names(out) == DONE


@pytest.mark.parametrize(
    "profile, options",
    [
        (dataclasses.replace(PROFILE, size=16), {}),
        (dataclasses.replace(PROFILE, geometry="crop"), {}),
        (dataclasses.replace(PROFILE, limit=39), {}),
        (dataclasses.replace(PROFILE, resample="fast"), {}),
        (PROFILE, {"seed": 1}),
        (PROFILE, {"near_duplicates": None}),
    ],
)
def test_changed_settings_are_noticed_and_done_again(source, out, profile, options):
    prepare(source, out, PROFILE)
    before = digest(out / "tiny.h5")
    summary = prepare(source, out, profile, **options)
    assert not summary.skipped and summary.replaced
    assert digest(summary.path) != before
    assert prepare(source, out, profile, **options).skipped


def test_the_old_file_stays_whole_until_the_new_one_is(source, out, tmp_path):
    path = prepare(source, out, PROFILE).path
    before = digest(path)
    other = write(tmp_path / "other", pictures=PICTURES[::-1])
    interrupt(other, out, after=7)
    assert digest(path) == before
    with pytest.raises(InputError, match="cannot be decoded"):
        prepare(write(tmp_path / "bad", pictures=[*PICTURES[:-1], b"bad"]), out, PROFILE)
    assert digest(path) == before
    assert prepare(source, out, PROFILE).skipped
    assert prepare(other, out, PROFILE).replaced
    check(path, plan_of(PICTURES[::-1]), PICTURES[::-1])


def test_a_file_of_an_older_version_is_done_again(source, out):
    """Whoever opens it is told to prepare it again."""
    path = prepare(source, out, PROFILE).path
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 0
    with pytest.raises(InputError, match="prepare the file again"):
        hdf5.slots(path)
    assert prepare(source, out, PROFILE).replaced
    check(path, plan_of(PICTURES))


def test_a_strangers_file_in_the_way_is_left_alone(source, out):
    out.mkdir()
    (out / "tiny.h5").write_text("precious")
    with pytest.raises(InputError, match=r"tiny\.h5 is damaged or was not made by .*: delete it"):
        prepare(source, out, PROFILE)
    assert (out / "tiny.h5").read_text() == "precious"
    assert names(out) == ["tiny.h5"]


# Images that cannot be decoded.


def broken_png() -> bytes:
    """A PNG with a wrong checksum of its pixels, on which torchvision's decoder crashes."""
    content = bytearray(PICTURES[0])
    start = content.index(b"IDAT") + 4
    content[start + 10] ^= 0xFF
    return bytes(content)


BAD: dict[int, bytes | None] = {
    0: b"",
    6: None,
    7: PICTURES[7][: len(PICTURES[7]) // 2],
    13: b"no image at all",
    24: broken_png(),
    25: PICTURES[25][:20],
    39: b"%!PS-Adobe-3.0 EPSF-3.0",
}


@pytest.fixture
def spoilt() -> list[bytes | None]:
    return [BAD.get(row, content) for row, content in enumerate(PICTURES)]


def test_bad_images_are_left_out_and_listed(spoilt, out, tmp_path):
    source = write(tmp_path / "source", pictures=spoilt)
    summary = prepare(source, out, PROFILE, max_rejected=0.2)
    kept = {
        split: [row for row in rows if row not in BAD] for split, rows in plan_of(spoilt).items()
    }
    assert summary.rejected == len(BAD)
    assert summary.counts == {split: len(rows) for split, rows in kept.items()}
    check(summary.path, kept, spoilt)
    assert names(out) == sorted([*DONE, "tiny.rejected.jsonl"])
    lines = (out / "tiny.rejected.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert [entry["id"] for entry in listed] == [IDS[row] for row in BAD]
    for row, entry in zip(BAD, listed, strict=True):
        table = pq.read_table(entry["shard"])
        assert table.column("id")[entry["row"]].as_py() == IDS[row]
        assert entry["reason"] and "\n" not in entry["reason"]
    assert listed[0]["reason"] == listed[1]["reason"] == "empty: there are no bytes"


def encoded(kind: str) -> bytes:
    """Encode a photo-like image of 96 px."""
    pixels = np.random.default_rng(5).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes, *, checksum: int = 0, length: int | None = None) -> bytes:
    """Build a chunk of a PNG, wrong where it is told to be."""
    size = len(content) if length is None else length
    check = zlib.crc32(name + content) ^ checksum
    return size.to_bytes(4) + name + content + check.to_bytes(4)


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0]))


def forty_bad_files() -> dict[str, bytes | None]:
    magic, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
    jpeg, png, gif = encoded("JPEG"), encoded("PNG"), encoded("GIF")
    pixels = chunk(b"IDAT", zlib.compress(bytes(33)))
    small = header(3, 3)
    start = jpeg.index(b"\xff\xc0") + 5  # height and width of the JPEG
    huge = (50_000).to_bytes(2) * 2
    bad: dict[str, bytes | None] = {"nothing": None, "empty": b"", "zeros": bytes(5000)}
    bad |= {f"JPEG cut at {n} tenths": jpeg[: len(jpeg) * n // 10] for n in range(1, 10)}
    bad |= {f"PNG cut at {n} tenths": png[: len(png) * n // 10] for n in (1, 3, 5, 7, 9)}
    bad |= {
        f"{kind} cut": encoded(kind)[: len(encoded(kind)) // 2] for kind in ("WEBP", "GIF", "TIFF")
    }
    bad |= {
        f"wrong magic {word!r}": word + png[8:] for word in (b"\x89PNX", b"JFIF", b"RIFF", b"II")
    }
    bad |= {
        "PNG, checksum of pixels": magic + small + chunk(b"IDAT", b"x", checksum=1) + end,
        "PNG, checksum of header": magic + small[:-1] + b"?" + pixels + end,
        "PNG, length of a chunk": magic + small + chunk(b"IDAT", b"x", length=2**31 - 1) + end,
        "PNG, pixels are no zlib": magic + small + chunk(b"IDAT", b"not compressed") + end,
        "PNG, no pixels": magic + small + end,
        "PNG, no header": magic + pixels + end,
        "PNG, no side": magic + header(0, 3) + pixels + end,
    }
    bad |= {
        "huge PNG": magic + header(50_000, 50_000) + pixels + end,
        "huge JPEG": jpeg[:start] + huge + jpeg[start + 4 :],
        "huge BMP": encoded("BMP")[:18] + (50_000).to_bytes(4, "little") * 2 + encoded("BMP")[26:],
        "huge GIF": gif[:6] + (50_000).to_bytes(2, "little") * 2 + gif[10:],
    }
    texts = ("plain text", "<html><img></html>", "<svg xmlns='x'/>", '{"a": 1}', "%!PS-Adobe-3.0")
    return bad | {text: text.encode() for text in texts}


def test_forty_bad_files_have_forty_reasons_and_break_no_worker(out, tmp_path):
    """Ray Data would run the block of a worker that crashed again, without end."""
    bad = forty_bad_files()
    assert len(bad) == 40
    pictures = [*PICTURES, *bad.values()]
    source = write(tmp_path / "source", pictures=pictures, labels=[n % 2 for n in range(80)])
    ids = {f"row-{COUNT + number}": name for number, name in enumerate(bad)}
    summary = prepare(source, out, PROFILE, max_rejected=0.5)
    assert summary.rejected == 40 and sum(summary.counts.values()) == COUNT
    lines = (out / "tiny.rejected.jsonl").read_text().splitlines()
    listed = {ids[entry["id"]]: entry["reason"] for entry in map(json.loads, lines)}
    assert listed.keys() == bad.keys()
    for name in listed:
        if name.startswith("huge"):
            assert "50000 x 50000 pixels, more than the 100,000,000 allowed" in listed[name]
    kept = {name for split in splits.SPLITS for name in hdf5.read_ids(summary.path, split)}
    assert kept == set(IDS)


def test_too_many_bad_images_make_no_file(spoilt, out, tmp_path):
    source = write(tmp_path / "source", pictures=spoilt)
    with pytest.raises(InputError) as raised:
        prepare(source, out, PROFILE)
    assert str(raised.value) == (
        "7 of 40 images cannot be decoded, more than --max-rejected 0.01; "
        f"{out}/tiny.rejected.jsonl lists each with its reason"
    )
    assert not (out / "tiny.h5").exists()
    assert len((out / "tiny.rejected.jsonl").read_text().splitlines()) == len(BAD)


def test_a_raised_limit_goes_on_without_decoding_again(spoilt, out, tmp_path):
    source = write(tmp_path / "source", pictures=spoilt)
    with pytest.raises(InputError):
        prepare(source, out, PROFILE)
    seen = []
    again = prepare(source, out, PROFILE, max_rejected=0.2, progress=lambda *now: seen.append(now))
    assert [now for now in seen if now[0] == "decoding"] == [("decoding", COUNT, COUNT)]
    straight = prepare(source, tmp_path / "straight", PROFILE, max_rejected=0.2)
    assert digest(again.path) == digest(straight.path)


def test_the_list_of_an_earlier_source_does_not_stay(source, spoilt, out, tmp_path):
    prepare(write(tmp_path / "spoilt", pictures=spoilt), out, PROFILE, max_rejected=0.2)
    prepare(source, out, PROFILE)
    assert names(out) == DONE


# What is refused before anything is written.


@pytest.mark.parametrize("labels", [[row % 3 for row in range(COUNT)], [-1, *LABELS[1:]]])
def test_other_labels_than_0_and_1_write_nothing(out, tmp_path, labels):
    source = write(tmp_path / "source", labels=labels)
    with pytest.raises(InputError, match="labels must be 0 .* or 1"):
        prepare(source, out, PROFILE)
    assert not out.exists()


def test_one_class_alone_writes_nothing(out, tmp_path):
    with pytest.raises(InputError, match="40 rows have label 0 and 0 have label 1"):
        prepare(write(tmp_path / "source", labels=[0] * COUNT), out, PROFILE)
    assert not out.exists()


def test_images_that_are_missing_are_no_duplicates_of_each_other(out, tmp_path):
    """Kept together, they would pull one split's rows into another and be called conflicts."""
    pictures = [None if row in (1, 2, 11, 12) else PICTURES[row] for row in range(COUNT)]
    summary = prepare(write(tmp_path / "source", pictures=pictures), out, PROFILE, max_rejected=0.1)
    assert (summary.rejected, summary.conflicts) == (4, 0)
    plan = splits.plan(LABELS)
    kept = {split: [row for row in rows if pictures[row]] for split, rows in plan.items()}
    check(summary.path, kept, pictures)


@pytest.mark.parametrize("share", [-0.1, 1.5, 5, float("nan")])
def test_a_share_is_no_percentage(source, out, share):
    with pytest.raises(InputError, match="--max-rejected .* is a share: give 0 to 1"):
        prepare(source, out, PROFILE, max_rejected=share)
    assert not out.exists()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_is_one_of_numpys(source, out, seed):
    with pytest.raises(InputError, match="--seed .* must lie between 0 and 4294967295"):
        prepare(source, out, PROFILE, seed=seed)
    assert not out.exists()


@pytest.mark.parametrize("size", [0, -32])
def test_a_size_is_a_number_of_pixels(size):
    with pytest.raises(InputError, match="must be at least 1 pixel"):
        Profile(name="tiny", size=size)


@pytest.mark.parametrize("name", ["s3://bucket/prepared", "hf://datasets/one"])
def test_the_prepared_files_must_lie_on_a_file_system(source, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="give a folder of this machine or"):
        prepare(source, Path(name), PROFILE)
    assert names(tmp_path) == ["source"]


def test_a_file_is_no_folder(source, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="give a folder, the file in it is named by the profile"):
        prepare(source, tmp_path / "file", PROFILE)
    with pytest.raises(InputError, match="give a folder, the file in it is named by the profile"):
        prepare(source, tmp_path / "prepared" / "tiny.h5", PROFILE)
    with pytest.raises(InputError, match="Not a directory"):
        prepare(source, tmp_path / "file" / "inner", PROFILE)
    assert names(tmp_path) == ["file", "source"]


def test_a_disk_that_is_too_small_is_found_before_the_work(source, out, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=40 * SIZE**2 * 3 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError) as raised:
        prepare(source, out, PROFILE)
    assert str(raised.value).startswith(f"{out}: 122.9 kB are needed for 40 images of 32 px and")
    assert names(out) == []


def test_a_disk_that_is_full_after_all_leaves_nothing(source, out, monkeypatch):
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"tiny\.h5\..*\.tmp cannot be written: .*No space left"):
        prepare(source, out, PROFILE)
    assert names(out) == []


def test_the_copy_without_bad_images_needs_room_too(spoilt, out, tmp_path, monkeypatch):
    """It is known late; what is done must be kept."""
    source = write(tmp_path / "source", pictures=spoilt)
    with pytest.raises(InputError):
        prepare(source, out, PROFILE)
    usage = shutil.disk_usage("/")._replace(free=1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(WorkError, match="a second copy, without rejected rows"):
            prepare(source, out, PROFILE, max_rejected=0.2)
    assert prepare(source, out, PROFILE, max_rejected=0.2).rejected == len(BAD)


def test_two_runs_do_not_write_one_file(source, out):
    """The second would lay its file over the first one's."""
    out.mkdir()
    with (
        Journal.locked(out / "tiny.h5.journal", "other"),
        pytest.raises(InputError, match=r"tiny\.h5: another 'aiornot prepare' is at work on it"),
    ):
        prepare(source, out, PROFILE)
    assert names(out) == []
    assert not prepare(source, out, PROFILE).skipped


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
    def refuse(**options: Any) -> None:
        raise ConnectionError("no Ray instance found")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InputError) as raised, ray_session.connected():
        pass
    expected = (
        "RAY_ADDRESS=10.0.0.1:6379: no Ray instance found; unset it to use this machine alone"
    )
    assert str(raised.value) == expected


# Interrupted.


@pytest.mark.parametrize("after", [0, 20, COUNT])
def test_an_interrupted_run_goes_on_to_the_same_file(source, out, tmp_path, after):
    straight = prepare(source, tmp_path / "straight", PROFILE)
    interrupt(source, out, after=after)
    assert unfinished(out)
    seen = []
    summary = prepare(source, out, PROFILE, progress=lambda *now: seen.append(now))
    resumed = next(done for what, done, total in seen if what == "decoding")
    assert resumed >= after
    assert summary == dataclasses.replace(straight, path=out / "tiny.h5")
    assert digest(summary.path) == digest(straight.path)
    assert names(out) == DONE


@pytest.mark.parametrize("torn", ['{"first": 6, "count": 6, "rej', "\0\0\0\0"])
def test_a_journal_with_half_a_last_line_is_survived(spoilt, out, tmp_path, torn):
    """And what comes after it is read: the rejected rows of later blocks stand there."""
    source = write(tmp_path / "source", pictures=spoilt)
    straight = prepare(source, tmp_path / "straight", PROFILE, max_rejected=0.2)
    interrupt(source, out)
    with (out / "tiny.h5.journal").open("a") as journal:
        journal.write(torn)
    interrupt(source, out, after=20)
    seen = []
    summary = prepare(
        source, out, PROFILE, max_rejected=0.2, progress=lambda *now: seen.append(now)
    )
    assert next(done for what, done, total in seen if what == "decoding") >= 20
    assert summary.rejected == straight.rejected
    assert digest(summary.path) == digest(straight.path)


def test_rows_that_were_cut_otherwise_meanwhile_are_all_written(source, out, tmp_path):
    """Blocks of the two runs may start at the same row and end at another."""
    straight = prepare(source, tmp_path / "straight", PROFILE)
    interrupt(source, out, after=COUNT)
    forget(out, first=6)
    write(tmp_path / "source", cuts=(), group=24)
    summary = prepare(source, out, PROFILE)
    assert digest(summary.path) == digest(straight.path)


def test_other_settings_do_not_go_on_from_an_interrupted_run(source, out, tmp_path):
    interrupt(source, out, after=20)
    cropped = dataclasses.replace(PROFILE, geometry="crop")
    straight = prepare(source, tmp_path / "straight", cropped)
    assert digest(prepare(source, out, cropped).path) == digest(straight.path)
    assert names(out) == DONE


def test_a_run_that_ended_while_it_laid_out_the_file_starts_anew(source, out, monkeypatch):
    def killed(path: Path, *arguments: Any, **options: Any) -> None:
        path.write_bytes(b"\x89HDF\r\n\x1a\n half of it")
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(layout, "create", killed)
        with pytest.raises(Stop):
            prepare(source, out, PROFILE)
    check(prepare(source, out, PROFILE).path, plan_of(PICTURES))


def test_a_shard_that_is_lost_meanwhile_is_named_and_work_is_kept(source, out, tmp_path):
    lost, safe = tmp_path / "source" / "1.parquet", tmp_path / "safe"

    def lose(what: str, done: int, total: int) -> None:
        if what == "decoding" and lost.exists():
            lost.rename(safe)

    with pytest.raises(
        WorkError, match=rf"{lost} .*what is done is kept, the same command goes on"
    ):
        prepare(source, out, PROFILE, progress=lose)
    safe.rename(lost)
    check(prepare(source, out, PROFILE).path, plan_of(PICTURES))


def test_a_worker_that_dies_is_replaced(source, out, tmp_path):
    """Ray runs its block again, to the same place."""
    killed: list[int] = []
    decoding, over = threading.Event(), threading.Event()

    def kill() -> None:
        """Look for them all the time: a block takes a few milliseconds."""
        decoding.wait()
        while not killed and not over.is_set():
            for process in _workers():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)

    def progress(what: str, done: int, total: int) -> None:
        if what == "decoding":
            decoding.set()

    straight = prepare(source, tmp_path / "straight", PROFILE)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        summary = prepare(write(tmp_path / "source", group=1), out, PROFILE, progress=progress)
    finally:
        decoding.set()
        over.set()
        killer.join()
    assert killed
    assert digest(summary.path) == digest(straight.path)


def _workers() -> list[int]:
    """Return the processes that run a block for this test's own Ray, and for no other."""
    parents, mapping = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        if command.startswith(b"ray::Map"):
            mapping.append(int(folder.name))
    # The test started the raylet, and the raylet the workers.
    return [process for process in mapping if parents.get(parents[process]) == os.getpid()]


SCRIPT = """
import sys, time
from pathlib import Path
from aiornot.data.layout import Profile
from aiornot.data.ray_prepare import prepare

def slowly(what, done, total):
    if what == "decoding" and done:
        time.sleep(0.5)

prepare(sys.argv[1], Path(sys.argv[2]), Profile(name="tiny", size=32), num_cpus=1, progress=slowly)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_more_than_two_gibibytes_of_images_are_prepared(out, tmp_path):
    """Slow because it writes and reads 2.2 GiB; as one table, Arrow cannot take rows of it."""
    rng, side = np.random.default_rng(0), 840
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    count = 2**31 // pixels.nbytes + 60
    (tmp_path / "source").mkdir()
    schema = pa.schema([("id", pa.string()), ("image", TYPE), ("label", pa.int64())])
    with pq.ParquetWriter(tmp_path / "source" / "0.parquet", schema) as writer:
        for first in range(0, count, 64):
            rows = range(first, min(first + 64, count))
            contents = [{"bytes": bitmap(np.roll(pixels, 7 * row)), "path": None} for row in rows]
            columns = [[f"row-{row}" for row in rows], contents, [row % 2 for row in rows]]
            writer.write_table(pa.table(columns, schema=schema))
    table = pq.read_table(tmp_path / "source")
    assert table.column("image").nbytes > 2**31
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        table.take(np.arange(count))
    del table
    summary = prepare(str(tmp_path / "source"), out, PROFILE, near_duplicates=None)
    assert sum(summary.counts.values()) == count and not summary.rejected
    row = int(hdf5.read_ids(summary.path, "test")[-1][4:])
    expected = images.fit(np.roll(pixels, 7 * row), SIZE)
    np.testing.assert_array_equal(hdf5.map_images(summary.path, "test")[-1], expected)


def bitmap(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_run_that_is_killed_goes_on_to_the_same_file(source, out, tmp_path):
    """Slow because the killed process starts a Ray of its own (one core, which changes no byte)."""
    straight = prepare(source, tmp_path / "straight", PROFILE)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # A folder of its own, or this test's Ray would be taken for it; short, as sockets' names are.
    environment["RAY_TMPDIR"] = folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    command = [sys.executable, "-c", SCRIPT, source, str(out)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    journal = out / "tiny.h5.journal"
    try:
        while not journal.exists() or len(journal.read_text().splitlines()) < 3:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    assert unfinished(out)
    seen = []
    summary = prepare(source, out, PROFILE, progress=lambda *now: seen.append(now))
    resumed = next(done for what, done, total in seen if what == "decoding")
    assert 0 < resumed < COUNT
    assert digest(summary.path) == digest(straight.path)

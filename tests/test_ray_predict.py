"""Scoring parquet with Ray Data: what ``predict`` says of the same bytes, part by part."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from conftest import CPU, Result, run_verb
from PIL import Image

from aiornot.config import InputError
from aiornot.delivery import bundle, predict, ray_predict

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def row(index: int, *, content: bytes | None = None) -> dict:
    stream = io.BytesIO()
    rng = np.random.default_rng(index)
    pixels = rng.normal(40 + 12 * (index % 17), 30, (40, 30, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return {
        "id": f"row-{index}",
        "image": {"bytes": stream.getvalue() if content is None else content, "path": None},
        "label": index % 2,
    }


def save(path: Path, rows: list[dict], *, labels: bool = True, group: int = 20) -> None:
    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if labels else table.drop_columns(["label"]), path, row_group_size=group)


@dataclasses.dataclass(frozen=True)
class Scored:
    source: Path
    out: Path
    refused: Result
    """Of the first run, in which the second shard was damaged."""
    first: dict[str, tuple[int, bytes]]
    """Inode and content of the parts after it."""
    summary: ray_predict.Summary
    """Of the second run, with the shard mended."""
    progress: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def scored(delivered, tmp_path_factory, ray_cluster) -> Scored:
    """Three shards of a part each: one of them damaged at first, one without labels."""
    root = tmp_path_factory.mktemp("scored")
    source, out = root / "source", root / "out"
    rows = [row(index) for index in range(60)]
    rows[7] = row(7, content=b"no image")
    rows[45]["image"]["bytes"] = None
    save(source / "a.parquet", rows[:20])
    save(source / "b.parquet", rows[20:40])
    save(source / "c.parquet", rows[40:], labels=False, group=8)
    whole = (source / "b.parquet").read_bytes()
    (source / "b.parquet").write_bytes(whole[:200] + bytes(400) + whole[600:])
    refused = run_verb(
        *("predict", str(delivered.folder), "--batch-size", "16"),
        *("--parquet", str(source), "--out", str(out)),
    )
    first = {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.glob("*.parquet")}
    (source / "b.parquet").write_bytes(whole)
    told: list[tuple[str, int, int]] = []
    summary = ray_predict.predict(
        delivered.folder,
        str(source),
        str(out),
        batch_size=16,
        progress=lambda *what: told.append(what),
    )
    return Scored(source, out, refused, first, summary, told)


def test_a_damaged_shard_costs_its_own_part_only(scored):
    refused = scored.refused
    assert refused.code == 1 and "b.parquet, row group 0 cannot be read" in refused.err
    assert "1 of 3 parts" in refused.err and "Traceback" not in refused.err
    assert sorted(scored.first) == ["part-000000.parquet", "part-000002.parquet"]


def test_the_same_command_makes_what_is_missing_and_nothing_else(scored, delivered, monkeypatch):
    assert scored.summary == ray_predict.Summary(
        out=str(scored.out), rows=60, errors=2, parts=3, kept=2
    )
    phases = list(dict.fromkeys(what for what, _, _ in scored.progress))
    assert phases == ["reading the source", "predicting", "starting Ray"]
    assert scored.progress[-1] == ("predicting", 60, 60)
    for name, (inode, content) in scored.first.items():
        part = scored.out / name
        assert part.stat().st_ino == inode and part.read_bytes() == content
    # And when all are there, Ray is not needed.
    monkeypatch.setattr(ray.data, "from_items", None)
    assert ray_predict.predict(delivered.folder, str(scored.source), str(scored.out)).kept == 3


def test_the_same_bytes_get_the_same_probability_as_files_do(scored, delivered, tmp_path):
    found = pq.read_table(scored.out).to_pylist()
    shards = [pq.read_table(scored.source / f"{name}.parquet") for name in "abc"]
    rows = [one for shard in shards for one in shard.to_pylist()]
    files = []
    for number, one in enumerate(rows):
        files.append(tmp_path / f"{number:02d}.png")
        files[-1].write_bytes(one["image"]["bytes"] or b"")
    expected = list(predict.predict(bundle.load(delivered.folder, device=CPU), files))
    assert [one["id"] for one in found] == [one["id"] for one in rows]
    assert [one["error"] for one in found] == [one.error for one in expected]
    assert [one["label"] for one in found] == [one.label for one in expected]
    assert [one["unsure"] for one in found] == [one.unsure for one in expected]
    good = [one.probability for one in expected if one.error is None]
    assert [one["probability"] for one in found if one["error"] is None] == pytest.approx(
        good, abs=1e-6
    )
    assert {one["label"] for one in found} == {"real", "generated", None}


def test_labels_are_carried_where_there_are_any(scored):
    labels = pq.read_table(scored.out)["source_label"].to_pylist()
    assert labels == [index % 2 for index in range(40)] + [None] * 20


def test_each_part_says_which_model_made_it(scored, delivered):
    loaded = bundle.load(delivered.folder, device=CPU)
    for part in sorted(scored.out.glob("*.parquet")):
        said = json.loads(pq.read_schema(part).metadata[b"aiornot"])
        assert said["model"] == loaded.sha256
        assert said["calibration"]["threshold"] == loaded.calibration.threshold


def test_another_source_or_model_is_not_mixed_in(scored, delivered, tmp_path):
    out = scored.out
    save(tmp_path / "other/a.parquet", [row(index) for index in range(5)])
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match="another source"):
        ray_predict.predict(delivered.folder, str(tmp_path / "other"), str(out))
    header = out / "_aiornot.json"
    values = json.loads(header.read_text())
    header.write_text(json.dumps(values | {"model": "0" * 64}))
    with pytest.raises(InputError, match="another model"):
        ray_predict.predict(delivered.folder, str(scored.source), str(out))
    header.write_bytes(before[header])
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_of_other_parquet_is_left_alone(scored, delivered):
    source = scored.source
    with pytest.raises(InputError, match="something else"):
        ray_predict.predict(delivered.folder, str(source), str(source))
    assert sorted(path.name for path in source.iterdir()) == [f"{name}.parquet" for name in "abc"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--parquet", "SOURCE"), "--out FOLDER"),
        (("--parquet", "SOURCE", "--out", "out", "photo.jpg"), "takes no image files"),
        (("--parquet", "nowhere", "--out", "out"), "no such file"),
        (("--parquet", "SOURCE", "--out", "out", "--device", "cuda:1"), "auto, cpu or cuda"),
        (("--parquet", "SOURCE", "--out", "out", "--batch-size", "0"), "batch_size"),
        (("--out", "out", "photo.jpg"), "--parquet IN"),
        ((), "name image files"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(
    arguments, expected, scored, delivered, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = [str(scored.source) if one == "SOURCE" else one for one in arguments]
    result = run_verb("predict", str(delivered.folder), *given)
    assert result.code == 2 and expected in result.err, result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_is_missing(delivered, tmp_path, ray_cluster):
    """Slow: it starts a process with a Ray of its own, kills it, and starts another."""
    rows = [row(index) for index in range(100)]
    for shard in range(30):
        save(tmp_path / f"source/{shard:02d}.parquet", rows)
    out = tmp_path / "out"
    places = ["--parquet", str(tmp_path / "source"), "--out", str(out)]
    command = [sys.executable, "-m", "aiornot", "predict", str(delivered.folder), *places]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 120
        while len(list(out.glob("part-*.parquet"))) < 2:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    time.sleep(3)  # its workers finish the part at hand, or die
    kept = {path.name: path.stat().st_ino for path in out.glob("part-*.parquet")}
    assert 2 <= len(kept) < 30
    summary = ray_predict.predict(delivered.folder, str(tmp_path / "source"), str(out))
    assert summary.rows == 3000 and summary.kept == len(kept)
    assert {name: (out / name).stat().st_ino for name in kept} == kept
    found = pq.read_table(out)["probability"].to_numpy().reshape(30, 100)
    assert np.allclose(found, found[0], atol=1e-6)

"""Wherever the shards lie and however they are named, the prepared file is the same to the byte."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stores import FakeHub, FakeS3

COUNT = 48
TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TOKEN = "hf_secretOfSomeone"
DATASET = "hf://datasets/some.one/photos"
SHARDS = {"0.parquet": range(20), "1.parquet": range(20, 37), "2.parquet": range(37, COUNT)}

# In a process of its own: driver and workers know of the stores by their environment alone.
PREPARE = """
import hashlib, json, sys
from pathlib import Path

from aiornot import ray_session
from aiornot.data.ray_prepare import Profile, prepare

out, *sources = sys.argv[1:]
with ray_session.connected(num_cpus=2):
    for number, source in enumerate(sources):
        path = prepare(source, Path(out) / str(number), Profile(name="tiny", size=32)).path
        content = path.read_bytes()
        print(json.dumps([source, hashlib.sha256(content).hexdigest(), source.encode() in content]))
"""


def shard(rows: range) -> bytes:
    images = []
    for row in rows:
        pixels = np.random.default_rng(row).integers(0, 256, (32 + row, 40, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG" if row % 3 else "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    ids = [f"row-{row}" for row in rows]
    columns = {"id": ids, "image": pa.array(images, TYPE), "label": [row % 2 for row in rows]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=6)
    return buffer.getvalue()


def lay_out(folder: Path, s3: FakeS3, hub: FakeHub) -> list[str]:
    """Write the same rows in every way, and return the sources."""
    for name in ("one", "many", "nested/data"):
        (folder / name).mkdir(parents=True)
    (folder / "one" / "all.parquet").write_bytes(shard(range(COUNT)))
    for name, rows in SHARDS.items():
        content = shard(rows)
        for place in ("many", "nested/data"):
            (folder / place / name).write_bytes(content)
        s3.objects[f"bucket/photos/{name}"] = content
        hub.files[f"some.one/photos/data/{name}"] = content
    (folder / "many" / "other.parquet").write_bytes(shard(range(9)))  # the glob leaves it out
    hub.access, hub.tokens = "gated", {TOKEN: True}
    file, pattern = f"{folder}/one/all.parquet", f"{folder}/many/[0-9].parquet"
    return [
        file,
        pattern,
        f"{folder}/nested/data",
        f"{folder}/nested",
        "s3://bucket/photos",
        DATASET,
    ]


@pytest.mark.ray
def test_every_source_makes_the_same_file(tmp_path, monkeypatch, s3, hub):
    sources = lay_out(tmp_path / "sources", s3, hub)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(tmp_path / "out"), *sources],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [source for source, _, _ in found] == sources
    assert len({digest for _, digest, _ in found}) == 1, found
    assert not any(named for _, _, named in found)
    assert TOKEN not in done.stdout + done.stderr

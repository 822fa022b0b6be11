"""The actor that scores parquet: it has a bundle loaded, and turns rows into a part.

``ray_predict.py`` starts it.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from aiornot import storage
from aiornot.config import InputError
from aiornot.data import shards
from aiornot.delivery import bundle as bundles
from aiornot.delivery import predict as predicting

METADATA = b"aiornot"
"""Key, in the schema of each part, of what made it."""


def part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


class Scorer:
    """An actor that has a bundle loaded and makes parts."""

    def __init__(
        self,
        *,
        files: ray.ObjectRef,
        out: str,
        header: str,
        batch_size: int,
        num_threads: int,
        device: str,
    ) -> None:
        with tempfile.TemporaryDirectory() as name:
            for file, content in ray.get(files).items():
                (Path(name) / file).write_bytes(content)
            self._bundle = bundles.load(Path(name), device=torch.device(device))
        self._out = out
        self._header: dict[str, Any] = json.loads(header)
        self._batch_size = batch_size
        self._num_threads = num_threads

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        blocks = [shards.Block(**values) for values in json.loads(item["blocks"])]
        rows: list[dict[str, Any]] = []
        errors = 0
        failed = ""
        try:
            rows = list(self._rows(blocks))
            errors = sum(row["error"] is not None for row in rows)
            self._write(part_name(int(item["number"])), rows, errors)
        except (InputError, OSError) as error:
            failed = str(error)
        return {"rows": len(rows), "errors": errors, "failed": failed}

    def _rows(self, blocks: list[shards.Block]) -> Iterator[dict[str, Any]]:
        labelled = self._header["labelled"]
        sources = (row for block in blocks for row in _read(block, labelled=labelled))
        for source, answer in predicting.answers(
            self._bundle,
            sources,
            lambda source: source["bytes"],
            batch_size=self._batch_size,
            num_threads=self._num_threads,
        ):
            row = {"id": source["id"], "probability": None, "error": None}
            if isinstance(answer, str):
                row |= {"label": None, "unsure": None, "error": answer}
            else:
                label, unsure = predicting.verdict(self._bundle, answer)
                row |= {"probability": answer, "label": label, "unsure": unsure}
            yield row | {"source_label": source["label"]}

    def _write(self, name: str, rows: list[dict[str, Any]], errors: int) -> None:
        schema = schema_of(self._header | {"errors": errors})
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
        storage.write_bytes(storage.join(self._out, name), buffer.getvalue())


def _read(block: shards.Block, *, labelled: bool) -> Iterator[dict[str, Any]]:
    """Yield id, bytes and label (None where the shard has none) of each row of a block."""
    columns = ["id", "image.bytes", *(["label"] if labelled else [])]
    for batch in shards.read(block, columns):
        ids = batch.column("id").to_pylist()
        has_labels = labelled and "label" in batch.schema.names
        labels = batch.column("label").to_pylist() if has_labels else [None] * len(ids)
        for name, label, content in zip(ids, labels, shards.image_bytes(batch), strict=True):
            text = None if name is None else str(name)
            yield {"id": text, "label": label, "bytes": content}


def schema_of(about: Mapping[str, Any]) -> pa.Schema:
    fields = [
        pa.field("id", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("label", pa.string()),
        pa.field("unsure", pa.bool_()),
        pa.field("error", pa.string()),
    ]
    if about["labelled"]:
        fields.append(pa.field("source_label", pa.int64()))
    return pa.schema(fields, metadata={METADATA: json.dumps(about).encode()})

"""Parquet shards of images -> parquet of probabilities, with Ray Data, at any size.

``aiornot predict runs/fast/bundle --parquet data/aiornot --out data/predicted`` runs this. Actors
load the bundle once, read their rows themselves and write their part themselves; through Ray go
numbers only. A part is whole or not there, and the same command makes those that are missing.
"""

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.util.annotations import RayDeprecationWarning

from aiornot import ray_session, storage
from aiornot.config import InputError, WorkError
from aiornot.data import ray_decode, shards
from aiornot.delivery import manifest
from aiornot.delivery.ray_scorer import METADATA, Scorer, part_name
from aiornot.tuning.ray_machines import machines

NOISE = re.compile(
    rb"\[.* core_worker\.cc:\d+: Actor with class name: 'MapWorker\(.* has constructor"
)
"""Ray's core says so on stderr of every pool of actors that Ray Data makes, each time."""

HEADER = "_aiornot.json"
"""What made the parts. Readers of parquet pass over a name that begins so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What ``predict`` did."""

    out: str
    rows: int
    errors: int
    """Rows without a probability; their ``error`` says why."""
    parts: int
    kept: int
    """Parts that were there before."""


def predict(
    folder: Path,
    source: str,
    out: str,
    *,
    batch_size: int = 32,
    device: str = "auto",
    num_cpus: int | None = None,
    progress: shards.Progress = lambda what, done, total: None,
) -> Summary:
    """Write the probability of every image of a source into ``out/part-*.parquet``.

    Columns: ``id``, ``probability``, ``label`` (the verdict), ``unsure``, ``error``, and
    ``source_label`` where the source has labels; rows in the order of the source.

    Args:
        folder: The bundle.
        source: A parquet file, a folder of them, a glob, or the same on ``s3://`` or ``hf://``.
        out: A folder, or one on ``s3://``.
        batch_size: Images per forward pass.
        device: ``auto`` (the GPUs that Ray has, else its CPUs), ``cpu`` or ``cuda``.
        num_cpus: Of a Ray started here.
        progress: Called as the work proceeds.

    Raises:
        InputError: Not a bundle, nothing readable in the source, or ``out`` holds something else.
        WorkError: It stopped half-way, or a shard is damaged; the finished parts are kept.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {device}: with --parquet give auto, cpu or cuda")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    description = manifest.read(folder)
    manifest.check_weights(folder, description["sha256"])
    progress("reading the source", 0, 1)
    found = shards.outline(source, labels=False)
    progress("reading the source", 1, 1)
    parts = list(_parts(found.blocks))
    header = _header(description, found, num_parts=len(parts))
    _check_out(out, header)
    names = [part_name(number) for number in range(len(parts))]
    kept = {Path(path).name for path in storage.list_files(out, suffix=".parquet")}
    todo = [number for number, name in enumerate(names) if name not in kept]
    counted = _Counted(progress, sum(block.count for block in found.blocks))
    for rows, errors in _counts(out, [name for name in names if name in kept]):
        counted.add(rows, errors)
    if todo:
        storage.write_text(storage.join(out, HEADER), header)
        items = [{"number": number, "blocks": _to_json(parts[number])} for number in todo]
        progress("starting Ray", 0, 1)
        with ray_session.connected(num_cpus=num_cpus):
            progress("starting Ray", 1, 1)
            counted.add(0, 0)
            _run(items, folder, out, header, counted, batch_size, device)
    return Summary(
        out=out,
        rows=counted.rows,
        errors=counted.errors,
        parts=len(parts),
        kept=len(parts) - len(todo),
    )


@dataclasses.dataclass
class _Counted:
    """Rows so far, and who is told."""

    progress: shards.Progress
    total: int
    rows: int = 0
    errors: int = 0

    def add(self, rows: int, errors: int) -> None:
        self.rows += rows
        self.errors += errors
        self.progress("predicting", self.rows, self.total)


def _parts(blocks: list[shards.Block]) -> Iterator[list[shards.Block]]:
    """Yield the blocks of each part: of one shard, and small row groups together."""
    part: list[shards.Block] = []
    for block in shards.cut(blocks):
        rows = sum(one.count for one in part) + block.count
        if part and (part[0].path != block.path or rows > shards.TASK_ROWS):
            yield part
            part = []
        part.append(block)
    yield part


def _to_json(blocks: list[shards.Block]) -> str:
    # Absolute, for a worker may live in another folder.
    values = [dataclasses.asdict(block) for block in blocks]
    return json.dumps([value | {"path": storage.absolute(value["path"])} for value in values])


def _header(description: Mapping[str, Any], found: shards.Outline, *, num_parts: int) -> str:
    values = {
        "model": description["sha256"],
        "calibration": description["calibration"],
        "classes": description["classes"],
        "preprocessing": description["preprocessing"],
        "source": found.footprint,
        "source_note": found.note,
        "labelled": found.labelled,
        "parts": num_parts,
    }
    return json.dumps(values, indent=1) + "\n"


def _check_out(out: str, header: str) -> None:
    """Refuse a folder whose parts another model or source made."""
    if not storage.is_remote(out) and Path(out).is_file():
        raise InputError(f"--out {out}: there is a file of that name; give a folder")
    path = storage.join(out, HEADER)
    if not storage.exists(path):
        if storage.list_files(out, suffix=".parquet"):
            raise InputError(f"--out {out} holds parquet files of something else; give a new one")
        return
    try:
        before, now = json.loads(storage.read_text(path)), json.loads(header)
    except ValueError:
        raise InputError(f"{path} is damaged; give another --out") from None
    apart = [name for name in now if before.get(name) != now[name]]
    if apart:
        raise InputError(
            f"--out {out} holds predictions with another {' and '.join(apart)}, which must not be "
            "mixed with these; give another folder"
        )


def _counts(out: str, names: list[str]) -> Iterator[tuple[int, int]]:
    """Yield rows and errors of finished parts, from their footers."""

    def count(name: str) -> tuple[int, int]:
        with shards.open_file(storage.join(out, name)) as file:
            values = json.loads((file.schema_arrow.metadata or {})[METADATA])
            return file.metadata.num_rows, int(values["errors"])

    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(count, names)


def _run(
    items: list[dict[str, Any]],
    folder: Path,
    out: str,
    header: str,
    counted: _Counted,
    batch_size: int,
    device: str,
) -> None:
    """Make the missing parts; a damaged shard costs its own parts only."""
    ray_decode.configure_ray_data()
    resources, most = _resources(device)
    scorer = {
        # In Ray's store, not on a path: not every node sees this disk.
        "files": ray.put(
            {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        ),
        "out": storage.absolute(out),
        "header": header,
        "batch_size": batch_size,
        "num_threads": max(1, math.ceil(resources["num_cpus"])),
        "device": "cuda" if resources["num_gpus"] else "cpu",
    }
    source = ray.data.from_items(items, override_num_blocks=len(items))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = source.map(
            Scorer,
            fn_constructor_kwargs=scorer,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(items))),
            # By default without end, also where a part kills its actor each time. Ray 2.64 is to
            # drop this argument, and warns of it.
            max_task_retries=2,
            **resources,
        )
    damaged = []
    for result in ray_decode.results(dataset):
        if result["failed"]:
            damaged.append(result["failed"])
        else:
            counted.add(int(result["rows"]), int(result["errors"]))
    if damaged:
        raise WorkError(
            f"{len(damaged)} of {len(items)} parts could not be made: {damaged[0]}; "
            f"{ray_decode.KEPT}"
        )


def _resources(device: str) -> tuple[dict[str, float], int]:
    """Return what an actor asks for, and how many there may be."""
    found = machines(num_workers=1)
    cpus, gpus = found.num_cpus, found.num_gpus
    if device == "cuda" and not gpus:
        raise InputError("--device cuda: this Ray has no GPU; use --device cpu")
    if device == "cpu" or not gpus:
        return {"num_cpus": 1, "num_gpus": 0}, max(1, cpus)
    # Its cores decode for it: most images take the processor longer than the GPU.
    return {"num_cpus": found.cpus_per_gpu(), "num_gpus": 1}, gpus

"""CPU seconds and time of preparing: the notebook's way, ours and a plain process pool.

    python benchmarks/prepare.py --size 512 --images 4000 --rounds 3 --data data/bench --json
    python benchmarks/prepare.py --memory --images 2000 8000
    python benchmarks/prepare.py --differences

Every run has a fresh process, the ways take turns, and ratios are medians over the rounds. The
clocks run until the file is on the disk. The start of Ray or of the pool, until each core has run
a trivial task with the imports of the real ones, is timed apart: for Ray it is a tiny Ray Data job.
CPU seconds are those of every process, Ray's idle daemons included.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np
import photos
import pyarrow as pa
import pyarrow.parquet as pq
import tables
from PIL import Image
from watch import MARK, Watch, machine_cpu

from aiornot.data import hdf5, images, shards, splits

CORES = os.cpu_count() or 1
NOTEBOOK_BATCH = 1024
RATIOS = (
    ("ours", "notebook", "cpu"),
    ("notebook", "ours", "wall"),
    ("ours", "pool", "cpu"),
    ("ours", "pool", "wall"),
)

Report = dict[str, Any]
Work = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Job:
    """What one measured process does."""

    way: str
    source: str
    out: str
    size: int
    resample: images.Resample


@contextlib.contextmanager
def notebook(job: Job) -> Iterator[Work]:
    """One process and whole tables, as the notebook's ``preprocess_splits``.

    Its second reading and second ``take``, which nothing used, are left out.
    """
    yield lambda: _notebook(job)


def _notebook(job: Job) -> None:
    table = pa.concat_tables([pq.read_table(path) for path in _shards(job)])
    plan = splits.plan(table.column("label").to_numpy())
    with h5py.File(job.out, "w") as file:
        for split, rows in plan.items():
            taken = table.take(rows)
            group = file.create_group(split)
            shape = (len(rows), job.size, job.size, 3)
            dataset = group.create_dataset("image", shape=shape, dtype=np.uint8)
            start = 0
            for batch in taken.select(["image"]).to_batches(NOTEBOOK_BATCH):
                dataset[start : start + len(batch)] = _decode_batch(batch, job.size)
                start += len(batch)
            group.create_dataset("label", data=taken.column("label").to_numpy())
            # The notebook kept no ids; they take milliseconds and let the files be compared.
            group.create_dataset("id", data=taken.column("id").to_pylist())
    _flush(job.out)


def _decode_batch(batch: pa.RecordBatch, size: int) -> np.ndarray:
    contents = batch.to_pydict()["image"]
    decoded = np.empty((len(contents), size, size, 3), dtype=np.uint8)
    for number, content in enumerate(contents):
        image = Image.open(io.BytesIO(content["bytes"]))
        # Needed where an image is grey or has a palette. On RGB, all there is here, it would only
        # copy, and the notebook did not call it.
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        decoded[number] = np.array(rgb.resize((size, size)), dtype=np.uint8)  # bicubic by default
    return decoded


@contextlib.contextmanager
def ours(job: Job) -> Iterator[Work]:
    import ray

    from aiornot import ray_session
    from aiornot.data import layout, ray_decode, ray_prepare

    profile = layout.Profile(name="bench", size=job.size, resample=job.resample)
    ray_decode.configure_ray_data()
    with ray_session.connected():
        cores = int(ray.cluster_resources()["CPU"])
        items = [{"number": number} for number in range(4 * cores)]
        tiny = ray.data.from_items(items, override_num_blocks=len(items)).map(_trivial_row)
        _warm(cores, lambda: [row["pid"] for row in tiny.iter_rows()])
        yield lambda: ray_prepare.prepare(job.source, Path(job.out).parent, profile)


@contextlib.contextmanager
def pool(job: Job) -> Iterator[Work]:
    """The least that writes the same file on all cores: no journal, hashes or retries."""
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as executor:
        _warm(CORES, lambda: list(executor.map(_trivial, range(CORES))))
        yield lambda: _pool(job, executor)


def _pool(job: Job, executor: ProcessPoolExecutor) -> None:
    cheap = pa.concat_tables([pq.read_table(p, columns=["id", "label"]) for p in _shards(job)])
    plan = splits.plan(cheap.column("label").to_numpy())
    ids = {split: cheap.column("id").take(rows).to_pylist() for split, rows in plan.items()}
    labels = {split: cheap.column("label").to_numpy()[rows] for split, rows in plan.items()}
    slots = hdf5.create(Path(job.out), size=job.size, labels=labels, ids=ids, attributes={})
    targets = {row: (split, slot) for split in plan for slot, row in enumerate(plan[split])}
    tasks = []
    for block in _blocks(job):
        rows = [targets[row] for row in range(block.first, block.first + block.count)]
        tasks.append(executor.submit(_write_block, job, block, rows, slots))
    for task in tasks:
        task.result()
    _flush(job.out)


def _blocks(job: Job) -> Iterator[shards.Block]:
    first = 0
    for path in _shards(job):
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            yield shards.Block(str(path), group, first, count)
            first += count


def _write_block(
    job: Job, block: shards.Block, rows: list[tuple[str, int]], slots: dict[str, hdf5.Slots]
) -> None:
    batches = shards.read(block, ["image.bytes"])
    contents = (data for batch in batches for data in shards.image_bytes(batch))
    with open(job.out, "r+b") as file:
        for data, (split, slot) in zip(contents, rows, strict=True):
            pixels = images.fit(images.decode(data), job.size, resample=job.resample)
            hdf5.write_image(file.fileno(), slots[split], slot, pixels)


def _shards(job: Job) -> list[Path]:
    return sorted(Path(job.source).glob("*.parquet"))


def _flush(path: str) -> None:
    with open(path, "r+b") as file:
        os.fdatasync(file.fileno())


def _warm(cores: int, run: Callable[[], list[int]]) -> None:
    """Run trivial tasks until the worker of every core has had one."""
    seen: set[int] = set()
    while len(seen) < cores:
        seen.update(run())


def _trivial(_: int) -> int:
    time.sleep(0.1)  # so that one worker cannot take them all
    return os.getpid()


def _trivial_row(_: Report) -> Report:
    from aiornot.data import ray_decode

    assert ray_decode  # its import is part of the start
    return {"pid": _trivial(0)}


WAYS = {"notebook": notebook, "ours": ours, "pool": pool}


def run_measured(job: Job) -> None:
    """Do one job, telling the measuring process before and after, and waiting for its leave."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no message

    def say(step: str) -> None:
        print(step, file=channel, flush=True)
        sys.stdin.readline()

    say("start")
    with WAYS[job.way](job) as work:
        say("work")
        work()
        say("done")


def measure(way: str, source: Path, out: Path, options: argparse.Namespace) -> Report:
    """Let a fresh process do one job; return what its start and its work used."""
    job = Job(way, str(source), str(out), options.size, options.resample)
    mark = secrets.token_hex(8)
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    child = subprocess.Popen(
        [sys.executable, __file__, "--measured", json.dumps(dataclasses.asdict(job))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=kept | {MARK: mark},
    )
    assert child.stdin and child.stdout
    readings = []
    with Watch(child.pid, mark, memory=options.memory) as watch:
        for _ in child.stdout:
            readings.append((time.perf_counter(), watch.cpu(), machine_cpu()))
            child.stdin.write("go\n")
            child.stdin.flush()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or len(readings) != 3:
        raise SystemExit(f"{way} failed, see above")
    start, work = (np.subtract(b, a).tolist() for a, b in itertools.pairwise(readings))
    return {
        "way": way,
        "start": {"wall": start[0], "cpu": start[1]},
        "work": {"wall": work[0], "cpu": work[1]},
        "start and work": {"wall": start[0] + work[0], "cpu": start[1] + work[1]},
        "others' cores": (work[2] - work[1]) / work[0],
        "peak GB": watch.peaks,
        # A second opinion on the whole life: the kernel's sum over a process and the children it
        # waited for. Ray's daemons are not among those.
        "life": {"seen": watch.cpu(), "waited": used.ru_utime + used.ru_stime},
    }


def compare(path: Path, reference: Path) -> int:
    """Return the largest difference of two files' pixels; ids, labels and order must be equal."""
    largest = 0
    with h5py.File(path) as file, h5py.File(reference) as other:
        for split in splits.SPLITS:
            for name in ("id", "label"):
                if not np.array_equal(file[split][name][:], other[split][name][:]):
                    raise SystemExit(f"{path} and {reference} differ in {split}/{name}")
            for mine, theirs in zip(file[split]["image"], other[split]["image"], strict=True):
                largest = max(largest, largest_difference(mine, theirs))
    return largest


def largest_difference(first: np.ndarray, second: np.ndarray) -> int:
    if np.array_equal(first, second):
        return 0
    return int(np.abs(first.astype(np.int16) - second).max())


def digest(path: Path) -> str:
    """Return the sha256 of the images of train, val and test in the file's order."""
    found = hashlib.sha256()
    with h5py.File(path) as file:
        for split in splits.SPLITS:
            for image in file[split]["image"]:
                found.update(image)
    return found.hexdigest()


def run_set(count: int, options: argparse.Namespace, folder: Path) -> Report:
    """Run the ways in turn on one set; each file is compared with the first, pixel by pixel."""
    source = photos.write(folder / f"photos-{count}", images=count)
    described = photos.describe(source)  # which reads all of it: every way finds it in memory
    runs: list[Report] = []
    difference = 0
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        reference = Path(scratch, "reference.h5")
        for number, way in itertools.product(range(options.rounds), options.ways):
            out = Path(scratch, way, "bench.h5")
            out.parent.mkdir()
            runs.append(measure(way, source, out, options))
            if reference.exists():
                difference = max(difference, compare(out, reference))
            else:
                out.rename(reference)
            shutil.rmtree(out.parent)
            tell(f"{count} images, round {number + 1}, {way}: {json.dumps(runs[-1]['work'])}")
        sha256 = digest(reference)
    report = {"images": count, "source": described, "sha256": sha256, "difference": difference}
    return report | summarise(runs, count) | {"runs": runs}


def summarise(runs: list[Report], count: int) -> Report:
    """Return medians of each way, and ratios of ways as medians over the rounds."""
    by_way = {way: [run for run in runs if run["way"] == way] for way in WAYS}
    ratios: Report = {}
    for top, bottom, what in RATIOS:
        pairs = list(zip(by_way[top], by_way[bottom], strict=False))
        if pairs and not runs[0]["peak GB"]:  # weighing the processes costs them time
            ratios[f"{top} / {bottom}, {what}"] = {
                phase: median(a[phase][what] / b[phase][what] for a, b in pairs)
                for phase in ("work", "start and work")
            }
    medians = {way: summarise_way(found, count) for way, found in by_way.items() if found}
    return {"medians": medians, "ratios": ratios}


def summarise_way(runs: list[Report], count: int) -> dict[str, float]:
    """Return one way's line: its peaks if they were taken, else what its clocks say."""
    if runs[0]["peak GB"]:
        return {name: max(run["peak GB"][name] for run in runs) for name in runs[0]["peak GB"]}
    return {
        "CPU ms/image": median(1000 * run["work"]["cpu"] / count for run in runs),
        "images/s": median(count / run["work"]["wall"] for run in runs),
        "start CPU s": median(run["start"]["cpu"] for run in runs),
        "start s": median(run["start"]["wall"] for run in runs),
        "others' cores": median(run["others' cores"] for run in runs),
    }


def run_differences(size: int) -> Report:
    """Compare ``fast`` with Pillow's bicubic over sizes from slivers to more than a screen.

    Noise is the worst case: no photograph has such edges.
    """
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.uniform(np.log(17), np.log((2000, 1333)), (38, 2))).round().astype(int)
    found = {}
    for width, height in [(17, 900), (2000, 1333), *drawn.tolist()]:
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        row = {}
        for name, pixels in (("photo", photos.scene(rng, width, height)), ("noise", noise)):
            fast, exact = (images.fit(pixels, size, resample=kind) for kind in ("fast", "bicubic"))
            row[name] = float(largest_difference(fast, exact))
            row[f"{name}, share"] = float((fast != exact).mean())
        found[f"{width} x {height}"] = row
    return {"differences": dict(sorted(found.items(), key=lambda item: item[1]["noise"]))}


def show(report: Report) -> None:
    """Print one report as tables."""
    if "differences" in report:
        print(f"\nlargest difference of fast from Pillow's bicubic, to {report['size']} px")
        print(tables.text(report["differences"]))
        return
    kinds = report["source"].items()
    means = ", ".join(f"{kind['count']} {name} of {kind['mean_kB']} kB" for name, kind in kinds)
    print(f"\n{means}, to {report['size']} px, {report['resample']}, {report['rounds']} rounds")
    print(tables.text(report["medians"]))
    if report["ratios"]:
        print("\n" + tables.text(report["ratios"]))
    print(f"\nlargest difference of a pixel {report['difference']}; sha256 {report['sha256'][:16]}")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, nargs="+", help="4000; with --memory 2000 8000")
    parser.add_argument("--rounds", type=int, help="3; with --memory 1")
    parser.add_argument("--resample", choices=("bicubic", "fast"), default="bicubic")
    parser.add_argument("--ways", help="notebook,ours,pool; with --memory ours")
    parser.add_argument("--data", type=Path, help="folder that keeps the images for the next time")
    parser.add_argument("--memory", action="store_true", help="peaks (PSS) instead of the clocks")
    parser.add_argument("--differences", action="store_true", help="only fast against Pillow")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measured", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.images = options.images or ([2000, 8000] if options.memory else [4000])
    options.rounds = options.rounds or (1 if options.memory else 3)
    options.ways = (options.ways or ("ours" if options.memory else ",".join(WAYS))).split(",")
    if unknown := set(options.ways) - set(WAYS):
        parser.error(f"--ways {','.join(unknown)}: known are {','.join(WAYS)}")
    return options


def main() -> None:
    options = parse()
    if options.measured:
        run_measured(Job(**options.measured))
        return
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("only Linux shows what processes use in /proc")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        if options.differences:
            reports = [run_differences(options.size)]
        else:
            reports = [run_set(count, options, folder) for count in options.images]
    about = tables.environment("ray", "pyarrow", "pillow", "simplejpeg", "h5py", "numpy", "torch")
    shared = about | {name: getattr(options, name) for name in ("size", "resample", "rounds")}
    reports = [shared | report for report in reports]
    if options.json:
        print(json.dumps(reports, indent=1))
    else:
        print("\n".join(about.values()))
        for report in reports:
            show(report)
    if options.resample == "bicubic" and any(report.get("difference") for report in reports):
        raise SystemExit("the files differ")


if __name__ == "__main__":
    main()

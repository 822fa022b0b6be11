"""Images per second on a GPU: the ceiling, ours and the notebook's loop; and seconds to an AUROC.

    python benchmarks/gpu_throughput.py canary --out out      # half a minute: does all of it run?
    python benchmarks/gpu_throughput.py throughput --only-compiled --budget 220 --out out
    python benchmarks/gpu_throughput.py notebook --budget 200 --out out
    python benchmarks/gpu_throughput.py auroc --budget 300 --out out
    python benchmarks/gpu_throughput.py table --rows out/*.jsonl
    python benchmarks/gpu_throughput.py --smoke               # everything on a CPU, tiny

Ceiling: the same step on one batch that is ready on the device. Ours: with shuffling, gathering
and augmentation, which are all that may take time beside it. They take turns in windows of a
second or more, and the ratio is the median over pairs of windows: drift of clocks and heat cancels.
Rows are written as they come, so that a time-out keeps them. It needs no Ray and no network.
"""

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import notebook_loop
import synthetic
import tables
import torch
import train_step

from aiornot.config import TrainConfig
from aiornot.training import augment, loader, loop, metrics

BATCH = {256: 256, 512: 64, 32: 8}
IMAGES = {256: 4096, 512: 2048, 32: 160}
"""Enough that the notebook's windows lie in one epoch of its."""
NOTEBOOK_BATCH = 64
"""Its one worker is the limit: more of them would only make the windows longer."""
SHARE = 0.95
"""Of the ceiling: ours is to reach it everywhere."""
TIMES = {"resnet18": 10, "resnet50": 4, "convnext_tiny": 3}
"""Of the notebook's rate: ours is to reach it at 256 px on an H200."""
HIT = 0.95
"""The AUROC that is waited for."""
STRENGTHS = {
    "off": {},
    "notebook": train_step.AUGMENTATIONS,
    "all": train_step.AUGMENTATIONS
    | {"saturation": 0.2, "hue": 0.05, "dihedral": True, "rescale": 0.3, "blur": 0.3}
    | {"jpeg": 0.3, "re_prob": 0.25},
}
ROWS = "gpu_throughput.jsonl"

Row = dict[str, Any]


class Bench:
    """Options, device, clock and the file of rows."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.device = torch.device("cpu" if options.smoke else "cuda")
        self.began = time.perf_counter()
        self.rows: list[Row] = []

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def emit(self, kind: str, **values: Any) -> None:
        self.rows.append({"kind": kind} | values)
        line = json.dumps(self.rows[-1])
        print(line, flush=True)
        if self.options.out is not None:
            self.options.out.mkdir(parents=True, exist_ok=True)
            with (self.options.out / ROWS).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def has(self, seconds: float, name: str) -> bool:
        """Whether the budget still holds so many seconds; else a row names what was left out."""
        left = self.options.budget - (time.perf_counter() - self.began)
        if left < seconds:
            self.emit("skipped", name=name, seconds_left=round(left))
        return left >= seconds

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], None]) -> float:
        self.wait()
        before = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - before

    def state(self) -> str:
        """Return clocks, power and temperature, right after work."""
        return nvidia_smi("clocks.sm,clocks.mem,power.draw,temperature.gpu") if self.gpu else ""

    def config(self, model: str, **values: Any) -> TrainConfig:
        precision = "fp32" if self.options.smoke else self.options.precision
        fixed = {"model": model, "pretrained": False, "clip_grad": 1.0, "precision": precision}
        return TrainConfig(**fixed | values)

    def data(self, size: int) -> Path:
        path = self.folder / f"{size}.h5"
        if not path.exists():
            synthetic.write(path, size=size, train=IMAGES[size], val=2, device=self.device)
        return path


# Ceiling and ours ----------------------------------------------------------------------------


def throughput(bench: Bench, models: list[str], sizes: list[int]) -> None:
    for size in sizes:
        for model in models:
            if bench.has(60, f"throughput {model} {size}"):
                compare(bench, model, size)


def compare(bench: Bench, model: str, size: int) -> None:
    """Emit a row for each way to augment, against the ceiling of the same minute."""
    run = start(bench, model, size)
    named = {"model": model, "px": size, "batch": run.config.batch_size}
    named |= {"precision": run.config.precision}
    named |= {"model_compiled": bench.options.compile_model or False}
    ways: dict[str, Callable[[], Any]] = {"ceiling": lambda: train_step.fixed_batch(run)}
    if not bench.options.only_compiled:
        ways["eager"] = lambda: patch.object(run, "transform", augment.augment)
    if bench.options.compile_augment or bench.options.only_compiled:
        backend = "eager" if bench.options.smoke else "inductor"
        ways["compiled"] = lambda: patch.object(run, "transform", augment.compiled(backend=backend))
    first = {way: round(take(bench, run, make, 1), 2) for way, make in ways.items()}
    for make in ways.values():
        take(bench, run, make, 8)
    steps = math.ceil(8 * bench.options.window / take(bench, run, ways["ceiling"], 8))
    rates, peaks = alternate(bench, run, ways, steps)
    for way in list(ways)[1:]:
        pairs = zip(rates[way], rates["ceiling"], strict=True)
        with ways[way]():
            host, proof = host_ms(bench, run), sync_free(bench, run)
        bench.emit(
            "throughput",
            **named,
            data="resident" if run.train_split.is_resident else "streamed",
            augmentation=f"{bench.options.augment}, {way}",
            ceiling_img_s=spread(rates["ceiling"]),
            ours_img_s=spread(rates[way]),
            ours_over_ceiling=spread([ours / ceiling for ours, ceiling in pairs], digits=4),
            target=SHARE,
            host_ms=host,
            step_ms=round(1e3 * run.config.batch_size / median(rates[way]), 3),
            peak_gb=peaks.get(way),
            ceiling_peak_gb=peaks.get("ceiling"),
            no_wait=proof,
            first_step_s=first[way],
            window_steps=steps,
            clocks_power_heat=bench.state(),
        )


def start(bench: Bench, model: str, size: int) -> Any:
    if bench.gpu:
        torch.cuda.empty_cache()
    strengths = STRENGTHS[bench.options.augment]
    # The schedule must not end before the benchmark.
    batch = bench.options.batch or BATCH[size]
    config = bench.config(model, batch_size=batch, epochs=10_000, **strengths)
    streamed = patch.object(loader, "fits", lambda *_: False)
    with streamed if bench.options.streamed else nullcontext():
        run = train_step.start(config, bench.data(size), bench.device)
    if mode := bench.options.compile_model:
        run.parallel = torch.compile(run.parallel, dynamic=False, mode=mode)
    return run


def take(bench: Bench, run: Any, make: Callable[[], Any], steps: int) -> float:
    """Return the seconds of so many steps in one of the ways."""
    with make():
        return bench.seconds(lambda: train_step.take(run, steps))


def alternate(
    bench: Bench, run: Any, ways: dict[str, Callable[[], Any]], steps: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the images per second of each way's windows, and its peak of GPU memory."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, float] = {}
    for _ in range(bench.options.pairs):
        for way, make in ways.items():
            if bench.gpu:
                torch.cuda.reset_peak_memory_stats()
            rates[way].append(steps * run.config.batch_size / take(bench, run, make, steps))
            if bench.gpu:
                peaks[way] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return rates, peaks


def spread(values: list[float], digits: int = 1) -> list[float]:
    """Return median, smallest and largest."""
    return [round(of(values), digits) for of in (median, min, max)]


def host_ms(bench: Bench, run: Any, steps: int = 12) -> float:
    """Return how long the host takes to ask for one step while the device has nothing to do.

    The device is waited for after each step: its queue holds but a few, and then the host waits.
    """
    gaps: list[float] = []
    ready: float | None = None

    def timed(step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            nonlocal ready
            result = step(*args)
            if ready is not None:
                gaps.append(time.perf_counter() - ready)
            bench.wait()
            ready = time.perf_counter()
            return result

        return wrapped

    with train_step.around_steps(timed):
        train_step.take(run, steps)
    return round(1e3 * median(gaps), 3)


def sync_free(bench: Bench, run: Any) -> bool | str | None:
    """Whether three steps ran while torch forbids to wait for the GPU, or what it said."""
    if not bench.gpu:
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step.take(run, 3)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


# The notebook's loop -------------------------------------------------------------------------


def notebook(bench: Bench, models: list[str], sizes: list[int]) -> None:
    for size in sizes:
        for model in models:
            for workers in bench.options.workers:
                if bench.has(45, f"notebook {model} {size} workers {workers}"):
                    time_notebook(bench, model, size, workers)


def time_notebook(bench: Bench, model: str, size: int, workers: int) -> None:
    batch, skip, steps = (4, 3, 2) if bench.options.smoke else (NOTEBOOK_BATCH, 5, 5)
    config = bench.config(model, batch_size=batch, **train_step.AUGMENTATIONS)
    module = notebook_loop.Module(config, size=size)
    data = notebook_loop.Data(bench.data(size), batch_size=batch, workers=workers)
    windows = notebook_loop.time_steps(config, module, data, skip=skip, steps=steps, windows=5)
    bench.emit(
        "notebook",
        model=model,
        px=size,
        batch=batch,
        workers=workers,
        notebook_img_s=spread([batch / wall for wall, _ in windows]),
        clocks_power_heat=bench.state(),
    )


# Seconds to an AUROC -------------------------------------------------------------------------


def auroc(bench: Bench, model: str, size: int) -> None:
    """Train from scratch; 5 % of the training labels are wrong, and none of the validation's."""
    smoke = bench.options.smoke
    train, val, epochs, batch = (64, 16, 2, 8) if smoke else (14_880, 3_720, 8, 64)
    path = bench.folder / "auroc.h5"
    synthetic.write(path, size=size, train=train, val=val, device=bench.device, wrong=0.05)
    values = {"epochs": epochs, "batch_size": batch, "hflip": 0.5, "vflip": 0.5}
    for seed in range(bench.options.seeds):
        if bench.has(45, f"auroc {model} seed {seed}"):
            learn(bench, path, bench.config(model, seed=seed, **values))
    for seconds in bench.options.seconds:
        if bench.has(seconds + 30, f"auroc {model} notebook {seconds} s"):
            learn_notebook(bench, path, bench.config(model, **values), size, seconds)


def learn(bench: Bench, path: Path, config: TrainConfig) -> None:
    """Train through ``loop.train``; loading, evaluation and checkpoints count."""
    began, curve = time.perf_counter(), []

    def report(values: dict[str, float], folder: Path | None) -> None:
        curve.append((round(time.perf_counter() - began, 2), round(values.get("val/auroc", 0), 4)))

    loop.train(config, data=path, device=bench.device, report=report)
    hit = next((seconds for seconds, value in curve if value >= HIT), None)
    bench.emit(
        "auroc", loop="ours", **ended(config, curve), epochs=config.epochs, seconds_to_hit=hit
    )


def learn_notebook(bench: Bench, path: Path, config: TrainConfig, size: int, limit: int) -> None:
    """Train for a time without validation, to its advantage, and only then read the AUROC."""
    pl.seed_everything(config.seed, verbose=False)
    module = notebook_loop.Module(config, size=size)
    data = notebook_loop.Data(path, batch_size=config.batch_size)
    limits = {"max_epochs": config.epochs, "max_time": {"seconds": limit}}
    using = notebook_loop.trainer(config, callbacks=[], limit_val_batches=0, **limits)
    seconds = bench.seconds(lambda: notebook_loop.fit(module, data, using))
    value = metrics.auroc(*notebook_loop.predict(module, data, bench.device))
    epochs = round(using.global_step * config.batch_size / len(data), 2)
    curve = [(round(seconds, 2), round(value, 4))]
    bench.emit("auroc", loop="notebook", **ended(config, curve), epochs=epochs, seconds_to_hit=None)


def ended(config: TrainConfig, curve: list[tuple[float, float]]) -> Row:
    seconds, value = curve[-1]
    last = {"seconds": seconds, "auroc": value, "curve": curve, "waited_for": HIT}
    return {"model": config.model, "seed": config.seed} | last


# What is printed -----------------------------------------------------------------------------


def nvidia_smi(fields: str) -> str:
    query = ["nvidia-smi", "-i", "0", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.check_output(query, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(bench: Bench) -> Row:
    named = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    found: Row = {"what": bench.options.what} | tables.environment("torch", "timm", "lightning")
    if bench.options.commit:
        found["commit"] = bench.options.commit
    if bench.gpu:
        found["GPU, driver, SM and memory clock at most, power cap"] = nvidia_smi(named)
        found["cuDNN"] = torch.backends.cudnn.version()
        found["cudnn.benchmark"] = "on, in both loops"
    return found


def show(rows: list[Row]) -> None:
    """Print all rows as Markdown."""
    for row in of_kind(rows, "machine"):
        if row["what"] == "smoke":
            print(
                "\n**CPU smoke: tiny sizes, to see that it runs. No figure here means anything.**"
            )
        print("\n" + "; ".join(f"{key}: {value}" for key, value in row.items()))
    beaten = [found for row in of_kind(rows, "notebook") for found in over_notebook(row, rows)]
    kinds = [of_kind(rows, kind) for kind in ("throughput", "notebook", "auroc", "skipped")]
    for part in (*kinds[:2], beaten, *kinds[2:]):
        if part:
            print("\n" + markdown(part))


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    hidden = ("kind", "curve")
    return [
        {key: value for key, value in row.items() if key not in hidden}
        for row in rows
        if row["kind"] == kind
    ]


def over_notebook(row: Row, rows: list[Row]) -> list[Row]:
    """Return how many times the notebook's rate ours is, in each way that was measured."""
    named = {key: row[key] for key in ("model", "px", "workers")}
    target = TIMES.get(row["model"], "") if row["px"] == 256 else ""
    return [
        named
        | {"augmentation": ours["augmentation"], "model_compiled": ours["model_compiled"]}
        | {"ours_over_notebook": round(ours["ours_img_s"][0] / row["notebook_img_s"][0], 1)}
        | {"target": target}
        for ours in of_kind(rows, "throughput")
        if (ours["model"], ours["px"]) == (row["model"], row["px"])
    ]


def markdown(rows: list[Row]) -> str:
    heads = list(rows[0])
    names = [head.replace("_img_s", " img/s").replace("_", " ") for head in heads]
    lines = [names, ["---"] * len(heads)]
    lines += [[cell(row[head]) for head in heads] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any) -> str:
    if isinstance(value, list):
        return "{} ({} to {})".format(*value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


# The command ---------------------------------------------------------------------------------

WHAT: dict[str, Callable[[Bench], None]] = {
    "canary": lambda bench: everything(bench, ["resnet18"], [256]),
    "throughput": lambda bench: throughput(bench, bench.options.models, bench.options.sizes),
    "notebook": lambda bench: notebook(bench, bench.options.models, bench.options.sizes),
    "auroc": lambda bench: auroc(bench, bench.options.models[0], bench.options.sizes[0]),
    "smoke": lambda bench: everything(bench, bench.options.models, bench.options.sizes),
}


def everything(bench: Bench, models: list[str], sizes: list[int]) -> None:
    throughput(bench, models, sizes)
    notebook(bench, models, sizes)
    if bench.options.what == "smoke":
        auroc(bench, models[0], sizes[0])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=[*WHAT, "table"], default="canary")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder, or $OUT")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="files of earlier calls")
    parser.add_argument("--budget", type=float, default=500, help="seconds of this call")
    parser.add_argument("--models", default="resnet18,resnet50,convnext_tiny")
    parser.add_argument("--sizes", default="256,512")
    parser.add_argument("--precision", choices=("fp16", "bf16", "fp32"), default="fp16")
    parser.add_argument("--augment", choices=list(STRENGTHS), default="notebook")
    parser.add_argument("--compile-augment", action="store_true", help="ours eager and compiled")
    parser.add_argument("--only-compiled", action="store_true", help="ours compiled, as it is run")
    parser.add_argument(
        "--compile-model", choices=("default", "reduce-overhead"), help="in ceiling and ours"
    )
    parser.add_argument("--batch", type=int, help="of ceiling and ours, instead of the size's own")
    parser.add_argument("--streamed", action="store_true", help="even data that fit on the GPU")
    parser.add_argument("--pairs", type=int, default=5, help="windows of each way")
    parser.add_argument("--window", type=float, default=1.1, help="seconds")
    parser.add_argument("--workers", type=int, nargs="*", default=[1], help="the notebook's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=int, nargs="*", default=[60], help="the notebook's, to an AUROC"
    )
    parser.add_argument("--commit", default="", help="named where there is no git")
    parser.add_argument("--smoke", action="store_true", help="everything on a CPU, tiny")
    options = parser.parse_args()
    if options.smoke or options.what == "smoke":
        tiny = {"models": "test_resnet", "sizes": "32", "pairs": 2, "window": 0.1}
        vars(options).update({"smoke": True, "what": "smoke", "seeds": 1, "seconds": [2]} | tiny)
    if options.what == "canary":
        options.pairs = 2
    options.models = options.models.split(",")
    options.sizes = [int(size) for size in options.sizes.split(",")]
    return options


def main() -> None:
    options = parse()
    rows = [json.loads(line) for path in options.rows for line in path.read_text().splitlines()]
    if options.what != "table":
        if options.smoke:
            torch.set_num_threads(1)
        elif not torch.cuda.is_available():
            raise SystemExit("this needs a GPU; --smoke runs all of it on a CPU, tiny")
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(options, Path(folder))
            bench.emit("machine", **machine(bench))
            WHAT[options.what](bench)
            rows += bench.rows
    show(rows)


if __name__ == "__main__":
    main()

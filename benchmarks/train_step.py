"""Host time and host reads of one training step: the notebook's loop against ours, on a CPU.

    python benchmarks/train_step.py --rounds 5 --json

The model is tiny, so that what surrounds it shows. On a GPU this time is hidden as long as nothing
waits for the device, and each read of a value by the host is such a wait: both are what a loop can
do wrong. The two loops take turns, ratios are medians over pairs of rounds, and the clock is
the CPU time of the training thread: data workers and other programs do not count.

``fixed`` is our loop with one batch that is ready: what model, loss, optimizer and schedule need.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import notebook_loop
import synthetic
import tables
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aiornot.config import TrainConfig
from aiornot.training import augment, loop
from aiornot.training.run import start as start_run

AUGMENTATIONS = {
    "random_resized_crop": True,
    "degrees": 15.0,
    "hflip": 0.5,
    "vflip": 0.5,
    "brightness": 0.2,
    "contrast": 0.2,
    "sharpness": 0.3,
}
"""What the notebook's sweeps switched on."""

WARM = 10
"""Steps before anything counts."""

# Our loop ------------------------------------------------------------------------------------
# ``loop.train`` is the only public way in, and it evaluates and saves 16 times. These four
# functions are the one place among the benchmarks that knows what it is made of.


def start(config: TrainConfig, path: Path, device: torch.device) -> Any:
    """Make a run as ``loop.train`` does."""
    return start_run(config, path, device)


def take(run: Any, steps: int) -> None:
    """Take that many optimizer steps, as one tick of ``loop.train`` without its evaluation."""
    tick, done = run.tick, run.end_of(run.tick)
    run.end_of = lambda other: done + (other - tick) * steps
    loop._train_tick(run)


@contextmanager
def fixed_batch(run: Any) -> Iterator[None]:
    """Have each step find the same batch, normalised and in the precision of the model."""
    rows = [torch.arange(run.config.batch_size)]
    ((images, labels),) = run.train_split.batches(rows)
    ready = augment.normalize(images, mean=run.mean, std=run.std).to(run.dtype)
    labels, draws = labels.clone(), loop._draws(run, 0)

    def batches(_: Any, first: int, last: int) -> Iterator[tuple[int, Any, Any]]:
        return ((step, ready, labels) for step in range(first, last))

    with ExitStack() as stack:
        stack.enter_context(patch.object(loop, "_batches", batches))
        stack.enter_context(patch.object(loop, "_draws", lambda *_: draws))
        stack.enter_context(patch.object(run, "transform", lambda images, **_: images))
        yield


@contextmanager
def around_steps(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Run each step through ``wrap(step)``."""
    with patch.object(loop, "_step", wrap(loop._step)):
        yield


# Host reads ----------------------------------------------------------------------------------

READS = ("tolist", "numpy", "cpu")
"""Methods of a tensor that hand its values to the host past all operators."""

NUMBER = "_local_scalar_dense"
WAITING = (
    *(NUMBER, "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
)
"""Operators that wait for a GPU: they return a number (so item, bool, float and int all end in the
first), or a tensor whose shape is one."""

PASSED_OVER = ("torch._", "torch.utils._", "torch.functional", "torch.autograd", __name__)
"""Modules that ask for another one."""

HOSTS_OWN = ("torch.optim.optimizer", "torch.nn.modules.module")
"""Who, in the notebook's loop, reads numbers that are the host's on a GPU, too: AdamW, where it is
not fused, its step counters; TorchScript (which has no frame, only its module's) what torchvision
draws. Of the latter's 24 numbers a step one is the device's, as Normalize looks whether a deviation
is 0: the notebook's count is one too low."""


class HostReads(TorchDispatchMode):
    """Counts, while it is entered, which module made the host read a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: Counter[str] = Counter()
        self.hosts_own: Counter[str] = Counter()
        self._patches = ExitStack()

    def __enter__(self) -> "HostReads":
        for name in READS:
            counting = self._counting(getattr(torch.Tensor, name))
            self._patches.enter_context(patch.object(torch.Tensor, name, counting))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patches.close()
        super().__exit__(*error)

    def _counting(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self._count(read.__name__)
            return read(*args, **options)

        return counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or _is_masked(name, args):
            self._count(name)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back and frame.f_globals.get("__name__", "").startswith(PASSED_OVER):
            frame = frame.f_back
        caller = frame.f_globals.get("__name__", "?")
        hosts_own = name == NUMBER and caller.startswith(HOSTS_OWN)
        (self.hosts_own if hosts_own else self.callers)[caller] += 1


def _is_masked(name: str, args: Any) -> bool:
    """Whether a boolean mask says which elements are read or written: their number is looked up."""
    return name in ("index", "index_put", "index_put_") and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    )


def reads_of_ours(run: Any, steps: int) -> tuple[Counter[str], Counter[str]]:
    """Return who read within the steps, and between them.

    The gradient scaler is switched on, as for fp16 on a GPU.
    """
    reads, within = HostReads(), Counter[str]()

    def counting(step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            before = reads.callers + reads.hosts_own
            result = step(*args)
            within.update(reads.callers + reads.hosts_own - before)
            return result

        return counted

    scaler = torch.amp.GradScaler(run.device.type, growth_interval=500)
    with around_steps(counting), patch.object(run, "scaler", scaler), reads:
        take(run, steps)
    return within, reads.callers + reads.hosts_own - within


class CountReads(pl.Callback):
    """Counts the host reads of Lightning's steps ``skip`` .. ``skip + steps - 1``."""

    def __init__(self, skip: int, steps: int) -> None:
        self.skip, self.steps = skip, steps
        self.reads = HostReads()

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == self.skip:
            self.reads.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.skip + self.steps:
            self.reads.__exit__(None, None, None)


def reads_of_notebook(config: TrainConfig, module: Any, data: Any, steps: int) -> HostReads:
    """Return who read within and between the steps."""
    counting = CountReads(WARM, steps)
    limits = {"max_steps": WARM + steps + 1, "limit_val_batches": 0}
    notebook_loop.fit(module, data, notebook_loop.trainer(config, callbacks=[counting], **limits))
    return counting.reads


# The measurement -----------------------------------------------------------------------------


def measure(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    config = TrainConfig(
        model=options.model,
        pretrained=False,
        batch_size=options.batch,
        epochs=10_000,  # the schedule must not end before the benchmark
        clip_grad=1.0,
        **AUGMENTATIONS,
    )
    run = start(config, path, torch.device("cpu"))
    module = notebook_loop.Module(config, size=options.size)
    data = notebook_loop.Data(path, batch_size=options.batch)
    take(run, WARM)
    found: dict[str, list[float]] = {"notebook": [], "ours": [], "fixed": []}
    for _ in range(options.rounds):
        window = notebook_loop.time_steps(config, module, data, skip=WARM, steps=options.steps)
        found["notebook"].append(window[0][1])
        found["ours"].append(host_seconds(run, options.steps))
        with fixed_batch(run):
            found["fixed"].append(host_seconds(run, options.steps))
    within, between = reads_of_ours(run, options.steps)
    theirs = reads_of_notebook(config, module, data, options.steps)
    counted = {
        "notebook": theirs.callers,
        "ours": within,
        "our loader, of row numbers": between,
        "notebook, of the host's own": theirs.hosts_own,
    }
    return summary(found) | {
        "reads_per_step": {
            who: {caller: count / options.steps for caller, count in callers.items()}
            for who, callers in counted.items()
        }
    }


def host_seconds(run: Any, steps: int) -> float:
    """Return the CPU seconds per step of this thread: the loader's thread is not in it."""
    before = time.thread_time()
    take(run, steps)
    return (time.thread_time() - before) / steps


def summary(found: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return medians over the rounds, and of what is compared the smallest and largest, too."""
    rounds = [dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)]
    above = {way: [1e6 * (one[way] - one["fixed"]) for one in rounds] for way in found}
    ratios = [one["notebook"] / one["ours"] for one in rounds]
    return {
        "host_us_per_step": {way: round(1e6 * median(values)) for way, values in found.items()},
        "host_us_above_fixed": {
            way: [round(of(values)) for of in (median, min, max)] for way, values in above.items()
        },
        "notebook_over_ours": [round(of(ratios), 2) for of in (median, min, max)],
    }


def show(report: Mapping[str, Any]) -> None:
    reads = report["reads_per_step"]
    print("\n".join(f"{key}: {report[key]}" for key in ("machine", "load", "versions", "commit")))
    print(f"{report['model']}, {report['size']} px, batch {report['batch']}, one thread, CPU")
    print("\n| loop | host us per step | above fixed | host reads per step |\n|---|--:|--:|--:|")
    for way, host in report["host_us_per_step"].items():
        above = "{} ({} to {})".format(*report["host_us_above_fixed"][way])
        count = f"{sum(reads[way].values()):.1f}" if way in reads else ""
        print(f"| {way} | {host} | {above} | {count} |")
    ratio = "{} ({} to {})".format(*report["notebook_over_ours"])
    print(f"\nnotebook / ours {ratio} in {report['rounds']} rounds of {report['steps']} steps")
    print("the notebook's reads: " + ", ".join(f"{k} {v:g}" for k, v in reads["notebook"].items()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="test_resnet.r160_in1k")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100, help="per round and loop")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    device, count = torch.device("cpu"), options.batch * (WARM + 2 * options.steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.h5"
        synthetic.write(path, size=options.size, train=count, val=2, device=device)
        report = vars(options) | measure(options, path)
    report |= tables.environment("torch", "timm", "lightning")
    report["load"] = round(os.getloadavg()[0], 1)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


if __name__ == "__main__":
    main()

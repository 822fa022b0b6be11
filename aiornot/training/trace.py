"""A trace of a few training steps, to be looked at in chrome://tracing or ui.perfetto.dev.

``aiornot train --profiler runs/trace`` writes ``runs/trace/trace.json``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile, schedule

TRACE = "trace.json"

WAIT, WARMUP, ACTIVE = 2, 2, 4
"""Optimizer steps before, steps that only warm the profiler up, and steps that are kept."""


@contextmanager
def profiled(folder: Path) -> Iterator[None]:
    """Trace the steps of whatever optimizer works meanwhile, the first few and no more."""
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(folder / TRACE)),
        record_shapes=True,
    ) as profiler:
        # The loop need not know of it: torch calls this after every step of every optimizer.
        handle = register_optimizer_step_post_hook(lambda *_: profiler.step())
        try:
            yield
        finally:
            handle.remove()

"""What one configuration needs: a learning rate, and as many images at once as fit into memory.

``aiornot probe --out runs/probe`` writes ``lr.png`` and ``probe.json``.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aiornot import storage
from aiornot.config import TrainConfig
from aiornot.training import finder, memory

PLOT = "lr.png"
REPORT = "probe.json"


def probe(
    config: TrainConfig,
    *,
    data: Path,
    device: torch.device,
    out: Path,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Measure both, and write what was found into a folder.

    Args:
        config: Its ``lr``, ``epochs`` and ``micro_batch_size`` do not matter.
        data: A prepared file.
        device: Where to train; without a GPU memory is not measured.
        out: A folder, made if it is missing.
        progress: Told what is done, how far, and of how much.

    Returns:
        ``config``, ``lr`` (see ``finder.Found``), ``memory`` (see ``memory.Fit``) or None, and
        ``summary``, sentences.

    Raises:
        InputError: The configuration does not fit the data, the model or the device.
        WorkError: Not even one image fits into memory.
    """
    found = finder.find(
        config,
        data=data,
        device=device,
        progress=lambda done, total: progress("learning rates", done, total),
    )
    finder.plot(found, out / PLOT, title=f"{config.model}, batches of {config.batch_size}")
    fitted = None
    if device.type == "cuda":
        fitted = memory.fit(
            config,
            data=data,
            device=device,
            progress=lambda size: progress(f"{size} images at once", 0, 1),
        )
    report = {
        "config": config.to_dict(),
        "device": str(device),
        "lr": dataclasses.asdict(found),
        "memory": dataclasses.asdict(fitted) if fitted else None,
        "summary": [about_lr(found), about_memory(fitted, batch_size=config.batch_size)],
    }
    storage.write_text(str(out / REPORT), json.dumps(report, allow_nan=False) + "\n")
    return report


def about_lr(found: finder.Found) -> str:
    if found.suggestion is None:
        return "lr: no suggestion, for the loss did not fall at any rate"
    weak = ", which is too little to rely on" if found.fall < finder.WEAK else ""
    return f"lr={found.suggestion:.2g}: meanwhile the loss fell by {found.fall:.1%}{weak}"


def about_memory(fitted: memory.Fit | None, *, batch_size: int) -> str:
    if fitted is None:
        return f"micro_batch_size: not measured, for {memory.NEEDS_GPU}"
    used = f"{storage.spoken(fitted.peak)} of {storage.spoken(fitted.free)} free"
    if fitted.micro_batch == batch_size:
        return f"micro_batch_size: not needed, all {batch_size} images fit at once ({used})"
    return f"micro_batch_size={fitted.micro_batch}: of {batch_size} images so many fit ({used})"

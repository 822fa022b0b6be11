"""A snapshot of a run in a folder: what a checkpoint holds, and how a run goes on from it.

Weights are safetensors, the rest loads with ``weights_only=True``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from aiornot.config import InputError
from aiornot.data import hdf5
from aiornot.training.run import Run

WEIGHTS = "model.safetensors"
STATE = "state.pt"
METRICS = "metrics.json"
DESCRIPTION = "training.json"


def save(run: Run, folder: Path) -> None:
    """Write a run between two ticks into an existing folder."""
    kept = run.ema.module if run.ema is not None else run.module
    save_file(_contiguous(kept.state_dict()), folder / WEIGHTS)
    state = {
        "tick": run.tick,
        "best": run.best,
        "best_tick": run.best_tick,
        "micro_batch": run.micro_batch,
        "model": run.module.state_dict() if run.ema is not None else None,
        "optimizer": run.adamw.state_dict(),
        "schedule": run.schedule.state_dict(),
        "scaler": run.scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
    }
    torch.save(state, folder / STATE)
    (folder / METRICS).write_text(json.dumps(run.reported), encoding="utf-8")
    (folder / DESCRIPTION).write_text(json.dumps(describe(run), indent=1), encoding="utf-8")


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors stores plain memory; channels-last weights are not contiguous."""
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def describe(run: Run) -> dict[str, Any]:
    """Return what is needed to use the weights elsewhere: configuration, input, data."""
    attributes = hdf5.attributes(run.data)
    return {
        "config": run.config.to_dict(),
        "mean": run.mean.tolist(),
        "std": run.std.tolist(),
        "size": run.train_split.size,
        "num_train": len(run.train_split),
        "pretrained_cfg": _plain(getattr(run.module, "pretrained_cfg", {})),
        "data": {key: value for key, value in attributes.items() if key != "schema_version"},
        "effective_lr": sorted({group["max_lr"] for group in run.adamw.param_groups}),
    }


def _plain(values: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in dict(values).items()
        if isinstance(value, str | int | float | bool | list | tuple)
    }


def resume(run: Run, folder: Path) -> None:
    """Bring a run that was just made to where another one was saved.

    Raises:
        InputError: It was of another configuration.
    """
    saved = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["config"]
    if saved != run.config.to_dict():
        changed = [key for key, value in run.config.to_dict().items() if saved.get(key) != value]
        raise InputError(
            f"{folder} was trained with other values of {', '.join(changed)}; "
            "give the same values, or start in another folder"
        )
    state = torch.load(folder / STATE, map_location=run.device, weights_only=True)
    weights = load_file(folder / WEIGHTS, device=str(run.device))
    if run.ema is not None:
        run.ema.module.load_state_dict(weights)
        weights = state["model"]
    run.module.load_state_dict(weights)
    run.adamw.load_state_dict(state["optimizer"])
    run.schedule.load_state_dict(state["schedule"])
    run.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"].cpu())
    if state["cuda_rng"] is not None:
        torch.cuda.set_rng_state(state["cuda_rng"].cpu(), run.device)
    run.tick, run.best, run.best_tick = state["tick"], state["best"], state["best_tick"]
    run.micro_batch = state["micro_batch"]
    run.reported = json.loads((folder / METRICS).read_text(encoding="utf-8"))

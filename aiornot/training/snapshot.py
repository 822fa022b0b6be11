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
from aiornot.training import ranks
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
    (folder / METRICS).write_text(json.dumps(run.reports), encoding="utf-8")
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
        "effective": effective(run),
    }


def effective(run: Run) -> dict[str, Any]:
    """Return what the run really trains with, read back from what was built and not from the
    configuration: each learning rate with the parameters that have it, batch, strengths.
    """
    rates: dict[str, int] = {}
    for group in run.adamw.param_groups:
        # What thaws later counts too. Not every schedule has a peak.
        peak = f"{group.get('max_lr', group['lr']):.6g}"
        rates[peak] = rates.get(peak, 0) + sum(each.numel() for each in group["params"])
    return {
        "parameters_by_lr": rates,
        "weight_decay": sorted({group["weight_decay"] for group in run.adamw.param_groups}),
        "parameters": sum(each.numel() for each in run.module.parameters()),
        "batch_size": run.config.batch_size // ranks.world_size() * ranks.world_size(),
        "micro_batch_size": run.micro_batch,
        "workers": ranks.world_size(),
        "num_train": len(run.train_split),
        "num_steps": run.num_steps,
        "dtype": str(run.dtype).removeprefix("torch."),
        "augmentation": run.strengths.named(),
        "ema_decay": run.ema.decay if run.ema is not None else 0.0,
    }


def _plain(values: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in dict(values).items()
        if isinstance(value, str | int | float | bool | list | tuple)
    }


def read_description(folder: Path) -> dict[str, Any]:
    """Return what ``describe`` said when a checkpoint was written."""
    return dict(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")))


def resume(run: Run, folder: Path) -> None:
    """Bring a run that was just made to where another one was saved.

    Raises:
        InputError: It was of another configuration.
    """
    saved = read_description(folder)["config"]
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
    run.reports = json.loads((folder / METRICS).read_text(encoding="utf-8"))

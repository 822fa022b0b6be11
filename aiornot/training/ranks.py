"""The ranks of a run: one process alone, or several that share each batch.

Every function works in a process that belongs to no group, where it costs nothing.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def rank() -> int:
    """Return the number of this process among the ranks, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """Return what to call for the forward pass: DDP where there are several ranks."""
    if world_size() == 1:
        return module
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


def synchronised(parallel: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Have DDP exchange gradients once per batch, with its last micro-batch."""
    if last or world_size() == 1:
        return nullcontext()
    return parallel.no_sync()  # type: ignore[operator, no-any-return]


def mean(value: torch.Tensor) -> float:
    """Return the mean over the ranks of a tensor (); the host waits for it."""
    if world_size() > 1:
        dist.all_reduce(value)
        value = value / world_size()
    return float(value)


def share_buffers(module: nn.Module) -> None:
    """Give every rank rank 0's batch statistics, which are those that the checkpoint holds."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather(values: torch.Tensor) -> torch.Tensor:
    """Concatenate the equally long (n,) tensors of all ranks."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)

"""Real trainings, one per configuration, side by side in one tensor: AdamW under one cycle."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aiornot.config import TICKS
from benchmarks.search.nets import Net, Params

Array: TypeAlias = NDArray[Any]

BATCH = 32
WARM_UP = 0.3
"""Share of the schedule until the learning rate is highest; it starts at a 25th of that."""

DEPTH = 4
"""How many layers lie between the two that are trained, to ``layer_decay``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Of each of M configurations: tensors (M,)."""

    lr: Tensor
    weight_decay: Tensor
    label_smoothing: Tensor
    layer_decay: Tensor


@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs (N, D) and labels (N,); those of train are (copies, N, D)."""

    inputs: Tensor
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class Curves:
    """What was measured of M configurations."""

    val: Array
    """AUROC on val at each tick, (M, 16); 0 where an output was not finite."""
    small: Array
    """The same on the first quarter of val."""
    train: Array
    """AUROC on train at the end, (M,)."""
    test: Array
    """AUROC on test of the weights at the best tick, (M,); NaN where there is no test."""


def train(
    net: Net,
    recipe: Recipe,
    *,
    epochs: int,
    seed: int,
    train: Examples,
    val: Examples,
    test: Examples | None,
) -> Curves:
    """Train all configurations; they share the initial weights and the order of the images."""
    generator = torch.Generator().manual_seed(1000 * seed + 7)
    count = len(recipe.lr)
    params = [each.requires_grad_() for each in net.init(count, generator)]
    best = [each.detach().clone() for each in params]
    adam = _Adam(params, recipe)
    batches = [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(len(train.labels), generator=generator).split(BATCH)
        if len(batch) == BATCH
    ]
    marks = {round(len(batches) * (tick + 1) / TICKS): tick for tick in range(TICKS)}
    curves, small = np.zeros((count, TICKS)), np.zeros((count, TICKS))
    quarter = len(val.labels) // 4
    for step, batch in enumerate(batches, 1):
        copy = torch.randint(len(train.inputs), (1,), generator=generator).item()
        logits = net.forward(params, train.inputs[copy, batch])
        loss = _loss(logits, train.labels[batch], recipe.label_smoothing)
        adam.step(torch.autograd.grad(loss, params), share=step / len(batches))
        if step in marks:
            tick = marks[step]
            with torch.no_grad():
                outputs = net.forward(params, val.inputs)
            curves[:, tick] = auroc(outputs, val.labels)
            small[:, tick] = auroc(outputs[:, :quarter], val.labels[:quarter])
            better = curves[:, tick] >= curves.max(1)
            _keep(best, params, torch.from_numpy(better))
    with torch.no_grad():
        fitted = auroc(net.forward(params, train.inputs[0]), train.labels)
        tested = auroc(net.forward(best, test.inputs), test.labels) if test else fitted * np.nan
    return Curves(curves, small, fitted, tested)


def _loss(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Sum of the configurations' mean losses: none has a gradient of another's."""
    soft = smoothing[:, None]
    targets = labels[None] * (1 - soft) + soft / 2
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.mean(1).sum()


def _keep(best: Params, params: Params, better: Tensor) -> None:
    with torch.no_grad():
        for kept, now in zip(best, params, strict=True):
            kept[better] = now[better]


class _Adam:
    """AdamW with a learning rate, a decay and a layer's factor per configuration."""

    def __init__(self, params: Params, recipe: Recipe) -> None:
        self._params = params
        self._mean = [torch.zeros_like(each) for each in params]
        self._square = [torch.zeros_like(each) for each in params]
        self._steps = 0
        layers = len(params) // 2
        factors = [
            recipe.layer_decay ** (DEPTH * (layers - 1 - i) / (layers - 1)) for i in range(layers)
        ]
        self._lr = [(recipe.lr * factors[i // 2]).view(-1, 1, 1) for i in range(len(params))]
        self._decay = recipe.weight_decay.view(-1, 1, 1)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], *, share: float) -> None:
        self._steps += 1
        torch._foreach_lerp_(self._mean, gradients, 0.1)
        torch._foreach_mul_(self._square, 0.99)
        torch._foreach_addcmul_(self._square, gradients, gradients, 0.01)
        roots = torch._foreach_sqrt(self._square)
        torch._foreach_mul_(roots, 1 / math.sqrt(1 - 0.99**self._steps))
        torch._foreach_add_(roots, 1e-8)
        updates = torch._foreach_div(self._mean, roots)
        bias = 1 - 0.9**self._steps
        for param, update, lr in zip(self._params, updates, self._lr, strict=True):
            now = lr * one_cycle(share)
            param.mul_(1 - now * self._decay).sub_(update.mul_(now / bias))


def one_cycle(share: float) -> float:
    """Return the learning rate as a share of the highest, after a share of the schedule."""
    if share < WARM_UP:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * share / WARM_UP)) / 2
    return (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2


def auroc(scores: Tensor, labels: Tensor) -> Array:
    """Return the AUROC of each row of scores (M, N); 0 where one is not finite."""
    ranks = scores.argsort(1).argsort(1).float() + 1
    positive = labels > 0.5
    above = positive.sum()
    area = ranks[:, positive].sum(1) - above * (above + 1) / 2
    found = area / (above * (len(labels) - above))
    found[~torch.isfinite(scores).all(1)] = 0.0
    return found.double().numpy()

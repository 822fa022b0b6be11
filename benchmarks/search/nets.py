"""Small networks, many at a time: every parameter has a leading axis M, one per configuration.

One network sees frozen features through a hidden layer; four are trained from pixels on.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Params: TypeAlias = list[Tensor]


@dataclasses.dataclass(frozen=True)
class Net:
    """A network's parameters, all but the biases' shapes, and what it computes."""

    shapes: tuple[tuple[int, int], ...]
    """(inputs, outputs) of each layer; the last has one output."""
    forward: Callable[[Params, Tensor], Tensor]
    """Weights and biases in turn, (M, inputs, outputs) and (M, 1, outputs), and a batch (B, D):
    logits (M, B)."""

    def init(self, count: int, generator: torch.Generator) -> Params:
        """Return the same initial parameters for each of ``count`` configurations."""
        params: Params = []
        for inputs, outputs in self.shapes:
            weight = torch.randn(inputs, outputs, generator=generator) * math.sqrt(2 / inputs)
            params += [weight.expand(count, -1, -1).clone(), torch.zeros(count, 1, outputs)]
        return params


def make(kind: str, *, num_inputs: int, width: int) -> Net:
    """Return a network for inputs (B, ``num_inputs``); pixels are those of square images."""
    return {"head": _head, "mlp": _head, "deep": _deep, "conv": _conv, "mixer": _mixer}[kind](
        num_inputs, width
    )


def _linear(params: Params, layer: int, inputs: Tensor) -> Tensor:
    weight, bias = params[2 * layer], params[2 * layer + 1]
    if inputs.dim() == 2:
        inputs = inputs.expand(len(weight), -1, -1)
    return torch.baddbmm(bias, inputs, weight)


def _head(num_inputs: int, width: int) -> Net:
    def forward(params: Params, batch: Tensor) -> Tensor:
        return _linear(params, 1, torch.relu(_linear(params, 0, batch)))[..., 0]

    return Net(((num_inputs, width), (width, 1)), forward)


def _deep(num_inputs: int, width: int) -> Net:
    def forward(params: Params, batch: Tensor) -> Tensor:
        first = torch.relu(_linear(params, 0, batch))
        second = first + torch.relu(_linear(params, 1, first))
        return _linear(params, 2, second)[..., 0]

    return Net(((num_inputs, width), (width, width), (width, 1)), forward)


def _conv(num_inputs: int, width: int) -> Net:
    """Filters of 4 x 4, four pixels apart, and a linear layer over their answers."""
    channels = width // 2
    places = num_inputs // 16

    def forward(params: Params, batch: Tensor) -> Tensor:
        answers = torch.relu(_linear(params, 0, _blocks(batch)))
        return _linear(params, 1, answers.reshape(len(answers), len(batch), -1))[..., 0]

    return Net(((16, channels), (places * channels, 1)), forward)


def _mixer(num_inputs: int, width: int) -> Net:
    """Embedded blocks of 4 x 4, mixed across places, then a hidden layer over their mean."""
    channels = width // 2
    places = num_inputs // 16

    def forward(params: Params, batch: Tensor) -> Tensor:
        embedded = _linear(params, 0, _blocks(batch))
        count = len(embedded)
        by_place = embedded.view(count, len(batch), places, channels).transpose(2, 3)
        mixed = torch.relu(_linear(params, 1, by_place.reshape(count, -1, places)))
        mixed = mixed.view(count, len(batch), channels, places).mean(3)
        return _linear(params, 3, torch.relu(_linear(params, 2, mixed)))[..., 0]

    return Net(((16, channels), (places, places), (channels, width), (width, 1)), forward)


def _blocks(batch: Tensor) -> Tensor:
    """Cut square images (B, S * S) into blocks of 4 x 4: (B * places, 16)."""
    side = math.isqrt(batch.shape[1])
    cut = batch.view(len(batch), side // 4, 4, side // 4, 4).transpose(2, 3)
    return cut.reshape(-1, 16)

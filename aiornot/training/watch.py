"""A look inside single optimizer steps: gradients, activations, and how far the weights move.

``aiornot train --watch 1,8,16`` looks at the last step of these ticks. Everything is computed on
the device and read once, when the tick is measured anyway; nothing of the training changes by it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aiornot import storage
from aiornot.training import ranks
from aiornot.training.run import Run

BINS = 64
LOW, HIGH = -12.0, 4.0
EDGES = [LOW + (HIGH - LOW) * edge / BINS for edge in range(BINS + 1)]
"""Of log10 of the magnitudes: a quarter of a decade each. Bins that are the same for all layers,
ticks and runs can be compared, and need no range, for which the host would wait."""

SAMPLE = 2**13
"""About as many values of a tensor are counted: a share of 1 % is then known to .1 %."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram:
    """Magnitudes of the numbers of a tensor, or of a sample of them."""

    counts: list[int]
    """(BINS,) how many have their log10 between two of ``EDGES``."""
    zeros: int
    """How many are 0, or too small for the first bin."""
    beyond: int
    """How many are too large for the last bin, infinite or no number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What was seen of one optimizer step. A layer is named as in the model."""

    tick: int
    step: int
    """Which optimizer step it was, counted from 1."""
    lr: float
    grad_norm: float | None
    """Of all gradients, before clipping; None if it is not finite."""
    skipped: bool
    """Whether the gradient scaler left the weights alone, for gradients that are not finite."""
    update_ratio: dict[str, float | None]
    """By parameter tensor: RMS of what the step changed, weight decay included, over the RMS of the
    weights; None where these were all 0."""
    gradients: dict[str, Histogram]
    """By weight tensor of two or more dimensions, before clipping."""
    activations: dict[str, Histogram]
    """By module without submodules, in the order of the forward pass: what it gave last."""
    modules: dict[str, str]
    """The classes of these modules."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """At which ticks to look inside, and what to do with what is found."""

    ticks: frozenset[int]
    keep: Callable[[Findings], None]
    """Called on rank 0, before the tick is reported."""

    def probe(self, tick: int) -> "Probe | None":
        """Return what looks inside the last step of a tick, or None where nobody does."""
        # What it computes is the same on every rank or of this rank alone: no one else is needed.
        return Probe() if tick in self.ticks and ranks.rank() == 0 else None


class Probe:
    """Looks at one optimizer step: ``looking`` round the forward pass, ``before`` and ``after``."""

    def __init__(self) -> None:
        self._activations: dict[str, torch.Tensor] = {}
        self._gradients: dict[str, torch.Tensor] = {}
        self._modules: dict[str, str] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self._ratios: dict[str, torch.Tensor] = {}
        self._norm = torch.zeros(())
        self._lr = 0.0

    @contextmanager
    def looking(self, module: nn.Module) -> Iterator[None]:
        """Count what every module without submodules gives, meanwhile."""
        leaves = [
            (name, leaf)
            for name, leaf in module.named_modules()
            if not list(leaf.children()) and not isinstance(leaf, nn.Identity)
        ]
        handles = [leaf.register_forward_hook(self._hook(name)) for name, leaf in leaves]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                self._activations[name] = magnitudes(output)
                self._modules[name] = type(module).__name__

        return hook

    @torch.no_grad()
    def before(self, run: Run) -> None:
        """Look at gradients and weights, before clipping and before the optimizer."""
        learning = {k: p for k, p in run.module.named_parameters() if p.grad is not None}
        gradients = {name: p.grad for name, p in learning.items() if p.grad is not None}
        # Clipping has taken the scale of fp16 out of them; without it the optimizer does so.
        scale = torch.ones((), device=run.device)
        if run.config.clip_grad is None:
            scale = run.scaler.scale(scale)
        self._norm = nn.utils.get_total_norm(gradients.values()) / scale
        for name, gradient in gradients.items():
            if gradient.ndim > 1:
                self._gradients[name.removesuffix(".weight")] = magnitudes(gradient / scale)
        self._weights = {name: parameter.clone() for name, parameter in learning.items()}
        self._lr = run.adamw.param_groups[-1]["lr"]

    @torch.no_grad()
    def after(self, run: Run) -> None:
        """Look at how far the weights have moved, after the optimizer."""
        moved = dict(run.module.named_parameters())
        for name, old in self._weights.items():
            self._ratios[name] = (moved[name] - old).norm() / old.norm()
        self._weights.clear()

    def findings(self, run: Run) -> Findings:
        """Return what was seen; the host waits for it here."""
        norm, *ratios = torch.stack([self._norm, *self._ratios.values()]).tolist()
        counts = torch.stack([*self._gradients.values(), *self._activations.values()]).tolist()
        histograms = [Histogram(counts=c[:BINS], zeros=c[-2], beyond=c[-1]) for c in counts]
        count = len(self._gradients)
        return Findings(
            tick=run.tick,
            step=run.end_of(run.tick),
            lr=self._lr,
            grad_norm=_finite(norm),
            skipped=run.scaler.is_enabled() and not math.isfinite(norm),
            update_ratio=dict(zip(self._ratios, map(_finite, ratios), strict=True)),
            gradients=dict(zip(self._gradients, histograms[:count], strict=True)),
            activations=dict(zip(self._activations, histograms[count:], strict=True)),
            modules=self._modules,
        )


@torch.no_grad()
def magnitudes(values: torch.Tensor) -> torch.Tensor:
    """Count log10 of magnitudes: (BINS + 2,) int64, bins, zeros and what is beyond the last."""
    logs = sample(values.detach()).float().abs().log10_()
    zeros = (logs < LOW).sum()
    counts = torch.histc(logs, BINS, LOW, HIGH).to(torch.int64)  # leaves out what is outside
    beyond = logs.numel() - counts.sum() - zeros
    return torch.cat([counts, zeros[None], beyond[None]])


def sample(values: torch.Tensor) -> torch.Tensor:
    """Return (n,) values, evenly spread over all: every one, or ``SAMPLE`` and a few more."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)  # as they lie in memory: nothing is copied
    count = values.numel()
    every = max(1, count // SAMPLE)
    while math.gcd(every, count) > 1:  # or it would meet the same channels again and again
        every -= 1
    return values.reshape(-1)[::every]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def save(findings: Findings, folder: Path) -> Path:
    """Write what was found as ``tick_08.json`` into a folder, and return where that is."""
    path = _path(folder, findings.tick)
    text = json.dumps(dataclasses.asdict(findings) | {"log10_edges": EDGES}, allow_nan=False)
    storage.write_text(str(path), text + "\n")
    return path


def logged(folder: Path, tick: int) -> dict[str, float | Histogram]:
    """Return what ``save`` wrote of a tick, by the names under which it is tracked.

    Nothing, if it wrote nothing. Ratios are of the layers' weights, without biases and norms.
    """
    path = _path(folder, tick)
    if not path.is_file():
        return {}
    found = load(path)
    ratios = {name.removesuffix(".weight"): ratio for name, ratio in found.update_ratio.items()}
    named: dict[str, float | Histogram | None] = {"probe/grad_norm": found.grad_norm}
    named |= {f"probe/update_ratio/{layer}": ratios[layer] for layer in found.gradients}
    named |= {f"probe/grad/{layer}": one for layer, one in found.gradients.items()}
    named |= {f"probe/act/{layer}": one for layer, one in found.activations.items()}
    return {name: value for name, value in named.items() if value is not None}


def clear(folder: Path) -> None:
    """Remove what ``save`` and a picture beside it left in a folder, if it is there."""
    for path in folder.glob("tick_[0-9][0-9].*"):
        path.unlink()


def load(path: Path) -> Findings:
    """Read what ``save`` wrote."""
    read = json.loads(path.read_text(encoding="utf-8"))
    del read["log10_edges"]
    for kind in ("gradients", "activations"):
        read[kind] = {name: Histogram(**one) for name, one in read[kind].items()}
    return Findings(**read)


def _path(folder: Path, tick: int) -> Path:
    return folder / f"tick_{tick:02d}.json"

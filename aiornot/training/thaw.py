"""Gradual unfreezing: the head learns alone at first, then the model thaws from head to stem.

``aiornot train --set unfreeze=0.3`` has all of the model learning after 30 % of the steps.
"""

import dataclasses

from timm.models._manipulate import group_with_matcher
from torch import nn

from aiornot.config import InputError, TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What thaws at once: one stage of the network, such as ``layer4`` of a ResNet."""

    parameters: tuple[nn.Parameter, ...]
    norms: tuple[nn.Module, ...]
    """Those with running statistics."""


class Thaw:
    """Holds frozen what must not learn yet: a function of the step alone, so it resumes exactly.

    Call ``at`` before every optimizer step. Until then all learns, and it must: the optimizer's
    groups are made first, because timm's layer decay miscounts the layers of a frozen model.

    A frozen parameter requires no gradient and so has none, which is what makes AdamW leave it
    alone, weight decay included; the gradients must be cleared with ``set_to_none``. A frozen
    batch norm is in evaluation mode; dropout and stochastic depth go on. The learning rates stay
    those of the one-cycle schedule: what thaws late starts at the rate of that step.

    DistributedDataParallel waits for the gradients of all that required them when it was built.
    It is to be built anew whenever ``at`` returns True, on every rank, which is so at the same
    step (masking gradients instead would cost the whole backward pass and its traffic).
    """

    def __init__(self, module: nn.Module, config: TrainConfig, *, num_steps: int) -> None:
        self._parts = parts(module) if config.unfreeze else []
        # With integers, no rounding error moves a step.
        self._thaw_steps = max(1, round(config.unfreeze * num_steps))
        self._num_frozen = 0

    def at(self, step: int) -> bool:
        """Freeze and thaw for an optimizer step; return whether that changed what learns."""
        num_frozen = len(self._parts) - self._num_thawed(step)
        changed = num_frozen != self._num_frozen
        if changed or self._has_woken():
            self._num_frozen = num_frozen
            for index, part in enumerate(self._parts):
                _set(part, learns=index >= num_frozen)
        return changed

    def _num_thawed(self, step: int) -> int:
        return min(len(self._parts), step * len(self._parts) // self._thaw_steps)

    def _has_woken(self) -> bool:
        """Whether ``module.train()`` was called meanwhile: it reaches frozen norms too."""
        frozen = self._parts[: self._num_frozen]
        return any(part.norms[0].training for part in frozen if part.norms)


def _set(part: Part, *, learns: bool) -> None:
    for parameter in part.parameters:
        parameter.requires_grad_(learns)
    for norm in part.norms:
        norm.train(learns)


def parts(module: nn.Module) -> list[Part]:
    """Return what lies below the head, from the stem on, in the stages that timm names.

    Raises:
        InputError: timm does not say which layers the model has.
    """
    try:
        matcher = module.group_matcher(coarse=True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        raise InputError(
            f"unfreeze needs the stages of {type(module).__name__}, which timm does not name; "
            "leave it at 0"
        ) from None
    # Buffers too: a norm may have statistics and no parameters.
    names = ((name, None) for name in module.state_dict())
    stage_of = group_with_matcher(names, matcher, reverse=True)
    head = max(stage_of.values())
    found = [_part(module, stage_of, stage) for stage in range(head)]
    return [part for part in found if part.parameters]


def _part(module: nn.Module, stage_of: dict[str, int], stage: int) -> Part:
    return Part(
        parameters=tuple(
            parameter for name, parameter in module.named_parameters() if stage_of[name] == stage
        ),
        norms=tuple(
            norm
            for name, norm in module.named_modules()
            if stage_of.get(f"{name}.running_mean") == stage
        ),
    )

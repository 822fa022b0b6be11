"""Twins: trials of different configurations whose first losses are equal to the last bit.

Then what they differ in did not reach the training: a hyper-parameter that nothing reads, as the
label smoothing of the notebook that we started from. ``aiornot tune`` says so as it runs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiornot.tuning.ledger import Trial

FIRST_LOSSES = ("train/loss", "val/log_loss")

SWITCHES = {
    "crop_scale": "random_resized_crop",
    "sharpness_factor": "sharpness",
    "rescale_min": "rescale",
    "blur_sigma": "blur",
    "jpeg_quality": "jpeg",
}
"""What switches a hyper-parameter on: without it, nothing is to be read."""


class Alarm:
    """An observer of a stage's ledger.

    Args:
        trials: Those recorded so far.
        say: Told of every new pair.
    """

    def __init__(self, trials: Sequence[Trial], say: Callable[[str], None]) -> None:
        self._seen: dict[tuple[float, ...], Trial] = {}
        self._say = say
        for trial in trials:
            if trial.ticks:
                self._seen.setdefault(_first_losses(trial), trial)

    def begin(self, trial: Trial) -> None:
        pass

    def tick(self, trial: Trial, metrics: dict[str, Any]) -> None:
        if len(trial.ticks) > 1:
            return
        other = self._seen.setdefault(_first_losses(trial), trial)
        if other.id != trial.id and (names := differences(trial, other)):
            self._say(
                f"{trial.id} and {other.id} differ in {', '.join(names)}, yet their first losses "
                "are equal to the last bit: it does not seem to reach the training"
            )

    def end(self, trial: Trial) -> None:
        pass


def _first_losses(trial: Trial) -> tuple[float, ...]:
    # A diverged trial has no losses, and NaN is equal to nothing.
    return tuple(float(trial.ticks[0].get(name, float("nan"))) for name in FIRST_LOSSES)


def differences(one: Trial, other: Trial) -> list[str]:
    """Return the hyper-parameters in which two trials differ, less what is off in both."""
    names = sorted(one.config.keys() | other.config.keys())
    return [
        name
        for name in names
        if one.config.get(name) != other.config.get(name)
        and any(_is_on(name, trial.config) for trial in (one, other))
    ]


def _is_on(name: str, config: Mapping[str, Any]) -> bool:
    return name not in SWITCHES or bool(config.get(SWITCHES[name]))

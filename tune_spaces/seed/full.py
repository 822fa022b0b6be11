"""Seed 5: six candidates on all of the data, each for its own number of epochs.

Asks    Which candidate is best at full size?
Spends  6 trials on the full profile; nothing is stopped early.
        Beside them one control of few's middle, and the notebook's baseline.
Run     aiornot tune seed --data data/prepared
Found   -
"""

from aiornot.tuning.space import Budget, Stage

from . import few as parent

stage = Stage(
    name="full",
    after=parent.stage,
    data="full",
    enqueue=6,
    controls=1,
    baseline={"model": "resnet18.a1_in1k"},
    budget=Budget(num_trials=6),
)

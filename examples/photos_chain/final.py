"""Final: the best configuration once more as a Ray Train run, with a second seed.

Asks    Was it the configuration or the seed?
Spends  1 trial, 12 epochs.
Run     make photos
Found   -
"""

from aiornot.tuning.space import Budget, Stage

from . import exploit as parent

stage = Stage(
    name="final",
    after=parent.stage,
    data="full",
    enqueue=1,
    seeds=(1,),
    budget=Budget(num_trials=1, epochs=12),
)

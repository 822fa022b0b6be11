"""Final: the chosen candidate once more, with a second seed.

Asks    Was it the configuration or the seed?
Spends  1 trial on the full profile, 5 epochs.
        Beside it the baseline with that seed, too.
Run     aiornot tune demo --data demo/prepared
Found   2026-11-22: seed 1 gives val .932, test .918 [.898, .937]; seed 0 gave val .896.
"""

from aiornot.tuning.space import Budget, Stage

from . import full as parent

stage = Stage(
    name="final",
    after=parent.stage,
    data="full",
    enqueue=1,
    seeds=(1,),
    baseline=parent.stage.baseline,
    budget=Budget(num_trials=1, epochs=5),
)

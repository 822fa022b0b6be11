"""Fast 4, final: the chosen candidate once more, with a second seed.

Asks    Was it the configuration or the seed?
Spends  1 trial on the full profile.
        Beside it the baseline with that seed, too.
Run     aiornot tune fast --data data/prepared
Found   -
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
    budget=Budget(num_trials=1),
)

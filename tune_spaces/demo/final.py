"""Final: the chosen candidate once more, with a second seed.

Asks    Was it the configuration or the seed?
Spends  1 trial on the full profile, 5 epochs.
        Beside it the baseline with that seed, too.
Run     aiornot tune demo --data demo/prepared
Found   2026-11-28: val .936, baseline .918; on test .929 and .921, +.008 [-.000, .017].
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

"""Fast 3, full: two candidates on all of the data, each a Ray Train run.

Asks    Which candidate is best at full size, and is it one of the short or of the long trainings?
Spends  2 trials on the full profile, the best of explore and exploit together, each for its own
        number of epochs; nothing is stopped early.
        Beside them one control of their middle, and the notebook's baseline.
Run     aiornot tune fast --data data/prepared
Found   -
"""

from aiornot.tuning.space import Budget, Stage

from . import exploit as parent

stage = Stage(
    name="full",
    after=parent.stage,
    data="full",
    enqueue=2,
    pick_from="searches",
    controls=1,
    baseline={"model": "resnet18.a1_in1k", "epochs": 16},
    budget=Budget(num_trials=2),
)

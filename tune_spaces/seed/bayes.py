"""Seed 3: Bayesian search in the box round the best of the random search with augmentation.

Asks    Within the good region, what is the best configuration?
Spends  32 trials on the reduced profile, 2 to 20 epochs each; TPE proposes, ASHA stops.
        Beside them 2 controls: configurations that random_augment ranked in its middle and low.
Run     aiornot tune seed --data data/prepared
Found   -
"""

from aiornot.tuning.space import Budget, Stage, narrowed

from . import random_augment as parent

stage = Stage(
    name="bayes",
    after=parent.stage,
    space=narrowed(parent.stage.space),
    only_for=parent.stage.only_for,
    fixed=parent.stage.fixed,
    sampler="tpe",
    data="reduced",
    enqueue=2,
    controls=2,
    budget=Budget(num_trials=32),
)

"""Seed 2: random search in the narrowed space, now with augmentation.

Asks    Which augmentation, and how much of it, helps the good configurations?
Spends  32 trials on the reduced profile, 2 to 20 epochs each; ASHA keeps one in four.
Run     aiornot tune seed --data data/prepared
Found   -
"""

from aiornot.tuning.space import Budget, Stage, choice, narrowed, uniform

from . import random_plain as parent

stage = Stage(
    name="random_augment",
    after=parent.stage,
    space={
        **narrowed(parent.stage.space),
        "degrees": uniform(0.0, 45.0),
        "brightness": uniform(0.0, 0.4),
        "contrast": uniform(0.0, 0.4),
        "sharpness": uniform(0.0, 0.6),
        # The notebook drew one probability for both flips.
        "hflip": uniform(0.0, 0.5),
        "vflip": uniform(0.0, 0.5),
        "random_resized_crop": choice(False, True),
    },
    only_for=parent.stage.only_for,
    fixed=parent.stage.fixed,
    sampler="random",
    data="reduced",
    budget=Budget(num_trials=32),
)

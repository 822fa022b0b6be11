"""Explore: a few tiny models on crops of two photographs.

Asks    Can a small model tell photographs from their decoded twins, and at what learning rate?
Spends  6 trials, 12 epochs each on a few hundred crops; ASHA keeps one in four.
Run     make photos
Found   -
"""

from aiornot.tuning.space import Budget, Stage, choice, loguniform

stage = Stage(
    name="explore",
    space={
        "lr": loguniform(1e-3, 1e-2),
        "weight_decay": loguniform(1e-3, 1e-1),
        "hflip": choice(0.0, 0.5),
    },
    fixed={"model": "test_resnet.r160_in1k", "pretrained": False, "batch_size": 16},
    sampler="random",
    data="full",
    budget=Budget(num_trials=6, epochs=12, grace_period=4),
)

"""Explore: random search on the reduced stand-in data.

Asks    Which tiny model, and what order of learning rate, learns the trace at all?
Spends  12 trials on the reduced profile, at most 4 epochs each; ASHA keeps one in four.
Run     aiornot tune demo --data demo/prepared
Found   2026-11-22: test_resnet, lr .002 to .011: .895 to .900; test_byobnet stays below .62.
"""

from aiornot.tuning.space import Budget, Stage, choice, loguniform, uniform

stage = Stage(
    name="explore",
    space={
        "model": choice("test_resnet.r160_in1k", "test_byobnet.r160_in1k"),
        "lr": loguniform(1e-4, 1e-1),
        "weight_decay": loguniform(1e-3, 3e-1),
        "hflip": choice(0.0, 0.5),
        "label_smoothing": uniform(0.0, 0.1),
    },
    # The stand-in's classes are read from traces that no ImageNet weights know.
    fixed={"pretrained": False, "batch_size": 32},
    sampler="random",
    data="reduced",
    budget=Budget(num_trials=12, epochs=4, grace_period=4),
)

"""Explore: the chain of the cluster's tests, small but long enough to be interrupted.

Asks    Does a trial outlive the machine it runs on?
Spends  4 trials, nothing is stopped early.
Run     aiornot tune sweep --data /shared/prepared --storage /shared/runs
"""

from aiornot.tuning.space import Budget, Stage, choice

stage = Stage(
    name="explore",
    space={"lr": choice(1e-2, 5e-3, 3e-3, 1e-3)},
    first=({"lr": 1e-2}, {"lr": 5e-3}, {"lr": 3e-3}, {"lr": 1e-3}),
    fixed={"model": "test_resnet.r160_in1k", "pretrained": False, "batch_size": 16},
    sampler="random",
    budget=Budget(num_trials=4, epochs=16, grace_period=16),
)

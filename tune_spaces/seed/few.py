"""Seed 4: random search over a few parameters; the others stay at the best so far.

Asks    How fine must learning rate, weight decay and length be?
Spends  16 trials on the reduced profile, 2 to 20 epochs each; ASHA keeps one in four.
        Beside them 2 controls: configurations that bayes ranked in its middle and low.
Run     aiornot tune seed --data data/prepared
Found   -
"""

from aiornot.tuning.space import Budget, Stage, narrowed

from . import bayes as parent

stage = Stage(
    name="few",
    after=parent.stage,
    space=narrowed(
        {
            "lr": parent.stage.space["lr"],
            "weight_decay": parent.stage.space["weight_decay"],
            "label_smoothing": parent.stage.space["label_smoothing"],
            "epochs": parent.stage.space["epochs"],
        }
    ),
    fixed=parent.stage.fixed,
    sampler="random",
    data="reduced",
    enqueue=2,
    controls=2,
    budget=Budget(num_trials=16),
)

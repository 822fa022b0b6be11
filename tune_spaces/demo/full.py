"""Full: the two candidates of exploit on all of the data, each a Ray Train run.

Asks    Which candidate is better once it sees everything?
Spends  2 trials on the full profile, 5 epochs each; nothing is stopped early.
        Beside them one control of exploit's middle, and the baseline: a tiny model as it comes.
Run     aiornot tune demo --data demo/prepared
Found   2026-11-28: .902 and .903, the control .897, the baseline .902: one standard error is .016.
"""

from aiornot.tuning.space import Budget, Stage

from . import exploit as parent

stage = Stage(
    name="full",
    after=parent.stage,
    data="full",
    enqueue=2,
    controls=1,
    baseline={"model": "test_resnet.r160_in1k", "pretrained": False},
    budget=Budget(num_trials=2, epochs=5),
)

"""Final: two configurations side by side, each a Ray Train run on a machine of its own."""

from aiornot.tuning.space import Budget, Stage

from . import exploit as parent

stage = Stage(name="final", after=parent.stage, enqueue=2, budget=Budget(num_trials=2, epochs=16))

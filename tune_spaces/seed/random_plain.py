"""Seed 1: random search without augmentation, as in the notebook.

Asks    Which backbone, and what learning rate, without any augmentation?
Spends  48 trials on the reduced profile, 2 to 20 epochs each; ASHA keeps one in four.
Run     aiornot tune seed --data data/prepared
Found   -
"""

from aiornot.tuning.space import Budget, Stage, choice, loguniform, randint, uniform

# The notebook's names under their tags of today; a bare name now means other weights.
MODELS = (
    "resnet18.a1_in1k",
    "resnet50.a1_in1k",
    "convnext_tiny.fb_in22k",
    "convnext_small.fb_in22k",
    "efficientnet_b1.ra4_e3600_r240_in1k",
)

stage = Stage(
    name="random_plain",
    space={
        "model": choice(*MODELS),
        "global_pool": choice("avg", "catavgmax"),
        "lr": loguniform(1e-5, 1e-2),
        "label_smoothing": uniform(0.0, 0.1),
        "weight_decay": uniform(0.01, 0.2),
        "epochs": randint(2, 20),
        "clip_grad": choice(None, 0.5, 2.0, 5.0, 10.0),
    },
    # The notebook fell back to avg for ConvNeXt, whose head cannot grow wider; so do we.
    only_for={
        "global_pool": {
            "model": (
                "resnet18.a1_in1k",
                "resnet50.a1_in1k",
                "efficientnet_b1.ra4_e3600_r240_in1k",
            )
        }
    },
    fixed={"batch_size": 32},
    sampler="random",
    data="reduced",
    budget=Budget(num_trials=48),
)

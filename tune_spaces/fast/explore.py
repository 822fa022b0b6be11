"""Fast 1, explore: evenly spread points with early stopping; short trainings.

Asks    Which backbones and what order of learning rate deserve more compute?
Spends  64 trials on the reduced profile, at most 4 epochs each; ASHA keeps one in four, once, at
        tick 5: before, the learning rate still rises, and what is slow to start looks hopeless.
Run     aiornot tune fast --data data/prepared
Found   -
"""

from aiornot.tuning.space import Budget, Stage, choice, loguniform, uniform

stage = Stage(
    name="explore",
    # Few parameters: with each one more, fewer of the trials are near the best values of all.
    space={
        "model": choice(
            "resnet18.a1_in1k",
            "resnet50.a1_in1k",
            "regnety_004.tv2_in1k",
            "efficientnet_b1.ra4_e3600_r240_in1k",
            "tf_efficientnetv2_b0.in1k",
            "convnext_nano.in12k_ft_in1k",
            "convnext_tiny.fb_in22k",
        ),
        "lr": loguniform(1e-5, 1e-2),
        "weight_decay": uniform(0.01, 0.2),
        "clip_grad": choice(None, 1.0, 5.0),
        # Whether mirroring helps is seen in short trainings already, and may decide on the rest.
        "hflip": choice(0.0, 0.5),
    },
    fixed={"batch_size": 32},
    # The notebook's baseline first: whatever is found is compared with it.
    first=(
        {
            "model": "resnet18.a1_in1k",
            "lr": 1e-3,
            "weight_decay": 0.03,
            "clip_grad": None,
            "hflip": 0.0,
        },
    ),
    sampler="sobol",
    data="reduced",
    budget=Budget(num_trials=64, epochs=4, grace_period=5),
)

"""Fast 1, explore: random search with early stopping; short trainings without augmentation.

Asks    Which backbones and what order of learning rate deserve more compute?
Spends  56 trials on the reduced profile, at most 4 epochs each; ASHA keeps one in four, once, at
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
        "weight_decay": loguniform(1e-3, 2e-1),
        "label_smoothing": uniform(0.0, 0.1),
        "clip_grad": choice(None, 1.0, 5.0),
    },
    fixed={"batch_size": 32},
    # The notebook's baseline first: whatever is found is compared with it.
    first=(
        {
            "model": "resnet18.a1_in1k",
            "lr": 1e-3,
            "weight_decay": 0.03,
            "label_smoothing": 0.05,
            "clip_grad": None,
        },
    ),
    sampler="random",
    data="reduced",
    budget=Budget(num_trials=56, epochs=4, grace_period=5),
)

"""The configuration: the notebook's baseline, and nonsense refused in one sentence."""

import dataclasses
import math

import pytest

from aiornot.config import InputError, TrainConfig, parse_value


def refusal(**values: object) -> str:
    with pytest.raises(InputError) as caught:
        TrainConfig.from_dict(values)
    return str(caught.value)


def refused_setting(setting: str) -> str:
    with pytest.raises(InputError) as caught:
        TrainConfig.from_settings([setting])
    return str(caught.value)


def test_the_defaults_are_the_baseline_of_the_notebook():
    config = TrainConfig()
    assert config.model.startswith("resnet18.")
    assert config.pretrained
    assert (config.global_pool, config.epochs, config.batch_size) == ("avg", 5, 32)
    assert (config.lr, config.label_smoothing, config.weight_decay) == (1e-3, 0.05, 0.03)
    assert (config.train_fraction, config.seed) == (1.0, 0)


def test_what_the_notebook_does_not_do_is_off_by_default():
    config = TrainConfig()
    assert not config.random_resized_crop
    for name in ("hflip", "vflip", "degrees", "brightness", "contrast", "saturation", "hue"):
        assert getattr(config, name) == 0.0
    assert (config.sharpness, config.drop_rate, config.drop_path_rate) == (0.0, 0.0, 0.0)
    assert (config.layer_decay, config.clip_grad, config.ema_decay) == (1.0, None, None)


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().lr = 1.0


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    assert refusal(weight_deacy=0.1) == (
        "unknown hyper-parameter 'weight_deacy'; did you mean 'weight_decay'?"
    )


def test_a_name_near_to_nothing_is_refused_with_all_that_are_known():
    message = refusal(zzz=1)
    assert message.startswith("unknown hyper-parameter 'zzz'; known: batch_size, ")
    assert all(field.name in message for field in dataclasses.fields(TrainConfig))


def test_mistake_6_the_text_false_is_not_true():
    assert refusal(random_resized_crop="False") == (
        "random_resized_crop='False' must be true or false"
    )
    assert TrainConfig.from_settings(["random_resized_crop=False"]).random_resized_crop is False


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"pretrained": 1}, "true or false"),
        ({"epochs": 2.5}, "a whole number"),
        ({"epochs": True}, "a whole number"),
        ({"epochs": "3"}, "a whole number"),
        ({"lr": "1e-3"}, "a finite number"),
        ({"lr": True}, "a finite number"),
        ({"lr": None}, "a finite number"),
        ({"lr": math.nan}, "a finite number"),
        ({"lr": math.inf}, "a finite number"),
        ({"clip_grad": math.inf}, "a finite number or none"),
        ({"clip_grad": "1"}, "a finite number or none"),
        ({"model": 18}, "a text"),
        ({"model": None}, "a text"),
        ({"precision": "fp8"}, "one of auto, bf16, fp16, fp32"),
        ({"global_pool": "token"}, "one of avg, max, avgmax, catavgmax"),
    ],
)
def test_a_value_of_another_type_is_refused(values, word):
    ((name, value),) = values.items()
    assert refusal(**values) == f"{name}={value!r} must be {word}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("train_fraction", 0.0),
        ("train_fraction", 1.01),
        ("lr", 0.0),
        ("lr", -1e-3),
        ("pct_start", 1.0),
        ("weight_decay", -0.1),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("clip_grad", 0.0),
        ("label_smoothing", 1.0),
        ("ema_decay", 1.1),
        ("drop_rate", 1.0),
        ("seed", -1),
        ("seed", 2**31),
        ("hflip", 1.5),
        ("degrees", 181.0),
        ("crop_scale", 0.0),
        ("hue", 0.6),
    ],
)
def test_a_value_beyond_its_bounds_is_refused(name, value):
    message = refusal(**{name: value})
    assert message.startswith(f"{name}={value!r} must lie between ")


def test_a_whole_number_is_a_fine_number():
    assert TrainConfig.from_dict({"lr": 1, "degrees": 10}).lr == 1


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "3e-4", 3e-4),
        ("epochs", "7", 7),
        ("model", "test_vit.r160_in1k", "test_vit.r160_in1k"),
        ("model", "none", "none"),
        ("pretrained", "FALSE", False),
        ("clip_grad", "none", None),
        ("clip_grad", "0.5", 0.5),
        ("precision", "bf16", "bf16"),
    ],
)
def test_a_text_is_read_as_the_declared_type(name, text, value):
    found = parse_value(name, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr", "--set 'lr': write KEY=VALUE, for example --set lr=3e-4"),
        ("lr=abc", "lr=abc: expected a number"),
        ("lr=", "lr=: expected a number"),
        ("lr=none", "lr=none: expected a number"),
        ("lr=nan", "lr=nan must be a finite number"),
        ("epochs=2.5", "epochs=2.5: expected a whole number"),
        ("pretrained=yes", "pretrained=yes: write true or false"),
        ("pretrained=1", "pretrained=1: write true or false"),
        ("epoch=1", "unknown hyper-parameter 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_a_setting_that_cannot_be_read_is_refused_in_one_sentence(setting, message):
    assert refused_setting(setting) == message


def test_settings_change_what_they_name_and_nothing_else():
    config = TrainConfig.from_settings(["lr=3e-4", "hflip=0.5", "model=a=b"])
    assert config == TrainConfig(lr=3e-4, hflip=0.5, model="a=b")


def test_a_configuration_survives_the_way_through_a_dict():
    config = TrainConfig(lr=1 / 3, clip_grad=None, ema_decay=0.99, precision="bf16")
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert list(config.to_dict()) == [field.name for field in dataclasses.fields(TrainConfig)]

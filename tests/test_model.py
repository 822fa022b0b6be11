"""The model: its head, its parameter groups and their rates, and what is refused and how."""

import math
import socket

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F

from aiornot.config import InputError, TrainConfig
from aiornot.training import model

FAMILIES = [
    "resnet18",
    "resnet26d",
    "efficientnet_b0",
    "convnext_atto",
    "mobilenetv3_small_050",
    "regnety_002",
    "vit_tiny_patch16_224",
    "test_resnet",
    "test_byobnet",
    "test_convnext",
    "test_efficientnet",
    "test_vit",
]


def config(name: str = "test_resnet", **values: object) -> TrainConfig:
    return TrainConfig.from_dict({"model": name, "pretrained": False} | values)


def build(name: str = "test_resnet", *, size: int = 64, **values: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return model.build(config(name, **values), size=size)


def refusal(name: str, **values: object) -> str:
    with pytest.raises(InputError) as caught:
        model.check(config(name, **values), size=64)
    return str(caught.value)


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_in_exactly_one_group(name, layer_decay):
    module = build(name)
    groups = model.parameter_groups(module, config(name, layer_decay=layer_decay))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in module.parameters())


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_weight_decay_is_off_for_biases_and_norms_only(name, layer_decay):
    module = build(name)
    values = config(name, layer_decay=layer_decay, weight_decay=0.3)
    spared = module.no_weight_decay() if hasattr(module, "no_weight_decay") else set()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in model.parameter_groups(module, values):
        for parameter in group["params"]:
            plain = parameter.ndim <= 1 or names[id(parameter)] in spared
            assert group["weight_decay"] == (0.0 if plain else 0.3), names[id(parameter)]


def test_what_timm_spares_from_weight_decay_is_spared():
    module = build("test_vit")
    decayed = [
        parameter
        for group in model.parameter_groups(module, config("test_vit", weight_decay=0.3))
        for parameter in group["params"]
        if group["weight_decay"]
    ]
    assert all(parameter is not module.pos_embed for parameter in decayed)


def rates(module: torch.nn.Module, adamw: torch.optim.AdamW, key: str) -> dict[str, float]:
    """Return a value of the group that each named parameter is in."""
    where = {id(p): group[key] for group in adamw.param_groups for p in group["params"]}
    return {name: where[id(parameter)] for name, parameter in module.named_parameters()}


def test_layer_decay_lowers_the_rate_itself_and_not_a_scale_that_torch_ignores():
    values = config(lr=1e-2, layer_decay=0.5)
    module = build()
    adamw = model.optimizer(module, values)
    found = rates(module, adamw, "lr")
    assert found["fc.weight"] == found["fc.bias"] == 1e-2
    assert found["conv1.0.weight"] < found["layer1.0.conv1.weight"] < found["layer4.0.conv1.weight"]
    assert found["layer4.0.conv1.weight"] < 1e-2
    exponents = {math.log(rate / 1e-2, 0.5) for rate in found.values()}
    assert all(exponent == pytest.approx(round(exponent)) for exponent in exponents)
    assert all("lr_scale" not in group for group in adamw.param_groups)


def test_one_cycle_takes_each_layer_to_its_own_peak():
    values = config(lr=1e-2, layer_decay=0.5, pct_start=0.25)
    module = build()
    adamw = model.optimizer(module, values)
    peaks = rates(module, adamw, "lr")
    schedule = model.schedule(adamw, values, num_steps=32)
    assert rates(module, adamw, "max_lr") == peaks
    seen = []
    for _ in range(32):
        seen.append(rates(module, adamw, "lr"))
        adamw.step()
        schedule.step()
    # A quarter of 32 steps rises: the eighth trains at the peak.
    assert all(seen[7][name] == pytest.approx(peak) for name, peak in peaks.items())
    assert all(max(at[name] for at in seen) == pytest.approx(peaks[name]) for name in peaks)
    assert seen[31]["fc.weight"] < 1e-6


def test_without_layer_decay_all_train_at_the_same_rate():
    adamw = model.optimizer(build(), config(lr=3e-3))
    assert {group["lr"] for group in adamw.param_groups} == {3e-3}


@pytest.mark.parametrize("num_steps", [16, 17, 20, 25, 50, 100, 160])
@pytest.mark.parametrize("pct_start", [0.01, 0.02, 0.04, 0.05, 0.0625, 0.1, 0.3, 0.99])
def test_a_schedule_rises_to_the_peak_and_falls_whatever_its_length(pct_start, num_steps):
    weight = torch.nn.Parameter(torch.zeros(()))
    adamw = torch.optim.AdamW([weight], lr=1.0)
    schedule = model.schedule(adamw, config(pct_start=pct_start), num_steps=num_steps)
    seen = []
    for _ in range(num_steps):
        seen.append(adamw.param_groups[0]["lr"])
        adamw.step()
        schedule.step()
    assert all(math.isfinite(rate) and 0 < rate <= 1 + 1e-12 for rate in seen)
    assert seen[0] < 0.1 and seen[-1] < 0.1
    assert max(seen) > 0.8


@pytest.mark.parametrize(
    ("name", "prior"), [*((name, 0.5) for name in FAMILIES), ("resnet18", 0.2), ("test_vit", 0.2)]
)
def test_the_first_loss_is_the_entropy_of_the_prior(name, prior):
    torch.manual_seed(0)
    module = model.build(config(name), size=64, prior=prior).train()
    with torch.no_grad():
        logits = module(torch.randn(20, 3, 64, 64)).flatten()
    labels = (torch.arange(20) < 20 * prior).float()
    entropy = -prior * math.log(prior) - (1 - prior) * math.log(1 - prior)
    assert float(F.binary_cross_entropy_with_logits(logits, labels)) == pytest.approx(
        entropy, abs=0.05
    )


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_every_pooling_gives_one_logit(pool):
    module = build("test_resnet", global_pool=pool).eval()
    assert module(torch.randn(2, 3, 64, 64)).shape == (2, 1)


def test_a_model_of_fixed_size_is_built_for_the_images():
    assert build("test_vit", size=32)(torch.randn(1, 3, 32, 32)).shape == (1, 1)
    assert build("test_vit", size=96)(torch.randn(1, 3, 96, 96)).shape == (1, 1)


def test_the_normalisation_is_the_models_own():
    mean, std = model.normalization(build("test_vit"))
    assert mean == tuple(timm.get_pretrained_cfg("test_vit").mean)
    assert std == tuple(timm.get_pretrained_cfg("test_vit").std)


def test_pooling_that_a_model_cannot_have_is_refused_in_one_sentence():
    message = refusal("convnext_atto", global_pool="catavgmax")
    assert message.startswith(
        "model='convnext_atto' cannot be built with global_pool='catavgmax', drop_path_rate=0 "
    )
    assert "\n" not in message


def test_an_unknown_model_is_refused_with_the_nearest_known_one():
    message = refusal("resnet81.a1_in1k")
    assert message == "model='resnet81.a1_in1k': timm knows no 'resnet81'; did you mean 'resnet18'?"


def test_a_model_like_no_other_is_refused():
    assert refusal("%%%") == "model='%%%': timm knows no '%%%'; see timm.list_models()"


def test_an_unknown_tag_is_refused_with_those_that_exist():
    message = refusal("test_resnet.a1_in1k")
    assert message == (
        "model='test_resnet.a1_in1k': test_resnet has no weights 'a1_in1k'; it has ['r160_in1k']"
    )


def test_drop_path_reaches_the_model_and_is_refused_where_there_is_none():
    module = build("test_resnet", drop_path_rate=0.5)
    assert [part for part in module.modules() if getattr(part, "drop_prob", 0)]
    assert "drop_path_rate=0.5" in refusal("vgg11", drop_path_rate=0.5)
    model.check(config("vgg11"), size=64)


@pytest.mark.parametrize("name", FAMILIES)
def test_drop_path_can_be_checked_for_each_family(name):
    model.check(config(name, drop_path_rate=0.2, drop_rate=0.2), size=64)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache of weights."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    # The library has read both already.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*args: object) -> None:
        raise AssertionError("somebody opens a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


@pytest.mark.timeout(20)
def test_a_check_allocates_and_fetches_nothing(offline):
    """The giant has 1.8 billion parameters: 7 GB, if they were made."""
    pretrained = {"pretrained": True}
    model.check(config("resnet18.a1_in1k", **pretrained), size=64)
    model.check(config("vit_gigantic_patch14_224", **pretrained), size=224)
    assert not list(offline.iterdir())


def test_weights_that_cannot_be_had_are_one_sentence(offline):
    with pytest.raises(InputError) as caught:
        model.build(config("resnet18.a1_in1k", pretrained=True), size=64)
    message = str(caught.value)
    assert message.startswith("the pretrained weights of 'resnet18.a1_in1k' cannot be had (")
    assert message.endswith("or train from scratch with --set pretrained=false")
    assert "\n" not in message

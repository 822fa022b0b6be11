"""The model: its head, its parameter groups and their rates, and what is refused and how."""

import ast
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import CPU, prepare, train
from safetensors.torch import load_file
from torch import nn

from aiornot.config import InputError, TrainConfig
from aiornot.delivery import bundle
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

RECOMMENDED = [
    "resnet26d.bt_in1k",
    "convnext_small.in12k_ft_in1k",
    "tf_efficientnetv2_s.in21k_ft_in1k",
    "swinv2_tiny_window8_256.ms_in1k",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "mobilenetv4_conv_small.e1200_r224_in1k",
    "repvit_m1.dist_in1k",
]
"""Models that the stage files do not search but users will."""

SPACES = Path(__file__).resolve().parents[1] / "tune_spaces"


def searched() -> set[str]:
    """The full names in the stage files."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SPACES.glob("*/*.py")]
    texts = {n.value for t in trees for n in ast.walk(t) if isinstance(n, ast.Constant)}
    names = {text for text in texts if isinstance(text, str) and "." in text}
    return {name for name in names if timm.is_model(name.partition(".")[0])}


NAMED = sorted(searched() | set(RECOMMENDED))


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


@pytest.mark.parametrize("name", NAMED)
def test_the_first_loss_of_each_model_that_is_searched_is_ln_2(name):
    torch.manual_seed(0)
    size = 70 if "patch14" in name else 64
    module = model.build(config(name), size=size).train()
    with torch.no_grad():
        logits = module(torch.randn(8, 3, size, size)).flatten()
    # Either label is as likely; eight drawn ones would add noise of the size of the bound.
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.5))
    assert float(loss) == pytest.approx(math.log(2), abs=0.05)


def test_the_spaces_are_read():
    assert {"resnet18.a1_in1k", "convnext_tiny.fb_in22k", "test_byobnet.r160_in1k"} <= searched()


def test_both_heads_of_a_distilled_model_are_made_afresh():
    module = build("repvit_m1.dist_in1k")
    module.requires_grad_(False)
    found = [part for part in module.modules() if isinstance(part, nn.Linear)]
    assert [part.out_features for part in found] == [1, 1]
    for part in found:
        assert float(part.weight.std()) == pytest.approx(0.01, rel=0.3)
        assert float(part.bias) == 0


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


NO_WIDER = [
    "convnext_atto",
    "convnextv2_atto",
    "maxvit_tiny_tf_224",
    "edgenext_xx_small",
    "hgnetv2_b0",
    "ghostnetv2_100",
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_clip_224",
    "eva02_tiny_patch14_224",
    "test_convnext",
    "test_vit",
]
WIDER = [
    "resnet18",
    "resnet26d",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "efficientnetv2_rw_t",
    "regnety_004",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "fastvit_t8",
    "test_byobnet",
    "test_nfnet",
    "test_efficientnet",
]
POOLINGS = {
    **{name: ("avg", "max", "avgmax") for name in NO_WIDER},
    **{name: ("avg", "max", "avgmax", "catavgmax") for name in WIDER},
    "repvit_m1": ("avg",),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_is_refused_where_timm_cannot_and_only_there(name):
    size = 224 if "patch14" in name else 256
    for pool in ("avg", "max", "avgmax", "catavgmax"):
        values = config(name, global_pool=pool, pretrained=True)
        if pool in POOLINGS[name]:
            model.check(values, size=size)
        else:
            with pytest.raises(InputError, match=f"cannot be built with global_pool='{pool}'"):
                model.check(values, size=size)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "mobilenetv4_conv_small"])
def test_pooling_that_pretrained_weights_cannot_follow_is_refused_with_them(name):
    model.check(config(name, global_pool="catavgmax"), size=64)
    assert refusal(name, global_pool="catavgmax", pretrained=True) == (
        f"model={name!r} cannot have global_pool='catavgmax' with pretrained weights: theirs of "
        "conv_head.weight are made for half the width; use avg or max"
    )


STEMS = [
    "resnet18",
    "resnet26d",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "regnety_004",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "densenet121",
    "hgnetv2_b0",
    "convnext_atto_ols",  # the one ConvNeXt whose stem overlaps
    "fastvit_t8",  # two branches
    "repvgg_a0",
    "test_resnet",
    "test_nfnet",
]


@pytest.mark.parametrize("name", STEMS)
def test_a_stem_without_stride_doubles_the_maps_and_keeps_the_weights(name):
    with torch.device("meta"):
        plain, wide = (model.skeleton(config(name, stem_stride=s), size=64) for s in (None, 1))
        images = torch.empty(2, 3, 64, 64)
        before, after = (module.eval().forward_features(images) for module in (plain, wide))
        assert wide(images).shape == (2, 1)
    assert after.shape[:2] == before.shape[:2]
    assert after.shape[2:] == (2 * before.shape[2], 2 * before.shape[3])
    shapes = [{k: v.shape for k, v in module.state_dict().items()} for module in (plain, wide)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("name", "first"), [("resnet26d", 0), ("tf_efficientnetv2_b0", 1)])
def test_a_stem_without_stride_sees_what_it_saw_and_the_pixels_between(name, first):
    """TensorFlow's padding starts the wide steps one pixel later."""
    plain, wide = (build(name, stem_stride=stride) for stride in (None, 1))
    wide.load_state_dict(plain.state_dict())
    named = plain.pretrained_cfg["first_conv"]
    images = torch.randn(1, 3, 64, 64)
    before, after = (module.get_submodule(named)(images) for module in (plain, wide))
    assert after.shape[2:] == (64, 64)
    assert torch.allclose(after[:, :, first::2, first::2], before, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("convnext_atto", "it cuts the image into patches of 4 x 4 pixels"),
        ("vit_tiny_patch16_224", "it cuts the image into patches of 16 x 16 pixels"),
        ("swin_tiny_patch4_window7_224", "it cuts the image into patches of 4 x 4 pixels"),
        ("maxvit_tiny_tf_224", "its attention is built for one size of its feature maps"),
        ("poolformer_s12", "its first convolution has stride 4"),
        ("vgg11", "its first convolution keeps every pixel already"),
        ("csatv2", "timm names no first convolution"),
    ],
)
def test_a_stem_that_cannot_lose_its_stride_is_refused(name, reason):
    with pytest.raises(InputError) as caught:
        model.check(config(name, stem_stride=1), size=224)
    assert str(caught.value) == (
        f"model={name!r} cannot have stem_stride=1: {reason}; it is for models that begin with "
        "an overlapping convolution of stride 2: ResNet, RegNet, MobileNet, EfficientNet"
    )


def test_a_bundle_keeps_its_stem_and_plain_timm_refuses_it(tmp_path):
    """timm has no word for it, and with the stride of old it would compute something else."""
    data = prepare(tmp_path / "tiny.h5")
    values = config(stem_stride=1, epochs=1, batch_size=8)
    checkpoint = train(values, data=data, out=tmp_path / "checkpoint")
    folder = bundle.write(checkpoint, tmp_path / "bundle", data=data, device=CPU, lineage={})
    loaded = bundle.load(folder, device=CPU)
    images = torch.randn(2, 3, 32, 32)
    again = model.skeleton(values, size=32).eval()
    again.load_state_dict(load_file(folder / "model.safetensors"))
    assert torch.allclose(loaded.module(images), again(images), atol=1e-6)
    narrow = model.skeleton(config(), size=32).eval()
    narrow.load_state_dict(again.state_dict())
    assert not torch.allclose(loaded.module(images), narrow(images), atol=1e-3)
    with pytest.raises(TypeError, match="stem_stride"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_a_model_says_where_its_weights_come_from():
    told = build("convnext_tiny.fb_in22k").pretrained_cfg
    assert (told["architecture"], told["tag"]) == ("convnext_tiny", "fb_in22k")
    assert told["hf_hub_id"] == "timm/convnext_tiny.fb_in22k"
    assert told["license"] == "apache-2.0"
    assert len(told["mean"]) == len(told["std"]) == 3


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

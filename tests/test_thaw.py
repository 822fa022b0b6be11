"""Gradual unfreezing: what learns when, what stays to the bit, and that it resumes exactly."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from aiornot.config import InputError, TrainConfig
from aiornot.training import model, thaw

# Everything that could move what is frozen: weight decay, layer decay, averages, random layers.
EVERYTHING = {
    "model": "test_resnet",
    "pretrained": False,
    "unfreeze": 0.6,
    "lr": 1e-2,
    "weight_decay": 0.3,
    "layer_decay": 0.7,
    "clip_grad": 0.5,
    "ema_decay": 0.8,
    "drop_rate": 0.2,
    "drop_path_rate": 0.3,
}
STEPS = 20
TICK = 3
"""The loop evaluates so often, which sets the whole model to eval and then to train."""

FAMILIES = [
    "resnet18",
    "resnet26d",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "convnext_atto",
    "regnety_002",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "fastvit_t8",
    "hgnetv2_b0",
    "repvit_m1",
    "vit_tiny_patch16_224",
    "swinv2_tiny_window8_256",
    "maxvit_tiny_tf_224",
    "test_byobnet",
    "test_nfnet",
]


class Run:
    """One run as the loop makes it, step by step, from a batch that depends on the step alone."""

    def __init__(self, **changes: object) -> None:
        torch.manual_seed(0)
        self.config = TrainConfig.from_dict(EVERYTHING | changes)
        self.module = model.build(self.config, size=32)
        self.parallel: nn.Module = self.module
        self.adamw = model.optimizer(self.module, self.config)
        self.schedule = model.schedule(self.adamw, self.config, num_steps=STEPS)
        self.ema = ModelEmaV3(self.module, decay=self.config.ema_decay)
        self.thaw = thaw.Thaw(self.module, self.config, num_steps=STEPS)

    def wrap(self) -> nn.Module:
        return self.module

    def steps(self, first: int = 0, last: int = STEPS) -> Iterator[int]:
        """Train, and yield each step when it was taken."""
        for step in range(first, last):
            if step == first or step % TICK == 0:
                self.module.eval()
                self.parallel.train()
            if self.thaw.at(step):
                self.parallel = self.wrap()
            self.take(step)
            yield step

    def take(self, step: int) -> None:
        images, labels = batch(step)
        loss = F.binary_cross_entropy_with_logits(self.parallel(images).flatten(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 0.5, foreach=True)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if step + 1 < STEPS:
            self.schedule.step()
        self.ema.update(self.module)

    def state(self) -> dict[str, Any]:
        """What the loop's checkpoint holds."""
        holders = (self.module, self.ema.module, self.adamw, self.schedule)
        states = [copy.deepcopy(holder.state_dict()) for holder in holders]
        return {"states": states, "rng": torch.get_rng_state()}

    def load(self, state: dict[str, Any]) -> None:
        holders = (self.module, self.ema.module, self.adamw, self.schedule)
        for holder, values in zip(holders, state["states"], strict=True):
            holder.load_state_dict(copy.deepcopy(values))
        torch.set_rng_state(state["rng"])


def batch(step: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(count, 3, 32, 32, generator=generator)
    return images, (torch.arange(count) % 2).float()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def stage_of(name: str) -> str:
    return name.partition(".")[0].replace("bn1", "conv1")


STAGES = ["conv1", "layer1", "layer2", "layer3", "layer4"]
# Twelve of twenty steps for five stages: one thaws at 3, 5, 8, 10 and 12, the last one first.
THAWS = dict(zip(STAGES, [12, 10, 8, 5, 3], strict=True)) | {"fc": 0}


def test_it_thaws_evenly_from_head_to_stem():
    run = Run()
    assert math.ceil(12 / 5) == THAWS["layer4"]
    for step in range(STEPS):
        run.thaw.at(step)
        for name, parameter in run.module.named_parameters():
            assert parameter.requires_grad == (step >= THAWS[stage_of(name)]), (step, name)


def test_it_says_when_what_learns_has_changed():
    run = Run()
    changed = [step for step in range(STEPS) if run.thaw.at(step)]
    assert changed == [0, *sorted(step for step in THAWS.values() if step)]


@pytest.mark.parametrize("num_steps", [1, 2, 5, 16, 160, 999])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.5, 1.0])
def test_all_learns_from_the_share_of_the_steps_on_and_the_head_alone_before(share, num_steps):
    module = model.build(TrainConfig.from_dict(EVERYTHING), size=32)
    config = TrainConfig.from_dict(EVERYTHING | {"unfreeze": share})
    thawing = thaw.Thaw(module, config, num_steps=num_steps)
    learning = []
    for step in range(num_steps + 1):
        thawing.at(step)
        learning.append(sum(p.requires_grad for p in module.parameters()))
    total = len(list(module.parameters()))
    assert learning[0] == 2  # weight and bias of the head
    assert learning == sorted(learning)
    assert learning.index(total) == max(1, round(share * num_steps))


def test_without_unfreeze_nothing_is_ever_frozen():
    run = Run(unfreeze=0.0)
    assert not any(run.thaw.at(step) for step in range(STEPS))
    assert all(parameter.requires_grad for parameter in run.module.parameters())
    assert all(part.training for part in run.module.modules())


@pytest.mark.parametrize("which", ["module", "ema"])
def test_what_is_frozen_stays_to_the_bit_and_then_moves(which):
    run = Run()
    holder = run.module if which == "module" else run.ema.module
    start = copy.deepcopy(holder.state_dict())
    moved: set[str] = set()
    for step in run.steps():
        for name, value in holder.state_dict().items():
            if not torch.equal(value, start[name]):
                assert step >= THAWS[stage_of(name)], (step, name)
                moved.add(name)
    assert moved == set(start)


def test_the_same_with_each_kind_of_norm_and_optimizer_group():
    for name in ("test_byobnet", "test_efficientnet", "test_vit", "test_convnext"):
        run = Run(model=name, layer_decay=1.0)
        start = copy.deepcopy(run.module.state_dict())
        frozen = [key for part in thaw.parts(run.module)[:1] for key in names_of(run.module, part)]
        for step in run.steps():
            still = [torch.equal(run.module.state_dict()[key], start[key]) for key in frozen]
            assert all(still) if step < 12 else not all(still), (name, step)


def names_of(module: nn.Module, part: thaw.Part) -> list[str]:
    wanted = {id(parameter) for parameter in part.parameters}
    wanted |= {id(buffer) for norm in part.norms for buffer in norm.buffers()}
    both = (*module.named_parameters(), *module.named_buffers())
    return [name for name, tensor in both if id(tensor) in wanted]


def test_frozen_norms_do_not_wake_when_the_model_is_set_to_train():
    run = Run()
    for step in range(STEPS):
        run.module.eval()
        run.module.train()
        run.thaw.at(step)
        for name, part in run.module.named_modules():
            thawed = step >= THAWS.get(stage_of(name), 0)
            assert part.training == (thawed or not hasattr(part, "running_mean")), (step, name)


@pytest.fixture(scope="module")
def whole() -> list[dict[str, Any]]:
    """The state after each step of an uninterrupted run."""
    run = Run()
    return [run.state() for _ in run.steps()]


@pytest.mark.parametrize("done", [1, 3, 4, 8, 12, 13, 19])
def test_a_run_made_anew_at_a_step_goes_on_to_the_bit(whole, done):
    run = Run()
    run.load(whole[done - 1])
    for step in run.steps(done):
        assert same(run.state(), whole[step]), step


def test_what_learns_depends_on_the_step_alone():
    asked, fresh = Run(), Run()
    for step in (19, 0, 7, 3, 12, 2):
        asked.thaw.at(step)
        fresh.thaw = thaw.Thaw(fresh.module, fresh.config, num_steps=STEPS)
        fresh.module.requires_grad_(True).train()
        fresh.thaw.at(step)
        flags = [[p.requires_grad for p in run.module.parameters()] for run in (asked, fresh)]
        modes = [[part.training for part in run.module.modules()] for run in (asked, fresh)]
        assert flags[0] == flags[1] and modes[0] == modes[1], step


def test_the_learning_rates_stay_those_of_the_cycle():
    """What thaws late starts at the rate of that step."""
    seen = []
    for share in (0.0, 0.6):
        run = Run(unfreeze=share)
        seen.append([[group["lr"] for group in run.adamw.param_groups] for _ in run.steps()])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_stages_below_a_head_that_learns_first(name):
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=1)
    found = thaw.parts(module)
    assert len(found) >= 5
    parameters = [id(parameter) for part in found for parameter in part.parameters]
    assert len(parameters) == len(set(parameters))
    below = set(parameters)
    above = [key for key, parameter in module.named_parameters() if id(parameter) not in below]
    assert any(key.startswith(("fc.", "head.", "classifier.")) for key in above)
    assert not any(key.startswith(("stem", "conv1", "patch_embed", "blocks.0")) for key in above)
    # The first parameters of the model thaw last.
    assert next(module.parameters()) is found[0].parameters[0]
    norms = {id(norm) for part in found for norm in part.norms}
    for key, part in module.named_modules():
        if hasattr(part, "running_mean") and id(part) not in norms:
            assert any(each.startswith(f"{key}.") for each in above), key


@pytest.mark.parametrize("name", ["caformer_s18", "csatv2", "rdnet_tiny"])
def test_a_model_whose_stages_timm_does_not_name_is_refused_before_training(name):
    config = TrainConfig(model=name, pretrained=False, unfreeze=0.5)
    with pytest.raises(InputError, match=r"^unfreeze needs the stages of \w+, which timm does not"):
        model.check(config, size=64)
    model.check(TrainConfig(model=name, pretrained=False), size=64)


class Ranked(Run):
    """The same as one of two ranks, each with half of the batch; no norm and no random layer."""

    def __init__(self, rank: int) -> None:
        super().__init__(model="test_vit", drop_rate=0.0, drop_path_rate=0.0)
        self.rank = rank

    def wrap(self) -> nn.Module:
        return nn.parallel.DistributedDataParallel(self.module, gradient_as_bucket_view=True)

    def take(self, step: int) -> None:
        images, labels = batch(step)
        logits = self.parallel(images[self.rank :: 2]).flatten()
        F.binary_cross_entropy_with_logits(logits, labels[self.rank :: 2]).backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 0.5, foreach=True)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if step + 1 < STEPS:
            self.schedule.step()


def _rank(rank: int, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    try:
        run = Ranked(rank)
        for _ in run.steps():
            pass
        torch.save(run.module.state_dict(), out / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _second(_: int, out: Path) -> None:
    torch.set_num_threads(1)
    _rank(1, out)


@pytest.mark.timeout(180)
def test_two_ranks_that_wrap_anew_at_each_change_equal_one(tmp_path):
    second = torch.multiprocessing.spawn(_second, args=(tmp_path,), nprocs=1, join=False)
    _rank(0, tmp_path)
    second.join()
    first, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = Run(model="test_vit", drop_rate=0.0, drop_path_rate=0.0)
    for _ in alone.steps():
        pass
    for name, value in alone.module.state_dict().items():
        assert torch.equal(first[name], other[name]), name
        torch.testing.assert_close(first[name], value, atol=1e-4, rtol=1e-4)

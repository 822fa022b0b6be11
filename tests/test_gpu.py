"""What only a GPU can show: mixed precision, the fused kernels, its memory, and that no step waits.

Skipped where there is none; ``pytest tests/test_gpu.py`` needs neither Ray nor a network.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import follow, store
from test_augment import EVERYTHING, make_draws, make_images

from aiornot.config import TrainConfig
from aiornot.training import augment, gauge, loader, loop, memory, watch
from aiornot.training.run import Run, aside
from aiornot.training.run import start as start_run

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(300),  # compiling alone takes half a minute
]

GPU = torch.device("cuda", 0)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

PLAIN = {
    "model": "test_resnet.r160_in1k",
    "pretrained": False,
    "lr": 1e-2,
    "epochs": 4,
    "batch_size": 16,
}
EVERYTHING_ON = {
    name: value
    for name, value in EVERYTHING.to_dict().items()
    if value != getattr(TrainConfig(), name)
} | {"ema_decay": 0.9, "clip_grad": 1.0, "layer_decay": 0.8, "drop_rate": 0.1, "jpeg_quality": 40}


def trained(
    values: dict[str, Any], data: Path, *, checkpoint: Path | None = None, out: Path | None = None
) -> list[dict[str, float]]:
    """Train on the GPU and return the reports; a test of a few steps would compile for longer."""
    how = {"device": GPU, "compile_augment": False}
    return follow(PLAIN | values, data, checkpoint=checkpoint, out=out, **how)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training images of 224 px: a ResNet-18 takes a gigabyte for a batch of them."""
    rng = np.random.default_rng(0)
    counts = {"train": 64, "val": 8, "test": 2}
    labels = {split: np.arange(count) % 2 for split, count in counts.items()}
    images = {
        split: rng.integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
        for split, count in counts.items()
    }
    return store(tmp_path_factory.mktemp("large") / "large.h5", images, labels)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(easy: Path, precision: str) -> None:
    last = trained({"precision": precision}, easy)[-1]
    assert last["val/auroc"] > 0.95
    assert last["train/loss"] < math.log(2)


def test_auto_is_bf16_where_the_gpu_has_it(easy: Path) -> None:
    wanted = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    run = start_run(TrainConfig.from_dict(PLAIN), easy, GPU)
    assert run.dtype == wanted
    assert run.scaler.is_enabled() == (wanted == torch.float16)


@pytest.mark.parametrize("size", [32, 96])
def test_a_gpu_augments_as_a_cpu_does(size: int) -> None:
    """Without JPEG, whose rounding turns a last bit into a whole step of quantisation."""
    images, draws = make_images(count=8, height=size, width=size), make_draws(count=8)
    config = dataclasses.replace(EVERYTHING, jpeg=0.0)
    here, there = (
        augment.augment(
            images.to(device),
            draws=draws.to(device),
            strengths=augment.strengths(config, device=device),
            mean=MEAN.to(device),
            std=STD.to(device),
        ).cpu()
        for device in (torch.device("cpu"), GPU)
    )
    # A pixel may lie on the edge of a rotated frame or of a hole; TF32 costs 10-bit products.
    apart = (here - there).abs()
    assert apart.mean() < 2e-3
    assert (apart > 0.1).float().mean() < 1e-3


@pytest.mark.parametrize("jpeg", [0.0, 0.5])
def test_compiled_for_the_gpu_it_is_the_same_augmentation(jpeg: float) -> None:
    torch.compiler.reset()
    images, draws = make_images(count=8).to(GPU), make_draws(count=8).to(GPU)
    config = dataclasses.replace(EVERYTHING, jpeg=jpeg)
    how = {
        "draws": draws,
        "strengths": augment.strengths(config, device=GPU),
        "mean": MEAN.to(GPU),
        "std": STD.to(GPU),
    }
    apart = (augment.transform(GPU)(images, **how) - augment.augment(images, **how)).abs()
    assert apart.mean() < 2e-3
    assert (apart > 0.1).float().mean() < (1e-2 if jpeg else 1e-3)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
def test_no_step_waits_for_the_gpu(
    easy: Path, monkeypatch: pytest.MonkeyPatch, resident: bool, compiled: bool
) -> None:
    monkeypatch.setattr(loader, "fits", lambda *_: resident)
    config = TrainConfig.from_dict(PLAIN | EVERYTHING_ON | {"precision": "fp16", "epochs": 20})
    run = start_run(config, easy, GPU, compile_augment=compiled)
    taken(run, 3)  # what is made once may wait
    with waiting_forbidden():
        taken(run, 5)


def taken(run: Run, count: int) -> None:
    for _ in loop.steps(run, count):
        pass


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_that_a_wait_would_be_noticed() -> None:
    with waiting_forbidden(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones((), device=GPU).item()


def test_streamed_images_train_as_resident_ones_do(
    easy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for resident in (True, False):
        monkeypatch.setattr(loader, "fits", lambda *_, resident=resident: resident)
        losses.append([tick["train/loss"] for tick in trained({"precision": "fp32"}, easy)])
    # The first tick has seen the same images; later on last bits of atomic sums grow.
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.2)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_resumed_run_goes_on_where_it_was(easy: Path, tmp_path: Path, precision: str) -> None:
    values = EVERYTHING_ON | {"precision": precision, "degrees": 0.0}
    whole = trained(values, easy, out=tmp_path)
    resumed = trained(values, easy, checkpoint=tmp_path / "8")
    assert [tick["tick"] for tick in resumed] == [tick["tick"] for tick in whole[7:]]
    assert resumed[0]["val/auroc"] == whole[7]["val/auroc"]  # what the checkpoint says of itself
    # Not to the bit on a GPU: cuDNN chooses its algorithms anew.
    assert resumed[1]["train/loss"] == pytest.approx(whole[8]["train/loss"], rel=0.05)
    state = torch.load(tmp_path / "8" / "state.pt", weights_only=True)
    assert bool(state["scaler"]) == (precision == "fp16")
    assert state["cuda_rng"] is not None


def test_a_watched_step_is_the_step_it_would_have_been(easy: Path) -> None:
    seen: list[Any] = []
    config = TrainConfig.from_dict(PLAIN | {"precision": "fp16", "clip_grad": 1.0})
    losses = []
    for ticks in (frozenset(), frozenset({1, 16})):
        reports: list[dict[str, float]] = []
        loop.train(
            config,
            data=easy,
            device=GPU,
            report=lambda metrics, _, reports=reports: reports.append(metrics),
            compile_augment=False,
            watch=watch.Watch(ticks=ticks, keep=seen.append),
        )
        losses.append(reports[0]["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(seen) == 2


def test_a_tick_tells_memory_utilisation_and_speed(
    easy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pynvml")
    monkeypatch.setattr(gauge, "SAMPLE_SECONDS", 0.02)
    ticks = trained({"precision": "bf16"}, easy)
    for tick in ticks:
        assert 1e6 < tick[gauge.MEMORY] < torch.cuda.get_device_properties(GPU).total_memory
        assert tick[gauge.SPEED] > 0
    assert any(gauge.UTILIZATION in tick for tick in ticks)
    assert all(0 <= tick.get(gauge.UTILIZATION, 0) <= 1 for tick in ticks)


@contextmanager
def room_for(gigabytes: float) -> Iterator[None]:
    """Let this process have no more of the GPU's memory than so much."""
    torch.cuda.empty_cache()
    share = gigabytes * 2**30 / torch.cuda.mem_get_info(GPU)[1]
    torch.cuda.set_per_process_memory_fraction(share, GPU)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
        torch.cuda.empty_cache()


RESNET = {"model": "resnet18.a1_in1k", "pretrained": False, "batch_size": 64, "epochs": 20}


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(large: Path) -> None:
    config = TrainConfig.from_dict(RESNET | {"precision": "fp32"})
    whole = start_run(config, large, GPU)
    wanted = [float(loss) for loss in loop.steps(whole, 1)]
    del whole
    with room_for(0.9):
        run = start_run(config, large, GPU)
        found = [float(loss) for loss in loop.steps(run, 1)]
        assert run.micro_batch < 64
    # Batch statistics are those of the micro-batch: near, not equal.
    assert found == pytest.approx(wanted, rel=0.05)


def test_what_is_said_to_fit_does(large: Path) -> None:
    config = TrainConfig.from_dict(RESNET | {"precision": "bf16"})
    free = memory.fit(config, data=large, device=GPU)
    assert free.micro_batch == 64  # of a whole GPU the batch is a small part
    budget = round(0.7 * free.peak)  # cuDNN's own memory is a third of it
    with aside(config, large, GPU, steps=1000) as run:
        peaks: dict[int, int] = {}

        def meter(size: int) -> int:
            peaks[size] = memory._peak(run, size)
            return peaks[size]

        found = memory.search(meter, batch_size=64, free=budget)
    assert 1 < found.micro_batch < 64
    assert found.peak <= budget
    # The line through two small micro-batches foretells the memory of the one that was tried.
    told = found.base + found.per_image * found.micro_batch
    assert told == pytest.approx(found.peak, rel=0.15)

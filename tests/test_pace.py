"""The pace of a configuration: measured on the real loop, and nothing is left behind."""

import dataclasses
import math
import tempfile
import time

import pytest
import torch
from conftest import CPU, RESNET, follow

from aiornot.config import InputError, TrainConfig
from aiornot.training import pace
from aiornot.training.pace import FEW, measure

CONFIG = TrainConfig.from_dict(
    RESNET | {"epochs": 3, "hflip": 0.5, "ema_decay": 0.9, "unfreeze": 0.5}
)


def quick(config, data, *, seconds=0.05, num_threads=1) -> pace.Pace:
    return measure(config, data=data, device=CPU, seconds=seconds, num_threads=num_threads)


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """The batch size of every model that is measured."""
    sizes, real = [], pace.aside

    def aside(config, *arguments, **options):
        sizes.append(config.batch_size)
        return real(config, *arguments, **options)

    monkeypatch.setattr(pace, "aside", aside)
    return sizes


def test_a_checkpoint_has_the_bytes_of_a_real_one(easy, tmp_path):
    follow(CONFIG.to_dict(), easy, out=tmp_path)
    real = sum(path.stat().st_size for path in (tmp_path / "16").iterdir())
    found = quick(CONFIG, easy)
    # The real one also holds its metrics, some kilobytes of text.
    assert found.checkpoint_bytes == pytest.approx(real, rel=0.01)
    plain = quick(TrainConfig.from_dict(RESNET), easy)
    assert found.checkpoint_bytes > 1.2 * plain.checkpoint_bytes  # the average is weights, too


def test_everything_that_takes_time_has_a_figure(easy):
    values = dataclasses.asdict(quick(CONFIG, easy))
    assert len(values) == 5 and all(math.isfinite(v) and v > 0 for v in values.values()), values


def test_neither_threads_nor_random_numbers_nor_files_are_changed(easy, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, state = torch.get_num_threads(), torch.get_rng_state()
    quick(CONFIG, easy, num_threads=2)
    assert torch.get_num_threads() == before and torch.equal(torch.get_rng_state(), state)
    assert not list(tmp_path.iterdir())


def test_weights_are_not_asked_for(easy):
    named = TrainConfig(model="test_resnet.r160_in1k", batch_size=16, weights="nowhere.safetensors")
    assert quick(named, easy).train_images_per_second > 0


def test_a_processor_that_is_too_slow_for_a_batch_is_given_a_few_images(easy, batches):
    quick(CONFIG, easy, seconds=1e-6)
    assert batches == [FEW]
    batches.clear()
    quick(CONFIG, easy, seconds=1.0)
    assert batches == [FEW, CONFIG.batch_size]


def test_a_rate_is_of_what_was_done_after_the_first_times():
    done: list[float] = []

    def work() -> None:
        done.append(time.perf_counter())
        time.sleep(0.002)

    rate = pace._rate(work, CPU, seconds=0.05)
    assert len(done) > pace._WARM_UP + 1
    timed = done[pace._WARM_UP :]
    assert 0 < rate <= 500  # sleeping never takes less
    assert rate <= len(timed) / (timed[-1] - timed[0])


def test_what_cannot_be_trained_is_refused(easy, tmp_path):
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        quick(TrainConfig(model="resnet1800"), easy)
    with pytest.raises(InputError, match="no such file"):
        quick(CONFIG, tmp_path / "nowhere.h5")

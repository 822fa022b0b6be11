"""What a tick says of its device: all that can be had, and never an error for the rest."""

import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import CPU, follow

from aiornot.config import TICKS
from aiornot.training import gauge
from aiornot.training.gauge import MEMORY, SPEED, UTILIZATION, Gauge

GPU = torch.device("cuda")
VALUES = {"model": "test_resnet.r160_in1k", "pretrained": False, "batch_size": 12, "epochs": 3}


def test_every_tick_tells_memory_and_speed(easy):
    before = threading.active_count()
    reports = follow(VALUES, easy)
    assert len(reports) == TICKS and threading.active_count() == before
    last = {"samples": 0}
    for told in reports:
        # The training is a part of the tick, so the speed is above that of the whole of it.
        assert told[SPEED] > (told["samples"] - last["samples"]) / told["seconds"] > 0
        assert UTILIZATION not in told
        last = told
    pages = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
    assert reports[-1][MEMORY] == pytest.approx(int(pages) * 1024, rel=0.2)


def test_where_the_system_does_not_tell_the_memory_it_is_left_out(monkeypatch):
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    with Gauge(CPU) as meter:
        meter.start()
        meter.trained(10)
        assert set(meter.read()) == {SPEED}


class Driver:
    """Stands for CUDA and NVML, which are not here."""

    def __init__(self, monkeypatch) -> None:
        self.peak, self.percent, self.asked = 5e9, 40, 0
        monkeypatch.setattr(gauge, "SAMPLE_SECONDS", 0.001)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "utilization", self.utilization)

    def reset(self, device) -> None:
        self.peak = 0

    def utilization(self, device) -> int:
        self.asked += 1
        if self.percent is None:
            raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
        return self.percent

    def wait(self, count: int) -> None:
        """Wait until it was asked so many times more."""
        self.wait_until(self.asked + count)

    def wait_until(self, asked: int) -> None:
        patience = time.monotonic() + 10
        while self.asked < asked:
            assert time.monotonic() < patience
            time.sleep(0.001)


def test_memory_and_utilisation_are_those_of_the_tick_alone(monkeypatch):
    driver = Driver(monkeypatch)
    with Gauge(GPU) as meter:
        for percent, peak in ((40, 3e9), (90, 2e9)):
            driver.percent = percent
            driver.wait(2)  # one may have been asked before
            meter.start()
            driver.wait(3)
            driver.peak = peak
            meter.trained(1)
            told = meter.read()
            assert told[UTILIZATION] == pytest.approx(percent / 100) and told[MEMORY] == peak
    asked = driver.asked
    time.sleep(0.02)
    assert driver.asked == asked


def test_without_nvml_there_is_no_utilisation_and_no_error(monkeypatch):
    driver = Driver(monkeypatch)
    driver.percent = None
    with Gauge(GPU) as meter:
        meter.start()
        driver.wait_until(1)  # the only time, which may be over already
        driver.peak = 1e9
        meter.trained(1)
        assert set(meter.read()) == {SPEED, MEMORY}
    assert driver.asked == 1

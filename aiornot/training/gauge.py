"""What a tick took of its device: memory, utilisation, images per second.

The loop puts these into every report, from where they go to the ledger and to W&B, all of them of
one worker, rank 0. They are taken beside the training: nothing here waits for the device.
"""

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

MEMORY = "device/memory_bytes"
"""The most that tensors held on the GPU during the tick; on a CPU the process, at its end."""
UTILIZATION = "device/utilization"
"""Share of the tick, evaluation included, in which the GPU worked, 0 to 1; absent on a CPU."""
SPEED = "device/images_per_second"
"""Training images of all workers, evaluation not included."""

SAMPLE_SECONDS = 1.0
"""The driver's own figure is over the last second at most; so the tick is sampled and averaged."""


class Gauge:
    """Reads a device while it trains; to be closed, for on a GPU it has a thread.

    What cannot be read (no NVML, a slice of a GPU, another system) is left out and is no error.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = 0.0
        self._speed = 0.0
        self._samples: list[float] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="gauge", daemon=True)

    def __enter__(self) -> "Gauge":
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def start(self) -> None:
        """Begin a tick."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._samples = []
        self._started = time.perf_counter()

    def trained(self, num_images: int) -> None:
        """Note that the device has done the training of a tick."""
        self._speed = num_images / (time.perf_counter() - self._started)

    def read(self) -> dict[str, float]:
        """Return what was seen since ``start``, named as above."""
        values: dict[str, float] = {SPEED: self._speed}
        if (memory := _memory(self._device)) is not None:
            values[MEMORY] = memory
        if samples := self._samples:
            values[UTILIZATION] = sum(samples) / len(samples)
        return values

    def _sample(self) -> None:
        while not self._closed.wait(SAMPLE_SECONDS):
            try:
                self._samples.append(torch.cuda.utilization(self._device) / 100)
            except Exception as error:  # of the driver, of its library, or of a missing one
                logging.getLogger(__name__).info("no utilisation: %s", error)
                return


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, ValueError, IndexError):  # Linux alone has it
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return None

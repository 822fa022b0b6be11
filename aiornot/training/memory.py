"""How many images fit into the memory of a GPU at once: measured at two sizes, and tried.

``aiornot probe`` says it. The batch stays what it is: gradients of its micro-batches add up.
"""

import dataclasses
import gc
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from aiornot.config import InputError, TrainConfig, WorkError
from aiornot.training import loop
from aiornot.training.run import Run, aside

Meter = Callable[[int], int]
"""From images at once to the peak, in bytes, of a step; raises ``torch.OutOfMemoryError``."""

SHARE = 0.9
"""Of the free memory that may be used: the rest is for what the allocator cannot use."""

SMALLER = 0.8
"""Factor on the micro-batch when it did not fit after all."""

NEEDS_GPU = "it is a GPU's memory that is measured, and this is a CPU"

_FIRST = 8
_LONGEST = 1000  # steps; more than all that are measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What was measured, and the micro-batch that was tried last."""

    free: int
    """Bytes that were free before."""
    base: float
    """Bytes that a step needs whatever its micro-batch: weights, optimizer, images at rest."""
    per_image: float
    """Bytes that each image of a micro-batch adds."""
    predicted: int
    """Images of a batch that ``SHARE`` of the free memory should hold at once, by this line."""
    micro_batch: int
    """The most that were seen to fit: these, or fewer."""
    peak: int
    """Bytes of a step with that micro-batch."""


def fit(
    config: TrainConfig,
    *,
    data: Path,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Fit:
    """Measure what fits on a GPU, in training steps of a model of its own.

    Args:
        config: Its ``micro_batch_size`` does not matter.
        data: A prepared file.
        device: A GPU.
        progress: Told before each measurement with how many images at once it is.

    Raises:
        InputError: No GPU, or the configuration does not fit the data or the model.
        WorkError: Not even one image fits.
    """
    if device.type != "cuda":
        raise InputError(f"nothing to measure: {NEEDS_GPU}")
    _clean()
    # What the allocator holds and does not use is free, too.
    before = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
    with aside(config, data, device, steps=_LONGEST) as run:

        def meter(micro_batch: int) -> int:
            if progress is not None:
                progress(micro_batch)
            return _peak(run, micro_batch) - before

        found = search(meter, batch_size=config.batch_size, free=free)
    _clean()
    return found


def _peak(run: Run, micro_batch: int) -> int:
    """Return the most bytes that tensors take during a step."""
    run.micro_batch = micro_batch
    # The first steps make the optimizer's state, and have cuDNN try algorithms.
    for _ in loop.steps(run, 2):
        pass
    torch.cuda.reset_peak_memory_stats(run.device)
    for _ in loop.steps(run, 1):
        pass
    if run.micro_batch < micro_batch:
        raise torch.OutOfMemoryError("the step went on with fewer images")
    return torch.cuda.max_memory_allocated(run.device)


def search(meter: Meter, *, batch_size: int, free: int) -> Fit:
    """Measure two small micro-batches, predict what fits, and try it.

    Raises:
        WorkError: Not even one image fits.
    """
    measured = _measure_two(meter, batch_size)
    base, per_image = line(measured)
    size = predicted = min(batch_size, predict(base, per_image, bytes_allowed=SHARE * free))
    while (peak := measured.get(size) or _tried(meter, size)) is None:
        size = _smaller(size)
    return Fit(
        free=free,
        base=base,
        per_image=per_image,
        predicted=predicted,
        micro_batch=size,
        peak=peak,
    )


def _measure_two(meter: Meter, batch_size: int) -> dict[int, int]:
    """Return the peaks of a small micro-batch and of one twice as large, or of one image alone."""
    size = max(1, min(_FIRST, batch_size // 4))
    while True:
        sizes = sorted({size, min(2 * size, batch_size)})
        peaks = _measured(meter, sizes)
        if len(peaks) == len(sizes) or (peaks and size == 1):
            return peaks
        size = _smaller(size)


def _measured(meter: Meter, sizes: list[int]) -> dict[int, int]:
    """Return the peaks of growing micro-batches, up to the first that does not fit."""
    peaks: dict[int, int] = {}
    for size in sizes:
        peak = _tried(meter, size)
        if peak is None:
            break
        peaks[size] = peak
    return peaks


def _smaller(size: int) -> int:
    if size == 1:
        raise WorkError("not even one image fits into memory: choose a smaller model or size")
    return max(1, int(SMALLER * size))


def _tried(meter: Meter, size: int) -> int | None:
    try:
        return meter(size)
    except torch.OutOfMemoryError:
        pass
    # Not in the handler: its traceback holds the tensors that are to go.
    _clean()
    return None


def line(measured: Mapping[int, int]) -> tuple[float, float]:
    """Return a and b of ``a + b * images``, bytes, through one or two measurements.

    Of one alone nothing is known to be the images' own: all of it is taken for theirs.
    """
    (one, least), (other, most) = min(measured.items()), max(measured.items())
    if one == other:
        return 0.0, least / one
    per_image = max(0.0, (most - least) / (other - one))
    return least - one * per_image, per_image


def predict(base: float, per_image: float, *, bytes_allowed: float) -> int:
    """Return the largest micro-batch whose peak should stay within ``bytes_allowed``, or 1."""
    return max(1, int((bytes_allowed - base) // max(per_image, 1.0)))


def _clean() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

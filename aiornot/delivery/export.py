"""A bundle -> one ONNX file: uint8 images in, calibrated probabilities out.

``aiornot export runs/fast/bundle --onnx detector.onnx``. Normalisation and temperature are in the
graph, so that nobody has to repeat them; decoding and resizing are not, since no runtime resizes as
Pillow does. The file says what is wanted of an image in its metadata.
"""

import dataclasses
import importlib.util
import json
import logging
import uuid
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from aiornot.config import InputError, WorkError
from aiornot.data import images as decoding
from aiornot.delivery import predict, specimens
from aiornot.delivery.bundle import Bundle
from aiornot.delivery.calibrate import MAX_LOGIT
from aiornot.training import augment

OPSET = 20
"""The newest that torch writes without converting, and that runtimes of the last years read."""

TOLERANCE = 1e-4
"""By how much a probability may differ from torch's."""

INPUT, PROBABILITY, LOGIT = "images", "probability", "logit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how it compares with torch."""

    file: str
    opset: int
    num_compared: int
    """Images, made-up ones and those given."""
    num_given: int
    """Those of ``images`` among them."""
    difference: float | None
    """Largest difference of a probability; None where onnxruntime is not installed."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class _Detector(nn.Module):
    """What the graph computes: images (n, S, S, 3) uint8 -> probability (n,) and logit (n,)."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model = bundle.module
        self.mean, self.std = bundle.mean, bundle.std
        self.temperature = bundle.calibration.temperature

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logit = self.model(augment.normalize(images, mean=self.mean, std=self.std)).flatten()
        scaled = (logit / self.temperature).clamp(-MAX_LOGIT, MAX_LOGIT)
        return torch.sigmoid(scaled), logit


def export(bundle: Bundle, file: Path, *, images: Iterable[Path] = ()) -> Exported:
    """Write the model as ONNX, after comparing it with torch where onnxruntime is installed.

    The input ``images`` is (batch, S, S, 3) uint8 RGB, of any batch size; the outputs are
    ``probability`` and ``logit`` (batch,) float32. Size, geometry, threshold and hash of the
    weights are in the metadata of the model.

    Args:
        bundle: From ``bundle.load``, on the CPU.
        file: Written whole or not at all.
        images: Files and folders to compare on, besides made-up images.

    Raises:
        InputError: ``file`` cannot be written there, or an image cannot be read.
        WorkError: torch cannot express the model in ONNX, or onnxruntime computes another one.
        ModuleNotFoundError: The extra ``onnx`` is not installed.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise InputError(f"--onnx {file}: give the name of a file in a folder that exists")
    given = list(_pixels(bundle, images))
    pixels = np.concatenate([specimens.make(bundle.size), *given])
    content = _content(bundle)
    difference = _difference(bundle, content, pixels)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(
        file=str(file),
        opset=OPSET,
        num_compared=0 if difference is None else len(pixels),
        num_given=0 if difference is None else len(given),
        difference=difference,
    )


def _pixels(bundle: Bundle, paths: Iterable[Path]) -> Iterable[decoding.Pixels]:
    for file in predict.find(paths):
        found = predict.read(bundle, file)
        if isinstance(found, str):
            raise InputError(f"--check {file}: {found}; leave it out")
        yield found[None]


def _content(bundle: Bundle) -> bytes:
    """Return the file: the graph and the weights in one."""
    import onnx  # only here: it is no part of what predicts
    import onnxscript  # noqa: F401  # asked for by name, or torch's message would bury it

    detector = _Detector(bundle).eval()
    example = torch.from_numpy(specimens.make(bundle.size)[:2])
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            program = torch.onnx.export(
                detector,
                (example,),
                input_names=[INPUT],
                output_names=[PROBABILITY, LOGIT],
                dynamic_shapes={"images": {0: batch}},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:300]
        raise WorkError(f"torch cannot express the model in ONNX: {reason}") from None
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, _metadata(bundle))
    return bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Any:
    """Keep what the exporter has to say to itself: it names every pass and deprecation."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _metadata(bundle: Bundle) -> dict[str, str]:
    about = bundle.description
    return {
        "input": f"images: (batch, {bundle.size}, {bundle.size}, 3) uint8 RGB",
        "preprocessing": json.dumps(about["preprocessing"]),
        "calibration": json.dumps(about["calibration"]),
        "threshold": repr(bundle.calibration.threshold),
        "classes": json.dumps(about["classes"]),
        "source_note": about["data"]["source_note"],
        "sha256": bundle.sha256,
    }


def _difference(bundle: Bundle, content: bytes, pixels: decoding.Pixels) -> float | None:
    """Return how far onnxruntime's probabilities are from torch's, in batches of other sizes."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = _Detector(bundle)(torch.from_numpy(pixels))[0].numpy()
    batches = np.array_split(np.arange(len(pixels)), [1])  # one image, then all others
    found = np.concatenate([session.run([PROBABILITY], {INPUT: pixels[b]})[0] for b in batches])
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise WorkError(
            f"onnxruntime's probabilities differ from torch's by {difference:.2g}, more than "
            f"{TOLERANCE:g}; nothing was written"
        )
    return difference

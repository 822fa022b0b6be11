"""Does a bundle still hold what was delivered, and does it compute the same here?

``aiornot verify runs/fast/bundle --data data/prepared`` answers from the files alone.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from aiornot.config import InputError, WorkError
from aiornot.data import hdf5
from aiornot.delivery import bundle, evaluate, manifest, specimens
from aiornot.delivery.bundle import Bundle

TOLERANCE = 1e-6
"""Of every metric of val. On the device that delivered the difference is zero."""

LOGIT_TOLERANCE = 5e-3
"""Of the specimens' logits, times 1 + the largest of them: GPUs multiply with 10 bits of fraction
(TF32). Another mean, size or layer is hundreds of times further off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """What was compared, and how far apart it was; whoever has one has a sound bundle."""

    bundle: str
    """SHA-256 of the file of hashes: equal ones mean equal bundles."""
    model: str
    """SHA-256 of the weights."""
    files: dict[str, str]
    """Hash of every file."""
    unlisted: list[str]
    """Files in the folder that no hash speaks for."""
    specimens_difference: float
    """Largest difference of a logit to the stored one."""
    timm_difference: float | None
    """The same between plain timm and us; None where timm cannot build the model."""
    val: dict[str, float] | None
    """Metrics of val as computed here; None where no data was given."""
    val_difference: float | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def verify(
    folder: Path,
    *,
    data: Path | None = None,
    device: torch.device,
    tolerance: float = TOLERANCE,
) -> Verified:
    """Check every byte, load the weights, and compute again what the bundle says it computes.

    Args:
        folder: The bundle; nothing is written into it.
        data: The prepared file it was trained on, to score val again.
        device: Where to compute.
        tolerance: By how much a metric of val may differ.

    Raises:
        InputError: A byte was changed, a file is missing, or other data was given.
        WorkError: All files are whole and other numbers come out here.
    """
    files = manifest.check_sums(folder)
    loaded = bundle.load(folder, device=device)
    if data is not None:
        _check_data(loaded, data)
    of_specimens = _check_specimens(loaded)
    of_timm = _check_timm(folder, loaded)
    found = None if data is None else _measure(loaded, data)
    difference = None if found is None else _check_val(loaded, found, tolerance)
    return Verified(
        bundle=manifest.sha256(folder / manifest.SUMS),
        model=loaded.sha256,
        files=files,
        unlisted=manifest.unlisted(folder),
        specimens_difference=of_specimens,
        timm_difference=of_timm,
        val=found,
        val_difference=difference,
    )


def _check_data(loaded: Bundle, data: Path) -> None:
    wanted, found = loaded.description["data"], hdf5.attributes(data)
    for key in ("fingerprint", "settings"):
        if found.get(key) != wanted[key]:
            raise InputError(
                f"{data} is not the file whose val the bundle was scored on (its {key} is another);"
                " give that one, or leave --data out"
            )


def _check_specimens(loaded: Bundle) -> float:
    stored = loaded.description["specimens"]
    pixels = specimens.make(loaded.size)
    assert specimens.digest(pixels) == stored["sha256"], "specimens are the same everywhere"
    expected = np.asarray(stored["logits"])
    found = bundle.forward(loaded.module, pixels, mean=loaded.mean, std=loaded.std)
    return _close(found, expected, f"the bundle's own logits on {loaded.device}")


def _check_timm(folder: Path, loaded: Bundle) -> float | None:
    """Compare with what timm makes of the folder without us, on the same device."""
    if loaded.description["config"]["stem_stride"]:
        return None  # timm has no word for it and refuses
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).to(loaded.device).eval()
    pixels, values = specimens.make(loaded.size), {"mean": loaded.mean, "std": loaded.std}
    expected = bundle.forward(loaded.module, pixels, **values)
    return _close(bundle.forward(plain, pixels, **values), expected, "those of plain timm")


def _close(found: np.ndarray, expected: np.ndarray, what: str) -> float:
    """Return the largest difference, and refuse one beyond the tolerance, or no number."""
    difference = float(np.abs(found - expected).max())
    if not difference <= LOGIT_TOLERANCE * (1 + float(np.abs(expected).max())):
        raise WorkError(
            f"logits of made-up images differ by {difference:.3g} from {what}: torch "
            f"{torch.__version__} or timm {timm.__version__} computes another model; use the "
            "versions in bundle.json"
        )
    return difference


def _measure(loaded: Bundle, data: Path) -> dict[str, float]:
    logits, labels = bundle.score(loaded, data=data, split="val")
    found = evaluate.measure(logits, labels, loaded.calibration)
    return {name: found[name] for name in loaded.description["val"]["metrics"] if name in found}


def _check_val(loaded: Bundle, found: dict[str, float], tolerance: float) -> float:
    said = loaded.description["val"]["metrics"]
    apart = {name: _apart(value, said[name]) for name, value in found.items()}
    worst = max(apart, key=lambda name: apart[name])
    if not apart[worst] <= tolerance:
        raise WorkError(
            f"val {worst} is {found[worst]} on {loaded.device}, the bundle says {said[worst]}: "
            f"further apart than {tolerance:g}; try the versions in "
            "bundle.json, the device that delivered it, or a larger --tolerance"
        )
    return apart[worst]


def _apart(found: float, said: float | None) -> float:
    """Return the distance; undefined (NaN here, None there) equals undefined alone."""
    if said is None or np.isnan(found):
        return 0.0 if said is None and np.isnan(found) else np.inf
    return abs(found - said)


def lines(found: Verified) -> list[tuple[str, str]]:
    """Return what was checked, and how it came out, in words."""
    told = {
        manifest.SUMS: f"its SHA-256 is {found.bundle}",
        "files": f"{len(found.files)} as delivered: {', '.join(found.files)}",
        "weights": f"load into the model {found.model[:12]}",
        "made-up images": f"logits differ by {found.specimens_difference:.2g}",
    }
    if found.unlisted:
        told["not of the bundle"] = ", ".join(found.unlisted)
    if found.timm_difference is None:
        told["plain timm"] = "cannot build it (stem_stride)"
    else:
        told["plain timm"] = f"logits differ by {found.timm_difference:.2g}"
    if found.val is None:
        told["val"] = "not scored: give --data"
    else:
        told["val"] = (
            f"AUROC {found.val['auroc']:.6f}; {len(found.val)} metrics differ by at most "
            f"{found.val_difference:.2g}"
        )
    return list(told.items())

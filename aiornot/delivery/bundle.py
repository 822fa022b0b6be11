"""The bundle: a folder that holds a delivered model and all that is needed to use it, no pickle.

``aiornot tune`` and ``aiornot train`` end with one. The weights load in plain timm too:
``timm.create_model("local-dir:runs/fast/bundle", pretrained=True)``.
"""

import dataclasses
import filecmp
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

import aiornot
from aiornot import storage
from aiornot.config import InputError, TrainConfig
from aiornot.data import hdf5, layout
from aiornot.data.images import Geometry, Pixels, Resample
from aiornot.delivery import card, evaluate, manifest, specimens
from aiornot.delivery.calibrate import DEFAULT_RULE, Calibration, calibrate, check_rule
from aiornot.delivery.manifest import DESCRIPTION, SCHEMA_VERSION, WEIGHTS
from aiornot.training import augment, loader, loop, model, snapshot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A delivered model, ready to use."""

    module: nn.Module
    """In evaluation mode: (n, 3, S, S) normalised -> (n, 1) logits."""
    size: int
    """Side of the images in pixels."""
    geometry: Geometry
    resample: Resample
    mean: torch.Tensor
    """(3,), on the device of the module."""
    std: torch.Tensor
    calibration: Calibration
    description: dict[str, Any]
    """The whole of ``bundle.json``."""
    sha256: str
    """Of the weights, in hex."""

    @property
    def name(self) -> str:
        """The start of the hash, which names the model in outputs."""
        return self.sha256[:12]

    @property
    def device(self) -> torch.device:
        return self.mean.device


def write(
    checkpoint: Path,
    out: Path,
    *,
    data: Path,
    device: torch.device,
    rule: str | None = None,
    lineage: Mapping[str, Any],
) -> Path:
    """Calibrate a checkpoint on val and write it as a bundle.

    ``out`` is complete or not there. An equal bundle is left alone; another one is replaced, and
    its list of evaluations kept: a new model does not seal the test split again.

    Args:
        checkpoint: A folder once given to ``report`` by ``loop.train``.
        out: The bundle's folder.
        data: The prepared file that the checkpoint was trained on.
        device: Where to compute the logits of val.
        rule: How the threshold is chosen, see ``calibrate.RULES``. None keeps the rule of a bundle
            of the same weights in ``out``, and is ``balanced`` elsewhere.
        lineage: Where the checkpoint comes from, as plain JSON values.

    Returns:
        ``out``.

    Raises:
        InputError: Not a checkpoint, other data, an unknown rule, or ``out`` is something else.
    """
    if rule is not None:
        check_rule(rule)
    trained = manifest.read_json(
        checkpoint / snapshot.DESCRIPTION, why="not a checkpoint of 'aiornot train'"
    )
    attributes = hdf5.attributes(data)
    _check_trained_on(trained["data"], attributes, checkpoint=checkpoint, data=data)
    _recover(out)
    temporary = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _fill(
            temporary,
            checkpoint,
            trained,
            data=data,
            device=device,
            choose_rule=lambda weights: rule or _rule_of(out, weights) or DEFAULT_RULE,
            lineage=lineage,
        )
        if not _is_same(out, temporary):
            _replace(out, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _fill(
    folder: Path,
    checkpoint: Path,
    trained: Mapping[str, Any],
    *,
    data: Path,
    device: torch.device,
    choose_rule: Callable[[str], str],
    lineage: Mapping[str, Any],
) -> None:
    """Write all files into an empty folder; no time in them, so that equal is equal."""
    attributes = hdf5.attributes(data)
    config, prepared = TrainConfig.from_dict(trained["config"]), _preprocessing(trained)
    module = _build(config, size=prepared["size"], weights=checkpoint / snapshot.WEIGHTS)
    _write_timm(module, config, prepared, folder)
    module = _ready(module, device)
    mean, std = (torch.tensor(trained[key], device=device) for key in ("mean", "std"))
    logits, labels = _score(module, config, mean=mean, std=std, data=data, split="val")
    weights = manifest.sha256(folder / WEIGHTS)
    description = {
        "schema_version": SCHEMA_VERSION,
        "classes": list(hdf5.CLASSES),
        "positive_class": hdf5.CLASSES[1],
        "preprocessing": prepared,
        **_calibrated(logits, labels, rule=choose_rule(weights), data=data),
        "config": config.to_dict(),
        "lineage": dict(lineage),
        "data": evaluate.about_data(attributes),
        "specimens": _of_specimens(module, prepared["size"], mean=mean, std=std),
        "versions": _versions(),
        "sha256": weights,
    }
    _write_description(folder, description)


def _calibrated(logits: np.ndarray, labels: np.ndarray, *, rule: str, data: Path) -> dict[str, Any]:
    """Return what the val split decides of a description: the calibration, and how good it is."""
    calibration = calibrate(logits, labels, rule=rule)
    val = evaluate.evaluation(
        logits,
        labels,
        calibration,
        split="val",
        attributes=hdf5.attributes(data),
        clusters=layout.read_clusters(data, "val"),
    )
    return {"calibration": calibration.to_dict(), "val": val}


def _rule_of(folder: Path, weights: str) -> str | None:
    """Return the rule of a bundle of these weights; None where there is none such."""
    try:
        description = manifest.read(folder)
    except InputError:
        return None
    return str(description["calibration"]["rule"]) if description["sha256"] == weights else None


def _write_description(folder: Path, description: Mapping[str, Any]) -> None:
    text = json.dumps(description, indent=1, allow_nan=False) + "\n"
    storage.write_text(str(folder / DESCRIPTION), text)
    card.write(folder)
    manifest.write_sums(folder)


def _preprocessing(trained: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "size": trained["size"],
        "geometry": trained["data"]["geometry"],
        "resample": trained["data"]["resample"],
        "mean": trained["mean"],
        "std": trained["std"],
    }


def _build(config: TrainConfig, *, size: int, weights: Path) -> nn.Module:
    """Build the model as training did, without fetching weights, and load its own."""
    module = model.skeleton(config, size=size)
    try:
        module.load_state_dict(load_file(weights))
    except FileNotFoundError:
        raise InputError(f"{weights} is missing; copy the whole folder again") from None
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{weights} does not fit {config.model!r} as timm {timm.__version__} builds it "
            f"({str(error).splitlines()[0]}); use the timm that trained it"
        ) from None
    return module


def _ready(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device).to(memory_format=torch.channels_last).eval()


def _score(
    module: nn.Module,
    config: TrainConfig,
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    data: Path,
    split: str,
    fraction: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N,) and labels (N,) of a split, computed in float32 as prediction does."""
    images = loader.Split(data, split, device=mean.device, fraction=fraction)
    logits = loop.evaluate(
        module, images, batch_size=loop.EVAL_BATCH * config.batch_size, mean=mean, std=std
    )
    return logits.cpu().numpy(), images.labels.cpu().numpy()


def _of_specimens(
    module: nn.Module, size: int, *, mean: torch.Tensor, std: torch.Tensor
) -> dict[str, Any]:
    """Return what another machine must get for the same made-up images."""
    pixels = specimens.make(size)
    logits = forward(module, pixels, mean=mean, std=std)
    return {"sha256": specimens.digest(pixels), "logits": logits.tolist()}


@torch.inference_mode()
def forward(
    module: nn.Module, pixels: Pixels, *, mean: torch.Tensor, std: torch.Tensor
) -> np.ndarray:
    """Return the logits (n,) float32 of images (n, S, S, 3), computed as evaluation does."""
    inputs = torch.from_numpy(pixels).to(mean.device)
    output: torch.Tensor = module(augment.normalize(inputs, mean=mean, std=std))
    return output.float().flatten().cpu().numpy()


def _versions() -> dict[str, str]:
    return {
        "aiornot": aiornot.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def _write_timm(
    module: nn.Module, config: TrainConfig, prepared: Mapping[str, Any], folder: Path
) -> None:
    """Write weights and ``config.json`` as timm reads them.

    timm has no words for a geometry like ours: its terms below come closest, those in
    ``bundle.json`` are exact.
    """
    settings: dict[str, Any] = dict(cast(Mapping[str, Any], module.pretrained_cfg))
    arguments: dict[str, Any] = {"global_pool": config.global_pool, "drop_rate": config.drop_rate}
    if config.drop_path_rate:
        arguments["drop_path_rate"] = config.drop_path_rate
    if settings.get("fixed_input_size"):
        arguments["img_size"] = prepared["size"]
    if config.stem_stride:  # timm knows no such argument: better it refuses than computes nonsense
        arguments["stem_stride"] = config.stem_stride
    settings |= {
        "input_size": (3, prepared["size"], prepared["size"]),
        "test_input_size": None,
        "crop_pct": 1.0,
        "test_crop_pct": None,
        "crop_mode": "squash" if prepared["geometry"] == "resize" else "center",
        "interpolation": "bicubic",
        "mean": tuple(prepared["mean"]),
        "std": tuple(prepared["std"]),
    }
    # save_for_hf takes these from the model; its argument for them is younger than "local-dir:".
    module.pretrained_cfg = settings  # type: ignore[assignment]
    names = {"label_names": [hdf5.CLASSES[1]]}
    save_for_hf(
        module, str(folder), model_config=names, model_args=arguments, safe_serialization=True
    )


def _check_trained_on(
    trained: Mapping[str, Any], found: Mapping[str, Any], *, checkpoint: Path, data: Path
) -> None:
    """Refuse other images, another size, or other splits, whose val may hold training images."""
    for key in ("size", "geometry", "resample", "fingerprint", "settings"):
        if trained.get(key) != found.get(key):
            raise InputError(
                f"{checkpoint} was trained on data with {key} {trained.get(key)!r} and {data} has "
                f"{found.get(key)!r}; give the prepared file that it was trained on"
            )


def _is_same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in other.iterdir())
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def _replace(out: Path, temporary: Path) -> None:
    old = _moved(out)
    if out.exists():
        if not (out / DESCRIPTION).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} exists and is not a bundle; give another folder")
        if (out / manifest.EVALUATIONS).is_file():
            shutil.copyfile(out / manifest.EVALUATIONS, temporary / manifest.EVALUATIONS)
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _recover(out: Path) -> None:
    """Bring back what a replacement that was killed between its two renames had moved away."""
    if not out.exists() and _moved(out).exists():
        _moved(out).rename(out)


def _moved(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def load(folder: Path, *, device: torch.device) -> Bundle:
    """Read a bundle and check that it is whole.

    Raises:
        InputError: Not a bundle, another schema version, or weights that were changed.
    """
    description = manifest.read(folder)
    manifest.check_weights(folder, description["sha256"])
    prepared = description["preprocessing"]
    config = TrainConfig.from_dict(description["config"])
    module = _build(config, size=prepared["size"], weights=folder / WEIGHTS)
    return Bundle(
        module=_ready(module, device),
        size=prepared["size"],
        geometry=prepared["geometry"],
        resample=prepared["resample"],
        mean=torch.tensor(prepared["mean"], device=device),
        std=torch.tensor(prepared["std"], device=device),
        calibration=Calibration.from_dict(description["calibration"]),
        description=description,
        sha256=description["sha256"],
    )


def score(
    bundle: Bundle, *, data: Path, split: str, fraction: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N,) and labels (N,) of a split, or of the first share of its images.

    They are computed on the bundle's device.
    """
    return _score(
        bundle.module,
        TrainConfig.from_dict(bundle.description["config"]),
        mean=bundle.mean,
        std=bundle.std,
        data=data,
        split=split,
        fraction=fraction,
    )


def recalibrate(folder: Path, *, rule: str, data: Path, device: torch.device) -> dict[str, Any]:
    """Choose the threshold of a bundle anew, from the val split that it was calibrated on.

    Nothing but ``calibration`` and ``val`` of ``bundle.json``, the card and the hashes changes;
    the same is done to the baseline, to be compared at a threshold of the same rule. Recorded
    evaluations stay, each with the calibration that it was made with.

    Args:
        folder: The bundle.
        rule: See ``calibrate.RULES``.
        data: The prepared file that the model was trained on.
        device: Where to compute the logits of val.

    Returns:
        The new description.

    Raises:
        InputError: An unknown rule, not a bundle, or other data.
    """
    check_rule(rule)
    bundle, attributes = load(folder, device=device), hdf5.attributes(data)
    check_scorable(bundle, attributes, data=data)
    if evaluate.about_data(attributes) != bundle.description["data"]:
        raise InputError(
            f"{data} is not the file that the model was trained on; only the val split of that one "
            "may choose a threshold, give it as --data"
        )
    logits, labels = score(bundle, data=data, split="val")
    description = bundle.description | _calibrated(logits, labels, rule=rule, data=data)
    _write_description(folder, description)
    if (folder / manifest.BASELINE).is_dir():
        recalibrate(folder / manifest.BASELINE, rule=rule, data=data, device=device)
    return description


def evaluate_split(folder: Path, *, data: Path, split: str, device: torch.device) -> dict[str, Any]:
    """Score a bundle on a split and record the result in it.

    Args:
        folder: The bundle.
        data: A prepared file of the bundle's size and geometry.
        split: ``val`` or ``test``.
        device: Where to compute.

    Returns:
        The evaluation, with the ``model`` and how often its test split was ``opened_before``.

    Raises:
        InputError: Not a bundle, or data that the model cannot be fairly scored on.
    """
    bundle, attributes = load(folder, device=device), hdf5.attributes(data)
    check_scorable(bundle, attributes, data=data)
    opened_before = evaluate.open_split(folder, split)
    logits, labels = score(bundle, data=data, split=split)
    result = evaluate.evaluation(
        logits,
        labels,
        bundle.calibration,
        split=split,
        attributes=attributes,
        clusters=layout.read_clusters(data, split),
    )
    return evaluate.record(folder, result | {"model": bundle.name, "opened_before": opened_before})


def check_scorable(bundle: Bundle, attributes: Mapping[str, Any], *, data: Path) -> None:
    """Refuse data that a bundle cannot be fairly scored on.

    Raises:
        InputError: Images of another size or geometry, or splits that may hold training images.
    """
    for key in ("size", "geometry", "resample"):
        found, wanted = attributes.get(key), getattr(bundle, key)
        if found != wanted:
            raise InputError(
                f"{data} has {key} {found!r} and the bundle needs {wanted!r}; prepare it so"
            )
    trained = bundle.description["data"]
    if trained["fingerprint"] != attributes.get("fingerprint"):
        return  # other images than those of training: nothing to leak
    if _splits(trained["settings"]) != _splits(attributes.get("settings")):
        raise InputError(
            f"{data} splits the images of the training data in another way, so that its splits "
            "may hold training images; give the file that the model was trained on"
        )


_LEAVE_OUT = ("name", "limit", "hold_out")


def _splits(settings: Any) -> Any:
    """Return the settings that decide who is in which split; the others only leave rows out."""
    try:
        return {k: v for k, v in json.loads(settings).items() if k not in _LEAVE_OUT}
    except (TypeError, ValueError, AttributeError):
        return settings

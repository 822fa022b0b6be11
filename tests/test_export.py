"""The ONNX file: uint8 images in, the probability that ``predict`` gives out."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import CPU, RESNET, run_verb, train
from PIL import Image

from aiornot.config import InputError, TrainConfig, WorkError
from aiornot.data import hdf5
from aiornot.delivery import bundle, export


@pytest.fixture(scope="module")
def loaded(delivered):
    return bundle.load(delivered.folder, device=CPU)


@pytest.fixture(scope="module")
def written(loaded, delivered, tmp_path_factory):
    """Export once, compared on real images too; return the file and what was found."""
    root = tmp_path_factory.mktemp("onnx")
    for row, pixels in enumerate(hdf5.map_images(delivered.data, "val")[:10]):
        Image.fromarray(np.asarray(pixels)).save(root / f"{row}.png")
    return root / "model.onnx", export.export(loaded, root / "model.onnx", images=[root])


def run(file, pixels):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["probability", "logit"], {"images": pixels})


def test_real_and_random_images_get_the_probability_of_predict(written, loaded, delivered):
    file, found = written
    assert (found.num_compared, found.num_given) == (18, 10) and found.difference <= 1e-4
    pixels = np.array(hdf5.map_images(delivered.data, "val"))
    pixels = np.concatenate([pixels, np.random.default_rng(0).integers(0, 256, pixels.shape, "u1")])
    logits = bundle.forward(loaded.module, pixels, mean=loaded.mean, std=loaded.std)
    probability, logit = run(file, pixels)
    assert probability == pytest.approx(loaded.calibration.probabilities(logits), abs=1e-4)
    assert logit == pytest.approx(logits, abs=1e-4)
    one, _ = run(file, pixels[:1])  # the batch may be of any size
    assert one == pytest.approx(probability[:1], abs=1e-6)


def test_the_file_is_sound_stands_alone_and_says_what_it_wants(written, loaded):
    file, _ = written
    onnx.checker.check_model(str(file), full_check=True)
    assert sorted(path.suffix for path in file.parent.iterdir()) == [".onnx", *[".png"] * 10]
    model = onnx.load(file)
    (images,) = model.graph.input
    shape = [one.dim_value or one.dim_param for one in images.type.tensor_type.shape.dim]
    assert (images.name, shape) == ("images", ["batch", 32, 32, 3])
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert float(said["threshold"]) == loaded.calibration.threshold
    assert said["sha256"] == loaded.sha256 and json.loads(said["classes"]) == ["real", "generated"]
    assert json.loads(said["preprocessing"])["geometry"] == "resize"


def test_a_logit_beyond_all_bounds_is_cut_as_in_predict(loaded):
    confident = dataclasses.replace(loaded.calibration, temperature=1e-9)
    detector = export._Detector(dataclasses.replace(loaded, calibration=confident))
    with torch.no_grad():
        probability, logit = detector(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert logit.abs() > 1e-3 and probability.isfinite()
    assert probability == pytest.approx(confident.probabilities(logit.numpy()))


def test_a_file_that_computes_something_else_is_not_written(
    written, delivered, tmp_path, monkeypatch
):
    mine = bundle.load(delivered.folder, device=CPU)
    with torch.no_grad():
        mine.module.get_submodule("fc").bias += 1
    monkeypatch.setattr(export, "_content", lambda given: written[0].read_bytes())
    with pytest.raises(WorkError, match="differ from torch's"):
        export.export(mine, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["nowhere/a.onnx", "."])
def test_a_place_that_cannot_be_written_is_refused_first(loaded, tmp_path, name):
    with pytest.raises(InputError, match="--onnx"):
        export.export(loaded, tmp_path / name)


def test_a_broken_image_to_compare_on_is_refused(loaded, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match=r"a\.png"):
        export.export(loaded, tmp_path / "a.onnx", images=[tmp_path / "a.png"])


def test_the_verb_says_how_it_compares(written, delivered, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_content", lambda given: written[0].read_bytes())  # takes seconds
    result = run_verb("export", str(delivered.folder), "--onnx", str(tmp_path / "a.onnx"))
    assert result.code == 0 and result.out.strip() == str(tmp_path / "a.onnx")
    assert "8 made-up images in onnxruntime: probabilities differ from torch's by" in result.err
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    result = run_verb("export", str(delivered.folder), "--onnx", str(tmp_path / "a.onnx"))
    assert result.code == 0 and "not compared" in result.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"model": "test_vit.r160_in1k", "global_pool": "avg", "lr": 1e-3},
        {"model": "test_convnext.r160_in1k"},
        {"model": "test_efficientnet.r160_in1k", "global_pool": "catavgmax"},
        {"stem_stride": 1},
    ],
)
def test_other_architectures_are_exported(delivered, tmp_path, changed):
    """Slow: each is trained for a moment and exported, three seconds apiece."""
    config = TrainConfig.from_dict(RESNET | changed)
    checkpoint = train(config, data=delivered.data, out=tmp_path / "checkpoint")
    folder = bundle.write(checkpoint, tmp_path / "out", data=delivered.data, device=CPU, lineage={})
    found = export.export(bundle.load(folder, device=CPU), tmp_path / "model.onnx")
    assert found.difference <= 1e-4

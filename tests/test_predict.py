"""Prediction: the same probability as evaluation, and one record per file whatever it holds."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import CPU
from PIL import Image, features

from aiornot import console
from aiornot.config import InputError
from aiornot.data import hdf5, images
from aiornot.delivery import bundle, predict
from aiornot.training import loader, loop


@pytest.fixture(scope="module")
def loaded(delivered):
    return bundle.load(delivered.folder, device=CPU)


def save(path, *, seed=0, size=(40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names(found, root):
    return [str(file.relative_to(root)) for file in found]


def test_a_stored_image_gets_the_probability_that_evaluation_gives(delivered, loaded, tmp_path):
    split = loader.Split(delivered.data, "val", device=CPU)
    logits = loop.evaluate(
        loaded.module, split, batch_size=64, mean=loaded.mean, std=loaded.std
    ).numpy()
    expected = loaded.calibration.probabilities(logits)
    files = []
    for row, pixels in enumerate(hdf5.map_images(delivered.data, "val")[:20]):
        files.append(tmp_path / f"{row}.png")
        Image.fromarray(np.asarray(pixels)).save(files[-1])
    found = list(predict.predict(loaded, files, batch_size=7))
    assert [one.file for one in found] == files
    assert [one.probability for one in found] == pytest.approx(expected[:20], abs=1e-6)
    verdicts = loaded.calibration.verdicts(logits)[:20]
    assert [one.label == "generated" for one in found] == verdicts.tolist()
    assert len(set(verdicts)) == 2


def test_a_record_is_plain_json(loaded, tmp_path):
    file = save(tmp_path / "a.png")
    (found,) = predict.predict(loaded, [file])
    said = json.loads(json.dumps(found.to_dict()))
    assert set(said) == {"file", "probability", "label", "unsure", "threshold", "model"}
    assert said["file"] == str(file)
    assert said["model"] == loaded.sha256[:12]
    assert said["threshold"] == loaded.calibration.threshold
    assert 0 < said["probability"] < 1


def test_broken_files_are_said_and_the_others_predicted(loaded, tmp_path):
    good = save(tmp_path / "good.png")
    whole = save(tmp_path / "whole.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    broken = [tmp_path / name for name in ("empty.jpg", "text.png", "cut.jpg")]
    found = list(predict.predict(loaded, [broken[0], good, *broken[1:]], batch_size=2))
    assert [one.error is None for one in found] == [False, True, False, False]
    assert set(found[0].to_dict()) == {"file", "error", "threshold", "model"}
    assert all(one.probability is None and one.label is None for one in found if one.error)


def test_a_folder_gives_every_kind_of_file_that_the_decoder_reads(loaded, tmp_path):
    absent = () if features.check("avif") else images.FORMATS["AVIF"]
    wanted = sorted(set(images.SUFFIXES) - set(absent))
    files = [save(tmp_path / f"image{suffix}") for suffix in wanted]
    (tmp_path / "notes.txt").write_text("no image")
    found = list(predict.predict(loaded, [tmp_path]))
    assert [one.file for one in found] == sorted(files)
    assert [one.error for one in found] == [None] * len(files)


def test_a_batch_of_broken_files_alone_is_fine(loaded, tmp_path):
    (tmp_path / "empty.jpg").touch()
    (found,) = predict.predict(loaded, [tmp_path / "empty.jpg"])
    assert "empty" in found.error


def test_too_large_a_file_is_not_read(loaded, tmp_path):
    file = tmp_path / "large.png"
    with file.open("wb") as stream:
        stream.truncate(predict.MAX_BYTES + 1)  # sparse: takes no room
    (found,) = predict.predict(loaded, [file])
    assert "bytes" in found.error


def test_a_pipe_and_a_vanished_file_are_errors(loaded, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    gone = save(tmp_path / "gone.png")
    running = predict.predict(loaded, [tmp_path / "pipe.png", gone])
    gone.unlink()
    pipe, missing = running
    assert pipe.error == "not a regular file"
    assert "No such file" in missing.error


def test_a_folder_is_searched_below_and_sorted(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/inner/y.webp", "c.tiff"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    found = predict.find([tmp_path])
    assert names(found, tmp_path) == ["a/inner/y.webp", "a/z.JPG", "b.png", "c.tiff"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    root = tmp_path / "root"
    save(root / "a" / "x.png")
    save(tmp_path / "elsewhere" / "y.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "twice1").symlink_to(tmp_path / "elsewhere")
    (root / "twice2").symlink_to(tmp_path / "elsewhere")
    assert names(predict.find([root]), root) == ["a/x.png", "twice1/y.png"]


def test_order_is_that_of_the_arguments_and_a_named_file_needs_no_suffix(loaded, tmp_path):
    save(tmp_path / "folder" / "b.png")
    odd = save(tmp_path / "photo.png").rename(tmp_path / "photo")
    last = save(tmp_path / "a.png")
    found = list(predict.predict(loaded, [odd, tmp_path / "folder", last]))
    assert names([one.file for one in found], tmp_path) == ["photo", "folder/b.png", "a.png"]
    assert all(one.error is None for one in found)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("http://example.com/a.png", "URLs"),
        ("https://example.com/a.png", "URLs"),
        ("s3://bucket/a.png", "URLs"),
        ("absent.png", "no such file"),
    ],
)
def test_what_cannot_be_found_is_refused_before_anything_is_predicted(loaded, path, match):
    with pytest.raises(InputError, match=match):
        predict.predict(loaded, [Path(path)])  # not even begun to be iterated


def test_a_folder_without_images_is_refused(loaded, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="no images"):
        predict.predict(loaded, [tmp_path])


def test_the_batch_size_does_not_change_the_result(loaded, tmp_path):
    files = [save(tmp_path / f"{seed}.png", seed=seed) for seed in range(5)]
    one = [found.probability for found in predict.predict(loaded, files, batch_size=1)]
    five = [found.probability for found in predict.predict(loaded, files, batch_size=5)]
    assert one == pytest.approx(five, abs=1e-6)
    with pytest.raises(InputError, match="batch_size"):
        predict.predict(loaded, files, batch_size=0)


def test_a_narrow_terminal_shows_who_is_unsure_beside_a_long_error(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    known = {"threshold": 0.5, "model": "m"}
    found = [
        predict.Prediction(file=Path("a.png"), probability=0.4, label="real", unsure=True, **known),
        predict.Prediction(file=Path("b.png"), error="it is broken " * 20, **known),
    ]
    console.print_table("", *predict.table(found), firm=3)
    assert "real, unsure" in capsys.readouterr().out


def test_a_refused_address_is_told_as_it_was_given():
    with pytest.raises(InputError, match="^https://example.com/a.png: URLs"):
        predict.find([Path("https://example.com/a.png")])

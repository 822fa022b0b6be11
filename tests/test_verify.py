"""Verification: one changed byte is refused, and so is a machine that computes something else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CPU, prepare, run_verb
from PIL import Image
from safetensors.torch import load_file, save_file
from test_bundle import FILES, copy  # noqa: F401  # a fixture

from aiornot.config import InputError, WorkError
from aiornot.delivery import bundle, card, evaluate, manifest, predict, specimens, verify


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x20  # of a letter: its case
    path.write_bytes(content)


def reseal(folder: Path) -> None:
    """Make the hashes those of the files, as someone would who means to change them."""
    description = manifest.read(folder)
    description["sha256"] = manifest.sha256(folder / "model.safetensors")
    (folder / "bundle.json").write_text(json.dumps(description))
    manifest.write_sums(folder)


def test_the_reported_score_comes_out_of_the_files_alone(delivered):
    before = {path: path.stat().st_mtime_ns for path in delivered.folder.iterdir()}
    found = verify.verify(delivered.folder, data=delivered.data, device=CPU)
    said = manifest.read(delivered.folder)["val"]["metrics"]
    assert found.val == pytest.approx(said, abs=1e-6) and found.val_difference <= 1e-6
    assert found.specimens_difference < 1e-5 and found.timm_difference < 1e-5
    assert set(found.files) == set(FILES) and found.unlisted == []
    assert {path: path.stat().st_mtime_ns for path in delivered.folder.iterdir()} == before


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS", "evaluations.json"])
def test_one_flipped_bit_in_any_file_is_refused(copy, delivered, name):  # noqa: F811
    evaluate.open_split(copy, "test")
    whole = (copy / name).read_bytes()
    manifest.check_sums(copy)
    for position in sorted({0, 30, 70, len(whole) // 2, len(whole) - 20, len(whole) - 1}):
        flip(copy / name, position)
        with pytest.raises(InputError, match=name):
            manifest.check_sums(copy)
        (copy / name).write_bytes(whole)
    manifest.check_sums(copy)


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
def test_a_missing_file_is_refused(copy, name):  # noqa: F811
    (copy / name).unlink()
    with pytest.raises(InputError, match=name):
        manifest.check_sums(copy)


def test_a_hash_left_out_is_refused_and_a_stranger_among_the_files_is_named(copy):  # noqa: F811
    (copy / "notes.txt").write_text("mine")
    assert verify.verify(copy, device=CPU).unlisted == ["notes.txt"]
    lines = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
    (copy / "SHA256SUMS").write_text("".join(lines[1:]))
    with pytest.raises(InputError, match="damaged"):
        manifest.check_sums(copy)


def test_a_bundle_inside_a_bundle_and_what_was_sealed_are_checked_too(copy, delivered):  # noqa: F811
    shutil.copytree(delivered.folder, copy / "baseline")
    (copy / "comparison.json").write_text(manifest.sealed({"auroc": 0.1}))
    found = verify.verify(copy, device=CPU)
    assert "baseline/bundle.json" in found.files and found.unlisted == []
    for name in ("baseline/bundle.json", "comparison.json"):
        whole = (copy / name).read_bytes()
        flip(copy / name, 5)
        with pytest.raises(InputError, match=name):
            manifest.check_sums(copy)
        (copy / name).write_bytes(whole)
    (copy / "baseline/mine.txt").write_text("mine")
    (copy / "photos").mkdir()
    assert verify.verify(copy, device=CPU).unlisted == ["baseline/mine.txt", "photos/"]


def test_coreutils_read_the_hashes(delivered):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=delivered.folder, capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout.count(b": OK") == len(FILES)


def test_other_weights_under_right_hashes_give_other_logits(copy):  # noqa: F811
    weights = load_file(copy / "model.safetensors")
    weights["fc.bias"] += 0.1
    save_file(weights, copy / "model.safetensors")
    reseal(copy)
    with pytest.raises(WorkError, match="made-up images differ by 0.1"):
        verify.verify(copy, device=CPU)


def test_a_reported_score_that_was_touched_up_is_refused(copy, delivered):  # noqa: F811
    description = manifest.read(copy)
    description["val"]["metrics"]["auroc"] += 2e-6
    (copy / "bundle.json").write_text(json.dumps(description))
    reseal(copy)
    with pytest.raises(WorkError, match="val auroc"):
        verify.verify(copy, data=delivered.data, device=CPU)
    assert verify.verify(copy, data=delivered.data, device=CPU, tolerance=1e-5).val_difference


def test_a_bundle_of_another_rule_verifies_and_its_card_says_so(copy, delivered):  # noqa: F811
    bundle.recalibrate(copy, rule="fpr<=0", data=delivered.data, device=CPU)
    assert verify.verify(copy, data=delivered.data, device=CPU).val_difference <= 1e-6
    assert "by the rule `fpr<=0`" in (copy / "README.md").read_text()


def test_data_of_other_images_is_refused(delivered, tmp_path):
    other = prepare(tmp_path / "other.h5", seed=1)
    with pytest.raises(InputError, match="fingerprint"):
        verify.verify(delivered.folder, data=other, device=CPU)


def test_specimens_are_the_same_everywhere_and_of_all_scales():
    assert specimens.digest(specimens.make(20)).startswith(DIGEST)
    spreads = specimens.make(64).std(axis=(1, 2, 3))
    assert spreads.min() > 10  # none of them is one colour


DIGEST = "ef9443a8c0bfb065"


def test_the_verb_verifies_with_and_without_data(copy, delivered):  # noqa: F811
    found = run_verb("verify", str(copy), "--data", str(delivered.data))
    assert found.code == 0 and "plain timm" in found.out and "AUROC" in found.out, found.err
    told = json.loads(run_verb("verify", str(copy), "--json").out)
    assert told["val"] is None and told["bundle"] == manifest.sha256(copy / "SHA256SUMS")
    flip(copy / "README.md", 100)
    refused = run_verb("verify", str(copy))
    assert refused.code == 2 and "README.md was changed" in refused.err


# A finder that raises would do for aiornot, which nothing asks for by find_spec().
ALONE = """
import sys

class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {"aiornot", "ray", "h5py", "wandb"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Without)
try:
    import aiornot
except ModuleNotFoundError:
    exec(sys.stdin.read())
"""


def code_of(folder: Path) -> str:
    """Return the Python of the card."""
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


def test_the_code_of_the_card_predicts_in_plain_timm_without_aiornot(delivered, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 41, 4), dtype=np.uint8)  # with transparency
    Image.fromarray(pixels).save(tmp_path / "image.png")
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, tmp_path / "image.png"],
        input=code_of(delivered.folder),
        cwd=delivered.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = bundle.load(delivered.folder, device=CPU)
    (expected,) = predict.predict(loaded, [tmp_path / "image.png"])
    probability, label = done.stdout.split()
    assert float(probability) == pytest.approx(expected.probability, abs=1e-6)
    assert label == expected.label


def test_a_card_depends_on_nothing_but_the_descriptions(copy):  # noqa: F811
    before = (copy / "README.md").read_bytes()
    card.write(copy)
    assert (copy / "README.md").read_bytes() == before

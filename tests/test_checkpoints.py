"""Checkpoints: the newest and the best are kept, a half one never counts, a trial goes on."""

from pathlib import Path

import pytest
import torch
from conftest import CPU, RESNET
from pyarrow import fs
from safetensors.torch import load_file

from aiornot import storage
from aiornot.training import checkpoints, job, loop, snapshot


def made(tmp_path: Path, text: str) -> Path:
    """Make a stand-in for the folder that the loop reports."""
    folder = tmp_path / "reported" / text
    folder.mkdir(parents=True)
    (folder / "weights").write_text(text)
    return folder


def keep(tmp_path: Path, root: Path, *, tick: int, best_tick: int) -> None:
    metrics = {"tick": float(tick), "best_tick": float(best_tick)}
    checkpoints.keep(made(tmp_path, f"tick {tick}"), str(root), metrics)


def names(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir())


def test_the_newest_and_the_best_are_kept_and_no_other(tmp_path):
    root = tmp_path / "trial"
    kept = []
    for tick, best_tick in enumerate([1, 2, 2, 2, 5], start=1):
        keep(tmp_path, root, tick=tick, best_tick=best_tick)
        kept.append(names(root))
    assert kept == [
        ["tick_01"],
        ["tick_02"],
        ["tick_02", "tick_03"],
        ["tick_02", "tick_04"],
        ["tick_05"],
    ]
    assert (root / "tick_05" / "weights").read_text() == "tick 5"


def test_a_trial_without_checkpoints_has_no_newest(tmp_path):
    with checkpoints.newest(str(tmp_path / "trial")) as found:
        assert found is None


def test_a_checkpoint_that_was_not_kept_to_its_end_is_not_chosen(tmp_path):
    root = tmp_path / "trial"
    keep(tmp_path, root, tick=4, best_tick=4)
    half = root / "tick_05"
    half.mkdir()
    (half / "weights").write_text("hal")
    with checkpoints.newest(str(root)) as found:
        assert found == root / "tick_04"


def test_a_half_checkpoint_is_replaced_by_the_whole_one(tmp_path):
    root = tmp_path / "trial"
    (root / "tick_05").mkdir(parents=True)
    (root / "tick_05" / "leftover").write_text("half")
    keep(tmp_path, root, tick=5, best_tick=5)
    assert names(root / "tick_05") == [storage.DONE, "weights"]


def test_the_old_checkpoint_stays_until_the_new_one_is_whole(tmp_path):
    root = tmp_path / "trial"
    keep(tmp_path, root, tick=4, best_tick=4)
    with pytest.raises(OSError):
        checkpoints.keep(tmp_path / "absent", str(root), {"tick": 5.0, "best_tick": 5.0})
    with checkpoints.newest(str(root)) as found:
        assert found is not None and found.name == "tick_04"


def test_the_tenth_checkpoint_is_newer_than_the_ninth(tmp_path):
    root = tmp_path / "trial"
    keep(tmp_path, root, tick=9, best_tick=9)
    keep(tmp_path, root, tick=10, best_tick=9)
    with checkpoints.newest(str(root)) as found:
        assert found is not None and found.name == "tick_10"


def test_a_remote_checkpoint_is_copied_for_the_while(tmp_path, monkeypatch):
    def bucket(path: str) -> tuple[fs.FileSystem, str]:
        return fs.LocalFileSystem(), str(tmp_path / path.removeprefix("s3://"))

    monkeypatch.setattr(storage, "_open", bucket)
    root = "s3://bucket/trial"
    checkpoints.keep(made(tmp_path, "far"), root, {"tick": 1.0, "best_tick": 1.0})
    with checkpoints.newest(root) as found:
        assert found is not None and tmp_path not in found.parents
        assert (found / "weights").read_text() == "far"
    assert not found.exists()


class Killed(Exception):
    """Stands for whatever ends a process between two ticks."""


def train(easy: Path, root: Path, *, kill_at: int | None = None) -> list[int]:
    """Train under ``root`` and return the ticks that were told."""
    ticks: list[int] = []

    def tell(metrics: dict[str, float]) -> None:
        if metrics["tick"] == kill_at:
            raise Killed
        ticks.append(int(metrics["tick"]))

    job.run(RESNET | {"epochs": 3}, data=easy, device=CPU, root=str(root), tell=tell)
    return ticks


def test_a_killed_trial_goes_on_where_it_was_and_ends_the_same(easy, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train(easy, straight) == list(range(1, 17))
    with pytest.raises(Killed):
        train(easy, killed, kill_at=6)
    # Its checkpoint was kept before the report was lost: the report is told again.
    assert train(easy, killed) == list(range(6, 17))
    one, other = (load_file(root / "tick_16" / snapshot.WEIGHTS) for root in (straight, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_trial_repeats_its_last_report_and_trains_no_more(easy, tmp_path):
    train(easy, tmp_path / "trial")
    assert train(easy, tmp_path / "trial") == [16]
    assert len(names(tmp_path / "trial")) <= 2


def test_reports_that_were_lost_are_told_again_and_no_others(easy, tmp_path):
    """A full disk may cost the ledger several ticks while checkpoints are still kept."""
    root = str(tmp_path / "trial")
    with pytest.raises(Killed):
        train(easy, tmp_path / "trial", kill_at=9)
    ticks: list[int] = []
    config = RESNET | {"epochs": 3}
    job.run(
        config,
        data=easy,
        device=CPU,
        root=root,
        tell=lambda metrics: ticks.append(int(metrics["tick"])),
        told=5,
    )
    assert ticks == list(range(6, 17))


def test_what_is_effective_is_read_back_from_what_was_built(easy, tmp_path):
    told: list[dict] = []
    config = RESNET | {"epochs": 3, "hflip": 0.3, "layer_decay": 0.5, "micro_batch_size": 4}
    job.run(config, data=easy, device=CPU, root=str(tmp_path / "trial"), tell=told.append)
    effective = told[0]["effective"]
    assert effective["batch_size"] == 16 and effective["micro_batch_size"] == 4
    assert effective["augmentation"]["hflip"] == pytest.approx(0.3)
    assert effective["augmentation"]["jpeg"] == 0
    rates = sorted(map(float, effective["parameters_by_lr"]))
    assert rates[-1] == pytest.approx(1e-2) and rates[0] < 0.6e-2  # the stem learns more slowly
    assert sum(effective["parameters_by_lr"].values()) == effective["parameters"]


def test_an_attempt_after_running_out_of_memory_takes_half_as_many_images(
    easy, tmp_path, monkeypatch
):
    gradients, sizes = loop._gradients, []

    def small(run, *batch):
        sizes.append(run.micro_batch)
        if run.micro_batch > 4:
            raise torch.OutOfMemoryError("no room")
        return gradients(run, *batch)

    monkeypatch.setattr(loop, "_gradients", small)
    monkeypatch.setattr(loop, "_fitting", fail_as_one_of_several)
    for _ in range(2):  # 16, then 8
        with pytest.raises(loop.OutOfMemory, match="images at a time"):
            train(easy, tmp_path / "trial")
    assert train(easy, tmp_path / "trial") == list(range(1, 17))
    assert sizes[:3] == [16, 8, 4] and set(sizes[2:]) == {4}


def fail_as_one_of_several(run, inputs, targets):
    """What ``_fitting`` does on one of several ranks: it cannot halve by itself."""
    try:
        return loop._gradients(run, inputs, targets)
    except torch.OutOfMemoryError as error:
        raise loop.OutOfMemory(run.micro_batch) from error

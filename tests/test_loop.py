"""The training loop: it learns, reports 16 times, resumes to the bit, and ends when it diverges."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from conftest import CPU, follow, prepare
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.metrics import log_loss, roc_auc_score

from aiornot.config import TICKS, InputError, TrainConfig, WorkError
from aiornot.training import loader, loop, model, snapshot
from aiornot.training.gauge import Gauge
from aiornot.training.run import start

BASE = {"model": "test_resnet.r160_in1k", "pretrained": False, "epochs": 2, "batch_size": 8}

AUGMENTED = {
    "hflip": 0.5,
    "vflip": 0.5,
    "degrees": 20.0,
    "random_resized_crop": True,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.1,
    "sharpness": 0.5,
    "dihedral": True,
    "rescale": 0.3,
    "blur": 0.3,
    "jpeg": 0.3,
    "re_prob": 0.3,
}

# 99 images in batches of 14 are 7 steps, 3 epochs of them 21: ticks end in the midst of epochs.
EVERYTHING = AUGMENTED | {
    "model": "test_resnet.r160_in1k",
    "pretrained": False,
    "epochs": 3,
    "batch_size": 14,
    "lr": 1e-2,
    "ema_decay": 0.8,
    "drop_rate": 0.2,
    "drop_path_rate": 0.3,
    "clip_grad": 0.5,
    "layer_decay": 0.8,
    "label_smoothing": 0.1,
    "unfreeze": 0.5,
    "micro_batch_size": 5,
}


patient = pytest.mark.timeout(180)
"""For what takes ten seconds alone, and a minute where the cores are shared."""


def timeless(reports: list[dict[str, float]]) -> list[dict[str, float]]:
    """Leave out of reports what the clock and the device say."""
    return [
        {key: v for key, v in one.items() if key != "seconds" and not key.startswith("device/")}
        for one in reports
    ]


def logits_of(folder: Path, data: Path, *, split: str = "val") -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels of a split by a checkpoint's weights alone, one row at a time."""
    described = json.loads((folder / snapshot.DESCRIPTION).read_text())
    module = model.build(TrainConfig.from_dict(described["config"]), size=described["size"])
    module.load_state_dict(load_file(folder / snapshot.WEIGHTS))
    rows = loader.Split(data, split, device=CPU)
    mean, std = (torch.tensor(described[name]) for name in ("mean", "std"))
    return loop.evaluate(module, rows, batch_size=1, mean=mean, std=std), rows.labels


def same(one: Any, other: Any) -> bool:
    """Compare nested states to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_same_checkpoint(one: Path, other: Path) -> None:
    assert same(load_file(one / snapshot.WEIGHTS), load_file(other / snapshot.WEIGHTS))
    states = [torch.load(folder / snapshot.STATE, weights_only=True) for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        assert same(states[0][name], states[1][name]), name


@pytest.fixture(scope="module")
def learned(easy, tmp_path_factory) -> tuple[list[dict[str, float]], Path]:
    """A plain run on the easy data, with all its checkpoints."""
    out = tmp_path_factory.mktemp("learned")
    return follow(BASE | {"label_smoothing": 0.2}, easy, out=out), out


@pytest.fixture(scope="module")
def hard(tmp_path_factory) -> Path:
    """A prepared file on which the score goes up and down."""
    return prepare(tmp_path_factory.mktemp("hard") / "hard.h5")


@pytest.mark.parametrize(
    "name", ["test_resnet.r160_in1k", "test_byobnet.r160_in1k", "test_vit.r160_in1k"]
)
def test_it_learns_what_is_easy(easy, name):
    reports = follow(BASE | {"model": name, "lr": 5e-3}, easy)
    assert reports[-1]["val/auroc"] > 0.9
    assert reports[-1]["train/loss"] < reports[0]["train/loss"]


def test_it_reports_sixteen_times_at_equal_shares_of_its_steps(learned):
    reports, _ = learned
    assert [one["tick"] for one in reports] == list(range(1, TICKS + 1))
    steps = 2 * (99 // 8)
    ends = [math.ceil(steps * tick / TICKS) for tick in range(1, TICKS + 1)]
    assert [one["samples"] for one in reports] == [8 * end for end in ends]
    assert [one["epoch"] for one in reports] == [end / 12 for end in ends]
    assert [one["finished"] for one in reports] == [0.0] * 15 + [1.0]
    assert all(one["seconds"] > 0 and one["diverged"] == 0 for one in reports)


def test_the_fewest_steps_there_may_be_are_one_per_tick(easy):
    reports = follow(BASE | {"epochs": 16, "batch_size": 99}, easy)
    assert [one["epoch"] for one in reports] == list(range(1, 17))


def test_the_rate_that_is_reported_rises_and_falls(learned):
    reports, _ = learned
    rates = [one["lr"] for one in reports]
    top = rates.index(max(rates))
    assert 2 <= top <= 5
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_score_is_the_best_so_far_and_best_tick_is_where_it_was_reached(hard):
    values = {"model": "test_byobnet.r160_in1k", "lr": 2e-2, "ema_decay": None}
    reports = follow(BASE | values, hard)
    scores = [one["val/auroc"] for one in reports]
    assert scores != sorted(scores), "the toy is too easy to tell best from last"
    for index, one in enumerate(reports):
        so_far = scores[: index + 1]
        assert one["score"] == max(so_far)
        assert one["best_tick"] == so_far.index(max(so_far)) + 1


def test_the_first_tick_is_the_best_so_far_even_when_every_verdict_is_wrong(easy, monkeypatch):
    monkeypatch.setattr(
        loop.metrics,
        "summary",
        lambda logits, labels, split: {f"{split}/auroc": 0.0, f"{split}/log_loss": 9.0},
    )
    assert {one["best_tick"] for one in follow(BASE, easy)} == {1}


def test_reported_metrics_are_those_of_the_checkpoints_weights_over_the_whole_split(learned, easy):
    reports, out = learned
    for tick in (1, 8, 16):
        logits, labels = logits_of(out / str(tick), easy)
        report = reports[tick - 1]
        assert report["val/auroc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
        # The loss of the verdicts as they are: smoothing is for training.
        exact = log_loss(labels, logits.double().sigmoid())
        assert report["val/log_loss"] == pytest.approx(exact, rel=1e-4)
        assert report["val/accuracy"] == ((logits >= 0) == labels.bool()).float().mean()


def test_the_averaged_weights_are_what_is_scored_and_kept(easy, tmp_path):
    reports = follow(BASE | {"ema_decay": 0.9, "lr": 1e-2}, easy, out=tmp_path)
    logits, labels = logits_of(tmp_path / "16", easy)
    exact = log_loss(labels, logits.double().sigmoid())
    assert reports[-1]["val/log_loss"] == pytest.approx(exact, rel=1e-4)
    raw = torch.load(tmp_path / "16" / snapshot.STATE, weights_only=True)["model"]
    kept = load_file(tmp_path / "16" / snapshot.WEIGHTS)
    assert raw.keys() == kept.keys()
    assert not torch.equal(raw["fc.weight"], kept["fc.weight"])


def test_mistake_1_label_smoothing_reaches_the_loss(easy):
    config = TrainConfig.from_dict(BASE | {"label_smoothing": 0.4})
    run = start(config, easy, CPU)
    run.parallel.train()
    ((step, images, labels),) = loop._batches(run, 0, 1)
    loss, logits = loop._step(run, step, images, labels)
    targets = torch.where(labels == 1, 0.8, 0.2)
    smoothed = -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log())
    assert float(loss) == pytest.approx(float(smoothed.mean()), rel=1e-5)


def test_a_label_smoothing_changes_the_weights_that_come_out(easy):
    plain, smoothed = (follow(BASE | {"label_smoothing": value}, easy)[-1] for value in (0.0, 0.3))
    assert plain["val/log_loss"] != smoothed["val/log_loss"]
    assert plain["train/loss"] < smoothed["train/loss"]


class Rows:
    """A split whose images are the rows' own numbers."""

    def __len__(self) -> int:
        return 99

    def batches(self, rows: list[torch.Tensor]) -> Any:
        return zip(rows, rows, strict=True)


def test_no_image_is_met_twice_in_an_epoch_though_ticks_cut_through_it(easy):
    run = start(TrainConfig.from_dict(EVERYTHING), easy, CPU)
    run.train_split = Rows()
    met = []
    for tick in range(TICKS):
        met += loop._batches(run, run.end_of(tick), run.end_of(tick + 1))
    assert [step for step, _, _ in met] == list(range(21))
    orders = [torch.cat([rows for _, rows, _ in met[start : start + 7]]) for start in (0, 7, 14)]
    assert [len(order.unique()) for order in orders] == [98, 98, 98]
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_the_same_seed_gives_the_same_run_and_another_seed_another(easy, tmp_path):
    values = BASE | AUGMENTED | {"drop_rate": 0.1}
    first = timeless(follow(values, easy))
    torch.manual_seed(12345)  # whatever went on before in this process
    assert timeless(follow(values, easy)) == first
    assert timeless(follow(values | {"seed": 1}, easy)) != first


@pytest.fixture(scope="module")
def straight(easy, tmp_path_factory) -> tuple[list[dict[str, float]], Path]:
    """The uninterrupted run with everything switched on, with all its checkpoints."""
    out = tmp_path_factory.mktemp("straight")
    return follow(EVERYTHING, easy, out=out), out


@pytest.mark.parametrize("tick", [1, 7, 15])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(straight, easy, tmp_path, tick):
    reports, out = straight
    torch.manual_seed(tick)
    resumed = follow(EVERYTHING, easy, checkpoint=out / str(tick), out=tmp_path)
    assert timeless(resumed) == timeless(reports[tick - 1 :])
    for later in range(tick + 1, TICKS + 1):
        assert_same_checkpoint(tmp_path / str(later), out / str(later))


def test_a_resumed_run_first_repeats_the_report_of_its_checkpoint(straight, easy, tmp_path):
    reports, out = straight
    resumed = follow(EVERYTHING, easy, checkpoint=out / "15", out=tmp_path)
    assert resumed[0] == reports[14]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["16"]


def test_a_finished_run_only_repeats_its_last_report(straight, easy):
    reports, out = straight
    assert follow(EVERYTHING, easy, checkpoint=out / "16") == [reports[-1]]


def test_resuming_with_other_values_is_refused_by_their_names(straight, easy):
    _, out = straight
    with pytest.raises(InputError) as caught:
        follow(EVERYTHING | {"lr": 2e-2, "hflip": 0.0}, easy, checkpoint=out / "7")
    assert str(caught.value) == (
        f"{out / '7'} was trained with other values of lr, hflip; "
        "give the same values, or start in another folder"
    )


def test_the_folder_of_a_report_is_gone_when_the_report_is_over(easy):
    folders = []
    config = TrainConfig.from_dict(BASE)
    loop.train(config, data=easy, device=CPU, report=lambda _, folder: folders.append(folder))
    assert len(folders) == TICKS
    assert not any(folder.exists() for folder in folders)


def test_a_report_that_does_not_return_ends_the_run_and_leaves_no_folder(easy):
    folders = []

    def stop(metrics: dict[str, float], folder: Path | None) -> None:
        folders.append(folder)
        raise SystemExit

    with pytest.raises(SystemExit):
        loop.train(TrainConfig.from_dict(BASE), data=easy, device=CPU, report=stop)
    assert len(folders) == 1 and not folders[0].exists()


def test_a_checkpoint_can_be_read_without_running_code_from_it(straight):
    _, out = straight
    state = torch.load(out / "16" / snapshot.STATE, weights_only=True)
    assert state["tick"] == 16
    described = json.loads((out / "16" / snapshot.DESCRIPTION).read_text())
    assert described["config"] == TrainConfig.from_dict(EVERYTHING).to_dict()


@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.9}, {"clip_grad": 1.0}])
def test_a_diverging_run_reports_the_worst_score_and_ends(easy, tmp_path, extra):
    values = BASE | {"lr": 1e3, "weight_decay": 10.0} | extra
    reports = follow(values, easy, out=tmp_path)
    *before, last = reports
    assert (last["diverged"], last["score"], last["finished"]) == (1.0, 0.0, 1.0)
    assert len(reports) < TICKS
    assert all(one["diverged"] == 0.0 for one in before)
    kept = sorted(int(path.name) for path in tmp_path.iterdir())
    assert kept == [one["tick"] for one in before]
    assert all(math.isfinite(value) for value in last.values())


def test_a_run_that_diverges_later_keeps_what_it_had(easy, tmp_path, monkeypatch):
    step = loop._step

    def infinite(run: Any, number: int, *batch: torch.Tensor) -> Any:
        if number == 12:
            with torch.no_grad():
                next(run.module.parameters()).mul_(math.inf)
        return step(run, number, *batch)

    monkeypatch.setattr(loop, "_step", infinite)
    reports = follow(BASE, easy, out=tmp_path)
    assert [one["diverged"] for one in reports] == [0.0] * 8 + [1.0]
    assert reports[-1]["best_tick"] == reports[-2]["best_tick"] > 0
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(1, 9))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"epochs": 1}, "99 training images in batches of 8 for 1 epochs are 12 steps, fewer than"),
        ({"batch_size": 100}, "are 0 steps, fewer than the 16 reports"),
        ({"train_fraction": 0.1}, "10 training images in batches of 8 for 2 epochs are 2 steps"),
        ({"precision": "fp16"}, "precision='fp16' needs a GPU"),
        ({"train_fraction": 0.01, "batch_size": 1, "epochs": 16}, "needs images of both classes"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts(easy, values, text):
    with pytest.raises(InputError) as caught:
        follow(BASE | values, easy)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_bfloat16_trains_on_a_cpu(easy):
    assert follow(BASE | {"precision": "bf16", "lr": 5e-3}, easy)[-1]["val/auroc"] > 0.9


NORM_FREE = BASE | {"model": "test_vit.r160_in1k", "clip_grad": 1.0, "label_smoothing": 0.1}
"""Without batch norm, which sees micro-batches, it does not matter how a batch is cut."""


def last_of(reports: list[dict[str, float]]) -> dict[str, float]:
    return {key: reports[-1][key] for key in ("train/loss", "val/log_loss", "val/auroc")}


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_micro_batches_add_up_to_the_batch(easy, size):
    whole = follow(NORM_FREE, easy)
    parts = follow(NORM_FREE | {"micro_batch_size": size}, easy)
    assert last_of(parts) == pytest.approx(last_of(whole), abs=1e-4)


def crowded(monkeypatch, most: int) -> list[int]:
    """Have the model run out of memory with more than so many images; note what it was given."""
    build, seen = model.build, []

    def built(*arguments: Any, **options: Any) -> torch.nn.Module:
        module = build(*arguments, **options)

        def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if module.training:
                seen.append(len(inputs[0]))
                if len(inputs[0]) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory")

        module.register_forward_pre_hook(refuse)
        return module

    monkeypatch.setattr(model, "build", built)
    return seen


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(easy, monkeypatch):
    whole = follow(NORM_FREE, easy)
    seen = crowded(monkeypatch, 3)
    reports = follow(NORM_FREE, easy)
    assert seen[:6] == [8, 4, 2, 2, 2, 2] and max(seen[3:]) == 2
    assert last_of(reports) == pytest.approx(last_of(whole), abs=1e-4)


def test_one_image_that_does_not_fit_ends_the_run_with_a_hint(easy, monkeypatch):
    crowded(monkeypatch, 0)
    with pytest.raises(WorkError, match="out of memory with 1 images at a time.*micro_batch_size"):
        follow(NORM_FREE, easy)


def test_no_step_reads_a_value_back_to_the_host(easy, monkeypatch):
    values = EVERYTHING | {"batch_size": 33, "epochs": 16}  # three steps to a tick
    run = start(TrainConfig.from_dict(values), easy, CPU)
    reads = []
    names = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu")
    for name in names:
        original = getattr(torch.Tensor, name)

        def spy(self, *args, original=original, name=name):
            reads.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, spy)
    loop._train_tick(run)
    assert run.tick == 1
    assert reads == []
    with Gauge(CPU) as gauge:
        loop._measure(run, gauge, *loop._train_tick(run))
    assert reads, "the spies see nothing at all"


configurations = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["test_resnet", "test_byobnet", "test_vit"]),
        "global_pool": st.sampled_from(["avg", "max", "avgmax"]),
        "batch_size": st.integers(10, 24),
        "epochs": st.integers(4, 5),
        "train_fraction": st.sampled_from([1.0, 0.97]),
        "lr": st.sampled_from([1e-3, 3e-2]),
        "pct_start": st.floats(0.01, 0.99),
        "layer_decay": st.sampled_from([1.0, 0.7]),
        "clip_grad": st.sampled_from([None, 0.1]),
        "label_smoothing": st.sampled_from([0.0, 0.2]),
        "ema_decay": st.sampled_from([None, 0.5, 1.0]),
        "drop_rate": st.sampled_from([0.0, 0.3]),
        "drop_path_rate": st.sampled_from([0.0, 0.3]),
        "precision": st.sampled_from(["auto", "bf16"]),
        "seed": st.integers(0, 2**31 - 1),
    },
    optional={name: st.just(value) for name, value in AUGMENTED.items()},
)


@patient
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=configurations, tick=st.integers(1, 15))
def test_any_run_resumes_at_any_tick_to_the_bit(easy, tmp_path_factory, values, tick):
    values = values | {"pretrained": False}
    out, again = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("resumed")
    reports = follow(values, easy, out=out)
    if len(reports) <= tick or reports[tick - 1]["diverged"]:
        return
    resumed = follow(values, easy, checkpoint=out / str(tick), out=again)
    assert timeless(resumed) == timeless(reports[tick - 1 :])
    for folder in again.iterdir():
        assert_same_checkpoint(folder, out / folder.name)


# Without batch statistics and random layers the number of ranks changes nothing but rounding.
RANKED = BASE | {
    "model": "test_vit.r160_in1k",
    "hflip": 0.5,
    "degrees": 10.0,
    "clip_grad": 1.0,
    "unfreeze": 0.5,
    "micro_batch_size": 4,
}
# With them, the ranks must at least agree on the weights that are scored and kept.
NORMED = BASE | {"lr": 1e-2, "ema_decay": 0.8, "drop_rate": 0.2}


def _rank(rank: int, data: Path, out: Path) -> None:
    """One of two ranks: train both configurations and write what was reported."""
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    try:
        _train_as_rank(rank, data, out)
    finally:
        dist.destroy_process_group()


def _train_as_rank(rank: int, data: Path, out: Path) -> None:
    for name, values in (("ranked", RANKED), ("normed", NORMED)):
        place = out / name / str(rank)
        place.mkdir(parents=True)
        reports = follow(values, data, out=place)
        (place / "reports.json").write_text(json.dumps(reports))
    checkpoint, resumed = out / "normed" / "0" / "13", out / "resumed" / str(rank)
    follow(NORMED, data, checkpoint=checkpoint, out=resumed)
    try:
        follow(BASE | {"batch_size": 9}, data)
    except InputError as error:
        (out / f"refused_{rank}").write_text(str(error))


def _second(_: int, data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    _rank(1, data, out)


@pytest.fixture(scope="module")
def two_ranks(easy, tmp_path_factory) -> Path:
    """Both ranks' reports and checkpoints; this process is the first of them."""
    out = tmp_path_factory.mktemp("ranks")
    second = torch.multiprocessing.spawn(_second, args=(easy, out), nprocs=1, join=False)
    _rank(0, easy, out)
    second.join()
    return out


def reports_of(out: Path, name: str, rank: int) -> list[dict[str, float]]:
    return json.loads((out / name / str(rank) / "reports.json").read_text())


@patient
def test_two_ranks_equal_one_with_the_same_global_batch(two_ranks, easy, tmp_path):
    alone = timeless(follow(RANKED, easy, out=tmp_path))
    together = timeless(reports_of(two_ranks, "ranked", 0))
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    found, expected = (
        load_file(folder / "16" / snapshot.WEIGHTS)
        for folder in (two_ranks / "ranked" / "0", tmp_path)
    )
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


@patient
@pytest.mark.parametrize("name", ["ranked", "normed"])
def test_both_ranks_report_the_same_and_the_first_keeps_the_checkpoint(two_ranks, name):
    first, second = (timeless(reports_of(two_ranks, name, rank)) for rank in (0, 1))
    assert first == second
    assert (two_ranks / name / "0" / "16" / snapshot.WEIGHTS).exists()
    assert [path.name for path in (two_ranks / name / "1").iterdir()] == ["reports.json"]


@patient
def test_what_two_ranks_report_is_the_score_of_the_weights_that_are_kept(two_ranks, easy):
    for tick in (2, 16):
        logits, labels = logits_of(two_ranks / "normed" / "0" / str(tick), easy)
        exact = log_loss(labels, logits.double().sigmoid())
        report = reports_of(two_ranks, "normed", 0)[tick - 1]
        assert report["val/log_loss"] == pytest.approx(exact, rel=1e-4)


@patient
def test_two_ranks_resume_to_the_bit(two_ranks):
    assert_same_checkpoint(two_ranks / "resumed" / "0" / "16", two_ranks / "normed" / "0" / "16")


@patient
def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(two_ranks):
    for rank in (0, 1):
        text = (two_ranks / f"refused_{rank}").read_text()
        assert text == "batch_size=9 does not divide among 2 workers"

"""The probes: what they say is true, and the training they look at is none the other for it."""

import copy
import json
import math
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from conftest import CPU
from PIL import Image
from safetensors.torch import load_file
from test_loop import timeless

from aiornot.config import InputError, TrainConfig, WorkError
from aiornot.training import augment, finder, loop, memory, snapshot, strips, watch
from aiornot.training.run import Run, start
from aiornot.verbs.training import watched_ticks

BASE = {"model": "test_resnet.r160_in1k", "pretrained": False, "epochs": 2, "batch_size": 8}

EVERYTHING = BASE | {
    "epochs": 3,
    "batch_size": 14,
    "lr": 1e-2,
    "ema_decay": 0.8,
    "drop_rate": 0.2,
    "drop_path_rate": 0.3,
    "clip_grad": 0.5,
    "layer_decay": 0.8,
    "unfreeze": 0.5,
    "micro_batch_size": 5,
    "hflip": 0.5,
    "jpeg": 0.3,
}


class Kept(list[watch.Findings]):
    """What a watch of these ticks found."""

    def watch(self, *ticks: int) -> watch.Watch:
        return watch.Watch(ticks=frozenset(ticks), keep=self.append)


def train(values: dict[str, Any], data: Path, out: Path, watching: watch.Watch | None) -> list:
    """Train, keep the checkpoint of every tick, and return the reports but for the clock's."""
    reports = []

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        reports.extend(timeless([metrics]))
        if folder is not None:
            shutil.copytree(folder, out / str(int(metrics["tick"])))

    config = TrainConfig.from_dict(values)
    loop.train(config, data=data, device=CPU, report=report, watch=watching)
    return reports


def state(folder: Path) -> dict[str, Any]:
    """Return all that a checkpoint holds, as bytes where it can be compared so."""
    saved = torch.load(folder / snapshot.STATE, weights_only=True)
    flat: dict[str, Any] = dict(load_file(folder / snapshot.WEIGHTS))
    flat |= {"rng": saved["rng"], "schedule": saved["schedule"], "scaler": saved["scaler"]}
    moments = saved["optimizer"]["state"]
    flat |= {f"{number}/{k}": v for number, one in moments.items() for k, v in one.items()}
    return {k: v.numpy().tobytes() if isinstance(v, torch.Tensor) else v for k, v in flat.items()}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("values", [EVERYTHING, BASE | {"model": "test_vit.r160_in1k"}])
def test_a_watched_run_is_the_same_to_the_bit(easy, tmp_path, values):
    kept = Kept()
    every = range(1, 17)
    watched = train(values, easy, tmp_path / "watched", kept.watch(*every))
    assert watched == train(values, easy, tmp_path / "plain", None)
    for tick in every:
        folders = [tmp_path / way / str(tick) for way in ("watched", "plain")]
        assert state(folders[0]) == state(folders[1])
    assert [one.tick for one in kept] == list(every)
    assert all(one.activations and one.gradients and one.update_ratio for one in kept)


def one_step(
    data: Path, prepare: Callable[[Run], None] = lambda run: None, **changes: Any
) -> tuple[watch.Findings, Run, torch.nn.Module]:
    """Take and watch one step; return also the run after it and a copy of the model before it."""
    run = start(TrainConfig.from_dict(BASE | changes), data, CPU)
    run.parallel.train()
    run.thawing.at(0)
    before, probe = copy.deepcopy(run.module), watch.Probe()
    prepare(run)
    ((step, images, labels),) = loop._batches(run, 0, 1)
    loop._step(run, step, images, labels, probe)
    run.tick = 1
    return probe.findings(run), run, before


def gradients(run: Run, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step, worked out here."""
    ((_, images, labels),) = loop._batches(run, 0, 1)
    inputs = augment.normalize(images, mean=run.mean, std=run.std)
    smoothing = run.config.label_smoothing
    targets = labels * (1 - smoothing) + smoothing / 2
    F.binary_cross_entropy_with_logits(module(inputs).flatten(), targets).backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def in_bins(values: torch.Tensor) -> list[int]:
    with np.errstate(divide="ignore"):
        logs = np.log10(values.abs().double().numpy())
    return np.histogram(logs, bins=watch.EDGES)[0].tolist()


def scaled(run: Run) -> None:
    """Give a run the gradient scaler of fp16, which on a CPU has no use."""
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)


def poisoned(run: Run) -> None:
    scaled(run)
    run.module.fc.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize("prepare", [lambda run: None, scaled])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_gradients_are_those_before_clipping_and_without_the_scale_of_fp16(easy, prepare, clip):
    found, run, before = one_step(easy, prepare, clip_grad=clip)
    expected = gradients(run, before)
    norm = math.sqrt(sum(float((one**2).sum()) for one in expected.values()))
    assert found.grad_norm == pytest.approx(norm, rel=1e-4) and norm > 0.01
    layers = {name.removesuffix(".weight") for name, one in expected.items() if one.ndim > 1}
    assert found.gradients.keys() == layers and "fc" in layers
    for layer in ("fc", "conv1.0", "layer2.0.conv1"):
        seen, values = found.gradients[layer], expected[f"{layer}.weight"]
        moved = np.abs(np.array(seen.counts) - in_bins(watch.sample(values)))
        assert moved.sum() <= 0.02 * sum(seen.counts) + 2  # the last bits may cross an edge
        assert seen.beyond == 0


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_update_ratios_are_how_far_the_weights_have_moved(easy, clip):
    found, run, before = one_step(easy, clip_grad=clip, weight_decay=0.1)
    for (name, new), old in zip(run.module.named_parameters(), before.parameters(), strict=True):
        moved, size = (float(one.detach().square().mean().sqrt()) for one in (new - old, old))
        expected = pytest.approx(moved / size, rel=1e-4) if size else None
        assert found.update_ratio[name] == expected
    assert found.update_ratio["fc.weight"] > 0 and None in found.update_ratio.values()
    assert found.lr == pytest.approx(1e-3 / 25)  # where one cycle begins
    assert (found.step, found.skipped) == (run.end_of(1), False)


def test_a_step_that_the_scaler_skips_is_named(easy, tmp_path):
    found, _, _ = one_step(easy, poisoned)
    assert found.skipped and found.grad_norm is None
    assert {ratio for ratio in found.update_ratio.values() if ratio is not None} == {0.0}
    assert found.gradients["fc"].beyond > 0 and found.gradients["conv1.0"].beyond == 0
    strips.draw(found, watch.save(found, tmp_path).with_suffix(".png"))
    assert watch.load(tmp_path / "tick_01.json") == found


def test_what_is_frozen_has_no_gradient(easy):
    found, _, _ = one_step(easy, unfreeze=1.0)
    assert set(found.gradients) == {"fc"}
    assert set(found.update_ratio) == {"fc.weight", "fc.bias"}
    assert "layer1.0.conv1" in found.activations


def test_activations_are_those_of_the_last_micro_batch(easy):
    found, run, before = one_step(easy, micro_batch_size=3)  # of 8 images the last 2
    ((_, images, _),) = loop._batches(run, 0, 1)
    inputs = augment.normalize(images, mean=run.mean, std=run.std)
    outputs = {}
    for name, module in before.named_modules():
        module.register_forward_hook(
            lambda _, __, out, name=name: outputs.update({name: out.clone()})
        )
    before(inputs[6:])
    assert found.modules["act1"] == "ReLU" and found.modules["fc"] == "Linear"
    for name, seen in found.activations.items():
        values = watch.sample(outputs[name].detach())
        assert sum(seen.counts) + seen.zeros + seen.beyond == len(values)
        assert np.abs(np.array(seen.counts) - in_bins(values)).sum() <= 0.01 * len(values)
    assert found.activations["act1"].zeros > 0
    assert not any("drop_block" in name for name in found.activations)  # an nn.Identity


def hooks_of(module: torch.nn.Module) -> int:
    return sum(len(one._forward_hooks) for one in module.modules())


def test_the_hooks_are_gone_after_the_step_and_after_an_error(easy):
    _, run, _ = one_step(easy)
    assert hooks_of(run.module) == 0
    with pytest.raises(ZeroDivisionError), watch.Probe().looking(run.module):
        assert hooks_of(run.module) > 20
        raise ZeroDivisionError
    assert hooks_of(run.module) == 0


def test_only_the_last_step_of_a_tick_is_looked_at(easy, monkeypatch):
    run = start(TrainConfig.from_dict(BASE | {"batch_size": 4}), easy, CPU)  # 48 steps
    seen = []
    monkeypatch.setattr(watch.Probe, "before", lambda self, run: seen.append(run.adamw))
    loop._train_tick(run, watch.Probe())
    assert run.end_of(1) == 3 and len(seen) == 1
    loop._train_tick(run)
    assert len(seen) == 1


def test_a_watched_step_reads_nothing_back_to_the_host(easy, monkeypatch):
    run = start(TrainConfig.from_dict(EVERYTHING), easy, CPU)
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu"):
        original = getattr(torch.Tensor, name)

        def spy(self, *args, original=original, name=name):
            reads.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, spy)
    probe = watch.Probe()
    loop._train_tick(run, probe)
    assert reads == []
    probe.findings(run)
    assert reads == ["tolist", "tolist"]


def test_each_tick_is_told_before_its_report_also_where_the_run_diverges(easy):
    kept, told = Kept(), []
    config = TrainConfig.from_dict(BASE | {"lr": 1e3, "weight_decay": 10.0})
    loop.train(
        config,
        data=easy,
        device=CPU,
        report=lambda metrics, _: told.append(len(kept)),
        watch=kept.watch(*range(1, 17)),
    )
    assert told == list(range(1, len(kept) + 1)) and len(kept) < 16


@pytest.mark.parametrize(
    ("text", "ticks"),
    [
        (None, set()),
        ("8", {8}),
        ("1,8,16", {1, 8, 16}),
        ("1, 8", {1, 8}),
        ("all", set(range(1, 17))),
    ],
)
def test_ticks_are_numbers_or_all(text, ticks):
    assert watched_ticks(text) == ticks


@pytest.mark.parametrize("text", ["17", "0", "x", "", "1,,2", "1-4", "-1", "1.5", "all,1"])
def test_other_ticks_are_refused(text):
    with pytest.raises(InputError, match=r"give ticks from 1 to 16, such as 1,8,16, or all$"):
        watched_ticks(text)


def test_magnitudes_are_counted_and_the_rest_is_named():
    values = torch.tensor([0.0, -1e-20, 2e-12, -0.5, 0.5, 3.0, -9e3, 2e4, math.inf, -math.nan])
    counts = watch.magnitudes(values).tolist()
    assert counts[-2:] == [2, 3] and sum(counts) == len(values)
    assert counts[:-2] == in_bins(values[2:7]) and sum(counts[:-2]) == 5
    assert watch.magnitudes(values.to(torch.bfloat16)).sum() == len(values)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_sample_meets_every_image_channel_and_place(layout, axis):
    index = (
        torch.arange([32, 24, 40, 40][axis])
        .float()
        .view([-1 if i == axis else 1 for i in range(4)])
    )
    values = index.expand(32, 24, 40, 40).contiguous(memory_format=layout)
    found, counts = watch.sample(values).unique(return_counts=True)
    assert len(found) == values.shape[axis]
    assert watch.SAMPLE <= counts.sum() < 1.2 * watch.SAMPLE
    assert counts.min() > 0.9 * counts.max() - 2


def made_up(count: int) -> watch.Findings:
    layers = {f"blocks.{index}.mlp.fc1": [index % 9] * watch.BINS for index in range(count)}
    histograms = {
        name: watch.Histogram(counts=counts, zeros=3, beyond=1) for name, counts in layers.items()
    }
    names = [*layers, "norm", "act"]
    one = watch.Histogram(counts=[1] * watch.BINS, zeros=0, beyond=0)
    return watch.Findings(
        tick=8,
        step=100,
        lr=1e-3,
        grad_norm=None,
        skipped=True,
        update_ratio={f"{name}.weight": 1e-9 for name in layers} | {"norm.weight": None},
        gradients=histograms | {"pos_embed": one},
        activations={name: histograms.get(name, one) for name in names},
        modules=dict.fromkeys(layers, "Linear") | {"norm": "LayerNorm", "act": "GELU"},
    )


def test_the_picture_shows_layers_in_order_and_not_too_many(tmp_path):
    rows, total = strips.chosen(made_up(3))
    assert rows == ["pos_embed", *(f"blocks.{i}.mlp.fc1" for i in range(3)), "act"] and total == 5
    rows, total = strips.chosen(made_up(200))
    assert (len(rows), total) == (strips.ROWS, 202)
    assert (rows[0], rows[-1]) == ("pos_embed", "act") and len(set(rows)) == len(rows)


@pytest.mark.parametrize("count", [0, 3, 200])
def test_the_picture_can_be_opened_and_is_as_high_as_its_rows(tmp_path, count):
    strips.draw(made_up(count), tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        shades = np.asarray(image.convert("RGB"))
    assert 300 < shades.shape[1] < 1600
    assert shades.shape[0] == pytest.approx(120 + 18 * min(count + 2, strips.ROWS), abs=30)
    assert len(np.unique(shades.reshape(-1, 3), axis=0)) > 20


def test_what_is_written_is_read_and_named_for_tracking(easy, tmp_path):
    found, _, _ = one_step(easy)
    strips.watch(frozenset({1}), tmp_path / "probes").keep(found)
    assert sorted(one.name for one in (tmp_path / "probes").iterdir()) == [
        "tick_01.json",
        "tick_01.png",
    ]
    assert watch.load(tmp_path / "probes/tick_01.json") == found
    assert json.loads((tmp_path / "probes/tick_01.json").read_text())["log10_edges"] == watch.EDGES
    named = watch.logged(tmp_path / "probes", 1)
    assert named["probe/grad_norm"] == found.grad_norm
    assert named["probe/update_ratio/fc"] == found.update_ratio["fc.weight"]
    assert named["probe/grad/layer1.0.conv1"] == found.gradients["layer1.0.conv1"]
    assert named["probe/act/act1"] == found.activations["act1"]
    assert watch.logged(tmp_path / "probes", 2) == {}


def _second(_: int, data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    _rank(1, data, out)


def _rank(rank: int, data: Path, out: Path) -> None:
    """One of two ranks: train with a watch and without."""
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    try:
        kept, values = Kept(), BASE | {"batch_size": 12, "clip_grad": 0.1, "unfreeze": 0.5}
        reports = [
            train(values, data, out / name / str(rank), watching)
            for name, watching in (("watched", kept.watch(1, 9)), ("plain", None))
        ]
        assert reports[0] == reports[1]
        (out / f"ticks-{rank}").write_text(json.dumps([one.tick for one in kept]))
    finally:
        dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_of_several_ranks_the_first_looks_and_all_go_on(easy, tmp_path):
    second = torch.multiprocessing.spawn(_second, args=(easy, tmp_path), nprocs=1, join=False)
    _rank(0, easy, tmp_path)
    second.join()
    assert [json.loads((tmp_path / f"ticks-{rank}").read_text()) for rank in (0, 1)] == [[1, 9], []]
    for tick in ("1", "16"):
        assert state(tmp_path / "watched/0" / tick) == state(tmp_path / "plain/0" / tick)


# The learning-rate finder ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "index"),
    [
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], 4 - 1),
        ([9, 9, 9, 9, 8, 7, 6, 5, 4, 3, 9, 20], 9 - 7 + 2 + 1),
        ([5, 6, 9, 8, 8.5, 7, 6, 5.5, 5.6, 3, 9], 9 - 6 + 2 + 1),
        ([3, 2], 0),
        ([1, 2, 3], None),
        ([2], None),
        ([], None),
    ],
)
def test_the_valley_is_the_longest_and_its_middle_is_chosen(losses, index):
    """By hand from the rule: end - length + length / 3 + length / 6, each rounded down."""
    assert finder.valley(losses) == index


def test_the_finder_suggests_a_rate_at_which_the_loss_falls(easy):
    before, told = torch.get_rng_state(), []
    config = TrainConfig.from_dict(BASE | {"hflip": 0.5, "clip_grad": 1.0, "drop_rate": 0.1})
    found = finder.find(config, data=easy, device=CPU, progress=lambda *done: told.append(done))
    assert torch.equal(torch.get_rng_state(), before)
    assert found.suggestion is not None and 1e-4 < found.suggestion < 1e-1
    assert found.fall > finder.WEAK
    assert found.rates[0] == 1e-7 and found.rates == sorted(found.rates)
    ratios = np.diff(np.log10(found.rates))
    assert ratios == pytest.approx(np.full(len(ratios), 7 / 99))
    assert len(found.rates) == len(found.losses) == len(found.smoothed) <= 100
    assert told == [(step, 100) for step in range(1, len(told) + 1)]


def sweep(monkeypatch, easy, losses, before=lambda step, run: None, **changes):
    """Run the finder on losses that are made up."""

    def steps(run: Run, count: int):
        for step, loss in enumerate(losses[:count]):
            before(step, run)
            yield torch.tensor(loss)

    monkeypatch.setattr(finder.loop, "steps", steps)
    return finder.find(TrainConfig.from_dict(BASE | changes), data=easy, device=CPU)


def test_the_average_is_corrected_and_ends_where_the_loss_explodes(easy, monkeypatch):
    losses = [1.0 + step / 1000 for step in range(60)] + [0.5] * 20 + [1e3] * 20
    found = sweep(monkeypatch, easy, losses)
    average, expected = 0.0, []
    for number, loss in enumerate(losses[:81], 1):
        average = 0.98 * average + 0.02 * loss
        expected.append(average / (1 - 0.98**number))
    assert found.smoothed == pytest.approx(expected) and found.smoothed[0] == 1.0
    assert found.losses == pytest.approx(losses[:81])
    end, length = 79, 21  # the falling ones, and one before them
    assert found.suggestion == finder.rate_at(end - length + 7 + 3)
    assert found.fall == pytest.approx(1 - min(expected) / expected[10])


def test_steps_that_do_not_count_are_left_out(easy, monkeypatch):
    def scaler(step: int, run: Run) -> None:
        if step == 0:
            scaled(run)
            run.scaler.scale(torch.ones(()))
        if step == 30:
            run.scaler.update(512.0)  # as after gradients that are not finite

    losses = [1.0 - step / 200 for step in range(100)]
    losses[20] = math.nan
    losses[40] = math.inf
    found = sweep(monkeypatch, easy, losses, scaler)
    left = [step for step in range(100) if step not in (20, 30, 40)]
    assert found.rates == [finder.rate_at(step) for step in left]
    assert found.losses == pytest.approx([losses[step] for step in left])


def test_the_first_ten_steps_begin_no_valley(easy, monkeypatch):
    found = sweep(monkeypatch, easy, [5.0 - step / 3 for step in range(10)] + [3.0] * 90)
    assert len(found.rates) == 100
    rising = sweep(monkeypatch, easy, [1.0 + step / 50 for step in range(100)])
    assert rising.suggestion is None and rising.fall == 0
    assert sweep(monkeypatch, easy, [math.nan] * 100).suggestion is None


def test_layers_keep_the_ratios_of_their_rates(easy, monkeypatch):
    rates = []

    def note(step: int, run: Run) -> None:
        rates.append([group["lr"] for group in run.adamw.param_groups])
        run.adamw.step()
        run.schedule.step()
        assert run.ema is None and all(p.requires_grad for p in run.parameters)
        assert {group["betas"] for group in run.adamw.param_groups} == {(0.9, 0.999)}

    changes = {"layer_decay": 0.5, "ema_decay": 0.9, "unfreeze": 1.0, "lr": 0.3}
    sweep(monkeypatch, easy, [1.0] * 100, note, **changes)
    for step, found in enumerate(rates):
        assert max(found) == pytest.approx(finder.rate_at(step))
        assert np.array(found) / max(found) == pytest.approx(np.array(rates[0]) / max(rates[0]))
    assert len(set(rates[0])) > 3


def test_the_curve_is_drawn_also_without_a_suggestion(tmp_path):
    nothing = finder.Found(rates=[], losses=[], smoothed=[], suggestion=None)
    rising = finder.Found(
        rates=[1e-5, 1e-4], losses=[1.0, 2.0], smoothed=[1.0, 1.5], suggestion=1e-5
    )
    for number, found in enumerate((nothing, rising)):
        finder.plot(found, tmp_path / "new" / f"{number}.png", title="a model")
        with Image.open(tmp_path / "new" / f"{number}.png") as image:
            assert image.width > 800


# What fits into memory ------------------------------------------------------------------------


def meter_of(capacity: int, *, base: int = 1000, per_image: int = 100, sudden: int = 10**9):
    """Return a meter of made-up memory, and what it was asked for."""
    asked = []

    def meter(size: int) -> int:
        asked.append(size)
        peak = base + per_image * size + (10**6 if size > sudden else 0)
        if peak > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return peak

    return meter, asked


@pytest.mark.parametrize(
    ("measured", "expected"),
    [({8: 1800, 16: 2600}, (1000, 100)), ({1: 700}, (0, 700)), ({2: 500, 4: 500}, (500, 0))],
)
def test_the_line_runs_through_both_measurements(measured, expected):
    assert memory.line(measured) == expected


@pytest.mark.parametrize(
    ("allowed", "size"), [(2000, 10), (2099, 10), (2100, 11), (1000, 1), (0, 1)]
)
def test_what_is_predicted_stays_within_what_is_allowed(allowed, size):
    assert memory.predict(1000, 100, bytes_allowed=allowed) == size


@pytest.mark.parametrize(
    ("batch", "free", "asked", "size"),
    [
        (64, 20_000, [8, 16, 64], 64),  # all fit
        (64, 5000, [8, 16, 35], 35),  # .9 x 5000 = 1000 + 100 x 35
        (12, 20_000, [3, 6, 12], 12),
        (16, 20_000, [4, 8, 16], 16),
        (64, 2200, [8, 16, 6, 12, 9], 9),  # 16 do not fit, 6 and 12 do
        (64, 1100, [8, 6, 4, 3, 2, 1, 2], 1),
        (2, 20_000, [1, 2], 2),
        (1, 20_000, [1], 1),
    ],
)
def test_two_small_sizes_are_measured_and_the_prediction_is_tried(batch, free, asked, size):
    meter, found = meter_of(free)
    fit = memory.search(meter, batch_size=batch, free=free)
    assert (found, fit.micro_batch, fit.predicted) == (asked, size, size)
    assert fit.peak == 1000 + 100 * size
    if len(asked) > 2:
        assert (fit.base, fit.per_image) == pytest.approx((1000, 100) if size > 1 else (0, 1100))


def test_a_prediction_that_was_too_high_is_lowered_by_a_fifth_until_it_fits():
    meter, asked = meter_of(100_000, sudden=60)
    fit = memory.search(meter, batch_size=128, free=100_000)
    assert asked == [8, 16, 128, 102, 81, 64, 51]
    assert (fit.predicted, fit.micro_batch, fit.peak) == (128, 51, 6100)


def test_a_model_of_which_no_image_fits_is_one_sentence():
    meter, asked = meter_of(1000)
    with pytest.raises(WorkError, match="not even one image fits into memory"):
        memory.search(meter, batch_size=4, free=1000)
    assert asked == [1]


def test_what_a_failed_attempt_held_is_gone_before_the_next():
    held = []

    def meter(size: int) -> int:
        assert all(one() is None for one in held)
        activations = torch.zeros(size)
        held.append(weakref.ref(activations))
        if size > 20:
            raise torch.OutOfMemoryError(f"no room for {len(activations)}")
        return size

    assert memory.search(meter, batch_size=40, free=10**6).micro_batch == 20
    assert len(held) == 6


def test_without_a_gpu_it_says_that_it_needs_one(easy):
    with pytest.raises(InputError, match="a GPU's memory that is measured, and this is a CPU"):
        memory.fit(TrainConfig.from_dict(BASE), data=easy, device=CPU)

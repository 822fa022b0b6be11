"""Figures of a stage: real PNG files, and what is drawn in them."""

import math
import random
import warnings

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from aiornot.config import InputError, TrainConfig
from aiornot.tuning import figures
from aiornot.tuning.axes import Axis, axes_of, score_axis
from aiornot.tuning.importance import importances
from aiornot.tuning.ledger import Trial
from aiornot.tuning.space import choice, distribution_to_json, loguniform, randint, uniform

SPACE = {
    "lr": loguniform(1e-5, 1e-1),
    "drop_rate": uniform(0.0, 0.5),
    "clip_grad": choice(None, 1.0, 5.0),
    "random_resized_crop": choice(False, True),
    "epochs": randint(2, 20),
    "model": choice(
        "efficientnet_b1.ra4_e3600_r240_in1k",
        "resnet18.a1_in1k",
        "convnext_tiny.fb_in22k",
        "tf_efficientnetv2_b0.in1k",
    ),
    "drop_path_rate": uniform(0.0, 0.3),
    "hflip": choice(0.5),
}
RECORD = {
    "meaning": {"sampler": "random", "budget": {"grace_period": 1, "reduction_factor": 4}},
    "space": {name: distribution_to_json(domain) for name, domain in SPACE.items()},
}


def make(number, scores, *, state="finished") -> Trial:
    """Build a trial; ``drop_path_rate`` applies to two of the models only."""
    draw = random.Random(number)
    params = {
        "lr": 10 ** draw.uniform(-5, -1),
        "drop_rate": draw.uniform(0, 0.5),
        "clip_grad": draw.choice([None, 1.0, 5.0]),
        "random_resized_crop": draw.choice([False, True]),
        "epochs": draw.randint(2, 20),
        "model": draw.choice(SPACE["model"].choices),
        "drop_path_rate": draw.uniform(0.01, 0.3),
        "hflip": 0.5,
    }
    trained = dict(params)
    if "efficientnet" not in params["model"]:
        trained["drop_path_rate"] = 0.0
    return Trial(
        id=f"explore-{number:03d}",
        number=number,
        state=state,
        params=params,
        config=TrainConfig.from_dict(trained).to_dict(),
        ticks=[{"tick": k, "score": s, "seconds": 1.0} for k, s in enumerate(scores, 1)],
    )


def rising(end, count=16):
    return [0.5 + (end - 0.5) * k / count for k in range(1, count + 1)]


@pytest.fixture
def trials():
    """One of every state, NaN among them."""
    found = [make(k, rising(0.7 + k / 100)) for k in range(5)]
    found += [make(k, [0.4 + k / 100], state="stopped") for k in range(5, 15)]
    found += [
        make(15, [0.6, 0.61, 0.0], state="diverged"),
        make(16, [0.0], state="diverged"),
        make(17, [0.55, 0.56], state="failed"),
        make(18, [], state="failed"),
        make(19, [0.5, math.nan, 0.7], state="running"),
        make(20, [], state="running"),
    ]
    return found


def write(folder, trials, record=RECORD):
    found = importances(SPACE, trials, rung=1) if record is RECORD else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where a figure cannot be laid out
        return figures.write(str(folder), "demo explore", record, trials, found=found)


def texts(figure):
    """Return all that is written in a figure and its legend."""
    legend = [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []
    return legend + [text.get_text() for axes in figure.axes for text in axes.texts]


def test_four_figures_of_a_search_are_written(trials, tmp_path):
    paths = write(tmp_path / "new" / "figures", trials)
    assert [path.stem for path in paths] == ["curves", "parallel", "slices", "importances"]
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
            assert image.format == "PNG" and min(image.size) > 300
            assert (pixels < 128).mean() > 0.002, "hardly anything is drawn"
    assert write(tmp_path / "new" / "figures", trials) == paths


def test_nothing_is_cut_off_or_written_over_something_else(trials):
    """The labels of every figure lie inside it, and the axes' labels do not overlap."""
    best, axes = trials[4], axes_of(SPACE, trials)
    drawn = [trial for trial in trials if figures.score_curve(trial)[0]]
    for figure in (
        figures.curves("a title", drawn, rungs=[1, 4], best=best),
        figures.parallel("a title", drawn, axes=axes, best=best),
        figures.slices("a title", drawn, axes=axes, best=best),
    ):
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        for panel in figure.axes:
            labels = [*panel.texts, *(panel.get_xticklabels() if panel.axison else [])]
            boxes = [text.get_window_extent() for text in labels if text.get_text()]
            for number, box in enumerate(boxes):
                assert (
                    box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
                )
                assert not any(box.overlaps(other) for other in boxes[:number])


def test_the_best_is_named_and_the_stopped_are_pale_and_behind(trials):
    drawn = [trial for trial in trials if figures.score_curve(trial)[0]]
    figure = figures.curves("", drawn, rungs=[1, 4], best=trials[4])
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) and line.get_zorder()]
    colours = {id_: to_hex(line.get_color()) for id_, line in zip(range(18), lines, strict=False)}
    assert colours[4] == figures.RED.lower() and colours[0] == figures.BLUE.lower()
    assert colours[5] == figures.GREY.lower()
    assert lines[4].get_zorder() > lines[0].get_zorder() > lines[5].get_zorder()
    written = texts(figure)
    assert "explore-004" in written and "rung 1" in written and "rung 4" in written
    assert "best: explore-004 (0.7400, finished)" in written
    assert {"finished (4)", "stopped (10)", "diverged (1)", "failed (1)", "running (1)"} <= set(
        written
    )


def test_a_curve_leaves_out_nan_and_the_zero_of_a_diverged_trial(trials):
    assert figures.score_curve(trials[15]) == ([1, 2], [0.6, 0.61])
    assert figures.score_curve(trials[16]) == ([], [])
    assert figures.score_curve(trials[19]) == ([1, 3], [0.5, 0.7])


def test_parallel_lines_pass_below_what_did_not_apply(trials):
    axes = axes_of(SPACE, trials[:5])
    place = [axis.name for axis in axes].index("drop_path_rate")
    figure = figures.parallel("", trials[:5], axes=axes, best=trials[4])
    for trial, line in zip(trials[:5], figure.axes[0].lines, strict=False):
        used = "efficientnet" in trial.config["model"]
        assert (line.get_ydata()[place] > 0) == used
    assert "not used" in texts(figure) and "explore-004" in texts(figure)


def test_a_slice_holds_only_the_trials_that_used_the_parameter(trials):
    axes = axes_of(SPACE, trials[:5])
    figure = figures.slices("", trials[:5], axes=axes, best=trials[4])
    used = sum("efficientnet" in trial.config["model"] for trial in trials[:5])
    assert 0 < used < 5
    panels = {panel.get_title().split()[0]: panel for panel in figure.axes if panel.axison}
    assert set(panels) == set(SPACE) - {"hflip"}  # which had one choice
    assert len(panels["drop_path_rate"].collections) == used
    assert f"({used} of 5 trials)" in panels["drop_path_rate"].get_title()
    assert len(panels["lr"].collections) == 5


def test_importances_that_chance_explains_are_pale():
    rows = [
        {"parameter": "lr", "share": 0.7, "chance": 0.01},
        {"parameter": "model", "share": 0.3, "chance": 0.4},
    ]
    figure = figures.importances("", {"rows": rows, "num_top": 5, "num_trials": 12, "rung": 4})
    bars = figure.axes[0].patches
    assert [round(bar.get_width(), 2) for bar in bars] == [0.7, 0.3]
    colours = [to_hex(bar.get_facecolor()) for bar in bars]
    assert colours == [figures.BLUE.lower(), figures.GREY.lower()]
    assert "70%   by chance 1%" in texts(figure)


def test_one_trial_alone_has_curves_only(tmp_path):
    paths = write(tmp_path, [make(0, rising(0.9))], record={})
    assert [path.stem for path in paths] == ["curves"]


def test_one_trial_of_a_search_has_its_point(tmp_path):
    paths = write(tmp_path, [make(0, [0.6], state="running")])
    assert [path.stem for path in paths] == ["curves", "parallel", "slices"]


def test_a_stage_that_searches_nothing_shows_what_differs(tmp_path):
    trials = [make(0, rising(0.9)), make(1, rising(0.8))]
    paths = write(tmp_path, trials, record={"meaning": {"sampler": None}})
    assert [path.stem for path in paths] == ["curves", "parallel", "slices"]
    names = {axis.name for axis in axes_of({}, trials)}
    assert {"lr", "epochs"} <= names and "hflip" not in names and "seed" not in names


def test_where_all_diverged_there_are_curves_only(tmp_path):
    trials = [make(k, [0.6, 0.5, 0.0], state="diverged") for k in range(3)]
    assert [path.stem for path in write(tmp_path, trials)] == ["curves"]


def test_where_nothing_was_reported_there_is_a_sentence(tmp_path):
    trials = [make(0, [], state="failed"), make(1, [], state="running"), make(2, [math.nan])]
    with pytest.raises(InputError, match="demo explore: no trial has a score yet"):
        write(tmp_path / "figures", trials)
    assert not (tmp_path / "figures").exists()


def test_a_file_is_no_folder(trials, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", "s3://bucket/figures"):
        with pytest.raises(InputError, match="give a local folder"):
            write(folder, trials)


def axis(name, domain, *values) -> Axis:
    trials = [
        Trial(id=str(k), number=k, params={name: value}, config={name: value})
        for k, value in enumerate(values)
    ]
    (found,) = axes_of({name: domain}, trials)
    return found


def test_numbers_lie_on_the_scale_that_was_searched():
    log = axis("lr", loguniform(1e-5, 1e-1), 1e-5, 1e-3, 1e-1)
    assert list(log.places.values()) == pytest.approx([0, 0.5, 1])
    assert [label for _, label in log.ticks] == ["1e-05", "0.0001", "0.001", "0.01", "0.1"]
    assert [place for place, _ in log.ticks] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    narrow = axis("lr", loguniform(2e-3, 8e-3), 4e-3)
    assert narrow.places["0"] == pytest.approx(0.5)
    assert [label for _, label in narrow.ticks] == ["0.002", "0.004", "0.006", "0.008"]
    linear = axis("drop_rate", uniform(0.0, 0.5), 0.1)
    assert linear.places["0"] == pytest.approx(0.2)
    whole = axis("epochs", randint(2, 4), 3)
    assert [label for _, label in whole.ticks] == ["2", "3", "4"] and whole.places["0"] == 0.5


def test_categories_lie_at_equal_distances_a_little_apart():
    found = axis("clip_grad", choice(None, 1.0, 5.0), None, 1.0, 5.0, None)
    assert list(found.places.values()) == pytest.approx([0, 0.5, 1, 0], abs=0.05)
    assert found.places["0"] != found.places["3"]
    assert found.ticks == [(0, "None"), (0.5, "1.0"), (1, "5.0")]
    named = axis("model", choice("efficientnet_b1.ra4_e3600_r240_in1k_and_more", "a.b"), "a.b")
    assert [label for _, label in named.ticks] == ["efficientnet_b1\n.ra4_e3600_r240_in1...", "a.b"]


def test_axes_come_in_the_order_of_importance():
    trials = [make(0, [0.5])]
    names = [axis.name for axis in axes_of(SPACE, trials, first=["model", "lr"])]
    assert names[:3] == ["model", "lr", "clip_grad"] and len(names) == 7


def test_equal_scores_stand_in_the_middle():
    assert score_axis({"a": 0.7, "b": 0.7}).places == pytest.approx({"a": 0.5, "b": 0.5})
    assert score_axis({"a": 0.7, "b": 0.8}).places == pytest.approx({"a": 0.0, "b": 1.0})

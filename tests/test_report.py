"""The report of a run: one page that fetches nothing, escapes all, and says what is missing."""

import html
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import run_verb
from sklearn import metrics
from test_board import make, write

from aiornot.data import markup
from aiornot.delivery import (
    manifest,
    report,
    report_page,
    report_results,
    report_search,
    report_threshold,
)
from aiornot.delivery.calibrate import calibrate
from aiornot.delivery.curves import NUM_POINTS, curves
from aiornot.tuning.ledger import Ledger

HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.titles: list[str] = []
        self.codes: list[str] = []
        self.text, self.inside = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags[tag] += 1
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("src", "href", "xlink:href") if name in found]
        self.titles += [found["aria-label"]] if "aria-label" in found and tag == "svg" else []
        self.codes += [""] if tag == "code" else []
        self.inside = tag == "code" or (tag == "span" and self.inside)

    def handle_endtag(self, tag):
        self.inside = self.inside and tag == "span"

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.codes[-1] += data


@pytest.fixture
def root(tmp_path) -> Path:
    """A chain of two stages without a bundle."""
    explore = [
        make(
            n,
            [0.5 + 0.02 * n, 0.6 + 0.01 * n] * (8 if n > 8 else 1),
            lr=10.0 ** -(n % 4 + 1),
            state="finished" if n > 8 else "stopped",
        )
        for n in range(12)
    ]
    explore[3].id = "<script>x"  # which is a file's name, so without a slash
    home = tmp_path / "runs/demo"
    write(Ledger(str(home / "explore")), explore, num_trials=12)
    full = [
        make(n, [0.7 + n / 50] * 16, state="finished", stage="full", origin=f"from explore-{n:03d}")
        for n in (11, 10, 9, 7)
    ]
    meaning = {"after": "explore", "sampler": None, "data": HOSTILE}
    write(Ledger(str(home / "full")), full, meaning=meaning, warnings=[HOSTILE])
    return tmp_path / "runs"


@pytest.fixture
def whole(root, delivered) -> Path:
    """The same with all that can be measured of its bundle."""
    bundle = root / "demo/bundle"
    shutil.copytree(delivered.folder, bundle)
    description = json.loads((bundle / "bundle.json").read_text())
    description["data"]["source_note"] = HOSTILE
    (bundle / "bundle.json").write_text(json.dumps(description))
    val, name = description["val"], description["sha256"][:12]
    calibration = description["calibration"]
    of_model = {"model": name, "calibration": calibration}
    evaluations = [val | of_model | {"split": "test"}, val | {"split": "test", "model": "0" * 12}]
    kept = {"test_opened": ["2026-11-28T00:00:00+00:00"], "evaluations": evaluations}
    (bundle / "evaluations.json").write_text(json.dumps(kept))
    differences = {"auroc": {"difference": 0.01, "interval": [-0.01, 0.02], "better": None}}
    values = {who: {"auroc": 0.9} for who in ("final", "baseline")}
    compared = {"metrics": values, "differences": differences, "verdict": "no better than before"}
    models = {"final": {"sha256": description["sha256"], **of_model}}
    comparison = {"models": models, "splits": {"test": compared}}
    (bundle / manifest.COMPARISON).write_text(json.dumps(comparison))
    (bundle / "robustness.json").write_text(json.dumps({"splits": {"val": damaged() | of_model}}))
    (root / "demo/errors").mkdir()
    (root / "demo/errors/errors.json").write_text(json.dumps(erring() | of_model))
    (root / "human").mkdir()
    counts = {"accuracy": [40, 50], "accuracy_real": [19, 25], "accuracy_generated": [21, 25]}
    counts |= {"precision": [21, 27], "recall": [21, 25]}
    person = {"time": "2026-11-28T00:00:00+00:00", "split": "val", "human": {"counts": counts}}
    person |= {"model": {"sha256": description["sha256"]}, "images": [{"id": "secret"}]}
    (root / "human/1.json").write_text(json.dumps(person))
    return root


def damaged() -> dict:
    names = ("auroc", "balanced_accuracy@threshold", "fpr@threshold", "flip_rate")
    names += ("recall@threshold",)
    scores = {"metrics": dict.fromkeys(names, 0.8), "intervals": dict.fromkeys(names, [0.7, 0.9])}
    curve = [{"value": value} | scores for value in (95, 60, 30)]
    row = {"generator": HOSTILE, "class": "generated", "num": 3}
    row |= {"called_generated": {"clean": {"share": 0.5, "interval": [0.1, 0.9]}}}
    tiers = [{"name": name} | scores for name in ("clean", "web", "hard")]
    found = {"split": "val", "about": "How.", "tiers": tiers, "curves": {"jpeg_quality": curve}}
    return found | {"generators": [row], "held_out": None}


def erring() -> dict:
    count = {"errors": 1, "images": 4, "share": 0.25, "interval": [0.05, 0.7]}
    both = {"false_positives": count, "false_negatives": count}
    worst = {kind: [{"id": HOSTILE, "probability": 0.9}] for kind in both}
    return {
        "split": "test",
        **both,
        "worst": worst,
        "slices": {"format": [{"value": "PNG"} | both]},
    }


def collect(root: Path) -> dict:
    return report.collect(
        "demo", root=str(root), folder=root / "demo", data=str(root / "none"), human=root / "human"
    )


def test_the_page_fetches_nothing_and_has_every_figure(whole):
    text = report_page.page(collect(whole))
    page = Page(text)
    assert page.tags["script"] == page.tags["img"] == page.tags["link"] == 0
    assert "://" not in text and "default-src 'none'" in text
    assert len(set(page.ids)) == len(page.ids) == 13
    assert sorted(page.links) == sorted(f"#{name}" for name in page.ids)
    assert [title.partition(":")[0] for title in page.titles] == [
        *("Calibration", "ROC", "Precision and recall", "Scores by class", "JPEG"),
        "trials, images and time of each stage",
        *("explore, 12 trials", "full, 4 trials", "explore and full"),
    ]
    assert "ROC: recall of generated, over real images called generated" in page.titles
    assert not re.search(r"\b(nan|None|inf)\b", page.text)


def test_texts_of_the_data_are_escaped(whole):
    text = report_page.page(collect(whole))
    # Trial, source's note, warning of a stage, generator, and two errors.
    assert text.count("&lt;script&gt;") >= 6 and "<script" not in text


def test_only_results_of_this_model_at_this_threshold_are_shown(whole):
    found = collect(whole)
    assert found["missing"] == {} and found["people"][0]["person"]["value"] == 0.8
    assert found["human"].keys() == {"time", "split", "human", "model"}  # no ids of images
    path = whole / "demo/bundle/bundle.json"
    description = json.loads(path.read_text())
    description["calibration"]["threshold"] /= 2
    path.write_text(json.dumps(description))
    found = collect(whole)
    assert found["comparison"] is found["errors"] is found["evaluations"]["test"] is None
    assert set(found["missing"]) == {"test", "comparison", "robustness", "errors"}


def test_what_is_missing_has_a_sentence_in_its_place(root, delivered):
    found = collect(root)
    assert found["missing"] == {"delivered": {"sentence": report_sentence(root), "command": None}}
    assert "curves" not in found["evaluations"]
    shutil.copytree(delivered.folder, root / "demo/bundle")
    page = Page(report_page.page(collect(root)))
    missing = collect(root)["missing"]
    assert [
        missing[name]["command"].split()[1] for name in missing if missing[name]["command"]
    ] == [*("evaluate", "robustness", "errors", "human")]
    assert {told["command"] for told in missing.values()} - {None} <= set(page.codes)
    assert "sealed still" in page.text and has_roc(page)  # of val
    # Opened, and then calibrated anew: no evaluation of test belongs to the model as it is.
    opened = {"test_opened": ["2026-11-28T09:00:00"], "evaluations": []}
    (root / "demo/bundle" / manifest.EVALUATIONS).write_text(json.dumps(opened))
    text = Page(report_page.page(collect(root))).text
    assert "opened 1 time(s), not scored at this threshold" in text
    assert "sealed still" not in text


def report_sentence(root: Path) -> str:
    text = Page(report_page.page(collect(root))).text
    return re.search(r"No model is delivered yet[^.]*\.", text)[0]


def test_a_command_breaks_before_an_option_and_not_inside_one():
    line = "aiornot tune x --data 'a b' --set=lr=1e-3 --again --out y"
    shown = markup.commands([line])
    kept = [html.unescape(one) for one in re.findall("<span>(.*?)</span>", shown)]
    assert kept[3:] == ["--data 'a b'", "--set=lr=1e-3", "--again", "--out y"]
    assert " ".join(kept) == line == "".join(Page(shown).codes)


def test_the_commands_name_the_rule_of_the_threshold(root, delivered):
    shutil.copytree(delivered.folder, root / "demo/bundle")
    assert "--rule" not in " ".join(collect(root)["commands"])
    path = root / "demo/bundle/bundle.json"
    description = json.loads(path.read_text())
    description["calibration"]["rule"] = "fpr<=0.01"
    path.write_text(json.dumps(description))
    assert collect(root)["commands"][0].endswith(" --rule 'fpr<=0.01'")


def test_a_bundle_without_curves_says_how_to_get_them(root, delivered):
    shutil.copytree(delivered.folder, root / "demo/bundle")
    path = root / "demo/bundle/bundle.json"
    description = json.loads(path.read_text())
    del description["val"]["curves"]
    path.write_text(json.dumps(description))
    assert "deliver the model again" in collect(root)["missing"]["curves"]["sentence"]
    assert not has_roc(Page(report_page.page(collect(root))))


def has_roc(page: Page) -> bool:
    return any(title.startswith("ROC:") for title in page.titles)


def test_every_mark_of_a_chart_is_explained_as_it_is_drawn(whole):
    text = report_page.page(collect(whole))
    figures = re.findall(r"<figure class=plot>.*?</figure>", text)
    assert len(figures) == 8
    for figure in figures:
        drawn, explained = figure.split("<div class=keys>")
        kinds = re.compile('<(?:polyline|polygon) class="([^"]+)"')
        known, shown = set(kinds.findall(explained)), set(kinds.findall(drawn))
        assert known <= shown | {"curve baseline", "curve control"}
        # Arms belong to the dot of a person, and one grey dash and one shade stand for both.
        both = {"clean best", "shade best", "arm person", "arm control"}
        assert shown - known <= both, figure[:80]


def test_the_baseline_is_never_called_the_best_of_a_stage(root):
    stage = collect(root)["stages"][1]
    best = stage["trials"][0]["trial"]
    for one in stage["curves"]:
        one["role"] = "baseline" if one["trial"] == best else "candidate"
    drawn = report_search._learning(stage)
    assert f"best: {best}" not in drawn and "best: full-" in drawn
    assert '<polyline class="curve baseline" points="0,6' in drawn


def test_precision_falls_where_fewer_images_are_generated():
    # Of 1,000 images 10 are generated, and 9 of them found; 99 of 990 real ones are called so, too.
    assert report_threshold.precision_at(0.01, 0.9, 0.1) == pytest.approx(9 / (9 + 99))
    assert report_threshold.precision_at(0.5, 0.9, 0.0) == 1.0
    assert report_threshold.precision_at(0.5, 0.0, 0.0) is None


def test_both_error_rates_are_told_with_their_counts(whole):
    found = collect(whole)
    metrics = found["evaluations"]["val"]["metrics"]
    text = report_threshold.threshold(found)
    assert f"--data {found['data']}" in "".join(Page(text).codes)
    for key, share in (
        ("num_real", metrics["fpr@threshold"]),
        ("num_generated", 1 - metrics["recall@threshold"]),
    ):
        images = found["evaluations"]["val"][key]
        assert f">{round(share * images)} of {images}<" in text and f"{share:.1%}" in text


def test_kinds_of_images_on_which_it_errs_more_are_named(whole):
    found = collect(whole)
    assert "On none of 2 kinds of images" in report_page.page(found)
    hard = {"errors": 9, "images": 10, "share": 0.9, "interval": [0.6, 0.98]}
    row = {"value": HOSTILE, "false_positives": hard, "false_negatives": hard | {"images": 0}}
    found["errors"]["slices"]["format"].append(row)
    text = report_page.page(found)
    assert "1 of 3 kinds of images" in text and "format: &lt;script" in text


def test_a_run_of_train_is_told_by_what_its_bundle_knows(tmp_path, delivered):
    home = tmp_path / "runs/demo"
    Ledger(str(home))._write(make(0, [0.6, 0.7] * 8, state="finished", stage="train"))
    shutil.copytree(delivered.folder, home / "bundle")
    path = home / "bundle/bundle.json"
    description = json.loads(path.read_text())
    description["data"]["settings"] = json.dumps({"name": "reduced", "size": 64, "limit": 2000})
    path.write_text(json.dumps(description))
    found = collect(tmp_path / "runs")
    assert found["stages"][0]["budget"]["size"] == 64
    assert found["commands"][0].endswith(" --profile reduced --size 64 --limit 2000")
    assert re.fullmatch("aiornot train .* --profile reduced", found["commands"][1])
    page = Page(report_page.page(found))
    assert "parameters" not in page.ids and "ranking" not in page.ids  # nothing was searched
    assert sorted(page.links) == sorted(f"#{name}" for name in page.ids)
    assert "difference" not in page.text and "From 1 trial to one model" in page.text


def test_the_plan_stands_beside_the_cost(root):
    explore, full = (stage["budget"] for stage in collect(root)["stages"])
    assert explore["whole_ticks"] == 12 * 16 and explore["ticks"] == 9 * 2 + 3 * 16
    assert 12 < explore["expected_ticks"] < 12 * 16
    assert full["expected_ticks"] == full["ticks"] == 4 * 16


def test_a_report_that_says_the_same_is_left_alone(root, tmp_path):
    out = tmp_path / "page.html"
    report_page.write(out, collect(root))
    before = [path.stat().st_mtime_ns for path in (out, out.with_suffix(".json"))]
    report_page.write(out, collect(root))
    assert [path.stat().st_mtime_ns for path in (out, out.with_suffix(".json"))] == before
    assert json.loads(out.with_suffix(".json").read_text()) == json.loads(json.dumps(collect(root)))


def test_the_verb_writes_beside_the_run_and_links_images_only_when_asked(whole):
    gallery = whole / "demo/errors/errors.html"
    gallery.write_text("<p>no image</p>")
    options = ("report", "demo", "--storage", str(whole), "--with-images")
    result = run_verb(*options)
    assert result.code == 0 and result.out.strip() == str(whole / "demo/report.html")
    assert "errors.html" not in (whole / "demo/report.html").read_text()
    gallery.write_text("<img src='data:'>")
    run_verb(*options[:-1])
    assert "errors.html" not in (whole / "demo/report.html").read_text()
    run_verb(*options)
    assert '<a href="errors/errors.html">' in (whole / "demo/report.html").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [(["other"], "no run 'other'"), (["demo", "--out", "{}"], "ends in .html")],
)
def test_what_cannot_be_reported_is_refused_in_a_sentence(root, options, told):
    wanted = [option.format(root) for option in options]
    result = run_verb("report", *wanted, "--storage", str(root))
    assert result.code == 2 and told in result.err and "Traceback" not in result.err


def test_the_notebooks_person_is_that_of_the_notebook():
    rows = {row["metric"]: row for row in report_results.against_person(None, None)}
    assert round(rows["recall"]["notebook_person"]["value"], 4) == 0.9545
    assert rows["precision at .5"]["notebook_person"]["value"] == 0.75
    assert rows["accuracy"]["notebook_person"]["value"] == 0.84


@pytest.mark.parametrize("ties", [False, True])
def test_the_curves_are_those_of_scikit_learn_thinned(ties):
    rng = np.random.default_rng(0)
    labels = rng.random(3000) < 0.4
    logits = rng.normal(2.0 * labels, 1.0)
    logits = np.round(2 * logits) if ties else logits
    calibration = calibrate(logits, labels)
    found = curves(logits, labels, calibration)
    verdicts, probabilities = found["verdicts"], calibration.probabilities(logits)
    assert len(verdicts["fpr"]) <= NUM_POINTS
    for threshold, recall, fpr, precision in list(zip(*verdicts.values(), strict=True))[1:]:
        called = probabilities >= threshold - 1e-6  # it was rounded
        assert recall == pytest.approx(called[labels].mean(), abs=2e-3)
        assert fpr == pytest.approx(called[~labels].mean(), abs=2e-3)
        assert precision == pytest.approx(labels[called].mean(), abs=2e-3)
    area = metrics.auc(verdicts["fpr"], verdicts["recall"])
    assert area == pytest.approx(metrics.roc_auc_score(labels, logits), abs=2e-4)
    assert sum(one["num"] for one in found["reliability"]) == 3000
    assert sum(one["generated"] for one in found["reliability"]) == labels.sum()
    assert sum(found["histogram"]["generated"]) == labels.sum()

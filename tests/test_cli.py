"""The verbs from outside: help, exit codes, one sentence for what the user can mend, no debris."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_verb
from safetensors.torch import load_file

import aiornot
from aiornot import cli, console
from aiornot.data import demo

VERBS = (
    *("demo-data", "audit", "prepare", "train", "probe", "tune", "show", "report"),
    *(
        "fetch",
        "calibrate",
        "evaluate",
        "robustness",
        "errors",
        "verify",
        "export",
        "predict",
        "doctor",
    ),
    *("app", "human"),
)
QUICK = (
    *("--set", "model=test_resnet.r160_in1k", "--set", "pretrained=false"),
    *("--set", "lr=1e-2", "--set", "batch_size=8", "--set", "epochs=3"),
)


@pytest.fixture
def here(tmp_path, monkeypatch, easy) -> Path:
    """An empty working folder but for a prepared file in ``prepared``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "prepared").mkdir()
    shutil.copy(easy, tmp_path / "prepared/full.h5")
    return tmp_path


def write_parquet(path: Path, rows: list[dict], **changes: object) -> None:
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    made = [demo.make_image(index, label=index % 2, size=16)[0] for index in range(60)]
    return [
        {"id": str(i), "image": {"bytes": content, "path": None}, "label": i % 2}
        for i, content in enumerate(made)
    ]


def is_one_sentence(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.startswith("aiornot: ")]
    return len(lines) == 1 and "Traceback" not in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_one_example(verb):
    result = run_verb(verb, "--help")
    assert result.code == 0
    assert result.out.count("Example: aiornot " + verb) == 1


def test_the_verbs_are_those_of_the_readme():
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert tuple(names) == VERBS
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert all(f"aiornot {verb}" in readme for verb in VERBS)


def test_the_version_is_a_line():
    found = run_verb("--version")
    assert found.code == 0 and found.out == f"aiornot {aiornot.__version__}\n"


def test_the_options_are_frozen():
    """A new hyper-parameter goes into TrainConfig and not onto the command line."""
    help_text = run_verb("train", "--help").out
    options = sorted({word for word in help_text.split() if word.startswith("--")})
    assert options == [
        "--compile-augment",
        "--data",
        "--device",
        "--help",
        "--out",
        "--overfit-one-batch",
        "--profile",
        "--profiler",
        "--rule",
        "--set",
        "--tensorboard",
        "--wandb",
        "--watch",
        "--weights",
    ]


@pytest.mark.timeout(120)
def test_one_batch_is_learnt_by_heart_and_traced(here):
    result = run_verb(
        *("train", "--data", "prepared", "--out", "run", *QUICK, "--set", "jpeg=0.5"),
        *("--overfit-one-batch", "--profiler", "trace"),
    )
    assert result.code == 0 and "one batch is known by heart: loss 0.0" in result.err, result.err
    assert not (here / "run/bundle").exists()  # it knows nothing else
    trace = json.loads((here / "trace/trace.json").read_text())["traceEvents"]
    steps = [event for event in trace if event.get("name", "").startswith("ProfilerStep")]
    assert len(steps) >= 4 and any("conv" in event.get("name", "") for event in trace)


def test_a_batch_that_cannot_be_learnt_by_heart_is_a_failure(here):
    result = run_verb(
        *("train", "--data", "prepared", "--out", "run", *QUICK, "--set", "lr=1e-9"),
        "--overfit-one-batch",
    )
    assert result.code == 1 and is_one_sentence(result.err), result.err
    assert "after 200 steps on one batch the loss is 0.6" in result.err


@pytest.mark.timeout(120)
def test_weights_come_from_a_file(here):
    """Of another run here, whose head is left behind."""
    first = run_verb("train", "--data", "prepared", "--out", "first", *QUICK)
    assert first.code == 0, first.err
    result = run_verb(
        *("train", "--data", "prepared", "--out", "second", *QUICK),
        *("--weights", "first/bundle", "--set", "lr=1e-9"),
    )
    assert result.code == 0, result.err
    one, two = (load_file(here / run / "bundle/model.safetensors") for run in ("first", "second"))
    moved = {name: float((one[name] - two[name]).abs().max()) for name in one}
    assert all(moved[name] < 1e-6 for name, value in one.items() if value.ndim == 4)
    assert moved["fc.weight"] > 1e-3
    kept = json.loads((here / "second/trials/train-000.json").read_text())["config"]["weights"]
    assert kept == str(here / "first/bundle")


@pytest.mark.timeout(120)
def test_a_watched_run_leaves_a_file_and_a_picture_of_each_tick(here):
    (here / "run/probes").mkdir(parents=True)
    (here / "run/probes/tick_02.json").write_text("of a run that never reported")
    arguments = ("train", "--data", "prepared", "--out", "run", *QUICK, "--watch", "1,16")
    result = run_verb(*arguments)
    assert result.code == 0, result.err
    names = ["tick_01.json", "tick_01.png", "tick_16.json", "tick_16.png"]
    assert sorted(path.name for path in (here / "run/probes").iterdir()) == names
    found = json.loads((here / "run/probes/tick_16.json").read_text())
    assert found["tick"] == 16 and found["grad_norm"] > 0 and "fc.weight" in found["update_ratio"]
    assert "run was finished before: nothing is left to watch" in run_verb(*arguments).err


@pytest.mark.parametrize("ticks", ["17", "x", "1,,2"])
def test_ticks_that_there_are_not_are_one_sentence(here, ticks):
    result = run_verb("train", "--data", "prepared", "--out", "run", *QUICK, "--watch", ticks)
    assert result.code == 2 and is_one_sentence(result.err), result.err
    assert f"--watch {ticks}: give ticks from 1 to 16" in result.err and not (here / "run").exists()


def test_a_probe_suggests_a_learning_rate_and_says_why_there_is_no_micro_batch(here):
    result = run_verb("probe", "--data", "prepared", "--out", "probe", "--device", "cpu", *QUICK)
    assert result.code == 0 and "probe/lr.png" in result.err, result.err
    lr, memory = result.out.splitlines()
    assert re.match(r"lr=\S+: meanwhile the loss fell by [1-9]", lr) and "rely" not in lr
    assert memory.endswith(
        "not measured, for it is a GPU's memory that is measured, and this is a CPU"
    )
    found = json.loads((here / "probe/probe.json").read_text())
    assert found["summary"] == [lr, memory] and found["memory"] is None
    assert lr.startswith(f"lr={found['lr']['suggestion']:.2g}:")
    assert found["config"]["batch_size"] == 8 and (here / "probe/lr.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--out", "file"), "there is a file of that name"),
        (("--set", "batch_size=500"), "fewer than the 16 reports"),
        (("--set", "lrr=1"), "did you mean 'lr'"),
        (("--set", "model=resnet1800"), "did you mean 'resnet18'"),
        (("--data", "nowhere"), "nowhere/full.h5"),
        (("--device", "gpu7"), "use auto, cpu, cuda"),
    ],
)
def test_a_probe_that_cannot_be_made_is_one_sentence(here, arguments, expected):
    (here / "file").write_text("precious")
    places = ("--data", "prepared", "--out", "probe")
    result = run_verb("probe", *places, *QUICK, *arguments)
    assert result.code == 2 and is_one_sentence(result.err), result.err
    assert expected in result.err and not (here / "probe").exists()


@pytest.mark.parametrize("option", ["--out", "--profiler"])
def test_a_file_where_a_folder_is_wanted_is_one_sentence(here, option):
    (here / "file").write_text("precious")
    out = () if option == "--out" else ("--out", "run")
    result = run_verb("train", "--data", "prepared", *QUICK, *out, option, "file")
    assert result.code == 2 and is_one_sentence(result.err), result.err
    assert f"{option} file: there is a file of that name" in result.err
    assert not (here / "run").exists() and (here / "file").read_text() == "precious"


def test_too_few_steps_are_refused_before_anything_is_written(here):
    result = run_verb("train", "--data", "prepared", "--out", "run", *QUICK, "--set", "epochs=1")
    assert result.code == 2 and is_one_sentence(result.err), result.err
    assert "fewer than the 16 reports" in result.err and not (here / "run").exists()


def test_weights_that_are_not_there_are_one_sentence_and_nothing_is_written(here):
    result = run_verb("train", "--data", "prepared", "--out", "run", "--weights", "nowhere.pt")
    assert result.code == 2 and is_one_sentence(result.err) and "nowhere.pt" in result.err
    assert not (here / "run").exists()


BAD_SOURCES = {
    "no such folder": ("nosuch", "no such file or folder"),
    "no label": ("nolabel", "no column 'label'"),
    "labels 0/1/2": ("labels012", "2 was found"),
    "no rows": ("empty", "no rows"),
    "not parquet": ("text", "cannot be read as parquet"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_one_sentence_and_nothing_is_written(name, here, rows):
    write_parquet(here / "nolabel/a.parquet", [{k: r[k] for k in ("id", "image")} for r in rows])
    write_parquet(here / "labels012/a.parquet", [r | {"label": i % 3} for i, r in enumerate(rows)])
    (here / "empty").mkdir()
    pq.write_table(pa.Table.from_pylist(rows).slice(0, 0), here / "empty/a.parquet")
    (here / "text").mkdir()
    (here / "text/a.parquet").write_text("hello")
    source, expected = BAD_SOURCES[name]
    result = run_verb("prepare", source, "--out", "out")
    assert result.code == 2 and expected in result.err and is_one_sentence(result.err), result.err
    assert not (here / "out").exists()


@pytest.mark.parametrize("option", [("--size", "0"), ("--limit", "0"), ("--profile", "big")])
def test_a_bad_option_of_prepare_writes_nothing(option, here, rows):
    write_parquet(here / "source/a.parquet", rows)
    result = run_verb("prepare", "source", "--out", "out", *option)
    assert result.code == 2 and is_one_sentence(result.err), result.err
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("lr=abc", "expected a number"),
        ("lrr=1", "did you mean 'lr'"),
        ("model=resnet1800", "did you mean 'resnet18'"),
        ("global_pool=mean", "one of avg"),
        ("epochs=0", "between 1 and"),
    ],
)
def test_a_bad_setting_is_one_sentence_and_nothing_is_written(setting, expected, here):
    result = run_verb("train", "--data", "prepared", "--out", "run", "--set", setting)
    assert result.code == 2 and expected in result.err and is_one_sentence(result.err), result.err
    assert not (here / "run").exists()


def test_a_typo_in_a_space_file_names_the_file_and_the_nearest_key(here):
    stages = Path(__file__).parents[1] / "tune_spaces/demo"
    shutil.copytree(stages, here / "mine")
    shutil.copy(here / "prepared/full.h5", here / "prepared/reduced.h5")
    text = (here / "mine/explore.py").read_text()
    (here / "mine/explore.py").write_text(text.replace('"weight_decay"', '"weight_decai"'))
    result = run_verb("tune", "mine", "--data", "prepared")
    assert result.code == 2 and is_one_sentence(result.err)
    assert "explore.py" in result.err and "'weight_decay'" in result.err
    (here / "mine/explore.py").write_text(text.replace("test_resnet.r", "test_resnett.r"))
    result = run_verb("tune", "mine", "--data", "prepared")
    assert result.code == 2 and "'explore'" in result.err and "'test_resnet'" in result.err
    assert not (here / "runs").exists()


def test_a_chain_without_its_data_says_how_to_make_it(here):
    result = run_verb("tune", "demo", "--data", "nowhere")
    assert result.code == 2 and "aiornot prepare" in result.err
    assert run_verb("tune", "nosuch", "--data", "prepared").code == 2
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("show",),
        ("show", "nosuch"),
        ("evaluate", "nosuch"),
        ("verify", "nosuch"),
        ("export", "nosuch", "--onnx", "model.onnx"),
        ("calibrate", "nosuch", "--rule", "balanced"),
        ("robustness", "nosuch"),
        ("errors", "nosuch"),
        ("predict", "nosuch", "image.jpg"),
        ("predict", "nosuch", "--parquet", "prepared", "--out", "out"),
        ("train", "--data", "prepared", "--device", "gpu7", *QUICK),
        ("tune", "demo", "--data", "prepared", "--trials", "explore=many"),
        ("tune", "demo", "--data", "prepared", "--wandb", "maybe"),
    ],
)
def test_what_is_not_there_is_one_sentence(arguments, here):
    result = run_verb(*arguments)
    assert result.code == 2 and is_one_sentence(result.err), result.err


def test_fewer_than_one_worker_is_refused_before_any_work(here):
    result = run_verb("tune", "demo", "--data", "prepared", "--workers", "0")
    assert result.code == 2 and not (here / "runs").exists()


def test_where_nothing_can_be_written_there_is_one_sentence(monkeypatch, tmp_path):
    """As root every folder can be written to, so a full disk stands for all of it."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "made"))

    monkeypatch.setattr(Path, "mkdir", full)
    found = run_verb("demo-data", str(tmp_path / "made"), "--num-images", "4")
    assert found.code == 2 and found.err.count("\n") == 1
    assert f"{tmp_path / 'made'}: No space left on device; make room there" in found.err


def test_a_narrow_terminal_shortens_no_name_and_no_score(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    columns = ["trial", "state", "tick", "score", "origin", "model"]
    row = ["explore-004", "finished", "16", "0.8998", "from explore-000", "test_resnet.r160_in1k"]
    console.print_table("demo", columns, [row])
    shown = capsys.readouterr().out
    assert "explore-004" in shown and "0.8998" in shown and "test_resnet.r160_in1k" not in shown
    assert max(map(len, re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines())) <= 60


def test_a_sentence_is_broken_between_words_in_a_terminal_alone(capsys, monkeypatch):
    told = "explore ranks for exploit: Spearman 1.00 over 4 configurations"
    monkeypatch.setenv("COLUMNS", "30")
    console.print_text(told)
    assert capsys.readouterr().out == f"{told}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    console.print_text(told)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and " ".join(map(str.strip, lines)) == told


def test_a_narrow_terminal_gets_more_tables_and_loses_nothing(capsys, monkeypatch):
    columns = ["trial", "score", "lr", "label_smoothing", "weight_decay"]
    rows = [["explore-004", "0.8998", "0.001", "0.05", "0.0300001"], ["a", "b", "c", "d", "e"]]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = {}
    for width in ("45", "200"):
        monkeypatch.setenv("COLUMNS", width)
        console.print_table("demo", columns, rows, caption="all: seed=1", together=2)
        shown[width] = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, shown["45"].splitlines())) <= 45
    assert shown["45"].count("explore-004") == 3 and shown["200"].count("explore-004") == 1
    for text in shown.values():
        assert all(text.count(cell) == 1 for cell in [*columns[1:], *rows[0][1:], "all: seed=1"])


def test_a_train_run_is_shown_evaluated_and_predicts(here):
    trained = run_verb("train", "--data", "prepared", "--out", "runs/easy", *QUICK)
    assert trained.code == 0, trained.err
    assert trained.out.strip() == "runs/easy/bundle" and trained.err.count(" tick ") == 16
    again = run_verb("train", "--data", "prepared", "--out", "runs/easy", *QUICK)
    assert again.code == 0 and " tick " not in again.err
    other = run_verb("train", "--data", "prepared", "--out", "runs/easy", *QUICK, "--set", "seed=1")
    assert other.code == 2 and "seed was 0, is 1" in other.err
    assert json.loads(run_verb("show", "easy", "--json").out)[0]["state"] == "finished"
    data = ("--data", "prepared/full.h5")
    strict = run_verb("calibrate", "runs/easy/bundle", *data, "--rule", "fpr<=0")
    assert strict.code == 0 and "fpr@threshold" in strict.out, strict.err
    for split in ("val", "test"):
        judged = run_verb("robustness", "runs/easy/bundle", *data, "--split", split)
        assert judged.code == 0 and "jpeg_quality 30" in judged.out, judged.err
        assert ("this opened the test split" in judged.err) == (split == "test")
    listed = run_verb("errors", "runs/easy/bundle", *data, "--split", "test")
    assert listed.out.strip().endswith("runs/easy/errors/errors.html"), listed.err
    assert "this opened" not in listed.err and (here / "runs/easy/errors/errors.json").exists()
    score = run_verb("evaluate", "runs/easy/bundle", *data, "--json")
    assert json.loads(score.out)["metrics"]["auroc"] > 0.9
    (here / "broken.jpg").write_text("not an image")
    failed = run_verb("predict", "runs/easy/bundle", "broken.jpg")
    assert failed.code == 1 and "error" in json.loads(failed.out)


@pytest.mark.timeout(240)
def test_control_c_leaves_a_run_that_the_same_command_finishes(here):
    command = [sys.executable, "-m", "aiornot", "train", "--data", "prepared", "--out", "run"]
    command += [*QUICK, "--set", "epochs=20"]
    ledger = here / "run/trials/train-000.json"
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ}) as process:
        end = time.monotonic() + 120
        while not (ledger.exists() and json.loads(ledger.read_text())["ticks"]):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 1 and b"the same command goes on" in said, said
    assert b"Traceback" not in said
    before = json.loads(ledger.read_text())["ticks"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert json.loads(ledger.read_text())["ticks"][: len(before)] == before

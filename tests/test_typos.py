"""What is misspelt is refused before Ray and torch are imported, which takes seconds."""

import json
import subprocess
import sys

import pytest

from aiornot.delivery import manifest

TYPOS = {
    "tune chain": (("tune", "dmeo"), "no chain 'dmeo'"),
    "tune --only": (("tune", "demo", "--data", "prepared", "--only", "fulll"), "no stage 'fulll'"),
    "tune --trials": (("tune", "demo", "--trials", "explor=3"), "no searching stage 'explor'"),
    "tune --data": (("tune", "demo", "--data", "nowhere"), "nowhere/reduced.h5"),
    "tune --hours": (("tune", "demo", "--hours", "0"), "--hours 0"),
    "tune --wandb": (("tune", "demo", "--wandb", "maybe"), "--wandb maybe"),
    "tune --rule": (("tune", "demo", "--rule", "fbr<=0"), "fbr<=0"),
    "tune --storage": (("tune", "demo", "--storage", "gs://b/runs"), "use a local path, s3://"),
    "tune --plan": (("tune", "demo", "--plan"), "data/prepared/reduced.h5"),
    "train --set": (("train", "--set", "wieght_decay=1"), "did you mean 'weight_decay'"),
    "train --set value": (("train", "--set", "hflip=2"), "hflip=2.0 must lie between"),
    "train --data": (("train",), "data/prepared/full.h5: no such file; name the folder"),
    "train --data file": (("train", "--data", "fill.h5"), "--data fill.h5: no such file"),
    "train --device": (("train", "--device", "gpu7"), "--device gpu7"),
    "train --watch": (("train", "--watch", "17"), "--watch 17"),
    "train --weights": (("train", "--weights", "nowhere"), "--weights nowhere: no such file"),
    "prepare --profile": (("prepare", "x", "--profile", "ful"), "--profile ful: use debug"),
    "probe --set": (("probe", "--set", "rl=1"), "unknown hyper-parameter 'rl'"),
    "calibrate": (("calibrate", "bundle", "--rule", "balanced"), "--data"),
    "calibrate --rule": (("calibrate", "bundle", "--rule", "best"), "best"),
    "evaluate": (("evaluate", "bundle"), "--data"),
    "robustness": (("robustness", "bundle"), "--data"),
    "errors": (("errors", "bundle"), "--data"),
    "verify": (("verify", "nowhere"), "nowhere: no such folder"),
    "export": (("export", "nowhere", "--onnx", "x.onnx"), "nowhere: no such folder"),
    "predict": (("predict", "nowhere", "x.jpg"), "nowhere: no such folder"),
    "predict empty": (("predict", ".", "x.jpg"), ".: not a bundle"),
    "human": (("human", "--device", "gpu7"), "--device gpu7"),
    "app": (("app", "nowhere"), "nowhere: no such folder"),
}

LIGHT = """
import io, json, sys
from contextlib import redirect_stderr
from aiornot import cli

found = {}
for name, arguments in json.load(sys.stdin).items():
    sys.argv, said = ["aiornot", *arguments], io.StringIO()
    with redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as end:
            heavy = {"ray", "torch", "timm", "wandb", "gradio"} & set(sys.modules)
            found[name] = [end.code, said.getvalue(), sorted(heavy)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, words and heavy modules of every typo, all in one process."""
    here = tmp_path_factory.mktemp("typos")
    description = {"schema_version": manifest.SCHEMA_VERSION, "data": {"profile": "full"}}
    (here / "bundle").mkdir()
    (here / "bundle" / manifest.DESCRIPTION).write_text(json.dumps(description))
    (here / "prepared").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        input=json.dumps({name: arguments for name, (arguments, _) in TYPOS.items()}),
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in here.iterdir()) == ["bundle", "prepared"]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_is_one_sentence_before_anything_heavy_is_imported(found, name):
    code, said, heavy = found[name]
    assert code == 2 and said.startswith("aiornot: ") and said.count("\n") == 1, said
    assert TYPOS[name][1] in said and heavy == []

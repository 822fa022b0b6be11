"""The import law, and a machine that has neither Ray nor W&B nor Optuna nor Gradio."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import prepare
from PIL import Image

import aiornot

HOUSE = Path(aiornot.__file__).parent

# A file may import only what stands above it.
ORDER = [
    "config",
    "hub",
    "storage",
    "lock",
    "sieve",
    "machine",
    "ray_session",
    "ray_spot",
    "data.synthesis",
    "data.demo",
    "data.jpeg_tables",
    "data.images",
    "data.splits",
    "data.duplicates",
    "data.hdf5",
    "data.shards",
    "data.layout",
    "data.slices",
    "data.copies",
    "data.traits",
    "data.leak",
    "data.census",
    "data.verdict",
    "data.audit",
    "data.markup",
    "data.pages",
    "data.audit_figures",
    "data.audit_page",
    "data.journal",
    "data.ray_decode",
    "data.ray_prepare",
    "survey",
    "doctor",
    "ray_doctor",
    "training.boxes",
    "training.warp",
    "training.colour",
    "training.jpeg",
    "training.degrade",
    "training.augment",
    "training.thaw",
    "training.weights",
    "training.model",
    "training.loader",
    "training.metrics",
    "training.ranks",
    "training.run",
    "training.snapshot",
    "training.watch",
    "training.strips",
    "training.gauge",
    "training.loop",
    "training.finder",
    "training.memory",
    "training.probes",
    "training.checkpoints",
    "training.pace",
    "training.job",
    "training.trace",
    "training.errands",
    "training.account",
    "training.track",
    "training.events",
    "training.ray_worker",
    "tuning.space",
    "tuning.sobol",
    "tuning.stages",
    "tuning.narrow",
    "tuning.ledger",
    "tuning.select",
    "tuning.asha",
    "tuning.importance",
    "tuning.agreement",
    "tuning.axes",
    "tuning.record",
    "tuning.retention",
    "tuning.twins",
    "tuning.tracking",
    "tuning.outcome",
    "tuning.mirror",
    "tuning.spending",
    "tuning.board",
    "tuning.tables",
    "tuning.figures",
    "tuning.meter",
    "tuning.outlook",
    "tuning.plan",
    "tuning.plan_tables",
    "tuning.options",
    "tuning.ray_search",
    "tuning.ray_machines",
    "tuning.ray_tuner",
    "tuning.ray_runs",
    "tuning.ray_chain",
    "tuning.ray_plan",
    "delivery.calibrate",
    "delivery.curves",
    "delivery.manifest",
    "delivery.measures",
    "delivery.bootstrap",
    "delivery.evaluate",
    "delivery.specimens",
    "delivery.licence",
    "delivery.card_code",
    "delivery.card",
    "delivery.bundle",
    "delivery.verify",
    "delivery.shelf",
    "delivery.damage",
    "delivery.robustness",
    "delivery.errors",
    "delivery.errors_page",
    "delivery.registry",
    "delivery.paired",
    "delivery.compare",
    "delivery.predict",
    "delivery.export",
    "delivery.ray_scorer",
    "delivery.ray_predict",
    "delivery.saliency",
    "delivery.human",
    "delivery.style",
    "delivery.cards",
    "delivery.results",
    "delivery.host",
    "delivery.app",
    "delivery.report_results",
    "delivery.report_commands",
    "delivery.report",
    "delivery.plot",
    "delivery.report_cells",
    "delivery.report_verdict",
    "delivery.report_threshold",
    "delivery.report_search",
    "delivery.report_scores",
    "delivery.report_damage",
    "delivery.report_errors",
    "delivery.report_model",
    "delivery.report_style",
    "delivery.report_page",
    "live",
    "console",
    "verbs.common",
    "verbs.data",
    "verbs.training",
    "verbs.reporting",
    "verbs.tuning",
    "verbs.delivery",
    "verbs.page",
    "verbs.cluster",
    "cli",
    "__main__",
]

HOMES = {
    "wandb": {"training.track"},
    "optuna": {
        *("tuning.space", "tuning.sobol", "tuning.narrow", "tuning.importance"),
        *("tuning.mirror", "tuning.ray_search"),
    },
    "tensorboardX": {"training.events"},
    "h5py": {"data.hdf5"},
    "gradio": {"delivery.app"},
    "onnx": {"delivery.export"},
    "onnxruntime": {"delivery.export"},
    "onnxscript": {"delivery.export"},
    "scipy": {"tuning.sobol"},
}
"""Who may import a library; ``ray`` belongs to every file named ray_*.py."""

FILES = sorted(HOUSE.rglob("*.py"))
ROOMS = [path for path in FILES if path.name != "__init__.py"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts)


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: name the module in full"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if is_ours(full) else node.module


def is_ours(module: str) -> bool:
    base = HOUSE.parent.joinpath(*module.split("."))
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def rooms(path: Path) -> Iterator[str]:
    """Yield the imports of our own, without the package's name."""
    for module in imported(path):
        top, _, rest = module.partition(".")
        if top == "aiornot" and rest:  # the bare package holds the version and no more
            yield rest


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_every_file_has_its_place_in_the_house(path):
    assert name_of(path) in ORDER, (
        f"aiornot/{path.relative_to(HOUSE)} is new: put it into ORDER of tests/test_layers.py, "
        "below all that it imports and above all that imports it"
    )


def test_no_place_in_the_house_is_left_by_a_file_that_is_gone():
    assert sorted(ORDER) == sorted(map(name_of, ROOMS))


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_imports_go_down(path):
    name = name_of(path)
    placed = [room for room in rooms(path) if room in ORDER and name in ORDER]
    for room in placed:
        assert ORDER.index(room) < ORDER.index(name), f"{name} imports {room}, which stands below"


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_a_library_of_one_room_is_imported_only_there(path):
    for module in imported(path):
        library = module.partition(".")[0]
        if library == "ray":
            assert path.name.startswith("ray_"), f"{name_of(path)} imports ray"
        if library in HOMES:
            assert name_of(path) in HOMES[library], f"{name_of(path)} imports {library}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name == "__init__.py"], ids=name_of
)
def test_a_package_itself_imports_nothing(path):
    assert not list(imported(path))


# A finder that raised would not do: find_spec() of a library that is absent returns None.
WITHOUT = """
import importlib.machinery, json, sys
from pathlib import Path

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "wandb", "optuna", "gradio"}:
            return None
        return super().find_spec(name, path, target)

found = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[found] = Without
for name in ("ray", "wandb", "optuna", "gradio"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is not blocked")

import torch
from aiornot import cli
from aiornot.config import TrainConfig
from aiornot.delivery import bundle, predict
from aiornot.training import loop

torch.set_num_threads(1)
CPU = torch.device("cpu")
data, image, out = map(Path, sys.argv[1:])
values = {"model": "test_resnet.r160_in1k", "pretrained": False, "epochs": 2, "batch_size": 16}
reports = []

def report(metrics, folder):
    reports.append(metrics)
    if metrics["finished"]:
        bundle.write(folder, out / "bundle", data=data, device=CPU, lineage={})

loop.train(TrainConfig.from_dict(values), data=data, device=CPU, report=report)
(found,) = predict.predict(bundle.load(out / "bundle", device=CPU), [image])
told = {"epochs": reports[-1]["epoch"], "probability": found.probability}
(out / "seam.json").write_text(json.dumps(told))

settings = [f"--set={name}={value}" for name, value in values.items()]
places = ["--data", str(data), "--out", str(out / "run"), "--device", "cpu"]
sys.argv = ["aiornot", "train", *places, *settings]
cli.main()
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """Train, deliver and predict, then ``aiornot train``, where the four libraries are absent."""
    out = tmp_path_factory.mktemp("alone")
    data = prepare(out / "tiny.h5", profile="debug")
    Image.fromarray(np.full((32, 32, 3), 200, dtype=np.uint8)).save(out / "one.png")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, data, out / "one.png", out],
        env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
    )
    return out, done


@pytest.mark.timeout(180)
def test_a_machine_without_ray_trains_two_epochs_delivers_and_predicts(alone):
    out, done = alone
    assert (out / "seam.json").exists(), done.stderr
    told = json.loads((out / "seam.json").read_text())
    assert told["epochs"] == 2
    assert 0 < told["probability"] < 1


@pytest.mark.timeout(180)
def test_aiornot_train_works_without_ray_wandb_and_optuna(alone):
    out, done = alone
    assert done.returncode == 0, done.stderr
    assert (out / "run" / "bundle" / "model.safetensors").exists()
    assert not list(out.rglob("*.wandb"))
    (trial,) = (out / "run" / "trials").glob("*.json")
    assert json.loads(trial.read_text())["state"] == "finished"

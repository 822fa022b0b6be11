"""Every chain in tune_spaces/: it loads, it samples, and made-up trials lead to its last stage."""

import ast
import dataclasses
import json
import math
import random
import re
from pathlib import Path

import optuna
import pytest
from conftest import prepare
from optuna.distributions import CategoricalDistribution

from aiornot.config import TICKS, TrainConfig
from aiornot.tuning import record as records
from aiornot.tuning import select
from aiornot.tuning.ledger import Ledger, Trial, contenders
from aiornot.tuning.space import (
    Narrowed,
    Stage,
    choice,
    configure,
    loguniform,
    original,
    randint,
    stage_to_dict,
    uniform,
)
from aiornot.tuning.stages import find_chain, load_chain, sources

FOLDER = Path(__file__).resolve().parents[1] / "tune_spaces"
CHAINS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and any(path.glob("*.py")))
STAGES = {f"{chain}/{s.name}": s for chain in CHAINS for s in load_chain(FOLDER / chain)}
FILES = sorted(path for chain in CHAINS for path in (FOLDER / chain).glob("*.py"))

every_stage = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
every_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}"
)


def test_the_chains_are_there():
    assert {"demo", "fast", "seed"} <= set(CHAINS)
    assert all(find_chain(chain) == FOLDER / chain for chain in CHAINS)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_ends_with_full_size_and_a_second_seed(chain):
    stages = load_chain(FOLDER / chain)
    first, full, final = stages[0], stages[-2], stages[-1]
    assert first.after is None and first.searches()
    assert (full.name, final.name) == ("full", "final")
    for stage in (full, final):
        assert not stage.searches() and stage.data == "full"
    assert final.enqueue == 1 and not set(final.seeds) & set(full.seeds)
    assert final.budget.epochs == full.budget.epochs
    assert all(stage.data == "reduced" for stage in stages[:-2])


@every_stage
def test_a_space_samples_into_valid_configurations(stage):
    space = {name: original(domain) for name, domain in stage.space.items()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    configs = [configure(stage, study.ask(dict(space)).params) for _ in range(50 if space else 1)]
    for config in configs:
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.train_fraction == stage.budget.train_fraction
        assert config.epochs == (stage.budget.epochs or config.epochs)
    for name, domain in space.items():
        drawn = {getattr(config, name) for config in configs}
        if isinstance(domain, CategoricalDistribution):
            # Each choice at least once in 50, with its type: "False" is not False.
            assert {repr(value) for value in drawn} == {repr(value) for value in domain.choices}
        else:
            assert len(drawn) > 1 or domain.single()


@every_stage
def test_a_condition_names_values_that_occur(stage):
    for name, rule in stage.only_for.items():
        assert name in stage.space
        for key, allowed in rule.items():
            domain = original(stage.space[key])
            assert isinstance(domain, CategoricalDistribution)
            assert set(allowed) < set(domain.choices), f"{key}: {allowed}"


@every_stage
def test_the_budget_of_a_search_covers_its_enqueued_points(stage):
    if stage.searches():
        assert stage.budget.num_trials > stage.enqueue + len(stage.first)
    else:
        assert stage.budget.num_trials == stage.enqueue * len(stage.seeds)


@every_stage
def test_the_meaning_of_a_stage_is_json(stage):
    meaning = stage_to_dict(stage)
    assert json.loads(json.dumps(meaning, allow_nan=False)) == meaning


@every_file
def test_a_stage_file_says_what_it_asks_spends_and_found(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = (ast.get_docstring(tree) or "").splitlines()
    assert lines and re.fullmatch(r"\w[^.]*: .*\.", lines[0]), "a first line: Name: sentence."
    words = [line.split()[0] for line in lines[1:] if line.strip() and not line.startswith(" ")]
    assert words == ["Asks", "Spends", "Run", "Found"]
    text = "\n".join(lines)
    for word in words:
        assert re.search(rf"^{word} +\S", text, flags=re.MULTILINE)
    assert f"Run     aiornot tune {path.parent.name} --data " in text


@every_file
def test_the_header_spends_what_the_stage_spends(path):
    stage = STAGES[f"{path.parent.name}/{path.stem}"]
    text = path.read_text(encoding="utf-8")
    (spends,) = re.findall(r"^Spends +(.*(?:\n {8}.*)*)", text, flags=re.MULTILINE)
    assert re.match(rf"{stage.budget.num_trials} trials? on ", spends)
    assert f"the {stage.data} profile" in spends
    epochs = re.search(r"(\d+) epochs", spends)
    controls = re.search(r"(\d+|one) controls?\b", spends)
    assert int((controls[1] if controls else "0").replace("one", "1")) == stage.controls
    assert ("baseline" in spends) == (stage.baseline is not None)
    if stage.budget.epochs is not None:
        assert epochs and int(epochs[1]) == stage.budget.epochs
    elif epochs:
        domain = original(stage.space["epochs"])
        assert re.search(rf"\b{domain.low} to {domain.high} epochs", spends)


@every_file
def test_a_stage_file_imports_data_only_and_is_ascii(path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert (node.level, node.module) in ((0, "aiornot.tuning.space"), (1, None))
        assert not isinstance(node, ast.Import | ast.For | ast.While | ast.FunctionDef | ast.Lambda)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data") / "tiny.h5")


def made_up(stage: Stage, record, parents) -> list[Trial]:
    """Make the trials of a stage, as its driver would, without training any."""
    noise = random.Random(stage.name)
    if stage.searches():
        space = records.space_of(record)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        params = []
        for number in range(record["num_trials"] - len(record["beside"])):
            if number < len(record["first"]):
                study.enqueue_trial(record["first"][number])
            params.append(study.ask(dict(space)).params)
        configs = [configure(stage, point, base=record["base"]).to_dict() for point in params]
    else:
        chosen = [trial for name in record["selected"] for trial in parents if trial.id == name]
        pairs = [(trial, seed) for trial in chosen for seed in stage.seeds]
        params = [trial.params for trial, _ in pairs]
        configs = [
            configure(stage, {}, base=trial.config, seed=seed).to_dict() for trial, seed in pairs
        ]
    fields = [
        {"params": point, "config": config} for point, config in zip(params, configs, strict=True)
    ]
    place = records.num_before(stage, record)
    fields[place:place] = record["beside"]
    trials = []
    for number, each in enumerate(fields):
        last = TICKS if number % 3 == 0 or not stage.searches() else noise.choice([1, 4])
        score = 0.95 - 0.05 * abs(math.log10(each["config"]["lr"]) + 3) + noise.uniform(0, 0.01)
        ticks = [
            {"tick": tick, "score": score, "val/auroc": score, "train/auroc": score, "seconds": 1.0}
            for tick in range(1, last + 1)
        ]
        trials.append(
            Trial(
                id=f"{stage.name}-{number:03d}",
                number=number,
                state="finished" if last == TICKS else "stopped",
                ticks=ticks,
                **each,
            )
        )
    return trials


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.filterwarnings("error")
def test_made_up_trials_lead_a_chain_down_to_its_last_stage(chain, data, tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parent, trials, before, of_stage = None, [], {}, {}
    for stage in load_chain(FOLDER / chain):
        parents = [trial for each in sources(stage) for trial in of_stage[each.name]]
        record = records.begin(
            stage,
            data,
            num_trials=stage.budget.num_trials,
            parent=parent,
            parent_trials=parents,
        )
        ledger = Ledger(str(tmp_path / stage.name))
        ledger.write_stage(record)
        record = ledger.read_stage()
        records.check_unchanged(stage, data, record, place="here")
        space = records.space_of(record)
        assert set(space) == set(stage.space)
        for name, domain in stage.space.items():
            if isinstance(domain, Narrowed):
                assert_inside(space[name], before.get(name, domain.original))
            else:
                assert space[name] == domain
        if stage.enqueue:
            assert len(record["first"] if stage.searches() else record["selected"]) == stage.enqueue
        trials = of_stage[stage.name] = made_up(stage, record, parents)
        assert len(trials) == record["num_trials"]
        assert len(contenders(trials)) == stage.budget.num_trials
        assert len(record["beside"]) == stage.num_beside()
        if stage.after is not None:
            assert_what_is_left_open_is_the_parents(stage, contenders(trials), record, parents)
        parent, before = record, space
    (final,) = contenders(trials)
    assert final.config["seed"] == 1
    assert select.final_choice(trials, num_positive=9, num_negative=9) is final


def test_a_stage_selects_from_its_parent_or_from_all_searches_of_the_parents_profile():
    explore, exploit, full, final = load_chain(FOLDER / "fast")
    names = [[each.name for each in sources(stage)] for stage in (explore, exploit, full, final)]
    assert names == [[], ["explore"], ["explore", "exploit"], ["full"]]
    alone = dataclasses.replace(full, pick_from="parent")
    assert sources(alone) == [exploit]
    other = dataclasses.replace(exploit, after=dataclasses.replace(explore, data="debug"))
    assert sources(dataclasses.replace(full, after=other)) == [other]


def assert_inside(domain, old):
    if isinstance(domain, CategoricalDistribution):
        assert set(domain.choices) <= set(old.choices)
        return
    assert type(domain) is type(old) and domain.log == old.log
    assert old.low <= domain.low <= domain.high <= old.high


def assert_what_is_left_open_is_the_parents(stage, trials, record, parents):
    """What a stage neither searches nor fixes is as in the parent's chosen trial."""
    own = {*stage.space, *stage.fixed, "seed", "train_fraction"}
    if stage.budget.epochs is not None:
        own.add("epochs")
    if stage.searches():
        sources = [record["base"]] * len(trials)
    else:
        by_id = {trial.id: trial.config for trial in parents}
        sources = [by_id[name] for name in record["selected"] for _ in stage.seeds]
    for trial, source in zip(trials, sources, strict=True):
        for name in trial.config.keys() - own:
            assert trial.config[name] == source[name], name


def seed_stages() -> dict[str, Stage]:
    return {stage.name: stage for stage in load_chain(FOLDER / "seed")}


def test_the_seed_chain_keeps_the_ranges_of_the_notebook():
    searched = {}
    for stage in seed_stages().values():
        for name, domain in stage.space.items():
            assert searched.setdefault(name, original(domain)) == original(domain)
    models = searched.pop("model").choices
    assert [name.split(".")[0] for name in models] == [
        *("resnet18", "resnet50", "convnext_tiny", "convnext_small", "efficientnet_b1")
    ]
    assert searched == {
        "global_pool": choice("avg", "catavgmax"),
        "lr": loguniform(1e-5, 1e-2),
        "label_smoothing": uniform(0.0, 0.1),
        "weight_decay": uniform(0.01, 0.2),
        "epochs": randint(2, 20),
        "clip_grad": choice(None, 0.5, 2.0, 5.0, 10.0),
        "degrees": uniform(0.0, 45.0),
        "brightness": uniform(0.0, 0.4),
        "contrast": uniform(0.0, 0.4),
        "sharpness": uniform(0.0, 0.6),
        "hflip": uniform(0.0, 0.5),
        "vflip": uniform(0.0, 0.5),
        "random_resized_crop": choice(False, True),
    }
    # The notebook's sweep drew the texts "False" and "True", and both were true.
    assert [type(value) for value in searched["random_resized_crop"].choices] == [bool, bool]


def test_the_seed_chain_follows_the_notebook():
    stages = seed_stages()
    searching = [stage for stage in stages.values() if stage.searches()]
    assert [stage.sampler for stage in searching] == ["random", "random", "tpe", "random"]
    assert sum(stage.budget.num_trials for stage in searching) == 128
    assert stages["full"].enqueue == 6
    assert all(stage.fixed["batch_size"] == 32 for stage in searching)
    # First without any augmentation: what is not searched keeps its default, which is off.
    plain = configure(searching[0], {}).to_dict()
    off = TrainConfig().to_dict()
    names = ("hflip", "vflip", "degrees", "brightness", "contrast", "sharpness")
    assert all(plain[name] == off[name] == 0 for name in names)
    assert plain["random_resized_crop"] is False
    # As in torchvision, which the notebook's transforms came from.
    assert (off["crop_scale"], off["sharpness_factor"]) == (0.08, 1.5)


def test_every_model_pools_in_a_way_that_it_can():
    """The head of a ConvNeXt cannot grow wider, so catavgmax is not for it."""
    first = seed_stages()["random_plain"]
    for model in first.space["model"].choices:
        config = configure(first, {"model": model, "global_pool": "catavgmax"})
        assert config.global_pool == ("avg" if model.startswith("convnext") else "catavgmax")

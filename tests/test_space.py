"""Stage files: what is loaded, what is refused and with which words, and what a stage trains."""

import dataclasses
import json
import os
import sys

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from aiornot.config import InputError, TrainConfig
from aiornot.tuning.space import (
    Budget,
    Narrowed,
    Stage,
    choice,
    configure,
    loguniform,
    narrowed,
    randint,
    stage_to_dict,
    uniform,
)
from aiornot.tuning.stages import find_chain, lineage, load_chain

IMPORT = "from aiornot.tuning.space import Budget, Stage, choice, loguniform, narrowed, uniform\n"

EXPLORE = f"""{IMPORT}
stage = Stage(
    name="explore",
    space={{"lr": loguniform(1e-4, 1e-2), "hflip": choice(0.0, 0.5)}},
    sampler="random",
    budget=Budget(num_trials=4, epochs=2),
)
"""

EXPLOIT = f"""{IMPORT}
from . import explore as parent

stage = Stage(
    name="exploit",
    after=parent.stage,
    space=narrowed(parent.stage.space),
    sampler="random",
    budget=Budget(num_trials=2, epochs=2),
)
"""

FULL = f"""{IMPORT}
from . import exploit as parent

stage = Stage(name="full", after=parent.stage, enqueue=1, budget=Budget(num_trials=1))
"""


def write_chain(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def refusal(folder) -> str:
    with pytest.raises(InputError) as caught:
        load_chain(folder)
    return str(caught.value)


def make(**changes) -> Stage:
    values = {
        "name": "s",
        "space": {"lr": loguniform(1e-4, 1e-2)},
        "sampler": "random",
        "budget": Budget(num_trials=4),
    }
    return Stage(**(values | changes))


def test_a_chain_loads_from_any_folder_in_the_order_of_its_stages(tmp_path):
    folder = write_chain(tmp_path / "mine", full=FULL, explore=EXPLORE, exploit=EXPLOIT)
    stages = load_chain(folder)
    assert [stage.name for stage in stages] == ["explore", "exploit", "full"]
    assert stages[1].after is stages[0] and stages[2].after is stages[1]
    assert lineage(stages[1]) == stages[:2]
    assert stages[1].space == {name: Narrowed(d) for name, d in stages[0].space.items()}


def test_a_folder_is_loaded_from_a_relative_path(tmp_path, monkeypatch):
    write_chain(tmp_path / "mine", explore=EXPLORE, exploit=EXPLOIT)
    monkeypatch.chdir(tmp_path)
    assert len(load_chain(find_chain("mine"))) == 2


def test_two_folders_of_one_name_do_not_meet(tmp_path):
    one = write_chain(tmp_path / "a" / "mine", explore=EXPLORE, exploit=EXPLOIT)
    other = write_chain(
        tmp_path / "b" / "mine", explore=EXPLORE.replace("1e-2", "1e-3"), exploit=EXPLOIT
    )
    spaces = [load_chain(folder)[-1].space["lr"].original for folder in (one, other, one)]
    assert [space.high for space in spaces] == [1e-2, 1e-3, 1e-2]


def test_an_edit_within_one_second_is_seen(tmp_path, monkeypatch):
    """Python's cached bytecode is trusted by second and size: it once served the older file."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    folder = write_chain(tmp_path / "mine", explore=EXPLORE)
    for text in (EXPLORE, EXPLORE.replace("1e-2)", "1e-1)"), EXPLORE):
        (folder / "explore.py").write_text(text, encoding="utf-8")
        os.utime(folder / "explore.py", (1_700_000_000, 1_700_000_000))
        high = load_chain(folder)[0].space["lr"].high
        assert high == (1e-1 if "1e-1)" in text else 1e-2)
    assert [path.name for path in folder.iterdir()] == ["explore.py"]


def test_a_space_that_is_no_space_names_the_parameter(tmp_path):
    text = EXPLORE.replace("loguniform(1e-4, 1e-2)", "(1e-4, 1e-2)")
    said = refusal(write_chain(tmp_path / "mine", explore=text))
    assert "lr is (0.0001, 0.01)" in said and "loguniform(low, high)" in said


def test_a_chain_is_found_by_name_or_by_folder(tmp_path):
    assert find_chain("demo").name == "demo"
    folder = write_chain(tmp_path / "mine", explore=EXPLORE)
    assert find_chain(str(folder)) == folder.resolve()
    with pytest.raises(InputError, match="no chain 'fasst': .* one of demo, "):
        find_chain("fasst")


def test_a_folder_without_stage_files_is_refused(tmp_path):
    assert "no stage files" in refusal(write_chain(tmp_path / "mine", _notes="x = 1\n"))


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("space", EXPLORE.replace('"hflip"', '"hflipp"')),
        ("fixed", EXPLORE.replace("sampler", 'fixed={"hflipp": 0.5}, sampler')),
    ],
)
def test_a_typo_in_a_key_names_the_file_and_the_nearest_key(tmp_path, where, text):
    message = refusal(write_chain(tmp_path / "mine", explore=text))
    assert message.startswith(str(tmp_path / "mine" / "explore.py"))
    assert f"{where}: unknown hyper-parameter 'hflipp'; did you mean 'hflip'?" in message


def test_a_mistake_in_a_parent_names_the_parents_file(tmp_path):
    wrong = EXPLORE.replace('"hflip"', '"hflipp"')
    message = refusal(write_chain(tmp_path / "mine", exploit=EXPLOIT, explore=wrong))
    assert "explore.py" in message and "exploit.py" not in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lr = SPACE['lr']", "KeyError: 'lr'"),
        ("lr = 1 / 0", "ZeroDivisionError: division by zero"),
        ("lr = unifrom(0, 1)", "name 'unifrom' is not defined"),
        ("lr = uniform(1.0, 0.0)", "low"),
        ("budget = Budget(num_trials=1, epoch=2)", "epoch"),
        ("from . import nothing", "nothing"),
    ],
)
def test_a_mistake_of_any_kind_is_a_sentence_with_file_and_line(tmp_path, line, words):
    text = EXPLORE.replace("\nstage", f"\nSPACE = {{}}\n{line}\nstage")
    message = refusal(write_chain(tmp_path / "mine", explore=text))
    assert message.startswith(f"{tmp_path / 'mine' / 'explore.py'}, line 4: ")
    assert words in message


@pytest.mark.parametrize(
    "statement",
    [
        "for x in (1, 2):\n    pass",
        "def helper():\n    return 1",
        "import os",
        "from os import path",
        "from ..other import explore",
        "from aiornot.config import TrainConfig",
        "print('hello')",
        "class A:\n    pass",
        "if True:\n    x = 1",
        "with open('x'):\n    pass",
    ],
)
def test_a_stage_file_that_is_not_data_is_refused_with_its_line(tmp_path, statement):
    text = f'"""A stage."""\n\n{statement}\n{EXPLORE}'
    message = refusal(write_chain(tmp_path / "mine", explore=text))
    assert message.startswith(f"{tmp_path / 'mine' / 'explore.py'}, line 3: ")
    assert "holds only data" in message


def test_nothing_of_a_refused_file_is_run(tmp_path):
    text = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n{EXPLORE}"
    refusal(write_chain(tmp_path / "mine", explore=text))
    assert not (tmp_path / "ran").exists()


def test_a_shared_file_may_hold_values_and_is_held_to_data_too(tmp_path):
    text = EXPLORE.replace("\nstage", "\nfrom . import _shared\nstage", 1)
    text = text.replace("num_trials=4", "num_trials=_shared.TRIALS")
    folder = write_chain(tmp_path / "mine", explore=text, _shared="TRIALS = 7\n")
    assert load_chain(folder)[0].budget.num_trials == 7
    folder = write_chain(tmp_path / "other", explore=text, _shared="import os\nTRIALS = 7\n")
    assert "_shared.py, line 1: a stage file holds only data" in refusal(folder)


def test_a_syntax_error_names_the_file_and_the_line(tmp_path):
    message = refusal(write_chain(tmp_path / "mine", explore=EXPLORE.replace("stage = ", "stage ")))
    assert message.startswith(f"{tmp_path / 'mine' / 'explore.py'}, line 3: ")


@pytest.mark.parametrize("text", [IMPORT, f"{IMPORT}stage = 3\n", f"{IMPORT}Stage = Stage\n"])
def test_a_file_without_a_stage_is_refused(tmp_path, text):
    message = refusal(write_chain(tmp_path / "mine", explore=text))
    assert "explore.py: a stage file binds one name, stage = Stage(...)" in message


def test_a_stage_has_the_name_of_its_file(tmp_path):
    message = refusal(write_chain(tmp_path / "mine", first=EXPLORE))
    assert message.endswith("first.py: the stage is named 'explore'; name it 'first'")


def test_two_stages_that_come_last_are_refused(tmp_path):
    other = EXPLOIT.replace('"exploit"', '"other"')
    folder = write_chain(tmp_path / "mine", explore=EXPLORE, exploit=EXPLOIT, other=other)
    assert "more than one comes last: exploit, other" in refusal(folder)


def test_stages_that_import_each_other_are_refused(tmp_path):
    text = EXPLORE.replace("\nstage", "\nfrom . import exploit\nafter = exploit.stage\nstage", 1)
    assert "circular import" in refusal(
        write_chain(tmp_path / "mine", explore=text, exploit=EXPLOIT)
    )


PARENT = make(name="parent")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": None}, "has no sampler: leave its space empty"),
        ({"sampler": None, "space": {}}, "has no sampler"),
        ({"sampler": None, "space": {}, "after": PARENT}, "has no sampler"),
        ({"sampler": None, "enqueue": 1, "after": PARENT}, "has no sampler"),
        ({"space": {}}, "a sampler but an empty space"),
        ({"sampler": "grid"}, "sampler='grid' is none of ('random', 'sobol', 'tpe')"),
        ({"enqueue": 2}, "enqueue=2 needs after="),
        ({"pick_from": "all"}, "pick_from='all' is not parent or searches"),
        ({"pick_from": "searches", "after": PARENT}, "is for a stage without a search"),
        ({"data": "half"}, "data='half' is none of"),
        ({"fixed": {"lr": 1e-3}}, "'lr' is both in space and in fixed"),
        ({"only_for": {"crop_scale": {"lr": (1,)}}}, "'crop_scale' is not in space"),
        ({"only_for": {"lr": {"hflip": (1,)}}}, "'hflip' is not in space"),
        ({"fixed": {"hflip": "0.5"}}, "hflip='0.5' must be a finite number"),
        ({"fixed": {"hflip": 1.5}}, "hflip=1.5 must lie between 0 and 1"),
        ({"fixed": {"hflip": uniform(0, 1)}}, "must be a finite number"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (-1,)}, "seed=-1 must lie between"),
        ({"space": {"hflip": uniform(0.0, 1.5)}}, "hflip=1.5 must lie between 0 and 1"),
        ({"space": {"epochs": uniform(2, 20)}}, "epochs=2.0 must be a whole number"),
        ({"space": {"random_resized_crop": choice("False", "True")}}, "must be true or false"),
        ({"space": narrowed({"hflip": uniform(0.0, 1.5)})}, "hflip=1.5 must lie between"),
        ({"first": ({"lrr": 1e-3},)}, "first: 'lrr' is not in space; did you mean 'lr'?"),
        ({"first": ({"lr": 1.0},)}, "first: lr=1.0 is not in its range"),
        ({"first": ({"lr": "1e-3"},)}, "first: lr='1e-3' is not in its range"),
        ({"space": {"epochs": randint(2, 4)}, "budget": Budget(num_trials=1, epochs=3)}, "epochs"),
        ({"fixed": {"epochs": 2}, "budget": Budget(num_trials=1, epochs=3)}, "'epochs' is in"),
        ({"fixed": {"train_fraction": 0.5}}, "'train_fraction' is in fixed"),
        ({"space": {"seed": randint(0, 9)}}, "'seed' is in space"),
    ],
)
def test_a_stage_that_cannot_run_is_refused_when_it_is_made(changes, words):
    with pytest.raises(InputError) as caught:
        make(**changes)
    assert words in str(caught.value) and "'s'" in str(caught.value)


def test_a_stage_searches_or_trains_what_its_parent_found():
    assert make().searches()
    assert not make(sampler=None, space={}, after=PARENT, enqueue=2).searches()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_trials": 0}, "num_trials=0 must be at least 1"),
        ({"grace_period": 0}, "grace_period=0 must lie between 1 and 16"),
        ({"grace_period": 17}, "grace_period=17 must lie between 1 and 16"),
        ({"reduction_factor": 1}, "reduction_factor=1 must be at least 2"),
        ({"epochs": 0}, "epochs=0 must lie between"),
        ({"epochs": 2.5}, "epochs=2.5 must be a whole number"),
        ({"train_fraction": 0.0}, "train_fraction=0.0 must lie between"),
        ({"train_fraction": 1.01}, "train_fraction=1.01 must lie between"),
    ],
)
def test_a_budget_out_of_bounds_is_refused(changes, words):
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        Budget(**({"num_trials": 1} | changes))


def test_the_bounds_of_a_budget_are_inside():
    Budget(num_trials=1, grace_period=16, reduction_factor=2, train_fraction=1.0, epochs=1)
    Budget(num_trials=1, grace_period=1)


def test_ranges_are_those_of_optuna():
    assert choice("a", None, 1.5).choices == ("a", None, 1.5)
    assert uniform(0, 1) == FloatDistribution(0, 1)
    assert loguniform(1e-3, 1) == FloatDistribution(1e-3, 1, log=True)
    assert randint(2, 20) == IntDistribution(2, 20)
    assert choice(False, True) == CategoricalDistribution((False, True))


def test_what_is_narrowed_already_stays_so():
    once = narrowed({"lr": uniform(0, 1)})
    assert narrowed(once) == once == {"lr": Narrowed(uniform(0, 1))}


def test_params_overrule_fixed_and_fixed_overrules_the_parents_best():
    base = TrainConfig(lr=1.0, hflip=0.1, vflip=0.2, degrees=3.0).to_dict()
    stage = make(fixed={"hflip": 0.3, "vflip": 0.4})
    config = configure(stage, {"lr": 1e-3, "vflip": 0.5}, base=base)
    assert (config.lr, config.hflip, config.vflip, config.degrees) == (1e-3, 0.3, 0.5, 3.0)


def test_without_a_parent_the_rest_has_its_default():
    config = configure(make(), {"lr": 2e-3})
    assert config == TrainConfig(lr=2e-3)


def test_epochs_fraction_and_seed_come_from_the_stage():
    base = TrainConfig(epochs=9, seed=7, train_fraction=0.1).to_dict()
    stage = make(budget=Budget(num_trials=1, epochs=3, train_fraction=0.5), seeds=(4, 5))
    config = configure(stage, {}, base=base)
    assert (config.epochs, config.train_fraction, config.seed) == (3, 0.5, 4)
    assert configure(stage, {}, base=base, seed=0).seed == 0


def test_epochs_are_the_parents_where_the_stage_says_nothing():
    assert configure(make(), {}, base=TrainConfig(epochs=9).to_dict()).epochs == 9
    searched = make(space={"epochs": randint(2, 20)})
    assert configure(searched, {"epochs": 4}, base=TrainConfig(epochs=9).to_dict()).epochs == 4


def test_a_conditional_parameter_falls_back_to_its_default():
    space = {"random_resized_crop": choice(False, True), "crop_scale": uniform(0.2, 1.0)}
    stage = make(space=space, only_for={"crop_scale": {"random_resized_crop": (True,)}})
    base = TrainConfig(random_resized_crop=True, crop_scale=0.9).to_dict()
    cropped = configure(stage, {"random_resized_crop": True, "crop_scale": 0.5}, base=base)
    whole = configure(stage, {"random_resized_crop": False, "crop_scale": 0.5}, base=base)
    assert cropped.crop_scale == 0.5
    assert whole.crop_scale == TrainConfig().crop_scale


def test_a_condition_on_a_condition_does_not_depend_on_their_order():
    space = {
        "model": choice("a", "b"),
        "random_resized_crop": choice(False, True),
        "crop_scale": uniform(0.2, 1.0),
    }
    rules = {
        "crop_scale": {"random_resized_crop": (True,)},
        "random_resized_crop": {"model": ("a",)},
    }
    params = {"model": "b", "random_resized_crop": True, "crop_scale": 0.5}
    for names in (list(rules), list(rules)[::-1]):
        stage = make(space=space, only_for={name: rules[name] for name in names})
        config = configure(stage, params)
        assert (config.random_resized_crop, config.crop_scale) == (False, 0.08)


def test_the_meaning_of_a_stage_is_json_without_its_words(tmp_path):
    plain = write_chain(tmp_path / "a", explore=EXPLORE, exploit=EXPLOIT)
    text = '"""A long story."""\n' + EXPLORE.replace("    sampler", "    # why\n    sampler")
    told = write_chain(tmp_path / "b", explore=text, exploit=EXPLOIT)
    meanings = [[stage_to_dict(stage) for stage in load_chain(folder)] for folder in (plain, told)]
    assert meanings[0] == meanings[1]
    assert json.loads(json.dumps(meanings[0], allow_nan=False)) == meanings[0]


def test_every_field_of_a_stage_is_in_its_meaning():
    whole = make(
        space={"lr": loguniform(1e-4, 1e-2), "hflip": Narrowed(uniform(0, 1))},
        only_for={"hflip": {"lr": (1e-3,)}},
        after=PARENT,
        enqueue=1,
    )
    changes = {
        "name": "t",
        "space": {"lr": loguniform(1e-4, 1e-2), "hflip": uniform(0, 1)},
        "only_for": {},
        "fixed": {"vflip": 0.5},
        "sampler": "tpe",
        "data": "reduced",
        "budget": Budget(num_trials=4, reduction_factor=3),
        "after": make(name="other"),
        "enqueue": 2,
        "first": ({"lr": 1e-3},),
        "controls": 1,
        "seeds": (1,),
    }
    assert set(changes) | {"baseline", "pick_from"} == set(stage_to_dict(whole))
    kept = {name: getattr(whole, name) for name in changes}
    for name, value in changes.items():
        assert stage_to_dict(Stage(**(kept | {name: value})))[name] != stage_to_dict(whole)[name]
    repeat = Stage(name="r", after=PARENT, enqueue=1, budget=Budget(num_trials=1))
    meanings = [
        stage_to_dict(dataclasses.replace(repeat, baseline=baseline))["baseline"]
        for baseline in (None, {}, {"lr": 1e-2, "hflip": 0.5})
    ]
    assert meanings == [None, {}, {"hflip": 0.5, "lr": 1e-2}]
    wider = stage_to_dict(dataclasses.replace(repeat, pick_from="searches"))
    assert [meaning["pick_from"] for meaning in (stage_to_dict(repeat), wider)] == [
        *("parent", "searches")
    ]

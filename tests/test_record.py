"""What a stage draws from: fixed once, compared by meaning, taken from the parent's best."""

import json

import pytest
from conftest import COUNTS, prepare
from optuna.distributions import CategoricalDistribution

from aiornot.config import InputError, TrainConfig
from aiornot.tuning import narrow, ray_runs
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.record import begin, check_unchanged, differences, meaning, space_of
from aiornot.tuning.space import (
    Budget,
    Stage,
    choice,
    configure,
    loguniform,
    narrowed,
    randint,
    uniform,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data") / "reduced.h5", settings='{"size": 32}')


EXPLORE = Stage(
    name="explore",
    space={
        "model": choice("a", "b"),
        "lr": loguniform(1e-5, 1e-1),
        "epochs": randint(2, 20),
        "weight_decay": uniform(0.0, 1.0),
    },
    fixed={"batch_size": 16, "hflip": 0.5},
    sampler="random",
    data="reduced",
    budget=Budget(num_trials=8),
)


def child(**changes) -> Stage:
    values = {
        "name": "exploit",
        "after": EXPLORE,
        "space": narrowed(EXPLORE.space),
        "fixed": {"batch_size": 16},
        "sampler": "random",
        "data": "reduced",
        "enqueue": 2,
        "budget": Budget(num_trials=4),
    }
    return Stage(**(values | changes))


def made_up(stage, count, *, base=None) -> list[Trial]:
    """Make trials that finish, the better the nearer lr is to 1e-3; every other is stopped."""
    trials = []
    for number in range(count):
        params = {
            "model": "ab"[number % 2],
            "lr": 10 ** (-4.6 + 3 * number / count),
            "epochs": 3 + number % 15,
            "weight_decay": 0.1 + 0.05 * number,
        }
        score = 0.9 - 0.1 * abs(number - count // 2)
        last = 16 if number % 4 == 0 or number == count // 2 else 1
        ticks = [
            {"tick": tick, "score": score, "seconds": 1.0, "train/auroc": score, "val/auroc": score}
            for tick in range(1, last + 1)
        ]
        trials.append(
            Trial(
                id=f"{stage.name}-{number:03d}",
                number=number,
                state="finished" if last == 16 else "stopped",
                params=params,
                config=configure(stage, params, base=base).to_dict(),
                ticks=ticks,
            )
        )
    return trials


@pytest.fixture
def parent(data):
    return begin(EXPLORE, data, num_trials=8, parent=None, parent_trials=[])


def follow(stage, data, parent, trials):
    return begin(stage, data, num_trials=4, parent=parent, parent_trials=trials)


def test_a_first_stage_draws_from_its_file(data, parent):
    assert space_of(parent) == dict(EXPLORE.space)
    assert (parent["first"], parent["origins"], parent["base"]) == ([], [], None)
    assert parent["num_trials"] == 8
    assert parent["num_positive"] == parent["num_negative"] == COUNTS["val"] // 2
    assert parent["fingerprint"] == "f0"


def test_a_record_survives_the_ledger(data, parent, tmp_path):
    record = follow(child(), data, parent, made_up(EXPLORE, 8))
    ledger = Ledger(str(tmp_path))
    for one in (parent, record):
        ledger.write_stage(one)
        assert ledger.read_stage() == one
    assert space_of(ledger.read_stage()) == space_of(record)


def test_each_beginning_is_a_run_of_its_own(data, parent):
    again = begin(EXPLORE, data, num_trials=8, parent=None, parent_trials=[])
    assert again["run"] != parent["run"]
    assert {k: v for k, v in again.items() if k not in ("run", "created")} == {
        k: v for k, v in parent.items() if k not in ("run", "created")
    }


def test_known_good_points_come_first(data):
    stage = Stage(
        name="explore",
        space=EXPLORE.space,
        first=({"lr": 1e-3, "model": "a"}, {"lr": 1e-4}),
        sampler="random",
        budget=Budget(num_trials=3),
    )
    record = begin(stage, data, num_trials=3, parent=None, parent_trials=[])
    assert record["first"] == [{"lr": 1e-3, "model": "a"}, {"lr": 1e-4}]
    assert record["origins"] == ["first", "first"]


def test_the_space_is_narrowed_to_the_parents_best(data, parent):
    trials = made_up(EXPLORE, 8)
    space = space_of(follow(child(), data, parent, trials))
    for name, domain in space.items():
        old = EXPLORE.space[name]
        if not isinstance(domain, CategoricalDistribution):
            assert old.low <= domain.low < domain.high <= old.high
    assert space["lr"].high < 1e-1 and space["lr"].low > 1e-5
    assert space["lr"].low < trials[4].params["lr"] < space["lr"].high


def test_a_grandchild_is_narrowed_from_what_the_child_drew_from(data, parent):
    record = follow(child(), data, parent, made_up(EXPLORE, 8))
    stage = child()
    grandchild = child(name="finer", after=stage, space=narrowed(stage.space))
    again = follow(grandchild, data, record, made_up(stage, 8))
    for name, domain in space_of(again).items():
        old = space_of(record)[name]
        if not isinstance(domain, CategoricalDistribution):
            assert old.low <= domain.low < domain.high <= old.high


def test_the_parents_best_run_again_first_and_inside_the_new_space(data, parent):
    trials = made_up(EXPLORE, 8)
    record = follow(child(), data, parent, trials)
    assert record["origins"][0] == "from explore-004"
    assert len(record["first"]) == len(record["origins"]) == 2
    space = space_of(record)
    for point in record["first"]:
        assert set(point) == set(space)
        assert all(
            space[name]._contains(space[name].to_internal_repr(point[name])) for name in space
        )
    best = trials[4].params
    assert record["first"][0] == narrow.enqueued([best], space)[0] == best


def test_what_runs_again_is_trained_as_it_was(data, parent):
    """Also where the stage draws what its parent had not searched."""
    trials = made_up(EXPLORE, 8)
    space = {**narrowed(EXPLORE.space), "hflip": uniform(0.0, 0.5), "degrees": uniform(0.0, 30.0)}
    record = follow(child(space=space), data, parent, trials)
    assert [point["hflip"] for point in record["first"]] == [0.5, 0.5]
    assert [point["degrees"] for point in record["first"]] == [0.0, 0.0]
    assert record["first"][0] == trials[4].params | {"hflip": 0.5, "degrees": 0.0}


def test_a_repeat_may_select_from_all_searches(data, parent):
    """From the trials of both, the better of which are not those of the newest."""
    trials = made_up(EXPLORE, 8)
    stage = child()
    later = made_up(stage, 8, base=trials[4].config)
    for trial in later:
        for tick in trial.ticks:
            tick["score"] -= 0.01
    record = follow(stage, data, parent, trials)
    full = child(name="full", after=stage, space={}, sampler=None, enqueue=3, pick_from="searches")
    found = follow(full, data, record, [*trials, *later])
    assert found["selected"] == ["explore-004", "exploit-004", "explore-000"]
    planned = list(ray_runs.planned(full, found, [*trials, *later]))
    assert [trial.origin for trial in planned] == [f"from {name}" for name in found["selected"]]
    assert planned[1].config["lr"] == later[4].config["lr"]


def test_nothing_is_enqueued_where_nothing_is_asked_for(data, parent):
    record = follow(child(enqueue=0), data, parent, made_up(EXPLORE, 8))
    assert (record["first"], record["origins"]) == ([], [])
    assert record["base"] == made_up(EXPLORE, 8)[4].config


def test_equal_points_run_once(data, parent):
    trials = made_up(EXPLORE, 8)
    stage = child(space={"model": choice("a")})
    record = follow(stage, data, parent, trials)
    assert record["first"] == [{"model": "a"}]
    point = {name: trials[4].params[name] for name in EXPLORE.space}
    record = follow(child(first=(point,), enqueue=1), data, parent, trials)
    assert record["origins"] == ["first"] and record["first"] == [point]


def test_known_good_points_are_moved_into_the_narrowed_space(data, parent):
    stage = child(first=({"lr": 1e-1, "weight_decay": 0.3},))
    record = follow(stage, data, parent, made_up(EXPLORE, 8))
    space = space_of(record)
    assert record["origins"][0] == "first"
    assert space["lr"].high < 1e-1
    assert record["first"][0] == {"lr": space["lr"].high, "weight_decay": 0.3}


def test_what_a_stage_does_not_name_is_the_parents_best(data, parent):
    trials = made_up(EXPLORE, 8)
    stage = child(space=narrowed({"lr": EXPLORE.space["lr"]}))
    record = follow(stage, data, parent, trials)
    assert record["base"] == trials[4].config
    config = configure(stage, record["first"][0], base=record["base"])
    assert config == TrainConfig.from_dict(trials[4].config)
    assert config.hflip == 0.5 and config.model == "a" and config.epochs == 7


def test_best_values_on_a_bound_of_the_file_are_reported(data, parent):
    trials = made_up(EXPLORE, 8)
    for trial in trials[:5]:
        trial.params["weight_decay"] = trial.config["weight_decay"] = 1.0
    record = follow(child(), data, parent, trials)
    (warning,) = record["warnings"]
    assert warning.startswith("weight_decay: ") and "upper bound 1;" in warning
    assert follow(child(), data, parent, made_up(EXPLORE, 8))["warnings"] == []


def test_a_cut_made_by_narrowing_is_no_bound_to_report(data, parent):
    record = follow(child(), data, parent, made_up(EXPLORE, 8))
    stage, trials = child(), made_up(child(), 8)
    edge = space_of(record)["weight_decay"].high
    assert edge < 1.0
    for trial in trials:
        trial.params["weight_decay"] = trial.config["weight_decay"] = edge
    grandchild = child(name="finer", after=stage, space=narrowed(stage.space))
    assert follow(grandchild, data, record, trials)["warnings"] == []


def test_a_stage_without_a_sampler_repeats_the_parents_best(data, parent):
    trials = made_up(EXPLORE, 8)
    stage = child(name="full", space={}, sampler=None, enqueue=2, seeds=(0, 1))
    record = follow(stage, data, parent, trials)
    assert record["selected"] == ["explore-004", "explore-000"]
    assert record["num_trials"] == 4 and record["warnings"] == []
    assert space_of(record) == {}
    final = child(name="final", after=stage, space={}, sampler=None, enqueue=1, seeds=(1,))
    repeated = made_up(EXPLORE, 8)
    assert follow(final, data, record, repeated)["selected"] == ["explore-004"]


def test_controls_and_baseline_are_fixed_when_the_stage_begins(data, parent):
    trials = made_up(EXPLORE, 8)
    how = {"name": "full", "space": {}, "sampler": None, "enqueue": 2, "seeds": (3, 4)}
    how |= {"controls": 1, "baseline": {"lr": 1e-2, "epochs": 5}, "fixed": {"batch_size": 8}}
    full = child(**how)
    record = follow(full, data, parent, trials)
    control, baseline = record["beside"]
    assert record["num_trials"] == 2 * 2 + 2 and len(record["selected"]) == 2
    source = next(t for t in trials if control["origin"] == f"control from {t.id}")
    assert source.id not in record["selected"]
    assert control["role"] == "control" and control["params"] == source.params
    # Trained as the candidates are: at this stage's settings, with the first of its seeds.
    assert control["config"] == source.config | {"batch_size": 8, "seed": 3}
    default = TrainConfig(lr=1e-2, epochs=5, batch_size=8, seed=3).to_dict()
    assert (baseline["role"], baseline["config"]) == ("baseline", default)
    how["budget"] = Budget(num_trials=4, epochs=9)
    with pytest.raises(InputError, match="'epochs' is in baseline"):
        child(**how)
    plain = child(**how | {"baseline": {}})
    assert follow(plain, data, parent, trials)["beside"][1]["config"]["epochs"] == 9


def test_a_control_keeps_its_values_where_the_space_is_narrowed(data, parent):
    """Moved into the new space it would be another configuration, and compare nothing."""
    trials = made_up(EXPLORE, 24)
    record = follow(child(controls=2), data, parent, trials)
    assert record["num_trials"] == 4 + 2 and len(record["first"]) == 2
    sources = {trial.id: trial for trial in trials}
    for one in record["beside"]:
        source = sources[one["origin"].removeprefix("control from ")]
        for name in EXPLORE.space:
            assert one["config"][name] == source.config[name] == one["params"][name]
    # The narrowed space has no such model any more.
    assert record["beside"][0]["config"]["model"] not in space_of(record)["model"].choices


def test_what_was_begun_before_there_were_controls_goes_on_without(data, parent):
    """And stays refused where anything else has changed."""
    old = follow(child(), data, parent, made_up(EXPLORE, 8))
    for word in ("controls", "baseline", "pick_from"):
        del old["meaning"][word]
    check_unchanged(child(controls=2), data, old, place="here")
    with pytest.raises(InputError, match="enqueue was 2, is 1"):
        check_unchanged(child(controls=2, enqueue=1), data, old, place="here")
    new = follow(child(controls=1), data, parent, made_up(EXPLORE, 8))
    with pytest.raises(InputError, match="controls was 1, is 2"):
        check_unchanged(child(controls=2), data, new, place="here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"controls": 3}, "controls=3 must lie between 0 and 2"),
        ({"controls": 1, "after": None, "enqueue": 0}, "needs after= a stage that searches"),
        ({"baseline": {}}, "goes into first=, not baseline="),
        ({"baseline": {"lrr": 1}, "sampler": None, "space": {}}, "did you mean 'lr'"),
        ({"baseline": {"lr": "1"}, "sampler": None, "space": {}}, "lr='1' must be"),
        ({"baseline": {"seed": 1}, "sampler": None, "space": {}}, "seeds= decides"),
    ],
)
def test_what_cannot_be_compared_with_is_one_sentence(changes, words):
    with pytest.raises(InputError, match=words):
        child(**changes)


def test_a_control_above_all_candidates_is_told_and_does_not_go_on(data, parent):
    trials = made_up(EXPLORE, 8)
    best = max(trials, key=lambda trial: trial.score)
    above = Trial(**{**vars(best), "id": "explore-009", "number": 9, "role": "control"})
    above.origin = "control from before-001"
    above.ticks = [tick | {"score": 0.97} for tick in above.ticks]
    record = follow(child(), data, parent, [*trials, above])
    assert above.id not in "".join(record["origins"])
    (told,) = record["warnings"]
    assert told.startswith("explore-009 (control from before-001) has 0.9700, more than any")


def test_a_choice_that_is_not_the_best_score_says_why(data, parent):
    trials = made_up(EXPLORE, 8)
    by_score = sorted((t for t in trials if t.state == "finished"), key=lambda t: -t.score)
    by_score[1].ticks[-1]["score"] = by_score[0].score - 1e-6  # a near tie, with a smaller gap
    for trial, train_auroc in ((by_score[0], 0.99), (by_score[1], 0.6)):
        trial.ticks[-1] |= {"train/auroc": train_auroc, "val/auroc": 0.6}
    stage = child(name="full", space={}, sampler=None, enqueue=1)
    record = follow(stage, data, parent, trials)
    assert record["selected"] == [by_score[1].id]
    assert len(record["warnings"]) == 1 and by_score[0].id in record["warnings"][0]


def test_fewer_candidates_than_asked_for_are_fewer_trials(data, parent):
    stage = child(name="full", space={}, sampler=None, enqueue=6)
    assert follow(stage, data, parent, made_up(EXPLORE, 3))["num_trials"] == 3


def test_what_is_begun_does_not_move_with_the_parent(data, parent, tmp_path):
    """The driver reads a record back; only this function makes one, and it is not called twice."""
    ledger = Ledger(str(tmp_path))
    ledger.write_stage(follow(child(), data, parent, made_up(EXPLORE, 8)))
    drawn = ledger.read_stage()
    moved = follow(child(), data, parent, made_up(EXPLORE, 24))
    assert moved["space"] != drawn["space"]
    check_unchanged(child(), data, drawn, place="runs/mine")


def test_an_unchanged_stage_may_go_on(data, parent):
    check_unchanged(EXPLORE, data, json.loads(json.dumps(parent)), place="runs/mine")


def test_the_number_of_trials_may_change(data, parent):
    values = {name: getattr(EXPLORE, name) for name in EXPLORE.__dataclass_fields__}
    more = Stage(**(values | {"budget": Budget(num_trials=80)}))
    check_unchanged(more, data, parent, place="runs/mine")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": dict(EXPLORE.space) | {"lr": loguniform(1e-5, 1e-2)}}, ["space.lr was", "0.01"]),
        ({"fixed": {"batch_size": 32, "hflip": 0.5}}, ["fixed.batch_size was 16, is 32"]),
        ({"fixed": {"batch_size": 16}}, ["fixed.hflip was 0.5, is absent"]),
        (
            {"fixed": dict(EXPLORE.fixed) | {"clip_grad": None}},
            ["fixed.clip_grad was absent, is None"],
        ),
        ({"sampler": "tpe"}, ["sampler was 'random', is 'tpe'"]),
        ({"seeds": (1,)}, ["seeds was [0], is [1]"]),
        ({"budget": Budget(num_trials=8, grace_period=2)}, ["budget.grace_period was 5, is 2"]),
        (
            {"budget": Budget(num_trials=8, train_fraction=0.5), "data": "full"},
            ["budget.train_fraction was 1.0, is 0.5", "data was 'reduced', is 'full'"],
        ),
    ],
)
def test_a_changed_stage_is_refused_with_every_difference(data, parent, changes, words):
    values = {name: getattr(EXPLORE, name) for name in EXPLORE.__dataclass_fields__}
    with pytest.raises(InputError) as caught:
        check_unchanged(Stage(**(values | changes)), data, parent, place="runs/mine")
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "stage 'explore' is not what it was when runs/mine was begun" in message
    assert "--fresh" in message


def test_other_data_is_refused(parent, tmp_path):
    other = prepare(tmp_path / "reduced.h5", settings='{"size": 64}')
    with pytest.raises(InputError, match=r"data_settings was .*32.*, is .*64"):
        check_unchanged(EXPLORE, other, parent, place="runs/mine")


def test_differences_are_found_at_any_depth():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": None}
    assert differences(old, json.loads(json.dumps(old))) == []
    new = {"a": {"b": 2, "c": [1, 3]}, "d": {"x": 1}}
    assert differences(old, new) == [
        "a.b was 1, is 2",
        "a.c was [1, 2], is [1, 3]",
        "d was 1, is {'x': 1}",
        "e was None, is absent",
    ]


def test_the_meaning_of_a_stage_is_json(data):
    for stage in (EXPLORE, child()):
        values = meaning(stage, data)
        assert json.loads(json.dumps(values, allow_nan=False)) == values

"""The plan of a chain: what it promises holds whatever the stage, and the real search agrees."""

import dataclasses
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from conftest import run_verb
from hypothesis import given, settings
from hypothesis import strategies as st

from aiornot.config import TICKS
from aiornot.training.pace import Pace
from aiornot.tuning import outlook, plan, plan_tables, ray_plan, spending
from aiornot.tuning.ledger import Trial
from aiornot.tuning.outlook import Machines, Part
from aiornot.tuning.plan import Row
from aiornot.tuning.ray_search import Rungs
from aiornot.tuning.space import Budget, Stage, choice, loguniform, narrowed, randint, uniform
from aiornot.tuning.stages import find_chain, load_chain

TWO_CORES = Machines(num_gpus=0, num_cpus=2)
FAST, SLOW = "test_resnet.r160_in1k", "test_byobnet.r160_in1k"


def search(name: str = "explore", *, space: Any = None, after: Stage | None = None, **budget: Any):
    return Stage(
        name=name,
        space={"model": choice(FAST, SLOW)} if space is None else space,
        sampler="random",
        after=after,
        data="reduced",
        budget=Budget(**({"num_trials": 12, "epochs": 4, "grace_period": 4} | budget)),
    )


def repeat(after: Stage, *, enqueue: int = 2, **budget: Any) -> Stage:
    values = {"num_trials": enqueue, "epochs": 5} | budget
    return Stage(name="full", after=after, enqueue=enqueue, budget=Budget(**values))


def part_of(stage: Stage, **changes: Any) -> Part:
    count = stage.budget.num_trials if stage.searches() else stage.enqueue * len(stage.seeds)
    values = {"num_trials": count, "num_train": 1000, "num_val": 200, "size": 64}
    return Part(stage=stage, data=Path(f"{stage.data}.h5"), **(values | changes))


def trained(number: int, tick: int, state: str = "running", **config: Any) -> Trial:
    ticks = [{"tick": t, "seconds": 1.0, "score": 0.5} for t in range(1, tick + 1)]
    return Trial(
        id=f"t-{number}", number=number, state=state, params={}, config=config, ticks=ticks
    )


def ended(count: int) -> list[Trial]:
    return [trained(number, TICKS, "finished") for number in range(count)]


def pace_of(model: str) -> Pace:
    """A made-up pace; the second model is four times slower."""
    rate = {FAST: 400.0, SLOW: 100.0}.get(model, 50.0)
    return Pace(
        train_images_per_second=rate,
        val_images_per_second=3 * rate,
        start_seconds=0.5,
        checkpoint_seconds=0.1,
        checkpoint_bytes=int(1e9 / rate),
    )


def plan_of(*parts: Part, machines: Machines = TWO_CORES) -> list[Row]:
    paces = {case: pace_of(case.config.model) for case in plan.cases(parts, machines)}
    return plan.rows(parts, paces, machines)


budgets = st.fixed_dictionaries(
    {
        "num_trials": st.integers(1, 60),
        "epochs": st.integers(1, 30),
        "grace_period": st.integers(1, 16),
        "reduction_factor": st.integers(2, 6),
        "train_fraction": st.floats(0.1, 1.0),
    }
)
machines = st.builds(
    Machines, num_gpus=st.integers(0, 8), num_cpus=st.integers(1, 64), num_workers=st.integers(1, 4)
)


@settings(deadline=None, max_examples=25)
@given(budgets, machines)
def test_what_is_expected_is_never_more_than_the_worst(budget, machines):
    stage = search(**budget)
    for row in plan_of(part_of(stage), part_of(repeat(stage)), machines=machines):
        assert 0 < row["expected_wall_seconds"] <= row["worst_wall_seconds"] * (1 + 1e-9)
        assert 0 < row["expected_device_seconds"] <= row["worst_device_seconds"] * (1 + 1e-9)
        assert 0 < row["kept_bytes"] < row["most_bytes"]


@settings(deadline=None, max_examples=25)
@given(budgets, machines)
def test_one_trial_more_never_costs_less(budget, machines):
    (few,) = plan_of(part_of(search(**budget)), machines=machines)
    more = search(**(budget | {"num_trials": budget["num_trials"] + 1}))
    (many,) = plan_of(part_of(more), machines=machines)
    for key in plan.NOTHING:
        assert many[key] >= few[key] * (1 - 1e-9), key
    assert many["expected_device_seconds"] > few["expected_device_seconds"]


@settings(deadline=None, max_examples=25)
@given(budgets)
def test_fewer_trials_reach_each_rung_and_the_first_always_passes(budget):
    counts = outlook.per_rung(search(**budget), budget["num_trials"])
    assert counts[0] == budget["num_trials"] and counts[-1] >= 1
    assert counts == sorted(counts, reverse=True)


@settings(deadline=None, max_examples=25)
@given(budgets, st.integers(0, 15))
def test_a_trial_on_its_way_has_less_to_go_and_never_more_than_all(budget, done):
    part = part_of(search(**budget))
    assert 0 < outlook.ticks_to_come(part, done) <= TICKS - done
    stage = search(**(budget | {"grace_period": TICKS}))
    assert outlook.ticks_to_come(part_of(stage), done) == TICKS - done


def test_a_finished_stage_costs_nothing_and_is_not_measured():
    stage = search()
    done = part_of(stage, trials=ended(12), record={})
    assert plan.cases([done], TWO_CORES) == []
    (row,) = plan_of(done)
    assert row["trials_left"] == 0 and not any(row[key] for key in plan.NOTHING)
    first, second = plan_of(done, part_of(repeat(stage)))
    assert plan.total([first, second])["expected_wall_seconds"] == second["expected_wall_seconds"]


def test_of_an_unfinished_stage_the_rest_is_counted():
    stage = search(grace_period=16)  # nothing is stopped: every tick costs the same
    (fresh,) = plan_of(part_of(stage))
    trials = [*ended(9), trained(9, 8)]  # 2 to begin, and half of one to go
    (row,) = plan_of(part_of(stage, trials=trials, record={}))
    assert row["trials_left"] == 3 and row["trials"] == 12
    share = row["worst_device_seconds"] / fresh["worst_device_seconds"]
    assert share == pytest.approx(2.5 / 12)


def test_a_repeat_tries_its_failed_trials_again_only_if_none_finished():
    stage = repeat(search())
    failed = [trained(0, 4, "failed"), trained(1, 0, "failed")]
    assert part_of(stage, trials=failed).left() == [4, 0]
    assert part_of(stage, trials=[failed[0], *ended(1)]).left() == []
    assert part_of(search(), trials=failed).left() == [0] * 10


@pytest.mark.parametrize(("count", "factor"), [(6, 4), (12, 4), (48, 4), (48, 3), (48, 2)])
def test_as_many_trials_pass_a_rung_as_in_the_scheduler_that_decides(count, factor):
    """The mean over 200 random orders of scores; 48 at 4 gave .303 in the replays of the design."""
    draw, passed = random.Random(0), []
    for _ in range(200):
        budget = Budget(num_trials=count, grace_period=4, reduction_factor=factor)
        scheduler = Rungs(budget)
        results = [{"tick": 4, "score": draw.random()} for _ in range(count)]
        decisions = [scheduler.decide(f"t{number}", r) for number, r in enumerate(results)]
        passed.append(decisions.count("CONTINUE"))
    # Five standard errors of that mean.
    error = math.sqrt(sum((n - fmean(passed)) ** 2 for n in passed) / 200) / math.sqrt(200)
    assert outlook.passing(count, factor) == pytest.approx(fmean(passed), abs=5 * error)


def test_on_one_device_an_unstopped_stage_takes_what_its_trials_take():
    """By hand: 992 images an epoch, 4 epochs; 16 times 200 of val, and 16 checkpoints."""
    stage = search(space={"lr": loguniform(1e-4, 1e-2)}, num_trials=3, grace_period=16)
    part = part_of(dataclasses.replace(stage, fixed={"model": FAST}))
    (row,) = plan_of(part, machines=Machines(num_gpus=1, num_cpus=8))
    ticks = 992 * 4 / 400 + 16 * 200 / 1200
    assert row["expected_device_seconds"] == pytest.approx(3 * ticks)
    whole = plan.SEARCH_SECONDS + 3 * (0.5 + ticks + 16 * 0.1)
    assert row["expected_wall_seconds"] == pytest.approx(whole)
    assert row["worst_wall_seconds"] == pytest.approx(whole)


def test_workers_share_a_run_and_take_its_place():
    stage = repeat(search())
    one, two = (Machines(num_gpus=4, num_cpus=8, num_workers=n) for n in (1, 2))
    single, double = (plan_of(part_of(search()), part_of(stage), machines=m)[1] for m in (one, two))
    key = "expected_device_seconds"
    assert double[key] == pytest.approx(single[key])
    assert double["expected_wall_seconds"] < single["expected_wall_seconds"]
    nested = dataclasses.replace(search(), trainer="ray_train")
    assert (one.concurrent(search()), two.concurrent(search()), two.concurrent(nested)) == (4, 4, 2)
    cores = Machines(num_gpus=0, num_cpus=8, num_workers=2)
    assert cores.threads(search(), 9) == 1 and one.threads(search(), 9) == 2
    # Four runs of two workers have a core for each; fewer of them share all that there is.
    assert [cores.threads(stage, count) for count in (9, 4, 2, 1)] == [1, 1, 2, 4]


@settings(deadline=None, max_examples=50)
@given(machines, st.integers(1, 40))
def test_runs_side_by_side_never_ask_for_more_than_there_is(machines, count):
    stage = repeat(search())
    workers = min(machines.concurrent(stage), count) * machines.num_workers
    devices = machines.num_gpus or machines.num_cpus
    if machines.num_workers <= devices:  # more are refused before
        assert workers <= devices
        wanted = workers * machines.threads(stage, count)
        assert wanted <= max(machines.num_cpus, workers)


def test_no_worker_asks_for_cores_of_two_machines():
    stage = repeat(search())

    def threads(*nodes: tuple[int, int], count: int) -> int:
        cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
        return Machines(num_gpus=gpus, num_cpus=cpus, nodes=nodes).threads(stage, count)

    assert [threads((1, 0), (1, 0), count=count) for count in (2, 1)] == [1, 1]
    assert [threads((5, 0), (5, 0), count=count) for count in (3, 2, 1)] == [2, 5, 5]
    # The cores of a head without a GPU are beside no GPU.
    assert threads((8, 0), (4, 1), (4, 1), count=1) == 4
    assert threads((16, 4), (2, 1), count=1) == 2


def test_a_stage_without_models_of_its_own_has_those_of_its_parent():
    chain = load_chain(find_chain("seed"))
    parts = [part_of(stage) for stage in chain]
    found = dict(zip([s.name for s in chain], outlook.configurations(parts), strict=True))
    models = {name: [config.model for config in configs] for name, configs in found.items()}
    assert len(set(models["random_plain"])) == 5
    assert models["few"] == models["random_plain"]
    # The baseline is trained beside them, once.
    assert models["full"] == models["final"] == [*models["few"], "resnet18.a1_in1k"]
    assert all(config.degrees == 0 for config in found["random_plain"])
    # few does not search augmentation: it is that of the stage before.
    assert all(config.degrees == 22.5 and config.random_resized_crop for config in found["few"])


def test_what_has_been_decided_replaces_what_was_to_be_searched():
    space = {"model": choice(FAST, SLOW), "epochs": randint(2, 20)}
    explore = part_of(search(space=space, epochs=None))
    full = repeat(explore.stage, epochs=None)
    configs = {number: {"model": SLOW, "epochs": 3 + number} for number in range(2)}
    trials = [trained(number, TICKS, "finished", **config) for number, config in configs.items()]
    explore = dataclasses.replace(explore, trials=trials, num_trials=2)
    before, after = (part_of(full), part_of(full, record={"selected": ["t-0", "t-1"]}))
    (open_row,), (row,) = (plan_of(explore, each)[1:] for each in (before, after))
    assert (open_row["models"], open_row["mean_epochs"]) == ([SLOW, FAST], 11)
    assert (row["models"], row["mean_epochs"], row["most_epochs"]) == ([SLOW], 3.5, 4)
    # They need not be of the stage right before: one may select from all searches.
    exploit = part_of(search("exploit", space={"lr": loguniform(1e-4, 1e-2)}, after=explore.stage))
    assert plan_of(explore, exploit, after)[2]["models"] == [SLOW]
    few = search("few", space=narrowed({"lr": loguniform(1e-4, 1e-2)}), after=explore.stage)
    before, after = part_of(few), part_of(few, record={"base": configs[0]})
    (open_row,), (row,) = (plan_of(explore, each)[1:] for each in (before, after))
    assert (open_row["models"], row["models"]) == ([SLOW, FAST], [SLOW])


def test_at_worst_every_trial_is_as_long_as_it_may_be():
    stage = search(space={"epochs": randint(2, 20)}, epochs=None, num_trials=1)
    (row,) = plan_of(part_of(dataclasses.replace(stage, fixed={"model": FAST})))
    longer = (20 - 11) * 992 / 400
    difference = row["worst_device_seconds"] - row["expected_device_seconds"]
    assert difference == pytest.approx(longer)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ((0.0, 0.5), 0.25),
        ((2, 20), 11),
        ((False, True), True),
        ((None, 1.0, 5.0), 3.0),
        ((16, 32, 64), 32),
        (("avg", "catavgmax"), "avg"),
        ((None,), None),
        ((0.0,), 0.0),
    ],
)
def test_the_middle_of_a_parameter_switches_on_what_may_be_on(domain, expected):
    found = outlook.middle(domain)
    assert found == expected and type(found) is type(expected)


def test_models_are_measured_once_per_file_and_threads_with_augmentation_on():
    explore = search(space={"model": choice(FAST, SLOW), "jpeg": uniform(0.0, 0.4)})
    exploit = search("exploit", space=narrowed(explore.space), after=explore)
    parts = [part_of(stage) for stage in (explore, exploit, repeat(exploit))]
    cases = plan.cases(parts, TWO_CORES)
    measured = [(case.config.model, case.data.stem, case.num_threads) for case in cases]
    assert measured == [(name, data, 1) for data in ("reduced", "full") for name in (FAST, SLOW)]
    (*_, alone) = plan.cases([*parts[:2], part_of(repeat(exploit, enqueue=1))], TWO_CORES)
    assert alone.num_threads == 2
    assert all(case.config.jpeg == 0.2 and not case.config.pretrained for case in cases)


def limited(*parts: Part, limit: float, what: str = "wall") -> Row:
    weights = [spending.weight(p.stage, num_train=p.num_train, size=p.size) for p in parts]
    return plan.within(parts, plan_of(*parts), limit=limit, what=what, weights=weights)


CHAIN = (part_of(search()), part_of(repeat(search())))


def test_a_limit_is_shared_as_the_chain_will_share_it():
    explore, full = plan_of(*CHAIN)
    weights = [spending.weight(p.stage, num_train=p.num_train, size=p.size) for p in CHAIN]
    found = limited(*CHAIN, limit=100.0)
    (search_row,) = found["searches"]
    allowed = spending.allowance(100.0, spent=0.0, weights=weights, index=0)
    assert search_row["left_seconds"] == pytest.approx(allowed)
    assert search_row["trials"] == math.floor(12 * allowed / explore["expected_wall_seconds"])
    assert found["then"] == ["full"] and found["then_seconds"] == full["expected_wall_seconds"]
    assert found["then_left_seconds"] == pytest.approx(100.0 - allowed) and not found["fits"]


@settings(deadline=None, max_examples=25)
@given(st.floats(1.0, 1e5), st.floats(1.0, 10.0), st.sampled_from(["wall", "device"]))
def test_more_hours_never_fit_fewer_trials(limit, factor, what):
    less, more = (limited(*CHAIN, limit=each, what=what) for each in (limit, factor * limit))
    assert less["searches"][0]["trials"] <= more["searches"][0]["trials"] <= 12
    assert more["fits"] or not less["fits"]


def test_what_was_spent_already_is_gone_and_enough_is_enough():
    spent = {"sessions": [[0.0, 40.0]]}
    begun = dataclasses.replace(CHAIN[0], record=spent)
    fresh, rest = limited(*CHAIN, limit=100.0), limited(begun, CHAIN[1], limit=100.0)
    difference = fresh["searches"][0]["left_seconds"] - rest["searches"][0]["left_seconds"]
    assert difference == pytest.approx(40.0)
    done = dataclasses.replace(begun, trials=ended(12))
    assert limited(done, CHAIN[1], limit=100.0)["then_left_seconds"] == pytest.approx(60.0)
    rich = limited(*CHAIN, limit=1e6)
    assert rich["fits"] and rich["searches"][0]["trials"] == 12
    assert plan_tables.sentence("--hours", rich).count("enough") == 1


def test_checkpoints_add_up_to_the_most_there_is_at_once():
    """Two cores: of the search 3 stay and 2 x 2 run; then 2 of the repeat stay and 2 x 2 run."""
    explore, full = plan_of(*CHAIN)
    each = pace_of(SLOW).checkpoint_bytes
    assert (explore["kept_bytes"], explore["most_bytes"]) == (3 * each, 7 * each)
    assert (full["kept_bytes"], full["most_bytes"]) == (2 * each, 6 * each)
    assert plan.total([explore, full])["most_bytes"] == (3 + 6) * each


# With real files, Ray and verbs.

EXPLORE = """
from aiornot.tuning.space import Budget, Stage, choice

stage = Stage(
    name="explore",
    space={"model": choice("test_resnet.r160_in1k"), "lr": choice(1e-3, 1e-2)},
    fixed={"pretrained": False, "batch_size": 16},
    sampler="random",
    budget=Budget(num_trials=4, epochs=3, grace_period=4),
)
"""
FULL = """
from aiornot.tuning.space import Budget, Stage
from . import explore as parent

stage = Stage(name="full", after=parent.stage, enqueue=1, budget=Budget(num_trials=1, epochs=4))
"""


@pytest.fixture
def home(tmp_path, monkeypatch, easy) -> Path:
    """A chain of two stages and its data, in a folder of relative paths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(ray_plan, "CALIBRATION_SECONDS", 1.0)
    for folder in ("mine", "prepared"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mine/explore.py").write_text(EXPLORE)
    (tmp_path / "mine/full.py").write_text(FULL)
    shutil.copy(easy, tmp_path / "prepared/full.h5")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data", "nowhere"), "aiornot prepare"),
        (("--data", "prepared", "--trials", "explor=3"), "no searching stage 'explor'"),
        (("--data", "prepared", "--only", "fulll"), "no stage 'fulll'"),
        (("--data", "prepared", "--hours", "0"), "--hours 0"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(home, arguments, expected):
    result = run_verb("tune", "mine", "--plan", *arguments)
    assert result.code == 2 and expected in result.err and "Traceback" not in result.err
    assert not (home / "runs").exists()


def test_json_is_for_plans(home):
    result = run_verb("tune", "mine", "--data", "prepared", "--json")
    assert result.code == 2 and "--plan" in result.err and not (home / "runs").exists()


def planned(*arguments: str) -> Row:
    result = run_verb("tune", "mine", "--data", "prepared", "--plan", "--json", *arguments)
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.ray
@pytest.mark.timeout(600)  # six plans and a search: seconds each, and minutes where all is busy
def test_a_plan_writes_nothing_and_then_counts_what_the_ledger_holds(home, ray_cluster):
    before = sorted(home.rglob("*"))
    fresh = planned("--hours", "100")
    assert sorted(home.rglob("*")) == before
    assert [row["per_rung"] for row in fresh["stages"]] == [[4, 2], [1]]
    assert fresh["num_cpus"] == 2 and fresh["free_bytes"] > 0 and len(fresh["paces"]) == 2
    assert fresh["limits"]["--hours"]["fits"]
    assert [row["stage"] for row in planned("--only", "explore")["stages"]] == ["explore"]

    assert run_verb("tune", "mine", "--data", "prepared", "--only", "explore").code == 0
    weights = home.glob("runs/mine/explore/checkpoints/*/*/*")
    kept = sum(path.stat().st_size for path in weights)
    promised = fresh["stages"][0]["kept_bytes"]
    assert promised * 0.9 < kept <= promised * 1.01  # metrics are a few bytes more

    ledger = {path: path.read_text() for path in home.rglob("*.json")}
    explore, full = planned()["stages"]
    assert explore["trials_left"] == 0 and not any(explore[key] for key in plan.NOTHING)
    assert full["trials_left"] == 1 and full["expected_wall_seconds"] > 0
    assert planned("--trials", "explore=7")["stages"][0]["trials_left"] == 3
    assert planned("--fresh")["stages"][0]["trials_left"] == 4
    assert {path: path.read_text() for path in home.rglob("*.json")} == ledger
    table = run_verb("tune", "mine", "--data", "prepared", "--plan", "--gpu-hours", "9")
    assert "0 of 4" in table.out and "--gpu-hours 9 leaves" in table.out
    (home / "mine/explore.py").write_text(EXPLORE.replace("1e-2", "1e-1"))
    changed = run_verb("tune", "mine", "--data", "prepared", "--plan")
    assert changed.code == 2 and "space.lr" in changed.err


ELSEWHERE = """
import json
from pathlib import Path
import ray
from aiornot.config import InputError
from aiornot.training import pace
from aiornot.tuning import ray_plan
from aiornot.tuning.options import Options

pace.measure = None  # not in this process
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False)
options = Options(data=Path("prepared"), root="runs/mine")
told = []
try:
    ray_plan.make(Path("mine"), options, progress=lambda *each: told.append(each))
except InputError as error:
    Path("found.json").write_text(json.dumps({"told": told, "refused": str(error)}))
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(240)
def test_where_ray_alone_has_a_gpu_a_task_there_measures(home):
    """Ray is told of a GPU that is not there: the task is placed as for one, and uses the CPU.

    Slow: it starts a Ray of its own. The model of the second stage does not exist, which it says in
    its one sentence.
    """
    unknown = FULL.replace('name="full"', 'name="full", fixed={"model": "resnet1800"}')
    (home / "mine/full.py").write_text(unknown)
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((home / "found.json").read_text())
    assert [number for _, number, _ in found["told"]] == [0, 1]  # the first was measured
    assert found["refused"].startswith("model='resnet1800': timm knows no")

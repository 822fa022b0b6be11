"""What a stage may spend and has spent, and the meter that notes it."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiornot.config import TrainConfig
from aiornot.tuning import meter, spending
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.meter import UNLIMITED, Meter
from aiornot.tuning.space import Budget, Stage, choice, loguniform, narrowed, randint
from aiornot.tuning.spending import Spent

LR = {"lr": loguniform(1e-4, 1e-2)}


def search(name: str = "explore", *, space=LR, after=None, fixed=None, **budget) -> Stage:
    values = {"num_trials": 8, "epochs": 4} | budget
    return Stage(
        name=name,
        space=space,
        fixed=fixed or {},
        sampler="random",
        after=after,
        budget=Budget(**values),
    )


def repeat(after: Stage, **budget) -> Stage:
    values = {"num_trials": 1, "epochs": 4} | budget
    return Stage(name="full", after=after, enqueue=1, budget=Budget(**values))


def trained(number: int, *seconds: float) -> Trial:
    ticks = [{"tick": tick, "seconds": each} for tick, each in enumerate(seconds, 1)]
    return Trial(id=f"t-{number}", number=number, params={}, config={}, ticks=ticks)


def test_a_stage_that_never_began_has_spent_nothing():
    assert spending.spent(None, []) == Spent()
    assert spending.spent({}, []) == Spent()


def test_the_night_between_two_sessions_costs_nothing_and_every_worker_counts():
    record = {"sessions": [[100.0, 160.0], [40_000.0, 40_030.0]], "num_workers": 3}
    found = spending.spent(record, [trained(0, 1.0, 2.0), trained(1, 4.0)])
    assert found == Spent(wall_seconds=90.0, device_seconds=21.0)


@pytest.mark.parametrize(("wall", "device"), [(5.0, 1.0), (1.0, 5.0), (6.0, 6.0)])
def test_one_limit_that_is_reached_is_enough(wall, device):
    allowed = Spent(wall_seconds=5.0, device_seconds=5.0)
    assert not Spent(wall_seconds=wall, device_seconds=device).below(allowed)
    assert Spent(wall_seconds=4.9, device_seconds=4.9).below(allowed)
    assert Spent(wall_seconds=1e12, device_seconds=1e12).below(UNLIMITED)


def test_the_share_of_a_search_is_that_of_the_replayed_ones():
    """.0625 for all, .30 of them go on to a quarter, .09 to the end; never stopped is all of it."""
    share = spending.expected_share(Budget(num_trials=48, grace_period=1))
    assert share == pytest.approx(0.0625 + 0.30 * 0.1875 + 0.09 * 0.75)
    assert spending.expected_share(Budget(num_trials=48, grace_period=16)) == 1.0


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 15), st.integers(2, 8))
def test_a_search_costs_less_the_earlier_and_the_more_it_stops(grace, factor):
    def share(**values) -> float:
        return spending.expected_share(Budget(num_trials=1, **values))

    found = share(grace_period=grace, reduction_factor=factor)
    assert grace / 16 < found < 1
    assert found <= share(grace_period=16, reduction_factor=factor)
    if grace == 1:  # later rungs move when the factor does, the first stays
        assert found <= share(grace_period=1, reduction_factor=2)


def test_a_weight_counts_trained_pixels():
    stage = search(grace_period=16)
    weight = spending.weight(stage, num_train=1000, size=64)
    assert weight == 8 * 4 * 1000 * 64**2
    assert spending.weight(stage, num_train=1000, size=128) == 4 * weight
    half = search(grace_period=16, train_fraction=0.5)
    assert spending.weight(half, num_train=1000, size=64) == weight / 2
    again = repeat(search(), num_trials=2)
    assert spending.weight(again, num_train=1000, size=64) == 2 * 4 * 1000 * 64**2
    assert spending.weight(search(), num_train=1000, size=64) < weight


def test_the_length_of_a_trial_is_looked_for_where_it_is_decided():
    searched = search(space=LR | {"epochs": randint(2, 20)}, epochs=None)
    assert spending.epochs(search(epochs=7)) == (7, 7)
    assert spending.epochs(searched) == (11, 20)
    assert spending.epochs(search(space=LR | {"epochs": choice(2, 3, 10)}, epochs=None)) == (6, 10)
    inherited = search("few", space=narrowed(LR), after=searched, epochs=None)
    assert spending.epochs(repeat(inherited, epochs=None)) == (11, 20)
    assert spending.epochs(search(fixed={"epochs": 3}, epochs=None)) == (3, 3)
    default = TrainConfig().epochs
    assert spending.epochs(search(epochs=None)) == (default, default)


def test_what_comes_later_keeps_its_share_and_what_was_left_over_is_used():
    weights = [1.0, 1.0, 2.0]  # two searches, and a stage that is never cut short
    assert spending.allowance(100, spent=0, weights=weights, index=0) == pytest.approx(25)
    assert spending.allowance(100, spent=10, weights=weights, index=1) == pytest.approx(40)
    assert spending.allowance(100, spent=60, weights=weights, index=1) == 0
    assert spending.allowance(None, spent=60, weights=weights, index=1) == math.inf


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0.01, 100), min_size=2, max_size=6),
    st.floats(1, 1e6),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
)
def test_whatever_the_searches_use_of_theirs_the_last_stage_gets_its_share(weights, limit, used):
    spent = 0.0
    for index, share in zip(range(len(weights) - 1), used, strict=False):
        spent += share * spending.allowance(limit, spent=spent, weights=weights, index=index)
    assert limit - spent >= limit * weights[-1] / sum(weights) * (1 - 1e-9)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(meter.time, "time", made)
    return made


def open_meter(root: Path, *, num_workers: int = 1, allowed: Spent = UNLIMITED) -> Meter:
    """Begin a session as the chain does: on the record that is there, if there is one."""
    ledger = Ledger(str(root))
    record = ledger.read_stage() or {}
    return Meter(ledger, record, num_workers=num_workers, allowed=allowed)


def sessions(root: Path) -> list[list[float]]:
    return json.loads((root / "stage.json").read_text())["sessions"]


def test_a_session_is_noted_at_once_then_twice_a_minute_and_at_its_end(tmp_path, clock):
    watch, trial = open_meter(tmp_path), trained(0)
    assert sessions(tmp_path) == [[1000.0, 1000.0]]
    clock.now += 29
    watch.begin(trial)
    assert sessions(tmp_path) == [[1000.0, 1000.0]]
    clock.now += 2
    watch.end(trial)
    assert sessions(tmp_path) == [[1000.0, 1031.0]]
    clock.now += 3
    watch.close()
    assert sessions(tmp_path) == [[1000.0, 1034.0]]


def test_a_second_session_goes_on_with_what_the_first_spent(tmp_path, clock):
    ledger, trial = Ledger(str(tmp_path)), trained(0)
    watch = open_meter(tmp_path, num_workers=2)
    Ledger(str(tmp_path), observers=[watch]).tick(trial, {"tick": 1, "score": 0.5, "seconds": 5.0})
    clock.now += 60
    watch.close()
    clock.now += 8 * 3600
    again = open_meter(tmp_path, num_workers=2)
    assert again.spent() == Spent(wall_seconds=60.0, device_seconds=10.0)
    clock.now += 7
    Ledger(str(tmp_path), observers=[again]).tick(trial, {"tick": 2, "score": 0.5, "seconds": 1.0})
    assert again.spent() == Spent(wall_seconds=67.0, device_seconds=12.0)
    again.close()
    assert spending.spent(ledger.read_stage(), ledger.read()) == again.spent()


def test_it_may_go_on_until_the_clock_or_the_devices_say_no(tmp_path, clock):
    watch = open_meter(tmp_path, allowed=Spent(wall_seconds=10.0, device_seconds=4.0))
    watch.tick(trained(0), {"seconds": 3.9})
    clock.now += 9.9
    assert watch.may_go_on()
    clock.now += 0.2
    assert not watch.may_go_on()
    clock.now -= 0.2
    watch.tick(trained(0), {"seconds": 0.2})
    assert not watch.may_go_on()

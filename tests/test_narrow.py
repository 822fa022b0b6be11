"""Narrowing: each rule by example, and what must hold for any range and any values."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from aiornot.tuning.narrow import bound_hits, enqueued, narrow, num_top
from aiornot.tuning.space import Distribution, Narrowed, choice, loguniform, randint, uniform


def cut(domain: Distribution, best: list, others: list = ()) -> Distribution:
    space = narrow(
        {"x": Narrowed(domain)},
        parent={"x": domain},
        best=[{"x": value} for value in best],
        others=[{"x": value} for value in others],
    )
    return space["x"]


def test_the_best_are_fifteen_percent_and_at_least_five():
    assert [num_top(n) for n in (0, 5, 33, 34, 100, 101)] == [5, 5, 5, 6, 15, 16]


def test_a_plain_distribution_passes_through():
    domain = uniform(0, 1)
    space = narrow({"x": domain}, parent={"x": uniform(0, 9)}, best=[{"x": 0.5}] * 5, others=[])
    assert space["x"] is domain


def test_the_range_is_cut_from_the_parents_and_not_from_the_original():
    marked = {"x": Narrowed(uniform(0, 100))}
    best = [{"x": value} for value in (2.0, 3.0, 4.0, 5.0, 6.0)]
    space = narrow(marked, parent={"x": uniform(0, 10)}, best=best, others=[])
    assert (space["x"].low, space["x"].high) == (1.0, 7.0)


def test_a_parameter_that_the_parent_did_not_search_keeps_its_original():
    marked = {"x": Narrowed(uniform(0, 100))}
    assert narrow(marked, parent={}, best=[{"y": 1.0}] * 5, others=[])["x"] == uniform(0, 100)


def test_a_linear_hull_is_padded_by_a_tenth_of_the_parents_width():
    assert cut(uniform(0, 10), [2.0, 4.0, 5.0, 6.0, 7.0]) == uniform(1.0, 8.0)


def test_a_log_range_is_cut_in_logs():
    domain = cut(loguniform(1e-6, 1e-1), [1e-4, 1e-3, 1e-3, 1e-3, 1e-2])
    assert domain.log
    assert domain.low == pytest.approx(10**-4.5)
    assert domain.high == pytest.approx(10**-1.5)


def test_whole_numbers_are_padded_by_one_step():
    assert cut(randint(1, 20), [5, 7, 9, 10, 14]) == randint(4, 15)
    stepped = IntDistribution(0, 100, step=10)
    assert cut(stepped, [20, 30, 40, 50, 70]) == IntDistribution(10, 80, step=10)
    assert cut(IntDistribution(1, 64, log=True), [2, 4, 8, 8, 16]) == IntDistribution(
        1, 17, log=True
    )


def test_logarithms_do_not_cost_a_whole_step():
    # exp(log(5)) is 4.999999999999999 and exp(log(9)) is 9.000000000000002.
    domain = IntDistribution(4, 12, log=True)
    assert cut(domain, [6, 7, 7, 7, 8]) == IntDistribution(5, 9, log=True)


def test_the_outermost_tenth_at_each_end_does_not_hold_the_hull():
    inner = [4.0, 4.5, 5.0, 5.5, 6.0, 4.2, 5.8, 5.0]
    assert cut(uniform(0, 10), [0.1, 9.9, *inner]) == uniform(3.0, 7.0)
    # Nine values have no whole tenth to leave out.
    assert cut(uniform(0, 10), [0.1, *inner]).low == 0.0


def test_two_fifths_of_the_width_are_kept_about_the_hull():
    domain = cut(uniform(0, 10), [5.0] * 5)
    assert (domain.low, domain.high) == pytest.approx((3.0, 7.0))


def test_two_fifths_of_the_width_are_kept_at_a_bound():
    assert cut(uniform(0, 10), [0.0] * 5) == uniform(0.0, 4.0)
    assert cut(uniform(0, 10), [10.0] * 5) == uniform(6.0, 10.0)


def test_a_cut_never_leaves_the_parents_range():
    values = [-50.0, 0.0, 5.0, 10.0, 99.0]
    assert cut(uniform(0, 10), values) == uniform(0, 10)
    assert cut(loguniform(1e-5, 1e-1), [-1.0, *values]) == loguniform(1e-5, 1e-1)


def test_trials_without_the_parameter_are_skipped():
    best = [{"x": 4.0}, {}, {"x": 6.0}, {}, {}]
    marked = {"x": Narrowed(uniform(0, 10))}
    space = narrow(marked, parent={"x": uniform(0, 10)}, best=best, others=[])
    assert space["x"] == uniform(3.0, 7.0)


@pytest.mark.parametrize("domain", [uniform(0, 10), randint(0, 10), choice(1, 2)])
def test_fewer_than_two_values_keep_the_parents_range(domain):
    assert cut(domain, []) is domain
    assert cut(domain, [1], others=[2] * 9) is domain


def test_a_range_of_one_value_stays():
    assert cut(uniform(3, 3), [3.0, 3.0]) == uniform(3, 3)


def test_a_category_is_dropped_after_five_trials_without_one_among_the_best():
    domain = choice("a", "b", "c", None)
    best = ["a", "a", None, "a", "a"]
    assert cut(domain, best, others=["b"] * 5 + ["c"] * 4).choices == ("a", "c", None)


def test_a_category_among_the_best_is_never_dropped():
    assert cut(choice("a", "b"), ["a"] * 4 + ["b"], others=["b"] * 90).choices == ("a", "b")


def test_categories_are_never_dropped_to_none():
    assert cut(choice("a", "b"), ["z"] * 5, others=["a"] * 9 + ["b"] * 9) == choice("a", "b")


def test_a_best_value_on_an_original_bound_is_reported():
    original = {
        "lr": loguniform(1e-5, 1e-1),
        "drop": uniform(0, 1),
        "epochs": randint(1, 100),
        "model": choice("a"),
        "one": uniform(2, 2),
    }
    best = [
        {"lr": 1.1e-5, "drop": 0.5, "epochs": 99, "model": "a", "one": 2.0},
        {"lr": 1e-5, "drop": 0.021, "epochs": 50},
        {"lr": 1e-3, "drop": 0.979},
    ]
    assert bound_hits(original, best) == [
        "lr: 2 of the 3 best values sit on the lower bound 1e-05; the best may lie beyond it",
        "epochs: 1 of the 2 best values sits on the upper bound 100; the best may lie beyond it",
    ]


def test_a_bound_beyond_which_lies_nothing_is_not_reported():
    space = {"brightness": uniform(0, 0.4), "layer_decay": uniform(0.6, 1.0)}
    assert bound_hits(space, [{"brightness": 0.0, "layer_decay": 1.0}]) == []
    sentences = bound_hits(space, [{"brightness": 0.4, "layer_decay": 0.6}])
    assert len(sentences) == 2 and "upper bound 0.4" in sentences[0]


def test_a_bound_is_near_in_the_scale_of_its_range():
    # .001 is 1 % of the linear width from the lower bound, and 75 % of it in logs.
    assert bound_hits({"lr": uniform(1e-6, 1e-1)}, [{"lr": 1e-3}])
    assert not bound_hits({"lr": loguniform(1e-6, 1e-1)}, [{"lr": 1e-3}])


def test_enqueued_points_are_restricted_clipped_and_each_there_once():
    space = {"lr": loguniform(1e-4, 1e-2), "model": choice("a", "b"), "batch": randint(16, 64)}
    points = [
        {"lr": 1e-5, "model": "a", "batch": 128, "gone": 1},
        {"lr": 1e-4, "model": "a", "batch": 64},
        {"lr": 1e-3, "model": "c"},
        {"gone": 1},
        {"lr": 1e-3},
        {"lr": None, "model": "b", "batch": True},
    ]
    assert enqueued(points, space) == [
        {"lr": 1e-4, "model": "a", "batch": 64},
        {"lr": 1e-3},
        {"model": "b"},
    ]


def test_enqueued_values_have_the_type_of_the_new_space():
    space = {"x": randint(0, 9), "y": uniform(0, 9), "z": choice(False, True)}
    (point,) = enqueued([{"x": 3.7, "y": 2, "z": 1}], space)
    assert [repr(value) for value in point.values()] == ["4", "2.0", "True"]
    stepped = {"x": IntDistribution(0, 100, step=10)}
    assert enqueued([{"x": 36}], stepped) == [{"x": 40}]


@st.composite
def numeric_domains(draw):
    log = draw(st.booleans())
    if draw(st.booleans()):
        low = draw(st.integers(1 if log else -50, 200))
        step = 1 if log else draw(st.integers(1, 7))
        return IntDistribution(low, low + step * draw(st.integers(0, 60)), log=log, step=step)
    if log:
        low = draw(st.floats(1e-8, 1e3))
        return FloatDistribution(low, low * draw(st.floats(1.001, 1e6)), log=True)
    low = draw(st.floats(-1e3, 1e3))
    return FloatDistribution(low, low + draw(st.floats(0.01, 1e4)))


@st.composite
def searched(draw):
    """Draw a range, values that a parent found best in it, and values that need not lie in it."""
    domain = draw(numeric_domains())
    shares = draw(st.lists(st.floats(0, 1), min_size=2, max_size=40))
    values = [domain.low + share * (domain.high - domain.low) for share in shares]
    values = [min(max(value, domain.low), domain.high) for value in values]
    if isinstance(domain, IntDistribution):
        grid = [round((value - domain.low) / domain.step) for value in values]
        values = [domain.low + k * domain.step for k in grid]
    strange = draw(st.lists(st.floats(allow_nan=True) | st.none() | st.booleans() | st.text()))
    return domain, values, strange


def width(domain) -> float:
    scale = math.log if domain.log else float
    return scale(domain.high) - scale(domain.low)


def inside(value, domain) -> bool:
    return domain._contains(domain.to_internal_repr(value))


@given(searched())
@settings(max_examples=150, deadline=None)
def test_a_cut_range_holds_to_its_promises(case):
    old, values, strange = case
    new = cut(old, values + strange)
    assert type(new) is type(old) and new.log == old.log and new.step == old.step
    assert old.low <= new.low <= new.high <= old.high
    assert inside(new.low, old) and inside(new.high, old)
    assert width(new) >= 0.4 * width(old) * (1 - 1e-9) - 1e-12


@given(searched())
@settings(max_examples=150, deadline=None)
def test_every_value_of_the_trimmed_best_stays_inside(case):
    old, values, _ = case
    outermost = len(values) // 10
    trimmed = sorted(values)[outermost : len(values) - outermost]
    new = cut(old, values)
    assert all(inside(value, new) for value in trimmed)
    assert cut(old, values[::-1]) == new


@given(searched())
@settings(max_examples=150, deadline=None)
def test_enqueued_points_are_always_inside_the_space(case):
    old, values, strange = case
    space = {"x": cut(old, values), "y": choice(None, "a", 1, 0.5)}
    points = [{"x": x, "y": y, "z": 0} for x in values + strange for y in (None, "b", *strange)]
    kept = enqueued(points[:200], space)
    assert all(inside(value, space[name]) for point in kept for name, value in point.items())
    assert all(point not in kept[:index] for index, point in enumerate(kept))


@given(st.lists(st.sampled_from("abcd"), min_size=5), st.lists(st.sampled_from("abcd")))
@settings(max_examples=100, deadline=None)
def test_cut_choices_are_a_part_of_the_parents_that_holds_the_best(best, others):
    new = cut(choice(*"abcd"), best, others)
    assert [value for value in "abcd" if value in new.choices] == list(new.choices)
    assert set(best) <= set(new.choices)
    assert all(others.count(value) >= 5 for value in set("abcd") - set(new.choices))

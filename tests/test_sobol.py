"""Evenly spread points: every choice equally often, every part of a range, whatever the seed."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import IntDistribution

from aiornot.tuning import sobol
from aiornot.tuning.space import choice, loguniform, randint, uniform

SPACE = {
    "model": choice(*"abcdefgh"),
    "lr": loguniform(1e-5, 1e-1),
    "weight_decay": uniform(0.01, 0.2),
    "epochs": randint(2, 17),
    "clip_grad": choice(None, 1.0),
}


def points(count, *, seed=0, space=SPACE) -> list[dict]:
    return [sobol.point(space, seed=seed, number=number) for number in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_every_choice_and_every_part_of_a_range_has_its_share(seed):
    found = points(64, seed=seed)
    assert set(Counter(point["model"] for point in found).values()) == {8}
    assert set(Counter(point["clip_grad"] for point in found).values()) == {32}
    assert Counter(point["epochs"] for point in found) == dict.fromkeys(range(2, 18), 4)
    decades = Counter(
        10 ** (index - 5)
        for index in range(4)
        for point in found
        if 10 ** (index - 5) <= point["lr"] < 10 ** (index - 4)
    )
    assert decades == {1e-5: 16, 1e-4: 16, 1e-3: 16, 1e-2: 16}
    halves = Counter(point["weight_decay"] < 0.105 for point in found)
    assert halves == {True: 32, False: 32}


@pytest.mark.parametrize("seed", range(5))
def test_every_model_meets_low_middle_and_high_rates(seed):
    for model in "abcdefgh":
        rates = sorted(p["lr"] for p in points(64, seed=seed) if p["model"] == model)
        assert rates[0] < 1e-4 and rates[-1] > 1e-2
        assert any(1e-4 < rate < 1e-2 for rate in rates)


def test_a_point_depends_on_its_number_and_seed_alone():
    backwards = dict(reversed(SPACE.items()))
    assert points(20) == points(64)[:20] == points(20, space=backwards)
    assert points(20) != points(20, seed=1)
    assert len({point["lr"] for point in points(64)}) == 64


@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_points_are_of_the_space(seed, number):
    space = {
        **SPACE,
        "one": choice("only"),
        "same": uniform(0.5, 0.5),
        "narrow": loguniform(1e-3, 1.0000000001e-3),
        "log": IntDistribution(1, 64, log=True),
        "step": IntDistribution(2, 12, step=5),
    }
    found = sobol.point(space, seed=seed, number=number)
    assert found.keys() == space.keys()
    for name, value in found.items():
        assert space[name]._contains(space[name].to_internal_repr(value)), name
    assert found["step"] in (2, 7, 12)

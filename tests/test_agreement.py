"""Rank agreement of two stages: by hand, and where it cannot be told."""

import math

import pytest

from aiornot.tuning.agreement import agreement
from aiornot.tuning.ledger import Trial


def make(number, score, *, state="finished", origin="sampled", num_ticks=16, stage="few") -> Trial:
    ticks = [{"tick": k, "score": score, "seconds": 1.0} for k in range(1, num_ticks + 1)]
    return Trial(
        id=f"{stage}-{number}",
        number=number,
        state=state,
        origin=origin,
        params={},
        config={},
        ticks=ticks,
    )


def parents(*scores):
    return [make(number, score) for number, score in enumerate(scores)]


def children(*scores, word="from"):
    return [
        make(number, score, origin=f"{word} few-{number}", stage="full")
        for number, score in enumerate(scores)
    ]


def compare(parent, child):
    return agreement(parent, child, names=("few", "full"), rungs=([1, 4, 16], [16]))


def test_the_correlation_is_spearmans():
    # Ranks 4 3 2 1 0 and 4 2 3 0 1: 1 - 6 * (0 + 1 + 1 + 1 + 1) / (5 * 24) = .8
    found = compare(parents(0.9, 0.8, 0.7, 0.6, 0.5), children(0.99, 0.97, 0.98, 0.1, 0.2))
    assert found["spearman"] == pytest.approx(0.8) and found["num_pairs"] == 5
    # Of the 120 orders 8 reach it: the equal one, 4 with one swap, 3 with two swaps apart.
    assert found["chance"] == pytest.approx(8 / 120, abs=0.01)
    assert found["verdict"].startswith(
        "few ranks for full: Spearman 0.80 over 5 configurations (7%"
    )
    assert "no controls" in found["verdict"] and found["controls"] == []
    assert found["pairs"][0] == {"trial": "few-0", "parent_score": 0.9, "child_score": 0.99}


@pytest.mark.parametrize(("scores", "expected"), [((1, 2, 3, 4), -1.0), ((4, 3, 2, 1), 1.0)])
def test_the_ends_are_one_and_minus_one(scores, expected):
    found = compare(parents(0.9, 0.8, 0.7, 0.6), children(*[score / 10 for score in scores]))
    assert found["spearman"] == pytest.approx(expected)


def test_equal_scores_share_their_rank():
    """A tie is not broken by the order in which trials were begun, which is the parent's."""
    found = compare(parents(0.9, 0.8, 0.7, 0.6), children(1.0, 1.0, 1.0, 0.9))
    # Ranks 3 2 1 0 and 2 2 2 0, centred: 1.5 .5 -.5 -1.5 and .5 .5 .5 -1.5.
    assert found["spearman"] == pytest.approx((0.75 + 0.25 - 0.25 + 2.25) / math.sqrt(5 * 3))
    # Two groups: 4 3 2 1 0 and 3.5 3.5 2 .5 .5, centred.
    groups = compare(parents(0.9, 0.8, 0.7, 0.6, 0.5), children(0.9, 0.9, 0.7, 0.6, 0.6))
    assert groups["spearman"] == pytest.approx(9 / math.sqrt(10 * 9))
    all_equal = compare(parents(0.9, 0.8, 0.7, 0.6), children(1.0, 1.0, 1.0, 1.0))
    assert all_equal["spearman"] is None and "no order to compare" in all_equal["verdict"]


def test_controls_count_and_are_named():
    child = [*children(0.9, 0.8, 0.7), make(3, 0.95, origin="control from few-3", stage="full")]
    found = compare(parents(0.9, 0.8, 0.7, 0.6), child)
    assert found["num_pairs"] == 4 and found["controls"] == ["few-3"]
    assert found["verdict"].endswith("controls: few-3")
    assert found["spearman"] == pytest.approx(-0.2)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_say_nothing(count):
    scores = (0.9, 0.8, 0.7)[:count]
    found = compare(parents(*scores), children(*scores))
    assert found["spearman"] is None and found["num_pairs"] == count
    assert "too few" in found["verdict"]
    assert ("1 configuration of" in found["verdict"]) == (count == 1)


def test_what_has_not_ended_failed_or_came_from_elsewhere_does_not_count():
    child = children(0.9, 0.8, 0.7, 0.6)
    child += [
        make(10, 0.9, origin="from few-4", state="running"),
        make(11, 0.9, origin="from few-5", state="failed"),
        make(12, 0.9, origin="from other-1"),
        make(13, 0.9),
        make(14, 0.9, origin="first"),
        make(15, 0.9, origin="from few-6", num_ticks=0, state="stopped"),
    ]
    found = compare(parents(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3), child)
    assert found["num_pairs"] == 4 and found["spearman"] == pytest.approx(1.0)


def test_a_trial_that_got_further_stands_higher():
    parent = parents(0.6, 0.7, 0.8, 0.9)
    parent[3] = make(3, 0.99, state="stopped", num_ticks=4)
    found = compare(parent, children(0.2, 0.3, 0.4, 0.1))
    assert found["spearman"] == pytest.approx(1.0)


def test_what_diverged_in_the_child_is_the_worst_there():
    child = children(0.9, 0.8, 0.7, 0.99)
    child[3].state = "diverged"
    found = compare(parents(0.9, 0.8, 0.7, 0.6), child)
    assert found["spearman"] == pytest.approx(1.0) and found["pairs"][3]["child_score"] == 0.0


def test_seeds_of_one_configuration_count_together():
    child = [*children(0.9, 0.8, 0.7, 0.6), *children(0.1, 0.8, 0.7, 0.6)]
    found = compare(parents(0.9, 0.8, 0.7, 0.6), child)
    assert found["num_pairs"] == 4
    assert [pair["child_score"] for pair in found["pairs"]] == pytest.approx([0.5, 0.8, 0.7, 0.6])
    assert found["spearman"] == pytest.approx(-0.2)

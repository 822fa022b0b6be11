"""Selection: each rule by example, and what must hold for any ledger."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiornot.config import InputError
from aiornot.tuning.ledger import Trial
from aiornot.tuning.select import (
    candidates,
    controls,
    final_choice,
    rank,
    rungs,
    split_top,
    standard_error,
)
from aiornot.tuning.space import Budget

RUNGS = [1, 4, 16]
COUNTS = {"num_positive": 250, "num_negative": 250}  # one standard error is .0098 at .95


def make(
    number, scores, *, state=None, gap=0.0, seconds=1.0, params=None, role="candidate", **config
) -> Trial:
    """Build a trial with these scores at its first ticks."""
    ticks = [
        {
            "tick": index,
            "score": score,
            "val/auroc": score,
            "train/auroc": score + gap,
            "seconds": seconds,
        }
        for index, score in enumerate(scores, 1)
    ]
    # A learning rate and a weight decay of its own make a trial differ in two parameters.
    config = {"model": "a", "lr": number, "weight_decay": number} | config
    return Trial(
        id=f"t{number}",
        number=number,
        role=role,
        state=state or ("finished" if len(scores) == 16 else "stopped"),
        params=config if params is None else params,
        config=config,
        ticks=ticks,
    )


def finished(number, score, **kwargs) -> Trial:
    return make(number, [score] * 16, **kwargs)


def numbers(trials) -> list[int]:
    return [trial.number for trial in trials]


def choose(trials, count) -> list[int]:
    return numbers(candidates(trials, count, rungs=RUNGS, **COUNTS))


@pytest.mark.parametrize(
    ("grace", "factor", "expected"),
    [(1, 4, [1, 4, 16]), (2, 3, [2, 6, 16]), (1, 2, [1, 2, 4, 8, 16]), (16, 4, [16])],
)
def test_rungs_grow_from_the_grace_period_to_the_last_tick(grace, factor, expected):
    budget = Budget(num_trials=1, grace_period=grace, reduction_factor=factor)
    assert rungs(budget) == expected


def test_a_higher_rung_outranks_a_higher_score():
    trials = [make(0, [0.99]), finished(1, 0.6), make(2, [0.7, 0.8, 0.9, 0.9])]
    assert numbers(rank(trials, RUNGS)) == [1, 2, 0]


def test_trials_of_one_rung_are_compared_at_that_rung():
    ahead_later = make(0, [0.6, 0.7, 0.8, 0.99])
    trials = [make(1, [0.7, 0.7]), make(2, [0.6, 0.9, 0.9]), ahead_later]
    assert numbers(rank(trials, RUNGS)) == [0, 1, 2]


def test_a_trial_below_the_first_rung_comes_after_all_that_reached_it():
    trials = [make(0, [0.9]), make(1, [0.5] * 4), make(2, [0.1, 0.95])]
    assert numbers(rank(trials, [4, 16])) == [1, 2, 0]


def test_diverged_failed_and_silent_trials_are_not_ranked():
    trials = [
        finished(0, 0.9, state="diverged"),
        finished(1, 0.9, state="failed"),
        make(2, [], state="running"),
        make(3, [math.nan]),
        make(4, [0.5]),
    ]
    assert numbers(rank(trials, RUNGS)) == [4]


def test_equal_ranks_are_ordered_by_number():
    assert numbers(rank([make(2, [0.5]), make(0, [0.5]), make(1, [0.5])], RUNGS)) == [0, 1, 2]


def test_split_top_gives_the_best_five_and_all_that_is_evidence():
    trials = [make(number, [0.9 - number / 100]) for number in range(7)]
    trials += [make(7, [0.99], state="diverged"), make(8, [], state="failed")]
    trials += [make(9, [], state="running")]
    best, others = split_top(trials, RUNGS)
    assert [params["lr"] for params in best] == [0, 1, 2, 3, 4]
    assert [params["lr"] for params in others] == [5, 6, 7, 8]


def test_split_top_leaves_out_parameters_that_did_not_apply():
    trial = make(0, [0.5], params={"crop_scale": 0.3, "lr": 0.1}, crop_scale=0.08, lr=0.1)
    assert split_top([trial], RUNGS) == ([{"lr": 0.1}], [])


def test_the_standard_error_is_that_of_hanley_and_mcneil():
    # By hand, for .8 with 50 of each: Q1 = .8/1.2 = .66667, Q2 = 1.28/1.8 = .71111;
    # (.16 + 49 * .02667 + 49 * .07111) / 2500 = 4.9511 / 2500 = .0019804; its root is .044502.
    assert standard_error(0.8, num_positive=50, num_negative=50) == pytest.approx(
        0.044502, abs=1e-6
    )
    # With 10 and 40 of them: (.16 + 9 * .02667 + 39 * .07111) / 400 = .0079333.
    assert standard_error(0.8, num_positive=10, num_negative=40) == pytest.approx(
        0.089069, abs=1e-6
    )
    # The validation split of the project this one began with.
    assert standard_error(0.9985, num_positive=931, num_negative=931) == pytest.approx(
        9e-4, rel=0.01
    )
    assert standard_error(0.9962, num_positive=931, num_negative=931) == pytest.approx(
        1.431e-3, rel=1e-3
    )


@pytest.mark.parametrize("auroc", [0.0, 1.0])
def test_the_standard_error_is_zero_at_the_ends(auroc):
    assert standard_error(auroc, num_positive=7, num_negative=9) == 0


def test_candidates_come_in_order_of_their_score():
    trials = [finished(0, 0.944), finished(1, 0.95), finished(2, 0.947)]
    assert choose(trials, 3) == [1, 2, 0]


def test_near_ties_go_to_the_smaller_gap_and_then_to_the_cheaper():
    trials = [
        finished(0, 0.95, gap=0.03),
        finished(1, 0.949, gap=0.01, seconds=9),
        finished(2, 0.949, gap=0.01, seconds=2),
        finished(3, 0.944, gap=0.0),
    ]
    assert choose(trials, 4) == [2, 1, 0, 3]


def test_gaps_that_differ_in_the_fourth_digit_are_equal():
    trials = [finished(0, 0.95, gap=0.1002, seconds=9), finished(1, 0.949, gap=0.1004, seconds=2)]
    assert choose(trials, 2) == [1, 0]


def test_near_ties_are_counted_from_the_best_of_the_group():
    # A quarter of the error is .00245: 1 is near both its neighbours, 2 is not near 0.
    trials = [finished(0, 0.95, gap=0.3), finished(1, 0.948, gap=0.2), finished(2, 0.947, gap=0.1)]
    assert choose(trials, 3) == [1, 0, 2]


def test_near_ties_of_a_perfect_score_are_decided_too():
    trials = [finished(0, 1.0, seconds=5), finished(1, 1.0, seconds=2)]
    assert choose(trials, 1) == [1]


def test_a_trial_without_a_training_score_comes_last_among_near_ties():
    unknown, known = finished(0, 0.95), finished(1, 0.95, gap=0.1)
    del unknown.ticks[-1]["train/auroc"]
    assert choose([unknown, known], 2) == [1, 0]


def test_candidates_differ_by_the_model_or_by_two_parameters():
    trials = [
        finished(0, 0.950, lr=1, weight_decay=1),
        finished(1, 0.947, lr=2, weight_decay=1),
        finished(2, 0.944, lr=2, weight_decay=2),
        finished(3, 0.941, lr=1, weight_decay=1, model="b"),
    ]
    assert choose(trials, 3) == [0, 2, 3]


def test_another_seed_is_not_another_configuration():
    alike = {"lr": 1, "weight_decay": 1}
    trials = [
        finished(0, 0.950, **alike, seed=0),
        finished(1, 0.947, lr=2, weight_decay=1, seed=1),
        finished(2, 0.944),
    ]
    assert choose(trials, 2) == [0, 2]


def test_likeness_is_allowed_before_the_ineligible():
    alike = {"lr": 1, "weight_decay": 1}
    trials = [
        finished(0, 0.95, **alike),
        finished(1, 0.949, gap=0.2, **alike),
        finished(2, 0.949, gap=0.1, **alike),
        finished(3, 0.6),
    ]
    assert choose(trials, 4) == [0, 2, 1, 3]


def test_too_few_are_filled_with_finished_and_then_stopped_trials():
    trials = [
        make(0, [0.99]),
        make(1, [0.7] * 4),
        finished(2, 0.6),
        finished(3, 0.7),
        finished(4, 0.95),
        make(5, [0.98], state="running"),
        finished(6, 0.99, state="diverged"),
    ]
    assert choose(trials, 9) == [4, 3, 2, 1, 0]


def test_without_a_finished_trial_the_stopped_are_candidates():
    assert choose([make(0, [0.6]), make(1, [0.5] * 4)], 1) == [1]
    assert choose([], 3) == []


def test_the_final_choice_is_the_best_where_it_is_clear():
    trials = [finished(0, 0.95, gap=0.2, seconds=99), finished(1, 0.93), make(2, [0.99])]
    assert final_choice(trials, **COUNTS).number == 0


def test_the_final_choice_among_equals_has_the_smaller_gap_and_then_is_the_cheaper():
    trials = [
        finished(0, 0.95, gap=0.2),
        finished(1, 0.945, gap=0.1, seconds=9),
        finished(2, 0.942, gap=0.1, seconds=2),
        finished(3, 0.93, gap=0.0),
    ]
    assert final_choice(trials, **COUNTS).number == 2


def test_no_finished_trial_is_an_input_error():
    with pytest.raises(InputError, match="none of the 1 trials of the full stage finished"):
        final_choice([make(0, [0.9])], **COUNTS)


def test_the_controls_are_the_middle_and_one_far_down():
    trials = [finished(number, 0.9 - number / 100) for number in range(11)]
    assert numbers(controls(trials, trials[:2], 2, rungs=RUNGS)) == [5, 9]
    assert numbers(controls(trials, trials[:2], 1, rungs=RUNGS)) == [5]
    assert controls(trials, trials[:2], 0, rungs=RUNGS) == []


def test_a_control_that_was_chosen_is_replaced_by_its_neighbour():
    trials = [finished(number, 0.9 - number / 100) for number in range(11)]
    assert numbers(controls(trials, trials[5:6], 2, rungs=RUNGS)) == [6, 9]
    # An equal configuration would compare nothing.
    twin = finished(6, 0.84, lr=5, weight_decay=5)
    trials[6] = twin
    assert numbers(controls(trials, trials[5:6], 1, rungs=RUNGS)) == [4]


def test_what_never_ended_or_broke_is_no_control():
    broken = [make(1, [0.9], state="running"), finished(2, 0.9, state="diverged")]
    assert controls([finished(0, 0.95), *broken], [], 2, rungs=RUNGS) == [finished(0, 0.95)]


@pytest.mark.parametrize("role", ["control", "baseline"])
def test_what_is_there_to_compare_with_is_never_chosen(role):
    """Not even with the best score and the smallest gap, nor does it draw a range to itself."""
    beside = finished(0, 0.99, role=role)
    trials = [beside, finished(1, 0.95, gap=0.2), finished(2, 0.9, gap=0.1)]
    assert choose(trials, 3) == [1, 2]
    assert final_choice(trials, **COUNTS).number == 1
    best, others = split_top(trials, RUNGS)
    assert [params["lr"] for params in (*best, *others)] == [1, 2]
    assert controls([beside], [], 2, rungs=RUNGS) == []
    with pytest.raises(InputError, match="none of the 0 trials"):
        final_choice([beside], **COUNTS)


@st.composite
def ledgers(draw):
    trials = []
    for number in range(draw(st.integers(0, 14))):
        length = draw(st.sampled_from([0, 1, 2, 4, 5, 16, 16, 16]))
        state = "finished" if length == 16 else draw(st.sampled_from(["stopped", "running"]))
        score = draw(st.sampled_from([0.5, 0.9, 0.94, 0.945, 0.949, 0.95, 1.0, math.nan]))
        trials.append(
            make(
                number,
                [score] * length,
                state=draw(st.sampled_from([state] * 5 + ["failed", "diverged"])),
                gap=draw(st.sampled_from([0.0, 0.1, math.nan])),
                seconds=draw(st.sampled_from([1.0, 2.0])),
                lr=draw(st.sampled_from([1, 2])),
                weight_decay=draw(st.sampled_from([1, 2])),
                model=draw(st.sampled_from("ab")),
            )
        )
    return trials


@given(ledgers(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_rank_is_a_permutation_of_the_usable_in_any_order(trials, shuffler: random.Random):
    ranked = rank(trials, RUNGS)
    usable = {
        trial.number
        for trial in trials
        if trial.state not in ("diverged", "failed") and math.isfinite(trial.score)
    }
    assert len(ranked) == len(usable) and set(numbers(ranked)) == usable
    shuffled = shuffler.sample(trials, len(trials))
    assert numbers(rank(shuffled, RUNGS)) == numbers(ranked)


@given(ledgers(), st.integers(0, 16), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_candidates_hold_to_their_promises(trials, count, shuffler: random.Random):
    chosen = choose(trials, count)
    assert len(chosen) == len(set(chosen)) <= count
    assert choose(shuffler.sample(trials, len(trials)), count) == chosen
    assert choose(trials, count + 1)[:count] == chosen
    scores = {
        trial.number: trial.score
        for trial in trials
        if trial.state == "finished" and math.isfinite(trial.score)
    }
    if scores and count:
        best = max(scores.values())
        assert scores[chosen[0]] >= best - standard_error(best, **COUNTS)
        assert set(chosen) >= set(scores) or len(chosen) == count


@given(ledgers(), st.integers(0, 4), st.integers(0, 2), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_controls_are_others_than_the_chosen_in_any_order(trials, taken, count, shuffler):
    chosen = candidates(trials, taken, rungs=RUNGS, **COUNTS)
    found = controls(trials, chosen, count, rungs=RUNGS)
    assert len(found) <= count
    configs = [trial.config for trial in (*chosen, *found)]
    # The chosen may be alike among themselves; a control is like none.
    for place, config in enumerate(configs[len(chosen) :], len(chosen)):
        assert config not in configs[:place]
    shuffled = shuffler.sample(trials, len(trials))
    assert numbers(controls(shuffled, chosen, count, rungs=RUNGS)) == numbers(found)
    if count == 2 and len(found) == 2:
        assert controls(trials, chosen, 1, rungs=RUNGS) == found[:1]


@given(ledgers(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_final_choice_is_within_one_error_of_the_best_in_any_order(
    trials, shuffler: random.Random
):
    scores = [t.score for t in trials if t.state == "finished" and math.isfinite(t.score)]
    if not scores:
        return
    chosen = final_choice(trials, **COUNTS)
    assert chosen.score >= max(scores) - standard_error(max(scores), **COUNTS)
    assert final_choice(shuffler.sample(trials, len(trials)), **COUNTS) is chosen

"""What a chain delivers, from ledgers alone: the better of two seeds, and the baseline's best."""

import pytest

from aiornot.config import WorkError
from aiornot.tuning import outcome
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.space import Budget, Stage, choice

SEARCH = Stage(
    name="explore",
    space={"lr": choice(1e-3, 1e-2)},
    sampler="random",
    budget=Budget(num_trials=2),
)
FULL = Stage(
    name="full",
    after=SEARCH,
    enqueue=2,
    controls=1,
    baseline={},
    budget=Budget(num_trials=2),
)
FINAL = Stage(
    name="final", after=FULL, enqueue=1, seeds=(1,), baseline={}, budget=Budget(num_trials=1)
)
CHAIN = [SEARCH, FULL, FINAL]


def trial(name, score, origin, *, role="candidate", state="finished", seed=0) -> Trial:
    ticks = [{"tick": 16, "score": score, "best_tick": 12, "seconds": 1.0}]
    return Trial(
        id=name,
        number=int(name[-1]),
        origin=origin,
        role=role,
        state=state,
        params={},
        config={"seed": seed},
        ticks=ticks,
    )


@pytest.fixture
def ledgers(tmp_path) -> dict[str, Ledger]:
    found = {stage.name: Ledger(str(tmp_path / stage.name)) for stage in CHAIN}
    for name, ledger in found.items():
        ledger.write_stage({"run": f"of-{name}"})
    for one in (
        trial("full-0", 0.9, "from explore-0"),
        trial("full-1", 0.91, "from explore-1"),
        trial("full-2", 0.99, "control from explore-2", role="control"),
        trial("full-3", 0.8, "baseline", role="baseline"),
    ):
        found["full"]._write(one)
    return found


def deliver(ledgers, *finals):
    for one in finals:
        ledgers["final"]._write(one)
    return outcome.of_chain(CHAIN, ledgers, data="full.h5")


def test_the_better_of_two_seeds_is_delivered_and_both_are_named(ledgers):
    found = deliver(ledgers, trial("final-0", 0.895, "from full-0", seed=1))
    assert found.final.trial.id == "full-0" and found.data == "full.h5"
    assert found.final.checkpoint == f"{ledgers['full'].root}/checkpoints/full-0/tick_12"
    assert found.final.lineage["scores"] == {"final-0": 0.895, "full-0": 0.9}
    assert found.final.lineage["seeds"] == {"final-0": 1, "full-0": 0}
    assert found.final.lineage["chain"] == ["explore", "full", "final"]
    assert (found.final.labels.run, found.final.labels.tags) == ("of-full", ["full", "candidate"])


def test_the_baseline_has_as_many_runs_and_its_better_one_counts(ledgers):
    finals = (
        trial("final-0", 0.95, "from full-0"),
        trial("final-1", 0.85, "baseline", role="baseline", seed=1),
    )
    found = deliver(ledgers, *finals)
    assert found.final.trial.id == "final-0"
    assert found.baseline is not None and found.baseline.trial.id == "final-1"
    assert found.baseline.lineage["scores"] == {"final-1": 0.85, "full-3": 0.8}


@pytest.mark.parametrize("role", ["control", "baseline"])
def test_what_is_there_to_compare_with_is_never_delivered(ledgers, role):
    finals = trial("final-0", 0.7, "from full-0"), trial("final-1", 0.99, role, role=role)
    assert deliver(ledgers, *finals).final.trial.id == "full-0"


def test_without_a_finished_baseline_there_is_none(ledgers):
    ledgers["full"]._write(trial("full-3", 0.8, "baseline", role="baseline", state="failed"))
    assert deliver(ledgers, trial("final-0", 0.7, "from full-0")).baseline is None


def test_without_a_finished_candidate_nothing_is_delivered(ledgers):
    with pytest.raises(WorkError, match="no trial of stage 'final' finished"):
        deliver(ledgers, trial("final-1", 0.9, "baseline", role="baseline"))

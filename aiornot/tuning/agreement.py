"""Did a stage rank as the next one does? Spearman's correlation over what ran in both.

``aiornot show fast explore`` prints it. The configurations are those that the child took from its
parent, among them controls that were taken although they were not among the best.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aiornot.tuning import asha
from aiornot.tuning.asha import Standing
from aiornot.tuning.ledger import Trial

MIN_PAIRS = 4
"""Three can stand in six orders only: any of them comes up by chance."""

ORDERS = 9999
"""Random orders that the correlation is compared with."""

CONTROL = "control from "
FROM = "from "

Ranks = npt.NDArray[np.float64]


def agreement(
    parent: Sequence[Trial],
    child: Sequence[Trial],
    *,
    names: tuple[str, str],
    rungs: tuple[Sequence[int], Sequence[int]],
) -> dict[str, Any]:
    """Return how well the order of a stage's trials foretold their order in the next.

    Trials are compared as they stand: by the highest rung reached, then by the score there. Seeds
    of one configuration count together, and what has not ended, or failed, does not count.

    Args:
        parent: Trials of the first stage.
        child: Trials of the second.
        names: Of both stages.
        rungs: Ticks at which each of them decides on stops.

    Returns:
        ``parent``, ``child``, ``num_pairs``, ``spearman`` (None where there is none), ``chance``
        (how often a random order does as well), ``controls`` (ids), ``pairs`` with both scores,
        and ``verdict``, a sentence.
    """
    known = {trial.id: trial for trial in parent}
    repeats = {id_: trials for id_, trials in _repeats(child).items() if id_ in known}
    before = [asha.standing([known[id_]], rungs[0]) for id_ in repeats]
    after = [asha.standing(trials, rungs[1]) for trials in repeats.values()]
    controls = [id_ for id_, trials in repeats.items() if trials[0].origin.startswith(CONTROL)]
    found: dict[str, Any] = {
        "parent": names[0],
        "child": names[1],
        "num_pairs": len(repeats),
        "spearman": None,
        "chance": None,
        "controls": controls,
        "pairs": [
            {"trial": id_, "parent_score": one[1], "child_score": other[1]}
            for id_, one, other in zip(repeats, before, after, strict=True)
        ],
    }
    if len(repeats) >= MIN_PAIRS and min(len(set(before)), len(set(after))) > 1:
        found["spearman"], found["chance"] = _spearman(_ranks(before), _ranks(after))
    return found | {"verdict": _verdict(found)}


def _repeats(child: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return the ended trials of a stage by the parent's trial whose configuration they have."""
    repeats: dict[str, list[Trial]] = {}
    for trial in child:
        source = trial.origin.removeprefix(CONTROL).removeprefix(FROM)
        if source != trial.origin and trial.ticks and trial.state not in ("running", "failed"):
            repeats.setdefault(source, []).append(trial)
    return repeats


def _ranks(standings: Sequence[Standing]) -> Ranks:
    """Return ranks from 0, the worst; equals share theirs."""
    lower = [sum(other < one for other in standings) for one in standings]
    equal = [sum(other == one for other in standings) for one in standings]
    return np.array(lower) + (np.array(equal) - 1) / 2


def _spearman(before: Ranks, after: Ranks) -> tuple[float, float]:
    """Return the correlation, and the share of random orders that reach it."""
    before, after = (ranks - ranks.mean() for ranks in (before, after))
    norm = float(np.linalg.norm(before) * np.linalg.norm(after))
    found = float(before @ after) / norm
    orders = np.random.default_rng(0).permuted(np.tile(after, (ORDERS, 1)), axis=1)
    reached = int((orders @ before / norm >= found - 1e-9).sum())
    return found, (reached + 1) / (ORDERS + 1)


def _verdict(found: Mapping[str, Any]) -> str:
    parent, child, count = found["parent"], found["child"], found["num_pairs"]
    if count < MIN_PAIRS:
        configurations = "configuration" if count == 1 else "configurations"
        return (
            f"{count} {configurations} of {parent} ran again in {child}: too few to say how well "
            f"{parent} ranks for {child} ({MIN_PAIRS} are needed)"
        )
    if found["spearman"] is None:
        return (
            f"all {count} configurations stand equal in {parent} or in {child}: no order to compare"
        )
    told = (
        f"{parent} ranks for {child}: Spearman {found['spearman']:.2f} over {count} configurations "
        f"({found['chance']:.0%} of random orders do as well)"
    )
    if found["controls"]:
        return f"{told}; controls: {', '.join(found['controls'])}"
    return f"{told}; no controls: all were among the best of {parent}, which hides agreement"

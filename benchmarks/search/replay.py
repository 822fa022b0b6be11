"""A chain on a simulated clock: our searcher, ASHA, narrowing and selection on a table's curves.

Nothing here decides. A stage begins as ``aiornot tune`` begins it (``record.begin``), draws through
``Suggestions``, is stopped by ``Rungs``, and what is delivered is ``outcome.of_chain``'s; in Tune's
place stands a queue of reports, each at the time at which it would come.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from aiornot.config import TICKS
from aiornot.tuning import outcome, ray_runs
from aiornot.tuning import record as records
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.ray_search import Rungs, Suggestions, plan_of
from aiornot.tuning.record import Record
from aiornot.tuning.space import Stage
from aiornot.tuning.stages import sources
from benchmarks.search.worlds import World


class Memory(Ledger):
    """A ledger that is not written anywhere."""

    def __init__(self) -> None:
        super().__init__("memory")
        self._trials: dict[str, Trial] = {}
        self._record: Record | None = None

    def _write(self, trial: Trial) -> None:
        self._trials[trial.id] = trial

    def read(self) -> list[Trial]:
        return sorted(self._trials.values(), key=lambda trial: trial.number)

    def keep(self, trials: Sequence[Trial]) -> None:
        """Hold these trials."""
        self._trials = {trial.id: trial for trial in trials}

    def write_stage(self, stage: dict[str, Any]) -> None:
        self._record = stage

    def read_stage(self) -> Record | None:
        return self._record


@dataclasses.dataclass(frozen=True)
class Played:
    """A stage that was played."""

    stage: Stage
    ledger: Memory
    ends: dict[str, float]
    """When each trial ended, in seconds since the chain began."""
    parent: "Played | None"

    @property
    def record(self) -> Record:
        found = self.ledger.read_stage()
        assert found is not None
        return found


def play(
    chain: Sequence[Stage],
    where: World,
    *,
    places: int = 1,
    last_tick: int = TICKS,
    parent: Played | None = None,
) -> list[Played]:
    """Play stages that follow one another.

    Args:
        chain: The stages.
        where: What their trials report.
        places: Trials that run side by side in a search.
        last_tick: Where each trial of a search ends, if it was not stopped before.
        parent: What the first of them comes after.
    """
    played: list[Played] = []
    for stage in chain:
        record = records.begin(
            stage,
            where.files[stage.data],
            num_trials=stage.budget.num_trials,
            parent=parent.record if parent else None,
            parent_trials=_source_trials(stage, parent),
        )
        ledger = Memory()
        ledger.write_stage(record)
        start = max(parent.ends.values()) if parent else 0.0
        if stage.searches():
            ends = _search(stage, record, ledger, where, places, last_tick, start)
        else:
            assert parent is not None
            ends = _retrain(stage, record, ledger, where, parent, start)
        parent = Played(stage, ledger, ends, parent)
        played.append(parent)
    return played


@dataclasses.dataclass(frozen=True)
class _Job:
    """All that our scheduler wants to know of a Tune trial."""

    config: dict[str, Any]


def _search(
    stage: Stage,
    record: Record,
    ledger: Memory,
    where: World,
    places: int,
    last_tick: int,
    now: float,
) -> dict[str, float]:
    plan = plan_of(stage, record)
    rungs = Rungs(stage.budget, apart=plan.apart())
    suggestions = Suggestions(plan, ledger=ledger, trials=[], job={})
    queue: list[tuple[float, int, _Job, list[dict[str, Any]]]] = []
    ends: dict[str, float] = {}
    order = itertools.count()
    while True:
        while len(queue) < places:
            job = suggestions.suggest(str(next(order)))
            if not isinstance(job, dict):
                assert job == Searcher.FINISHED
                break
            reports = where.reports(stage.data, job["job"]["config"])
            heapq.heappush(queue, (now + reports[0]["seconds"], next(order), _Job(job), reports))
        if not queue:
            return ends
        now, _, tuned, reports = heapq.heappop(queue)
        trial, report = suggestions.trials[tuned.config["trial"]], reports[0]
        decision = rungs.on_trial_result(None, tuned, report)
        ledger.tick(trial, report)
        over = report["finished"] or report["tick"] == last_tick
        if decision == TrialScheduler.STOP or over:
            ledger.end(trial)
            suggestions.tell(trial)
            ends[trial.id] = now
        else:
            heapq.heappush(queue, (now + report["seconds"], next(order), tuned, reports[1:]))


def _retrain(
    stage: Stage, record: Record, ledger: Memory, where: World, parent: Played, now: float
) -> dict[str, float]:
    """Train what was selected, one after the other: their order decides nothing."""
    ends = {}
    for trial in ray_runs.planned(stage, record, _source_trials(stage, parent)):
        ledger.begin(trial)
        for report in where.reports(stage.data, trial.config):
            ledger.tick(trial, report)
            if report["finished"]:
                break
        ledger.end(trial)
        now += trial.seconds
        ends[trial.id] = now
    return ends


def _source_trials(stage: Stage, parent: Played | None) -> list[Trial]:
    """Return the trials among which a stage selects, those of the first stage first."""
    names = {each.name for each in sources(stage)}
    found: list[Trial] = []
    while parent is not None:
        found = (parent.ledger.read() if parent.stage.name in names else []) + found
        parent = parent.parent
    return found


def delivered(played: Sequence[Played], where: World) -> float:
    """Return the AUROC on test of what the chain delivers."""
    chain = [each.stage for each in played]
    ledgers = {each.stage.name: each.ledger for each in played}
    # It names the run of each stage for W&B, which a part of a chain has, too.
    found = outcome.of_chain(chain, ledgers, data=where.files[chain[-1].data])
    return where.test(found.final.trial)


def until(played: Played, seconds: float) -> Played | None:
    """Return a stage as it stood at a time, None where it had nothing to go on with."""
    trials = [
        trial for trial in played.ledger.read() if played.ends.get(trial.id, math.inf) <= seconds
    ]
    if not any(trial.state == "finished" for trial in trials):
        return None
    ledger = Memory()
    ledger.keep(trials)
    ledger.write_stage(played.record)
    ends = {trial.id: played.ends[trial.id] for trial in trials}
    return Played(played.stage, ledger, ends, played.parent)


def at(played: Sequence[Played], where: World, times: Sequence[float]) -> list[float | None]:
    """Return what would be delivered if the searches ended then, None where that is nothing.

    The newest stage goes on that has a finished trial, into the chain's own last stages.
    """
    searches = [each for each in played if each.stage.searches()]
    rest = [each.stage for each in played if not each.stage.searches()]
    tails = {each.stage.name: link(rest, each.stage) for each in searches}
    found: list[float | None] = []
    for seconds in times:
        cuts = (until(each, seconds) for each in reversed(searches))
        cut = next((cut for cut in cuts if cut is not None), None)
        if cut is None:
            found.append(None)
        elif seconds >= max(searches[-1].ends.values()):
            found.append(delivered(played, where))
        else:
            tail = play(tails[cut.stage.name], where, parent=cut)
            found.append(delivered([cut, *tail], where))
    return found


def link(chain: Sequence[Stage], after: Stage | None = None) -> list[Stage]:
    """Return stages that follow one another in this order; none has controls or a baseline."""
    linked: list[Stage] = []
    for stage in chain:
        after = dataclasses.replace(stage, after=after, controls=0, baseline=None)
        linked.append(after)
    return linked

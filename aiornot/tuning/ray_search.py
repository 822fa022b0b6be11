"""The searcher and the scheduler of a stage, told the truth and refilled from the ledger.

Ray's ``OptunaSearch`` tells Optuna that a trial ASHA stopped is complete, with its low-rung value,
and ``Tuner.restore`` loses ASHA's rungs. Here both are rebuilt from the ledger, so a resumed search
decides as an uninterrupted one would, and both know a trial by its id in the ledger.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from aiornot.config import TICKS
from aiornot.tuning import mirror, sobol
from aiornot.tuning.ledger import Ledger, Trial, contenders, name_of
from aiornot.tuning.record import Record, space_of
from aiornot.tuning.space import Budget, Distribution, Stage, Value, configure

METRIC = "score"
TIME_ATTRIBUTE = "tick"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a searching stage draws from, fixed when it first starts."""

    stage: Stage
    space: Mapping[str, Distribution]
    first: Sequence[Mapping[str, Value]]
    """Points that run first; a parameter missing from one is drawn."""
    origins: Sequence[str]
    """Where each of those points comes from."""
    base: Mapping[str, Value] | None
    """The parent's best configuration."""
    num_trials: int
    """Those of ``beside`` among them."""
    beside: Sequence[Mapping[str, Any]] = ()
    """Fields of the trials that are there to be compared with; they follow on ``first``."""

    def drawn_apart(self, number: int) -> Mapping[str, Any] | None:
        """Return the fields of a trial that Optuna knows nothing of, None if it is to draw it."""
        place = number - len(self.first)
        return self.beside[place] if 0 <= place < len(self.beside) else None

    def apart(self) -> list[str]:
        """Return the names of the trials that are there to be compared with."""
        first = len(self.first)
        numbers = range(first, first + len(self.beside))
        return [name_of(self.stage.name, number) for number in numbers]


def plan_of(stage: Stage, record: Record) -> Plan:
    """Return what a searching stage draws from, as it was fixed."""
    return Plan(
        stage=stage,
        space=space_of(record),
        first=record["first"],
        origins=record["origins"],
        base=record["base"],
        num_trials=record["num_trials"],
        beside=record.get("beside", []),
    )


class Suggestions(Searcher):  # type: ignore[misc]
    """Suggests the unfinished trials of the ledger first, then new ones up to the budget.

    Args:
        plan: What to draw.
        ledger: Where new trials are recorded.
        trials: The trials recorded so far.
        job: What the job of every trial holds, such as the prepared file.
    """

    def __init__(
        self, plan: Plan, *, ledger: Ledger, trials: Sequence[Trial], job: Mapping[str, Any]
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._plan = plan
        self._ledger = ledger
        self._job = dict(job)
        self._study = optuna.create_study(direction="maximize")
        ended = [trial for trial in contenders(trials) if trial.state != "running"]
        self._study.add_trials([mirror.frozen(trial, plan.space) for trial in ended])
        self._unfinished = [trial for trial in trials if trial.state == "running"]
        known = {trial.number for trial in trials}
        self._missing = [number for number in range(plan.num_trials) if number not in known]
        self._asked: dict[str, optuna.Trial] = {}
        self.trials = {trial.id: trial for trial in trials}

    @property
    def stage(self) -> str:
        """The name of the stage."""
        return self._plan.stage.name

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's job, or FINISHED."""
        if self._unfinished:
            trial = self._unfinished.pop(0)
            if trial.role == "candidate":
                self._ask(trial.number, trial.params)
        elif self._missing:
            trial = self._draw(self._missing.pop(0))
        else:
            return str(Searcher.FINISHED)
        self.trials[trial.id] = trial
        self._ledger.begin(trial)
        root = self._ledger.trial_folder(trial.id)
        return {
            "trial": trial.id,
            "job": self._job
            | {"trial": trial.id, "config": trial.config, "root": root, "told": trial.tick},
        }

    def _draw(self, number: int) -> Trial:
        name = name_of(self._plan.stage.name, number)
        if (fields := self._plan.drawn_apart(number)) is not None:
            return Trial(id=name, number=number, **fields)
        enqueued = number < len(self._plan.first)
        params = self._ask(number, self._plan.first[number] if enqueued else self._spread(number))
        config = configure(self._plan.stage, params, base=self._plan.base)
        return Trial(
            id=name,
            number=number,
            origin=self._plan.origins[number] if enqueued else "sampled",
            params=params,
            config=config.to_dict(),
        )

    def _spread(self, number: int) -> dict[str, Value]:
        """Return the values that are not left to Optuna."""
        stage = self._plan.stage
        if stage.sampler != "sobol":
            return {}
        place = number - len(self._plan.first) - len(self._plan.beside)
        return sobol.point(self._plan.space, seed=_seed(stage), number=place)

    def _ask(self, number: int, known: Mapping[str, Value]) -> dict[str, Value]:
        """Ask Optuna for a point; ``known`` values are taken, the others drawn."""
        # A sampler of its own per number: after a resume trial 7 is the trial 7 it would have been.
        self._study.sampler = _sampler(self._plan.stage, number)
        if known:
            self._study.enqueue_trial(dict(known))
        asked = self._study.ask(dict(self._plan.space))
        self._asked[name_of(self._plan.stage.name, number)] = asked
        return dict(asked.params)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the driver's callback ends the trial, by its id in the ledger."""

    def tell(self, trial: Trial) -> None:
        """Tell Optuna how a trial that it drew ended: complete, pruned or failed."""
        if trial.role != "candidate":
            return
        asked = self._asked.pop(trial.id)
        state, value = mirror.outcome(trial)
        for tick in trial.ticks:
            asked.report(float(tick[METRIC]), step=int(tick[TIME_ATTRIBUTE]))
        self._study.tell(asked, values=value, state=state)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher; there is nothing in a pickle that we would use

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the ledger is the memory."""
        open(checkpoint_path, "wb").close()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is rebuilt from the ledger")


def _seed(stage: Stage, *words: object) -> int:
    """Return a seed that a stage has for itself, and for each of what the words name."""
    digest = hashlib.sha256(" ".join(map(str, (stage.name, stage.seeds[0], *words))).encode())
    return int.from_bytes(digest.digest()[:4], "big")


def _sampler(stage: Stage, number: int) -> optuna.samplers.BaseSampler:
    seed = _seed(stage, number)
    if stage.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=10)
    return optuna.samplers.RandomSampler(seed=seed)


@dataclasses.dataclass(frozen=True)
class _Key:
    """All that a bracket of Ray wants to know of a trial."""

    trial_id: str


class Rungs(AsyncHyperBandScheduler):  # type: ignore[misc]
    """ASHA over ticks, whose rungs are keyed by the ledger's ids.

    Args:
        budget: Grace period and reduction factor.
        trials: The trials so far; their ticks are replayed in the order in which they came.
        apart: Ids of trials that are stopped as others are, and by whose scores no other is.
    """

    def __init__(
        self, budget: Budget, *, trials: Sequence[Trial] = (), apart: Collection[str] = ()
    ) -> None:
        super().__init__(
            time_attr=TIME_ATTRIBUTE,
            metric=METRIC,
            mode="max",
            max_t=TICKS,
            grace_period=budget.grace_period,
            reduction_factor=budget.reduction_factor,
        )
        self.stopped: dict[str, int] = {}
        """The trials that were stopped, and the tick at which each was. After the replay those of
        them that still run are to be ended: the driver died before it was carried out."""
        self._apart = frozenset(apart)
        self._met: set[tuple[str, int]] = set()
        """Rungs that those have reached."""
        reports = [(tick["time"], trial.id, tick) for trial in trials for tick in trial.ticks]
        for _, trial_id, tick in sorted(reports, key=lambda report: report[:2]):
            self.decide(trial_id, tick)

    def decide(self, trial_id: str, result: Mapping[str, Any]) -> str:
        """Record a report at its rung; return STOP where it lies below the cut."""
        tick, score = int(result[TIME_ATTRIBUTE]), float(result[METRIC])
        rung = dict(self._brackets[0]._rungs).get(tick)
        # Ray records a report also at a lower rung that was skipped, with a score from later on.
        if rung is None or trial_id in rung or (trial_id, tick) in self._met:
            return str(TrialScheduler.CONTINUE)
        # Ray lets NaN go on, since it is not below any cut. Here it is the worst AUROC there is.
        score = score if math.isfinite(score) else 0.0
        decision = str(self._brackets[0].on_result(_Key(trial_id), tick, score))
        if trial_id in self._apart:
            self._met.add((trial_id, tick))
            del rung[trial_id]
        # A trial at its last tick ends by itself, and is finished however it compares.
        if tick >= TICKS or decision != TrialScheduler.STOP:
            return str(TrialScheduler.CONTINUE)
        self.stopped[trial_id] = tick
        return decision

    def rungs(self) -> dict[int, dict[str, float]]:
        """Return the scores recorded at each rung, by trial id."""
        return {int(tick): dict(scores) for tick, scores in reversed(self._brackets[0]._rungs)}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Nothing to draw: there is one bracket."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.decide(trial.config["trial"], result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The last report is recorded already."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Rungs keep what a removed trial reported."""


class CooperativeRungs(Rungs):
    """The same decisions for trials that are Ray Train runs, which leave by themselves when told.

    Stopped by Tune, such a trial would leave its placement group behind, and with it the cores
    that the next one waits for. Its workers look at the board after each tick, so one tick more
    may come.

    Args:
        stop: Puts a trial on the board.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        trials: Sequence[Trial] = (),
        apart: Collection[str] = (),
        stop: Callable[[str], object],
    ) -> None:
        super().__init__(budget, trials=trials, apart=apart)
        self._stop = stop

    def __getstate__(self) -> dict[str, Any]:
        return {}  # the board's handle needs no pickling: the ledger is the memory

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name = trial.config["trial"]
        if name not in self.stopped and self.decide(name, result) == TrialScheduler.STOP:
            self._stop(name)
        return str(TrialScheduler.CONTINUE)

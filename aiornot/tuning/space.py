"""Stages and their spaces: what is compared, held and spent, and after which stage.

A stage file in ``tune_spaces/`` imports from this module and from its sibling stages only, and
binds one name, ``stage``. ``aiornot tune fast`` loads the folder ``tune_spaces/fast``.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, TypeAlias

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.distributions import json_to_distribution as distribution_from_json

from aiornot.config import TICKS, InputError, TrainConfig, nearest

__all__ = [
    "Budget",
    "Narrowed",
    "Stage",
    "choice",
    "configure",
    "distribution_from_json",
    "distribution_to_json",
    "extremes",
    "loguniform",
    "models",
    "narrowed",
    "original",
    "randint",
    "stage_to_dict",
    "uniform",
]

Distribution: TypeAlias = BaseDistribution
Value: TypeAlias = None | bool | int | float | str

PROFILES = ("debug", "reduced", "full")

SAMPLERS = ("random", "sobol", "tpe")

MOST_CONTROLS = 2


def choice(*options: Value) -> CategoricalDistribution:
    return CategoricalDistribution(options)


def uniform(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high)


def loguniform(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high, log=True)


def randint(low: int, high: int) -> IntDistribution:
    """Whole numbers from low to high, both included."""
    return IntDistribution(low, high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a stage may spend, and how early it may give a trial up."""

    num_trials: int
    epochs: int | None = None
    """None: ``epochs`` is searched or fixed by the stage."""
    train_fraction: float = 1.0
    grace_period: int = 5
    """Ticks of 16 before a trial may be stopped; 16 never stops one. Until the fifth the learning
    rate rises (``pct_start`` .3), and what is slow to start looks hopeless (docs/search.md)."""
    reduction_factor: int = 4
    """ASHA keeps one in this many at each rung."""

    def __post_init__(self) -> None:
        if self.num_trials < 1:
            raise InputError(f"num_trials={self.num_trials} must be at least 1")
        if not 1 <= self.grace_period <= TICKS:
            raise InputError(f"grace_period={self.grace_period} must lie between 1 and {TICKS}")
        if self.reduction_factor < 2:
            raise InputError(f"reduction_factor={self.reduction_factor} must be at least 2")
        lengths = {"epochs": self.epochs, "train_fraction": self.train_fraction}
        TrainConfig.from_dict({key: value for key, value in lengths.items() if value is not None})


@dataclasses.dataclass(frozen=True)
class Narrowed:
    """A parameter whose range is cut to the parent's best trials when the stage starts."""

    original: Distribution


def narrowed(space: Mapping[str, "Distribution | Narrowed"]) -> dict[str, Narrowed]:
    """Mark every parameter of a parent's space to be narrowed; the rules are in ``narrow.py``."""
    return {
        name: domain if isinstance(domain, Narrowed) else Narrowed(domain)
        for name, domain in space.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One search over one space at one budget.

    Without a ``sampler`` nothing is searched: the parent's selected configurations are trained
    again with this stage's ``fixed`` values, once per seed, and each as a Ray Train run.
    """

    name: str
    space: Mapping[str, Distribution | Narrowed] = dataclasses.field(default_factory=dict)
    only_for: Mapping[str, Mapping[str, tuple[Value, ...]]] = dataclasses.field(
        default_factory=dict
    )
    """``{"a": {"b": (1, 2)}}``: ``a`` is searched where ``b`` is 1 or 2, else keeps its default."""
    fixed: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    sampler: Literal["random", "sobol", "tpe"] | None = None
    """``random`` draws each point by itself, ``sobol`` spreads them evenly, ``tpe`` goes by the
    scores of those before."""
    data: Literal["debug", "reduced", "full"] = "full"
    """Profile of the prepared file."""
    budget: Budget
    after: "Stage | None" = None
    enqueue: int = 0
    """How many of the parent's selected configurations run first."""
    pick_from: Literal["parent", "searches"] = "parent"
    """Of a stage without a search: whether its configurations are selected among the parent's
    trials, or among those of all searches before it on the parent's profile."""
    controls: int = 0
    """How many that it ranked lower run beside them, on top of ``num_trials``: the middle one and
    one far down. They show how well the parent ranks, and are never chosen."""
    baseline: Mapping[str, Value] | None = None
    """Of a stage without a search: a configuration to be compared with, TrainConfig's defaults but
    for these values, trained beside the others for as long; ``{}`` is the notebook's."""
    first: tuple[Mapping[str, Value], ...] = ()
    """Known good points to try before anything is drawn."""
    seeds: tuple[int, ...] = (0,)
    trainer: Literal["auto", "ray_train"] = "auto"
    """How the trials of a search run: in their Tune process, or each as a Ray Train run."""

    def __post_init__(self) -> None:
        try:
            self._check_shape()
            self._check_keys()
            self._check_values()
        except InputError as error:
            raise InputError(f"stage {self.name!r}: {error}") from None

    def _check_shape(self) -> None:
        if self.data not in PROFILES:
            raise InputError(f"data={self.data!r} is none of {PROFILES}")
        if self.sampler not in (*SAMPLERS, None):
            raise InputError(f"sampler={self.sampler!r} is none of {SAMPLERS}")
        if self.trainer not in ("auto", "ray_train"):
            raise InputError(f"trainer={self.trainer!r} is not auto or ray_train")
        if self.sampler is None and (self.space or not (self.enqueue and self.after)):
            raise InputError(
                "it has no sampler: leave its space empty and give after= and enqueue=, "
                "the number of the parent's configurations to train again"
            )
        if self.sampler is not None and not self.space:
            raise InputError(
                "it has a sampler but an empty space: say what is searched, or leave out sampler="
            )
        if self.enqueue and self.after is None:
            raise InputError(f"enqueue={self.enqueue} needs after=")
        if self.pick_from not in ("parent", "searches"):
            raise InputError(f"pick_from={self.pick_from!r} is not parent or searches")
        repeats = not self.searches() and self.after is not None and self.after.searches()
        if self.pick_from == "searches" and not repeats:
            raise InputError("pick_from='searches' is for a stage without a search, after a search")
        if not 0 <= self.controls <= MOST_CONTROLS:
            raise InputError(f"controls={self.controls} must lie between 0 and {MOST_CONTROLS}")
        if self.controls and not (self.after and self.after.searches()):
            raise InputError(f"controls={self.controls} needs after= a stage that searches")
        if self.baseline is not None and self.searches():
            raise InputError("it searches: a point to be tried goes into first=, not baseline=")
        if not self.seeds:
            raise InputError("seeds=() must hold at least one seed")

    def _check_keys(self) -> None:
        for name, domain in self.space.items():
            if not isinstance(domain, BaseDistribution | Narrowed):
                raise InputError(
                    f"space: {name} is {domain!r}, write choice(...), uniform(low, high), "
                    "loguniform(low, high) or randint(low, high)"
                )
        known = [field.name for field in dataclasses.fields(TrainConfig)]
        elsewhere = {"train_fraction": "budget=Budget(train_fraction=...)", "seed": "seeds="}
        if self.budget.epochs is not None:
            elsewhere["epochs"] = "budget=Budget(epochs=...)"
        groups = {"space": self.space, "fixed": self.fixed, "baseline": self.baseline or {}}
        for where, keys in groups.items():
            for key in keys:
                if key not in known:
                    raise InputError(
                        f"{where}: unknown hyper-parameter {key!r}{nearest(key, known)}"
                    )
                if key in elsewhere:
                    raise InputError(f"{key!r} is in {where}, but {elsewhere[key]} decides on it")
        twice = sorted(set(self.space) & set(self.fixed))
        if twice:
            raise InputError(f"{twice[0]!r} is both in space and in fixed")
        for name, rule in self.only_for.items():
            for key in (name, *rule):
                if key not in self.space:
                    raise InputError(f"only_for: {key!r} is not in space")
        try:
            list(_by_dependence(self.only_for))
        except CycleError as error:
            raise InputError(f"only_for: conditions in a circle: {error.args[1]}") from None

    def _check_values(self) -> None:
        """Types and bounds of all that may be trained: at load, and not in a worker later."""
        TrainConfig.from_dict(self.fixed)
        TrainConfig.from_dict(self.baseline or {})
        for seed in self.seeds:
            TrainConfig.from_dict({"seed": seed})
        domains = {name: original(domain) for name, domain in self.space.items()}
        for name, domain in domains.items():
            for value in extremes(domain):
                TrainConfig.from_dict({name: value})
        for point in self.first:
            for name, value in point.items():
                if name not in domains:
                    close = nearest(name, list(domains))
                    raise InputError(f"first: {name!r} is not in space{close}")
                if not _contains(domains[name], value):
                    raise InputError(f"first: {name}={value!r} is not in its range")

    def searches(self) -> bool:
        """Whether Tune runs its trials; else each is a Ray Train run."""
        return self.sampler is not None

    def num_beside(self) -> int:
        """Return how many trials there are to be compared with; there may be fewer controls."""
        return self.controls + (self.baseline is not None)

    def nested(self) -> bool:
        """Whether its trials are Ray Train runs inside Tune."""
        return self.searches() and self.trainer == "ray_train"


def original(domain: Distribution | Narrowed) -> Distribution:
    """Return what a stage file says of a parameter, before any narrowing."""
    return domain.original if isinstance(domain, Narrowed) else domain


def extremes(domain: Distribution) -> tuple[Any, ...]:
    """Return all choices of a category, the lowest and the highest value of a number."""
    if isinstance(domain, CategoricalDistribution):
        return tuple(domain.choices)
    assert isinstance(domain, FloatDistribution | IntDistribution), f"no rule for {domain!r}"
    return domain.low, domain.high


def _contains(domain: Distribution, value: Value) -> bool:
    if isinstance(domain, CategoricalDistribution):
        return value in domain.choices
    assert isinstance(domain, FloatDistribution | IntDistribution), f"no rule for {domain!r}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and domain.low <= value <= domain.high  # type: ignore[operator]


def _by_dependence(only_for: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the conditional parameters, each after those that its condition asks for."""
    order = TopologicalSorter({name: rule.keys() for name, rule in only_for.items()})
    return (name for name in order.static_order() if name in only_for)


def configure(
    stage: Stage,
    params: Mapping[str, Value],
    *,
    base: Mapping[str, Value] | None = None,
    seed: int | None = None,
) -> TrainConfig:
    """Turn sampled parameters into the configuration that is trained.

    What the stage neither searches nor fixes keeps the value of ``base``, the parent's best
    configuration. A conditional parameter that does not apply has TrainConfig's default.
    """
    values = dict(base or {}) | dict(stage.fixed) | dict(params)
    default = TrainConfig().to_dict()
    for name in _by_dependence(stage.only_for):
        rule = stage.only_for[name]
        if not all(values.get(key, default[key]) in allowed for key, allowed in rule.items()):
            values.pop(name, None)
    if stage.budget.epochs is not None:
        values["epochs"] = stage.budget.epochs
    values["train_fraction"] = stage.budget.train_fraction
    values["seed"] = stage.seeds[0] if seed is None else seed
    return TrainConfig.from_dict(values)


def models(stage: Stage) -> list[TrainConfig]:
    """Return a configuration for every model, pooling and drop path that a stage may build.

    The baseline's is among them.
    """
    options = []
    for name in ("model", "global_pool", "drop_path_rate"):
        domain = original(stage.space[name]) if name in stage.space else None
        if isinstance(domain, CategoricalDistribution):
            options.append([(name, choice) for choice in domain.choices])
    points = [dict(point) for point in itertools.product(*options)]
    found = [configure(stage, point) for point in points if point or "model" in stage.fixed]
    return found + ([] if stage.baseline is None else [configure(stage, stage.baseline)])


def stage_to_dict(stage: Stage) -> dict[str, Any]:
    """Return the meaning of a stage as plain JSON values; comments and docstrings are not in it."""

    def domain(value: Distribution | Narrowed) -> str:
        if isinstance(value, Narrowed):
            return f"narrowed {distribution_to_json(value.original)}"
        return distribution_to_json(value)

    return {
        "name": stage.name,
        "space": {name: domain(value) for name, value in sorted(stage.space.items())},
        "only_for": {
            name: {key: list(allowed) for key, allowed in rule.items()}
            for name, rule in sorted(stage.only_for.items())
        },
        "fixed": dict(sorted(stage.fixed.items())),
        "sampler": stage.sampler,
        "data": stage.data,
        "budget": dataclasses.asdict(stage.budget),
        "after": stage.after.name if stage.after else None,
        "enqueue": stage.enqueue,
        "pick_from": stage.pick_from,
        "controls": stage.controls,
        "baseline": None if stage.baseline is None else dict(sorted(stage.baseline.items())),
        "first": [dict(sorted(point.items())) for point in stage.first],
        "seeds": list(stage.seeds),
    }

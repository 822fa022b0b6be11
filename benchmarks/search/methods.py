"""The methods that are compared: chains made of the stages in ``tune_spaces``.

``fast`` and ``seed`` are the folders themselves but for two things. What only measures (controls,
the baseline) is left out: it decides nothing, and its cost is told apart. And ``fast``'s known good
point is left out: how good it is here depends on which network stands for a ResNet-18.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from aiornot.config import TICKS
from aiornot.tuning.space import (
    Budget,
    Distribution,
    Narrowed,
    Stage,
    loguniform,
    narrowed,
    original,
    randint,
)
from aiornot.tuning.stages import find_chain, load_chain
from benchmarks.search.replay import link

NEVER = TICKS
"""A grace period that stops nothing."""


@dataclasses.dataclass(frozen=True)
class Method:
    """Stages that search, and one or more ways to go on with what they found."""

    searches: list[Stage]
    ends: dict[str, list[Stage]]
    """The stages without a search, by what is added to the method's name."""
    last_tick: int = TICKS
    """Where every trial of a search ends."""

    def seeded(self, seed: int) -> tuple[list[Stage], dict[str, list[Stage]]]:
        """Return the stages of one replicate: other draws, and other seeds of the trainings."""

        def moved(stage: Stage) -> Stage:
            return dataclasses.replace(stage, seeds=tuple(seed + each for each in stage.seeds))

        found = link([moved(stage) for stage in self.searches])
        return found, {
            name: link([moved(stage) for stage in end], found[-1])
            for name, end in self.ends.items()
        }


def methods() -> dict[str, Method]:
    """Return the methods by name.

    All but the notebook's and ``seed`` end in ``fast``'s stages: 3 candidates, and the winner once
    more. Where the number of epochs was searched each keeps its own, else all have 16. Those of
    one stage search all that ``fast`` searches in two.
    """
    of_128 = _budget(whole(), num_trials=128, grace_period=1)
    lengths = {**of_128.space, "epochs": randint(2, 20)}
    free = _budget(of_128, epochs=None, grace_period=NEVER)
    free = dataclasses.replace(free, space=lengths)
    seed = folder("seed")
    notebook = [_budget(each, grace_period=NEVER) for each in seed[:-2]]
    own = full_and_final(epochs=None)
    three = {", 3 candidates": own, ", 3 x 16 epochs": full_and_final()}
    both = {"": seed[-2:], **three}
    return {
        "fast": changed(lambda stage: stage),
        **_designs(),
        "notebook's chain": Method(searching(notebook), both),
        "notebook's stages, fast's space": Method(_respaced(notebook), {"": seed[-2:]}),
        # As it was shipped before these tables had been seen, and as it is.
        "seed with ASHA": Method([_budget(each, grace_period=1) for each in searching(seed)], both),
        "seed, first rung at tick 5": Method(searching(seed), {"": seed[-2:]}),
        "random 128": Method([free], three),
        "random 128, 8 epochs": ours(_budget(of_128, grace_period=NEVER)),
        "random + ASHA": ours(of_128),
        "one epoch, top 3": dataclasses.replace(ours(_budget(of_128, epochs=16)), last_tick=1),
        "TPE": ours(_budget(_tpe(of_128), grace_period=NEVER)),
        "TPE + ASHA": ours(_tpe(of_128)),
    }


def _respaced(notebook: list[Stage]) -> list[Stage]:
    """Return the notebook's searching stages over all that ``fast`` searches, from the first on."""
    space = {**whole().space, "epochs": randint(2, 20)}
    few = {name: space[name] for name in notebook[-1].space}
    spaces = [space, narrowed(space), narrowed(space), narrowed(few)]
    fixed = whole().fixed
    return link(
        [
            dataclasses.replace(stage, space=each, only_for={}, fixed=fixed)
            for stage, each in zip(searching(notebook), spaces, strict=True)
        ]
    )


def whole() -> Stage:
    """Return one stage that searches all that ``fast`` searches: 64 trials of 8 epochs."""
    explore, exploit = searching(folder("fast"))
    space = {name: original(domain) for name, domain in exploit.space.items()}
    budget = Budget(num_trials=64, epochs=8, grace_period=2)
    return dataclasses.replace(explore, space=space, fixed=exploit.fixed, budget=budget)


def _designs() -> dict[str, Method]:
    """Return ``fast`` as it was at first, and before ``digits``, ``scenes`` and ``shapes``."""
    explore = whole()
    exploit = dataclasses.replace(
        explore, name="exploit", after=explore, space=narrowed(explore.space), enqueue=2
    )
    first = _budget(explore, num_trials=48, grace_period=1)
    then = _budget(exploit, num_trials=48, grace_period=1)
    second = _budget(exploit, num_trials=16, epochs=16, grace_period=4)
    third = _budget(exploit, num_trials=24, epochs=None, grace_period=4)
    lengths = {**third.space, "epochs": randint(4, 20)}
    third = dataclasses.replace(third, space=lengths, enqueue=4)
    ends = {"": full_and_final()}
    short, long = (_budget(stage, reduction_factor=3) for stage in searching(folder("fast")))
    fourth = [_budget(short, num_trials=80, grace_period=2), long]
    best_of_both = {"": full_and_final(epochs=None, pick_from="searches")}
    return {
        "fast's first design": Method([first, then], ends),
        "fast's second design": Method([explore, second], ends),
        "fast's third design": Method([explore, third], {"": full_and_final(epochs=None)}),
        "fast's fourth design": Method(fourth, best_of_both),
    }


def folder(name: str) -> list[Stage]:
    """Return the stages of a chain in ``tune_spaces``, without points that are known before."""
    stages = load_chain(find_chain(name))
    return link([dataclasses.replace(stage, first=()) for stage in stages])


def searching(chain: list[Stage]) -> list[Stage]:
    return [stage for stage in chain if stage.searches()]


def full_and_final(
    count: int | None = None,
    epochs: int | None = 16,
    pick_from: Literal["parent", "searches"] = "parent",
) -> list[Stage]:
    """Return the last stages of ``fast``.

    Args:
        count: Candidates, where not as many as it has.
        epochs: Of all of them; None is each one's own number.
        pick_from: The newest search, as all methods but ``fast`` do, or all of them.
    """
    full, final = (_budget(stage, epochs=epochs) for stage in folder("fast")[-2:])
    full = dataclasses.replace(full, pick_from=pick_from)
    if count is not None:
        budget = dataclasses.replace(full.budget, num_trials=count)
        full = dataclasses.replace(full, enqueue=count, budget=budget)
    return [full, final]


def ours(*stages: Stage) -> Method:
    """Return stages that search, with 3 candidates of 16 epochs behind them."""
    return Method(list(stages), {"": full_and_final()})


def variants() -> dict[str, Callable[[], Method]]:
    """Return what is changed in ``fast``, one thing at a time, by what it says in the table."""
    made: dict[str, Callable[[], Method]] = {"as it is": _with_candidates}
    for factor in (2, 3, 8):
        made[f"reduction factor {factor}"] = _both(reduction_factor=factor)
    for grace in (1, 2, 8):
        made[f"first rung of explore at tick {grace}"] = _explored(grace_period=grace)
    made["first rung of exploit at tick 4"] = _exploited(grace_period=4)
    made["exploit not stopped"] = _exploited(grace_period=NEVER)
    made["nothing stopped"] = _both(grace_period=NEVER)
    for count in (28, 112):
        made[f"{count} + 10 trials"] = _explored(num_trials=count)
    for count in (6, 20):
        made[f"56 + {count} trials"] = _exploited(num_trials=count)
    for epochs in (8, 16):
        made[f"{epochs} epochs in explore"] = _explored(epochs=epochs)
    made["8 epochs in exploit"] = _exploited(epochs=8)
    for count in (0, 10):
        made[f"{count} of explore's best in exploit"] = _replaced(enqueue=count)
    made["all of the space from explore on"] = lambda: changed(_spread)
    made["TPE in explore"] = lambda: changed(lambda stage: stage if stage.after else _tpe(stage))
    made["its known good point first"] = lambda: changed(_known)
    made["three bad points first"] = lambda: changed(_misled)
    made["the best learning rates cut off"] = lambda: changed(_cut_off)
    made["lr's range twice as wide"] = lambda: changed(_wide)
    return made


def _with_candidates() -> Method:
    """``fast`` with 3 candidates of both searches, and with others behind the same search."""
    method = changed(lambda stage: stage)
    others = {
        f": {count} candidates": full_and_final(count, None, "searches") for count in (1, 2, 6)
    }
    others[": all of 16 epochs"] = full_and_final(pick_from="searches")
    others[": candidates of exploit alone"] = full_and_final(epochs=None)
    return dataclasses.replace(method, ends=method.ends | others)


def changed(change: Callable[[Stage], Stage]) -> Method:
    """Return ``fast`` with its searching stages changed."""
    stages = [change(stage) for stage in searching(folder("fast"))]
    return Method(stages, {"": full_and_final(epochs=None, pick_from="searches")})


def _both(**values: Any) -> Callable[[], Method]:
    return lambda: changed(lambda stage: _budget(stage, **values))


def _explored(**values: Any) -> Callable[[], Method]:
    return lambda: changed(lambda stage: stage if stage.after else _budget(stage, **values))


def _exploited(**values: Any) -> Callable[[], Method]:
    return lambda: changed(lambda stage: _budget(stage, **values) if stage.after else stage)


def _replaced(**values: Any) -> Callable[[], Method]:
    """``fast`` with other fields of exploit."""
    return lambda: changed(
        lambda stage: dataclasses.replace(stage, **values) if stage.after else stage
    )


def _spread(stage: Stage) -> Stage:
    """Search in explore, too, what only exploit does."""
    space = whole().space
    found = space if stage.after is None else narrowed(space)
    return dataclasses.replace(stage, space=found, fixed=whole().fixed)


def _budget(stage: Stage, **values: Any) -> Stage:
    return dataclasses.replace(stage, budget=dataclasses.replace(stage.budget, **values))


def _tpe(stage: Stage) -> Stage:
    return dataclasses.replace(stage, sampler="tpe")


def _ranged(stage: Stage, domain: Distribution) -> Stage:
    """Give lr another range; where it is narrowed, that is what is known of it at most."""
    now = Narrowed(domain) if isinstance(stage.space["lr"], Narrowed) else domain
    space: Mapping[str, Distribution | Narrowed] = {**stage.space, "lr": now}
    return dataclasses.replace(stage, space=space)


def _wide(stage: Stage) -> Stage:
    return _ranged(stage, loguniform(10**-6.5, 10**-0.5))


def _cut_off(stage: Stage) -> Stage:
    """The highest decade and a half of lr is not searched, which is where the best ones are."""
    return _ranged(stage, loguniform(1e-5, 10**-3.5))


def _known(stage: Stage) -> Stage:
    found = load_chain(find_chain("fast"))[0].first
    return stage if stage.after else dataclasses.replace(stage, first=found)


def _misled(stage: Stage) -> Stage:
    if stage.after is not None:
        return stage
    models = original(stage.space["model"]).choices  # type: ignore[attr-defined]
    bad = tuple({"model": model, "lr": 1.1e-5} for model in models[:3])
    return dataclasses.replace(stage, first=bad)

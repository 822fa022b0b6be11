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
    Stage,
    extremes,
    loguniform,
    narrowed,
    original,
    randint,
    uniform,
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

    All but the notebook's, ``seed`` and the fifth design end in ``fast``'s stages: 2 candidates,
    and the winner once more. Where the number of epochs was searched each keeps its own, else all
    have 16. Those of one stage search all that ``fast`` searches in two.
    """
    of_128 = _budget(whole(), num_trials=128, grace_period=1)
    lengths = {**of_128.space, "epochs": randint(2, 20)}
    free = _budget(of_128, epochs=None, grace_period=NEVER)
    free = dataclasses.replace(free, space=lengths)
    seed = folder("seed")
    notebook = [_budget(each, grace_period=NEVER) for each in seed[:-2]]
    two = {", 2 candidates": full_and_final(epochs=None), ", 2 x 16 epochs": full_and_final()}
    both = {"": seed[-2:], **two}
    return {
        "fast": changed(lambda stage: stage),
        "fast's fifth design": _fifth(),
        "notebook's chain": Method(searching(notebook), both),
        "notebook's stages, fast's space": Method(_respaced(notebook), {"": seed[-2:]}),
        # As it was shipped before these tables had been seen, and as it is.
        "seed with ASHA": Method([_budget(each, grace_period=1) for each in searching(seed)], both),
        "seed, first rung at tick 5": Method(searching(seed), {"": seed[-2:]}),
        "random 128": Method([free], two),
        "random 128, 8 epochs": ours(_budget(of_128, grace_period=NEVER)),
        "random + ASHA": ours(of_128),
        "one epoch, top 2": dataclasses.replace(ours(_budget(of_128, epochs=16)), last_tick=1),
        "TPE": ours(_budget(_tpe(of_128), grace_period=NEVER)),
        "TPE + ASHA": ours(_tpe(of_128)),
    }


def _respaced(notebook: list[Stage]) -> list[Stage]:
    """Return the notebook's searching stages over all that ``fast`` searches, from the first on."""
    space = {**whole().space, "epochs": randint(2, 20)}
    few = {name: space[name] for name in notebook[-1].space if name in space}
    spaces = [space, narrowed(space), narrowed(space), narrowed(few)]
    fixed = whole().fixed
    return link(
        [
            dataclasses.replace(stage, space=each, only_for={}, fixed=fixed)
            for stage, each in zip(searching(notebook), spaces, strict=True)
        ]
    )


def whole() -> Stage:
    """Return one random search of all that ``fast`` searches: 64 trials of 8 epochs."""
    explore, exploit = searching(folder("fast"))
    space = {name: original(domain) for name, domain in exploit.space.items()}
    budget = Budget(num_trials=64, epochs=8, grace_period=2)
    return dataclasses.replace(
        explore, sampler="random", space=space, fixed=exploit.fixed, budget=budget
    )


DECAY = loguniform(1e-3, 2e-1)
SMOOTHING = uniform(0.0, 0.1)
LAYERS = uniform(0.6, 1.0)
"""What ``fast`` searched in its fifth design and now leaves alone, or cuts."""


def _fifth() -> Method:
    """Return ``fast`` as it was shipped before: 56 and 10 trials, 3 candidates of both."""
    explore, exploit = searching(folder("fast"))
    now = explore.space
    space = {name: now[name] for name in ("model", "lr", "clip_grad")}
    space |= {"weight_decay": DECAY, "label_smoothing": SMOOTHING}
    more = {name: domain for name, domain in exploit.space.items() if name not in now}
    more |= {**narrowed(space), "layer_decay": LAYERS, "hflip": now["hflip"]}
    explore = dataclasses.replace(explore, sampler="random", space=space)
    exploit = dataclasses.replace(exploit, sampler="random", space=more)
    stages = [
        _budget(explore, num_trials=56),
        _budget(exploit, num_trials=10, grace_period=8, reduction_factor=4),
    ]
    return Method(stages, {"": full_and_final(3, None, "searches")})


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
    """Return stages that search, with 2 candidates of 16 epochs behind them."""
    return Method(list(stages), {"": full_and_final()})


def variants() -> dict[str, Callable[[], Method]]:
    """Return what is changed in ``fast``, one thing at a time, by what it says in the table."""
    made: dict[str, Callable[[], Method]] = {"as it is": _with_candidates}
    made["random points instead of even ones"] = _both(sampler="random")
    made["TPE in explore"] = _explored(sampler="tpe")
    made["label smoothing searched, too"] = _searched(label_smoothing=SMOOTHING)
    made["layer decay searched, too"] = _searched(layer_decay=LAYERS)
    made["weight decay from .001 on"] = _searched(weight_decay=DECAY)
    made["mirroring from exploit on"] = lambda: changed(_later)
    made["all of the space from explore on"] = lambda: changed(_spread)
    for factor in (2, 3, 8):
        made[f"reduction factor {factor} in explore"] = _explored(reduction_factor=factor)
    for grace in (1, 2, 8):
        made[f"first rung of explore at tick {grace}"] = _explored(grace_period=grace)
    made["first rung of exploit at tick 8"] = _exploited(grace_period=8)
    made["exploit not stopped"] = _exploited(grace_period=NEVER)
    made["nothing stopped"] = _both(grace_period=NEVER)
    for count in (32, 128):
        made[f"{count} + 9 trials"] = _explored(num_trials=count)
    for count in (6, 18):
        made[f"64 + {count} trials"] = _exploited(num_trials=count)
    for epochs in (8, 16):
        made[f"{epochs} epochs in explore"] = _explored(epochs=epochs)
    made["8 epochs in exploit"] = _exploited(epochs=8)
    for count in (0, 9):
        made[f"{count} of explore's best in exploit"] = _exploited(enqueue=count)
    known = load_chain(find_chain("fast"))[0].first
    made["its known good point first"] = _explored(first=known)
    bad = tuple({"model": model, "lr": 1.1e-5} for model in extremes(whole().space["model"])[:3])
    made["three bad points first"] = _explored(first=bad)
    made["the best learning rates cut off"] = _searched(lr=CUT)
    made["lr's range twice as wide"] = _searched(lr=WIDE)
    return made


WIDE = loguniform(10**-6.5, 10**-0.5)

CUT = loguniform(1e-5, 10**-3.5)
"""Without the highest decade and a half, which is where the best ones are."""


def _with_candidates() -> Method:
    """``fast`` with 2 candidates of both searches, and with others behind the same search."""
    method = changed(lambda stage: stage)
    others = {
        f": {count} candidates": full_and_final(count, None, "searches") for count in (1, 3, 6)
    }
    others[": all of 16 epochs"] = full_and_final(pick_from="searches")
    others[": candidates of exploit alone"] = full_and_final(epochs=None)
    return dataclasses.replace(method, ends=method.ends | others)


def changed(change: Callable[[Stage], Stage]) -> Method:
    """Return ``fast`` with its searching stages changed."""
    stages = [change(stage) for stage in searching(folder("fast"))]
    return Method(stages, {"": full_and_final(epochs=None, pick_from="searches")})


def _both(**values: Any) -> Callable[[], Method]:
    """``fast`` with other values of its searching stages, or of their budgets."""
    return lambda: changed(lambda stage: _with(stage, values))


def _explored(**values: Any) -> Callable[[], Method]:
    return lambda: changed(lambda stage: stage if stage.after else _with(stage, values))


def _exploited(**values: Any) -> Callable[[], Method]:
    return lambda: changed(lambda stage: _with(stage, values) if stage.after else stage)


def _with(stage: Stage, values: Mapping[str, Any]) -> Stage:
    own = {field.name for field in dataclasses.fields(Stage)}
    stage = dataclasses.replace(stage, **{key: values[key] for key in values if key in own})
    return _budget(stage, **{key: values[key] for key in values if key not in own})


def _searched(**domains: Distribution) -> Callable[[], Method]:
    """``fast`` with more parameters, or other ranges of its own, from explore on."""

    def searched(stage: Stage) -> Stage:
        found = narrowed(domains) if stage.after else domains
        return dataclasses.replace(stage, space={**stage.space, **found})

    return lambda: changed(searched)


def _later(stage: Stage) -> Stage:
    """Leave mirroring to exploit."""
    space = dict(stage.space)
    mirroring = original(space.pop("hflip"))
    return dataclasses.replace(stage, space={**space, "hflip": mirroring} if stage.after else space)


def _spread(stage: Stage) -> Stage:
    """Search in explore, too, what only exploit does."""
    space = whole().space
    found = space if stage.after is None else narrowed(space)
    return dataclasses.replace(stage, space=found, fixed=whole().fixed)


def _budget(stage: Stage, **values: Any) -> Stage:
    return dataclasses.replace(stage, budget=dataclasses.replace(stage.budget, **values))


def _tpe(stage: Stage) -> Stage:
    return dataclasses.replace(stage, sampler="tpe")

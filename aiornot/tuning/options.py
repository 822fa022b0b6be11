"""Where and with what a chain runs, and what of that is refused before Ray and torch are imported.

``aiornot tune fast --only explor`` ends here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiornot import storage
from aiornot.config import InputError
from aiornot.tuning import spending
from aiornot.tuning.ledger import Ledger, Observer, Trial
from aiornot.tuning.space import Stage

if TYPE_CHECKING:
    from aiornot.training import track


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Where and with what a chain runs; none of it changes what is searched."""

    data: Path
    """Folder of the prepared files."""
    root: str
    """Folder of the chain's runs, local or remote; made absolute, for the workers' sake."""
    num_workers: int = 1
    """Ranks of each Ray Train run."""
    tick_seconds: float | None = None
    """A process that needs longer for a tick is ended, and its trial started again."""
    limits: spending.Limits = spending.Limits()
    """What the searching stages must leave to those behind them."""
    num_trials: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Trials of a searching stage, where not as many as its file says."""
    only: str | None = None
    """Stop after this stage."""
    fresh: bool = False
    """Move an earlier run of the chain aside first."""
    say: Callable[[str], None] = lambda text: None
    observe: Callable[[Stage, int, Sequence[Trial]], Observer] | None = None
    """Makes an observer of a stage's ledger, given its number of trials and those it holds."""
    trackers: Sequence["track.Tracks"] = ()
    """W&B and the like."""
    local: Path | None = None
    """The chain's folder on this machine, for the mirror of each study; unsaid, there is none."""

    def ledger(self, stage: Stage, observers: Sequence[Observer] = ()) -> Ledger:
        return Ledger(storage.join(self.root, stage.name), observers=observers)

    def data_file(self, stage: Stage) -> Path:
        """Return the prepared file of a stage.

        Raises:
            InputError: It is not there.
        """
        path = self.data / f"{stage.data}.h5"
        if not path.exists():
            raise InputError(
                f"stage {stage.name!r} needs {path}: name the folder of the prepared files with "
                f"--data, or make it with 'aiornot prepare SOURCE --out {self.data} --profile "
                f"{stage.data}'"
            )
        return path


def check(stages: Sequence[Stage], options: Options) -> None:
    """Refuse unknown stages, and missing data.

    Raises:
        InputError: As said.
    """
    check_names(stages, options)
    for stage in stages:
        options.data_file(stage)


def check_names(stages: Sequence[Stage], options: Options) -> None:
    """Refuse stages that the chain has not, without a look at the data.

    Raises:
        InputError: As said.
    """
    searching = [stage.name for stage in stages if stage.searches()]
    for name in options.num_trials:
        if name not in searching:
            raise InputError(f"no searching stage {name!r}; this chain has {', '.join(searching)}")
    names = [stage.name for stage in stages]
    if options.only is not None and options.only not in names:
        raise InputError(f"no stage {options.only!r}; this chain has {', '.join(names)}")

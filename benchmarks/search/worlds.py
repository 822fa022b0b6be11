"""A world: tables in place of trainings, and prepared files that hold nothing but labels."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aiornot.config import TICKS
from aiornot.data import hdf5
from aiornot.tuning.ledger import Trial
from benchmarks.search.table import Table

EPOCH_SECONDS = {"reduced": 13 * 3600 / 128 / 11, "full": 4.5 * 3600 / 6 / 11}
"""The notebook's: 128 models in 13 hours on reduced images, 6 in 4.5 hours on all of them; its
epochs were drawn from 2 to 20, so 11 on average."""

Score = Literal["best", "raw", "small"]


@dataclasses.dataclass(frozen=True)
class World:
    """The tables that stand for the trainings, by the profile that a stage names."""

    tables: Mapping[str, Table]
    files: Mapping[str, Path]
    """Prepared files without images: what a stage reads of them is the labels of val."""
    score: Score = "best"
    """What a search is told: the best AUROC so far as the loop does, the newest, or the best on a
    quarter of val."""

    def reports(self, profile: str, config: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what the training of a configuration would report, tick by tick."""
        table = self.tables[profile]
        row = table.row(config)
        small = self.score == "small" and profile == "reduced"
        val = (table.small if small else table.val)[row].astype(float)
        raw = self.score == "raw" and profile == "reduced"
        scores = val if raw else np.maximum.accumulate(val)
        seconds = table.grid.num_epochs(config) * EPOCH_SECONDS[profile] / TICKS
        return [
            {
                "tick": tick,
                "score": float(scores[tick - 1]),
                "best_tick": int(val[:tick].argmax()) + 1,
                "val/auroc": float(val[tick - 1]),
                "train/auroc": float(table.train[row]),
                "seconds": seconds,
                "diverged": float(val[tick - 1] == 0),
                "finished": float(tick == TICKS or val[tick - 1] == 0),
            }
            for tick in range(1, TICKS + 1)
        ]

    def test(self, trial: Trial) -> float:
        """Return the AUROC on test of a trial on all data, at the tick that scored best on val."""
        table = self.tables["full"]
        return float(table.test[table.row(trial.config)])


def world(tables: Mapping[str, Table], folder: Path, *, score: Score = "best") -> World:
    """Lay out the prepared files of a world in a folder."""
    files = {}
    for profile, table in tables.items():
        path = folder / f"{profile}-{score}.h5"
        quarter = score == "small" and profile == "reduced"
        count = table.profile.num_val // (4 if quarter else 1)
        labels = {"train": np.arange(2), "val": np.arange(count) % 2, "test": np.arange(2)}
        ids = {name: [str(row) for row in range(len(found))] for name, found in labels.items()}
        if not path.exists():
            hdf5.create(path, size=1, labels=labels, ids=ids, attributes=DESCRIBED)
        files[profile] = path
    return World(tables, files, score)


DESCRIBED = {"fingerprint": "", "geometry": "resize", "resample": "bicubic", "settings": "{}"}

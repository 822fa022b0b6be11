"""A plan as people read it: what ``plan.py`` returns, as tables and sentences."""

from aiornot.storage import spoken
from aiornot.tuning.plan import TIMES, Row
from aiornot.tuning.tables import Table, duration

COLUMNS = (
    *("stage", "trials", "per rung", "data", "epochs"),
    *("wall time", "at worst", "device time", "at worst", "checkpoints"),
)
PACE_COLUMNS = (
    *("model", "data", "threads", "train images/s", "val images/s", "start", "checkpoint"),
)

MEANING = """\
expected: by chance ASHA lets as many trials pass a rung, and each model is drawn as often
at worst: no trial is stopped, and all have the slowest model and the most epochs
augmentation that may be on was on; device time is what --gpu-hours counts"""

BUSY = 0.5
"""Load per core, before anything was measured, above which the work of others is told."""

LEFT_OUT = (
    "not in it: starting Ray, fetching weights, compiling on a GPU, storage that is not a local "
    "disk, other work, that of Ray included; several workers are taken to be as many times as fast "
    "as one"
)


def of_plan(found: Row) -> list[Table]:
    """Return the tables of a whole plan; sentences stand below the last."""
    gpus, cpus = found["num_gpus"], found["num_cpus"]
    title = f"{found['chain']}: what is left, on {f'{gpus} GPU' if gpus else f'{cpus} core'}"
    rows = [[*_what(row), *_how_much(row)] for row in found["stages"]]
    sums = ["total", str(found["total"]["trials_left"]), "", "", "", *_how_much(found["total"])]
    stages = Table(title + "s" * ((gpus or cpus) > 1), COLUMNS, [*rows, sums], caption=MEANING)
    below = [_room(found), *(sentence(*pair) for pair in found["limits"].items()), LEFT_OUT]
    if not found["paces"]:
        return [stages._replace(below=below)]
    if (load := found["load_per_core"]) > BUSY:
        below.append(f"this machine was busy when it was measured: load {load:.1f} per core")
    measured = Table("measured", PACE_COLUMNS, [_pace(row) for row in found["paces"]], below=below)
    return [stages, measured]


def _what(row: Row) -> list[str]:
    begun = row["trials_left"] < row["trials"]
    mean, most = row["mean_epochs"], row["most_epochs"]
    return [
        row["stage"],
        f"{row['trials_left']} of {row['trials']}" if begun else str(row["trials"]),
        " > ".join(map(str, row["per_rung"])),
        f"{row['data']}, {row['num_train']} x {row['size']} px",
        f"{mean:g}" if mean == most else f"{mean:g}, at most {most}",
    ]


def _how_much(row: Row) -> list[str]:
    return [*(duration(row[key]) for key in TIMES), spoken(row["most_bytes"])]


def _pace(row: Row) -> list[str]:
    stem = f", stem stride {row['stem_stride']}" if row["stem_stride"] else ""
    return [
        row["model"] + stem,
        row["data"],
        str(row["num_threads"]),
        f"{row['train_images_per_second']:.3g}",
        f"{row['val_images_per_second']:.3g}",
        f"{row['start_seconds']:.1f} s",
        f"{spoken(row['checkpoint_bytes'])} in {row['checkpoint_seconds']:.1f} s",
    ]


def _room(found: Row) -> str:
    most, free = found["total"]["most_bytes"], found["free_bytes"]
    text = f"checkpoints: {spoken(most)} at most"
    if free is None:
        return f"{text}; how much is free in {found['storage']} is not known"
    if most > free:
        return f"{text}, but only {spoken(free)} are free for {found['storage']}: make room"
    return f"{text}; {spoken(free)} are free for {found['storage']}"


def sentence(option: str, found: Row) -> str:
    """Return what a limit leaves for each stage, see ``plan.within``."""
    parts = [
        f"{duration(one['left_seconds'])} for {one['stage']}, {_enough(one)}"
        for one in found["searches"]
    ]
    if found["then"]:
        left, need = duration(found["then_left_seconds"]), duration(found["then_seconds"])
        verdict = "they fit" if found["fits"] else "they do not fit, and nothing cuts them short"
        parts.append(f"{left} for {' and '.join(found['then'])}, which need {need}: {verdict}")
    hours = f"{found['limit_seconds'] / 3600:g}"
    return f"{option} {hours} leaves {'; '.join(parts) or 'nothing to be done'}"


def _enough(one: Row) -> str:
    if one["trials"] == one["trials_left"]:
        return "enough"
    return f"about {one['trials']} of its {one['trials_left']} trials"

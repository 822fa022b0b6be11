"""What the figures of an audit mean: whether a detector could cheat, by what, and how to mend it.

The last line of ``aiornot audit SOURCE`` on stderr, and the first of its page.
"""

from collections.abc import Mapping
from typing import Any, Literal

from aiornot.data.hdf5 import CLASSES
from aiornot.data.leak import FEATURES, LEAK_AUROC, MIN_ROWS, Score

Finding = Literal["leak", "undecided", "none"]

_IN_PIXELS = {feature.name for feature in FEATURES if feature.in_pixels}

_TOPICS = {
    "format": "compression",
    "bytes per pixel": "compression",
    "JPEG quality": "compression",
    "JPEG tables": "compression",
    "JPEG subsampling": "compression",
    "width": "size",
    "height": "size",
    "aspect": "size",
    "mode": "mode",
    "EXIF": "origin",
    "ICC profile": "origin",
}

_ADVICE = {
    "compression": (
        "Balance the classes by format and JPEG quality: leave out or collect images until each "
        "format holds both classes in like shares. Re-encoding everything does not mend it: the "
        "traces of JPEG survive a conversion to PNG.",
        "Degrade images of both classes at random while training (JPEG, blur, rescaling), so that "
        "the compression of a file stops being a clue.",
    ),
    "size": (
        "Prepare with --geometry crop and a --size that fits into nearly every image: a resize "
        "leaves its own trace in those images that needed one, a crop leaves none.",
        "Balance the classes by native size.",
    ),
    "mode": (
        "Look at the images of the rarer modes (grey, transparent, palette) and leave out those "
        "that only one class has.",
    ),
    "origin": (
        "EXIF and colour profiles do not reach the pixels, so that no detector trained here reads "
        "them, but they say that the classes come from different places: look for what else "
        "differs between these.",
    ),
}


def verdict(metadata: Score, features: Mapping[str, Score]) -> dict[str, Any]:
    """Judge the probes.

    Args:
        metadata: Of all features together.
        features: Of each alone, by its name.

    Returns:
        ``finding`` (leak, undecided or none), ``text``, the features ``by`` which the classes are
        told apart, and what to do to ``mend`` it.
    """
    found = _finding(metadata)
    ranked = sorted(features, key=lambda name: -(features[name].auroc or 0))
    guilty = [name for name in ranked if features[name].leaks()] if found == "leak" else []
    topics = dict.fromkeys(_TOPICS[name] for name in guilty)
    # Told by a combination only: any of its parts may be to blame.
    topics = topics or (dict.fromkeys(_ADVICE) if found == "leak" else {})
    return {
        "finding": found,
        "text": _text(found, metadata, guilty),
        "by": guilty,
        "mend": [advice for topic in topics for advice in _ADVICE[topic]],
    }


def _finding(metadata: Score) -> Finding:
    if metadata.auroc is None:
        return "undecided"
    if metadata.leaks():
        return "leak"
    return "undecided" if metadata.auroc > LEAK_AUROC else "none"


def _text(found: Finding, metadata: Score, guilty: list[str]) -> str:
    if metadata.auroc is None:
        return (
            f"Too few images to tell whether metadata leaks: a probe needs {MIN_ROWS} readable "
            "images of each class, and not all of a class copies of one"
        )
    figure = (
        f"AUROC {metadata.auroc:.3f} (95 % interval {metadata.low:.3f} to {metadata.high:.3f}; "
        f"a leak is above {LEAK_AUROC:g})"
    )
    if found == "leak":
        by = f"by {', '.join(guilty)}" if guilty else "by a combination of features"
        lead = "A detector could cheat"
        if guilty and not _IN_PIXELS.intersection(guilty):
            lead = "The classes come from different places, though no detector can see it"
        return f"{lead}: metadata alone tells the classes apart, {by}: {figure}"
    if found == "undecided":
        return f"Too few images to tell whether metadata leaks: {figure}"
    return f"No leak found in the metadata: {figure}"


def how(
    feature: str,
    categories: Mapping[str, list[dict[str, Any]]],
    numbers: Mapping[str, Mapping[str, Any]],
) -> str:
    """Say in words how the classes differ in a feature.

    Args:
        feature: Its name.
        categories: As ``census.categories`` returns them.
        numbers: As ``census.numbers`` returns them.
    """
    if feature in categories:
        return _how_category(categories[feature])
    name = "JPEG quality" if feature == "JPEG tables" else feature  # which is read from them
    if name not in numbers:
        return "no file has it"
    medians = numbers[name]["quartiles"]
    parts = [f"{word} {_short(medians[word])}" for word in CLASSES]
    return f"median{' quality' * (name != feature)}: {', '.join(parts)}"


def _short(quartiles: list[float] | None) -> str:
    return "none" if quartiles is None else f"{quartiles[1]:.4g}"


def _how_category(table: list[dict[str, Any]]) -> str:
    """Name the value whose shares of the classes differ most."""
    if len(table) == 1:
        return f"all {table[0]['value']}"
    totals = {word: sum(row[word] for row in table) or 1 for word in CLASSES}
    shares = [{word: row[word] / totals[word] for word in CLASSES} for row in table]
    gaps = [abs(share[CLASSES[0]] - share[CLASSES[1]]) for share in shares]
    widest = gaps.index(max(gaps))
    parts = [f"{shares[widest][word]:.0%} of {word}" for word in CLASSES]
    return f"{table[widest]['value']}: {', '.join(parts)}"

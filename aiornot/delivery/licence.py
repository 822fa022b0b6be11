"""What the licence of the weights that training began with lets a user do with a bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

OPEN = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
"""Licences in timm's list that allow any use."""

NON_COMMERCIAL = ("-nc-", "noncommercial", "amlr", "ascl", "seer", "sapiens", "cvnets")
"""Parts of names that bar, or for some of their weights bar, commercial use."""


def of_weights(config: Mapping[str, Any], timm_config: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the licence as timm names it, None where it is unknown, and a sentence on it.

    Args:
        config: Of the training.
        timm_config: ``config.json`` of the bundle.
    """
    if config["weights"]:
        name = Path(config["weights"]).name
        return None, (
            f"Training began with the file `{name}`, whose licence is not known here. Look it up "
            "before you pass these weights on."
        )
    if not config["pretrained"]:
        return None, (
            "Training began with random weights, so that no one else's licence holds for them. "
            "Whoever trained them chooses one."
        )
    found = timm_config["pretrained_cfg"].get("license")
    if found in (None, "unknown"):
        return None, (
            f"timm does not say which licence holds for the weights of `{config['model']}`. Look "
            "it up before you pass these weights on."
        )
    return found, f"Training began with timm's `{config['model']}` ({found}). {_means(found)}"


def _means(name: str) -> str:
    if name in OPEN:
        return "It allows commercial use; keep its notice."
    if any(part in name for part in NON_COMMERCIAL):
        return "**Not for commercial use**, or only in part: read the licence first."
    return "**A licence of its own, with conditions**: read it first."

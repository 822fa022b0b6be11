"""Whether W&B is used, and whether it would find a key, told without importing it.

``aiornot tune --wandb off`` is refused or understood here, before anything heavy is imported.
"""

import importlib.util
import netrc
import os
from urllib.parse import urlsplit

from aiornot.config import InputError


def resolve_mode(mode: str) -> str:
    """Return ``online``, ``offline`` or ``off``.

    Raises:
        InputError: The mode is neither auto nor off.
    """
    if mode not in ("auto", "off"):
        raise InputError(f"--wandb {mode}: use auto or off; WANDB_MODE chooses online or offline")
    if mode == "off" or importlib.util.find_spec("wandb") is None:
        return "off"
    chosen = os.environ.get("WANDB_MODE", "")
    if chosen in ("offline", "online"):
        return chosen
    if chosen in ("disabled", "dryrun"):
        return "off" if chosen == "disabled" else "offline"
    return "online" if has_account() else "offline"


def has_account() -> bool:
    """Tell whether W&B would find a key; which one it is stays where it is."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False

"""What was asked of machines and a cluster, and what they said: data, and no opinion.

``ray_doctor.py`` and ``aiornot doctor`` make it; ``doctor.py`` says what is wrong.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A machine and what it said; ``error`` where it said nothing."""

    name: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What Ray believes it has; nothing without a cluster."""
    skew: float | None = None
    """Seconds by which its clock is ahead of the driver's."""
    skew_within: float = 0.0
    """By how much that may be wrong."""
    storage: str = ""
    """What went wrong when it wrote a probe; nothing if the driver could read it."""
    data: Mapping[str, int] | str | None = None
    """The prepared files it sees, by size, or what is wrong; None if it was not asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is known of a Ray as a whole."""

    address: str
    dashboard: str
    """host:port, empty where there is none."""
    refuses: bool | None
    """Whether the dashboard refuses who brings no token; None where it cannot be asked."""
    state_api: str
    """What is wrong with it, nothing where it answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """All that was asked."""

    nodes: Sequence[Node]
    cluster: Cluster | None
    storage: str
    data: str | None
    trouble: str = ""
    """Why there is no cluster, where one is named."""
    beside: str = ""
    """Address of a Ray that runs on this machine and is not named, so that nobody uses it."""
    wandb: str
    """online, offline or off."""
    has_account: bool

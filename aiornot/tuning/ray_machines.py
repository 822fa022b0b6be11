"""The machines of a cluster: those that are there, and those that its autoscaler may raise.

``aiornot tune fast`` sizes its trials by them. A cluster that has scaled to zero has no machine and
no GPU yet; trials are to ask for them all the same, or none would ever come.
"""

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aiornot import storage
from aiornot.config import InputError
from aiornot.ray_session import HEAD
from aiornot.tuning.outlook import Machines

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where ``ray up`` leaves the cluster file on the head."""

ANSWER_SECONDS = 60.0
"""For a machine to say whether it sees a file; who says nothing is not waited for."""

Node = tuple[int, int]
"""Cores and GPUs of a machine."""


def machines(num_workers: int) -> Machines:
    """Return what the cluster has or may have, for runs of so many workers."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [_size(node["Resources"]) for node in alive]
    workers = [node for node in alive if HEAD not in node["Resources"]]
    nodes += coming(_cluster_file(), [_type(node) for node in workers])
    return Machines(
        num_gpus=sum(gpus for _, gpus in nodes),
        num_cpus=max(1, sum(cpus for cpus, _ in nodes)),
        num_workers=num_workers,
        nodes=tuple(nodes),
    )


def _size(resources: Mapping[str, float]) -> Node:
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def _type(node: Mapping[str, Any]) -> str:
    """Return the node type that the autoscaler started it as, nothing where it did not."""
    return str(node.get("Labels", {}).get("ray.io/node-group", ""))


def _cluster_file() -> Mapping[str, Any]:
    """Return the cluster file where this process is on the head, nothing elsewhere."""
    here = ray.get_runtime_context().get_node_id()
    own = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    path = BOOTSTRAP.expanduser()
    if HEAD not in own or not path.exists():
        return {}
    return yaml.safe_load(path.read_text()) or {}


def check_shared(root: str) -> None:
    """Refuse a local folder for runs that is another one on each machine.

    Checkpoints would lie on the machine that trained, and be lost with it; and the last stage would
    end without its model.

    Raises:
        InputError: A machine of this cluster does not see what is written there.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    others = [node for node in others if any(_size(node["Resources"]))]
    if storage.is_remote(root) or not others:
        return
    probe = storage.join(root, f".probe-{uuid.uuid4().hex[:8]}")
    storage.write_text(probe, "")
    try:
        blind = [node["NodeManagerAddress"] for node in others if not _sees(node, probe)]
    finally:
        storage.delete(probe)
    if blind:
        raise InputError(
            f"--storage {root}: {', '.join(blind)} of this cluster does not see that folder; give "
            "one that all machines share, or s3://BUCKET/PATH"
        )


def _sees(node: Mapping[str, Any], path: str) -> bool:
    # Told by value: a process that imports this room takes seconds to begin.
    def exists(path: str) -> bool:
        return os.path.exists(path)

    placed = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    asked = ray.remote(exists).options(num_cpus=0, scheduling_strategy=placed).remote(path)
    try:
        return bool(ray.get(asked, timeout=ANSWER_SECONDS))
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError):
        return True  # it may have died just now; that is no reason to refuse


def coming(file: Mapping[str, Any], alive: Sequence[str]) -> list[Node]:
    """Return the machines that the autoscaler may add to those that live.

    Args:
        file: A cluster file as ``ray up`` has completed it.
        alive: The node type of each worker that lives.
    """
    room = max(0, int(file.get("max_workers", 0)) - len(alive))
    found = sorted(_missing(file, alive), key=lambda node: node[1], reverse=True)
    return found[:room]


def _missing(file: Mapping[str, Any], alive: Sequence[str]) -> Iterator[Node]:
    for kind, told in file.get("available_node_types", {}).items():
        # Of provider local nothing is known but what is there.
        if kind != file.get("head_node_type") and told.get("resources"):
            missing = int(told.get("max_workers", 0)) - list(alive).count(kind)
            yield from [_size(told["resources"])] * max(0, missing)

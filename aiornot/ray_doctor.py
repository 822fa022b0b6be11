"""Ask every node of a Ray what it is; whoever does not answer in time is told, not waited for.

``aiornot doctor`` does, where there is a cluster. ``doctor.py`` says what the answers mean.
"""

import dataclasses
import http.client
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aiornot import machine, ray_session, storage
from aiornot.config import InputError
from aiornot.survey import Cluster, Node

CLOCK_SECONDS = 5.0
"""For a clock that is asked a second time: its process runs already."""

_QUESTIONS = 4
"""How often all nodes are asked, each time for so many seconds at most, and the cluster itself."""

_HTTP_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What the nodes are asked."""

    storage: str
    """Absolute, or remote: where each writes a small file."""
    data: str | None
    """Where each looks for prepared files; None is nowhere."""
    seconds: float = 60.0
    """How long an answer may take. The first takes a new process, torch included."""


@ray.remote(num_cpus=0, max_restarts=0)
class _Probe:
    """A process on one node. Each method is one question."""

    def facts(self, ray_folder: str) -> machine.Facts:
        from aiornot.data import copies

        # Ray hides the GPUs from who asks for none.
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            del os.environ["CUDA_VISIBLE_DEVICES"]
        return machine.facts(ray_folder=ray_folder, cache=copies.cache_folder())

    def clock(self) -> float:
        return machine.clock()

    def write(self, path: str, text: str) -> tuple[str, int]:
        storage.PATIENCE = 0.0  # of this process alone: what is away now is a finding
        missing = machine.num_missing(path.rpartition("/")[0])
        return machine.write_probe(path, text), missing

    def remove(self, path: str, folders: int) -> None:
        machine.remove_probe(path, folders)

    def prepared(self, folder: str) -> dict[str, int] | str:
        return machine.prepared(folder)


def survey(asked: Asked) -> tuple[list[Node], Cluster]:
    """Ask a cluster and its nodes.

    Raises:
        InputError: It cannot be reached, or not in time.
    """
    steps: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            with ray_session.connected():
                steps.put("connected")
                steps.put(_survey(asked))
        except BaseException as error:
            steps.put(error)

    # A thread, since neither a connection to a head that hangs nor its answers have a time limit.
    threading.Thread(target=ask, daemon=True).start()
    for seconds in (asked.seconds, _QUESTIONS * asked.seconds):
        try:
            step = steps.get(timeout=seconds)
        except queue.Empty:
            raise InputError(
                f"the Ray at {os.environ.get('RAY_ADDRESS')} does not answer within {seconds:.0f} "
                "s; look at its head, or unset RAY_ADDRESS to ask this machine alone"
            ) from None
        if isinstance(step, BaseException):
            raise step
    nodes, cluster = step
    return nodes, cluster


def _survey(asked: Asked) -> tuple[list[Node], Cluster]:
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    names = _names(alive)
    probes = {
        node_id: _Probe.options(  # type: ignore[attr-defined]
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote()
        for node_id in alive
    }
    try:
        folder = str(Path(_context().address_info["session_dir"]).parent)
        found = _ask(probes, asked.seconds, lambda _, probe: probe.facts.remote(folder))
        answered = {node_id: probes[node_id] for node_id in probes if found[node_id].error is None}
        skews = {node_id: _skew(probe) for node_id, probe in answered.items()}
        written = _storage(answered, asked)
        seen = _data(answered, asked)
    finally:
        for probe in probes.values():
            ray.kill(probe)
    nodes = [
        Node(
            name=names[node_id],
            facts=found[node_id].value or {},
            error=found[node_id].error or "",
            resources=alive[node_id]["Resources"],
            skew=(skews.get(node_id) or (None, 0.0))[0],
            skew_within=(skews.get(node_id) or (None, 0.0))[1],
            storage=written.get(node_id, ""),
            data=seen.get(node_id),
        )
        for node_id in names
    ]
    return nodes, _cluster()


def _names(alive: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a name for each node, the head first: its address, and more where that is not one."""
    order = sorted(alive, key=lambda n: (not _is_head(alive[n]), alive[n]["NodeManagerAddress"], n))
    addresses = [alive[node_id]["NodeManagerAddress"] for node_id in order]
    names = {}
    for node_id, address in zip(order, addresses, strict=True):
        name = f"{address}/{node_id[:4]}" if addresses.count(address) > 1 else address
        names[node_id] = f"{name} (head)" if _is_head(alive[node_id]) else name
    return names


def _is_head(node: Mapping[str, Any]) -> bool:
    return ray_session.HEAD in node["Resources"]


@dataclasses.dataclass(frozen=True)
class _Answer:
    value: Any = None
    error: str | None = None


def _ask(
    probes: Mapping[str, Any], seconds: float, question: Callable[[str, Any], ray.ObjectRef]
) -> dict[str, _Answer]:
    """Ask all nodes at once; who has not answered in time has an error instead."""
    asked = {question(node_id, probe): node_id for node_id, probe in probes.items()}
    if not asked:
        return {}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    answers = {asked[ref]: _Answer(error=f"no answer within {seconds:.0f} s") for ref in late}
    for ref in ready:
        try:
            answers[asked[ref]] = _Answer(value=ray.get(ref))
        except Exception as error:  # of a process that died, or could not import us
            answers[asked[ref]] = _Answer(error=_what_happened(error))
    return answers


def _what_happened(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
    return told or type(error).__name__


def _skew(probe: Any) -> tuple[float, float] | None:
    """Return by how many seconds a clock is ahead of ours, and within what; the best of three."""
    found = []
    for _ in range(3):
        before = time.time()
        try:
            there = ray.get(probe.clock.remote(), timeout=CLOCK_SECONDS)
        except Exception:
            break
        after = time.time()
        found.append((there - (before + after) / 2, (after - before) / 2))
    return min(found, key=lambda pair: pair[1], default=None)


def _storage(probes: Mapping[str, Any], asked: Asked) -> dict[str, str]:
    """Have every node write a small file, read each here, and have all removed again."""
    token = uuid.uuid4().hex
    paths = {
        node_id: storage.join(asked.storage, f".aiornot-doctor-{token[:8]}-{number}")
        for number, node_id in enumerate(probes)
    }
    wrote = _ask(
        probes, asked.seconds, lambda node_id, probe: probe.write.remote(paths[node_id], token)
    )
    found = {}
    for node_id, answer in wrote.items():
        failure, _ = answer.value or ("", 0)
        found[node_id] = answer.error or failure
        if not found[node_id] and machine.read_probe(paths[node_id]) != token:
            found[node_id] = "what this node writes the driver does not see: it is not shared"
    for with_folders in (False, True):  # whoever made the folder cannot remove it before the last
        for node_id, answer in wrote.items():
            if answer.error is None:
                folders = answer.value[1] if with_folders else 0
                removed = probes[node_id].remove.remote(paths[node_id], folders)
                ray.wait([removed], timeout=CLOCK_SECONDS)
    return found


def _data(probes: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    if asked.data is None:
        return {}
    seen = _ask(probes, asked.seconds, lambda _, probe: probe.prepared.remote(asked.data))
    return {node_id: answer.error or answer.value for node_id, answer in seen.items()}


def _context() -> Any:
    """Return what ``ray.init`` gave whoever connected."""
    return ray.init(ignore_reinit_error=True, logging_level=logging.ERROR)


def _cluster() -> Cluster:
    dashboard = (_context().dashboard_url or "").removeprefix("http://")
    return Cluster(
        address=ray.get_runtime_context().gcs_address,
        dashboard=dashboard,
        refuses=_refuses(dashboard),
        state_api=ray_session.state_api_trouble() or "",
    )


def _refuses(dashboard: str) -> bool | None:
    """Ask the dashboard without a token, as a stranger would; None where it cannot be reached."""
    if not dashboard:
        return None
    connection = http.client.HTTPConnection(dashboard, timeout=_HTTP_SECONDS)
    try:
        connection.request("GET", "/api/jobs/")
        return connection.getresponse().status in (401, 403)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()

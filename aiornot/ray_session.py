"""One way to reach Ray, for preparing and for tuning: a local Ray, or the cluster one is on.

Nothing is exposed: ``ray.init`` switches token authentication on by itself where RAY_AUTH_MODE is
unset (setting it here, after the import of ray, would come too late), and the dashboard, where
there is one, listens on loopback only.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_nodes

from aiornot import machine
from aiornot.config import InputError, WorkError

QUIET = {
    # Ray's own tables and warnings would bury the lines that this program prints.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Polled for every report of a Ray Train run: 2 s by default (research: 6.3 s for 3 reports).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # 60 s by default, and after three times the run has failed: too short for the machine that the
    # autoscaler starts, or for a place that another run leaves only when it has ended.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
    "RAY_USAGE_STATS_ENABLED": "0",
}

OF_THE_CLUSTER = (
    # What `ray up` says that a node has: of the head, no core where it takes no trials.
    "RAY_OVERRIDE_RESOURCES",
    "RAY_OVERRIDE_LABELS",
    # What a job was submitted with: its working directory lies in the cluster's GCS.
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
)
"""A job on the head of a cluster inherits these, and a Ray that it starts must not."""

HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head alone."""

_STATE_SECONDS = 15

_KNOCK_SECONDS = 1.0

_log = logging.getLogger(__name__)


@contextmanager
def connected(
    *, num_cpus: int | None = None, state_api: bool = False, alone: bool = False
) -> Iterator[None]:
    """Connect to the cluster in RAY_ADDRESS, or start a Ray on this machine for the while.

    A Ray that the caller already started is used and left running.

    Args:
        num_cpus: Cores of a Ray started here, all of the machine by default.
        state_api: Ray's State API will be needed. A Ray started here gets the dashboard that has
            it, on loopback; another one is asked, now and not when it would hang.
        alone: Start a Ray on this machine even where there is a cluster.

    Raises:
        InputError: There is no cluster at RAY_ADDRESS, or it lacks the State API.
        WorkError: A Ray of one's own did not start in time.
    """
    if ray.is_initialized():
        close_token()
        if state_api:
            _check_state_api()
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options = {}
    if alone or not os.environ.get("RAY_ADDRESS"):
        options = _local_options(num_cpus) | {"include_dashboard": state_api}
        for name in OF_THE_CLUSTER:
            os.environ.pop(name, None)
        if not alone and (found := running_here()):
            _log.warning(
                "a Ray runs on this machine at %s and is left alone; RAY_ADDRESS=auto uses it",
                found,
            )
    try:
        ray.init(
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="aiornot",
            runtime_env={"env_vars": QUIET},
            **options,
        )
    except ConnectionError as error:
        address = os.environ.get("RAY_ADDRESS")
        raise InputError(
            f"RAY_ADDRESS={address}: {error}; unset it to use this machine alone"
        ) from None
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no class for it
            raise
        raise WorkError(
            "Ray did not start in time, as on a machine that is busy with other work; run the same "
            "command again"
        ) from None
    try:
        close_token()
        if state_api:
            _check_state_api()
        yield
    finally:
        ray.shutdown()


def close_token() -> None:
    """Take the token of this user from the others' eyes: Ray writes a new one as the umask says.

    Whoever reads it may run code as this user.
    """
    path = machine.token_path()
    with suppress(OSError):  # there is none, or it is another user's to close
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _local_options(num_cpus: int | None) -> dict[str, Any]:
    # The address said, or ray.init would join whatever cluster was started on this machine.
    return {"address": "local", "dashboard_host": "127.0.0.1", "num_cpus": num_cpus}


def running_here() -> str | None:
    """Return the address of the Ray that ``ray start`` left running on this machine, if any."""
    home = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    note = Path(home, "ray", "ray_current_cluster")
    try:
        address = note.read_text().strip()
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS):
            return address
    except (OSError, ValueError):  # none was, or it is gone
        return None


def beside_me() -> NodeAffinitySchedulingStrategy:
    """Return how an actor is placed that must live as long as its maker, such as a queue to read.

    What asks for no resources Ray puts on any node, and it is lost with that.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _check_state_api() -> None:
    """Refuse a Ray that cannot clean up after a Ray Train run inside a trial that died."""
    if reason := state_api_trouble():
        raise InputError(
            "trainer='ray_train' needs Ray's State API, and this Ray has none: start it with its "
            f"dashboard (pip install 'ray[default]'; it may stay on 127.0.0.1) ({reason})"
        )


def state_api_trouble() -> str | None:
    """Return why the State API of the Ray that we are connected to does not answer, if so."""
    own = {node["NodeID"] for node in ray.nodes()}
    try:
        # The address said, or it would refuse to choose where another Ray runs on this machine.
        address = ray.get_runtime_context().gcs_address
        found = list_nodes(address=address, timeout=_STATE_SECONDS)
        # Without a dashboard of its own, it may be the other Ray's that answers.
        if not any(node.node_id in own for node in found):
            raise ConnectionError("the dashboard that answers is another Ray's")
    # Without a dashboard it raises ServerUnavailable, RayStateApiException, ValueError and more.
    except Exception as error:
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None

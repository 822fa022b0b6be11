"""What somebody does from a laptop: ``ray up``, a tunnel, jobs, ``ray down``."""

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from lab import Host, Lab

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

T = TypeVar("T")

NETWORK = "10.77.0.0/24"
HOSTS = {"head": "10.77.0.10", "w1": "10.77.0.11", "w2": "10.77.0.12", "laptop": "10.77.0.1"}
API = "http://127.0.0.1:8265"

TOKEN = '-H "Authorization: Bearer $(cat ~/.ray/auth_token)"'
"""What curl is told, in a shell of whoever may ask."""

STORE_BYTES = 150_000_000


def wait(what: str, ask: Callable[[], T], seconds: float, *, every: float = 1.0) -> T:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(every)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def fill_in(text: str) -> dict[str, Any]:
    """Return a cluster file of provider ``local`` for the hosts of the lab.

    Addresses and key are filled in, as a user would; hosts that share two cores get a core each
    and a small object store. All else is the file's.
    """
    config: dict[str, Any] = yaml.safe_load(text)
    workers = [HOSTS["w1"], HOSTS["w2"]]
    config["provider"] |= {"head_ip": HOSTS["head"], "worker_ips": workers}
    config["auth"] |= {"ssh_user": "root", "ssh_private_key": "~/.ssh/id"}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[key] = [_small(command) for command in config[key]]
    return config


def _small(command: str) -> str:
    small = f"ray start --object-store-memory={STORE_BYTES} "
    if "--num-cpus" not in command:
        small += "--num-cpus=1 "
    return command.replace("ray start ", small)


def stamp() -> str:
    """Return what ``cluster/node_setup.sh`` leaves where it has installed everything.

    The hosts of the lab see the environment of the tests, and have no network to install from.
    """
    names = ("pyproject.toml", "constraints.txt", "cluster/aws.txt", "cluster/node_setup.sh")
    texts = b"".join((REPOSITORY / name).read_bytes() for name in names)
    return hashlib.sha256(texts + b"ray,wandb\n").hexdigest() + "\n"


def open_lab(folder: Path, network: str, hosts: Mapping[str, str], **profile: str) -> Lab:
    """Return a lab whose hosts see the environment of the tests, and have ``profile`` besides."""
    environment = Path(sys.prefix)
    profile = {
        "PATH": f"{environment}/bin:$PATH",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "AIORNOT_VENV": str(environment),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "WANDB_MODE": "offline",
        **profile,
    }
    files = {environment / ".aiornot-node": stamp()}
    binds = [environment, Path(sys.base_prefix), REPOSITORY]
    return Lab(folder, network, hosts, profile=profile, files=files, binds=binds)


def listed(host: Host, what: str) -> list[dict[str, Any]]:
    """Return what Ray's State API lists on a head; nothing where it does not answer.

    Not by ``ray list``, which needs ten seconds on a busy machine.
    """
    url = f"{API}/api/v0/{what}?detail=0&limit=1000"
    answer = host.run(f"curl -s -m 10 {TOKEN} '{url}'", check=False).stdout
    try:
        found: list[dict[str, Any]] = json.loads(answer)["data"]["result"]["result"]
    except (ValueError, KeyError, TypeError):
        return []
    return found


class Launcher:
    """A laptop and the cluster that it starts.

    Args:
        lab: With a host named ``laptop``, and one named ``head`` once that is up.
        project: Folder that jobs take along as their working directory.
    """

    def __init__(self, lab: Lab, project: Path) -> None:
        self.lab = lab
        self.laptop = lab["laptop"]
        self._tunnel: subprocess.Popen[str] | None = None
        staged = lab.shared / "staged"
        subprocess.run(["cp", "-r", str(project), str(staged)], check=True)
        (staged / "id").write_text(lab.key.read_text())
        self.laptop.run(
            "mkdir -p ~/.ssh; install -m 600 /shared/staged/id ~/.ssh/id; "
            "rm /shared/staged/id; mv /shared/staged ~/project; "
            "ray get-auth-token --generate > /dev/null"
        )

    @property
    def head(self) -> Host:
        return self.lab["head"]

    def write_config(self, config: Mapping[str, Any]) -> None:
        staged = self.lab.shared / "cluster.yaml"
        staged.write_text(yaml.safe_dump(dict(config)))
        self.laptop.run("mv /shared/cluster.yaml ~")

    def up(self) -> None:
        # From the repository's root: the file names what is copied relative to that.
        self.laptop.run(f"cd {REPOSITORY}; ray up -y ~/cluster.yaml --no-config-cache", timeout=600)

    def down(self) -> None:
        self.close_tunnel()
        self.laptop.run(f"cd {REPOSITORY}; ray down -y ~/cluster.yaml", timeout=300)

    def alive(self) -> int:
        """Return how many nodes of the cluster live, the head among them."""
        return sum(node["state"] == "ALIVE" for node in listed(self.head, "nodes"))

    def open_tunnel(self) -> None:
        self._tunnel = self.laptop.start(f"cd {REPOSITORY}; exec ray dashboard ~/cluster.yaml")
        wait("the tunnel", lambda: "ray_version" in self.ask("/api/version"), 60)

    def close_tunnel(self) -> None:
        """The laptop is shut: nothing of its connection is left."""
        if self._tunnel is not None:
            self._tunnel.terminate()
            self._tunnel.wait(10)
            self._tunnel = None
            self.laptop.run("ps -eo pid=,args= | awk '/[s]sh .*8265/ {print $1}' | xargs -r kill")

    def ask(self, path: str) -> str:
        return self.laptop.run(f"curl -s -m 5 {TOKEN} {API}{path}", check=False).stdout

    def submit(self, name: str, command: str) -> None:
        self.laptop.run(
            f"cd ~/project; ray job submit --address {API} --no-wait --submission-id {name} "
            f"--working-dir . -- {command}"
        )

    def state(self, name: str) -> str:
        try:
            return str(json.loads(self.ask(f"/api/jobs/{name}"))["status"])
        except (ValueError, KeyError):
            return "UNKNOWN"

    def logs(self, name: str) -> str:
        return self.laptop.run(f"ray job logs --address {API} {name}", check=False).stdout

    def fail(self, name: str, seconds: float) -> str:
        """Wait for a job that must fail, and return its log."""
        wait(f"the failure of {name}", lambda: self.state(name) == "FAILED", seconds)
        return self.logs(name)

    def finish(self, name: str, seconds: float) -> str:
        """Wait for the end of a job and return its log; it must have succeeded."""
        ends = ("SUCCEEDED", "FAILED", "STOPPED")
        wait(f"the end of {name}", lambda: self.state(name) in ends, seconds, every=3)
        log = self.logs(name)
        assert self.state(name) == "SUCCEEDED", log[-8000:]
        return log

    def do(self, name: str, command: str, seconds: float = 300) -> str:
        self.submit(name, command)
        return self.finish(name, seconds)

    def on_head(self, command: str) -> str:
        return self.laptop.run(f"ray exec ~/cluster.yaml {shlex.quote(command)}").stdout

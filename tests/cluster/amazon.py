"""A region of AWS in the lab: an instance that runs is a host that is switched on."""

import contextlib
import json
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lab import Host
from launcher import HERE, REPOSITORY, STORE_BYTES, open_lab, wait

# The default network of an account: moto gives addresses of it, as AWS does.
NETWORK = "172.31.0.0/16"
LAPTOP = "172.31.255.1"
ENDPOINT = f"http://{LAPTOP}:5000"
BUCKET = "pictures"

SCALE = 15
"""By how much the time of the dead man's switch is shortened."""

# What the shell of an instance finds first while it runs its user data.
_STAND_INS = {
    "sleep": f'exec /bin/sleep "$(awk "BEGIN {{print $1 / {SCALE}}}")"',
    "shutdown": 'echo "$*" >> /run/shutdown',
}

Instance = dict[str, Any]


def fill_in(group: str, image: str) -> dict[str, Any]:
    """Return ``cluster.yaml`` for the lab.

    Filled in as a user would: the security group. Changed, because of what hosts are: root logs
    in, the laptop is on their network, there is an image of moto's and no GPU, and two workers of
    one core each share this machine's two; the object store is small, and idle workers go soon.
    """
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    config["auth"]["ssh_user"] = "root"
    config["provider"]["use_internal_ips"] = True
    config |= {"max_workers": 2, "idle_timeout_minutes": 0.5}
    types = config["available_node_types"]
    types["gpu"] |= {"resources": {"CPU": 1, "GPU": 0}, "max_workers": 2}
    for each in types.values():
        each["node_config"] |= {"SecurityGroupIds": [group], "ImageId": image}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        small = f"ray start --object-store-memory={STORE_BYTES} "
        config[key] = [command.replace("ray start ", small) for command in config[key]]
    return config


class Region:
    """EC2 whose instances are hosts of a lab, and S3; a context that leaves nothing behind.

    Every instance boots with an empty disk, lets its key pair in and runs its user data.
    """

    def __init__(self, folder: Path) -> None:
        profile = {
            "AWS_ENDPOINT_URL": ENDPOINT,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-west-2",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.lab = open_lab(folder, NETWORK, {"laptop": LAPTOP}, **profile)
        self.events: list[str] = []
        self._folder = self.lab.shared / "ec2"
        self._on: dict[str, Host] = {}
        """The hosts that are switched on, by the id of the instance."""
        self._over = threading.Event()
        self._follower = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Region":
        self.lab.__enter__()
        self._folder.mkdir()
        server = HERE / "amazon_server.py"
        arguments = shlex.join(["/shared/ec2", LAPTOP, "5000"])
        self.lab["laptop"].start(f"exec python {server} {arguments}")
        wait("EC2", lambda: (self._folder / "state.json").exists(), 60)
        self._follower.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._over.set()
        if self._follower.is_alive():
            self._follower.join(30)
        self.lab.__exit__(*why)

    @property
    def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._folder / "state.json").read_text())
        return found

    def running(self, node_type: str = "") -> list[Instance]:
        """Return the instances that cost something now, of one of the file's node types or all."""
        return [
            instance
            for instance in self._state["instances"]
            if instance["state"] in ("pending", "running")
            and (not node_type or instance["tags"].get("ray-user-node-type") == node_type)
        ]

    def requests(self) -> list[dict[str, Any]]:
        """Return what was asked of RunInstances so far."""
        path = self._folder / "requests.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    @contextlib.contextmanager
    def no_spot(self) -> Iterator[None]:
        """Have no spot capacity for a while."""
        (self._folder / "no_spot").touch()
        try:
            yield
        finally:
            (self._folder / "no_spot").unlink()

    def end(self, instance: Instance) -> None:
        """End an instance from outside: a reclaim, as its machine sees it."""
        self.call(f"ec2.terminate_instances(InstanceIds=['{instance['id']}'])")

    def call(self, code: str) -> str:
        """Run code with boto3's ``ec2`` and ``s3`` on the laptop; return what it prints."""
        head = "import boto3, json; ec2, s3 = boto3.client('ec2'), boto3.client('s3')\n"
        done = self.lab["laptop"].run(f"python -c {shlex.quote(head + code)} 2> /dev/null")
        return done.stdout

    def _follow(self) -> None:
        while not self._over.wait(0.3):
            wanted = {instance["id"]: instance for instance in self.running()}
            for name in list(self._on):
                if name not in wanted:
                    self._on.pop(name).power_off()
                    self.events.append(f"{name} off")
                elif self._ends_itself(self._on[name]):
                    self.events.append(f"{name} ends itself")
                    self.end(wanted[name])
            for name, instance in wanted.items():
                if name not in self._on:
                    self._on[name] = self._boot(instance)

    def _boot(self, instance: Instance) -> Host:
        is_head = instance["tags"].get("ray-node-type") == "head"
        number = len(self.events)
        host = self.lab.add("head" if is_head else f"node{number}", instance["address"])
        self.events.append(f"{instance['id']} on, {instance['market']}")
        host.power_on()
        key = self._state["keys"][instance["key"]].replace("\n", " ")
        host.run(f"echo {shlex.quote(key)} >> ~/.ssh/authorized_keys")
        for name, line in _STAND_INS.items():
            path = f"/opt/user-data/{name}"
            text = shlex.quote(f"#!/bin/bash\n{line}\n")
            host.run(f"mkdir -p /opt/user-data; echo {text} > {path}; chmod +x {path}")
        script = shlex.quote(instance["user_data"])
        host.run(f"echo {script} > /opt/user-data/script")
        host.start("PATH=/opt/user-data:$PATH exec bash /opt/user-data/script")
        return host

    def _ends_itself(self, host: Host) -> bool:
        return "now" in host.read("/run/shutdown")

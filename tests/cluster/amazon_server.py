"""An AWS for the lab: moto's EC2, IAM and S3, served on an address of the ``laptop``.

    python amazon_server.py FOLDER ADDRESS PORT

It writes what is there to ``FOLDER/state.json`` several times a second, for the lab to follow, and
every request for instances to ``FOLDER/requests.jsonl``. While ``FOLDER/no_spot`` is there, EC2 has
no spot capacity. It checks neither signatures nor policies.
"""

import base64
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import Instance, InstanceBackend
from moto.server import ThreadedMotoServer

REGION = "us-west-2"

ACCOUNT = "123456789012"
"""The one that moto has for whoever does not say."""


def main() -> None:
    folder, address, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    watch_requests(folder)
    ThreadedMotoServer(ip_address=address, port=port, verbose=False).start()
    while True:
        write_state(folder / "state.json")
        time.sleep(0.3)


def watch_requests(folder: Path) -> None:
    """Note what is asked of RunInstances, and refuse spot where there is none."""
    run_instances = InstanceBackend.run_instances
    writing = threading.Lock()

    def run(self: Any, image_id: str, count: int, *rest: Any, **options: Any) -> Any:
        market = options.get("instance_market_options") or "on-demand"
        refused = market == "spot" and (folder / "no_spot").exists()
        line = {"market": market, "type": options.get("instance_type"), "refused": refused}
        with writing, (folder / "requests.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if refused:
            raise EC2ClientError("InsufficientInstanceCapacity", "There is no Spot capacity.")
        return run_instances(self, image_id, count, *rest, **options)

    InstanceBackend.run_instances = run  # type: ignore[method-assign]


def write_state(path: Path) -> None:
    backend = ec2_backends[ACCOUNT][REGION]
    keys = {name: pair.public_key for name, pair in list(backend.key_pairs.items())}
    instances = [
        described(instance)
        for reservation in list(backend.reservations.values())
        for instance in reservation.instances
    ]
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps({"keys": keys, "instances": instances}))
    beside.rename(path)


def described(instance: Instance) -> dict[str, Any]:
    return {
        "id": instance.id,
        "address": instance.private_ip,
        "state": instance._state.name,
        "market": instance.lifecycle or "on-demand",
        "key": instance.key_name,
        "user_data": base64.b64decode(str(instance.user_data or "")).decode(),
        "tags": {tag["key"]: tag["value"] for tag in instance.get_tags()},
    }


if __name__ == "__main__":
    main()

"""EC2 nodes on spot, and on demand where spot has run out: a node provider for Ray's autoscaler.

Two node types, one of them on demand, are no fallback: where spot has no capacity, Ray 2.60 asks
for spot again, without end. ``cluster.yaml`` names this class; it is imported by ``ray up`` on the
laptop and by the autoscaler on the head.
"""

import copy
import logging
import threading
import time
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from aiornot.config import InputError

NO_SPOT = {
    "InsufficientInstanceCapacity",  # there is none in any zone
    "MaxSpotInstanceCountExceeded",  # the account's quota for spot
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
}
"""Errors of EC2 that say that spot cannot be had now, and nothing of the request itself."""

INSTEAD = "aiornot-instead-of-spot"
"""Tag of the nodes that were bought on demand because spot had run out."""

LAG_SECONDS = 60.0
"""For so long EC2 may not list a node that it has just sold."""

_log = logging.getLogger(__name__)


class SpotOrOnDemand(AWSNodeProvider):  # type: ignore[misc]
    """Buys a spot node on demand when EC2 has no spot, within ``provider.max_on_demand``.

    Each request asks for spot first, so the nodes are spot again as soon as there is some.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        most = provider_config.get("max_on_demand")
        if type(most) is not int or most < 0:
            raise InputError(
                f"provider.max_on_demand is {most!r}: give a number of nodes, 0 to buy none"
            )
        super().__init__(provider_config, cluster_name)
        self._most: int = most
        self._bought: dict[str, float] = {}
        """When this process bought which node."""
        # The autoscaler launches in several threads: one counts and buys at a time.
        self._buying = threading.Lock()

    def _create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        # Copies: the caller's dicts are altered on the way, and are needed again.
        try:
            return dict(super()._create_node(copy.deepcopy(node_config), dict(tags), count))
        except NodeLaunchException as error:
            if error.category not in NO_SPOT or "InstanceMarketOptions" not in node_config:
                raise
            with self._buying:
                allowed = min(count, self._most - self._num_instead())
                if allowed <= 0:
                    _log.warning(
                        "no spot (%s), and %d on demand already", error.category, self._most
                    )
                    raise
                _log.warning("no spot (%s): %d on demand instead", error.category, allowed)
                return self._buy(node_config, tags, allowed)

    def _buy(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        instead = copy.deepcopy(node_config)
        del instead["InstanceMarketOptions"]
        nodes = dict(super()._create_node(instead, {**tags, INSTEAD: "yes"}, count))
        self._bought |= dict.fromkeys(nodes, time.monotonic())
        return nodes

    def _num_instead(self) -> int:
        """Return how many nodes of the cluster are on demand instead of spot."""
        filters = {
            f"tag:{TAG_RAY_CLUSTER_NAME}": [self.cluster_name],
            f"tag:{INSTEAD}": ["yes"],
            "instance-state-name": ["pending", "running"],
        }
        asked = [{"Name": name, "Values": values} for name, values in filters.items()]
        listed = {node.id for node in self.ec2.instances.filter(Filters=asked)}
        now = time.monotonic()
        fresh = {name for name, when in self._bought.items() if now - when < LAG_SECONDS}
        return len(listed | fresh)

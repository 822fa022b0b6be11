"""What a cluster has and may have: the file of ``ray up``, and the Ray that runs."""

import pytest
import yaml

from aiornot.tuning import ray_machines
from aiornot.tuning.ray_machines import coming, machines

FILE = {
    "head_node_type": "head",
    "max_workers": 3,
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 1},
        "spot": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2},
        "bought": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2},
    },
}


def test_what_may_come_is_bounded_by_type_and_by_all_workers():
    assert coming(FILE, []) == [(4, 1)] * 3  # a GPU before cores
    assert coming(FILE, ["spot", "bought"]) == [(4, 1)]
    assert coming(FILE, ["spot", "spot", "cpu"]) == coming(FILE, ["", "", ""]) == []
    assert coming({**FILE, "max_workers": 9}, ["spot"]) == [(4, 1)] * 3 + [(8, 0)]


def test_without_a_file_or_with_machines_of_unknown_size_nothing_is_coming():
    own = {"resources": {}, "min_workers": 2, "max_workers": 2}
    local = {
        "head_node_type": "local.cluster.node",
        "max_workers": 2,
        "available_node_types": {"local.cluster.node": own},
    }
    assert coming({}, ["", ""]) == coming(local, ["local.cluster.node"]) == []


@pytest.mark.ray
def test_trials_ask_for_gpus_of_a_cluster_that_has_scaled_to_zero(
    ray_cluster, tmp_path, monkeypatch
):
    assert machines(1).num_gpus == 0 and machines(1).num_cpus == 2
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(FILE))
    monkeypatch.setattr(ray_machines, "BOOTSTRAP", path)
    found = machines(1)
    assert found.nodes == ((2, 0), (4, 1), (4, 1), (4, 1))
    assert (found.num_gpus, found.cpus_per_gpu()) == (3, 4)

"""A real ``ray up`` of ``cluster/onprem.yaml``, a chain on it, and what happens when machines die.

The tests are one story, told in order: each finds the cluster as the one before left it.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Lab
from launcher import (
    HERE,
    HOSTS,
    REPOSITORY,
    STORE_BYTES,
    Launcher,
    alive,
    fill_in,
    listed,
    wait,
)
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from timetable import timed

pytestmark = pytest.mark.timeout(1800)

TUNE = "aiornot tune sweep --data /shared/prepared --wandb off --storage /shared/"
TICKS = list(range(1, 17))

Trials = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Site:
    lab: Lab
    launcher: Launcher

    def trials(self, storage: str, stage: str = "*") -> Trials:
        """Read a ledger where it lies, without asking any machine."""
        paths = sorted((self.lab.shared / storage).glob(f"sweep/{stage}/trials/*.json"))
        found = (json.loads(path.read_text()) for path in paths)
        return {trial["id"]: trial for trial in found}

    def is_under_way(self, storage: str, stage: str, *, count: int, ticks: int = 3) -> bool:
        """Whether so many trials run side by side, each in the middle of its ticks."""
        found = self.trials(storage, stage).values()
        running = [t for t in found if t["state"] == "running" and len(t["ticks"]) >= ticks]
        return len(running) >= count


def onprem() -> str:
    return (REPOSITORY / "cluster" / "onprem.yaml").read_text()


@pytest.fixture(scope="module")
def site(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(HERE / "sweep", project / "sweep")
    launcher = Launcher(lab, fill_in(onprem()), project)
    yield Site(lab, launcher)
    launcher.close_tunnel()


def lost(trials: Trials) -> int:
    return sum(trial["state"] != "finished" for trial in trials.values())


def repeated(before: Trials, after: Trials) -> int:
    """Count the ticks of a ledger that were trained again: their times are others now."""
    told = [(name, tick["tick"], tick["time"]) for name in before for tick in before[name]["ticks"]]
    kept = {(name, tick["tick"], tick["time"]) for name in after for tick in after[name]["ticks"]}
    return sum(tick not in kept for tick in told)


def assert_whole(trials: Trials) -> None:
    for name, trial in trials.items():
        assert [tick["tick"] for tick in trial["ticks"]] == TICKS, name


def test_ray_up_starts_three_machines_of_one_version(site):
    with timed("ray up"):
        site.launcher.up()
    with timed("head and two workers alive"):
        wait("three nodes", lambda: site.launcher.alive() == 3, 300)
    status = site.launcher.on_head("ray status")
    assert "0.0/2.0 CPU" in status  # none on the head, whose loss ends a job
    versions = {site.lab[name].run("ray --version").stdout for name in HOSTS}
    assert len(versions) == 1


def test_nothing_answers_without_the_token(site):
    head, worker = site.lab["head"], site.lab["w1"]
    code = "curl -s -o /dev/null -m 5 -w '%{http_code}'"
    for path in ("/api/jobs/", "/api/v0/nodes"):
        assert head.run(f"{code} http://127.0.0.1:8265{path}").stdout == "401"
    closed = worker.run(f"{code} http://{HOSTS['head']}:8265/api/version", check=False)
    assert closed.returncode == 7 and closed.stdout == "000"  # refused: loopback only
    bare = "env RAY_AUTH_MODE=disabled ray status --address 127.0.0.1:6379"
    refused = head.run(bare, check=False)
    assert refused.returncode and "nauthenticated" in refused.stdout, refused.stdout
    wrong = f"RAY_AUTH_TOKEN={'0' * 64} ray status --address 127.0.0.1:6379"
    refused = head.run(wrong, check=False)
    assert refused.returncode and "oken" in refused.stdout, refused.stdout


def test_a_job_prepares_the_data_in_the_shared_folder(site):
    site.launcher.open_tunnel()
    with timed("demo data and aiornot prepare, as jobs"):
        site.launcher.do("data", "aiornot demo-data /shared/parquet --num-images 400")
        site.launcher.do(
            "prepare", "aiornot prepare /shared/parquet --out /shared/prepared --size 64"
        )


def test_runs_in_a_folder_of_each_machine_are_refused(site):
    site.launcher.submit("apart", "aiornot tune sweep --data /shared/prepared --wandb off")
    log = site.launcher.fail("apart", 200)
    assert "does not see that folder; give one that all machines share" in log


def test_a_chain_outlives_the_laptop_a_cut_cable_and_a_dead_worker(site):
    launcher, lab = site.launcher, site.lab
    with timed("the chain, through all of this") as row:
        launcher.submit("chain", TUNE + "runs")
        wait("trials on both workers", lambda: site.is_under_way("runs", "explore", count=2), 300)
        launcher.close_tunnel()
        first = site.trials("runs")
        with timed("a worker's cable cut, until the head knows"):
            lab["w2"].cut()
            wait("two nodes", lambda: launcher.alive() == 2, 180)
        lab["w2"].splice()
        with timed("the cable mended, until the worker is back"):
            wait("three nodes", lambda: launcher.alive() == 3, 400)
        wait(
            "runs on both workers",
            lambda: site.is_under_way("runs", "final", count=2),
            900,
        )
        assert_read_on_the_head(site)
        second = site.trials("runs")
        with timed("a worker killed, until the head knows"):
            lab["w1"].power_off()
            wait("two nodes", lambda: launcher.alive() == 2, 180)
        launcher.open_tunnel()
        log = launcher.finish("chain", 900)
        after = site.trials("runs")
        row.trials = f"{lost(after)} of {len(after)}"
        again = repeated(first, after) + repeated(second, after)
        row.ticks = f"{again} reported ones"
    assert "delivered /shared/runs/sweep/bundle" in log
    assert lost(after) == 0 and again == 0
    assert_whole(after)


def assert_read_on_the_head(site: Site) -> None:
    """The queues that the driver reads are not lost with a worker."""
    nodes = {node["node_id"]: node["node_ip"] for node in listed(site.lab["head"], "nodes")}
    queues = [
        nodes[actor["node_id"]]
        for actor in listed(site.lab["head"], "actors")
        if actor["class_name"] == "_QueueActor" and actor["state"] == "ALIVE"
    ]
    assert queues and set(queues) == {HOSTS["head"]}


def test_a_new_cluster_resumes_what_the_dead_head_left(site):
    launcher, lab = site.launcher, site.lab
    command = TUNE + "later --only explore"
    launcher.submit("first", command)

    def is_in_the_middle() -> bool:
        states = [trial["state"] for trial in site.trials("later").values()]
        return "finished" in states and site.is_under_way("later", "explore", count=1)

    wait("a finished trial and a running one", is_in_the_middle, 600, every=0.2)
    before = site.trials("later")
    lab["head"].power_off()
    launcher.close_tunnel()
    lab["head"].power_on()
    lab["w1"].power_off()  # as the chain has left it, where that ran before
    lab["w1"].power_on()
    # The laptop remembers what it copied to the head that was there before.
    launcher.laptop.run("rm -rf /tmp/ray")
    with timed("the head killed; ray up, until three nodes live"):
        launcher.up()
        wait("three nodes", lambda: launcher.alive() == 3, 400)
    launcher.open_tunnel()
    assert launcher.state("first") == "UNKNOWN"  # the list of jobs died with the head
    with timed("the same command, to its end") as row:
        launcher.do("again", command, 600)
        after = site.trials("later")
        row.trials = f"{lost(after)} of {len(after)}"
        row.ticks = f"{repeated(before, after)} reported ones"
    assert lost(after) == 0 and repeated(before, after) == 0
    assert_whole(after)


def test_ray_down_leaves_nothing(site):
    with timed("ray down, until no process is left"):
        site.launcher.down()
        for name in ("w1", "w2"):  # of provider local, ray down stops Ray on the head alone
            site.lab[name].run("ray stop")
        assert_empty(site)


def assert_empty(site: Site) -> None:
    def left() -> list[str]:
        names = ("head", "w1", "w2", "laptop")
        return [f"{name}: {line}" for name in names for line in site.lab[name].processes()]

    try:
        wait("nothing", lambda: not left(), 180, every=3)
    except AssertionError:
        raise AssertionError("\n".join(left())) from None


FAKE = {
    "cluster_name": "growing",
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.3,
    "provider": {
        "type": "fake_multinode",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    "available_node_types": {
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": STORE_BYTES},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    },
    "head_node_type": "head",
    "auth": {},
    "docker": {},
    "file_mounts": {},
    **dict.fromkeys(
        (
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
        ),
        [],
    ),
    "file_mounts_sync_continuously": False,
}
"""A cluster that scales to zero, whose workers are raylets on the machine of its head."""

START = (
    "AUTOSCALER_UPDATE_INTERVAL_S=1 RAY_FAKE_CLUSTER=1 RAY_enable_autoscaler_v2=1 "
    f"RAY_CLOUD_INSTANCE_ID={FAKE_HEAD_NODE_ID} "
    f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={FAKE_HEAD_NODE_ID} "
    f"ray start --head --num-cpus=0 --object-store-memory={STORE_BYTES} "
    "--dashboard-host=127.0.0.1 --autoscaling-config=$HOME/ray_bootstrap_config.yaml"
)


def test_workers_come_with_trials_and_leave_when_idle(site):
    host, path = site.lab["w2"], site.lab.shared / "growing.json"
    path.write_text(json.dumps(FAKE))
    host.run("cp /shared/growing.json ~/ray_bootstrap_config.yaml")  # where ray up leaves it
    host.run(START)
    wait("the head", lambda: alive(host) == 1, 60)
    tune = host.start(
        f"exec aiornot tune {HERE}/sweep --data /shared/prepared --wandb off "
        "--storage /shared/grown --only explore"
    )
    with timed("from no worker to two, for pending trials"):
        wait("three nodes", lambda: alive(host) == 3, 300)
    assert tune.wait(600) == 0
    trials = site.trials("grown")
    assert lost(trials) == 0 and len(trials) == 4
    with timed("idle workers gone (after .3 minutes)"):
        wait("one node", lambda: alive(host) == 1, 240)
    host.run("ray stop --force")
    assert_empty(site)

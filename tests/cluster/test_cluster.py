"""A real ``ray up`` of ``cluster/onprem.yaml``, a chain on it, and what happens when machines die.

The tests are one story, told in order: each finds the cluster as the one before left it.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator

import pytest
from lab import Lab
from launcher import (
    HERE,
    HOSTS,
    REPOSITORY,
    Launcher,
    fill_in,
    listed,
    wait,
)
from ledgers import Trials, assert_whole, lost, num_under_way, repeated
from timetable import timed

pytestmark = pytest.mark.timeout(1800)

TUNE = "aiornot tune sweep --data /shared/prepared --wandb off --storage /shared/"


@dataclasses.dataclass(frozen=True)
class Site:
    lab: Lab
    launcher: Launcher

    def trials(self, storage: str, stage: str = "*") -> Trials:
        """Read a ledger where it lies, without asking any machine."""
        paths = sorted((self.lab.shared / storage).glob(f"sweep/{stage}/trials/*.json"))
        found = (json.loads(path.read_text()) for path in paths)
        return {trial["id"]: trial for trial in found}

    def num_under_way(self, storage: str, stage: str) -> int:
        return num_under_way(self.trials(storage, stage))


def onprem() -> str:
    return (REPOSITORY / "cluster" / "onprem.yaml").read_text()


@pytest.fixture(scope="module")
def site(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(HERE / "sweep", project / "sweep")
    launcher = Launcher(lab, project)
    launcher.write_config(fill_in(onprem()))
    yield Site(lab, launcher)
    launcher.close_tunnel()


def test_ray_up_starts_three_machines_of_one_version(site):
    with timed("ray up"):
        site.launcher.up()
    with timed("head and two workers alive"):
        wait("three nodes", lambda: site.launcher.alive() == 3, 300)
    # None on the head, whose loss ends a job. The autoscaler may learn of the nodes later than GCS.
    wait("two cores", lambda: "0.0/2.0 CPU" in site.launcher.on_head("ray status"), 60)
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


def test_the_doctor_asks_every_machine(site):
    with timed("aiornot doctor, as a job"):
        log = site.launcher.do(
            "doctor", "aiornot doctor --storage /shared/runs --data /shared/prepared"
        )
    assert "fail" not in log
    # Asked for a folder that each machine has for itself, it must say so.
    site.launcher.submit("apart-doctor", "aiornot doctor --storage /tmp/apart")
    assert "/tmp/apart" in site.launcher.fail("apart-doctor", 120)


def test_runs_in_a_folder_of_each_machine_are_refused(site):
    site.launcher.submit("apart", "aiornot tune sweep --data /shared/prepared --wandb off")
    log = site.launcher.fail("apart", 200)
    assert "does not see that folder; give one that all machines share" in log


def test_a_chain_outlives_the_laptop_a_cut_cable_and_a_dead_worker(site):
    launcher, lab = site.launcher, site.lab
    with timed("the chain, through all of this") as row:
        launcher.submit("chain", TUNE + "runs")
        wait("trials on both workers", lambda: site.num_under_way("runs", "explore") == 2, 300)
        launcher.close_tunnel()
        first = site.trials("runs")
        with timed("a worker's cable cut, until the head knows"):
            lab["w2"].cut()
            wait("two nodes", lambda: launcher.alive() == 2, 180)
        lab["w2"].splice()
        with timed("the cable mended, until the worker is back"):
            wait("three nodes", lambda: launcher.alive() == 3, 400)
        wait("runs on both workers", lambda: site.num_under_way("runs", "final") == 2, 900)
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
        return "finished" in states and site.num_under_way("later", "explore") > 0

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

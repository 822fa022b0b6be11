"""``ray up cluster.yaml`` on an AWS in the lab: spot workers come, are reclaimed, run out, and go.

The tests are one story, told in order. The decisions are those of Ray's autoscaler on the head and
of ``aiornot.ray_spot``; EC2 and S3 are moto's, and every instance boots a host.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence

import pytest
from amazon import BUCKET, LAPTOP, Instance, Region, fill_in
from launcher import HERE, REPOSITORY, Launcher, listed, wait
from ledgers import Trials, assert_whole, lost, num_under_way, repeated
from timetable import timed

pytestmark = pytest.mark.timeout(1800)

TUNE = f"aiornot tune sweep --wandb off --data s3://{BUCKET}/prepared --storage s3://{BUCKET}/runs"

_LEDGER = f"""
pages = s3.get_paginator("list_objects_v2").paginate(Bucket="{BUCKET}", Prefix="runs/sweep/")
keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
keys = [key for key in keys if "/trials/" in key and key.endswith(".json")]
texts = [s3.get_object(Bucket="{BUCKET}", Key=key)["Body"].read().decode() for key in keys]
print(json.dumps([[key, json.loads(text)] for key, text in zip(keys, texts)]))
"""


@dataclasses.dataclass(frozen=True)
class Site:
    region: Region
    launcher: Launcher

    def trials(self, stage: str = "") -> Trials:
        found = json.loads(self.region.call(_LEDGER))
        return {trial["id"]: trial for key, trial in found if f"/{stage}" in key}

    def num_under_way(self, stage: str) -> int:
        return num_under_way(self.trials(stage))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(HERE / "sweep", project / "sweep")
    with Region(tmp_path_factory.mktemp("region")) as region:
        launcher = Launcher(region.lab, project)
        yield Site(region, launcher)
        launcher.close_tunnel()


def test_the_account_is_made_and_the_head_comes_up_on_demand(site):
    laptop = site.launcher.laptop
    account = REPOSITORY / "cluster" / "aws_account.py"
    group = laptop.run(f"python {account} {BUCKET} --ssh-from {LAPTOP}/32 2> /dev/null").stdout
    image = site.region.call("print(ec2.register_image(Name='stand-in')['ImageId'])")
    site.launcher.write_config(fill_in(group.strip(), image.strip()))
    with timed("AWS: ray up, until the head answers"):
        site.launcher.up()
        wait("the head", lambda: site.launcher.alive() == 1, 60)
    (head,) = site.region.running()
    assert (head["market"], head["tags"]["ray-user-node-type"]) == ("on-demand", "head")
    # The dead man's switch is armed.
    wait("user data", lambda: "-P +2880" in site.launcher.head.read("/run/shutdown"), 10)


def test_the_data_are_prepared_into_the_bucket(site):
    site.launcher.open_tunnel()
    with timed("AWS: demo data and aiornot prepare to s3://, as jobs"):
        site.launcher.do("data", "aiornot demo-data /tmp/parquet --num-images 400")
        prepare = f"aiornot prepare /tmp/parquet --out s3://{BUCKET}/prepared --size 64"
        site.launcher.do("prepare", prepare)
    assert len(site.region.running()) == 1  # the head's cores were enough


def test_a_chain_outlives_a_reclaim_and_the_end_of_spot(site):
    region, launcher = site.region, site.launcher
    with timed("AWS: the chain, through all of this") as row:
        launcher.submit("chain", TUNE)
        with timed("AWS: from no worker to trials on two spot workers"):
            wait("trials on both", lambda: site.num_under_way("explore") == 2, 300)
        assert [each["market"] for each in region.running("gpu")] == ["spot", "spot"]
        first = site.trials()
        with timed("AWS: a spot worker reclaimed, until another one is there"):
            assert replaced(site, region.running("gpu")[:1]) == "spot"
        wait("a run in the middle of its ticks", lambda: site.num_under_way("final") > 0, 900)
        second = site.trials()
        with region.no_spot(), timed("AWS: all reclaimed, spot run out, until one on demand"):
            assert replaced(site, region.running("gpu")) == "on-demand"
        log = launcher.finish("chain", 900)
        after = site.trials()
        row.trials = f"{lost(after)} of {len(after)}"
        again = repeated(first, after) + repeated(second, after)
        row.ticks = f"{again} reported ones"
    assert f"also in s3://{BUCKET}/runs/sweep" in log
    assert lost(after) == 0 and again == 0
    assert_whole(after)
    asked = region.requests()
    bought = asked.index({"market": "on-demand", "type": "g5.xlarge", "refused": False})
    assert asked[bought - 1] == {"market": "spot", "type": "g5.xlarge", "refused": True}


def replaced(site: Site, workers: Sequence[Instance]) -> str:
    """Take workers away; return the market of the first one that comes in their place."""
    known = {each["id"] for each in site.region.running("gpu")}
    for worker in workers:
        site.region.end(worker)

    def joined() -> str:
        new = [each for each in site.region.running("gpu") if each["id"] not in known]
        alive = {
            node["node_ip"]
            for node in listed(site.launcher.head, "nodes")
            if node["state"] == "ALIVE"
        }
        return next((each["market"] for each in new if each["address"] in alive), "")

    return wait("another worker", joined, 300)


def test_the_laptop_reads_and_fetches_the_run_without_the_cluster(site):
    laptop = site.launcher.laptop
    site.launcher.close_tunnel()
    shown = laptop.run(f"aiornot show sweep --storage s3://{BUCKET}/runs").stdout
    assert "final" in shown
    laptop.run(f"cd /tmp; aiornot fetch sweep --storage s3://{BUCKET}/runs")
    listed = laptop.run("ls /tmp/runs/sweep /tmp/runs/sweep/bundle").stdout
    assert "report.html" in listed and "model.safetensors" in listed


def test_idle_workers_are_ended(site):
    with timed("AWS: idle workers ended (after .5 minutes)"):
        wait("no worker", lambda: not site.region.running("gpu"), 240)
    assert len(site.region.running()) == 1


def test_a_worker_without_a_head_ends_itself(site):
    """The dead man's switch; in the lab its half an hour is two minutes."""
    region, launcher = site.region, site.launcher
    launcher.open_tunnel()
    launcher.submit("again", TUNE.replace("/runs", "/later") + " --only explore")
    wait("a worker", lambda: launcher.alive() >= 2, 300)
    launcher.close_tunnel()
    (head,) = region.running("head")
    with timed("AWS: the head gone, until no worker costs anything"):
        region.end(head)
        wait("nothing", lambda: not region.running(), 600)
    assert any("ends itself" in event for event in region.events)


def test_ray_down_ends_every_instance(site):
    region, launcher = site.region, site.launcher
    launcher.laptop.run("rm -rf /tmp/ray")  # what it remembers of the head that is gone
    launcher.up()
    launcher.open_tunnel()
    launcher.submit("anew", TUNE.replace("/runs", "/later") + " --only explore")
    wait("a worker", lambda: launcher.alive() >= 2, 300)
    with timed("AWS: ray down, until no instance runs"):
        launcher.down()
        wait("nothing", lambda: not region.running(), 60)

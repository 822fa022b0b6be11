"""What ``aiornot doctor`` finds: from made-up answers, on this machine, and on a real Ray."""

import dataclasses
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from conftest import SECRET, prepare, run_verb
from rich.console import Console

from aiornot import doctor, machine, ray_session
from aiornot.survey import Cluster, Node, Survey
from aiornot.verbs import cluster

GB = 10**9


@pytest.fixture(scope="module")
def facts() -> machine.Facts:
    """What this machine says of itself, with room and without GPUs."""
    found = machine.facts(ray_folder="/tmp/ray", cache=Path("/tmp/cache"))
    disk = {"path": "/somewhere", "total": 200 * GB, "free": 100 * GB}
    disks = {name: disk for name in found["disks"]}
    token = {"mode": "token", "file": "/home/me/.ray/auth_token", "open": False}
    hub = {"cache": "/hub", "writable": True, "token": True, "offline": False}
    gpus = {"driver": 0, "torch": 0, "cuda": None, "visible": None}
    changed = {"disks": disks, "shared_memory": disk, "token": token, "hugging_face": hub}
    return found | changed | {"gpus": gpus}


CLUSTER = Cluster(address="10.0.0.1:6379", dashboard="127.0.0.1:8265", refuses=True, state_api="")


def survey(*nodes: Node, **changes: object) -> Survey:
    made = Survey(
        nodes=nodes,
        cluster=CLUSTER,
        storage="s3://bucket/runs",
        data=None,
        wandb="online",
        has_account=True,
    )
    return dataclasses.replace(made, **changes)


def node(facts: machine.Facts, name: str = "10.0.0.1 (head)", **changes: object) -> Node:
    """Return a healthy node but for some of its answers, or of its facts."""
    of_node = {key: changes.pop(key) for key in list(changes) if hasattr(Node, key)}
    of_node |= {key: changes.pop(key) for key in ("resources", "data") if key in changes}
    store = {"object_store_memory": 1.0 * GB}
    values = {"name": name, "facts": facts | changes, "resources": store, "skew": 0.0}
    return Node(**values | of_node)


def troubles(survey: Survey) -> list[tuple[str, str, str]]:
    return [
        (found.status, found.what, found.where)
        for found in doctor.examine(survey)
        if found.status != "ok"
    ]


def test_nothing_is_found_where_all_is_well(facts):
    found = doctor.examine(survey(node(facts), node(facts, "10.0.0.2")))
    assert doctor.is_well(found) and all(one.status == "ok" for one in found)
    assert [one.what for one in found] == [
        *("versions", "gpus", "storage", "disk", "disk", "memory", "clock", "hugging face"),
        *("token", "dashboard", "state API", "W&B"),
    ]
    assert {one.where for one in found[:8]} == {"all 2 nodes"}


SMALL = {"path": "/small", "total": 100 * GB, "free": 1 * GB}
BAD = [
    ("fail", "versions", {"versions": {"torch": "1.0"}}),
    ("fail", "versions", {"versions": {"source": "another"}}),
    ("fail", "gpus", {"gpus": {"driver": 2, "torch": 0, "cuda": None, "visible": None}}),
    ("fail", "gpus", {"gpus": {"driver": 2, "torch": 1, "cuda": "12.8", "visible": None}}),
    ("fail", "gpus", {"resources": {"GPU": 1.0}}),
    ("warn", "gpus", {"gpus": {"driver": 1, "torch": 1, "cuda": "12.8", "visible": None}}),
    ("fail", "storage", {"storage": "Access Denied"}),
    ("fail", "disk", {"disks": {"Ray's files": SMALL}}),
    ("warn", "disk", {"disks": {"prepared files": SMALL}}),
    ("warn", "disk", {"disks": {"Ray's files": SMALL | {"total": 5 * GB}}}),
    ("warn", "memory", {"shared_memory": {"path": "/dev/shm", "total": 64e6, "free": 64e6}}),
    ("warn", "clock", {"skew": -5.0}),
    ("fail", "clock", {"skew": 400.0}),
    ("warn", "clock", {"skew": None}),
    ("warn", "token", {"token": {"open": True}}),
    ("warn", "hugging face", {"hugging_face": {"writable": False}}),
]


@pytest.mark.parametrize(("status", "what", "changes"), BAD)
def test_what_is_wrong_on_one_node_is_told_of_it_with_a_mend(facts, status, what, changes):
    merged = {
        key: facts[key] | value if isinstance(facts.get(key), dict) else value
        for key, value in changes.items()
    }
    sick = survey(node(facts), node(facts, "10.0.0.2", **merged))
    assert troubles(sick) == [(status, what, "10.0.0.2")]
    (found,) = (one for one in doctor.examine(sick) if one.status != "ok")
    assert found.mend and doctor.is_well([found]) == (status == "warn")


def test_a_clock_is_not_blamed_for_a_slow_answer(facts):
    assert troubles(survey(node(facts, skew=4.0, skew_within=3.0))) == []


def test_a_node_that_says_nothing_is_a_line_and_keeps_nobody_from_being_asked(facts):
    sick = survey(node(facts), Node(name="10.0.0.2", error="no answer"), node(facts, "10.0.0.3"))
    assert troubles(sick) == [("fail", "node", "10.0.0.2")]
    assert "the other 2 nodes" in {found.where for found in doctor.examine(sick)}
    assert troubles(survey(Node(name="10.0.0.2", error="no answer")))[0][1] == "node"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"refuses": False}, ("fail", "token", "10.0.0.1:6379")),
        ({"dashboard": "10.0.0.1:8265"}, ("warn", "dashboard", "head")),
        ({"state_api": "no dashboard"}, ("fail", "state API", "head")),
    ],
)
def test_what_is_wrong_with_the_cluster_is_told(facts, changes, expected):
    sick = dataclasses.replace(CLUSTER, **changes)
    assert troubles(survey(node(facts), cluster=sick)) == [expected]


def test_an_open_dashboard_without_a_token_fails_twice(facts):
    sick = dataclasses.replace(CLUSTER, refuses=False, dashboard="10.0.0.1:8265")
    assert [found[:2] for found in troubles(survey(node(facts), cluster=sick))] == [
        ("fail", "token"),
        ("fail", "dashboard"),
    ]


def test_without_a_dashboard_the_nodes_say_whether_a_token_is_asked_for(facts):
    sick = dataclasses.replace(CLUSTER, dashboard="", refuses=None)
    assert troubles(survey(node(facts), cluster=sick)) == []
    open_to_all = node(facts, token=facts["token"] | {"mode": ""})
    assert ("fail", "token", "10.0.0.1:6379") in troubles(survey(open_to_all, cluster=sick))


def test_data_must_be_the_same_everywhere_and_fit(facts):
    there = {"full.h5": 50 * GB}
    whole = survey(node(facts, data=there), node(facts, "b", data=there), data="s3://bucket/data")
    assert troubles(whole) == []
    for other in ({}, {"full.h5": 1}, "Access Denied"):
        sick = survey(node(facts, data=there), node(facts, "b", data=other), data="/data")
        assert troubles(sick) == [("fail", "data", "b")]
    large = node(facts, data={"full.h5": 500 * GB})
    assert [found[1] for found in troubles(survey(large, data="s3://bucket/data"))] == ["data"]
    assert troubles(survey(large, data="/data")) == []


def test_wandb_without_a_key_fails_only_where_it_is_to_be_online(facts):
    for mode, account, number in (("online", False, 1), ("offline", False, 0), ("off", False, 0)):
        assert len(troubles(survey(node(facts), wandb=mode, has_account=account))) == number


# This machine -------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "WANDB_MODE", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_machine_alone_is_looked_at_and_left_as_it_was(here, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-wandb")
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-the-hub")
    result = run_verb("doctor", "--storage", "deep/er/runs")
    assert result.code == 0, result.out
    for line in result.out.splitlines():
        assert re.fullmatch(r"(ok|warn|fail)  +\S.*: .+", line)
    assert f"{here}/deep/er/runs is written and read" in result.out
    found = run_verb("doctor", "--json")
    assert json.loads(found.out)["well"] and "secret" not in result.out + found.out
    assert list(here.iterdir()) == []


def test_what_fails_is_exit_code_1(here):
    (here / "file").write_text("")
    result = run_verb("doctor", "--storage", "file/runs", "--data", "nowhere")
    assert result.code == 1
    failed = [line for line in result.out.splitlines() if line.startswith("fail")]
    assert [line.split()[1] for line in failed] == ["storage", "data"]
    assert f"aiornot prepare SOURCE --out {here}/nowhere" in failed[1]


def test_a_ray_that_nobody_named_is_told_and_one_that_is_gone_is_not(here, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(here))
    (here / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (here / "ray/ray_current_cluster").write_text(address)
        found = run_verb("doctor")
    assert f"warn  ray           here: one runs at {address} and RAY_ADDRESS is not" in found.out
    assert "RAY_ADDRESS is not set: this machine alone" in run_verb("doctor").out


@pytest.mark.parametrize("option", ["--storage", "--data"])
def test_a_secret_in_an_address_is_refused_and_not_shown(option, here):
    for address in ("s3://someone:hidden@bucket/runs", "ftp://bucket/runs"):
        result = run_verb("doctor", option, address)
        assert result.code == 2 and result.out == "" and "hidden" not in result.err


def test_nothing_is_left_in_a_store(here, s3):
    result = run_verb("doctor", "--storage", "s3://bucket/runs")
    assert result.code == 0 and "s3://bucket/runs is written and read" in result.out
    assert not [key for key in s3.objects if "doctor" in key]
    s3.refused = "POST"
    result = run_verb("doctor", "--storage", "s3://bucket/runs")
    assert result.code == 1 and "ACCESS_DENIED" in result.out and SECRET not in result.out


def test_it_fits_into_a_terminal_of_80_columns(facts):
    """A long finding goes on below itself, and not in the columns before it."""
    sick = survey(
        node(facts, storage="Access Denied " * 9),
        Node(name="10.0.0.2", error="no answer within 60 s"),
        storage="s3://a-bucket-of-a-long-name/" + "folder/" * 9,
    )
    printed = io.StringIO()
    Console(width=80, file=printed).print(cluster.table(doctor.examine(sick)))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line[:4].strip() in ("ok", "warn", "fail", "") for line in lines)
    assert [line[6:18].strip() for line in lines if line[:4].strip()] == [
        found.what for found in doctor.examine(sick)
    ]


# A Ray --------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("ray_cluster")
def test_a_real_ray_is_asked_and_nothing_is_left_of_it(here, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    prepare(here / "full.h5")
    result = run_verb("doctor", "--storage", str(here / "runs"), "--data", str(here), "--json")
    found = json.loads(result.out)
    assert result.code == 0, [one for one in found["findings"] if one["status"] == "fail"]
    told = {one["what"]: one["found"] for one in found["findings"]}
    assert told["token"] == "asked for" and told["state API"] == "answers"
    assert told["dashboard"].startswith("on loopback only, 127.0.0.1:")
    assert told["data"].startswith(f"{here}: full.h5")
    token = Path.home() / ".ray/auth_token"
    assert not token.exists() or token.read_text().strip() not in result.out
    assert [path.name for path in here.iterdir()] == ["full.h5"]


SEVERAL = """
import json, os, signal, subprocess, sys, time
from ray.cluster_utils import Cluster

head = {
    "num_cpus": 0,
    "dashboard_host": "0.0.0.0",
    # Ray would call the node that hangs dead after a minute, and a busy machine needs longer.
    "_system_config": {"health_check_failure_threshold": 1000},
}
cluster = Cluster(initialize_head=True, head_node_args=head)
workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
def ask(*options):
    command = [sys.executable, "-m", "aiornot", "doctor", "--json", *options]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE).stdout)
began = time.monotonic()
print(json.dumps(ask("--timeout", "120")))
# Nodes that do not hang answer in this time, however busy the machine is.
seconds = round(20 + 2 * (time.monotonic() - began))
for process in workers[0].all_processes["raylet"]:
    os.kill(process.process.pid, signal.SIGSTOP)
print(json.dumps(ask("--timeout", str(seconds)) | {"seconds": seconds}))
for process in workers[0].all_processes["raylet"]:
    os.kill(process.process.pid, signal.SIGCONT)
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_node_that_hangs_is_told_and_the_others_are_asked(here):
    """Slow: a cluster of three nodes, each with processes of its own."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "300",  # by default a busy machine starts no third node
    }
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    whole, hanging = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    failed = [(one["what"], one["where"]) for one in whole["findings"] if one["status"] == "fail"]
    assert [what for what, _ in failed] == ["token", "dashboard"]  # as it was started
    assert len(whole["nodes"]) == 3 and not any(one["error"] for one in whole["nodes"])
    (silent,) = (one for one in hanging["nodes"] if one["error"])
    assert silent["error"] == f"no answer within {hanging['seconds']} s"
    assert ["node", silent["name"]] in [[f["what"], f["where"]] for f in hanging["findings"]]


@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_a_line(here, monkeypatch):
    """In a process of its own, since this one may be connected to another Ray."""
    done = subprocess.run(
        [sys.executable, "-m", "aiornot", "doctor", "--timeout", "3"],
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "fail  ray           driver: " in done.stdout


def test_a_token_that_others_may_read_is_closed(tmp_path, monkeypatch):
    token = tmp_path / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    ray_session.close_token()  # there is none
    token.write_text("secret")
    token.chmod(0o644)
    ray_session.close_token()
    assert token.stat().st_mode & 0o777 == 0o600 and token.read_text() == "secret"

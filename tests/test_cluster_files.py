"""The files of a cluster, without a cluster: Ray accepts them, and what they promise."""

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private import util

HOUSE = Path(__file__).parent.parent
AWS, ONPREM = HOUSE / "cluster.yaml", HOUSE / "cluster" / "onprem.yaml"
SETUP = HOUSE / "cluster" / "node_setup.sh"


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def prepared(config: dict) -> dict:
    """Do what ``ray up`` does first, and what the autoscaler does again on the head."""
    full = util.prepare_config(copy.deepcopy(config))
    util.validate_config(full)
    return full


def pinned(name: str) -> str:
    lines = (HOUSE / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)[name]


@pytest.mark.parametrize("path", [AWS, ONPREM], ids=lambda path: path.name)
def test_ray_accepts_the_file_and_adds_no_package_of_its_own(path):
    full = prepared(load(path))
    commands = full["head_setup_commands"] + full["worker_setup_commands"]
    assert set(commands) == {"bash ~/aiornot/cluster/node_setup.sh"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_worker": 1},
        {"max_workers": "8"},
        {"idle_timeout": 5},
        {"head_node_type": "haed"},
        {"max_workers": -1},
    ],
)
def test_a_slip_in_the_file_is_seen_here(wrong):
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        prepared(load(AWS) | wrong)


def test_a_slip_in_a_node_type_is_seen_here():
    for wrong in ({"min_worker": 1}, {"resources": {"GPU": 0.5}}, {"labels": {"a": 1}}):
        config = load(AWS)
        config["available_node_types"]["gpu"].update(wrong)
        with pytest.raises(jsonschema.ValidationError):
            prepared(config)


def test_all_machines_of_an_on_premises_cluster_are_there_from_the_start():
    config = load(ONPREM)
    workers = len(config["provider"]["worker_ips"])
    assert config["min_workers"] == config["max_workers"] == workers
    full = prepared(config)
    assert sum(each["min_workers"] for each in full["available_node_types"].values()) == workers


@pytest.mark.parametrize("path", [AWS, ONPREM], ids=lambda path: path.name)
def test_what_is_copied_to_the_nodes_is_there_and_suffices_to_install(path):
    mounts = load(path)["file_mounts"]
    here = {remote: local for remote, local in mounts.items() if not local.startswith("~")}
    assert all((HOUSE / local).exists() for local in here.values())
    assert all(remote == f"~/aiornot/{local}" for remote, local in here.items())
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "aiornot", "tune_spaces"}
    assert needed | {"cluster"} == set(here.values())


@pytest.mark.parametrize("path", [AWS, ONPREM], ids=lambda path: path.name)
def test_nothing_answers_without_the_token_and_the_dashboard_is_on_loopback(path):
    config = load(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in config[name] if "ray start" in line]
        assert start.startswith("export RAY_AUTH_MODE=token;")
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "0.0.0.0" not in path.read_text()


def test_no_trial_runs_on_the_head():
    types = load(AWS)["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0 and "GPU" not in types["head"]["resources"]
    assert "--num-cpus=0 --num-gpus=0" in " ".join(load(ONPREM)["head_start_ray_commands"])


def test_the_bill_is_bounded():
    config = load(AWS)
    types = config["available_node_types"]
    assert config["max_workers"] == 8 and config["provider"]["max_on_demand"] <= 8
    assert config["provider"]["cache_stopped_nodes"] is False
    assert types["gpu"]["min_workers"] == 0
    for each in types.values():
        assert each["node_config"]["InstanceInitiatedShutdownBehavior"] == "terminate"
        assert "shutdown -P +2880" in each["node_config"]["UserData"]


def run_switch(tmp_path: Path, *, raylet: str) -> tuple[list[str], int]:
    """Run the dead man's switch with stand-ins for the machine; return what it shut down, when.

    Args:
        raylet: Shell that succeeds while a Ray runs; ``$minute`` counts from 1.
    """
    log, minute = tmp_path / "ended", tmp_path / "minute"
    minute.write_text("0")
    stubs = {
        "shutdown": f'echo "$*" >> {log}',
        "sleep": f'test "$1" = 60 && echo $(($(cat {minute}) + 1)) > {minute}',
        "pgrep": f'test "$*" = "-x raylet" && minute=$(cat {minute}) && {raylet}',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = load(AWS)["available_node_types"]["head"]["node_config"]["UserData"]
    assert script.startswith("#!/bin/bash\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", f"{script}\nwait"], env={"PATH": path}, check=True, timeout=60)
    return log.read_text().splitlines(), int(minute.read_text())


def test_a_node_on_which_no_ray_comes_up_ends_itself(tmp_path):
    assert run_switch(tmp_path, raylet="false") == (["-P +2880", "-P now"], 30)


def test_a_node_ends_itself_half_an_hour_after_its_ray_has_gone(tmp_path):
    # It comes up after 3 minutes, and is started anew at minute 8.
    runs = '[ "$minute" -gt 3 ] && [ "$minute" -le 12 ] && [ "$minute" -ne 8 ]'
    assert run_switch(tmp_path, raylet=runs) == (["-P +2880", "-P now"], 42)


def test_kubernetes_gets_the_versions_of_the_laptop_a_token_and_no_way_in():
    documents = list(yaml.safe_load_all((HOUSE / "cluster" / "kuberay.yaml").read_text()))
    told, cluster, job = documents
    assert [(each["apiVersion"], each["kind"]) for each in documents] == [
        ("v1", "ConfigMap"),
        ("ray.io/v1", "RayCluster"),
        ("ray.io/v1", "RayJob"),
    ]
    spec = cluster["spec"]
    assert spec["rayVersion"] == pinned("ray")
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    images = {each["template"]["spec"]["containers"][0]["image"] for each in groups}
    assert images == {f"REGISTRY/aiornot:ray-{pinned('ray')}"}
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in spec["headGroupSpec"]
    (gpu,) = spec["workerGroupSpecs"]
    assert (gpu["minReplicas"], spec["headGroupSpec"]["rayStartParams"]["num-cpus"]) == (0, "0")
    (pod,) = gpu["template"]["spec"]["containers"]
    told = yaml.safe_load(told["data"]["ray_bootstrap_config.yaml"])
    size = {
        "CPU": int(gpu["rayStartParams"]["num-cpus"]),
        "GPU": int(pod["resources"]["limits"]["nvidia.com/gpu"]),
    }
    assert told["max_workers"] == gpu["maxReplicas"]
    assert told["available_node_types"] == {
        gpu["groupName"]: {"max_workers": gpu["maxReplicas"], "resources": size}
    }
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    # KubeRay refuses it together with a selector.
    assert not job["spec"].get("backoffLimit")


def test_the_image_has_the_ray_of_the_constraints():
    text = (HOUSE / "cluster" / "Dockerfile").read_text()
    assert set(re.findall(r"ray[:-](\d[\d.]*\d)", text)) == {pinned("ray")}


def test_the_laptop_has_the_ray_of_the_constraints():
    assert ray.__version__ == pinned("ray")


def test_what_speaks_to_aws_is_pinned():
    lines = (HOUSE / "cluster" / "aws.txt").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    assert "boto3" in names and all(pinned(name) for name in names)


@pytest.fixture
def node(tmp_path) -> tuple[dict[str, str], Path]:
    """A home and a copy of the source tree, and a ``python`` of which only the calls are kept."""
    house, home = tmp_path / "home" / "aiornot", tmp_path / "home"
    (house / "cluster").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "cluster/aws.txt", "cluster/node_setup.sh"):
        shutil.copy(HOUSE / name, house / name)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")
    python = home / "aiornot-venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$*" >> {home}/calls\ntest ! -e {home}/broken\n')
    python.chmod(0o755)
    return {"HOME": str(home), "PATH": os.environ["PATH"]}, home


def set_up(env: dict[str, str]) -> int:
    script = Path(env["HOME"], "aiornot", "cluster", "node_setup.sh")
    return subprocess.run(["bash", script], env=env, timeout=60, capture_output=True).returncode


def calls(home: Path) -> list[str]:
    return (home / "calls").read_text().splitlines()


def test_a_node_is_set_up_once_from_the_constraints(node):
    env, home = node
    assert set_up(env) == set_up(env) == 0
    assert len(calls(home)) == 3
    assert all(f"-c {home}/aiornot/constraints.txt" in call for call in calls(home))
    profile = (home / ".bashrc").read_text().splitlines()
    assert f'export PATH="{home}/aiornot-venv/bin:$PATH"' in profile
    assert profile.count("export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0") == 1
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def test_a_node_is_set_up_anew_when_the_constraints_change(node):
    env, home = node
    assert set_up(env) == 0
    with (home / "aiornot" / "constraints.txt").open("a") as file:
        file.write("another==1\n")
    assert set_up(env) == 0
    assert len(calls(home)) == 6


def test_a_set_up_that_failed_is_no_set_up(node):
    env, home = node
    (home / "broken").touch()
    assert set_up(env) != 0
    (home / "broken").unlink()
    assert set_up(env) == 0
    assert len(calls(home)) == 4


def test_a_node_without_the_token_is_refused(node):
    env, home = node
    (home / ".ray" / "auth_token").unlink()
    assert set_up(env) == 1


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    script = load(AWS)["available_node_types"]["head"]["node_config"]["UserData"]
    for text in (SETUP.read_text(), script):
        done = subprocess.run(["shellcheck", "-"], input=text, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout

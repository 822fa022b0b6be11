"""cluster.yaml on an AWS in memory (moto), up to running instances; no account, and no network.

What Ray itself does is the real thing: bootstrap, node provider, launcher. moto checks shapes and
names, no permissions, and its instances boot nothing.
"""

import base64
import contextlib
import copy
import importlib.util
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError, ParamValidationError
from moto import mock_aws
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import InstanceBackend
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import (
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_USER_NODE_TYPE,
)
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

from aiornot import ray_spot
from aiornot.config import InputError

HOUSE = Path(__file__).parent.parent
REGION = "us-west-2"
ADDRESS = "203.0.113.7/32"


def load() -> dict[str, Any]:
    return yaml.safe_load((HOUSE / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def account() -> ModuleType:
    path = HOUSE / "cluster" / "aws_account.py"
    spec = importlib.util.spec_from_file_location("aws_account", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_account(account: ModuleType, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aws_account.py", *arguments])
        account.main()


@pytest.fixture(scope="module")
def made(tmp_path_factory, account) -> Iterator[SimpleNamespace]:
    """An account made by aws_account.py, and cluster.yaml as ``ray up`` completes it there.

    Once for all tests: moto takes seconds to list the types of instances.
    """
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        # Ray keeps the key that it makes there.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.delenv("AWS_PROFILE", raising=False)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            make_account(account, "pictures", "--ssh-from", ADDRESS)
        group, ec2 = out.getvalue().strip(), boto3.client("ec2")
        config = load()
        image = ec2.register_image(Name="stand-in")["ImageId"]  # moto knows no resolve:ssm:
        for each in config["available_node_types"].values():
            each["node_config"].update(SecurityGroupIds=[group], ImageId=image)
        full = _bootstrap_config(config, no_config_cache=True)
        yield SimpleNamespace(config=full, ec2=ec2, group=group)


@pytest.fixture
def aws(made, request) -> SimpleNamespace:
    """The account, and a cluster of the test's own in it."""
    config = copy.deepcopy(made.config) | {"cluster_name": request.node.name}
    return SimpleNamespace(config=config, ec2=made.ec2, group=made.group)


def launch(config: dict[str, Any], node_type: str, count: int = 1) -> list[dict[str, Any]]:
    """Launch nodes as the autoscaler does; return what EC2 says of all that run since."""
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    tags = {
        TAG_RAY_NODE_KIND: "head" if node_type == "head" else "worker",
        TAG_RAY_NODE_NAME: f"ray-aiornot-{node_type}",
        TAG_RAY_LAUNCH_CONFIG: "hash",
        TAG_RAY_USER_NODE_TYPE: node_type,
    }
    node_config = config["available_node_types"][node_type]["node_config"]
    made = provider.create_node(copy.deepcopy(node_config), tags, count)
    return [described(name) for name in made]


def described(name: str) -> dict[str, Any]:
    found = boto3.client("ec2").describe_instances(InstanceIds=[name])
    return found["Reservations"][0]["Instances"][0]


def tags_of(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


@pytest.fixture
def requests(monkeypatch) -> list[dict[str, Any]]:
    """What is asked of RunInstances; moto does not keep all of it."""
    asked: list[dict[str, Any]] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        asked.append(params)

    # Every client that Ray makes from now on tells; it would keep the one that it has.
    resource_cache.cache_clear()
    original = boto3.session.Session.resource

    def telling(self: Any, *arguments: Any, **options: Any) -> Any:
        resource = original(self, *arguments, **options)
        resource.meta.client.meta.events.register("provide-client-params.ec2.RunInstances", note)
        return resource

    monkeypatch.setattr(boto3.session.Session, "resource", telling)
    return asked


@pytest.mark.parametrize("node_type", ["head", "gpu"])
def test_a_node_is_launched_as_the_file_says(aws, requests, node_type):
    config = aws.config
    (instance,) = launch(config, node_type)
    is_head = node_type == "head"
    assert instance["State"]["Name"] in ("pending", "running")
    assert instance["InstanceType"] == ("m7i.xlarge" if is_head else "g5.xlarge")
    assert instance.get("InstanceLifecycle") == (None if is_head else "spot")
    assert [each["GroupId"] for each in instance["SecurityGroups"]] == [aws.group]
    assert instance["KeyName"] == f"ray-autoscaler_{REGION}"
    assert tags_of(instance) | {
        "ray-cluster-name": config["cluster_name"],
        "ray-user-node-type": node_type,
        "Name": f"ray-aiornot-{node_type}",
    } == tags_of(instance)
    profile = instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]
    assert profile == ("aiornot-head" if is_head else "aiornot-worker")
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    asked = requests[-1]
    (disk,) = asked["BlockDeviceMappings"]
    assert disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"]
    assert asked["InstanceInitiatedShutdownBehavior"] == "terminate"
    market = {} if is_head else {"MarketType": "spot"}
    assert asked.get("InstanceMarketOptions", {}) == market


def test_the_disk_is_encrypted_and_the_user_data_arrive(aws):
    (instance,) = launch(aws.config, "gpu")
    (mapping,) = instance["BlockDeviceMappings"]
    (volume,) = aws.ec2.describe_volumes(VolumeIds=[mapping["Ebs"]["VolumeId"]])["Volumes"]
    assert (volume["Encrypted"], volume["Size"], volume["VolumeType"]) == (True, 150, "gp3")
    kept = aws.ec2.describe_instance_attribute(
        InstanceId=instance["InstanceId"], Attribute="userData"
    )
    text = base64.b64decode(kept["UserData"]["Value"]).decode()
    assert text == load()["available_node_types"]["gpu"]["node_config"]["UserData"]


def test_all_zones_are_tried_and_the_claimed_resources_are_those_of_the_instance(aws):
    config = aws.config
    for each in config["available_node_types"].values():
        assert len(each["node_config"]["SubnetIds"]) == 3
    found = aws.ec2.describe_instance_types(InstanceTypes=["g5.xlarge"])["InstanceTypes"][0]
    claimed = config["available_node_types"]["gpu"]["resources"]
    assert claimed["CPU"] == found["VCpuInfo"]["DefaultVCpus"]
    assert claimed["GPU"] == sum(each["Count"] for each in found["GpuInfo"]["Gpus"])


def test_a_slip_in_a_node_config_is_seen_here(aws):
    aws.config["available_node_types"]["gpu"]["node_config"]["InstanceMarketOption"] = {}
    with pytest.raises(ParamValidationError):
        launch(aws.config, "gpu")


@pytest.fixture
def ec2_answers(monkeypatch) -> Callable[[str], list[tuple[str, int]]]:
    """Make EC2 refuse spot with an error code; gives what was asked for: market and number."""

    def refuse(code: str) -> list[tuple[str, int]]:
        asked: list[tuple[str, int]] = []
        original = InstanceBackend.run_instances

        def run(self: Any, image: str, count: int, *rest: Any, **options: Any) -> Any:
            market = options.get("instance_market_options") or "on-demand"
            asked.append((market, count))
            if market == "spot" and code:
                raise EC2ClientError(code, "no")
            return original(self, image, count, *rest, **options)

        monkeypatch.setattr(InstanceBackend, "run_instances", run)
        return asked

    return refuse


@pytest.mark.parametrize("code", sorted(ray_spot.NO_SPOT))
def test_a_worker_is_bought_on_demand_when_spot_has_run_out(aws, ec2_answers, code):
    config = aws.config
    asked = ec2_answers(code)
    (instance,) = launch(config, "gpu")
    assert instance.get("InstanceLifecycle") is None
    assert tags_of(instance)["ray-user-node-type"] == "gpu"
    assert tags_of(instance)[ray_spot.INSTEAD] == "yes"
    # Every zone is asked for spot before that.
    assert [market for market, _ in asked].count("spot") >= 3
    assert asked[-1] == ("on-demand", 1)


def test_no_more_are_bought_on_demand_than_the_file_allows(aws, ec2_answers, requests, caplog):
    config = aws.config
    ec2_answers("InsufficientInstanceCapacity")
    with caplog.at_level(logging.WARNING, logger="aiornot.ray_spot"):
        for _ in range(3):  # moto gives one for a request, however many are asked for
            launch(config, "gpu")
        launch(config, "gpu", count=3)
        assert requests[-1]["MaxCount"] == 1
        with pytest.raises(NodeLaunchException, match="InsufficientInstanceCapacity"):
            launch(config, "gpu")
    assert "and 4 on demand already" in caplog.text


def test_the_next_worker_is_spot_again_and_an_ended_one_makes_room(aws, ec2_answers, monkeypatch):
    config = aws.config
    config["provider"]["max_on_demand"] = 1
    ec2_answers("InsufficientInstanceCapacity")
    (first,) = launch(config, "gpu")
    aws.ec2.terminate_instances(InstanceIds=[first["InstanceId"]])
    assert len(launch(config, "gpu")) == 1
    monkeypatch.undo()  # spot is back
    (last,) = launch(config, "gpu")
    assert last["InstanceLifecycle"] == "spot"


def test_the_autoscalers_threads_buy_no_more_than_allowed_either(aws, ec2_answers):
    config = aws.config
    config["provider"]["max_on_demand"] = 1
    ec2_answers("InsufficientInstanceCapacity")
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    reader = SimpleNamespace(
        get_cached_autoscaling_config=lambda: AutoscalingConfig(config, skip_content_hash=True)
    )
    # What the autoscaler on the head launches with: two threads for more than five nodes.
    launcher = NodeProviderAdapter(provider, reader)
    launcher.launch(shape={"gpu": 6}, request_id="1")
    errors, deadline = [], time.monotonic() + 60
    while not errors and time.monotonic() < deadline:
        errors += launcher.poll_errors()
        time.sleep(0.05)
    (error,) = errors
    assert "InsufficientInstanceCapacity" in repr(error)
    (node,) = launcher.get_non_terminated().values()
    assert node.node_type == "gpu"


def test_a_refusal_that_is_not_spots_stays_a_refusal(aws, ec2_answers):
    config = aws.config
    asked = ec2_answers("UnauthorizedOperation")
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        launch(config, "gpu")
    assert {market for market, _ in asked} == {"spot"}


@pytest.mark.parametrize("wrong", [None, -1, True, "4"])
def test_the_fallback_has_a_bound(aws, wrong):
    aws.config["provider"]["max_on_demand"] = wrong
    with pytest.raises(InputError, match="max_on_demand"):
        launch(aws.config, "gpu")


def test_ending_the_nodes_leaves_nothing_that_costs(aws):
    config = aws.config
    launch(config, "head")
    launch(config, "gpu")
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    mine = provider.non_terminated_nodes({})
    disks = [
        disk["Ebs"]["VolumeId"] for each in mine for disk in described(each)["BlockDeviceMappings"]
    ]
    assert len(disks) == len(mine) == 2
    provider.terminate_nodes(mine)
    assert provider.non_terminated_nodes({}) == []
    left = {each["VolumeId"] for each in aws.ec2.describe_volumes()["Volumes"]}
    assert not left & set(disks)


def test_the_group_is_closed_to_the_world_and_open_among_its_nodes(aws):
    (group,) = aws.ec2.describe_security_groups(GroupIds=[aws.group])["SecurityGroups"]
    ssh, inside = sorted(group["IpPermissions"], key=lambda rule: rule["IpProtocol"] == "-1")
    assert (ssh["FromPort"], ssh["ToPort"]) == (22, 22)
    assert [each["CidrIp"] for each in ssh["IpRanges"]] == [ADDRESS]
    assert inside["IpRanges"] == []
    assert [each["GroupId"] for each in inside["UserIdGroupPairs"]] == [aws.group]


def test_making_the_account_twice_changes_nothing(aws, account, capsys):
    make_account(account, "pictures", "--ssh-from", ADDRESS)
    assert capsys.readouterr().out.split()[-1] == aws.group
    iam = boto3.client("iam")
    names = {
        each["InstanceProfileName"] for each in iam.list_instance_profiles()["InstanceProfiles"]
    }
    assert names == {"aiornot-head", "aiornot-worker"}
    closed = boto3.client("s3").get_public_access_block(Bucket="pictures")
    assert all(closed["PublicAccessBlockConfiguration"].values())


def test_a_worker_may_reach_the_bucket_and_start_nothing(aws):
    iam = boto3.client("iam")
    actions = {}
    for role in ("aiornot-worker", "aiornot-head"):
        policy = iam.get_role_policy(RoleName=role, PolicyName="aiornot")["PolicyDocument"]
        actions[role] = {name for each in policy["Statement"] for name in each["Action"]}
    assert {name.partition(":")[0] for name in actions["aiornot-worker"]} == {"s3"}
    assert actions["aiornot-worker"] < actions["aiornot-head"]
    assert "ec2:RunInstances" in actions["aiornot-head"]
    assert "*" not in actions["aiornot-head"] and "ec2:*" not in actions["aiornot-head"]


def test_the_head_may_end_the_nodes_of_the_file(account):
    policy = account.launch_policy("123456789012")
    (ending,) = [each for each in policy if "ec2:TerminateInstances" in each["Action"]]
    name = load()["cluster_name"]
    assert ending["Condition"]["StringEquals"] == {"ec2:ResourceTag/ray-cluster-name": name}


def test_an_account_without_credentials_is_one_sentence(account, monkeypatch, tmp_path, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(SystemExit) as end:
        make_account(account, "pictures", "--ssh-from", ADDRESS)
    assert end.value.code == 2 and "no AWS credentials" in capsys.readouterr().err


def test_the_whole_world_is_no_address_to_connect_from(account, capsys):
    with pytest.raises(SystemExit):
        make_account(account, "pictures", "--ssh-from", "0.0.0.0/0")
    assert "the whole world" in capsys.readouterr().err


def test_a_bucket_of_someone_else_is_told(aws, account):
    with pytest.raises(ClientError), account._there_already("BucketAlreadyOwnedByYou"):
        raise ClientError({"Error": {"Code": "BucketAlreadyExists"}}, "CreateBucket")

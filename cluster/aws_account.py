"""Make in an AWS account what cluster.yaml names: bucket, two roles, security group. Nothing costs.

    python cluster/aws_account.py my-bucket --ssh-from 203.0.113.7/32

Run it again after a change: what is there is left, and brought up to date. It prints the id of the
security group for cluster.yaml. The credentials are those of the AWS command line.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.exceptions import ClientError, NoCredentialsError

NAME = "aiornot"
"""Of the cluster in cluster.yaml, of the security group, and the start of the roles' names."""

Policy = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bucket", help="for data and runs; made if it is not there")
    parser.add_argument("--region", default="us-west-2", help="that of cluster.yaml")
    parser.add_argument(
        "--ssh-from", required=True, help="addresses that may connect: 203.0.113.7/32"
    )
    given = parser.parse_args()
    if given.ssh_from.endswith("/0"):
        parser.error("--ssh-from must not be the whole world: give your address with /32")
    try:
        account = boto3.client("sts", region_name=given.region).get_caller_identity()["Account"]
    except NoCredentialsError:
        parser.error("no AWS credentials: run `aws configure`, or set AWS_PROFILE")
    make_bucket(given.bucket, given.region)
    make_role(f"{NAME}-worker", storage_policy(given.bucket))
    make_role(f"{NAME}-head", storage_policy(given.bucket) + launch_policy(account))
    allow_spot()
    print(make_group(given.region, given.ssh_from))


def make_bucket(bucket: str, region: str) -> None:
    """Make a private bucket; S3 encrypts what is in it by default."""
    s3 = boto3.client("s3", region_name=region)
    there = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with _there_already("BucketAlreadyOwnedByYou"):
        s3.create_bucket(Bucket=bucket, **({} if region == "us-east-1" else there))
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(
        Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(closed, True)
    )


def storage_policy(bucket: str) -> Policy:
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    return [
        _allow(["s3:ListBucket", "s3:GetBucketLocation"], f"arn:aws:s3:::{bucket}"),
        _allow(objects, f"arn:aws:s3:::{bucket}/*"),
    ]


def launch_policy(account: str) -> Policy:
    """Return what the autoscaler may do: start nodes, end its own, pass on the workers' role."""
    own = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": NAME}}
    starting = {"StringEquals": {"ec2:CreateAction": "RunInstances"}}
    worker = f"arn:aws:iam::{account}:role/{NAME}-worker"
    image = "arn:aws:ssm:*::parameter/aws/service/*"
    return [
        _allow(["ec2:Describe*", "ec2:RunInstances"], "*"),
        _allow(["ec2:CreateTags"], "*") | {"Condition": starting},
        _allow(["ec2:CreateTags", "ec2:TerminateInstances"], "*") | {"Condition": own},
        _allow(["ssm:GetParameters"], image),
        _allow(["iam:PassRole"], worker),
    ]


def make_role(name: str, policy: Policy) -> None:
    """Make a role that EC2 may take on, with the profile of the same name through which it does."""
    iam = boto3.client("iam")
    trust = _allow(["sts:AssumeRole"], None) | {"Principal": {"Service": "ec2.amazonaws.com"}}
    with _there_already("EntityAlreadyExists"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=_document([trust]))
    iam.put_role_policy(RoleName=name, PolicyName=NAME, PolicyDocument=_document(policy))
    with _there_already("EntityAlreadyExists"):
        iam.create_instance_profile(InstanceProfileName=name)
    with _there_already("LimitExceeded"):  # a profile holds one role
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


def allow_spot() -> None:
    """Make the role that EC2 itself needs for spot, once per account."""
    with _there_already("InvalidInput", "EntityAlreadyExists"):
        boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")


def make_group(region: str, ssh_from: str) -> str:
    """Make the security group: SSH from the given addresses, everything among its own nodes."""
    ec2 = boto3.client("ec2", region_name=region)
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpc:
        raise SystemExit(f"{region} has no default VPC: aws ec2 create-default-vpc")
    place = vpc[0]["VpcId"]
    with _there_already("InvalidGroup.Duplicate"):
        ec2.create_security_group(GroupName=NAME, Description="Ray nodes of aiornot", VpcId=place)
    asked = {"group-name": [NAME], "vpc-id": [place]}
    filters = [{"Name": name, "Values": values} for name, values in asked.items()]
    (group,) = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]}
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group["GroupId"]}]}
    for rule in (ssh, inside):
        with _there_already("InvalidPermission.Duplicate"):
            ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[rule])
    return str(group["GroupId"])


@contextmanager
def _there_already(*codes: str) -> Iterator[None]:
    """Let pass that something is there already."""
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] not in codes:
            raise


def _allow(actions: list[str], resource: str | None) -> dict[str, Any]:
    where = {} if resource is None else {"Resource": resource}
    return {"Effect": "Allow", "Action": actions, **where}


def _document(statements: Policy) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


if __name__ == "__main__":
    main()

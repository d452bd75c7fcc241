"""ray_cluster.yaml: the machines that Ray's own code asks a simulated EC2 for, and what the roles may do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.client import BaseClient
from moto import mock_aws

ROOT = Path(__file__).parents[2]
PYTHON_OF_UBUNTU = {"22.04": "3.10", "24.04": "3.12"}


@pytest.fixture
def config() -> dict[str, Any]:
    # Ray reads it when it is imported, and tests of local clusters that come later are to stay on 127.0.0.1.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))


def policies() -> list[dict[str, Any]]:
    """Of the head and of both, as the page has them."""
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL)
    return [json.loads(block) for block in blocks if '"Statement"' in block]


def actions(policy: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        given = statement["Action"]
        found.update([given] if isinstance(given, str) else given)
    return found


def test_ray_asks_for_our_machines_and_needs_no_more_than_the_head_may(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray writes the key pair
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    calls: list[tuple[str, dict[str, Any]]] = []
    make_call = BaseClient._make_api_call  # pyright: ignore[reportAttributeAccessIssue]

    def recorded(self: Any, name: str, parameters: dict[str, Any]) -> Any:
        calls.append((f"{self.meta.service_model.service_name}:{name}", parameters))
        return make_call(self, name, parameters)

    with mock_aws():
        iam = boto3.client("iam", region_name="us-east-1")
        for name in ("cope-prep-head", "cope-prep-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
        made = bootstrap_aws(config)
        calls.clear()  # those were of the machine on which `ray up` is called
        types = made["available_node_types"]
        provider = AWSNodeProvider(made["provider"], made["cluster_name"])
        for name in ("head", "worker"):
            provider.create_node(types[name]["node_config"], {"ray-node-type": name}, 1)
        for node in provider.non_terminated_nodes({}):
            provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
            provider.terminate_node(node)
    head, worker = (parameters for name, parameters in calls if name == "ec2:RunInstances")
    for machine in (head, worker):
        release = re.fullmatch(
            r"resolve:ssm:/aws/service/canonical/ubuntu/server/([\d.]+)/stable/current/amd64/.*/ami-id",
            machine["ImageId"],
        )
        assert release is not None
        assert PYTHON_OF_UBUNTU[release[1]] >= "3.11"
    assert head["IamInstanceProfile"] == {"Name": "cope-prep-head"}
    assert worker["IamInstanceProfile"] == {"Name": "cope-prep-worker"}
    allowed, of_both = map(actions, policies())
    assert {name for name, _ in calls} <= allowed
    assert {"ec2:TerminateInstances", "iam:PassRole", "ssm:GetParameters"} <= allowed
    assert {action.partition(":")[0] for action in of_both} == {"s3"}
    passed = [entry["Resource"] for entry in policies()[0]["Statement"] if entry["Action"] == "iam:PassRole"]
    assert [resource.rpartition("/")[2] for resource in passed] == [worker["IamInstanceProfile"]["Name"]]

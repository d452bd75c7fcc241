"""kuberay_rayjob.yaml: fields that KubeRay has, pods that Kubernetes accepts, and no credentials.

KubeRay's CRD schema is in no package that we can install, so its own part is checked against the fields of its Go
types (ray-operator/apis/ray/v1 in KubeRay's repository), written down here; the pods, which are most of it, are
checked against Kubernetes' own schemas, strictly: an unknown field fails.
"""

from __future__ import annotations

import importlib.metadata
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from cope_prep.jobs.cli import app

FILE = Path(__file__).parents[2] / "kuberay_rayjob.yaml"
KUBERNETES = "1.32"
JOB_FIELDS = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "entrypoint": str,
    "rayClusterSpec": dict,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "submissionMode": str,
    "submitterPodTemplate": dict,
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}
CLUSTER_FIELDS = {
    "autoscalerOptions": dict,
    "enableInTreeAutoscaling": bool,
    "headGroupSpec": dict,
    "rayVersion": str,
    "workerGroupSpecs": list,
}
HEAD_FIELDS = {"rayStartParams": dict, "template": dict}
WORKER_FIELDS = {
    **HEAD_FIELDS,
    "groupName": str,
    "maxReplicas": int,
    "minReplicas": int,
    "replicas": int,
}
AUTOSCALER_FIELDS = {"idleTimeoutSeconds": int, "upscalingMode": str}


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text()))


@pytest.fixture
def job(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] == "RayJob"]
    return found


def check(document: dict[str, Any], fields: dict[str, type]) -> None:
    assert document.keys() <= fields.keys()
    for name, value in document.items():
        assert type(value) is fields[name], f"{name}: {value!r}"


def test_kuberay_has_these_fields(job: dict[str, Any]) -> None:
    assert job["apiVersion"] == "ray.io/v1"
    spec = job["spec"]
    check(spec, JOB_FIELDS)
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode")
    cluster = spec["rayClusterSpec"]
    check(cluster, CLUSTER_FIELDS)
    assert cluster["rayVersion"] == importlib.metadata.version("ray")
    check(cluster["autoscalerOptions"], AUTOSCALER_FIELDS)
    assert cluster["autoscalerOptions"]["upscalingMode"] in ("Default", "Aggressive", "Conservative")
    check(cluster["headGroupSpec"], HEAD_FIELDS)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"]
        assert all(type(value) is str for value in group["rayStartParams"].values())
    (workers,) = cluster["workerGroupSpecs"]
    check(workers, WORKER_FIELDS)
    assert (workers["minReplicas"], workers["replicas"]) == (0, 0)
    assert workers["maxReplicas"] > 0


def test_kubernetes_accepts_the_pods(documents: list[dict[str, Any]], job: dict[str, Any]) -> None:
    account, _ = documents
    kubernetes_validate.validate(account, KUBERNETES, strict=True)
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) == 2
    for group in groups:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": group["template"]["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert pod["spec"]["terminationGracePeriodSeconds"] > 20  # in which a driver ends after SIGTERM
        assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    broken = {**pod, "spec": {**pod["spec"], "tolerance": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_the_job_is_a_command_that_failed_videos_do_not_fail(job: dict[str, Any], tmp_path: Path) -> None:
    program, *arguments = shlex.split(job["spec"]["entrypoint"].replace("s3://BUCKET", str(tmp_path)))
    assert program == "cope-prep"
    done = CliRunner().invoke(app, arguments)
    # The command knows all these options: it looked for the dataset.
    assert "has no manifest.parquet" in done.output
    assert "--failed-ok" in arguments  # each failure would be a new cluster, backoffLimit times


def test_no_credentials_are_in_it(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            assert "env" not in container
            assert [set(source) for source in container["envFrom"]] == [{"secretRef"}]

"""The benchmark of S3 against the local disk runs, on one copy of each clip, and its figures agree."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, in no package
import bench_s3


def test_the_job_runs_on_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    out = tmp_path / "s3.json"
    bench_s3.main(["--copies", "1", "--rounds", "1", "--size", "64x64", "--json", str(out)])
    document = json.loads(out.read_text())
    assert document["num_videos"] == 4
    (only,) = document["rounds"]
    assert only["local"]["dataset_bytes"] == only["s3"]["dataset_bytes"] > 0
    for kind in ("local", "s3"):
        assert list(only[kind]["step_s"]) == list(bench_s3.STEPS)
        assert sum(only[kind]["step_s"].values()) == pytest.approx(document[f"{kind}_s"])
    assert only["s3"]["store_cpu_s"] == document["moto_cpu_s"] > 0
    assert document["ratio"]["median"] == pytest.approx(document["s3_s"] / document["local_s"])
    assert f"s3 / local: {document['ratio']['median']:.3f}" in capsys.readouterr().out
    assert os.environ.get("AWS_ENDPOINT_URL") == endpoint

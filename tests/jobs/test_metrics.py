"""The metrics of jobs: counted once a ledger row, on Ray only; and the Grafana dashboard asks for what is there."""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import stage_work
from rich.console import Console

from cope_prep.jobs.executors import Executor, InProcessExecutor
from cope_prep.jobs.summary import StageSummary
from cope_prep.jobs.video_stage import StageOptions, VideoTask, run_video_stage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.schemas.records import video_key

if TYPE_CHECKING:
    from cope_prep.jobs.executors import RayExecutor

DASHBOARD = Path(__file__).parents[2] / "grafana_dashboard.json"
COMMAND = [sys.executable, "-c", "from cope_prep.jobs.cli import main; main()"]
SAMPLE = re.compile(r"^(?P<name>[a-z_]+)\{(?P<labels>.*)\} (?P<value>\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
WAIT_S = 60.0

Sample = tuple[str, dict[str, str], float]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_dashboard_has_what_grafana_needs(dashboard: dict[str, Any]) -> None:
    assert dashboard["title"]
    assert dashboard["uid"]
    assert dashboard["schemaVersion"] >= 36
    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids) >= 8
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "session": "query"}
    cells: Counter[tuple[int, int]] = Counter()
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns = range(place["x"], place["x"] + place["w"])
        cells.update(itertools.product(columns, range(place["y"], place["y"] + place["h"])))
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")") > 0
    assert set(cells.values()) == {1}  # no two panels overlap


def scrape() -> list[Sample]:
    """What Prometheus would see of cope-prep's metrics on this node."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=20) as answer:
        text = answer.read().decode()
    found = (SAMPLE.match(line) for line in text.splitlines() if line.startswith("ray_cope_prep"))
    return [
        (match["name"], dict(LABEL.findall(match["labels"])), float(match["value"]))
        for match in found
        if match
    ]


@pytest.fixture(scope="module")
def samples(
    ray_executor: RayExecutor, media: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> list[Sample]:
    """Of a real run of its own process on the test session's Ray."""
    import ray

    folder = tmp_path_factory.mktemp("metrics")
    source = folder / "source"
    source.mkdir()
    for index in range(3):
        media.write_clip(source / f"clip{index}.mp4", num_frames=60, painter=media.moving)
    (source / "broken.mp4").write_bytes(b"no video" * 99)
    dataset = str(folder / "dataset")
    subprocess.run([*COMMAND, "manifest", "files", str(source), dataset], check=True, capture_output=True)
    before = {labels["WorkerId"] for _, labels, _ in scrape()}
    address = ray.get_runtime_context().gcs_address
    process = subprocess.Popen(
        [*COMMAND, "run", dataset, "--address", address],
        env=os.environ | {"RAY_metrics_report_interval_ms": "500"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Ray drops the gauges of a process that has ended: what was seen meanwhile is kept.
    seen: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
    deadline_s = time.monotonic() + WAIT_S
    while True:
        ended = process.poll() is not None
        for sample in scrape():
            if sample[1]["WorkerId"] not in before:
                seen[sample[0], frozenset(sample[1].items())] = sample
        stages = {(name, labels.get("stage")) for name, labels, _ in seen.values()}
        if ended and ("ray_cope_prep_bytes_total", "shards") in stages:
            break
        assert time.monotonic() < deadline_s, f"no metrics of the run: {stages}"
        time.sleep(0.2)
    assert process.returncode == 1  # one video failed
    return list(seen.values())


def values(samples: list[Sample], name: str, *labels: str) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for sample, of, value in samples:
        if sample == name:
            found[tuple(of[label] for label in labels)] += value
    return dict(found)


def test_run_is_counted_as_its_ledgers_have_it(samples: list[Sample]) -> None:
    assert values(samples, "ray_cope_prep_videos_total", "stage", "status") == {
        ("reencode", "ok"): 3,
        ("reencode", "failed"): 1,
        ("extract", "ok"): 3,
    }
    assert values(samples, "ray_cope_prep_failures_total", "stage", "error_class") == {
        ("reencode", "NotAVideoError"): 1
    }
    seconds = values(samples, "ray_cope_prep_video_seconds_total", "stage")
    assert seconds == {("reencode",): pytest.approx(6.0, abs=0.5), ("extract",): pytest.approx(6.0, abs=0.5)}
    sizes = values(samples, "ray_cope_prep_bytes_total", "stage", "direction")
    assert sizes["reencode", "out"] == sizes["extract", "in"] > 0
    assert sizes["shards", "out"] > 0
    assert values(samples, "ray_cope_prep_stage_seconds_count", "stage") == {
        ("reencode",): 4,
        ("extract",): 3,
        ("shards",): 1,
    }


def test_dashboard_asks_for_metrics_and_labels_that_exist(
    dashboard: dict[str, Any], samples: list[Sample]
) -> None:
    labels: dict[str, set[str]] = defaultdict(set)
    for name, of, _ in samples:
        labels[name].update(of)
    asked: Counter[str] = Counter()
    for query in [*queries(dashboard), dashboard["templating"]["list"][1]["definition"]]:
        names = re.findall(r"\bray_\w+", query)
        assert len(names) == 1, query
        asked.update(names)
        used = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
        used |= {
            pair for group in re.findall(r"\{([^}]*)\}", query) for pair in re.findall(r"(\w+)[=!]", group)
        }
        used |= set(re.findall(r"label_values\(\w+, (\w+)\)", query))
        assert used
        assert used <= labels[names[0]], query
    assert asked.keys() == {
        "ray_cope_prep_videos_total",
        "ray_cope_prep_video_seconds_total",
        "ray_cope_prep_bytes_total",
        "ray_cope_prep_failures_total",
        "ray_cope_prep_stage_seconds_bucket",
        "ray_cope_prep_items",
    }


def test_no_label_names_a_video(samples: list[Sample]) -> None:
    own = {label for _, labels, _ in samples for label in labels if not label.startswith("otel_")}
    rays_own = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
    assert own - rays_own == {"stage", "status", "direction", "error_class", "state", "le"}
    assert not any(
        "clip" in value or "broken" in value for _, labels, _ in samples for value in labels.values()
    )


class Recorder:
    """Takes the place of ray.util.metrics' classes."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[Any, ...]] = Counter()
        self.gauges: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self.broken = False

    def make(self, name: str, *arguments: Any, **options: Any) -> Any:
        recorder = self

        class Metric:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                if recorder.broken:
                    raise RuntimeError("no agent")
                recorder.counts[name, *sorted(tags.items())] += value  # type: ignore[assignment]

            def observe(self, value: float, tags: dict[str, str]) -> None:
                recorder.counts[name, *sorted(tags.items())] += 1

            def set(self, value: float, tags: dict[str, str]) -> None:
                recorder.gauges[name, *sorted(tags.items())].append(value)

        return Metric()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    from ray.util import metrics

    recorder = Recorder()
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, kind, recorder.make)
    return recorder


def run(tmp_path: Path, executor: Executor, *, attempts: int = 1) -> StageSummary:
    """Five videos of which one is bad and one's worker dies until its last attempt."""
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs())
    tasks = []
    for index, content in enumerate(("one", "two", "bad", "three", "four")):
        (tmp_path / f"{index}.src").write_text(content)
        key = video_key(f"v{index}")
        tasks.append(
            VideoTask(
                video_id=f"v{index}",
                video_key=key,
                source_uri=str(tmp_path / f"{index}.src"),
                output_uri=layout.reencoded(key),
                source_size_bytes=10,
                source_version="v1",
                weight=float(index),
            )
        )

    def call(task: VideoTask) -> functools.partial[stage_work.Report]:
        if task.video_id == "v0" and attempts > 1:
            counter = str(tmp_path / "attempts")
            return functools.partial(
                stage_work.copy_after_deaths, task.source_uri, task.output_uri, counter, attempts
            )
        return functools.partial(stage_work.copy_video, task.source_uri, task.output_uri)

    console = Console(file=io.StringIO())
    return run_video_stage(
        layout, "reencode", tasks, call, executor=lambda: executor, options=StageOptions(), console=console
    )


def test_retried_video_counts_once(tmp_path: Path, ray_executor: RayExecutor, recorder: Recorder) -> None:
    run(tmp_path, ray_executor, attempts=3)
    assert (tmp_path / "attempts").stat().st_size == 3
    stage = ("stage", "reencode")
    assert recorder.counts == {
        ("cope_prep_videos_total", stage, ("status", "ok")): 4,
        ("cope_prep_videos_total", stage, ("status", "failed")): 1,
        ("cope_prep_video_seconds_total", stage): 4.0,
        ("cope_prep_failures_total", ("error_class", "CorruptVideoError"), stage): 1,
        ("cope_prep_bytes_total", ("direction", "in"), stage): 40,
        ("cope_prep_bytes_total", ("direction", "out"), stage): 15,
        ("cope_prep_stage_seconds", stage): 5,
    }
    in_flight = recorder.gauges["cope_prep_items", stage, ("state", "in_flight")]
    assert max(in_flight) == 5
    assert in_flight[-1] == 0
    assert recorder.gauges["cope_prep_items", stage, ("state", "pending")][-1] == 0


def test_without_ray_nothing_is_emitted(tmp_path: Path, recorder: Recorder) -> None:
    assert run(tmp_path, InProcessExecutor()).num_ok == 4
    assert not recorder.counts
    assert not recorder.gauges


def test_broken_metrics_fail_no_job(
    tmp_path: Path, ray_executor: RayExecutor, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.broken = True
    with caplog.at_level(logging.WARNING, logger="cope_prep"):
        summary = run(tmp_path, ray_executor)
    assert (summary.num_ok, summary.num_failed) == (4, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "metrics are off for this stage: RuntimeError: no agent"
    ]

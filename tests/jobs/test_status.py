"""How far a dataset is: the same figures as by plain loops, and nothing is read twice while watching."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from slow_status import stage_fields
from status_tables import NOW_UNIX_S, append, make_row, random_dataset, write_manifest

from cope_prep.jobs.status import StageStatus, StatusReader, dataset_status
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger
from cope_prep.schemas.arrow import LEDGER
from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import ExtractSpec


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(dataset=str(tmp_path / "dataset"), specs=Specs())


def comparable(stage: StageStatus) -> dict[str, Any]:
    found = {name: getattr(stage, name) for name in stage.__dataclass_fields__ if name != "history"}
    for name in ("nodes", "failures", "partials"):
        found[name] = [dataclasses.astuple(item) for item in found[name]]
    found["recent_failures"] = [dataclasses.astuple(item)[1:] for item in stage.recent_failures]
    return found


@pytest.mark.parametrize(("seed", "age_s"), [(0, 3.0), (1, 3.0), (2, 5000.0)])
def test_every_figure_is_that_of_plain_loops(layout: Layout, seed: int, age_s: float) -> None:
    random_dataset(layout, random.Random(seed), last_unix_s=NOW_UNIX_S - age_s)
    stages = dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S).stages
    assert [stage.stage for stage in stages] == ["reencode", "extract"]
    for stage in stages:
        expected = stage_fields(layout, stage.stage, now_unix_s=NOW_UNIX_S)
        found = comparable(stage)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name == "nodes":
                assert [node[:2] for node in found[name]] == [node[:2] for node in value]
                value, found[name] = ([node[2:] for node in nodes] for nodes in (value, found[name]))
                assert found[name] == [pytest.approx(node) for node in value]
            else:
                assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name
        assert min(stage.num_ok, stage.num_partial, stage.num_failed, stage.num_pending) > 0
        assert (stage.left_s is not None) == (age_s < 120)
    assert max(len(stage.nodes) for stage in stages) == 3
    assert stages[1].num_waiting > 0


def test_history_has_every_end_of_the_last_run_once(layout: Layout) -> None:
    write_manifest(layout, {f"v{index}": 100 for index in range(300)})
    before = [
        make_row(layout, "reencode", f"v{index}", finished_unix_s=NOW_UNIX_S - 90_000 + index)
        for index in range(40)
    ]
    during = [
        make_row(
            layout,
            "reencode",
            f"v{index}",
            status="failed" if index % 10 == 0 else "ok",
            finished_unix_s=NOW_UNIX_S - 2900 + 10 * (index - 40),
        )
        for index in range(40, 300)
        if not 100 <= index < 200
    ]
    append(layout, "reencode", *before, *during)
    (stage,) = dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S).stages
    points = stage.history
    assert 30 <= len(points) <= 61
    assert sum(point.num_videos for point in points) == len(during)
    assert sum(point.num_failed for point in points) == sum(row.status == "failed" for row in during)
    assert sum(point.video_s for point in points) == pytest.approx(sum(row.duration_s for row in during))
    for point in points:
        own = [row for row in during if point.unix_s <= row.finished_unix_s < point.unix_s + point.span_s]
        assert point.num_videos == len(own)
    steps = {round(after.unix_s - at.unix_s, 6) for at, after in itertools.pairwise(points)}
    assert steps == {points[0].span_s}
    assert any(point.num_videos == 0 for point in points)  # the pause is there


def test_failures_are_the_latest_fifty(layout: Layout) -> None:
    write_manifest(layout, {f"v{index}": 100 for index in range(80)})
    rows = [
        make_row(
            layout, "reencode", f"v{index}", status="failed", finished_unix_s=NOW_UNIX_S - (index * 37) % 80
        )
        for index in range(80)
    ]
    append(layout, "reencode", *rows)
    (stage,) = dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S).stages
    times = [failure.finished_unix_s for failure in stage.recent_failures]
    assert times == sorted((row.finished_unix_s for row in rows), reverse=True)[:50]
    assert len(stage.failures) == 80


def test_rows_from_before_the_node_was_recorded_count(layout: Layout) -> None:
    write_manifest(layout, {"a": 100, "b": 100})
    append(layout, "reencode", make_row(layout, "reencode", "a"))
    (path,) = Path(layout.ledger("reencode")).iterdir()
    storage.publish_table(str(path), storage.read_table(str(path), LEDGER).drop_columns(["node"]))
    (stage,) = dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S).stages
    assert (stage.num_ok, stage.num_pending) == (1, 1)
    assert [node.node for node in stage.nodes] == [""]


def test_what_is_new_is_seen_and_nothing_is_read_twice(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(layout, {f"v{index}": 100 for index in range(9)})
    append(layout, "reencode", make_row(layout, "reencode", "v0"))
    read: list[str] = []
    read_table = storage.read_table

    def counting(uri: str, *arguments: Any, **options: Any) -> Any:
        read.append(uri)
        return read_table(uri, *arguments, **options)

    monkeypatch.setattr(storage, "read_table", counting)
    reader = StatusReader(layout.dataset)

    def num_done() -> int:
        (stage,) = reader.read(now_unix_s=NOW_UNIX_S).stages
        return stage.num_ok

    assert num_done() == 1
    assert len(read) == 2  # manifest and one part
    assert num_done() == 1
    assert len(read) == 2
    append(layout, "reencode", make_row(layout, "reencode", "v1"))
    assert num_done() == 2
    assert len(read) == 3
    Ledger(layout.ledger("reencode")).compact()
    read.clear()
    assert num_done() == 2
    assert len(read) == 1  # the merged part
    write_manifest(layout, {f"v{index}": 100 for index in range(12)})
    assert reader.read(now_unix_s=NOW_UNIX_S).num_videos == 12


def test_file_made_after_the_folder_was_listed_can_be_extracted(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(layout, {"a": 100, "b": 100})
    layout.write_spec("extract")
    append(layout, "reencode", make_row(layout, "reencode", "a"))
    Path(layout.reencoded(video_key("a"))).touch()
    monkeypatch.setattr("cope_prep.jobs.status_figures.LISTING_KEPT", 1e9)
    reader = StatusReader(layout.dataset)
    stages = reader.read().stages
    assert (stages[1].num_pending, stages[1].num_waiting) == (1, 1)
    append(layout, "reencode", make_row(layout, "reencode", "b", finished_unix_s=NOW_UNIX_S + 1e9))
    Path(layout.reencoded(video_key("b"))).touch()
    stages = reader.read().stages
    assert (stages[1].num_pending, stages[1].num_waiting) == (2, 0)


def test_another_extraction_has_a_status_of_its_own(layout: Layout) -> None:
    write_manifest(layout, {"a": 100})
    append(layout, "reencode", make_row(layout, "reencode", "a"))
    other = Layout(dataset=layout.dataset, specs=Specs(extract=ExtractSpec(window=10)))
    append(layout, "extract", make_row(layout, "extract", "a", source_size_bytes=50))
    other.write_spec("extract")
    stages = {
        stage.spec_hash: stage for stage in dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S).stages
    }
    assert stages[layout.specs.hash_of("extract")].num_ok == 1
    assert stages[other.specs.hash_of("extract")].num_waiting == 1  # the file is gone
    assert len(stages) == 3


def test_empty_manifest_and_no_manifest(layout: Layout) -> None:
    with pytest.raises(ConfigurationError, match="has no manifest"):
        dataset_status(layout.dataset)
    write_manifest(layout, {})
    layout.write_spec("reencode")
    found = dataset_status(layout.dataset)
    assert (found.num_videos, found.source_bytes) == (0, 0)
    (stage,) = found.stages
    assert (stage.num_pending, stage.videos_per_s, stage.history) == (0, None, ())

"""`stats` and `status` count the same: ledger rows of an earlier version of a source are in neither."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest
from status_tables import NOW_UNIX_S, append, make_row, random_dataset, write_manifest

from cope_prep.jobs.status import dataset_status
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.stats import dataset_stats

FIGURES = ("stage", "spec_hash", "num_ok", "num_partial", "num_failed", "source_bytes", "output_bytes")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(dataset=str(tmp_path / "dataset"), specs=Specs())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stats_and_status_agree(layout: Layout, seed: int) -> None:
    random_dataset(layout, random.Random(seed), last_unix_s=NOW_UNIX_S - 5)
    status = dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S)
    stats = dataset_stats(layout)
    assert len(stats.stages) == len(status.stages) == 2
    for ours, theirs in zip(stats.stages, status.stages, strict=True):
        assert [getattr(ours, name) for name in FIGURES] == [getattr(theirs, name) for name in FIGURES]
        assert ours.duration_s == pytest.approx(theirs.duration_s)
        for kind, items in (("failed", theirs.failures), ("partial", theirs.partials)):
            expected = Counter(item.error_class for item in items)
            found = {
                end.error_class: end.num_videos
                for end in stats.failures
                if (end.stage, end.status) == (ours.stage, kind)
            }
            assert found == expected
            assert len(found) == 2
    assert stats.total.num_listed == status.num_videos
    assert stats.total.num_failed == sum(stage.num_failed for stage in status.stages)


def test_replaced_source_is_counted_anew(layout: Layout) -> None:
    """Of three failed videos two were replaced: one is done since, one waits."""
    write_manifest(layout, {"same": 100, "done since": 200, "waiting": 200})
    bad = {"status": "failed", "error_class": "CorruptVideoError", "error_message": "is cut off"}
    old = [make_row(layout, "reencode", name, **bad) for name in ("same", "done since", "waiting")]
    new = make_row(
        layout,
        "reencode",
        "done since",
        source_size_bytes=200,
        finished_unix_s=NOW_UNIX_S + 1,
        duration_s=9.0,
    )
    append(layout, "reencode", *old, new)
    # The extraction of what was re-encoded before: of another size than what there is now.
    append(layout, "extract", make_row(layout, "extract", "done since", source_size_bytes=49))
    status = dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S)
    stats = dataset_stats(layout)
    assert [(stage.num_ok, stage.num_failed) for stage in status.stages] == [(1, 1), (0, 0)]
    assert [(stage.stage, stage.num_ok, stage.num_failed) for stage in stats.stages] == [
        ("reencode", 1, 1),
        ("extract", 0, 0),
    ]
    assert stats.total.num_failed == 1
    assert [(end.num_videos, end.example_video_id) for end in stats.failures] == [(1, "same")]
    assert [share.duration_s for share in stats.sources if share.what == "codec"] == [9.0]


def test_videos_that_are_not_listed_count_in_neither(layout: Layout) -> None:
    write_manifest(layout, {"listed": 100})
    append(layout, "reencode", *(make_row(layout, "reencode", name) for name in ("listed", "gone")))
    (status,) = dataset_status(layout.dataset, now_unix_s=NOW_UNIX_S).stages
    (stats,) = dataset_stats(layout).stages
    assert stats.num_ok == status.num_ok == 1
    assert dataclasses.asdict(stats)["duration_s"] == status.duration_s == 2.0

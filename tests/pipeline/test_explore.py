"""The dashboard's Explore: one row a video, and filters, sorting and pages of it, against plain Python."""

from __future__ import annotations

import csv
import io
import math
import statistics
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from cope_prep.pipeline import explore_table, storage
from cope_prep.pipeline.explore import Between, Contains, Filter, OneOf, VideoTable, open_videos
from cope_prep.pipeline.explore_table import Column, table_versions
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow
from cope_prep.schemas.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parent))
import stats_rows

FPS = 30
COLUMNS = (
    Column(name="video_id", kind="text", title="Video"),
    Column(name="subset", kind="category", title="Subset"),
    Column(name="motion", kind="number", title="Motion", unit="px"),
)
ROWS: list[dict[str, Any]] = [
    {"video_id": "a/100%.mp4", "subset": "x", "motion": 2.0},
    {"video_id": "a/b_c.mp4", "subset": None, "motion": None},
    {"video_id": "A/BxC.mp4", "subset": "y", "motion": 2.0},
    {"video_id": "'; DROP TABLE videos; --", "subset": "it's", "motion": -1.5},
    {"video_id": "größe.mp4", "subset": "x", "motion": 30.25},
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> stats_rows.Rows:
    layout = Layout(dataset=str(tmp_path_factory.mktemp("explore")), specs=Specs())
    made = stats_rows.make_rows(layout)
    stats_rows.write(made)
    return made


@pytest.fixture(scope="module")
def videos(rows: stats_rows.Rows) -> VideoTable:
    return open_videos(rows.layout)


@pytest.fixture
def small() -> VideoTable:
    return VideoTable(COLUMNS, pa.Table.from_pylist(ROWS))


def ids(table: VideoTable, *filters: Filter, **how: Any) -> list[str]:
    return table.find(filters, **how).rows["video_id"].to_pylist()


def test_every_video_of_the_manifest_is_a_row(rows: stats_rows.Rows, videos: VideoTable) -> None:
    assert videos.num_videos == len(rows.manifest)
    assert ids(videos) == sorted(row["video_id"] for row in rows.manifest)
    assert videos.find().num_matches == len(rows.manifest)


def test_figures_are_those_of_the_samples(rows: stats_rows.Rows, videos: VideoTable) -> None:
    gops: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for gop in rows.gops:
        gops[gop["video_id"]].append(gop)
    num_with_windows = 0
    for row in videos.find().rows.to_pylist():
        own = gops[row["video_id"]]
        if not own:
            assert row["num_gops"] is row["bytes_per_s"] is row["psnr_min_db"] is row["shards_status"] is None
            continue
        assert row["num_gops"] == len(own)
        assert row["shards_status"] == "ok"
        num_frames = sum(gop["num_frames"] for gop in own)
        assert row["duration_s"] == pytest.approx(num_frames / FPS)
        assert row["bytes_per_s"] == pytest.approx(sum(gop["size_bytes"] for gop in own) * FPS / num_frames)
        windows = {
            name: [value for gop in own for value in gop[name]]
            for name in (
                "motion_mean_px", "motion_p95_px", "zero_motion_share", "intra_share", "residual_energy",
                "clipped_vectors", "clipped_residuals", "psnr_y_db",
            )
        }  # fmt: skip
        num_windows = sum(gop["num_windows"] for gop in own)
        assert row["num_windows"] == num_windows
        if not num_windows:
            assert row["motion_mean_px"] is row["clipped_share"] is row["psnr_mean_db"] is None
            continue
        num_with_windows += 1
        for name in ("zero_motion_share", "intra_share", "residual_energy"):
            assert row[name] == pytest.approx(math.fsum(windows[name]) / num_windows, rel=1e-6)
        assert row["psnr_mean_db"] == pytest.approx(math.fsum(windows["psnr_y_db"]) / num_windows, rel=1e-6)
        assert row["psnr_min_db"] == pytest.approx(min(windows["psnr_y_db"]), rel=1e-6)
        for name, summed in (("motion_mean_px", statistics.fmean), ("motion_p95_px", max)):
            pairs = zip(windows[name], windows["intra_share"], strict=True)
            with_vectors = [value for value, intra in pairs if intra < 1]
            expected = summed(with_vectors) if with_vectors else None
            assert row[name] == (None if expected is None else pytest.approx(expected, rel=1e-6))
        pairs = zip(windows["clipped_vectors"], windows["clipped_residuals"], strict=True)
        clipped = sum(vectors > 0 or residuals > 0 for vectors, residuals in pairs)
        assert row["clipped_share"] == pytest.approx(clipped / num_windows)
    assert num_with_windows > 10


def test_ledgers_tell_status_error_and_source(rows: stats_rows.Rows, videos: VideoTable) -> None:
    errors = Counter()
    for row in videos.find().rows.to_pylist():
        encoded = rows.ledger.get(("reencode", row["video_id"]))
        extracted = rows.ledger.get(("extract", row["video_id"]))
        assert row["reencode_status"] == (encoded.status if encoded else None)
        assert row["extract_status"] == (extracted.status if extracted else None)
        last = extracted if extracted and extracted.error_class else encoded
        assert (row["error_class"] or "") == (last.error_class if last else "")
        assert (row["error_message"] or "") == (last.error_message if last else "")
        errors[row["error_class"]] += 1
        done = encoded if encoded and encoded.status != "failed" else None
        assert row["source_codec"] == (done.source_codec if done else None)
        assert row["source_fps"] == (done.source_fps if done else None)
        if done and done.source_width_px:
            assert row["source_resolution"] == f"{done.source_width_px}x{done.source_height_px}"
    assert errors[None] > 10
    assert len(errors) == 3


def test_questions_are_counted_by_kind(rows: stats_rows.Rows, videos: VideoTable) -> None:
    asked = Counter((row["video_id"], row["kind"]) for row in rows.questions)
    titles = {column.title: name for name, column in videos.columns.items()}
    table = videos.find().rows.to_pylist()
    for kind in ("cap", "oe", "mc"):
        name = titles[f"Questions: {kind}"]
        assert [row[name] for row in table] == [asked[row["video_id"], kind] for row in table]
    assert [row["num_questions"] for row in table] == [
        sum(asked[row["video_id"], kind] for kind in ("cap", "oe", "mc")) for row in table
    ]
    assert sum(row["num_questions"] for row in table) > 150
    assert "questions_mc" in videos.csv().decode().partition("\n")[0]


def test_in_the_middle_of_a_run_there_is_what_the_ledgers_know(tmp_path: Path) -> None:
    made = stats_rows.make_rows(Layout(dataset=str(tmp_path), specs=Specs()))
    stats_rows.write(made, "index", "questions")
    table = open_videos(made.layout)
    assert table.num_videos == len(made.manifest)
    assert table.bounds("motion_mean_px") is None
    assert len(ids(table, OneOf(column="reencode_status", values=("ok",)))) > 10


def test_a_remote_dataset_has_the_same_rows(rows: stats_rows.Rows, videos: VideoTable) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(rows.layout.dataset + "/", "/explore-remote", recursive=True)
    try:
        remote = open_videos(Layout(dataset="memory://explore-remote", specs=Specs()))
        assert remote.find().rows.equals(videos.find().rows)
    finally:
        memory.rm("/explore-remote", recursive=True)


def test_messages_show_no_credentials(tmp_path: Path) -> None:
    layout = Layout(dataset=str(tmp_path), specs=Specs())
    row = LedgerRow(
        video_id="a.mp4",
        video_key="0" * 16,
        stage="reencode",
        spec_hash=layout.specs.hash_of("reencode"),
        status="failed",
        error_class="StorageError",
        error_message="s3://KEY:SECRET@bucket/a.mp4: cannot be read",
        source_size_bytes=1,
        source_version="1",
        finished_unix_s=1.0,
    )
    Ledger(layout.ledger("reencode")).append([row])
    (found,) = open_videos(layout).find().rows.to_pylist()
    assert found["error_message"] == "s3://***@bucket/a.mp4: cannot be read"


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (Contains(column="video_id", text="B_C"), ["a/b_c.mp4"]),
        (Contains(column="video_id", text="100%"), ["a/100%.mp4"]),
        (Contains(column="video_id", text="GRÖSSE"), []),
        (Contains(column="video_id", text="GRÖ"), ["größe.mp4"]),
        (Contains(column="video_id", text="'; DROP"), ["'; DROP TABLE videos; --"]),
        (Between(column="motion", low=2.0), ["A/BxC.mp4", "a/100%.mp4", "größe.mp4"]),
        (Between(column="motion", high=2.0), ["'; DROP TABLE videos; --", "A/BxC.mp4", "a/100%.mp4"]),
        (Between(column="motion", low=-1, high=2), ["A/BxC.mp4", "a/100%.mp4"]),
        (OneOf(column="subset", values=("it's", None)), ["'; DROP TABLE videos; --", "a/b_c.mp4"]),
        (OneOf(column="subset", values=("' OR 1=1 --",)), []),
    ],
)
def test_filters(small: VideoTable, one: Filter, expected: list[str]) -> None:
    assert ids(small, one) == expected
    assert small.find([one]).num_matches == len(expected)
    assert small.find().num_matches == len(ROWS)


def test_all_filters_must_hold(small: VideoTable) -> None:
    both = (
        Between(column="motion", low=0),
        Between(column="motion", high=10),
        OneOf(column="subset", values=("x",)),
    )
    assert ids(small, *both) == ["a/100%.mp4"]


def test_sorting_puts_unknown_last_and_equals_by_id(small: VideoTable) -> None:
    up = ["'; DROP TABLE videos; --", "A/BxC.mp4", "a/100%.mp4", "größe.mp4", "a/b_c.mp4"]
    assert ids(small, sort="motion") == up
    down = ["größe.mp4", "A/BxC.mp4", "a/100%.mp4", "'; DROP TABLE videos; --", "a/b_c.mp4"]
    assert ids(small, sort="motion", descending=True) == down


def test_pages_together_are_the_whole(videos: VideoTable) -> None:
    whole = ids(videos, sort="residual_energy", descending=True)
    pages = [
        ids(videos, sort="residual_energy", descending=True, offset=start, limit=7)
        for start in range(0, videos.num_videos, 7)
    ]
    assert len(pages) > 5
    assert [video_id for page in pages for video_id in page] == whole
    assert ids(videos, offset=videos.num_videos, limit=7) == []


def test_categories_and_bounds(small: VideoTable) -> None:
    assert small.categories("subset") == (("x", 2), ("it's", 1), ("y", 1), (None, 1))
    assert small.bounds("motion") == (-1.5, 30.25)


def test_csv_has_all_that_matches(small: VideoTable) -> None:
    text = small.csv([OneOf(column="subset", values=("x", "it's"))], sort="motion", descending=True).decode()
    found = list(csv.DictReader(io.StringIO(text)))
    assert [row["video_id"] for row in found] == ["größe.mp4", "a/100%.mp4", "'; DROP TABLE videos; --"]
    assert found[0] == {"video_id": "größe.mp4", "subset": "x", "motion": "30.25"}


@pytest.mark.parametrize(
    "ask",
    [
        lambda table: table.find(sort='motion" DESC; DROP TABLE videos; --'),
        lambda table: table.find([Contains(column="1=1 --", text="x")]),
        lambda table: table.find(columns=["rowid"]),
        lambda table: table.bounds("nothing"),
        lambda table: table.find([Contains(column="motion", text="2")]),
        lambda table: table.find([Between(column="subset", low=2)]),
    ],
)
def test_a_column_that_is_none_or_of_another_kind_fails(small: VideoTable, ask: Any) -> None:
    with pytest.raises(ConfigurationError):
        ask(small)
    assert small.find().num_matches == len(ROWS)


def test_threads_share_a_table(videos: VideoTable) -> None:
    expected = ids(videos, sort="motion_mean_px")
    found: list[list[str]] = []

    def ask() -> None:
        for _ in range(5):
            found.append(ids(videos, sort="motion_mean_px"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 20


def test_versions_change_with_any_table(tmp_path: Path) -> None:
    made = stats_rows.make_rows(Layout(dataset=str(tmp_path), specs=Specs()))
    stats_rows.write(made)
    seen = {table_versions(made.layout)}
    assert table_versions(made.layout) in seen
    for uri in (made.layout.manifest, made.layout.questions, made.layout.index):
        storage.publish_bytes(uri, b"something else")
        seen.add(table_versions(made.layout))
    for stage in ("reencode", "extract"):
        Ledger(made.layout.ledger(stage)).append([])
        seen.add(table_versions(made.layout))
    storage.remove(made.layout.questions)
    seen.add(table_versions(made.layout))
    assert len(seen) == 7


def test_many_kinds_of_questions_do_not_widen_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore_table, "MAX_KINDS", 2)
    made = stats_rows.make_rows(Layout(dataset=str(tmp_path), specs=Specs()))
    stats_rows.write(made)
    table = open_videos(made.layout)
    assert [name for name in table.columns if name.startswith("questions_")] == ["questions_0", "questions_1"]
    assert table.columns["questions_0"].title == "Questions: oe"

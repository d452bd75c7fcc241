"""Statistics of hand-made tables, against plain Python loops over their rows. There is no shard to open."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import fsspec
import numpy as np
import pytest
from stats_rows import FPS, GOP, NUM_INDEXED, SUBSETS, WINDOW, Rows, write

from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader.primitives import gop_layout
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.pipeline.stats_figures import FIGURES, NUM_OUTLIERS
from cope_prep.pipeline.stats_records import DatasetStats, GroupStats
from cope_prep.schemas.specs import ExtractSpec


def groups_of(found: DatasetStats) -> dict[str | None, GroupStats]:
    groups: dict[str | None, GroupStats] = {None: found.total}
    groups |= {group.subset: group for group in found.subsets}
    assert sorted(name for name in groups if name is not None) == sorted(SUBSETS)
    return groups


def test_counts_by_subset_and_in_all(rows: Rows, found: DatasetStats) -> None:
    assert found.has_index
    for subset, group in groups_of(found).items():
        gops, frames = rows.gops_of(subset), rows.frames_of(subset)
        listed = {row["video_id"] for row in rows.manifest if subset in (None, row["subset"])}
        ends = [row for row in rows.ledger.values() if row.video_id in listed]
        assert group.num_listed == len(listed) > 0
        assert group.num_failed == len({row.video_id for row in ends if row.status == "failed"}) > 0
        failed = {row.video_id for row in ends if row.status == "failed"}
        assert (
            group.num_partial == len({row.video_id for row in ends if row.status == "partial"} - failed) > 0
        )
        assert group.num_missing == len(listed - failed - frames.keys())
        assert group.num_videos == len(frames)
        assert group.num_gops == len(gops)
        assert group.num_windows == sum(row["num_windows"] for row in gops)
        assert group.num_frames == sum(frames.values())
        assert group.duration_s == pytest.approx(sum(frames.values()) / FPS)


def test_questions_belong_to_the_subset_of_their_video(rows: Rows, found: DatasetStats) -> None:
    expected: dict[str | None, Counter[str]] = defaultdict(Counter)
    listed = {row["video_id"] for row in rows.manifest}
    for row in rows.questions:
        if row["video_id"] in listed:
            expected[None][row["kind"]] += 1
            expected[rows.subset_of(row["video_id"])][row["kind"]] += 1
    assert {subset: group.num_questions for subset, group in groups_of(found).items()} == expected
    assert expected[None].total() == 190
    assert any("10 questions are about videos that are not listed" in note for note in found.notes)


def test_bytes_by_part_a_second(rows: Rows, found: DatasetStats) -> None:
    for subset, group in groups_of(found).items():
        gops = rows.gops_of(subset)
        duration_s = sum(row["num_frames"] for row in gops) / FPS
        document = group.to_dict()
        for name in ("iframe", "motion", "residual"):
            assert document["bytes"][name] == sum(row[f"{name}_bytes"] for row in gops)
        assert document["bytes"]["total"] == sum(row["size_bytes"] for row in gops)
        assert document["bytes"]["overhead"] == 2048 * len(gops)
        for name, rate in document["bytes_per_s"].items():
            assert rate == pytest.approx(document["bytes"][name] / duration_s)


def test_size_against_other_forms(rows: Rows, found: DatasetStats) -> None:
    done = rows.done("reencode")
    jpeg_bytes: list[int] = []
    for subset, group in reversed(groups_of(found).items()):
        gops, frames = rows.gops_of(subset), rows.frames_of(subset)
        samples: Counter[str] = Counter()
        for row in gops:
            samples[row["video_id"]] += row["size_bytes"]
        pictures = sum(math.ceil(Fraction(number, FPS)) for number in frames.values())
        assert group.num_pictures == pictures
        assert group.rgb.other_bytes == pictures * 64 * 48 * 3
        mean_iframe_bytes = sum(row["iframe_bytes"] for row in gops) / len(gops)
        if subset is None:
            assert group.jpeg_estimate.other_bytes == sum(jpeg_bytes)
            assert abs(sum(jpeg_bytes) - pictures * mean_iframe_bytes) > 1  # the subsets' I-frames differ
        else:
            jpeg_bytes.append(group.jpeg_estimate.other_bytes)
            assert jpeg_bytes[-1] == pytest.approx(pictures * mean_iframe_bytes, abs=1)
        assert group.reencoded.num_videos == len(frames)
        assert group.reencoded.other_bytes == sum(done[name].output_bytes for name in frames)
        assert group.source.other_bytes == sum(done[name].source_size_bytes for name in frames)
        for other in (group.rgb, group.jpeg_estimate, group.reencoded, group.source):
            assert other.sample_bytes == samples.total()
            assert other.ratio == pytest.approx(samples.total() / other.other_bytes)


def test_stages_are_what_the_ledgers_say(rows: Rows, found: DatasetStats) -> None:
    assert [stage.stage for stage in found.stages] == ["reencode", "extract"]
    for stage in found.stages:
        own = [row for (of, _), row in rows.ledger.items() if of == stage.stage]
        statuses = Counter(row.status for row in own)
        assert (stage.num_ok, stage.num_partial, stage.num_failed) == tuple(
            statuses[status] for status in ("ok", "partial", "failed")
        )
        done = rows.done(stage.stage).values()
        assert stage.duration_s == pytest.approx(sum(row.duration_s for row in done))
        assert stage.source_bytes == sum(row.source_size_bytes for row in done)
        assert stage.output_bytes == sum(row.output_bytes for row in done)
        assert stage.spec_hash == rows.layout.specs.hash_of(stage.stage)


def test_failures_by_stage_and_class(rows: Rows, found: DatasetStats) -> None:
    expected: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (stage, video_id), row in rows.ledger.items():
        if row.status != "ok":
            expected[stage, row.status, row.error_class].append(video_id)
    assert {(end.stage, end.status, end.error_class) for end in found.failures} == expected.keys()
    for end in found.failures:
        videos = expected[end.stage, end.status, end.error_class]
        assert end.num_videos == len(videos)
        assert end.by_subset == Counter(rows.subset_of(video_id) for video_id in videos)
        assert end.example_video_id == min(videos)
        assert end.example_message == f"{min(videos)}: is [bad]"
    counts = [end.num_videos for end in found.failures]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) > 3


def test_sources_are_those_of_the_probe_or_unknown(rows: Rows, found: DatasetStats) -> None:
    expected: dict[str, Counter[str]] = {"codec": Counter(), "resolution": Counter(), "frame_rate": Counter()}
    rates = {None: "unknown", 25.0: "25", 30.0: "30", 30000 / 1001: "29.97"}
    for row in rows.done("reencode").values():
        size = f"{row.source_width_px}x{row.source_height_px}"
        expected["codec"][row.source_codec or "unknown"] += 1
        expected["resolution"]["unknown" if row.source_width_px is None else size] += 1
        expected["frame_rate"][rates[row.source_fps]] += 1
    for what, counts in expected.items():
        assert {share.value: share.num_videos for share in found.sources if share.what == what} == counts
        assert counts["unknown"] > 0
        assert len(counts) > 2
    total_s = sum(share.duration_s for share in found.sources if share.what == "codec")
    assert total_s == pytest.approx(sum(row.duration_s for row in rows.done("reencode").values()))


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def bins(values: list[float], edges: tuple[float, ...]) -> tuple[int, ...]:
    """Up to the first edge, between the edges (upper one included), beyond the last: as 32-bit floats."""
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[sum(np.float32(value) > np.float32(edge) for edge in edges)] += 1
    return tuple(counts)


def test_distributions(rows: Rows, found: DatasetStats) -> None:
    by_name = {(one.name, one.subset): one for one in found.distributions}
    subsets: tuple[str | None, ...] = (None, *SUBSETS)
    assert by_name.keys() == {(name, subset) for name in (*FIGURES, "duration_s") for subset in subsets}
    for (name, subset), one in by_name.items():
        if name == "duration_s":
            values = [number / FPS for number in rows.frames_of(subset).values()]
        else:
            values = [
                value
                for row in rows.gops_of(subset)
                for value, intra in zip(row[name], row["intra_share"], strict=True)
                if intra < 1 or not name.startswith("motion")
            ]
        assert one.count == len(values) > 10
        assert one.minimum == pytest.approx(min(values), rel=1e-5)
        assert one.maximum == pytest.approx(max(values), rel=1e-5)
        assert one.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-5)
        quantiles = (one.p25, one.median, one.p75, one.p95)
        for share, got in zip((0.25, 0.5, 0.75, 0.95), quantiles, strict=True):
            assert got == pytest.approx(quantile(values, share), rel=1e-5), (name, share)
        assert one.histogram.counts == bins(values, one.histogram.edges), name
        assert sum(one.histogram.counts) == one.count


def test_windows_with_clipped_values(rows: Rows, found: DatasetStats) -> None:
    for subset, group in groups_of(found).items():
        gops = rows.gops_of(subset)
        vectors = sum(value > 0 for row in gops for value in row["clipped_vectors"])
        residuals = sum(value > 0 for row in gops for value in row["clipped_residuals"])
        assert group.num_clipped_vector_windows == vectors > 0
        assert group.num_clipped_residual_windows == residuals > 0
        intra = sum(share == 1.0 for row in gops for share in row["intra_share"])
        assert group.num_intra_windows == intra > 0
        assert group.to_dict()["intra_window_share"] == pytest.approx(intra / group.num_windows)
        assert group.to_dict()["clipped_vector_share"] == pytest.approx(vectors / group.num_windows)


def test_tokens_are_those_that_the_loader_would_give(rows: Rows, found: DatasetStats) -> None:
    assert found.tokens is not None
    assert [budget.key_frames for budget in found.tokens.budgets] == [1, 2, 4, 8]
    assert found.tokens.dense_rgb_tokens == 210 * found.total.num_pictures
    for budget in found.tokens.budgets:
        num_tokens = 0
        for row in rows.gops:
            layout = gop_layout(
                num_frames=row["num_frames"],
                gop_size=GOP,
                fps=FPS,
                start_s=0.0,
                window=WINDOW,
                key_frames=budget.key_frames,
            )
            num_tokens += 210 * layout.num_pictures + 8 * layout.num_deltas
        assert budget.num_tokens == num_tokens
        assert budget.tokens_per_s == pytest.approx(num_tokens / found.total.duration_s)
        assert budget.ratio == pytest.approx(num_tokens / found.tokens.dense_rgb_tokens)
    assert found.tokens.budgets[-1].ratio == 1.0  # at s = 30 and 30 FPS every second is an anchor


def test_tokens_of_other_windows_have_the_densities_that_divide(copied: Rows) -> None:
    specs = dataclasses.replace(copied.layout.specs, extract=ExtractSpec(window=60))
    write(dataclasses.replace(copied, layout=Layout(dataset=copied.layout.dataset, specs=specs)))
    found = dataset_stats(Layout(dataset=copied.layout.dataset, specs=specs))
    assert found.tokens is not None
    assert [(one.key_frames, one.num_anchors) for one in found.tokens.budgets] == [(1, 4), (2, 4), (4, 4)]


def test_outliers_are_the_largest_with_ties_by_id(rows: Rows, found: DatasetStats) -> None:
    frames = rows.frames_of(None)
    expected: dict[str, dict[str, float]] = {name: {} for name in found.outliers}
    for video_id, number in frames.items():
        gops = [row for row in rows.gops if row["video_id"] == video_id]
        windows = sum(row["num_windows"] for row in gops)
        expected["bytes_per_s"][video_id] = sum(row["size_bytes"] for row in gops) / (number / FPS)
        with_vectors = sum(share < 1 for row in gops for share in row["intra_share"])
        for name, number in (("motion_mean_px", with_vectors), ("residual_energy", windows)):
            if number:
                expected[name][video_id] = math.fsum(value for row in gops for value in row[name]) / number
        clipped = sum(
            vectors > 0 or residuals > 0
            for row in gops
            for vectors, residuals in zip(row["clipped_vectors"], row["clipped_residuals"], strict=True)
        )
        if clipped:
            expected["clipped_share"][video_id] = clipped / windows
    assert set(expected) == {"motion_mean_px", "residual_energy", "bytes_per_s", "clipped_share"}
    for name, values in expected.items():
        order = sorted(values, key=lambda video_id: (-values[video_id], video_id))[:NUM_OUTLIERS]
        assert [outlier.video_id for outlier in found.outliers[name]] == order
        assert len(order) == NUM_OUTLIERS
        for outlier in found.outliers[name]:
            assert outlier.value == pytest.approx(values[outlier.video_id], rel=1e-5)
            assert outlier.subset == rows.subset_of(outlier.video_id)
            assert outlier.duration_s == pytest.approx(frames[outlier.video_id] / FPS)


def test_remote_tables_give_the_same(rows: Rows, found: DatasetStats, tmp_path: Path) -> None:
    name = tmp_path.name
    layout = Layout(dataset=f"memory://{name}", specs=rows.layout.specs)
    try:
        write(dataclasses.replace(rows, layout=layout))
        assert dataset_stats(layout) == dataclasses.replace(found, dataset=layout.dataset)
    finally:
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def test_nothing_is_left_in_the_temporary_folder(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert dataset_stats(rows.layout).total.num_videos == NUM_INDEXED
    assert list(tmp_path.iterdir()) == []

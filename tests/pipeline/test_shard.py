"""Plan, shards and index: same inputs give the same bytes, and no crash loses or doubles a sample."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest

from cope_prep.pipeline import finish, shard, storage, tar
from cope_prep.pipeline.finish import finish_shards
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.shard import build_shard, published_versions
from cope_prep.pipeline.shard_plan import ExtractedVideo, ShardPlan, plan_shards
from cope_prep.schemas import wire
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import FormatError, SourceNotFoundError
from cope_prep.schemas.records import FusedPFrame, GopRecord, WindowStats, video_key
from cope_prep.schemas.specs import DctResidual, ShardSpec

NUM_GOPS = {"a.mp4": 3, "b.mp4": 1, "c.mp4": 2, "d.mp4": 5, "e.mp4": 1}


class Crash(BaseException):
    """Stands for the process dying: no `except Exception` may take it for an ordinary error."""


def make_record(video_id: str, gop_index: int, *, salt: str, spec_hash: str) -> GopRecord:
    """A record whose arrays are noise: the sharder looks into none of them."""
    rng = np.random.default_rng(google_crc32c.value(f"{video_id} {gop_index} {salt}".encode()))
    windows = tuple(
        FusedPFrame(
            motion=rng.integers(-9, 9, (4, 6, 2), np.int8),
            intra=rng.random((4, 6)) < 0.1,
            motion_step_qpel=1,
            rounding=0,
            residual=rng.bytes(int(rng.integers(100, 900))),
            stats=WindowStats(
                motion_mean_px=float(rng.random()),
                motion_p95_px=2.5,
                zero_motion_share=0.25,
                intra_share=0.125,
                residual_energy=9.0,
                residual_nonzero_share=0.5,
                clipped_vectors=1,
                clipped_residuals=0,
                psnr_y_db=40.0 + window,
                max_error=12,
                packet_bytes=1000 + window,
            ),
        )
        for window in range(7)
    )
    return GopRecord(
        video_id=video_id,
        gop_index=gop_index,
        start_s=gop_index * 8.0,
        fps=30,
        num_frames=240,
        width_px=96,
        height_px=64,
        window=30,
        block_px=16,
        compensation="warp",
        residual_spec=DctResidual(),
        spec_hash=spec_hash,
        iframe=rng.bytes(1500),
        iframe_packet_bytes=1200,
        iframe_psnr_y_db=45.0,
        iframe_max_error=9,
        anchor_crc32c=tuple(range(8)),
        windows=windows,
    )


def extract(layout: Layout, video_id: str, *, version: str = "1") -> ExtractedVideo:
    """Write a video's tar as the extract step does; another version has other bytes."""
    key = video_key(video_id)
    content = b""
    for gop_index in range(NUM_GOPS[video_id]):
        record = make_record(video_id, gop_index, salt=version, spec_hash=layout.specs.hash_of("extract"))
        content += tar.sample_bytes(record.key, wire.encode_gop(record))
    content += tar.END_OF_ARCHIVE
    storage.publish_bytes(layout.extracted(key), content)
    storage.publish_bytes(layout.reencoded(key), b"stands for the re-encoded file")
    return ExtractedVideo(
        video_id=video_id, video_key=key, subset="0_30_s", output_bytes=len(content), version=version
    )


def new_layout(folder: Path | str, *, target_bytes: int = 60_000) -> Layout:
    return Layout(dataset=str(folder), specs=Specs(shard=ShardSpec(target_bytes=target_bytes, seed=3)))


def build_all(layout: Layout, plan: ShardPlan, *, consume: bool = False) -> None:
    for planned in plan.shards:
        build_shard(layout, planned, consume=consume)
    finish_shards(layout, plan)


def shard_bytes(layout: Layout) -> dict[str, bytes]:
    folder = layout.folder("shards")
    return {
        name: storage.read_bytes(storage.join(folder, name))
        for name in storage.list_files(folder)
        if name.startswith("shard-")
    }


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return new_layout(tmp_path / "dataset")


@pytest.fixture
def extracted(layout: Layout) -> list[ExtractedVideo]:
    return [extract(layout, video_id) for video_id in NUM_GOPS]


def test_plan_packs_whole_videos_to_the_target(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    plan = plan_shards(layout, extracted)
    assert len(plan.shards) > 1
    assert [planned.index for planned in plan.shards] == list(range(len(plan.shards)))
    assert sorted(video.video_id for planned in plan.shards for video in planned.videos) == sorted(NUM_GOPS)
    for planned, following in zip(plan.shards, plan.shards[1:], strict=False):
        assert planned.size_bytes <= 60_000 or len(planned.videos) == 1
        assert planned.size_bytes + following.videos[0].sample_bytes > 60_000


def test_plan_depends_on_seed_and_not_on_input_order(
    layout: Layout, tmp_path: Path, extracted: list[ExtractedVideo]
) -> None:
    reversed_layout = new_layout(tmp_path / "reversed")
    assert plan_shards(layout, extracted) == plan_shards(reversed_layout, extracted[::-1])
    other_seed = Layout(
        dataset=str(tmp_path / "seed"), specs=Specs(shard=ShardSpec(target_bytes=60_000, seed=4))
    )
    assert plan_shards(layout, extracted) != plan_shards(other_seed, extracted)


def test_new_videos_go_to_new_shards(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    first = plan_shards(layout, extracted[:3])
    second = plan_shards(layout, extracted)
    assert second.shards[: len(first.shards)] == first.shards
    assert second.num_videos == 5


def test_planned_videos_stay_when_they_are_not_given_again(
    layout: Layout, extracted: list[ExtractedVideo]
) -> None:
    assert plan_shards(layout, extracted) == plan_shards(layout, extracted[:1])


def test_shards_hold_the_extracted_samples_verbatim(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    plan = plan_shards(layout, extracted)
    build_all(layout, plan)
    for planned in plan.shards:
        parts = [
            storage.read_bytes(layout.extracted(video.video_key))[: video.sample_bytes]
            for video in planned.videos
        ]
        content = storage.read_bytes(layout.shard(planned.index))
        assert content == b"".join(parts) + tar.END_OF_ARCHIVE
        assert len(content) == planned.size_bytes


def test_index_addresses_every_sample_and_member(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    build_all(layout, plan_shards(layout, extracted))
    rows = storage.read_table(layout.index, INDEX).to_pylist()
    assert len(rows) == sum(NUM_GOPS.values())
    for row in rows:
        uri = storage.join(layout.folder("shards"), row["shard"])
        block = storage.read_bytes(uri, row["offset_bytes"], row["size_bytes"])
        assert google_crc32c.value(block) == row["crc32c"]
        members = {
            member["name"]: storage.read_bytes(uri, member["offset_bytes"], member["size_bytes"])
            for member in row["members"]
        }
        record = make_record(
            row["video_id"], row["gop_index"], salt="1", spec_hash=layout.specs.hash_of("extract")
        )
        assert members == wire.encode_gop(record)
        assert row["key"] == record.key
        assert row["subset"] == "0_30_s"
        assert row["packet_bytes"] == [1000 + window for window in range(7)]
        assert row["psnr_y_db"] == [40.0 + window for window in range(7)]
        assert row["iframe_bytes"] == 1500
        assert row["residual_bytes"] == sum(len(window.residual) for window in record.windows)
        assert row["motion_bytes"] == len(members["motion.npy.zst"]) + len(members["intra.npy.zst"])


def test_index_has_one_row_group_a_shard(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    plan = plan_shards(layout, extracted)
    build_all(layout, plan)
    file = pq.ParquetFile(layout.index)
    names = [set(file.read_row_group(group)["shard"].to_pylist()) for group in range(file.num_row_groups)]
    assert names == [{planned.name} for planned in plan.shards]


def test_dataset_json_sums_up(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    plan = plan_shards(layout, extracted)
    build_all(layout, plan)
    document = finish.read_dataset_json(layout)
    assert document["counts"] == {"videos": 5, "gops": 12, "windows": 84, "frames": 2880, "seconds": 96.0}
    sizes = document["bytes"]
    assert sizes["total"] == sum(map(len, shard_bytes(layout).values()))
    assert sizes["total"] == sum(sizes[part] for part in ("iframe", "motion", "residual", "overhead"))
    assert sizes["iframe"] == 12 * 1500
    assert document["spec_hash"]["extract"] == layout.specs.hash_of("extract")
    assert document["index"]["crc32c"] == google_crc32c.value(storage.read_bytes(layout.index))
    for entry, content in zip(document["shards"], shard_bytes(layout).values(), strict=True):
        assert entry["crc32c"] == google_crc32c.value(content)
    assert document["versions"]["ffmpeg"]["libavcodec"]


def test_same_inputs_give_the_same_bytes(
    tmp_path: Path, layout: Layout, extracted: list[ExtractedVideo]
) -> None:
    again = new_layout(tmp_path / "again")
    build_all(layout, plan_shards(layout, extracted))
    build_all(again, plan_shards(again, [extract(again, video_id) for video_id in reversed(NUM_GOPS)]))
    assert shard_bytes(layout) == shard_bytes(again)
    for name in ("index", "dataset_json"):
        assert storage.read_bytes(getattr(layout, name)) == storage.read_bytes(getattr(again, name))


def test_published_shard_is_left_alone(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    plan = plan_shards(layout, extracted)
    build_all(layout, plan)
    before = {planned.index: storage.stat(layout.shard(planned.index)) for planned in plan.shards}
    reports = [build_shard(layout, planned) for planned in plan.shards]
    assert all(report.was_published for report in reports)
    assert [report.num_gops for report in reports] == [
        sum(NUM_GOPS[video.video_id] for video in planned.videos) for planned in plan.shards
    ]
    assert before == {planned.index: storage.stat(layout.shard(planned.index)) for planned in plan.shards}


def test_consume_deletes_exactly_the_inputs_of_the_shard(
    layout: Layout, extracted: list[ExtractedVideo]
) -> None:
    plan = plan_shards(layout, extracted)
    first, *others = plan.shards
    report = build_shard(layout, first, consume=True)
    assert report.num_consumed == len(first.videos)
    assert not any(storage.exists(layout.extracted(video.video_key)) for video in first.videos)
    assert all(storage.exists(layout.reencoded(video.video_key)) for video in first.videos)
    assert all(storage.exists(layout.extracted(video.video_key)) for o in others for video in o.videos)
    report = build_shard(
        layout, first, consume=True, consume_reencoded=[video.video_key for video in first.videos]
    )
    assert report.was_published
    assert report.num_consumed == len(first.videos)
    assert not any(storage.exists(layout.reencoded(video.video_key)) for video in first.videos)
    assert published_versions(layout) == {video.video_id: "1" for video in first.videos}


def test_stale_shard_takes_consumed_videos_from_the_published_one(
    layout: Layout, tmp_path: Path, extracted: list[ExtractedVideo]
) -> None:
    build_all(layout, plan_shards(layout, extracted), consume=True)
    redone = extract(layout, "c.mp4", version="2")
    plan = plan_shards(layout, [redone if video.video_id == "c.mp4" else video for video in extracted])
    reports = [build_shard(layout, planned, consume=True) for planned in plan.shards]
    assert [report.was_published for report in reports].count(False) == 1
    assert storage.list_files(layout.folder("extract")) == []

    expected = new_layout(tmp_path / "expected")
    videos = [extract(expected, name, version="2" if name == "c.mp4" else "1") for name in NUM_GOPS]
    plan_shards(expected, extracted)  # the places that the videos had before
    build_all(expected, plan_shards(expected, videos))
    assert shard_bytes(layout) == shard_bytes(expected)


def test_stale_shard_whose_input_is_gone_fails(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    build_all(layout, plan_shards(layout, extracted), consume=True)
    redone = extract(layout, "c.mp4", version="2")
    storage.remove(layout.extracted(redone.video_key))
    plan = plan_shards(layout, [redone])
    (stale,) = [planned for planned in plan.shards if redone in planned.videos]
    before = shard_bytes(layout)
    with pytest.raises(SourceNotFoundError, match=r"version 2 of c\.mp4"):
        build_shard(layout, stale)
    assert shard_bytes(layout) == before
    assert finish_shards(layout, plan).unfinished == (stale.name,)


def test_missing_shard_is_left_out_and_named(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    plan = plan_shards(layout, extracted)
    for planned in plan.shards[1:]:
        build_shard(layout, planned)
    report = finish_shards(layout, plan)
    assert report.unfinished == (plan.shards[0].name,)
    assert plan.shards[0].name not in storage.read_table(layout.index, INDEX)["shard"].to_pylist()


@pytest.mark.parametrize("step", ["before tar", "after tar", "after rows", "first delete", "second delete"])
@pytest.mark.parametrize("redo", [False, True])
def test_crash_loses_and_doubles_nothing(
    layout: Layout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extracted: list[ExtractedVideo],
    step: str,
    redo: bool,
) -> None:
    """Crash once at each point between two steps, run again, and compare with a run that did not crash."""
    layout = new_layout(layout.dataset, target_bytes=1 << 20)  # all videos in one shard: several deletions
    undisturbed = new_layout(tmp_path / "undisturbed", target_bytes=1 << 20)
    originals = [extract(undisturbed, video_id) for video_id in NUM_GOPS]
    assert len(plan_shards(layout, extracted).shards) == 1
    plan_shards(undisturbed, originals)
    if redo:  # the shard is there, its inputs consumed, and one video is extracted again
        build_all(layout, plan_shards(layout, extracted), consume=True)
        extracted[2] = extract(layout, "c.mp4", version="2")
        originals[2] = extract(undisturbed, "c.mp4", version="2")
        extracted[3] = extract(layout, "d.mp4", version="2")
        originals[3] = extract(undisturbed, "d.mp4", version="2")
    build_all(undisturbed, plan_shards(undisturbed, originals))

    crashed = []
    (planned,) = plan_shards(layout, extracted).shards
    with monkeypatch.context() as patch:
        publish_table, remove = storage.publish_table, storage.remove

        def crash(*_: object, **__: object) -> None:
            crashed.append(step)
            raise Crash

        def crash_after_rows(uri: str, table: object) -> None:
            publish_table(uri, table)  # type: ignore[arg-type]
            crash()

        def crash_after_first(uri: str) -> None:
            if crashed == ["once"]:
                crash()
            crashed.append("once")
            remove(uri)

        match step:
            case "before tar":
                patch.setattr(shard, "END_OF_ARCHIVE", None)  # any failure while the tar is written
                patch.setattr(shard, "index_row", crash)
            case "after tar":
                patch.setattr(storage, "publish_table", crash)
            case "after rows":
                patch.setattr(storage, "publish_table", crash_after_rows)
            case "first delete":
                patch.setattr(storage, "remove", crash)
            case "second delete":
                patch.setattr(storage, "remove", crash_after_first)
        with pytest.raises(Crash):
            build_shard(layout, planned, consume=True)
    assert crashed[-1] == step

    plan = plan_shards(layout, extracted)
    build_all(layout, plan, consume=True)
    assert shard_bytes(layout) == shard_bytes(undisturbed)
    assert storage.read_bytes(layout.index) == storage.read_bytes(undisturbed.index)
    assert storage.list_files(layout.folder("extract")) == []
    assert not [path for path in Path(layout.dataset).rglob("*") if path.name.startswith(".tmp-")]


def test_changed_extract_tar_fails(layout: Layout, extracted: list[ExtractedVideo]) -> None:
    plan = plan_shards(layout, extracted)
    video = plan.shards[0].videos[0]
    uri = layout.extracted(video.video_key)
    storage.publish_bytes(uri, storage.read_bytes(uri) + b"more")
    with pytest.raises(FormatError, match="were planned: it has changed since"):
        build_shard(layout, plan.shards[0])
    assert shard_bytes(layout) == {}


def test_sample_of_another_spec_fails(layout: Layout) -> None:
    record = make_record("a.mp4", 0, salt="1", spec_hash="0" * 12)
    content = tar.sample_bytes(record.key, wire.encode_gop(record)) + tar.END_OF_ARCHIVE
    storage.publish_bytes(layout.extracted(video_key("a.mp4")), content)
    video = ExtractedVideo(
        video_id="a.mp4",
        video_key=video_key("a.mp4"),
        subset="",
        output_bytes=len(content),
        version="1",
    )
    with pytest.raises(FormatError, match="'spec_hash': '000000000000'"):
        build_shard(layout, plan_shards(layout, [video]).shards[0])


def test_no_video_makes_an_empty_dataset(layout: Layout) -> None:
    build_all(layout, plan_shards(layout, []))
    assert len(storage.read_table(layout.index, INDEX)) == 0
    assert finish.read_dataset_json(layout)["counts"]["seconds"] == 0


def test_memory_is_one_sample_not_one_shard(layout: Layout) -> None:
    layout = new_layout(layout.dataset, target_bytes=1 << 30)
    key = video_key("long.mp4")
    with storage.publish(layout.extracted(key)) as path, open(path, "wb") as file:
        for gop_index in range(100):
            record = make_record("long.mp4", gop_index, salt="1", spec_hash=layout.specs.hash_of("extract"))
            record = dataclasses.replace(record, iframe=bytes(500_000))
            file.write(tar.sample_bytes(record.key, wire.encode_gop(record)))
        file.write(tar.END_OF_ARCHIVE)
        size_bytes = file.tell()
    video = ExtractedVideo(
        video_id="long.mp4", video_key=key, subset="", output_bytes=size_bytes, version="1"
    )
    (planned,) = plan_shards(layout, [video]).shards
    tracemalloc.start()
    try:
        assert build_shard(layout, planned).size_bytes == size_bytes > 50_000_000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_memory_store_works_like_a_local_folder(tmp_path: Path) -> None:
    local, remote = new_layout(tmp_path), new_layout("memory://test-shard")
    for layout in (local, remote):
        build_all(layout, plan_shards(layout, [extract(layout, name) for name in NUM_GOPS]), consume=True)
    assert shard_bytes(local) == shard_bytes(remote)
    assert storage.list_files(remote.folder("extract")) == []
    assert json.loads(storage.read_bytes(remote.dataset_json)) == finish.read_dataset_json(local)

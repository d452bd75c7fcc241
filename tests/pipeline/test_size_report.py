"""The size report: parts as in the index, comparisons as an independent reader makes them."""

from __future__ import annotations

import io
from pathlib import Path

import av
import pytest

from cope_prep.pipeline import storage
from cope_prep.pipeline.extract import extract_video
from cope_prep.pipeline.finish import finish_shards
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.shard import build_shard
from cope_prep.pipeline.shard_plan import ExtractedVideo, plan_shards
from cope_prep.pipeline.size_report import size_report, total_sizes
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import SourceNotFoundError
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import EncodeSpec

SPECS = Specs(encode=EncodeSpec(width_px=96, height_px=64, gop_size=90, preset="ultrafast"))
BIKES, CARPHONE = "bikes.mp4", "carphone_pristine.mp4"


@pytest.fixture(scope="module")
def layout(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Two clips in shards; GOPs of 3 s, so that there are several."""
    layout = Layout(dataset=str(tmp_path_factory.mktemp("sizes")), specs=SPECS)
    videos = []
    for clip in real_clips:
        if clip.name not in (BIKES, CARPHONE):
            continue
        key = video_key(clip.name)
        reencode_video(str(clip), layout.reencoded(key), spec=SPECS.encode)
        report = extract_video(
            layout.reencoded(key),
            layout.extracted(key),
            spec=SPECS.extract,
            encode_spec=SPECS.encode,
            video_id=clip.name,
        )
        videos.append(
            ExtractedVideo(
                video_id=clip.name,
                video_key=key,
                subset="",
                output_bytes=report.output_bytes,
                version="1",
            )
        )
    plan = plan_shards(layout, videos)
    for shard in plan.shards:
        build_shard(layout, shard)
    finish_shards(layout, plan)
    return layout


def test_parts_are_those_of_the_index(layout: Layout) -> None:
    rows = storage.read_table(layout.index, INDEX).to_pylist()
    report = size_report(layout)
    assert [sizes.video_id for sizes in report] == [BIKES, CARPHONE]
    for sizes in report:
        own = [row for row in rows if row["video_id"] == sizes.video_id]
        assert sizes.num_gops == len(own) >= 2
        assert sizes.num_windows == sum(len(row["psnr_y_db"]) for row in own)
        assert sizes.duration_s == sum(row["num_frames"] for row in own) / 30
        for name in ("iframe_bytes", "motion_bytes", "residual_bytes"):
            assert getattr(sizes, name) == sum(row[name] for row in own)
        assert sizes.sample_bytes == sum(row["size_bytes"] for row in own)
        assert sizes.other_bytes > 0
        assert len(sizes.anchor_psnr_y_db) == sizes.num_gops + sizes.num_windows
        assert sizes.per_second(1000) == pytest.approx(1000 / sizes.duration_s)


def test_comparison_is_what_another_reader_finds(layout: Layout) -> None:
    for sizes in size_report(layout):
        path = layout.reencoded(video_key(sizes.video_id))
        with av.open(path) as container:
            packets = sum(packet.size for packet in container.demux(video=0))
        with av.open(path) as container:
            images = [frame.to_image() for frame in container.decode(video=0)][::30]
        jpeg_bytes = 0
        for image in images:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=90, subsampling="4:2:0")
            jpeg_bytes += file.tell()
        assert sizes.compared is not None
        assert sizes.compared.num_pictures == len(images) == sizes.num_gops + sizes.num_windows
        assert sizes.compared.rgb_bytes == len(images) * 96 * 64 * 3
        assert sizes.compared.reencoded_bytes == packets
        # Pillow goes through RGB, and writes a few hundred bytes of other headers.
        assert sizes.compared.jpeg_bytes == pytest.approx(jpeg_bytes, rel=0.1)


def test_total(layout: Layout) -> None:
    report = size_report(layout)
    total = total_sizes(report)
    assert total.video_id == "all"
    assert total.sample_bytes == sum(sizes.sample_bytes for sizes in report)
    assert total.duration_s == sum(sizes.duration_s for sizes in report)
    assert total.compared is not None
    assert total.compared.jpeg_bytes == sum(sizes.compared.jpeg_bytes for sizes in report if sizes.compared)
    assert min(total.anchor_psnr_y_db) == min(min(sizes.anchor_psnr_y_db) for sizes in report)


def test_lower_quality_makes_smaller_jpegs(layout: Layout) -> None:
    for good, poor in zip(size_report(layout), size_report(layout, jpeg_quality=50), strict=True):
        assert good.compared is not None
        assert poor.compared is not None
        assert poor.compared.jpeg_bytes < good.compared.jpeg_bytes


def test_without_the_reencoded_file_there_is_no_comparison(layout: Layout, tmp_path: Path) -> None:
    other = Layout(dataset=str(tmp_path), specs=SPECS)
    storage.publish_bytes(other.index, storage.read_bytes(layout.index))
    report = size_report(other)
    assert [sizes.compared for sizes in report] == [None, None]
    assert total_sizes(report).compared is None
    assert total_sizes(report).sample_bytes == total_sizes(size_report(layout)).sample_bytes


def test_no_index_fails(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        size_report(Layout(dataset=str(tmp_path), specs=SPECS))

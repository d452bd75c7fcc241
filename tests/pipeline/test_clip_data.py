"""One video of a dataset: what is found of it, wherever its samples are, and what is refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec import AbstractFileSystem

sys.path.insert(0, str(Path(__file__).parent))
import clip_dataset
from clip_dataset import BIKES, BUNNY, FAILED, TRICKY, WAITING

from cope_prep.pipeline import storage
from cope_prep.pipeline.clip_data import read_clip, read_questions
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger
from cope_prep.pipeline.rebuild import rebuild_anchor, rebuild_anchors
from cope_prep.pipeline.video_list import read_video_list, version_of
from cope_prep.pipeline.video_samples import find_samples, read_figures, read_gop
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import ChecksumError, ConfigurationError, FormatError, StorageError
from cope_prep.schemas.records import video_key


@pytest.fixture(scope="module")
def layout(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return clip_dataset.make(tmp_path_factory.mktemp("clips"), real_clips)


@pytest.fixture
def copy(layout: Layout, tmp_path: Path) -> Layout:
    """The same dataset, to be damaged."""
    shutil.copytree(layout.dataset, tmp_path / "dataset")
    return Layout(dataset=str(tmp_path / "dataset"), specs=layout.specs)


def test_the_list_holds_manifest_and_index(layout: Layout) -> None:
    videos = read_video_list(layout)
    assert videos.video_ids.to_pylist() == sorted([BIKES, BUNNY, FAILED, WAITING])
    assert [video_id for video_id in videos.video_ids.to_pylist() if videos.groups_of(video_id)] == [
        BUNNY,
        BIKES,
    ]
    assert videos.groups_of("nobody") == range(0)
    assert BIKES in videos
    assert "clips/bike" not in videos


def test_search_shows_videos_with_samples_first(layout: Layout) -> None:
    videos = read_video_list(layout)
    assert videos.search("CLIPS/", limit=3) == ([BUNNY, BIKES, FAILED], 4)
    assert videos.search("phone", limit=9) == ([FAILED, WAITING], 2)
    assert videos.search(".*", limit=9) == ([], 0)
    assert videos.search("", limit=1) == ([BUNNY], 4)


def test_neighbours_are_in_order(layout: Layout) -> None:
    videos = read_video_list(layout)
    ids = videos.video_ids.to_pylist()
    for before, video_id, after in zip([None, *ids], ids, [*ids[1:], None], strict=False):
        assert videos.neighbours(video_id) == (before, after)
    assert videos.neighbours("clips/b") == (None, ids[0])
    assert videos.neighbours("z") == (ids[-1], None)


def test_the_version_changes_with_the_tables(copy: Layout) -> None:
    before = version_of(copy)
    assert version_of(copy) == before
    storage.publish_table(copy.index, storage.read_table(copy.index, INDEX).slice(1))
    assert version_of(copy) != before
    storage.remove(copy.index)
    assert version_of(copy)[1] == ""


def test_a_clip_has_what_the_tables_say(layout: Layout) -> None:
    videos = read_video_list(layout)
    clip = read_clip(layout, BIKES, videos)
    rows = [row for row in storage.read_table(layout.index, INDEX).to_pylist() if row["video_id"] == BIKES]
    assert len(clip.figures) == len(rows) == 2
    for found, row in zip(clip.figures, rows, strict=True):
        assert found.sample_bytes == row["size_bytes"]
        assert found.iframe_bytes == row["iframe_bytes"]
        assert found.motion_bytes == row["motion_bytes"]
        assert sum(found.residual_bytes) == row["residual_bytes"]
        assert list(found.windows["psnr_y_db"]) == row["psnr_y_db"]
        assert list(found.windows["max_error"]) == row["max_error"]
    assert clip.ends.keys() == {"reencode", "extract"}
    assert clip.ends["reencode"].source_codec == "h264"
    assert clip.state() == ""
    assert clip.reencoded_bytes == storage.stat(layout.reencoded(clip.video_key)).size_bytes
    places = [clip.anchor_at(place) for place in range(clip.num_anchors)]
    assert [clip.place(*where) for where in places] == list(range(clip.num_anchors))
    assert places[8] == (1, 0)
    assert clip.anchor_times(1.0) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_row_groups_are_a_short_cut(layout: Layout) -> None:
    groups = read_video_list(layout).groups_of(BUNNY)
    assert len(groups) == 1
    assert find_samples(layout, BUNNY, row_groups=groups) == find_samples(layout, BUNNY)


def test_samples_of_a_tar_say_the_same(layout: Layout, real_clips: list[Path], tmp_path: Path) -> None:
    extracted = Layout(dataset=str(tmp_path), specs=layout.specs)
    clip_dataset.process(extracted, BIKES, next(clip for clip in real_clips if clip.name == "bikes.mp4"))
    in_tar, in_shard = find_samples(extracted, BIKES), find_samples(layout, BIKES)
    assert in_tar is not None
    assert in_shard is not None
    assert in_tar.found_in == f"{video_key(BIKES)}.tar"
    assert in_shard.found_in == "shard-00000.tar"
    for one, other in zip(read_figures(in_tar), read_figures(in_shard), strict=True):
        assert one.residual_bytes == other.residual_bytes
        for name, values in other.windows.items():
            assert one.windows[name] == pytest.approx(values, rel=1e-6)
    record, same = read_gop(in_tar, 1), read_gop(in_shard, 1)
    assert record.anchor_crc32c == same.anchor_crc32c


def test_one_anchor_is_as_all_of_them(layout: Layout) -> None:
    samples = find_samples(layout, BIKES)
    assert samples is not None
    record = read_gop(samples, 0)
    anchors = rebuild_anchors(record)
    assert len(anchors) == 8
    for index, anchor in enumerate(anchors):
        assert np.array_equal(rebuild_anchor(record, index), anchor)


def test_what_has_no_samples_says_why(layout: Layout) -> None:
    videos = read_video_list(layout)
    failed, waiting = (read_clip(layout, video_id, videos) for video_id in (FAILED, WAITING))
    assert failed.state() == "Re-encoding failed: CorruptVideoError: it is full of holes"
    assert waiting.state() == "It is not re-encoded yet with these settings."
    assert failed.samples is waiting.samples is None
    assert failed.num_anchors == waiting.num_anchors == 0


def test_a_video_between_the_stages_says_so(copy: Layout) -> None:
    Ledger(copy.ledger("reencode")).append([clip_dataset.ledger_row(copy, "reencode", WAITING)])
    videos = read_video_list(copy)
    assert read_clip(copy, WAITING, videos).state() == (
        "It is re-encoded and not extracted yet, so it has no samples."
    )


def test_questions_are_as_stored(layout: Layout) -> None:
    records, number = read_questions(layout, BIKES)
    assert number == 2
    assert [record.kind for record in records] == ["mc", "oe"]
    assert records[0].turns == (("human", f"<image>\n{TRICKY}"), ("gpt", "B. A cyclist."))
    assert read_questions(layout, WAITING) == ((), 0)
    other = Layout(dataset=layout.dataset + "-none", specs=layout.specs)
    assert read_questions(other, BIKES) == ((), 0)


def test_the_last_row_of_a_ledger_counts(copy: Layout) -> None:
    ledger = Ledger(copy.ledger("reencode"))
    failed = ledger.find(FAILED)
    assert failed is not None
    assert failed.error_message == "it is full of holes"
    ledger.append([clip_dataset.ledger_row(copy, "reencode", FAILED)])
    found = ledger.find(FAILED)
    assert found is not None
    assert found.status == "ok"
    assert ledger.find("nobody") is None


@pytest.mark.parametrize(
    "video_id", ["<script>alert(1)</script>", "../../etc/passwd", "/etc/passwd", "", "x" * 9999]
)
def test_an_unknown_id_fails_before_anything_is_opened(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, video_id: str
) -> None:
    videos = read_video_list(layout)
    monkeypatch.setattr(storage, "open_read", lambda uri: pytest.fail(f"opened {uri}"))
    monkeypatch.setattr(storage, "stat", lambda uri: pytest.fail(f"examined {uri}"))
    with pytest.raises(ConfigurationError, match="No video has the id") as raised:
        read_clip(layout, video_id, videos)
    assert len(str(raised.value)) < 300


def test_a_damaged_shard_fails_with_shard_and_key(copy: Layout) -> None:
    samples = find_samples(copy, BIKES)
    assert samples is not None
    span = samples.spans[1]
    path = Path(copy.shard(0))
    content = bytearray(path.read_bytes())
    content[span.offset_bytes + span.size_bytes // 2] ^= 1
    path.write_bytes(content)
    assert read_gop(samples, 0).gop_index == 0
    with pytest.raises(ChecksumError, match=rf"shard-00000\.tar, {span.key}: its [\d,]+ bytes have crc32c"):
        read_gop(samples, 1)


def test_a_shard_outside_the_dataset_fails(copy: Layout) -> None:
    table = storage.read_table(copy.index, INDEX)
    names = ["../../../../etc/passwd"] * len(table)
    storage.publish_table(copy.index, table.set_column(0, INDEX.field("shard"), [names]))
    with pytest.raises(FormatError, match=r"names the shard '\.\./\.\."):
        find_samples(copy, BIKES)


def test_a_damaged_index_fails(copy: Layout) -> None:
    Path(copy.index).write_bytes(b"PAR1 and no more")
    for read in (read_video_list, lambda layout: find_samples(layout, BIKES)):
        with pytest.raises(FormatError, match="is not a readable index"):
            read(copy)


def test_a_gop_that_is_not_there_fails(layout: Layout) -> None:
    samples = find_samples(layout, BIKES)
    assert samples is not None
    for gop_index in (-1, 2):
        with pytest.raises(ConfigurationError, match=r"has 2\. Use 0 to 1"):
            read_gop(samples, gop_index)


class DeadStore(AbstractFileSystem):
    """Answers nothing."""

    protocol = "deadstore"

    def info(self, path: str, **options: object) -> dict[str, object]:
        raise TimeoutError(f"no answer about {path}")

    def ls(self, path: str, *args: object, **options: object) -> None:
        raise TimeoutError(f"no answer about {path}")

    def _open(self, path: str, *args: object, **options: object) -> None:
        raise TimeoutError(f"no answer about {path}")


def test_a_store_that_does_not_answer_fails(layout: Layout) -> None:
    fsspec.register_implementation("deadstore", DeadStore, clobber=True)
    dead = Layout(dataset="deadstore://bucket/dataset", specs=layout.specs)
    videos = read_video_list(layout)
    for read in (version_of, read_video_list, lambda dead: read_clip(dead, BIKES, videos)):
        with pytest.raises(StorageError, match="no answer about"):
            read(dead)


def test_a_remote_dataset_is_read_the_same(layout: Layout) -> None:
    remote = Layout(dataset="memory://clip-data/dataset", specs=layout.specs)
    fsspec.filesystem("memory").put(layout.dataset, "/clip-data/dataset", recursive=True)
    videos = read_video_list(remote)
    assert videos.video_ids == read_video_list(layout).video_ids
    found, same = read_clip(remote, BIKES, videos), read_clip(layout, BIKES, read_video_list(layout))
    assert found.figures == same.figures
    assert found.samples is not None
    assert found.samples.uri.startswith("memory://")
    assert read_gop(found.samples, 1).gop_index == 1
    assert read_questions(remote, BIKES) == read_questions(layout, BIKES)

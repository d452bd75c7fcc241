"""Statistics where the tables do not list the same: videos of the index that are not in the manifest, subsets that
were renamed, sources that were replaced, sizes that are not known.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from plain_rows import NUM_VIDEOS, fail, plain_rows
from stats_rows import Rows, publish, write

from cope_prep.pipeline import storage
from cope_prep.pipeline.findings import findings
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.pipeline.stats_records import Compared
from cope_prep.schemas.errors import FormatError
from cope_prep.schemas.specs import EncodeSpec

SAMPLE_BYTES = 2 * 89_000
"""Of a video of plain_rows."""


@pytest.fixture
def plain(tmp_path: Path) -> Rows:
    return plain_rows(tmp_path / "dataset")


def change(rows: Rows, stage: str, number: int, **changes: Any) -> None:
    key = (stage, f"{number:03d}.mp4")
    rows.ledger[key] = dataclasses.replace(rows.ledger[key], **changes)


def test_video_that_is_not_listed_counts_as_samples_and_is_noted(plain: Rows) -> None:
    del plain.manifest[0]  # of films
    fail(1)(plain)
    found = publish(plain)
    films = found.subsets[0]
    assert (found.total.num_listed, found.total.num_videos, found.num_unlisted_videos) == (119, 119, 1)
    assert (films.subset, films.num_listed, films.num_videos) == ("films", 39, 40)
    assert any("1 video of the index is not in the manifest" in note for note in found.notes)
    assert found.total.num_missing == 0
    assert found.stages[0].num_ok == 118
    assert found.total.source.num_videos == found.total.reencoded.num_videos == 119  # the ledger knows them
    assert "not-in-shards" not in {finding.rule for finding in findings(found)}


def test_unlisted_video_hides_no_missing_one(plain: Rows) -> None:
    del plain.manifest[0]
    plain.gops[:] = [row for row in plain.gops if row["video_id"] != "001.mp4"]
    found = publish(plain)
    assert (found.total.num_listed, found.total.num_videos, found.total.num_missing) == (119, 119, 1)
    texts = {finding.rule: finding.text for finding in findings(found)}
    assert "1 of 119" in texts["not-in-shards"]


def test_failures_of_unlisted_videos_do_not_count(plain: Rows) -> None:
    fail(0)(plain)
    del plain.manifest[0]
    found = publish(plain)
    assert found.failures == ()
    assert (found.total.num_failed, found.stages[0].num_failed) == (0, 0)


def test_video_that_failed_after_it_was_sharded_is_in_both(plain: Rows) -> None:
    change(plain, "extract", 0, status="failed", output_uri="", error_class="TimeLimitError")
    found = publish(plain)
    assert (found.total.num_failed, found.total.num_videos, found.total.num_missing) == (1, NUM_VIDEOS, 0)


@pytest.mark.parametrize("move", ["manifest", "some of the index"])
def test_manifest_says_which_subset_a_video_is_in(plain: Rows, move: str) -> None:
    """All figures by subset follow, those of windows too."""
    whole = publish(plain)
    moved = [row["video_id"] for row in plain.manifest if row["subset"] == "slides"][:10]
    if move == "manifest":
        for row in plain.manifest:
            row["subset"] = "new" if row["video_id"] in moved else row["subset"]
    else:  # shards of which some were made before the subset was renamed
        for row in plain.manifest:
            row["subset"] = "new" if row["subset"] == "slides" else row["subset"]
        for row in plain.gops:
            if row["subset"] == "slides" and (row["video_id"] not in moved or row["gop_index"] == 1):
                row["subset"] = "new"
    found = publish(plain)
    number = 10 if move == "manifest" else 40
    groups = {group.subset: group for group in found.subsets}
    assert (groups["new"].num_listed, groups["new"].num_videos) == (number, number)
    assert groups["new"].num_gops == 2 * number
    counts = {one.subset: one.count for one in found.distributions if one.name == "psnr_y_db"}
    assert counts == {None: whole.total.num_windows} | {
        name: group.num_windows for name, group in groups.items()
    }
    assert sum(group.num_videos for group in found.subsets) == found.total.num_videos == NUM_VIDEOS


def test_sizes_that_are_not_known_leave_their_samples_out(plain: Rows) -> None:
    for number in range(100):
        plain.manifest[number]["size_bytes"] = 0  # the store did not say
        change(plain, "reencode", number, source_size_bytes=0)
    for number in range(30):
        del plain.ledger["reencode", f"{number:03d}.mp4"]
    change(plain, "reencode", 100, status="failed", output_uri="", output_bytes=77)
    found = publish(plain)
    assert found.total.source == Compared(
        num_videos=20, sample_bytes=20 * SAMPLE_BYTES, other_bytes=20 * 2_000_000
    )
    assert found.total.reencoded == Compared(
        num_videos=89, sample_bytes=89 * SAMPLE_BYTES, other_bytes=89 * 500_000
    )
    assert found.total.rgb.num_videos == NUM_VIDEOS


def test_samples_are_compared_with_the_source_that_they_are_of(plain: Rows) -> None:
    """Sources that were replaced since by others, which no run has come to yet."""
    for number in range(10):
        plain.manifest[number] |= {"size_bytes": 7, "version": "2"}
    found = publish(plain)
    assert found.stages[0].num_ok == NUM_VIDEOS - 10
    assert found.total.source == Compared(
        num_videos=NUM_VIDEOS, sample_bytes=NUM_VIDEOS * SAMPLE_BYTES, other_bytes=NUM_VIDEOS * 2_000_000
    )


def test_durations_are_by_the_frame_rate_of_the_spec(plain: Rows) -> None:
    specs = dataclasses.replace(plain.layout.specs, encode=EncodeSpec(fps=24, gop_size=240))
    plain = dataclasses.replace(plain, layout=Layout(dataset=plain.layout.dataset, specs=specs))
    found = publish(plain)
    assert found.total.duration_s == NUM_VIDEOS * 20.0
    assert found.total.num_pictures == NUM_VIDEOS * 20
    assert found.outliers["bytes_per_s"][0].value == pytest.approx(SAMPLE_BYTES / 20)
    assert {one.maximum for one in found.distributions if one.name == "duration_s"} == {20.0}


def test_outliers_may_be_zero(plain: Rows) -> None:
    for row in plain.gops:
        row["residual_energy"] = [0.0] * row["num_windows"]
    assert [(one.video_id, one.value) for one in publish(plain).outliers["residual_energy"]][:2] == [
        ("000.mp4", 0.0),
        ("001.mp4", 0.0),
    ]


def test_cut_is_no_window_at_rest(plain: Rows) -> None:
    """A window of intra blocks alone says nothing of motion; a video of such windows has no motion to compare."""
    for row in plain.gops:
        if row["video_id"] in ("000.mp4", "001.mp4"):
            last = row["num_windows"] if row["video_id"] == "000.mp4" else 1
            for window in range(last):
                row["intra_share"][window] = 1.0
                for name in ("motion_mean_px", "motion_p95_px", "zero_motion_share"):
                    row[name][window] = 0.0
    found = publish(plain)
    num_windows = len(plain.gops) * 7
    assert found.total.num_intra_windows == 2 * 7 + 2
    assert found.subsets[0].num_intra_windows == 14
    by_name = {one.name: one for one in found.distributions if one.subset is None}
    assert (by_name["motion_mean_px"].count, by_name["motion_mean_px"].minimum) == (num_windows - 16, 2.0)
    assert by_name["motion_p95_px"].minimum == 8.0
    assert (by_name["zero_motion_share"].count, by_name["zero_motion_share"].minimum) == (num_windows, 0.0)
    values = {one.video_id: one.value for one in found.outliers["motion_mean_px"]}
    assert "000.mp4" not in values
    assert values["001.mp4"] == 2.0


def test_video_listed_twice_fails(plain: Rows) -> None:
    plain.manifest.append(plain.manifest[3])
    with pytest.raises(FormatError, match=r"manifest\.parquet: lists 003\.mp4 2 times"):
        publish(plain)


def test_many_subsets(tmp_path: Path) -> None:
    """More than 16 bits count."""
    plain = plain_rows(tmp_path)
    listed = dict(plain.manifest[0])
    none = {name: [] for name, value in plain.gops[0].items() if isinstance(value, list)}
    gop = plain.gops[0] | none | {"num_windows": 0}
    number = 2**16 + 1
    plain.manifest[:] = [listed | {"video_id": str(n), "subset": str(n)} for n in range(number)]
    plain.gops[:] = [gop | {"video_id": str(n), "subset": str(n)} for n in range(number)]
    plain.ledger.clear()
    plain.questions.clear()
    plain.gops[-1]["num_windows"] = 1
    plain.gops[-1] |= {name: [0.5] for name in ("psnr_y_db", "intra_share")}
    found = publish(plain)
    assert len(found.subsets) == number
    assert {one.count for one in found.distributions if one.subset} == {1}
    last = plain.gops[-1]["subset"]
    assert [one.name for one in found.distributions if one.subset == last] == [
        "intra_share",
        "psnr_y_db",
        "duration_s",
    ]


def test_folders_with_equals_signs_are_no_columns(
    plain: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = publish(plain)
    layout = Layout(
        dataset=str(tmp_path / "subset=x" / "num_frames=7" / "video_id=1"), specs=plain.layout.specs
    )
    (tmp_path / "status=failed").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "status=failed"))
    found = publish(dataclasses.replace(plain, layout=layout))
    assert dataclasses.replace(found, dataset=expected.dataset) == expected


def test_brackets_in_a_path_are_no_pattern(plain: Rows, tmp_path: Path) -> None:
    specs = plain.layout.specs
    expected = publish(
        dataclasses.replace(plain, layout=Layout(dataset=str(tmp_path / "a[1]z"), specs=specs))
    )
    decoy = dataclasses.replace(
        plain, layout=Layout(dataset=str(tmp_path / "a1z"), specs=specs), gops=plain.gops[:2]
    )
    write(decoy)
    found = dataset_stats(Layout(dataset=str(tmp_path / "a[1]z"), specs=specs))
    assert found == expected
    assert found.total.num_videos == NUM_VIDEOS


def test_of_a_remote_index_only_some_columns_are_read(
    plain: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, row in enumerate(plain.gops):  # nothing that packs well
        row["members"] = [
            {
                "name": f"{hash((number, place)):x}",
                "offset_bytes": hash((place, number)) >> 2,
                "size_bytes": 1,
            }
            for place in range(100)
        ]
    layout = Layout(dataset=f"memory://{tmp_path.name}", specs=plain.layout.specs)
    read: list[int] = []
    open_read = storage.open_read

    def counted(uri: str) -> Any:
        file: Any = open_read(uri)
        if uri == layout.index:
            given = file.read

            def read_and_count(size: int = -1) -> bytes:
                content = given(size)
                read.append(len(content))
                return content

            file.read = read_and_count
        return file

    try:
        write(dataclasses.replace(plain, layout=layout))
        monkeypatch.setattr(storage, "open_read", counted)
        assert dataset_stats(layout).total.num_videos == NUM_VIDEOS
        assert 0 < sum(read) < storage.stat(layout.index).size_bytes / 4
    finally:
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)

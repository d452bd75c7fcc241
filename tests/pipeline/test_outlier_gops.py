"""The GOP whose sheet is drawn is the one that makes its video an outlier."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from stats_rows import Rows

from cope_prep.pipeline.outlier_gops import most_telling_gops
from cope_prep.schemas.errors import FormatError


@pytest.mark.parametrize("name", ["motion_mean_px", "residual_energy", "bytes_per_s", "clipped_share"])
def test_it_has_the_largest_value(name: str, rows: Rows) -> None:
    def value(row: dict) -> float:
        if name == "bytes_per_s":
            return row["size_bytes"] / row["num_frames"]
        if name == "clipped_share":
            return sum(row["clipped_vectors"]) + sum(row["clipped_residuals"])
        values = row[name]
        if name == "motion_mean_px":  # a window of intra blocks alone has no vector
            values = [value for value, intra in zip(values, row["intra_share"], strict=True) if intra < 1]
        return math.fsum(values) / len(values) if values else 0.0

    wanted = {row["video_id"]: name for row in rows.gops}
    got = most_telling_gops(rows.layout, wanted)
    assert got.keys() == wanted.keys()
    assert any(got.values())  # not the first of each
    for video_id, gop_index in got.items():
        values = {row["gop_index"]: value(row) for row in rows.gops if row["video_id"] == video_id}
        assert values[gop_index] == pytest.approx(max(values.values()))


def test_unknown_videos_and_no_index_give_the_first(copied: Rows) -> None:
    assert most_telling_gops(copied.layout, {"no/such.mp4": "bytes_per_s"}) == {"no/such.mp4": 0}
    Path(copied.layout.index).unlink()
    assert most_telling_gops(copied.layout, {"a": "bytes_per_s"}) == {"a": 0}


def test_damaged_index_fails(copied: Rows) -> None:
    Path(copied.layout.index).write_bytes(b"no Parquet")
    with pytest.raises(FormatError, match="not a readable index"):
        most_telling_gops(copied.layout, {"a": "bytes_per_s"})

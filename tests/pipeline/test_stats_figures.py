"""Values of a figure, read piece by piece and never put together: the same quantiles as of all of them sorted."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cope_prep.pipeline import stats_figures
from cope_prep.pipeline.stats_records import Distribution

EDGES = (-1.0, 0.0, 0.5, 2.0)

floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(parts=st.lists(st.lists(floats, min_size=1, max_size=6), min_size=1, max_size=5))
def test_nth_of_parts_is_the_nth_of_all(parts: list[list[float]]) -> None:
    arrays = [np.sort(np.array(part, np.float32)) for part in parts]
    every = np.sort(np.concatenate(arrays))
    found = np.array([stats_figures._nth(arrays, place) for place in range(len(every))], np.float32)
    np.testing.assert_array_equal(found, every)


def test_nth_tells_no_negative_zero() -> None:
    parts = [np.array([-0.0, 0.0]), np.array([0.0])]
    assert [math.copysign(1, stats_figures._nth(parts, place)) for place in range(3)] == [1, 1, 1]


def write_index(path: Path, rng: random.Random, *, mismatch: bool) -> dict[str, list[float]]:
    """60 rows of three subsets in row groups of unlike sizes; the values by subset."""
    subsets = [rng.choice(["b", "a", "é c"]) for _ in range(60)]
    values = [[rng.choice([0.0, rng.gauss(0, 1)]) for _ in range(rng.randrange(5))] for _ in subsets]
    num_windows = [len(row) for row in values]
    if mismatch:
        num_windows[17] += 1
    schema = pa.schema(
        [
            pa.field("subset", pa.string(), nullable=False),
            pa.field("num_windows", pa.int32(), nullable=False),
            pa.field(
                "intra_share", pa.list_(pa.field("window", pa.float32(), nullable=False)), nullable=False
            ),
            pa.field("figure", pa.list_(pa.field("window", pa.float32(), nullable=False)), nullable=False),
        ]
    )
    intra = [[0.5] * len(row) for row in values]
    columns = {"subset": subsets, "num_windows": num_windows, "intra_share": intra, "figure": values}
    table = pa.Table.from_pydict(columns, schema)
    with pq.ParquetWriter(path, schema) as writer:
        for first, last in ((0, 1), (1, 20), (20, 20), (20, 45), (45, 60)):
            writer.write_table(table[first:last])
    found: dict[str, list[float]] = {}
    for subset, row in zip(subsets, values, strict=True):
        found.setdefault(subset, []).extend(row)
    return found


@pytest.mark.parametrize("mismatch", [False, True])
@pytest.mark.parametrize("piece_rows", [1, 15, 1000])
def test_pieces_hold_every_value_of_its_subset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_rows: int, mismatch: bool
) -> None:
    monkeypatch.setattr(stats_figures, "_PIECE_ROWS", piece_rows)
    path = tmp_path / "index.parquet"
    expected = write_index(path, random.Random(piece_rows), mismatch=mismatch)
    subsets, pieces = stats_figures._read_pieces(str(path), {})
    assert subsets == ["a", "b", "é c"]
    assert len(pieces) == {1: 4, 15: 3, 1000: 1}[piece_rows]
    values = stats_figures._read_figure(str(path), "figure", pieces, num_subsets=3)
    for subset, own in zip(subsets, values, strict=True):
        assert sorted(own.tolist()) == sorted(np.array(expected[subset], np.float32).tolist())
    found = stats_figures._by_subset(subsets, values, EDGES, name="figure", unit="px", of="window")
    assert [one.subset for one in found] == [None, *subsets]
    for one in found:
        every = [value for own in expected.values() for value in own]
        check(one, every if one.subset is None else expected[one.subset])


def check(found: Distribution, values: list[float]) -> None:
    """Against numpy's own quantiles of all values together."""
    every = np.array(values, np.float32)
    assert found.count == len(every) > 10
    assert (found.minimum, found.maximum) == (
        pytest.approx(every.min(), rel=1e-5),
        pytest.approx(every.max(), rel=1e-5),
    )
    quantiles = np.quantile(every.astype(np.float64), stats_figures.QUANTILES)
    got = (found.p25, found.median, found.p75, found.p95)
    assert got == pytest.approx(tuple(quantiles), rel=1e-5, abs=1e-12)
    assert found.mean == pytest.approx(every.mean(dtype=np.float64), rel=1e-5)
    bounds = (-np.inf, *EDGES, np.inf)
    counts = [int(((every > low) & (every <= high)).sum()) for low, high in itertools.pairwise(bounds)]
    assert list(found.histogram.counts) == counts


def test_subset_without_a_window_has_no_distribution() -> None:
    values = [np.array([], np.float32), np.array([2.0, 1.0], np.float32)]
    found = stats_figures._by_subset(["a", "b"], values, EDGES, name="figure", unit="px", of="window")
    assert [(one.subset, one.count) for one in found] == [(None, 2), ("b", 2)]
    assert stats_figures._by_subset(["a"], values[:1], EDGES, name="figure", unit="px", of="window") == []

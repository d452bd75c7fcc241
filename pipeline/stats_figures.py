"""How the figures of the index are distributed over windows and videos, and which videos stand out.

Quantiles are exact. A figure's column is read piece by piece, the values of each piece are put subset by subset, in
an order that is the same for all figures, and each subset is sorted; the quantiles of all are found in the sorted
subsets. A figure of 10 million windows is 40 MB, so only two are in memory at a time. The tables `videos` and
`clipped` are made by stats_queries.prepare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cope_prep.pipeline.parquet import PARQUET_THREADS, open_parquet
from cope_prep.pipeline.stats_records import Distribution, Histogram, Outlier
from cope_prep.pipeline.stats_tables import Tables

NUM_OUTLIERS = 20
FIGURES_AT_A_TIME = 2
"""Each takes about 80 MB at 10 million windows."""
_PIECE_ROWS = 32_768

_SHARES = tuple(round(step * 0.05, 2) for step in range(21))
_POWERS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
FIGURES = {
    "motion_mean_px": ("px", _POWERS),
    "motion_p95_px": ("px", _POWERS),
    "zero_motion_share": ("share of blocks", _SHARES),
    "intra_share": ("share of blocks", _SHARES),
    "residual_energy": ("grey levels squared", (0.0, *(2.0**power for power in range(-2, 13)))),
    "residual_nonzero_share": ("share of values", _SHARES),
    "psnr_y_db": ("dB", (*(float(db) for db in range(20, 62, 2)), 99.0)),
}
"""Columns of the index with one value a window: unit, and edges of the histogram. PSNR is 100 where identical."""
OF_VECTORS = frozenset({"motion_mean_px", "motion_p95_px"})
"""Of windows that have a vector. Where all blocks are intra, as at a cut, the index has 0, which is not at rest."""
DURATION_EDGES_S = (
    1.0,
    2.0,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    45.0,
    60.0,
    90.0,
    120.0,
    180.0,
    300.0,
    600.0,
    3600.0,
)
QUANTILES = (0.25, 0.5, 0.75, 0.95)


def distributions(tables: Tables, *, fps: int, moved: Mapping[str, str]) -> tuple[Distribution, ...]:
    """Every figure in all, then subset by subset; nothing of a figure that has no values.

    moved: video id -> subset, of the videos that count for another one than the index says.
    """
    subsets, pieces = _read_pieces(tables.index_path, moved)

    def of_windows(name: str) -> list[Distribution]:
        unit, edges = FIGURES[name]
        values = _read_figure(tables.index_path, name, pieces, num_subsets=len(subsets))
        return _by_subset(subsets, values, edges, name=name, unit=unit, of="window")

    # pyarrow and numpy let go of the interpreter's lock, so that two figures are made at the same time.
    with ThreadPoolExecutor(FIGURES_AT_A_TIME) as threads:
        found = [distribution for each in threads.map(of_windows, FIGURES) for distribution in each]
    return (*found, *_durations(tables, fps=fps))


def _durations(tables: Tables, *, fps: int) -> list[Distribution]:
    tables.connection.execute("""
        CREATE TEMP TABLE codes AS
        SELECT subset, (row_number() OVER (ORDER BY subset) - 1)::UINTEGER AS code FROM videos GROUP BY subset
    """)
    subsets = [row["subset"] for row in tables.rows("SELECT subset FROM codes ORDER BY code")]
    columns = tables.arrays(
        f"SELECT code, num_frames / {fps} AS duration_s FROM videos JOIN codes USING (subset)"
    )
    order, ends = _order(columns["code"].astype(_code_type(len(subsets))), len(subsets))
    values = np.split(columns["duration_s"][order], ends)
    return _by_subset(subsets, values, DURATION_EDGES_S, name="duration_s", unit="s", of="video")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Some row groups of the index, and how the values of a figure in them are put subset by subset."""

    row_groups: range
    codes: np.ndarray
    """uint8, uint16 or uint32 [num_gops]: place of the subset among all subsets."""
    num_windows: np.ndarray
    """int32 [num_gops]: how many values a row has."""
    order: np.ndarray
    """int32 [num_values]: places of the values of the first subset, then of the second."""
    ends: np.ndarray
    """int64 [num_subsets - 1]: where each subset ends in that order, but the last."""
    still: np.ndarray
    """int32 [any]: places of the windows of intra blocks alone, in ascending order."""


def _code_type(num_subsets: int) -> np.dtype[Any]:
    """The smallest: numpy sorts 16 bits by radix."""
    return np.min_scalar_type(max(num_subsets - 1, 0))


def _order(codes: np.ndarray, num_subsets: int) -> tuple[np.ndarray, np.ndarray]:
    """`order` and `ends` of a _Piece for the codes of its values."""
    order = np.argsort(codes, kind="stable").astype(np.int32)
    return order, np.cumsum(np.bincount(codes, minlength=num_subsets))[:-1]


def _read_pieces(path: str, moved: Mapping[str, str]) -> tuple[list[str], list[_Piece]]:
    """The subsets in order of their names, and all row groups, about _PIECE_ROWS rows at a time."""
    parquet = open_parquet(path, read_dictionary=["subset", *(["video_id"] if moved else [])])
    columns = ["subset", "num_windows", "intra_share", *(["video_id"] if moved else [])]
    names: dict[str, int] = {}
    read = []
    for groups in _row_groups(parquet):
        table = parquet.read_row_groups(groups, columns=columns, use_threads=PARQUET_THREADS)
        codes = _codes(table, moved, names)
        num_windows = table["num_windows"].to_numpy()
        intra, lengths = _flat(table["intra_share"])
        still = np.flatnonzero(intra >= 1).astype(np.int32)
        read.append(
            (groups, codes, num_windows, still if np.array_equal(lengths, num_windows) else still[:0])
        )
    subsets = sorted(names)
    place = np.empty(len(names), _code_type(len(names)))
    place[[names[name] for name in subsets]] = np.arange(len(names))
    pieces = []
    for groups, codes, num_windows, still in read:
        order, ends = _order(np.repeat(place[codes], num_windows), len(subsets))
        pieces.append(
            _Piece(
                row_groups=groups,
                codes=place[codes],
                num_windows=num_windows,
                order=order,
                ends=ends,
                still=still,
            )
        )
    return subsets, pieces


def _row_groups(parquet: pq.ParquetFile) -> Iterator[range]:
    first = num_rows = 0
    for group in range(parquet.num_row_groups):
        num_rows += parquet.metadata.row_group(group).num_rows
        last = group == parquet.num_row_groups - 1
        if num_rows >= _PIECE_ROWS or (last and num_rows):
            yield range(first, group + 1)
            first, num_rows = group + 1, 0


def _codes(table: pa.Table, moved: Mapping[str, str], names: dict[str, int]) -> np.ndarray:
    """int64 [num_gops]: number of each row's subset in `names`, where new ones are added."""
    subset = table["subset"].unify_dictionaries().combine_chunks()
    of_value = [names.setdefault(name, len(names)) for name in subset.dictionary.to_pylist()]
    codes = np.array(of_value, np.int64)[subset.indices.to_numpy()]
    if moved:
        video = table["video_id"].unify_dictionaries().combine_chunks()
        other = [moved.get(video_id) for video_id in video.dictionary.to_pylist()]
        of_video = [-1 if name is None else names.setdefault(name, len(names)) for name in other]
        moved_to = np.array(of_video, np.int64)[video.indices.to_numpy()]
        codes = np.where(moved_to < 0, codes, moved_to)
    return codes


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Values and lengths of a column of lists: float32 [num_values], int32 [num_rows]."""
    lists: Any = column.combine_chunks()
    return lists.flatten().to_numpy(), np.diff(lists.offsets.to_numpy())


def _read_figure(path: str, name: str, pieces: Sequence[_Piece], *, num_subsets: int) -> list[np.ndarray]:
    """The values of a list column subset by subset: float32 [num_values] each."""
    parquet = open_parquet(path)
    found: list[list[np.ndarray]] = [[] for _ in range(num_subsets)]
    for piece in pieces:
        table = parquet.read_row_groups(piece.row_groups, columns=[name], use_threads=PARQUET_THREADS)
        values, lengths = _flat(table[name])
        order, ends = piece.order, piece.ends
        if not np.array_equal(lengths, piece.num_windows):
            # The table contradicts itself: what it lists counts.
            order, ends = _order(np.repeat(piece.codes, lengths), num_subsets)
        elif name in OF_VECTORS and len(piece.still):
            order, ends = _without(piece.still, order, ends)
        for subset, part in enumerate(np.split(values[order], ends)):
            found[subset].append(part)
    return [np.concatenate(parts) for parts in found] if pieces else []


def _without(places: np.ndarray, order: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order, and where the subsets end in it, without some of the values."""
    stays = np.ones(len(order), bool)
    stays[places] = False
    stays = stays[order]
    return order[stays], np.concatenate([[0], np.cumsum(stays)])[ends]


def _by_subset(
    subsets: Sequence[str],
    values: Sequence[np.ndarray],
    edges: tuple[float, ...],
    *,
    name: str,
    unit: str,
    of: Literal["window", "video"],
) -> list[Distribution]:
    """`values` are those of each subset, in any order; they are sorted in place."""
    for part in values:
        part.sort()
    some = {subset: [part] for subset, part in zip(subsets, values, strict=False) if len(part)}
    if not some:
        return []
    groups: dict[str | None, list[np.ndarray]] = {None: [part for (part,) in some.values()], **some}
    return [
        _distribution(parts, edges, name=name, unit=unit, of=of, subset=subset)
        for subset, parts in groups.items()
    ]


def _distribution(
    parts: Sequence[np.ndarray],
    edges: tuple[float, ...],
    *,
    name: str,
    unit: str,
    of: Literal["window", "video"],
    subset: str | None,
) -> Distribution:
    """Of values in one or more parts, each in ascending order (NaN last) and none empty."""
    count = sum(map(len, parts))
    # In the values' own type: 0.1 as the index has it is a little more than 0.1.
    own_edges = np.array(edges, parts[0].dtype)
    ends = np.sum([np.searchsorted(part, own_edges, side="right") for part in parts], axis=0)
    p25, median, p75, p95 = (_quantile(parts, share) for share in QUANTILES)
    return Distribution(
        name=name,
        unit=unit,
        of=of,
        subset=subset,
        count=count,
        minimum=_rounded(np.fmin.reduce([part[0] for part in parts])),
        p25=_rounded(p25),
        median=_rounded(median),
        p75=_rounded(p75),
        p95=_rounded(p95),
        maximum=_rounded(np.maximum.reduce([part[-1] for part in parts])),
        mean=_rounded(sum(part.sum(dtype=np.float64) for part in parts) / count),
        histogram=Histogram(edges=edges, counts=tuple(np.diff(ends, prepend=0, append=count).tolist())),
    )


def _quantile(parts: Sequence[np.ndarray], share: float) -> float:
    """Between the two values next to the place, in proportion."""
    count = sum(map(len, parts))
    place = share * (count - 1)
    low = int(place)
    below, above = _nth(parts, low), _nth(parts, min(low + 1, count - 1))
    return below + (above - below) * (place - low)


def _nth(parts: Sequence[np.ndarray], place: int) -> float:
    """The value at a place of all parts together in ascending order, without putting them together.

    By bisection over the floats themselves: as integers they are in the same order, negative ones turned round. For
    32 bits 32 steps, each a binary search in every part.
    """
    if len(parts) == 1:
        return float(parts[0][place])
    dtype = parts[0].dtype
    integer = np.dtype(f"i{dtype.itemsize}")
    mask = np.iinfo(integer).max

    def key(value: Any) -> int:
        bits = int(np.array(value, dtype).view(integer))
        return bits if bits >= 0 else bits ^ mask

    def value(key: int) -> np.ndarray:
        return np.array(key if key >= 0 else key ^ mask, integer).view(dtype)

    low = key(np.fmin.reduce([part[0] for part in parts]))
    last = np.maximum.reduce([part[-1] for part in parts])
    high = key(np.inf) + 1 if np.isnan(last) else key(last)  # the first NaN
    while low < high:
        middle = (low + high) // 2
        if sum(int(np.searchsorted(part, value(middle), side="right")) for part in parts) > place:
            high = middle
        else:
            low = middle + 1
    return float(value(low)) + 0.0  # never -0.0, which is the key before 0.0


def _rounded(value: float) -> float:
    """To 6 digits: the index holds 32-bit floats."""
    return float(f"{value:.6g}")


def outliers(tables: Tables, *, fps: int) -> dict[str, tuple[Outlier, ...]]:
    """The videos with the largest values, largest first; of clipping, only those with any."""
    values = {
        "motion_mean_px": "motion_sum / nullif(num_windows - coalesce(intra_windows, 0), 0)",
        "residual_energy": "energy_sum / nullif(num_windows, 0)",
        "bytes_per_s": "sample_bytes * $fps / num_frames",
        "clipped_share": "clipped_windows / nullif(num_windows, 0)",
    }
    return {
        name: tuple(
            Outlier(**{**row, "value": _rounded(row["value"])})
            for row in tables.rows(
                f"""
                SELECT video_id, subset, {value} AS value, num_frames / $fps AS duration_s
                FROM videos LEFT JOIN clipped USING (video_id) LEFT JOIN intra USING (video_id)
                WHERE value IS NOT NULL ORDER BY value DESC, video_id LIMIT $limit
                """,
                fps=fps,
                limit=NUM_OUTLIERS,
            )
        )
        for name, value in values.items()
    }

"""One row a video of all that the tables know of it: what the dashboard's page Explore filters and sorts.

    index, manifest, ledgers, questions ──DuckDB──> one Arrow table, in order of the video ids

Cost: one pass over the index's columns with figures, as cope-prep stats; benchmarks/bench_dashboard.py has the
seconds. The result of 258,585 videos is 60 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.stats_tables import STAGES, Tables, open_tables
from cope_prep.schemas.errors import SourceNotFoundError

Kind = Literal["text", "category", "number"]
MAX_KINDS = 8
"""Kinds of questions with a column of their own; all count in num_questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table. A value that is not known is null."""

    name: str
    kind: Kind
    title: str
    unit: str = ""
    """As the values are: s, B, B/s, px, dB; `share` is of 1."""
    help: str = ""
    csv_name: str = ""
    """In a CSV file, if not as here."""


_COLUMNS = (
    Column(name="video_id", kind="text", title="Video"),
    Column(name="subset", kind="category", title="Subset"),
    Column(name="duration_s", kind="number", title="Duration", unit="s", help="Of the re-encoded video."),
    Column(name="num_gops", kind="number", title="GOPs", help="In the shards."),
    Column(name="num_windows", kind="number", title="Windows", help="In the shards."),
    Column(
        name="motion_mean_px",
        kind="number",
        title="Motion, mean",
        unit="px",
        help="Mean length of the motion vectors, over the windows that have some: not of intra blocks alone.",
    ),
    Column(
        name="motion_p95_px",
        kind="number",
        title="Motion, p95",
        unit="px",
        help="95th percentile over the blocks of a window; of the window where it is largest.",
    ),
    Column(
        name="zero_motion_share",
        kind="number",
        title="No motion",
        unit="share",
        help="Blocks whose vector is zero, over all windows.",
    ),
    Column(
        name="intra_share",
        kind="number",
        title="Intra",
        unit="share",
        help="Blocks without a path to the anchor before, over all windows.",
    ),
    Column(
        name="residual_energy",
        kind="number",
        title="Residual energy",
        unit="grey²",
        help="Mean square of the residual before coding, over all windows.",
    ),
    Column(
        name="clipped_share",
        kind="number",
        title="Clipped",
        unit="share",
        help="Windows in which a vector or a value of the residual was clamped.",
    ),
    Column(
        name="psnr_min_db",
        kind="number",
        title="PSNR, least",
        unit="dB",
        help="Luma of the worst rebuilt anchor against the re-encoded frame; 100 if identical.",
    ),
    Column(
        name="psnr_mean_db",
        kind="number",
        title="PSNR, mean",
        unit="dB",
        help="Luma of the rebuilt anchors against the re-encoded frames.",
    ),
    Column(
        name="bytes_per_s",
        kind="number",
        title="Size",
        unit="B/s",
        help="Samples, a second of video.",
    ),
    Column(name="source_codec", kind="category", title="Source codec"),
    Column(name="source_resolution", kind="category", title="Source resolution"),
    Column(name="source_fps", kind="number", title="Source FPS"),
    Column(name="source_bytes", kind="number", title="Source size", unit="B"),
    Column(name="num_questions", kind="number", title="Questions"),
)
_STATUS_COLUMNS = (
    Column(name="reencode_status", kind="category", title="Re-encoded", help="ok, partial or failed."),
    Column(name="extract_status", kind="category", title="Extracted", help="ok, partial or failed."),
    Column(name="shards_status", kind="category", title="In shards", help="ok if the index has it."),
    Column(
        name="error_class",
        kind="category",
        title="Error",
        help="Class of what went wrong in the last stage that says so.",
    ),
    Column(name="error_message", kind="text", title="Message"),
)

_PREPARE = """
CREATE TEMP TABLE samples AS
SELECT
    video_id,
    min(subset) AS subset,
    sum(num_frames)::BIGINT AS num_frames,
    count(*)::INTEGER AS num_gops,
    sum(num_windows)::INTEGER AS num_windows,
    sum(size_bytes)::BIGINT AS size_bytes,
    sum(list_sum(motion_mean_px)) AS motion_mean,
    max(list_max(motion_p95_px)) AS motion_p95,
    sum(list_sum(zero_motion_share)) AS zero_motion,
    sum(list_sum(intra_share)) AS intra,
    sum(list_sum(residual_energy)) AS energy,
    min(list_min(psnr_y_db)) AS psnr_min,
    sum(list_sum(psnr_y_db)) AS psnr
FROM gops GROUP BY video_id;

CREATE TEMP TABLE clipped AS
SELECT video_id, count(*) AS num_windows
FROM (
    SELECT video_id, unnest(clipped_vectors) AS vectors, unnest(clipped_residuals) AS residuals FROM gops
)
WHERE vectors > 0 OR residuals > 0 GROUP BY video_id;

CREATE TEMP TABLE no_vector AS
SELECT video_id, count(*) AS num_windows
FROM (SELECT video_id, unnest(intra_share) AS share FROM gops)
WHERE share >= 1 GROUP BY video_id;

CREATE TEMP TABLE every AS
SELECT video_id, subset, size_bytes FROM manifest
UNION ALL
SELECT video_id, subset, NULL FROM samples ANTI JOIN manifest USING (video_id)
UNION ALL
SELECT DISTINCT video_id, '', NULL::BIGINT
FROM ends ANTI JOIN manifest USING (video_id) ANTI JOIN samples USING (video_id);
"""
_ROWS = """
SELECT
    every.video_id,
    every.subset,
    coalesce(samples.num_frames / $fps, done.duration_s) AS duration_s,
    samples.num_gops,
    samples.num_windows,
    samples.motion_mean / nullif(samples.num_windows - coalesce(no_vector.num_windows, 0), 0) AS motion_mean_px,
    CASE WHEN samples.num_windows > coalesce(no_vector.num_windows, 0) THEN samples.motion_p95 END AS motion_p95_px,
    samples.zero_motion / nullif(samples.num_windows, 0) AS zero_motion_share,
    samples.intra / nullif(samples.num_windows, 0) AS intra_share,
    samples.energy / nullif(samples.num_windows, 0) AS residual_energy,
    CASE WHEN samples.num_windows > 0
        THEN coalesce(clipped.num_windows, 0) / samples.num_windows END AS clipped_share,
    samples.psnr_min AS psnr_min_db,
    samples.psnr / nullif(samples.num_windows, 0) AS psnr_mean_db,
    samples.size_bytes * $fps / samples.num_frames AS bytes_per_s,
    done.source_codec,
    done.source_width_px || 'x' || done.source_height_px AS source_resolution,
    done.source_fps,
    coalesce(reencode.source_size_bytes, every.size_bytes) AS source_bytes,
    coalesce(asked.num_questions, 0) AS num_questions,
    {questions}
    reencode.status AS reencode_status,
    extract.status AS extract_status,
    CASE WHEN samples.num_gops > 0 THEN 'ok' END AS shards_status,
    nullif(coalesce(nullif(extract.error_class, ''), reencode.error_class), '') AS error_class,
    nullif(coalesce(nullif(extract.error_message, ''), reencode.error_message), '') AS error_message
FROM every
LEFT JOIN samples USING (video_id)
LEFT JOIN clipped USING (video_id)
LEFT JOIN no_vector USING (video_id)
LEFT JOIN (
    SELECT video_id, count(*) AS num_questions {counts} FROM questions GROUP BY video_id
) AS asked USING (video_id)
LEFT JOIN (FROM ends WHERE stage = 'reencode') AS reencode USING (video_id)
LEFT JOIN (FROM ends WHERE stage = 'reencode' AND status <> 'failed') AS done USING (video_id)
LEFT JOIN (FROM ends WHERE stage = 'extract') AS extract USING (video_id)
ORDER BY every.video_id
"""


def read_videos_table(layout: Layout) -> tuple[tuple[Column, ...], pa.Table]:
    """The columns, and a row of each video: of the manifest, the index or a ledger, whichever knows it.

    Credentials in messages are hidden.

    Raises:
        ConfigurationError, FormatError, StorageError: as open_tables.
    """
    with open_tables(layout) as tables:
        tables.connection.execute(_PREPARE)
        kinds = [row["kind"] for row in tables.rows(_KINDS, limit=MAX_KINDS)]
        table = _rows(tables, kinds, fps=layout.specs.encode.fps)
    columns = (*_COLUMNS, *map(_kind_column, range(len(kinds)), kinds), *_STATUS_COLUMNS)
    return columns, _without_secrets(table)


_KINDS = "SELECT kind FROM questions GROUP BY kind ORDER BY count(*) DESC, kind LIMIT $limit"


def _rows(tables: Tables, kinds: list[str], *, fps: int) -> pa.Table:
    # Names of kinds come from a table: they are bound, and the columns are named by their number.
    counts = "".join(
        f", count(*) FILTER (kind = $kind_{number}) AS questions_{number}" for number in range(len(kinds))
    )
    questions = "".join(
        f"coalesce(asked.questions_{number}, 0) AS questions_{number}," for number in range(len(kinds))
    )
    parameters: dict[str, Any] = {f"kind_{number}": kind for number, kind in enumerate(kinds)}
    query = _ROWS.format(counts=counts, questions=questions)
    return tables.connection.sql(query, params={**parameters, "fps": fps}).to_arrow_table()


def _kind_column(number: int, kind: str) -> Column:
    title = f"Questions: {kind}"
    return Column(name=f"questions_{number}", kind="number", title=title, csv_name=f"questions_{kind}")


def _without_secrets(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("error_message")
    encoded = pc.dictionary_encode(table["error_message"]).combine_chunks()  # pyright: ignore[reportAttributeAccessIssue]
    shown = pa.array([redacted(message) for message in encoded.dictionary.to_pylist()], pa.string())
    return table.set_column(place, "error_message", shown.take(encoded.indices))


def table_versions(layout: Layout) -> tuple[str, ...]:
    """What tells whether any of the tables has changed: a few questions to the store, no table is read.

    Raises:
        StorageError: the store could not answer.
    """
    versions = []
    for uri in (layout.manifest, layout.questions, layout.index):
        try:
            found = storage.stat(uri)
            versions.append(f"{found.size_bytes} {found.version}")
        except SourceNotFoundError:
            versions.append("")
    for stage in STAGES:
        versions.append(" ".join(storage.list_files(layout.ledger(stage))))  # a part never changes
    return tuple(versions)

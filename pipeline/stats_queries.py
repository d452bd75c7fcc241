"""Counts, bytes, failures and sources of a dataset: one query each over the views of stats_tables.py.

`prepare` makes what the others share, and stats_figures.py too:

    indexed    the index by video
    clipped    windows with clamped values, by video; intra: windows without any vector
    listed     the videos that count, with their subset
    videos     indexed, with the subset of listed where the video is listed
    known      what the ledgers say of the listed

All else is a sum over these.

A group is a subset or, where `is_total`, all of them: GROUPING SETS ((subset), ()) makes both in one pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.stats_records import (
    Compared,
    FailureStats,
    GroupStats,
    SourceShare,
    StageStats,
)
from cope_prep.pipeline.stats_tables import Tables

UNKNOWN = "unknown"

_PREPARE = """
CREATE TEMP TABLE indexed AS
SELECT
    video_id,
    min(subset) AS subset,
    max(subset) AS other_subset,
    sum(num_frames)::BIGINT AS num_frames,
    count(*) AS num_gops,
    sum(num_windows)::BIGINT AS num_windows,
    max(width_px)::BIGINT * max(height_px) AS picture_px,
    sum(iframe_bytes)::BIGINT AS iframe_bytes,
    sum(motion_bytes)::BIGINT AS motion_bytes,
    sum(residual_bytes)::BIGINT AS residual_bytes,
    sum(size_bytes)::BIGINT AS sample_bytes,
    sum(list_sum(motion_mean_px)) AS motion_sum,
    sum(list_sum(residual_energy)) AS energy_sum
FROM gops GROUP BY video_id;

CREATE TEMP TABLE clipped AS
SELECT
    video_id,
    count(*) FILTER (vectors > 0) AS vector_windows,
    count(*) FILTER (residuals > 0) AS residual_windows,
    count(*) AS clipped_windows
FROM (
    SELECT video_id, unnest(clipped_vectors) AS vectors, unnest(clipped_residuals) AS residuals FROM gops
)
WHERE vectors > 0 OR residuals > 0 GROUP BY video_id;

CREATE TEMP TABLE intra AS
SELECT video_id, count(*) AS intra_windows
FROM (SELECT video_id, unnest(intra_share) AS share FROM gops)
WHERE share >= 1 GROUP BY video_id;

CREATE TEMP TABLE listed AS {listed};

CREATE TEMP TABLE videos AS
SELECT indexed.* REPLACE (coalesce(listed.subset, indexed.subset) AS subset)
FROM indexed LEFT JOIN listed USING (video_id);

CREATE TEMP TABLE known AS
SELECT ends.*, listed.subset FROM ends JOIN listed USING (video_id);
"""
_LISTED = {
    True: "SELECT video_id, subset, size_bytes FROM manifest",
    False: """
        SELECT video_id, subset, NULL::BIGINT AS size_bytes FROM indexed
        UNION ALL
        SELECT DISTINCT video_id, '', NULL FROM ends ANTI JOIN indexed USING (video_id)
    """,
}
"""By whether there is a manifest."""


def prepare(tables: Tables) -> None:
    """Make the tables that the other queries read."""
    tables.connection.execute(_PREPARE.format(listed=_LISTED[tables.has_manifest]))


def stages(tables: Tables, spec_hashes: dict[str, str]) -> tuple[StageStats, ...]:
    """What the ledgers say of each stage that has one, in their order; of nothing but old rows, zeros."""
    rows = tables.rows("""
        SELECT
            stage,
            count(*) FILTER (status = 'ok') AS num_ok,
            count(*) FILTER (status = 'partial') AS num_partial,
            count(*) FILTER (status = 'failed') AS num_failed,
            coalesce(sum(duration_s) FILTER (status <> 'failed'), 0) AS duration_s,
            coalesce(sum(source_size_bytes) FILTER (status <> 'failed'), 0)::BIGINT AS source_bytes,
            coalesce(sum(output_bytes) FILTER (status <> 'failed'), 0)::BIGINT AS output_bytes
        FROM known GROUP BY stage
    """)
    by_stage = {row["stage"]: row for row in rows}
    return tuple(
        StageStats(**by_stage.get(stage, {"stage": stage}), spec_hash=spec_hashes[stage])
        for stage in tables.stages
    )


def groups(tables: Tables, *, fps: int, iframes_are_jpegs: bool) -> tuple[GroupStats, tuple[GroupStats, ...]]:
    """All videos together, and subset by subset in order of their names."""
    found: dict[str | None, dict[str, Any]] = {None: {}}
    for row in (*tables.rows(_LISTED_BY_GROUP), *tables.rows(_INDEXED_BY_GROUP, fps=fps)):
        subset = None if row.pop("is_total") else row["subset"]
        found.setdefault(subset, {}).update(row)
    questions: dict[str | None, dict[str, int]] = {}
    for row in tables.rows(_QUESTIONS_BY_GROUP):
        for subset in (row["subset"], None):
            counts = questions.setdefault(subset, {})
            counts[row["kind"]] = counts.get(row["kind"], 0) + row["num_questions"]
    made = {
        subset: _group(
            row,
            subset=subset,
            questions=questions.get(subset, {}),
            fps=fps,
            iframes_are_jpegs=iframes_are_jpegs,
        )
        for subset, row in found.items()
    }
    total = made.pop(None)
    # A subset's I-frames are as large as its pictures are: the sum of the estimates, not an estimate of the sum.
    jpeg_bytes = sum(group.jpeg_estimate.other_bytes for group in made.values())
    total = replace(total, jpeg_estimate=replace(total.jpeg_estimate, other_bytes=jpeg_bytes))
    return total, tuple(made[subset] for subset in sorted(name for name in made if name is not None))


_LISTED_BY_GROUP = """
    SELECT
        subset,
        grouping(subset) AS is_total,
        count(*) AS num_listed,
        count(*) FILTER (failed) AS num_failed,
        count(*) FILTER (partial AND NOT failed) AS num_partial,
        count(*) FILTER (NOT failed AND NOT sharded) AS num_missing
    FROM (
        SELECT
            listed.subset,
            coalesce(fates.failed, false) AS failed,
            coalesce(fates.partial, false) AS partial,
            indexed.video_id IS NOT NULL AS sharded
        FROM listed
        LEFT JOIN indexed USING (video_id)
        LEFT JOIN (
            SELECT video_id, bool_or(status = 'failed') AS failed, bool_or(status = 'partial') AS partial
            FROM known GROUP BY video_id
        ) AS fates USING (video_id)
    )
    GROUP BY GROUPING SETS ((subset), ())
"""
_INDEXED_BY_GROUP = """
    SELECT
        subset,
        grouping(subset) AS is_total,
        count(*) AS num_videos,
        sum(num_frames) AS num_frames,
        sum(num_gops) AS num_gops,
        sum(num_windows) AS num_windows,
        sum(iframe_bytes) AS iframe_bytes,
        sum(motion_bytes) AS motion_bytes,
        sum(residual_bytes) AS residual_bytes,
        sum(sample_bytes) AS sample_bytes,
        sum(num_pictures) AS num_pictures,
        sum(num_pictures * picture_px * 3) AS rgb_bytes,
        count(source_bytes) AS source_videos,
        sum(source_bytes) AS source_bytes,
        sum(sample_bytes) FILTER (source_bytes IS NOT NULL) AS source_sample_bytes,
        count(reencoded_bytes) AS reencoded_videos,
        sum(reencoded_bytes) AS reencoded_bytes,
        sum(sample_bytes) FILTER (reencoded_bytes IS NOT NULL) AS reencoded_sample_bytes,
        sum(vector_windows) AS num_clipped_vector_windows,
        sum(residual_windows) AS num_clipped_residual_windows,
        sum(intra_windows) AS num_intra_windows
    FROM (
        SELECT
            videos.*,
            (num_frames + $fps - 1) // $fps AS num_pictures,
            coalesce(nullif(done.source_size_bytes, 0), nullif(listed.size_bytes, 0)) AS source_bytes,
            nullif(done.output_bytes, 0) AS reencoded_bytes,
            vector_windows,
            residual_windows,
            intra_windows
        FROM videos
        LEFT JOIN clipped USING (video_id)
        LEFT JOIN intra USING (video_id)
        LEFT JOIN listed USING (video_id)
        LEFT JOIN (FROM recorded WHERE stage = 'reencode' AND status <> 'failed') AS done USING (video_id)
    )
    GROUP BY GROUPING SETS ((subset), ())
"""
"""Sizes are those that were recorded, also of sources that were replaced since: the samples are of these."""
_QUESTIONS_BY_GROUP = """
    SELECT listed.subset, kind, count(*) AS num_questions
    FROM questions JOIN listed USING (video_id) GROUP BY listed.subset, kind ORDER BY kind
"""


def _group(
    row: dict[str, Any],
    *,
    subset: str | None,
    questions: dict[str, int],
    fps: int,
    iframes_are_jpegs: bool,
) -> GroupStats:
    def whole(name: str) -> int:
        return int(row.get(name) or 0)

    def compared(name: str) -> Compared:
        return Compared(
            num_videos=whole(f"{name}_videos"),
            sample_bytes=whole(f"{name}_sample_bytes"),
            other_bytes=whole(f"{name}_bytes"),
        )

    videos, sample_bytes = whole("num_videos"), whole("sample_bytes")
    num_gops, num_pictures = whole("num_gops"), whole("num_pictures")
    jpeg = Compared()
    if iframes_are_jpegs and num_gops:
        jpeg_bytes = round(num_pictures * whole("iframe_bytes") / num_gops)
        jpeg = Compared(num_videos=videos, sample_bytes=sample_bytes, other_bytes=jpeg_bytes)
    return GroupStats(
        subset=subset,
        num_listed=whole("num_listed"),
        num_failed=whole("num_failed"),
        num_partial=whole("num_partial"),
        num_missing=whole("num_missing"),
        num_questions=questions,
        num_videos=videos,
        duration_s=whole("num_frames") / fps,
        num_frames=whole("num_frames"),
        num_gops=num_gops,
        num_windows=whole("num_windows"),
        iframe_bytes=whole("iframe_bytes"),
        motion_bytes=whole("motion_bytes"),
        residual_bytes=whole("residual_bytes"),
        sample_bytes=sample_bytes,
        num_pictures=num_pictures,
        rgb=Compared(num_videos=videos, sample_bytes=sample_bytes, other_bytes=whole("rgb_bytes")),
        jpeg_estimate=jpeg,
        reencoded=compared("reencoded"),
        source=compared("source"),
        num_clipped_vector_windows=whole("num_clipped_vector_windows"),
        num_clipped_residual_windows=whole("num_clipped_residual_windows"),
        num_intra_windows=whole("num_intra_windows"),
    )


def num_unlisted_questions(tables: Tables) -> int:
    """Questions about videos that are not listed."""
    rows = tables.rows("SELECT count(*) AS number FROM questions ANTI JOIN listed USING (video_id)")
    return int(rows[0]["number"])


def num_unlisted_videos(tables: Tables) -> int:
    """Videos of the index that are not in the manifest; 0 if there is none."""
    rows = tables.rows("SELECT count(*) AS number FROM indexed ANTI JOIN listed USING (video_id)")
    return int(rows[0]["number"])


def moved_videos(tables: Tables) -> dict[str, str]:
    """Video id -> subset, of the videos that the index has in another one."""
    rows = tables.rows("""
        SELECT video_id, videos.subset FROM videos JOIN indexed USING (video_id)
        WHERE videos.subset <> indexed.subset OR videos.subset <> indexed.other_subset
    """)
    return {row["video_id"]: row["subset"] for row in rows}


def failures(tables: Tables) -> tuple[FailureStats, ...]:
    """Ends that are not ok by stage, status and class, the most frequent first."""
    rows = tables.rows("""
        SELECT
            stage, status, error_class, subset,
            count(*) AS num_videos,
            min(video_id) AS video_id,
            arg_min(error_message, video_id) AS message
        FROM known WHERE status <> 'ok'
        GROUP BY stage, status, error_class, subset ORDER BY subset
    """)
    alike: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["stage"], row["status"], row["error_class"]), []).append(row)
    found = []
    for (stage, status, error_class), parts in alike.items():
        first = min(parts, key=lambda part: part["video_id"])
        found.append(
            FailureStats(
                stage=stage,
                status="failed" if status == "failed" else "partial",
                error_class=error_class,
                num_videos=sum(part["num_videos"] for part in parts),
                by_subset={part["subset"]: part["num_videos"] for part in parts},
                example_video_id=first["video_id"],
                example_message=redacted(first["message"]),
            )
        )
    return tuple(sorted(found, key=lambda end: (-end.num_videos, end.stage, end.status, end.error_class)))


def sources(tables: Tables) -> tuple[SourceShare, ...]:
    """What the source videos of the re-encoded files were, the most frequent first."""
    properties: dict[Literal["codec", "resolution", "frame_rate"], str] = {
        "codec": "source_codec",
        "resolution": "source_width_px || 'x' || source_height_px",
        "frame_rate": "round(source_fps, 2)",
    }
    found = []
    for what, value in properties.items():
        rows = tables.rows(f"""
            SELECT {value} AS value, count(*) AS num_videos, sum(duration_s) AS duration_s
            FROM known WHERE stage = 'reencode' AND status <> 'failed'
            GROUP BY ALL ORDER BY num_videos DESC, value
        """)
        for row in rows:
            shown = row["value"]
            row["value"] = UNKNOWN if shown is None else f"{shown:g}" if what == "frame_rate" else shown
            found.append(SourceShare(what=what, **row))
    return tuple(found)

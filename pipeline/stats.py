"""What is in a dataset, from its tables alone: index, ledgers, manifest and questions. No shard is opened.

    tables ──DuckDB──> counts, bytes, failures, sources, distributions, tokens, outliers

In the middle of a run there is no index: then there is what the manifest and the ledgers know, and a note says so.
Cost: one pass over nine columns of the index; benchmarks/bench_stats.py has the seconds and the memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cope_prep.pipeline import stats_figures as figures
from cope_prep.pipeline import stats_queries as queries
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.stats_records import DatasetStats, GroupStats, TokenBudget, Tokens
from cope_prep.pipeline.stats_tables import STAGES, Tables, open_tables
from cope_prep.pipeline.token_counts import TokenCounts, gop_tokens

KEY_FRAMES = (1, 2, 4, 8)
"""Densities of the token budget, as far as they divide the anchors of a GOP."""


def dataset_stats(layout: Layout) -> DatasetStats:
    """The statistics of one dataset and set of specs. Credentials in its URL and in messages are hidden.

    Raises:
        ConfigurationError: duckdb is not installed, or there is nothing of a dataset.
        FormatError: a table is damaged or, as SchemaVersionError, of a newer version.
        StorageError: the store could not answer.
    """
    encode, extract = layout.specs.encode, layout.specs.extract
    with open_tables(layout) as tables:
        hashes = {stage: layout.specs.hash_of(stage) for stage in tables.stages}
        if tables.has_index:
            hashes["shards"] = layout.specs.hash_of("shards")
        queries.prepare(tables)
        total, subsets = queries.groups(
            tables, fps=encode.fps, iframes_are_jpegs=extract.iframe.kind == "jpeg"
        )
        num_unlisted = queries.num_unlisted_questions(tables)
        num_unlisted_videos = queries.num_unlisted_videos(tables)
        return DatasetStats(
            dataset=redacted(layout.dataset),
            spec_hashes=hashes,
            notes=(
                *_notes(tables, total),
                *_unlisted(num_videos=num_unlisted_videos, num_questions=num_unlisted),
            ),
            has_index=tables.has_index,
            stages=queries.stages(tables, hashes),
            total=total,
            subsets=subsets,
            failures=queries.failures(tables),
            sources=queries.sources(tables),
            distributions=figures.distributions(tables, fps=encode.fps, moved=queries.moved_videos(tables)),
            tokens=_tokens(tables, total, gop_size=encode.gop_size, window=extract.window),
            outliers=figures.outliers(tables, fps=encode.fps),
            num_unlisted_questions=num_unlisted,
            num_unlisted_videos=num_unlisted_videos,
        )


def _tokens(tables: Tables, total: GroupStats, *, gop_size: int, window: int) -> Tokens | None:
    """Tokens of all videos once, with LLaVA-Video's pictures, as the loader lays GOPs out."""
    if not tables.has_index:
        return None
    counts = TokenCounts()
    rows = tables.rows("SELECT num_frames, count(*) AS num_gops FROM gops GROUP BY num_frames")
    num_frames = np.array([row["num_frames"] for row in rows], np.int64)
    num_gops = np.array([row["num_gops"] for row in rows], np.int64)
    num_anchors = (gop_size - 1) // window + 1
    dense = total.num_pictures * counts.picture
    budgets = []
    for key_frames in KEY_FRAMES:
        if num_anchors % key_frames:
            continue
        of_gop = gop_tokens(
            num_frames,
            gop_size=gop_size,
            window=window,
            key_frames=key_frames,
            picture_tokens=counts.picture,
            delta_tokens=counts.delta,
        )
        num_tokens = int(of_gop @ num_gops)
        budgets.append(
            TokenBudget(
                key_frames=key_frames,
                num_anchors=num_anchors,
                num_tokens=num_tokens,
                tokens_per_s=num_tokens / total.duration_s if total.duration_s else 0.0,
                ratio=num_tokens / dense if dense else 0.0,
            )
        )
    return Tokens(
        picture_tokens=counts.picture,
        delta_tokens=counts.delta,
        dense_rgb_tokens=dense,
        budgets=tuple(budgets),
    )


def _notes(tables: Tables, total: GroupStats) -> tuple[str, ...]:
    """What is missing, in the order in which a run makes it."""
    notes = []
    if not tables.has_manifest:
        notes.append("manifest.parquet is missing: only videos of the index and the ledgers are counted.")
    elif not total.num_listed:
        notes.append("manifest.parquet lists no video.")
    if not tables.has_questions:
        notes.append("questions.parquet is missing: no question is counted.")
    missing = [stage for stage in STAGES if stage not in tables.stages]
    if missing and (tables.has_index or len(missing) == 1):
        notes.append(f"There is no ledger of {' and '.join(missing)}: what failed there is not known.")
    if tables.has_index and "reencode" in missing:
        notes.append("Without the ledger of reencode nothing is known of the source videos but their size.")
    if not tables.has_index:
        notes.append(
            "There is no index yet, so there are no figures of samples, only what manifest and ledgers know."
            " It comes at the end of the run: go on with the same cope-prep run and its flags."
        )
    elif not total.num_videos:
        notes.append("The index is empty: no video is in the shards.")
    return tuple(notes)


def _unlisted(*, num_videos: int, num_questions: int) -> Iterator[str]:
    if num_videos:
        are = "videos of the index are" if num_videos > 1 else "video of the index is"
        yield f"{num_videos:,} {are} not in the manifest: counted as samples, not as listed."
    if num_questions:
        are = (
            "questions are about videos that are"
            if num_questions > 1
            else "question is about a video that is"
        )
        yield f"{num_questions:,} {are} not listed: not counted."

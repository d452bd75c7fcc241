"""What a stage has to do: the manifest, the ledger and a listing of the outputs against each other.

A video is done when the ledger says `ok` or `partial` for the same input and its output is there. A failed one
is tried again if its input has changed, if the infrastructure failed (TRIED_AGAIN), if it was let out of
quarantine since, or if asked. An output without a row, left by a driver that was killed, is made again.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cope_prep.jobs.failure_limit import TRIED_AGAIN, FailureLimit
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import KnownRow, Ledger
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import ConfigurationError, QuarantinedError, SourceNotFoundError
from cope_prep.schemas.records import VideoRecord

DEFAULT_TIME_LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOptions:
    """What a stage command was asked for, apart from its specs."""

    limit: int | None = None
    """Only the first so many videos of the manifest."""
    retry_failed: bool = False
    retry_classes: frozenset[str] = frozenset()
    """With `retry_failed`: only failures of these error classes; empty for all."""
    max_failures: FailureLimit | None = None
    """Stop a stage when more than this have failed."""
    time_limit_s: float | None = DEFAULT_TIME_LIMIT_S
    memory_limit_bytes: int | None = None
    """What the user allows a worker process, if he says."""
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTask:
    """One video in one stage: what the work needs, and what the ledger will say of its input."""

    video_id: str
    video_key: str
    source_uri: str
    output_uri: str
    source_size_bytes: int
    source_version: str
    source_crc32c: int | None = None
    """Of the input, where the stage before recorded it."""
    weight: float


def read_videos(layout: Layout, *, limit: int | None = None) -> list[VideoRecord]:
    """The videos of the manifest, in its order.

    Raises:
        ConfigurationError: the dataset has no manifest.
    """
    try:
        table = storage.read_table(layout.manifest, MANIFEST)
    except SourceNotFoundError as exc:
        raise no_manifest(layout.dataset) from exc
    names = [name for name in MANIFEST.names if name != "video_key"]
    columns = [table[name].slice(0, limit).to_pylist() for name in names]
    return [VideoRecord(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def no_manifest(dataset: str) -> ConfigurationError:
    """What to say of a folder without one."""
    return ConfigurationError(
        dataset, "has no manifest.parquet", f"Run: cope-prep manifest files DIR {dataset}"
    )


def current_rows(tasks: Iterable[VideoTask], ledger: Ledger) -> dict[str, KnownRow]:
    """The ledger's row of each task, as far as it speaks of the same input."""
    rows = {row.video_id: row for row in ledger.read_known()}
    current = {}
    for task in tasks:
        row = rows.get(task.video_id)
        if row is not None and (row.source_size_bytes, row.source_version) == (
            task.source_size_bytes,
            task.source_version,
        ):
            current[task.video_id] = row
    return current


TakenOver = Callable[[Mapping[str, KnownRow]], Collection[str]]
"""Of videos that are recorded as done and whose output is gone: the ids of those whose output was deleted on
purpose. See taken_over.py."""


def find_missing(
    tasks: Sequence[VideoTask],
    rows: Mapping[str, KnownRow],
    *,
    outputs: Collection[str],
    options: StageOptions,
    taken_over: TakenOver = lambda gone: (),
    released: Mapping[str, float] = MappingProxyType({}),
) -> list[VideoTask]:
    """The tasks that are to be run. `outputs`: names of the files in the stage's folder.

    `released`: when videos were let out of quarantine, by id. A failure before that is tried again.
    """
    gone = {
        task.video_id: row
        for task in tasks
        if (row := rows.get(task.video_id)) is not None
        and row.status != "failed"
        and posixpath.basename(task.output_uri) not in outputs
    }
    lost = gone.keys() - set(taken_over(gone)) if gone else set()

    def is_missing(task: VideoTask) -> bool:
        row = rows.get(task.video_id)
        if row is None or task.video_id in lost:
            return True
        if row.status != "failed":
            return False
        if row.error_class in TRIED_AGAIN or row.error_class == QuarantinedError.__name__:
            return True
        if released.get(task.video_id, -math.inf) > row.finished_unix_s:
            return True
        return options.retry_failed and (
            not options.retry_classes or row.error_class in options.retry_classes
        )

    return [task for task in tasks if is_missing(task)]

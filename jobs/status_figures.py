"""The figures of a stage's status from its tables, by numpy and Arrow: no Python object a video but of failures.

    manifest ──inputs──> Inputs ─┐
    ledger of the stage before ──┘   + ledger of the stage ──ends_of──> rows that speak of the same input

This is what `current_rows`, `reencode_tasks` and `extract_tasks` say of tasks, in columns; a test holds the two
against each other. 178,510 videos: benchmarks/bench_status.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cope_prep.jobs.status_rates import LastEnd, rates_of
from cope_prep.jobs.status_records import RatePoint, RecentFailure, StageStatus
from cope_prep.jobs.summary import FailedItem
from cope_prep.pipeline import storage
from cope_prep.pipeline.redact import redacted

pc: Any = pyarrow.compute  # its functions are made when it is imported, where type checkers cannot see them

RUN_GAP_S = 3600.0
"""So long nothing ended: what follows is another run."""
LISTING_KEPT = 20
"""In an object store a listing of 178,510 files takes 179 requests: a watcher spends 5 % of its time on it."""
NUM_RECENT_FAILURES = 50
_NUM_POINTS = 60
_SPANS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)

MANIFEST_COLUMNS = ("video_id", "video_key", "size_bytes", "version")
LEDGER_COLUMNS = (
    "video_id",
    "video_key",
    "status",
    "error_class",
    "error_message",
    "source_size_bytes",
    "source_version",
    "source_sha256",
    "output_bytes",
    "duration_s",
    "wall_s",
    "cpu_s",
    "finished_unix_s",
    "node",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a stage can work on, one entry a video."""

    video_id: pa.Array
    size_bytes: pa.Array
    """With the version, what the ledger must say for a row to be of this input."""
    version: pa.Array
    weight: np.ndarray
    """float64 [num_inputs], proportional to the time that a video takes: bytes, or seconds."""

    def __len__(self) -> int:
        return len(self.video_id)

    def where(self, mask: np.ndarray) -> Inputs:
        """Those of a bool [num_inputs]."""
        chosen = pa.array(mask)
        return Inputs(
            video_id=self.video_id.filter(chosen),
            size_bytes=self.size_bytes.filter(chosen),
            version=self.version.filter(chosen),
            weight=self.weight[mask],
        )


class Listing:
    """The names of the files in a folder, good for LISTING_KEPT times as long as it took to ask for them."""

    def __init__(self, folder: str) -> None:
        self.unix_s = time.time()
        start_s = time.monotonic()
        self.names = pa.array(storage.list_files(folder), pa.string())
        self._good_until_s = time.monotonic() + LISTING_KEPT * (time.monotonic() - start_s)

    def is_old(self) -> bool:
        """It is time to ask again."""
        return time.monotonic() > self._good_until_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The ledger's rows of a stage's inputs."""

    rows: pa.Table
    """LEDGER_COLUMNS."""
    place: np.ndarray
    """int64 [num_rows]: of which input each row is."""

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers."""
        return self.rows[name].to_numpy()

    def has_status(self, status: str) -> np.ndarray:
        """bool [num_rows]."""
        return pc.equal(self.rows["status"], status).to_numpy()


def source_inputs(manifest: pa.Table) -> Inputs:
    """Inputs of the re-encode stage: every video of the manifest."""
    return Inputs(
        video_id=_whole(manifest["video_id"]),
        size_bytes=_whole(manifest["size_bytes"]),
        version=_whole(manifest["version"]),
        weight=manifest["size_bytes"].to_numpy().astype(np.float64),
    )


def reencoded_inputs(reencoded: Ends) -> tuple[Inputs, pa.Table]:
    """What the extract stage can work on as far as the files are there, and their rows: one each."""
    rows = reencoded.rows.filter(pa.array(~reencoded.has_status("failed")))
    sha256 = _whole(rows["source_sha256"])
    return Inputs(
        video_id=_whole(rows["video_id"]),
        size_bytes=_whole(rows["output_bytes"]),
        version=pc.if_else(pc.equal(sha256, ""), _whole(rows["source_version"]), sha256),
        weight=rows["duration_s"].to_numpy(),
    ), rows


def is_there(rows: pa.Table, files: Listing) -> np.ndarray:
    """bool [num_rows]: the re-encoded file is there, or was made after the folder was listed."""
    names = pc.binary_join_element_wise(_whole(rows["video_key"]), ".mp4", "")
    listed = pc.is_in(names, value_set=files.names).to_numpy(zero_copy_only=False)
    return listed | (rows["finished_unix_s"].to_numpy() > files.unix_s)


def ends_of(inputs: Inputs, ledger: pa.Table) -> Ends:
    """The rows of a ledger that speak of these inputs as they are."""
    place = pc.index_in(_whole(ledger["video_id"]), value_set=inputs.video_id)
    known = pc.is_valid(place)
    rows, place = ledger.filter(known), place.filter(known)
    same = pc.and_(
        pc.equal(rows["source_size_bytes"], inputs.size_bytes.take(place)),
        pc.equal(rows["source_version"], inputs.version.take(place)),
    )
    return Ends(rows=rows.filter(same), place=place.filter(_whole(same)).to_numpy().astype(np.int64))


def stage_status(
    inputs: Inputs,
    ends: Ends,
    *,
    stage: str,
    spec_hash: str,
    num_videos: int,
    last_end: LastEnd,
    now_unix_s: float,
) -> StageStatus:
    """The status of one stage, of which these are all inputs. `last_end` is told of this look."""
    failed, partial = ends.has_status("failed"), ends.has_status("partial")
    good = ~failed
    pending = np.ones(len(inputs), bool)
    pending[ends.place] = False
    num_pending = int(pending.sum())
    rates = rates_of(
        ends.rows,
        weight=inputs.weight[ends.place],
        is_pending=num_pending > 0,
        last_end=last_end,
        now_unix_s=now_unix_s,
    )
    left_s = None
    if rates.is_running and rates.weight_per_s:
        left_s = float(inputs.weight[pending].sum()) / rates.weight_per_s
    return StageStatus(
        stage=stage,
        spec_hash=spec_hash,
        num_videos=num_videos,
        num_ok=int((good & ~partial).sum()),
        num_partial=int(partial.sum()),
        num_failed=int(failed.sum()),
        num_pending=num_pending,
        num_waiting=num_videos - len(inputs),
        duration_s=float(ends.numbers("duration_s")[good].sum()),
        source_bytes=int(ends.numbers("source_size_bytes")[good].sum()),
        output_bytes=int(ends.numbers("output_bytes")[good].sum()),
        cpu_s=float(ends.numbers("cpu_s").sum()),
        is_running=rates.is_running,
        last_unix_s=rates.last_unix_s,
        idle_s=rates.idle_s,
        clock_ahead_s=rates.clock_ahead_s,
        videos_per_s=rates.videos_per_s,
        video_seconds_per_s=rates.video_seconds_per_s,
        left_s=left_s,
        nodes=rates.nodes,
        history=_history(ends, failed=failed),
        failures=_items(ends.rows, failed, stage=stage),
        partials=_items(ends.rows, partial, stage=stage),
        recent_failures=_recent_failures(ends.rows, failed, stage=stage),
    )


def _history(ends: Ends, *, failed: np.ndarray) -> tuple[RatePoint, ...]:
    if not len(ends.rows):
        return ()
    finished_unix_s = ends.numbers("finished_unix_s")
    ordered = np.sort(finished_unix_s)
    gaps = np.flatnonzero(np.diff(ordered) > RUN_GAP_S)
    first_unix_s, last_unix_s = ordered[gaps[-1] + 1 if len(gaps) else 0], ordered[-1]
    length_s = last_unix_s - first_unix_s
    span_s = next((span for span in _SPANS_S if length_s < span * _NUM_POINTS), _SPANS_S[-1])
    # Multiples of the span, so that the pieces stay where they are while the run goes on.
    origin = int(first_unix_s // span_s)
    of_run = finished_unix_s >= first_unix_s
    point = (finished_unix_s[of_run] // span_s).astype(np.int64) - origin
    num_videos = np.bincount(point)
    num_failed = np.bincount(point, failed[of_run]).astype(np.int64)
    video_s = np.bincount(point, ends.numbers("duration_s")[of_run])
    return tuple(
        RatePoint(
            unix_s=float((origin + index) * span_s),
            span_s=float(span_s),
            num_videos=int(num_videos[index]),
            num_failed=int(num_failed[index]),
            video_s=float(video_s[index]),
        )
        for index in range(len(num_videos))
    )


def _items(rows: pa.Table, mask: np.ndarray, *, stage: str) -> tuple[FailedItem, ...]:
    chosen = rows.select(["video_id", "error_class", "error_message"]).filter(pa.array(mask))
    columns = (chosen[name].to_pylist() for name in chosen.column_names)
    return tuple(
        FailedItem(
            stage=stage, subject=video_id, error_class=error_class, error_message=redacted(error_message)
        )
        for video_id, error_class, error_message in sorted(zip(*columns, strict=True))
    )


def _recent_failures(rows: pa.Table, failed: np.ndarray, *, stage: str) -> tuple[RecentFailure, ...]:
    places = np.flatnonzero(failed)
    latest = np.argsort(-rows["finished_unix_s"].to_numpy()[places], kind="stable")[:NUM_RECENT_FAILURES]
    names = ["video_id", "error_class", "error_message", "finished_unix_s", "node"]
    found: Sequence[dict[str, Any]] = rows.select(names).take(places[latest]).to_pylist()
    return tuple(
        RecentFailure(
            stage=stage,
            subject=row["video_id"],
            error_class=row["error_class"],
            error_message=redacted(row["error_message"]),
            finished_unix_s=row["finished_unix_s"],
            node=row["node"] or "",
        )
        for row in found
    )


def _whole(column: Any) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column

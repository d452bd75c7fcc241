"""The status of a stage by plain loops over records: what jobs/status_figures.py must agree with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from cope_prep.jobs.extract import extract_tasks
from cope_prep.jobs.reencode import reencode_tasks
from cope_prep.jobs.video_stage import current_rows, read_videos
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger, LedgerRow, rows_of


def stage_fields(layout: Layout, stage: str, *, now_unix_s: float) -> dict[str, Any]:
    """The fields of StageStatus but the history."""
    videos = read_videos(layout)
    tasks = {"reencode": reencode_tasks, "extract": extract_tasks}[stage](layout, videos)
    ledger = Ledger(layout.ledger(stage))
    whole = {row.video_id: row for row in rows_of(ledger.read())}
    rows = {name: whole[name] for name in current_rows(tasks, ledger)}
    by_status: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows.values():
        by_status[row.status].append(row)
    good = by_status["ok"] + by_status["partial"]
    pending = [task for task in tasks if task.video_id not in rows]
    found: dict[str, Any] = {
        "stage": stage,
        "spec_hash": layout.specs.hash_of(stage),
        "num_videos": len(videos),
        "num_ok": len(by_status["ok"]),
        "num_partial": len(by_status["partial"]),
        "num_failed": len(by_status["failed"]),
        "num_pending": len(pending),
        "num_waiting": len(videos) - len(tasks),
        "duration_s": sum(row.duration_s for row in good),
        "source_bytes": sum(row.source_size_bytes for row in good),
        "output_bytes": sum(row.output_bytes for row in good),
        "cpu_s": sum(row.cpu_s for row in rows.values()),
        "is_running": False,
        "last_unix_s": None,
        "idle_s": None,
        "clock_ahead_s": 0.0,
        "videos_per_s": None,
        "video_seconds_per_s": None,
        "left_s": None,
        "nodes": [],
        "failures": _items(by_status["failed"]),
        "partials": _items(by_status["partial"]),
        "recent_failures": [
            (row.video_id, row.error_class, row.error_message, row.finished_unix_s, row.node or "")
            for row in sorted(by_status["failed"], key=lambda row: -row.finished_unix_s)[:50]
        ],
    }
    if not rows:
        return found
    last_unix_s = max(row.finished_unix_s for row in rows.values())
    idle_s = now_unix_s - last_unix_s
    is_running = bool(pending) and idle_s < max(120, 2 * max(row.wall_s for row in rows.values()))
    recent = _since_the_pause([row for row in rows.values() if row.finished_unix_s > last_unix_s - 600])
    start_unix_s = min(row.finished_unix_s - row.wall_s for row in recent)
    elapsed_s = (now_unix_s if is_running else last_unix_s) - start_unix_s
    weights = {task.video_id: task.weight for task in tasks}
    weight = sum(weights[row.video_id] for row in recent)
    if is_running and weight:
        found["left_s"] = sum(task.weight for task in pending) / (weight / elapsed_s)
    of_node: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in recent:
        of_node[row.node or ""].append(row)
    return found | {
        "is_running": is_running,
        "last_unix_s": last_unix_s,
        "idle_s": idle_s,
        "videos_per_s": len(recent) / elapsed_s,
        "video_seconds_per_s": sum(row.duration_s for row in recent) / elapsed_s,
        "nodes": [
            (node, len(of), len(of) / elapsed_s, sum(row.duration_s for row in of) / elapsed_s)
            for node, of in sorted(of_node.items())
        ],
    }


def _since_the_pause(rows: list[LedgerRow]) -> list[LedgerRow]:
    """What ended after the last ten seconds in which nothing was worked on."""
    for row in sorted(rows, key=lambda row: -row.finished_unix_s):
        later = [other for other in rows if other.finished_unix_s > row.finished_unix_s]
        if later and all(
            other.finished_unix_s - other.wall_s > row.finished_unix_s + 10.0 for other in later
        ):
            return later
    return rows


def _items(rows: Sequence[LedgerRow]) -> list[tuple[str, str, str, str]]:
    return sorted((row.stage, row.video_id, row.error_class, row.error_message) for row in rows)

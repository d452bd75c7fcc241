"""`cope-prep quarantine`: which videos no run tries, and why; in and out by hand; a list of all that failed."""

from __future__ import annotations

import csv
import datetime
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import pyarrow.compute
import typer

from cope_prep.jobs import options as opt
from cope_prep.jobs import report
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.quarantine import Quarantine, QuarantineEntry, Sources
from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import ConfigurationError

pc: Any = pyarrow.compute  # its functions are made when it is imported, where type checkers cannot see them

_COLUMNS = ("video_id", "source_uri", "stage", "spec_hash", "error_class", "error_message", "recorded_unix_s")


def quarantine(
    dataset: opt.Dataset,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="VIDEO_ID", help="Leave a video out of all runs.", show_default=False),
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Of --add.")] = "added by hand",
    release: Annotated[
        list[str] | None,
        typer.Option(metavar="VIDEO_ID", help="Let the next run try a video again.", show_default=False),
    ] = None,
    release_all: Annotated[bool, typer.Option("--release-all", help="All of them.")] = False,
    failed: Annotated[
        bool,
        typer.Option("--failed", help="List every video that failed in any stage, not only those held."),
    ] = False,
    csv_file: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="Write the list as a CSV file.", show_default=False),
    ] = None,
    json_output: opt.JsonOutput = False,
) -> None:
    """List the videos that no run tries, put some there, or let them out.

    A video whose worker process died in every attempt, or that needed too much memory or time, goes there by
    itself. It is held with every spec until it is released, its source changes, --time-limit or --memory-limit
    allows more than it had, or --retry-failed names its error class (QuarantinedError: all that are held).

    Example: `cope-prep quarantine ./dataset --release clips/long.mp4`

    Example: `cope-prep quarantine ./dataset --failed --csv failed.csv`
    """
    with report.outlet(json_output=json_output) as out:
        manifest = _read_manifest(dataset)
        store = Quarantine(dataset)
        if add or release or release_all:
            store.append(
                _changes(store, dataset, add=add or [], reason=reason, release=release, all_=release_all)
            )
        found = _failed(dataset) if failed else _held(store, Sources(manifest))
        uris = _uris(manifest, [row["video_id"] for row in found])
        rows = [
            {name: uris.get(row["video_id"], "") if name == "source_uri" else row[name] for name in _COLUMNS}
            for row in found
        ]
        if csv_file is not None:
            _write_csv(csv_file, rows)
            out.console.print(csv_file, markup=False, highlight=False, soft_wrap=True)
        out.result({"dataset": dataset, "videos": rows}, _text(rows, failed=failed))


def _manifest_uri(dataset: str) -> str:
    return Layout(dataset=dataset, specs=Specs()).manifest


def _read_manifest(dataset: str) -> str:
    """URI of the manifest, which is there."""
    from cope_prep.jobs.planning import no_manifest

    uri = _manifest_uri(dataset)
    if not storage.exists(uri):
        raise no_manifest(dataset)
    return uri


def _changes(
    store: Quarantine,
    dataset: str,
    *,
    add: Sequence[str],
    reason: str,
    release: Sequence[str] | None,
    all_: bool,
) -> list[QuarantineEntry]:
    entries = []
    sources = Sources(_manifest_uri(dataset)).find(add)
    for video_id in add:
        if video_id not in sources:
            raise ConfigurationError(f"--add {video_id}", "is not in the manifest", "Give its video_id.")
        size_bytes, version = sources[video_id]
        entries.append(
            QuarantineEntry(
                video_id=video_id,
                source_size_bytes=size_bytes,
                source_version=version,
                reason=reason,
                recorded_unix_s=time.time(),
            )
        )
    held = {name: entry for name, entry in store.read().items() if not entry.is_released}
    for video_id in held if all_ else release or ():
        if video_id not in held:
            raise ConfigurationError(
                f"--release {video_id}", "is not in quarantine", f"cope-prep quarantine {dataset} lists them."
            )
        entry = held[video_id]
        entries.append(
            QuarantineEntry(
                video_id=video_id,
                source_size_bytes=entry.source_size_bytes,
                source_version=entry.source_version,
                is_released=True,
                reason="released",
                recorded_unix_s=time.time(),
            )
        )
    return entries


def _held(store: Quarantine, sources: Sources) -> list[dict[str, Any]]:
    return [
        {
            "video_id": name,
            "stage": entry.stage,
            "spec_hash": "",
            "error_class": entry.error_class,
            "error_message": redacted(entry.reason),  # for the CSV, too
            "recorded_unix_s": entry.recorded_unix_s,
        }
        for name, entry in store.held(sources).items()
    ]


def _failed(dataset: str) -> list[dict[str, Any]]:
    from cope_prep.jobs.status import dataset_status

    return [
        {
            "video_id": item.subject,
            "stage": stage.stage,
            "spec_hash": stage.spec_hash,
            "error_class": item.error_class,
            "error_message": item.error_message,
            "recorded_unix_s": None,
        }
        for stage in dataset_status(dataset).stages
        for item in stage.failures
    ]


def _uris(manifest: str, video_ids: Iterable[str]) -> dict[str, str]:
    """Where the sources are, without credentials."""
    table = storage.read_table(manifest, MANIFEST, columns=["video_id", "uri"])
    rows = table.filter(pc.is_in(table["video_id"], value_set=pyarrow.array(list(video_ids), "string")))
    return {row["video_id"]: redacted(row["uri"]) for row in rows.to_pylist()}


def _write_csv(uri: str, rows: Sequence[dict[str, Any]]) -> None:
    with storage.publish(uri) as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list[str](_COLUMNS))
        writer.writeheader()
        writer.writerows(rows)


def _text(rows: Sequence[dict[str, Any]], *, failed: bool) -> str:
    if not rows:
        return "No video has failed." if failed else "No video is in quarantine."
    lines = [f"{len(rows)} {'failures' if failed else 'videos in quarantine'}:"]
    for row in rows:
        where = " ".join(part for part in (row["stage"], row["spec_hash"], row["error_class"]) if part)
        when = row["recorded_unix_s"]
        since = "" if when is None else f" since {_utc(when)}"
        lines.append(f"{row['video_id']}: {where or 'by hand'}{since}: {row['error_message']}")
    return "\n".join(lines)


def _utc(unix_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(unix_s, datetime.UTC):%Y-%m-%d %H:%M} UTC"

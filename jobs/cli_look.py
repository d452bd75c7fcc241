"""The commands that look at a dataset and change nothing: status, verify, inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from cope_prep.jobs import options as opt
from cope_prep.jobs import report
from cope_prep.pipeline.layout import Layout


def status(dataset: opt.Dataset, json_output: opt.JsonOutput = False) -> None:
    """Show what is done, what failed and why, the rate, and the time left.

    Example: `cope-prep status ./dataset`
    """
    from cope_prep.jobs.status import dataset_status
    from cope_prep.jobs.status_table import print_status

    with report.outlet(json_output=json_output) as out:
        found = dataset_status(dataset)
        if json_output:
            out.result(found.to_dict(), "")
        else:
            print_status(found, report.make_console(stderr=False))


def verify(
    dataset: opt.Dataset,
    sample: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Rebuild only N GOPs; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which of them.")] = 0,
    spec: opt.SpecHash = None,
    json_output: opt.JsonOutput = False,
    quiet: opt.Quiet = False,
) -> None:
    """Check that the shards are what they claim: every byte, and every anchor frame rebuilt.

    Example: `cope-prep verify ./dataset --sample 1000`
    """
    from cope_prep.jobs.progress import counting
    from cope_prep.pipeline.verify import verify_dataset

    with report.outlet(json_output=json_output) as out:
        layout = Layout(dataset=dataset, specs=opt.choose_specs(dataset, "shards", spec))
        with counting("verify", console=out.console, quiet=quiet) as progress:
            found = verify_dataset(layout, sample=sample, seed=seed, progress=progress)
        out.result(found.to_dict(), report.verify_text(found))
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

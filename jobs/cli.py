"""`cope-prep`: the commands. Each turns flags into specs and options, calls a job, and says how it ended.

What the exit codes mean is in report.py. With `--json` stdout holds exactly one object; everything else
goes to stderr.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from cope_prep.jobs import (
    cli_dashboard,
    cli_estimate,
    cli_gc,
    cli_loader,
    cli_look,
    cli_quarantine,
    cli_train,
    report,
)
from cope_prep.jobs import failure_options as failing
from cope_prep.jobs import options as opt
from cope_prep.jobs.demo import demo
from cope_prep.jobs.extract import run_extract
from cope_prep.jobs.failure_limit import parse_failure_limit
from cope_prep.jobs.reencode import run_reencode
from cope_prep.jobs.session import executor_session
from cope_prep.jobs.video_stage import DEFAULT_TIME_LIMIT_S, StageOptions, read_videos
from cope_prep.pipeline.layout import Layout, Specs

app = typer.Typer(
    name="cope-prep",
    help="From a folder of videos to verified shards of codec primitives.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
manifest_app = typer.Typer(no_args_is_help=True, help="List a new dataset's source videos and questions.")
app.add_typer(manifest_app, name="manifest")
app.add_typer(cli_loader.mix_app, name="mix")
app.add_typer(cli_train.train_app, name="train")


def main() -> None:
    """Entry point of the console script."""
    app()


def _options(
    layout: Layout,
    stages: Sequence[str],
    *,
    limit: int | None,
    max_failures: str | None,
    retry_failed: list[str] | None,
    time_limit: float | None,
    memory_limit: str | None,
    quiet: bool,
) -> StageOptions:
    return StageOptions(
        limit=limit,
        retry_failed=bool(retry_failed),
        retry_classes=failing.retry_classes(retry_failed, layout, stages),
        max_failures=parse_failure_limit(max_failures),
        time_limit_s=DEFAULT_TIME_LIMIT_S if time_limit is None else time_limit,
        memory_limit_bytes=opt.parse_memory_limit(memory_limit),
        quiet=quiet,
    )


@manifest_app.command("files")
def manifest_files(
    source: Annotated[str, typer.Argument(help="A folder, file or glob.", show_default=False)],
    dataset: opt.Dataset,
    json_output: opt.JsonOutput = False,
) -> None:
    """List the videos of a folder, and of the folders in it.

    Example: `cope-prep manifest files ~/videos ./dataset`
    """
    from cope_prep.pipeline.manifest import manifest_from_files

    with report.outlet(json_output=json_output) as out:
        result = manifest_from_files(source, dataset)
        out.result(result.to_dict(), report.manifest_text(result, dataset))


@manifest_app.command("llava-video")
def manifest_llava_video(
    root: Annotated[str, typer.Argument(help="Where LLaVA-Video-178K was extracted.", show_default=False)],
    dataset: opt.Dataset,
    mix: Annotated[str | None, typer.Option(help="LLaVA-NeXT mix YAML.", metavar="YAML")] = None,
    seed: Annotated[int, typer.Option(help="For the mix's random samples.")] = 0,
    json_output: opt.JsonOutput = False,
) -> None:
    """List the videos and questions of LLaVA-Video-178K.

    Example: `cope-prep manifest llava-video /data/LLaVA-Video-178K s3://bucket/dataset --mix mix.yaml`
    """
    from cope_prep.pipeline.manifest import manifest_from_llava_video

    with report.outlet(json_output=json_output) as out:
        result = manifest_from_llava_video(root, dataset, mix=mix, seed=seed)
        out.result(result.to_dict(), report.manifest_text(result, dataset))


@app.command(cls=failing.StageCommand)
def reencode(
    dataset: opt.Dataset,
    profile: opt.Profile = "default",
    codec: opt.Codec = None,
    fps: opt.Fps = None,
    gop_size: opt.GopSize = None,
    size: opt.Size = None,
    fit: opt.Fit = None,
    quality: opt.Quality = None,
    preset: opt.Preset = None,
    limit: opt.Limit = None,
    max_failures: failing.MaxFailures = None,
    failed_ok: failing.FailedOk = False,
    retry_failed: failing.RetryFailed = None,
    address: opt.Address = "local",
    workers: opt.Workers = None,
    no_ray: opt.NoRay = False,
    time_limit: opt.TimeLimit = None,
    memory_limit: opt.MemoryLimit = None,
    wheel: opt.Wheel = None,
    json_output: opt.JsonOutput = False,
    quiet: opt.Quiet = False,
) -> None:
    """Re-encode every video to 30 FPS with fixed GOPs of I- and P-frames.

    Example: `cope-prep reencode ./dataset --size 384x384 --workers 8`
    """
    with report.outlet(json_output=json_output) as out:
        encode = opt.encode_spec(
            profile=profile, codec=codec, fps=fps, gop_size=gop_size, size=size, fit=fit, quality=quality,
            preset=preset,
        )  # fmt: skip
        layout = Layout(dataset=dataset, specs=Specs(encode=encode))
        options = _options(
            layout, ["reencode"], limit=limit, max_failures=max_failures, retry_failed=retry_failed,
            time_limit=time_limit, memory_limit=memory_limit, quiet=quiet,
        )  # fmt: skip
        videos = read_videos(layout, limit=limit)
        with executor_session(
            address=address, workers=workers, no_ray=no_ray, time_limit=time_limit, wheel=wheel,
            memory_limit=memory_limit, outputs=layout.folders("reencode"),
        ) as executor:  # fmt: skip
            summary = run_reencode(layout, videos, executor=executor, options=options, console=out.console)
        report.end_stages(out, command="reencode", dataset=dataset, summaries=[summary], failed_ok=failed_ok)


@app.command(cls=failing.StageCommand)
def extract(
    dataset: opt.Dataset,
    window: opt.Window = None,
    block: opt.Block = None,
    residual: opt.Residual = None,
    iframe: opt.Iframe = None,
    spec: opt.SpecHash = None,
    limit: opt.Limit = None,
    max_failures: failing.MaxFailures = None,
    failed_ok: failing.FailedOk = False,
    retry_failed: failing.RetryFailed = None,
    address: opt.Address = "local",
    workers: opt.Workers = None,
    no_ray: opt.NoRay = False,
    time_limit: opt.TimeLimit = None,
    memory_limit: opt.MemoryLimit = None,
    wheel: opt.Wheel = None,
    json_output: opt.JsonOutput = False,
    quiet: opt.Quiet = False,
) -> None:
    """Extract I-frames, fused motion and residuals from the re-encoded videos.

    Example: `cope-prep extract ./dataset --window 30 --residual dct:90`
    """
    with report.outlet(json_output=json_output) as out:
        extract_spec = opt.extract_spec(window=window, block=block, residual=residual, iframe=iframe)
        encode = opt.choose_specs(dataset, "reencode", spec).encode
        layout = Layout(dataset=dataset, specs=opt.whole_specs(encode=encode, extract=extract_spec))
        options = _options(
            layout, ["extract"], limit=limit, max_failures=max_failures, retry_failed=retry_failed,
            time_limit=time_limit, memory_limit=memory_limit, quiet=quiet,
        )  # fmt: skip
        videos = read_videos(layout, limit=limit)
        with executor_session(
            address=address, workers=workers, no_ray=no_ray, time_limit=time_limit, wheel=wheel,
            memory_limit=memory_limit, outputs=layout.folders("extract"),
        ) as executor:  # fmt: skip
            summary = run_extract(layout, videos, executor=executor, options=options, console=out.console)
        report.end_stages(out, command="extract", dataset=dataset, summaries=[summary], failed_ok=failed_ok)


@app.command()
def shard(
    dataset: opt.Dataset,
    shard_bytes: opt.ShardBytes = None,
    seed: opt.Seed = None,
    consume: opt.Consume = False,
    consume_reencoded: opt.ConsumeReencoded = False,
    spec: opt.SpecHash = None,
    limit: opt.Limit = None,
    max_failures: failing.MaxFailures = None,
    failed_ok: failing.FailedOk = False,
    address: opt.Address = "local",
    workers: opt.Workers = None,
    no_ray: opt.NoRay = False,
    time_limit: opt.TimeLimit = None,
    memory_limit: opt.MemoryLimit = None,
    wheel: opt.Wheel = None,
    json_output: opt.JsonOutput = False,
    quiet: opt.Quiet = False,
) -> None:
    """Pack the extracted samples into WebDataset shards, with an index.

    Example: `cope-prep shard ./dataset --shard-bytes 512MiB --consume`
    """
    from cope_prep.jobs.shard import ConsumeOptions, run_shard

    with report.outlet(json_output=json_output) as out:
        before = opt.choose_specs(dataset, "extract", spec)
        shards = opt.shard_spec(shard_bytes=shard_bytes, seed=seed)
        layout = Layout(
            dataset=dataset, specs=Specs(encode=before.encode, extract=before.extract, shard=shards)
        )
        options = _options(
            layout, [], limit=limit, max_failures=max_failures, retry_failed=None, time_limit=time_limit,
            memory_limit=memory_limit, quiet=quiet,
        )  # fmt: skip
        videos = read_videos(layout, limit=limit)
        with executor_session(
            address=address, workers=workers, no_ray=no_ray, time_limit=time_limit, wheel=wheel,
            memory_limit=memory_limit, outputs=layout.folders("shards"),
        ) as executor:  # fmt: skip
            summary = run_shard(
                layout,
                videos,
                executor=executor,
                options=options,
                console=out.console,
                consume=ConsumeOptions(extracted=consume, reencoded=consume_reencoded),
            )
        report.end_stages(out, command="shard", dataset=dataset, summaries=[summary], failed_ok=failed_ok)


@app.command(cls=failing.StageCommand)
def run(
    dataset: opt.Dataset,
    profile: opt.Profile = "default",
    codec: opt.Codec = None,
    fps: opt.Fps = None,
    gop_size: opt.GopSize = None,
    size: opt.Size = None,
    fit: opt.Fit = None,
    quality: opt.Quality = None,
    preset: opt.Preset = None,
    window: opt.Window = None,
    block: opt.Block = None,
    residual: opt.Residual = None,
    iframe: opt.Iframe = None,
    shard_bytes: opt.ShardBytes = None,
    seed: opt.Seed = None,
    consume: opt.Consume = False,
    consume_reencoded: opt.ConsumeReencoded = False,
    limit: opt.Limit = None,
    max_failures: failing.MaxFailures = None,
    failed_ok: failing.FailedOk = False,
    retry_failed: failing.RetryFailed = None,
    address: opt.Address = "local",
    workers: opt.Workers = None,
    no_ray: opt.NoRay = False,
    time_limit: opt.TimeLimit = None,
    memory_limit: opt.MemoryLimit = None,
    wheel: opt.Wheel = None,
    json_output: opt.JsonOutput = False,
    quiet: opt.Quiet = False,
) -> None:
    """Re-encode, extract and shard, one after the other. Run it again to go on.

    Videos that failed are left as they are, but for failures of the store and of nodes.

    Example: `cope-prep run ./dataset --profile paper --consume --max-failures 5% --retry-failed TimeLimitError`
    """
    from cope_prep.jobs.shard import ConsumeOptions, run_shard

    with report.outlet(json_output=json_output) as out:
        encode = opt.encode_spec(
            profile=profile, codec=codec, fps=fps, gop_size=gop_size, size=size, fit=fit, quality=quality,
            preset=preset,
        )  # fmt: skip
        specs = opt.whole_specs(
            encode=encode,
            extract=opt.extract_spec(window=window, block=block, residual=residual, iframe=iframe),
            shard=opt.shard_spec(shard_bytes=shard_bytes, seed=seed),
        )
        layout = Layout(dataset=dataset, specs=specs)
        options = _options(
            layout, ["reencode", "extract"], limit=limit, max_failures=max_failures, retry_failed=retry_failed,
            time_limit=time_limit, memory_limit=memory_limit, quiet=quiet,
        )  # fmt: skip
        videos = read_videos(layout, limit=limit)
        with executor_session(
            address=address, workers=workers, no_ray=no_ray, time_limit=time_limit, wheel=wheel,
            memory_limit=memory_limit, outputs=layout.folders("reencode", "extract", "shards"),
        ) as executor:  # fmt: skip
            common = {"executor": executor, "options": options, "console": out.console}
            consuming = ConsumeOptions(extracted=consume, reencoded=consume_reencoded)
            stages = (
                lambda: run_reencode(layout, videos, **common, own_only=True),
                lambda: run_extract(layout, videos, **common, own_only=True),
                lambda: run_shard(layout, videos, **common, consume=consuming),
            )
            summaries = []
            for stage in stages:
                summaries.append(stage())
                if summaries[-1].stopped:
                    break
        report.end_stages(out, command="run", dataset=dataset, summaries=summaries, failed_ok=failed_ok)


app.command()(cli_estimate.estimate)
app.command()(cli_look.status)
app.command()(cli_look.stats)
app.command()(cli_dashboard.dashboard)
app.command()(cli_look.verify)
app.command()(cli_look.inspect)
app.command()(cli_quarantine.quarantine)
app.command()(cli_gc.gc)
app.command()(cli_loader.simulate)
app.command()(demo)

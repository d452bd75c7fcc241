"""The commands about loading that read no shard: mix plan, simulate."""

from __future__ import annotations

from typing import Annotated

import typer

from cope_prep.jobs import options as opt
from cope_prep.jobs import report
from cope_prep.pipeline.layout import Specs

_RUN, _ORDER, _INDEX = "The run", "The order", "A bare index.parquet"

mix_app = typer.Typer(no_args_is_help=True, help="Look at a mix of datasets before training on it.")


@mix_app.callback()
def _mix() -> None:
    """Keeps `plan` a command of its own while there is only one."""


@mix_app.command("plan")
def mix_plan(
    mix: Annotated[
        str,
        typer.Argument(help="LLaVA-NeXT's, or ours over several datasets.", show_default=False),
    ],
    dataset: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Whose questions a LLaVA-NeXT mix chooses from.")
    ] = None,
    seed: Annotated[int, typer.Option(help="For random samples and weights.")] = 0,
    spec: opt.SpecHash = None,
    json_output: opt.JsonOutput = False,
) -> None:
    """Show what a mix holds: records, videos, tokens, and the bytes that an epoch streams.

    Example: `cope-prep mix plan mix.yaml --dataset ./dataset`
    """
    from cope_prep.jobs.loader_tables import print_mix
    from cope_prep.pipeline.loader import TokenCounts
    from cope_prep.pipeline.loader.mix_plan import plan_mix, read_any_mix

    with report.outlet(json_output=json_output) as out:
        tokens = TokenCounts()
        parts = read_any_mix(mix, dataset=dataset, spec=spec)
        with out.console.status("counting"):
            plan = plan_mix(parts, seed=seed, picture_tokens=tokens.picture, delta_tokens=tokens.delta)
        if json_output:
            out.result({"mix": mix, **plan.to_dict()}, "")
        else:
            print_mix(plan, mix, report.make_console(stderr=False))


def simulate(
    source: Annotated[
        str,
        typer.Argument(
            help="DATASET, DATASET/shards/HASH, or an index.parquet alone.",
            show_default=False,
        ),
    ],
    ranks: Annotated[int, typer.Option(min=1, metavar="N", rich_help_panel=_RUN)] = 8,
    cache: Annotated[str, typer.Option(metavar="SIZE", help="Of a node.", rich_help_panel=_RUN)] = "200GB",
    bandwidth: Annotated[
        str, typer.Option(metavar="RATE", help="From the store to a node.", rich_help_panel=_RUN)
    ] = "2GB/s",
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Of a rank.", rich_help_panel=_RUN)] = 8,
    ranks_per_node: Annotated[int, typer.Option(min=1, metavar="N", rich_help_panel=_RUN)] = 8,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Of a rank.", rich_help_panel=_RUN)] = 8,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", rich_help_panel=_RUN)] = 1,
    step_time: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            metavar="SECONDS",
            help="What the model takes for a step: shows how long it waits for data.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    key_frames: Annotated[int, typer.Option(min=1, metavar="N", help="A GOP.", rich_help_panel=_RUN)] = 1,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="questions.parquet",
            help="Replay fine-tuning on these; default: pre-training on GOPs.",
            rich_help_panel=_ORDER,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order.", rich_help_panel=_ORDER)] = 0,
    lanes: Annotated[
        int | None,
        typer.Option(
            min=1, max=1 << 16, metavar="N", help="Pieces of the order read at once.", rich_help_panel=_ORDER
        ),
    ] = None,
    chunk_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What is fetched at once.", rich_help_panel=_ORDER)
    ] = None,
    window_chunks: Annotated[
        int | None,
        typer.Option(
            min=1, max=1 << 10, metavar="N", help="Chunks that are mixed together.", rich_help_panel=_ORDER
        ),
    ] = None,
    fps: Annotated[int | None, typer.Option(help="Default 30.", rich_help_panel=_INDEX)] = None,
    gop_size: Annotated[int | None, typer.Option(help="Default 240.", rich_help_panel=_INDEX)] = None,
    window: Annotated[int | None, typer.Option(help="Default 30.", rich_help_panel=_INDEX)] = None,
    spec: opt.SpecHash = None,
    json_output: opt.JsonOutput = False,
) -> None:
    """Replay a training run's reading on the index alone: fetches, cache hits, balance, first batch.

    Example: `cope-prep simulate ./dataset --ranks 64 --workers 8 --cache 200GB --bandwidth 2GB/s`
    """
    from cope_prep.jobs.loader_tables import print_simulation
    from cope_prep.pipeline.loader import Shuffle, TokenCounts
    from cope_prep.pipeline.loader.simulate import Cluster
    from cope_prep.pipeline.loader.simulate import simulate as replay
    from cope_prep.pipeline.loader.simulate_units import gop_units, open_index, question_units
    from cope_prep.pipeline.loader.stream import PREFETCH_STEPS

    with report.outlet(json_output=json_output) as out:
        order = {
            "lanes": lanes,
            "chunk_bytes": None
            if chunk_bytes is None
            else opt.parse_bytes(chunk_bytes, flag="--chunk-bytes"),
            "window_chunks": window_chunks,
        }
        shuffle = opt.override(Shuffle(), **order)
        cluster = Cluster(
            num_ranks=ranks,
            num_workers=workers,
            cache_bytes=opt.parse_bytes(cache, flag="--cache"),
            bandwidth=opt.parse_rate(bandwidth, flag="--bandwidth"),
            batch_size=batch_size,
            ranks_per_node=ranks_per_node,
            num_epochs=epochs,
            shuffle=shuffle,
            seed=seed,
            step_time_s=step_time,
            prefetch_steps=PREFETCH_STEPS,
        )
        tokens = TokenCounts()
        bare_specs = _bare_specs(fps=fps, gop_size=gop_size, window=window)
        with out.console.status("replaying"):
            folder = open_index(source, spec=spec, bare_specs=bare_specs)
            if questions is None:
                units = gop_units(folder, shuffle=shuffle)
            else:
                units = question_units(folder, questions, shuffle=shuffle, seed=seed)
            found = replay(
                units,
                cluster,
                key_frames=key_frames,
                picture_tokens=tokens.picture,
                delta_tokens=tokens.delta,
            )
        if json_output:
            out.result({"source": source, **found.to_dict()}, "")
        else:
            print_simulation(found, cluster, report.make_console(stderr=False))


def _bare_specs(*, fps: int | None, gop_size: int | None, window: int | None) -> Specs | None:
    """What the flags say of an index without dataset.json; None if they say nothing."""
    if fps is None and gop_size is None and window is None:
        return None
    encode = opt.encode_spec(
        profile="default",
        codec=None,
        fps=fps,
        gop_size=gop_size,
        size=None,
        fit=None,
        quality=None,
        preset=None,
    )
    extract = opt.extract_spec(window=window, block=None, residual=None, iframe=None)
    return opt.whole_specs(encode=encode, extract=extract)

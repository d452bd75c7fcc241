"""`mix plan` and `simulate` for people: their figures as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.pipeline.llava_layout import KINDS

if TYPE_CHECKING:  # they import torch
    from cope_prep.pipeline.loader.mix_plan import MixPlan, SourceCount
    from cope_prep.pipeline.loader.simulate import Cluster
    from cope_prep.pipeline.loader.simulate_report import EpochReplay, Simulation

_KIND_TITLES = {"cap": "Captions", "oe": "Open-ended", "mc": "Multiple choice"}


def print_mix(plan: MixPlan, mix: str, console: Console) -> None:
    """Print what a mix holds."""
    _say(console, f"{mix}: {plan.num_records:,} records about {plan.num_videos:,} videos (seed {plan.seed})")
    console.print(_source_table(plan))
    for path in plan.not_video:
        _say(console, f"Left out: {path}: LLaVA-Hound comes as folders of frames, without motion.")
    for left_out in plan.left_out:
        videos = f"{left_out.num_videos:,} videos of {left_out.dataset}"
        _say(
            console,
            f"Left out: {left_out.num_records:,} records. What they are about, {videos},"
            f" {left_out.reason}; for instance {', '.join(left_out.examples)}.",
        )
    if plan.bytes_once is None or plan.bytes_per_record is None:
        _say(console, f"Tokens and bytes are not known yet: {'; '.join(plan.unknown)}.")
    else:
        console.print(_density_table(plan))
        _say(
            console,
            f"An epoch streams {format_bytes(plan.bytes_once)} if each video is fetched once,"
            f" {format_bytes(plan.bytes_per_record)} without any cache.",
        )
    published = plan.published
    if published is not None:
        found = {
            "matches": "matches the published counts",
            "differs": "differs from the published counts",
            "not compared": "not compared with the published counts",
        }[published.status]
        _say(console, f"LLaVA-Video-178K without LLaVA-Hound: {found}: {published.detail}.")


def print_simulation(found: Simulation, cluster: Cluster, console: Console) -> None:
    """Print what a simulated run does."""
    _say(
        console,
        f"{found.num_units:,} {found.unit} an epoch: {found.num_videos:,} videos, {found.num_gops:,} GOPs in"
        f" {found.num_shards:,} shards, read in {found.num_chunks:,} chunks",
    )
    _say(
        console,
        f"{cluster.num_ranks} ranks on {found.num_nodes} nodes, {cluster.num_workers} workers each;"
        f" {found.num_steps:,} steps of {found.global_batch:,}, {found.num_dropped:,} {found.unit} dropped",
    )
    if found.num_without_video:
        _say(console, f"{found.num_without_video:,} questions left out: their videos are not in the index.")
    console.print(_run_table(found))
    console.print(_epoch_table(found.epochs))
    for warning in found.warnings:
        console.print(f"Warning: {warning}.", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _source_table(plan: MixPlan) -> Table:
    table = Table()
    has_several = len({count.dataset for count in plan.sources}) > 1
    if has_several:
        table.add_column("Dataset", overflow="fold")
    table.add_column("Source", overflow="fold")
    kinds = [kind for kind in KINDS if any(_records(count, kind) for count in plan.sources)]
    for title in (*(_KIND_TITLES[kind] for kind in kinds), "Records", "Videos"):
        table.add_column(title, justify="right", no_wrap=True)
    for count in plan.sources:
        if not count.num_records:
            continue
        table.add_row(
            *([count.dataset] if has_several else []),
            count.source,
            *(f"{_records(count, kind):,}" for kind in kinds),
            f"{count.num_records:,}",
            f"{count.num_videos:,}",
        )
    table.add_section()
    table.add_row(
        *([""] if has_several else []),
        "all",
        *(f"{sum(_records(count, kind) for count in plan.sources):,}" for kind in kinds),
        f"{plan.num_records:,}",
        f"{plan.num_videos:,}",
    )
    return table


def _records(count: SourceCount, kind: str) -> int:
    return sum(part.num_records for part in count.kinds if part.kind == kind)


def _density_table(plan: MixPlan) -> Table:
    table = Table()
    for title in ("Key frames a GOP", "Tokens an epoch", "Tokens a record"):
        table.add_column(title, justify="right", no_wrap=True)
    for density in plan.densities:
        table.add_row(str(density.key_frames), f"{density.num_tokens:,}", f"{density.tokens_per_record:,.0f}")
    return table


def _run_table(found: Simulation) -> Table:
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    plan, first, balance = found.plan, found.first_batch, found.balance
    rows = [
        (
            "Plan",
            f"{plan.total_s:.2f} s here: index {plan.index_s:.2f} s, questions {plan.questions_s:.2f} s,"
            f" order {plan.order_s:.2f} s",
        ),
        ("", f"{format_bytes(plan.memory_bytes)} in memory a rank, shared by its workers"),
        (
            "First batch",
            f"{first.total_s:.2f} s: plan, and {format_bytes(first.fetch_bytes)} on the busiest node",
        ),
        (
            "",
            f"{first.all_workers_total_s:.2f} s until all workers have one"
            f" ({format_bytes(first.all_workers_bytes)})",
        ),
        (
            "Balance",
            f"equal steps; busiest rank {balance.rank_bytes_max_over_mean:.3f} × the mean's bytes,"
            f" {balance.rank_tokens_max_over_mean:.3f} × its tokens",
        ),
        (
            "Step of a rank",
            f"{balance.mean_step_tokens:,.0f} tokens, {balance.longest_step_tokens:,} at most;"
            f" the slowest rank has {balance.slowest_over_mean:.2f} × the mean",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _epoch_table(epochs: Sequence[EpochReplay]) -> Table:
    table = Table()
    table.add_column("Epoch", no_wrap=True)
    for epoch in epochs:
        table.add_column(str(epoch.epoch), justify="right")
    rows = [[_nodes_text(epoch.node_bytes) for epoch in epochs]]
    rows.append([f"{format_duration(epoch.fetch_s)}" for epoch in epochs])
    rows.append([f"{epoch.hit_share:.2%} of {epoch.num_reads:,}" for epoch in epochs])
    rows.append([f"{epoch.egress:.3f} × {format_bytes(epoch.wanted_bytes)}" for epoch in epochs])
    rows.append(
        [f"{epoch.hottest_shard_egress:.2f} × {epoch.hottest_shard.rpartition('/')[2]}" for epoch in epochs]
    )
    titles = [
        "Fetched by a node",
        "Fetching takes",
        "Reads without a fetch",
        "Shard egress",
        "Hottest shard",
    ]
    needed = [epoch.needed for epoch in epochs if epoch.needed is not None]
    if needed:
        titles += ["A node must sustain", "Epoch", "Of it, waiting for data"]
        rows.append([f"{format_bytes(rate.mean_bytes_per_s)}/s" for rate in needed])
        rows.append([format_duration(rate.epoch_s) for rate in needed])
        rows.append([f"{rate.wait_s:.1f} s ({rate.wait_s / rate.epoch_s:.1%})" for rate in needed])
    for title, values in zip(titles, rows, strict=True):
        table.add_row(title, *values)
    return table


def _nodes_text(node_bytes: Sequence[int]) -> str:
    if len(node_bytes) == 1:
        return format_bytes(node_bytes[0])
    mean = sum(node_bytes) / len(node_bytes)
    least, most = min(node_bytes), max(node_bytes)
    return f"{format_bytes(mean)} ({format_bytes(least)} to {format_bytes(most)})"

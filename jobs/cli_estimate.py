"""`cope-prep estimate`: hours, bytes and dollars of a whole dataset, from a sample of it."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cope_prep.jobs import options as opt
from cope_prep.jobs import report
from cope_prep.jobs.progress import format_bytes, format_duration
from cope_prep.jobs.session import executor_session
from cope_prep.jobs.video_stage import DEFAULT_TIME_LIMIT_S, StageOptions, read_videos
from cope_prep.pipeline import remote, retries, storage
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from cope_prep.jobs.estimate import DatasetEstimate
    from cope_prep.pipeline.estimate import Estimate

_logger = logging.getLogger("cope_prep")
_MONEY = "What it costs"
_HOUR_S = 3600.0
_GB = 1e9
_USUAL_CORES = (64, 256, 1024)
_SHOWN_FAILURES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What to multiply with."""

    core_hour: float | None
    gb_month: float | None


def estimate(
    dataset: opt.Dataset,
    sample: Annotated[int, typer.Option(min=2, metavar="N", help="Videos to run for real.")] = 40,
    sample_seed: Annotated[int, typer.Option(help="Which of them.")] = 0,
    scratch: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the sample's outputs go, and are deleted; default: a temporary folder here.",
            show_default=False,
        ),
    ] = None,
    cores: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="K", help="Cores of the job; may be repeated.", show_default=False),
    ] = None,
    nodes: Annotated[
        list[int] | None,
        typer.Option(
            min=1, metavar="N", help="Or nodes, with --node-cores; may be repeated.", show_default=False
        ),
    ] = None,
    node_cores: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Cores of a node.", show_default=False)
    ] = None,
    core_speed: Annotated[
        float, typer.Option(min=0.01, metavar="X", help="A core there, where one here is 1.")
    ] = 1.0,
    price_per_core_hour: Annotated[
        float | None, typer.Option(min=0, metavar="$", rich_help_panel=_MONEY, show_default=False)
    ] = None,
    node_price: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="$", help="Of a node an hour.", rich_help_panel=_MONEY, show_default=False
        ),
    ] = None,
    storage_price_per_gb_month: Annotated[
        float | None, typer.Option(min=0, metavar="$", rich_help_panel=_MONEY, show_default=False)
    ] = None,
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
    address: opt.Address = "local",
    workers: opt.Workers = None,
    no_ray: opt.NoRay = False,
    time_limit: opt.TimeLimit = None,
    memory_limit: opt.MemoryLimit = None,
    wheel: opt.Wheel = None,
    json_output: opt.JsonOutput = False,
    quiet: opt.Quiet = False,
) -> None:
    """Estimate a job's core hours, time, bytes and cost by running a sample of the manifest.

    The sample goes through all stages, into a scratch folder; the dataset is not touched. docs/cluster.md says
    what each figure means and how good it is.

    Example: `cope-prep estimate ./dataset --nodes 64 --node-cores 16 --node-price 0.29`
    """
    with report.outlet(
        json_output=json_output, stopped="stopped: nothing was estimated, and nothing is left of the sample."
    ) as out:
        encode = opt.encode_spec(
            profile=profile, codec=codec, fps=fps, gop_size=gop_size, size=size, fit=fit, quality=quality,
            preset=preset,
        )  # fmt: skip
        specs = opt.whole_specs(
            encode=encode,
            extract=opt.extract_spec(window=window, block=block, residual=residual, iframe=iframe),
            shard=opt.shard_spec(shard_bytes=shard_bytes, seed=None),
        )
        machines = _machines(cores or [], nodes or [], node_cores)
        prices = _prices(price_per_core_hour, node_price, node_cores, storage_price_per_gb_month)
        if address != "local" and scratch is None:
            raise ConfigurationError(
                f"--address {address}",
                "has workers that cannot write into a temporary folder here",
                "Give --scratch, a folder that they reach.",
            )
        videos = read_videos(Layout(dataset=dataset, specs=specs))
        from cope_prep.jobs.estimate import estimate_dataset

        with (
            _scratch_folder(scratch) as folder,
            executor_session(
                address=address, workers=workers, no_ray=no_ray, time_limit=time_limit, wheel=wheel,
                memory_limit=memory_limit,
            ) as executor,
        ):  # fmt: skip
            found = estimate_dataset(
                videos,
                specs=specs,
                sample=sample,
                seed=sample_seed,
                scratch=folder,
                executor=executor,
                options=StageOptions(
                    time_limit_s=DEFAULT_TIME_LIMIT_S if time_limit is None else time_limit, quiet=quiet
                ),
                console=out.console,
            )
        document = to_document(found, machines=machines, prices=prices, core_speed=core_speed)
        out.result(
            {"command": "estimate", "dataset": dataset, "sample_seed": sample_seed} | document,
            to_text(found, document),
        )


def to_document(
    found: DatasetEstimate, *, machines: list[tuple[int, int | None]], prices: Prices, core_speed: float
) -> dict[str, Any]:
    """For `--json`. Hours are those of cores of the speed asked for."""
    hours = 1 / (_HOUR_S * core_speed)
    core_hours = found.core_s.scaled(hours)
    drawn = found.measured.drawn
    return {
        "videos": found.num_videos,
        "source_bytes": found.source_bytes,
        "sample": {
            "videos": len(drawn),
            "source_bytes": sum(entry.video.size_bytes for entry in drawn),
            "video_ids": sorted(entry.video.video_id for entry in drawn),
            "wall_s": found.measured.wall_s,
            "failures": [asdict(item) for item in found.measured.failures],
        },
        "core_speed": core_speed,
        "video_hours": asdict(found.video_s.scaled(1 / _HOUR_S)),
        "failed_videos": asdict(found.num_failed),
        "core_hours": asdict(core_hours),
        "stages": {
            stage: {
                "core_hours": asdict(found.stage_core_s[stage].scaled(hours)),
                "cpu_hours": asdict(found.stage_cpu_s[stage].scaled(hours)),
                "bytes": asdict(found.stage_bytes[stage]),
            }
            for stage in found.stage_core_s
        },
        "longest_video_s": found.longest_s / core_speed,
        "least_wall_s": found.floor_s / core_speed,
        "jobs": [
            {"cores": cores, "nodes": nodes, "wall_s": asdict(found.wall_s(cores).scaled(1 / core_speed))}
            for cores, nodes in machines
        ],
        "compute_dollars": None if prices.core_hour is None else asdict(core_hours.scaled(prices.core_hour)),
        "storage_dollars_per_month": None
        if prices.gb_month is None
        else asdict(found.stage_bytes["shards"].scaled(prices.gb_month / _GB)),
    }


def to_text(found: DatasetEstimate, document: dict[str, Any]) -> str:
    """The same, to read."""
    sample = document["sample"]
    lines = [
        f"Ran {sample['videos']:,} of {found.num_videos:,} videos ({format_bytes(sample['source_bytes'])} of"
        f" {format_bytes(found.source_bytes)}) in {format_duration(sample['wall_s'])}. In all, with the 95 %"
        " interval of the draw:",
        _line("video", found.video_s, format_duration),
        _line("core hours", document["core_hours"], _hours),
    ]
    names = {"reencode": "re-encoded", "extract": "extracted", "shards": "shards"}
    cpu_hours = sum(entry["cpu_hours"]["value"] for entry in document["stages"].values())
    lines.append(
        f"  of which computing   {_hours(cpu_hours):>14}   the rest is waiting: for the store, or a busy core"
    )
    lines += [_line(f"  {stage}", document["stages"][stage]["core_hours"], _hours) for stage in names]
    for stage, name in names.items():
        lines.append(_line(name, found.stage_bytes[stage], format_bytes))
    longest, least = (format_duration(document[name]) for name in ("longest_video_s", "least_wall_s"))
    lines.append(f"{'longest video':<22}{longest} of a core; {least} with any number of cores")
    for job in document["jobs"]:
        where = f"{job['nodes']:,} nodes, " if job["nodes"] else ""
        lines.append(_line(f"{where}{job['cores']:,} cores", job["wall_s"], format_duration))
    if document["compute_dollars"] is not None:
        lines.append(_line("computing", document["compute_dollars"], _dollars))
    if document["storage_dollars_per_month"] is not None:
        lines.append(_line("shards a month", document["storage_dollars_per_month"], _dollars))
    failures = sample["failures"]
    if failures:
        lines.append(_line("videos that fail", found.num_failed, lambda count: f"{count:,.0f}"))
        lines += [f"  {item['error_class']}: {item['error_message']}" for item in failures[:_SHOWN_FAILURES]]
        if len(failures) > _SHOWN_FAILURES:
            lines.append(f"  and {len(failures) - _SHOWN_FAILURES} more of the sample: --json has them")
    return "\n".join(lines)


def _line(label: str, found: Estimate | dict[str, float], form: Any) -> str:
    values = found if isinstance(found, dict) else asdict(found)
    return f"{label:<22}{form(values['value']):>14}   {form(values['low'])} to {form(values['high'])}"


def _hours(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _dollars(value: float) -> str:
    return f"${value:.2g}" if value < 1 else f"${value:,.2f}" if value < 100 else f"${value:,.0f}"


def _machines(cores: list[int], nodes: list[int], node_cores: int | None) -> list[tuple[int, int | None]]:
    """(cores, nodes if they were given) of each job to show."""
    if nodes and node_cores is None:
        raise ConfigurationError("--nodes", "does not say of how many cores", "Give --node-cores, too.")
    if not nodes and not cores:
        return [(count, None) for count in _USUAL_CORES]
    of_nodes: list[tuple[int, int | None]] = [(count * (node_cores or 1), count) for count in nodes]
    return [*((count, None) for count in cores), *of_nodes]


def _prices(
    core_hour: float | None, node_price: float | None, node_cores: int | None, gb_month: float | None
) -> Prices:
    if core_hour is not None and node_price is not None:
        raise ConfigurationError("--price-per-core-hour", "and --node-price say the same", "Give one.")
    if node_price is not None:
        if node_cores is None:
            raise ConfigurationError("--node-price", "is of how many cores?", "Give --node-cores, too.")
        core_hour = node_price / node_cores
    return Prices(core_hour=core_hour, gb_month=gb_month)


@contextlib.contextmanager
def _scratch_folder(scratch: str | None) -> Iterator[str]:
    """A new folder, which is deleted with all that is in it."""
    if scratch is None or storage.is_local(scratch):
        base = None if scratch is None else storage.local_path(scratch)
        try:
            made = tempfile.TemporaryDirectory(prefix="cope-prep-estimate-", dir=base)
        except OSError as exc:
            raise ConfigurationError(f"--scratch {scratch}", f"cannot be used ({exc.strerror})") from exc
        with made as folder:
            yield folder
        return
    folder = storage.join(scratch, f"cope-prep-estimate-{uuid.uuid4().hex}")
    try:
        yield folder
    except KeyboardInterrupt:
        retries.set_haste(True)  # as there was in the session, which is over
        raise
    finally:
        try:
            remote.remove_folder(folder)
        except StorageError as exc:
            if not retries.is_in_haste():
                raise
            _logger.warning("the sample's outputs stay behind: %s", exc)
        finally:
            retries.set_haste(False)

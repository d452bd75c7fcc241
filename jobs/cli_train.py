"""The commands about models: train pretrain, train finetune, train describe."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

import typer

from cope_prep.jobs import options as opt
from cope_prep.jobs import report
from cope_prep.jobs.train_config import Kind
from cope_prep.schemas.errors import ConfigurationError

_WHERE = "Where to run"

train_app = typer.Typer(no_args_is_help=True, help="Train a Δ-encoder, and a video language model with it.")

Config = Annotated[str, typer.Argument(metavar="CONFIG.toml", help="Recipes: configs/.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="In place of the file's: training.max_steps=100."),
]
Ranks = Annotated[int, typer.Option("--workers", min=1, metavar="N", help="Ranks.", rich_help_panel=_WHERE)]
Cpus = Annotated[
    int, typer.Option(min=1, metavar="N", help="Of each rank, for its loader, too.", rich_help_panel=_WHERE)
]
Gpus = Annotated[
    int | None,
    typer.Option(min=0, max=1, metavar="0|1", help="Default: 1 if there are any.", rich_help_panel=_WHERE),
]
MaxFailures = Annotated[
    int,
    typer.Option(
        min=-1, metavar="N", help="Begin again so often after a death; -1: always.", rich_help_panel=_WHERE
    ),
]


@train_app.command()
def pretrain(
    config: Config,
    overrides: Overrides = None,
    workers: Ranks = 1,
    address: opt.Address = "local",
    cpus_per_worker: Cpus = 1,
    gpus_per_worker: Gpus = None,
    max_failures: MaxFailures = 3,
    no_ray: opt.NoRay = False,
    wheel: opt.Wheel = None,
    json_output: opt.JsonOutput = False,
) -> None:
    """Stage 1: teach a Δ-encoder what the vision tower would see. Run it again to go on.

    Example: `cope-prep train pretrain configs/one_gpu_pretrain.toml`
    """
    _train(
        "pretrain", config, overrides=overrides, workers=workers, address=address,
        cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker, max_failures=max_failures,
        no_ray=no_ray, wheel=wheel, json_output=json_output,
    )  # fmt: skip


@train_app.command()
def finetune(
    config: Config,
    overrides: Overrides = None,
    workers: Ranks = 1,
    address: opt.Address = "local",
    cpus_per_worker: Cpus = 1,
    gpus_per_worker: Gpus = None,
    max_failures: MaxFailures = 3,
    no_ray: opt.NoRay = False,
    wheel: opt.Wheel = None,
    json_output: opt.JsonOutput = False,
) -> None:
    """Stage 2: teach a language model to read Δ-tokens. Run it again to go on.

    Example: `cope-prep train finetune configs/paper_finetune.toml --workers 64 --address auto`
    """
    _train(
        "finetune", config, overrides=overrides, workers=workers, address=address,
        cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker, max_failures=max_failures,
        no_ray=no_ray, wheel=wheel, json_output=json_output,
    )  # fmt: skip


def _train(
    kind: Kind,
    path: str,
    *,
    overrides: list[str] | None,
    workers: int,
    address: str,
    cpus_per_worker: int,
    gpus_per_worker: int | None,
    max_failures: int,
    no_ray: bool,
    wheel: str | None,
    json_output: bool,
) -> None:
    from cope_prep.jobs.train import RayOptions, train_here, train_on_ray
    from cope_prep.jobs.train_config import read_run

    with report.outlet(json_output=json_output) as out:
        if no_ray and (workers > 1 or address != "local" or wheel is not None):
            raise ConfigurationError(
                "--no-ray", "trains one rank in this process", "Leave out --workers, --address, --wheel."
            )
        _, config = read_run(path, kind, overrides=overrides or ())
        if no_ray:
            outcome = train_here(kind, config)
        else:
            where = RayOptions(
                workers=workers,
                address=address,
                wheel=wheel,
                cpus_per_worker=cpus_per_worker,
                gpus_per_worker=gpus_per_worker,
                max_failures=max_failures,
            )
            outcome = train_on_ray(
                kind,
                config,
                where,
                say=lambda line: out.console.print(line, markup=False, highlight=False, soft_wrap=True),
            )
        document = {"command": f"train {kind}", "output_dir": config.output_dir, **asdict(outcome)}
        out.result(document, f"{outcome.num_steps} steps done; {outcome.checkpoint}")


@train_app.command()
def describe(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG.toml]", help="Of either stage.", show_default=False)
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="llava-video-7b",
            help="Take tower and language model of these shapes; the configuration's folders are not read.",
        ),
    ] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Of a P-frame.")] = "384x384",
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Only count.")] = False,
    overrides: Overrides = None,
    json_output: opt.JsonOutput = False,
) -> None:
    """Count a model's parameters, the cost of a P-frame beside that of a picture, and tokens. Needs no weights.

    Example: `cope-prep train describe configs/paper_finetune.toml --like llava-video-7b`
    """
    from cope_prep.jobs.train_config import read_run, the_task
    from cope_prep.jobs.train_table import print_description

    with report.outlet(json_output=json_output) as out:
        the_task("finetune")  # before the import below, which needs the same packages
        from cope_prep.encoders.describe import describe as describe_model

        if like not in (None, "llava-video-7b"):
            raise ConfigurationError(f"--like {like}", "is not known", "Use llava-video-7b.")
        match = re.fullmatch(r"(\d+)x(\d+)", size.lower())
        if match is None:
            raise ConfigurationError(f"--size {size}", "is not WxH", "For instance --size 384x384.")
        chosen = None if config is None else read_run(config, overrides=overrides or ())[1]
        with out.console.status("measuring"):
            found = describe_model(
                chosen,
                like=like,
                height_px=int(match[2]),
                width_px=int(match[1]),
                measure=not no_latency,
            )
        if json_output:
            out.result(found.to_dict(), "")
        else:
            print_description(found, report.make_console(stderr=False))

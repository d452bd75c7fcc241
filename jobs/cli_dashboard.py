"""`cope-prep dashboard`: the dataset in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from cope_prep.jobs import options as opt
from cope_prep.jobs import report

_WHERE = "Where to serve it"


def dashboard(
    dataset: opt.Dataset,
    mix: Annotated[
        list[str] | None,
        typer.Option(metavar="YAML", help="A mix for the page Mix; may be repeated.", show_default=False),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET",
            help="A further dataset for the page Compare; may be repeated.",
            show_default=False,
        ),
    ] = None,
    spec: opt.SpecHash = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="What to bind to.", rich_help_panel=_WHERE)
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="N",
            help="Default 8501, or any if that is taken; 0 for any.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Do not open one.", rich_help_panel=_WHERE)
    ] = False,
) -> None:
    """Show the dataset in a browser: statistics, progress, every clip, comparisons and mixes.

    Only this machine can reach it, and whoever reaches it sees all of the dataset: docs/dashboard.md says how to
    use it through an SSH tunnel.

    Example: `cope-prep dashboard ./dataset --mix mix.yaml`
    """
    from cope_prep.jobs.dashboard.opened import Arguments
    from cope_prep.jobs.dashboard.serve import is_loopback, serve

    with report.outlet(json_output=False) as out:
        if not is_loopback(host):
            out.console.print(
                f"Warning: {host} is not a loopback address. Whoever can reach this machine sees the whole dataset,"
                " without a password.",
                style="bold yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

        def say(url: str) -> None:
            out.console.print(
                f"Dashboard: {url} (Ctrl-C to stop)", markup=False, highlight=False, soft_wrap=True
            )

        arguments = Arguments(
            dataset=dataset, spec=spec, mixes=tuple(mix or ()), compare=tuple(compare or ())
        )
        serve(arguments, host=host, port=port, open_browser=not no_browser, say=say)

"""MkDocs hook: writes the reference of every command where docs/cli.md says `<!-- commands -->`.

It walks the typer app that `cope-prep` itself runs, so the page cannot say anything else than `--help` does.
(mkdocs-click takes click's own commands only, and typer brings a copy of click since 0.26.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import typer
import typer.main

PLACE = "<!-- commands -->"


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """MkDocs calls this with each page's text."""
    if PLACE not in markdown:
        return markdown
    return markdown.replace(PLACE, "\n\n".join(section(*found) for found in commands()))


def commands() -> list[tuple[str, Any]]:
    """(`cope-prep manifest files`, its command) of every command that does something, groups opened."""
    from cope_prep.jobs.cli import app

    return sorted(_leaves("cope-prep", typer.main.get_command(app)), key=_position)


_ORDER = ("demo", "manifest", "run", "reencode", "extract", "shard", "status", "stats", "verify", "inspect")
"""The order in which one meets them; others follow, as they come."""


def _position(found: tuple[str, Any]) -> int:
    name = found[0].split()[1]
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child_name, child in children.items():
        yield from _leaves(f"{name} {child_name}", child)


def section(name: str, command: Any) -> str:
    """Markdown for one command: what it does, its example, its arguments and options."""
    context = typer.Context(command, info_name=name)
    text, _, example = (command.help or "").partition("Example:")
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
    short = name.removeprefix("cope-prep ")
    usage = " ".join([name, *map(_argument_name, arguments), "[OPTIONS]"])
    parts = [
        f"### {short} {{#{short.replace(' ', '-')}}}",
        _linked(_unwrapped(text)),
        f"```output\n{usage}\n```",
    ]
    if example:
        parts.append(f"For example: {_unwrapped(example)}")
    if arguments:
        rows = [(f"`{_argument_name(param)}`", _cell(param.help or "")) for param in arguments]
        parts.append(_table(("Argument", ""), rows))
    panels: dict[str, list[Any]] = {}
    for param in options:
        panels.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(param)
    for panel, params in sorted(panels.items(), key=lambda found: found[0] == "Options"):
        rows = [_option_row(param, context) for param in params]
        parts.append(_table((panel, "", "Default"), rows))
    return "\n\n".join(parts)


def _option_row(param: Any, context: typer.Context) -> tuple[str, str, str]:
    """Names and value; help; default, the spec's where the flag only overrides a spec."""
    names = ", ".join(f"`{name}`" for name in sorted(param.opts, key=len, reverse=True))
    value = "" if param.is_flag else f" `{_cell(str(param.display_type_rich(context)))}`"
    default = param.default
    if default is None and getattr(param, "rich_help_panel", None) in ("Re-encoding", "Extraction", "Shards"):
        default = spec_defaults()[param.name]
    shown = default is not None and not (param.is_flag or param.multiple)
    return names + value, _cell(param.help or ""), f"`{default}`" if shown else ""


def spec_defaults() -> dict[str, object]:
    """Flag of a spec's field -> the default profile's value, as one would write it on the command line."""
    from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, ShardSpec

    encode, extract, shard = EncodeSpec(), ExtractSpec(), ShardSpec()
    found = {**encode.model_dump(), **extract.model_dump(), **shard.model_dump()}
    return found | {
        "size": f"{encode.width_px}x{encode.height_px}",
        "block": extract.block_px,
        "residual": ":".join(map(str, extract.residual.model_dump().values())),
        "iframe": ":".join(map(str, extract.iframe.model_dump().values())),
        "shard_bytes": f"{shard.target_bytes >> 20}MiB",
    }


def _argument_name(param: Any) -> str:
    name = param.metavar or param.name.upper()
    return name if param.required or name.startswith("[") else f"[{name}]"


def _unwrapped(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def _linked(text: str) -> str:
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

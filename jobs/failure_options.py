"""`--max-failures`, `--failed-ok` and `--retry-failed [CLASS]`: the flags of the stage commands about failures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import pyarrow.compute
import typer
from typer.core import TyperCommand

from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger
from cope_prep.schemas import errors
from cope_prep.schemas.errors import ConfigurationError, CopePrepError

pc: Any = pyarrow.compute  # its functions are made when it is imported, where type checkers cannot see them

MaxFailures = Annotated[
    str | None,
    typer.Option(
        "--max-failures",
        metavar="N|N%",
        help="Stop a stage when more have failed in this run; a percentage counts from 50 videos on.",
        rich_help_panel="What to run",
        show_default=False,
    ),
]
FailedOk = Annotated[
    bool,
    typer.Option(
        "--failed-ok",
        help="Exit with 0 although videos failed, if the next run would not try them again by itself.",
        rich_help_panel="What to run",
    ),
]
RetryFailed = Annotated[
    list[str] | None,
    typer.Option(
        "--retry-failed",
        metavar="[CLASS,...]",
        help="Try failed videos again: all, or those of some error classes.",
        rich_help_panel="What to run",
        show_default=False,
    ),
]

_FLAG = "--retry-failed"
_ALL = "all"
_CLASSES = re.compile(r"[A-Z]\w*(?:Error|Exception)(?:,\s*[A-Z]\w*)*|all", re.ASCII)


class StageCommand(TyperCommand):
    """A command whose `--retry-failed` may have a value, which typer's own options cannot: they have it, or not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, after the flag has got its value."""
        return super().parse_args(ctx, list(spelled_out(args)))


def spelled_out(arguments: Sequence[str]) -> Iterator[str]:
    """`--retry-failed` as `--retry-failed=all`, and `--retry-failed CLASS` as `--retry-failed=CLASS`.

    The next word is a value only if it is `all` or written as error classes are: any other is the dataset, or an
    option.
    """
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if word == "--":
            yield from arguments[position - 1 :]
            return
        if word != _FLAG:
            yield word
            continue
        following = arguments[position] if position < len(arguments) else ""
        has_value = _CLASSES.fullmatch(following) is not None
        yield f"{_FLAG}={following if has_value else _ALL}"
        position += has_value


def retry_classes(given: Sequence[str] | None, layout: Layout, stages: Sequence[str]) -> frozenset[str]:
    """The classes that were named; empty for all of them.

    Raises:
        ConfigurationError: a class is none of cope-prep's, and no failure of these stages has it.
    """
    names = {name.strip() for text in given or () for name in text.split(",") if name.strip()}
    if _ALL in names or not names:
        return frozenset()
    unknown = {name for name in names if not _is_ours(name)}
    if unknown:
        recorded = _recorded_classes(layout, stages)
        if unknown := sorted(unknown - recorded):
            found = f"those of this dataset's failures: {', '.join(sorted(recorded))}" if recorded else ""
            raise ConfigurationError(
                f"{_FLAG}={unknown[0]}",
                "no such error class",
                f"Choose {found or 'none: nothing has failed'}.",
            )
    return frozenset(names)


def _is_ours(name: str) -> bool:
    found = getattr(errors, name, None)
    return isinstance(found, type) and issubclass(found, CopePrepError)


def _recorded_classes(layout: Layout, stages: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for stage in stages:
        rows = Ledger(layout.ledger(stage)).read(["status", "error_class"])
        failed = rows.filter(pc.equal(rows["status"], "failed"))
        found.update(failed["error_class"].unique().to_pylist())
    return found

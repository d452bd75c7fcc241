"""The code blocks of the pages, and what a comment before one says about it.

<!-- not run: REASON -->    it cannot be run here; what can be checked without is checked
<!-- exit 1: REASON -->     its last command ends with this code
<!-- output -->             what the block before prints; lines may be left out
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_MARKER = re.compile(r"^\s*<!-- (not run|exit (\d+)|output)(?:: (.+?))? -->$")
_FENCE = re.compile(r"^( *)```([\w-]*)")
_ALIASES = {"sh": "bash", "shell": "bash", "py": "python", "yml": "yaml"}
_INCLUDE = re.compile(r'^( *)--8<-- "([^":]+)(?::([^"]+))?"$')


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block."""

    page: str
    """Path from the repository's root."""
    line: int
    language: str
    text: str
    marker: str
    """`not run`, `exit 1`, `output` or nothing."""
    reason: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"

    @property
    def file_name(self) -> str:
        """Of a block that begins with `# NAME.EXT ...`; else empty."""
        found = re.match(r"# ([\w-]+\.(?:py|yaml|toml))\b", self.text)
        return found[1] if found else ""

    @property
    def takes_arguments(self) -> bool:
        """A program that another block calls: `# NAME.py ARGUMENT ...`."""
        return bool(re.match(r"# [\w-]+\.py +[A-Z]", self.text))


def pages() -> list[str]:
    """README and every page, from the repository's root."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))]


def blocks_of(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    found: list[Block] = []
    lines = list(_included((ROOT / page).read_text().splitlines()))
    marker = reason = ""
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        comment = _MARKER.match(lines[number])
        if fence is None:
            if comment is not None:
                marker, reason = comment[1], comment[3] or ""
            elif lines[number].strip():
                marker = reason = ""
            number += 1
            continue
        indent, start = len(fence[1]), number
        number += 1
        while lines[number].strip() != "```":
            number += 1
        text = "".join(f"{line[indent:]}\n" for line in lines[start + 1 : number])
        language = _ALIASES.get(fence[2], fence[2])
        found.append(
            Block(page=page, line=start + 1, language=language, text=text, marker=marker, reason=reason)
        )
        marker = reason = ""
        number += 1
    return found


def indented_commands(page: str) -> list[str]:
    """Lines that look like something to type, in blocks that are not fenced and so would not be checked."""
    lines = (ROOT / page).read_text().splitlines()
    in_fence, found, in_list = False, [], False
    for number, line in enumerate(lines):
        if _FENCE.match(line):
            in_fence = not in_fence
        elif line and not line[0].isspace():
            in_list = bool(re.match(r"(\d+\.|-|\*) ", line))
        if in_fence or in_list:
            continue
        if re.match(r" {4}(cope-prep|pip|python|make|torchrun|ray|from \S+ import|import) ", line):
            found.append(f"{page}:{number + 1}: {line.strip()}")
    return found


def commands_of(text: str) -> list[str]:
    """The lines of a shell block, continued ones joined, comments and empty ones left out."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line for line in joined if shlex.split(line, comments=True)]


def calls_in(command: str) -> Iterator[list[str]]:
    """The arguments of every `cope-prep ...` in a command, also of one inside quotes."""
    for part in re.split(r"&&|\|", command) if "'" not in command and '"' not in command else [command]:
        words = shlex.split(part, comments=True)
        if words and words[0] == "cope-prep":
            yield words[1 : words.index(">")] if ">" in words else words[1:]
        for word in words[1:]:
            if word.startswith("cope-prep "):
                yield from calls_in(word)


def check_call(arguments: list[str]) -> None:
    """Parse a `cope-prep` command as the program does, and do nothing.

    Raises:
        typer.BadParameter and its relatives: no such command, flag, or value.
    """
    import typer.main

    from cope_prep.jobs.cli import app

    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands"):
        assert rest, "names no command"
        assert rest[0] in command.commands, f"no such command: {rest[0]}"
        command = command.commands[rest.pop(0)]
    command.make_context(command.name, rest)


def _included(lines: list[str]) -> Iterator[str]:
    """The lines, with what `--8<--` names put in, as pymdownx.snippets does when the site is built."""
    for line in lines:
        include = _INCLUDE.match(line)
        if include is None:
            yield line
            continue
        path = next(folder / include[2] for folder in (DOCS, ROOT) if (folder / include[2]).is_file())
        content = path.read_text()
        if include[3]:
            _, _, content = content.partition(f"[start:{include[3]}] -->\n")
            content, end, _ = content.partition(f"<!-- --8<-- [end:{include[3]}]")
            assert end, f"{include[2]} has no section {include[3]}"
        yield from (include[1] + inner for inner in content.splitlines())

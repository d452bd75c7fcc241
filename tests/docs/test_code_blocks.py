"""Every code block of README and docs is run, in order within its page, or checked as far as it can be.

A page gets a folder of its own with real clips in `~/videos`, or with a dataset that was made of them. `cope-prep`
is called in this process and without Ray (`--no-ray`): Ray has tests of its own.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import yaml
from blocks import ROOT, Block, blocks_of, calls_in, check_call, commands_of, indented_commands, pages
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.jobs.demo_source import arrange_source

OWN_TESTS = {
    "docs/format.md": "test_format_md.py",
    "docs/loader.md": "test_loader_md.py",
    "docs/tokens.md": "test_tokens_md.py",
}
"""Pages whose Python needs data of another kind."""
PROGRAMS = {"cp", "head", "ls", "mkdir", "python", "rm", "tar"}
"""What a shell block may call beside cope-prep."""
ENDLESS = {"dashboard", "demo", "train", "--watch"}
"""Commands and flags that serve, watch or take minutes: blocks with these need `not run`, too."""
CHECKED = {"bash", "json", "python", "toml", "yaml"}
SHOWN = {"text", "output"}
SAY_WHY = "put `<!-- not run: WHY -->` before the block"

Prepare = Callable[[Path], None]


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks_of(page)]


@pytest.fixture(scope="session")
def made(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `videos/`, and `two` and `five`, datasets of 2 and 5 GOPs."""
    folder = tmp_path_factory.mktemp("made")
    clips = {clip.stem: clip for clip in real_clips}
    (folder / "videos" / "holiday").mkdir(parents=True)
    shutil.copy(clips["carphone_pristine"], folder / "videos" / "holiday" / "beach.mp4")
    shutil.copy(clips["bigbuckbunny"], folder / "videos" / "walk.mp4")
    (folder / "clips").mkdir()
    for clip in real_clips:
        shutil.copy(clip, folder / "clips")
    for source, name in (("videos", "two"), ("clips", "five")):
        call(["manifest", "files", str(folder / source), str(folder / name)])
        call(["run", str(folder / name)])
    return folder


@pytest.fixture
def page_folder(
    request: pytest.FixtureRequest, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """A function that makes what a page takes for granted, and goes there."""

    def videos(folder: Path) -> None:
        shutil.copytree(made / "videos", folder / "videos")

    def videos_and_file(folder: Path) -> None:
        videos(folder)
        shutil.copy(made / "videos" / "walk.mp4", folder / "beach.mp4")
        shutil.copy(next((made / "two" / "reencode").rglob("*.mp4")), folder / "reencoded.mp4")

    def broken_videos(folder: Path) -> None:
        videos(folder)
        content = (made / "clips" / "bikes.mp4").read_bytes()[:200_000]
        (folder / "videos" / "broken.mp4").write_bytes(content)
        (folder / "videos" / "notes.txt").write_text("What was filmed where.")

    def llava(folder: Path) -> None:
        arrange_source(str(folder / "data" / "LLaVA-Video-178K"))

    def bucket(folder: Path) -> None:
        request.getfixturevalue("moto_s3")
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        for name in ("holiday/beach.mp4", "walk.mp4"):
            store.put_file(str(made / "videos" / name), f"bucket/videos/{name}")

    def dataset(name: str) -> Prepare:
        def copy(folder: Path) -> None:
            shutil.copytree(made / name, folder / "dataset")

        return copy

    prepare: dict[str, Prepare] = {
        "README.md": videos_and_file,
        "docs/quickstart.md": videos,
        "docs/api.md": videos_and_file,
        "docs/recipes/own-folder.md": broken_videos,
        "docs/recipes/llava-video.md": llava,
        "docs/recipes/s3.md": bucket,
        "docs/recipes/resume.md": videos,
        "docs/recipes/reading-without-us.md": dataset("two"),
    }

    def go(page: str) -> Path:
        prepare.get(page, dataset("five"))(tmp_path)
        monkeypatch.chdir(tmp_path)
        for name, value in {"HOME": tmp_path, "COPE_PREP_CACHE": tmp_path / "cache", "COLUMNS": 140}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        return tmp_path

    return go


def call(arguments: list[str], *, exit_code: int = 0) -> str:
    """A `cope-prep` command, in this process; what it prints."""
    result = CliRunner().invoke(app, [*arguments, *_here(arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, f"cope-prep {shlex.join(arguments)}: {result.output}"
    return result.output


def _here(arguments: list[str]) -> list[str]:
    return ["--no-ray", "--quiet"] if arguments[0] in ("run", "reencode", "extract", "shard") else []


def run_shell(block: Block, folder: Path) -> str:
    """The lines of a shell block one by one; what they print."""
    commands = commands_of(block.text)
    printed = ""
    for command in commands:
        words = [word.replace("/data/", f"{folder}/data/") for word in shlex.split(command, comments=True)]
        is_last = command is commands[-1]
        if words[0] == "cope-prep":
            arguments = [os.path.expanduser(word) for word in words[1:]]
            assert not ENDLESS & set(arguments), f"{block.where}: `{command}` does not end soon: {SAY_WHY}"
            target = arguments[arguments.index(">") + 1] if ">" in arguments else ""
            arguments = arguments[: arguments.index(">")] if target else arguments
            code = int(block.marker.split()[1]) if block.marker.startswith("exit") and is_last else 0
            output = call(arguments, exit_code=code)
            if target:
                (folder / target).write_text(output)
            printed += output
            continue
        assert words[0] in PROGRAMS, f"{block.where}: `{words[0]}` is not run by this test: {SAY_WHY}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{block.where}: {command}: {done.stderr}"
        printed += done.stdout
    return printed


def run_python(block: Block) -> str:
    """A Python block, as a program of its own; what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, block.where, "exec"), {"__name__": "__main__"})
    return out.getvalue()


def normalized(text: str) -> str:
    """Without what differs from run to run or by machine: seconds, sizes, hashes, widths of columns."""
    text = re.sub(r"\b[\d.]+ (KiB|MiB|GiB|B)\b", r"# \1", text)
    text = re.sub(r"took \d+ s", "took # s", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "#", text)
    text = re.sub(r"\d+\.\d+", "#", text)
    return " ".join(re.sub(r"[━─┏┓┡┩└┘┳╇┴├┼┤]+", " ", text).split())


def check_shown(block: Block, printed: str) -> None:
    """Each line that a page shows is in what was printed, in that order."""
    rest = normalized(printed)
    for line in block.text.splitlines():
        wanted = normalized(line)
        assert wanted in rest, f"{block.where}: not printed: {line!r}, but:\n{printed}"
        rest = rest[rest.index(wanted) + len(wanted) :]


def check_python(block: Block) -> None:
    """It parses, and what it imports of cope_prep is there."""
    tree = ast.parse(block.text, block.where)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cope_prep"):
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert missing == [], f"{block.where}: {node.module} has no {missing}"


def read_settings(block: Block) -> object:
    read = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
    return read[block.language](block.text)


PAGES = [page for page in pages() if any(block.language in CHECKED for block in blocks_of(page))]


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, page_folder: Callable[[str], Path]) -> None:
    blocks = blocks_of(page)
    folder = page_folder(page)
    printed, waiting = "", {}
    for block in blocks:
        if block.marker == "output":
            check_shown(block, printed)
        if block.marker in ("not run", "output") or block.language not in CHECKED:
            continue
        if block.language in ("json", "toml", "yaml"):
            assert read_settings(block), f"{block.where} is empty"
        if block.file_name:
            (folder / block.file_name).write_text(block.text)
        if block.language == "bash":
            printed = run_shell(block, folder)
            waiting = {name: where for name, where in waiting.items() if name not in block.text}
        elif block.language == "python" and page not in OWN_TESTS:
            if block.takes_arguments:
                waiting[block.file_name] = block.where
            else:
                printed = run_python(block)
    assert waiting == {}, "programs that no later block of the page calls"


def test_what_is_not_run_is_checked() -> None:
    num_calls = num_programs = 0
    for block in all_blocks():
        if block.marker != "not run":
            continue
        if block.language == "bash":
            for command in commands_of(block.text):
                for arguments in calls_in(command):
                    check_call(arguments)
                    num_calls += 1
        elif block.language == "python":
            check_python(block)
            num_programs += 1
        else:
            assert read_settings(block)
    assert num_calls > 15
    assert num_programs > 0


def test_every_marker_has_a_reason_and_every_block_a_language() -> None:
    for block in all_blocks():
        assert block.language in CHECKED | SHOWN, f"{block.where}: language {block.language!r}"
        assert (block.marker == "output") <= (block.language in SHOWN), block.where
        if block.marker not in ("", "output"):
            assert len(block.reason) > 8, f"{block.where} says not why"


def test_nothing_to_type_is_outside_of_fences() -> None:
    assert [found for page in pages() for found in indented_commands(page)] == []


@pytest.mark.parametrize(("page", "test"), OWN_TESTS.items())
def test_pages_with_tests_of_their_own(page: str, test: str) -> None:
    assert f'/ "{Path(page).name}"' in (Path(__file__).parent / test).read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "./dataset", "--residuals", "dct"],
        ["runs", "./dataset"],
        ["run", "./dataset", "--limit", "ten"],
        [],
    ],
)
def test_a_command_that_does_not_exist_is_found(arguments: list[str]) -> None:
    with pytest.raises(Exception, match=r"No such option|no such command|a valid integer|names no command"):
        check_call(arguments)


def test_configurations_in_the_repository_are_named_rightly() -> None:
    text = "\n".join((ROOT / page).read_text() for page in pages())
    named = set(re.findall(r"\bconfigs/[\w.]+\.toml", text))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []

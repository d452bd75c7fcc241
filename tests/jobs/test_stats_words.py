"""What `stats` and `status` print: names that look like markup, narrow terminals, secrets, what is not known."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from rich.console import Console
from status_tables import append, make_row, write_manifest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "pipeline"))
from plain_rows import fail, plain_rows
from stats_rows import Rows, write

from cope_prep.jobs.cli import app
from cope_prep.jobs.dashboard.report_tables import all_tables, tiles
from cope_prep.jobs.stats_table import print_stats
from cope_prep.jobs.status import dataset_status
from cope_prep.jobs.status_screen import Screen
from cope_prep.jobs.status_watch import LinesView
from cope_prep.pipeline.findings import findings
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.pipeline.stats_records import DatasetStats


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def finish(rows: Rows) -> DatasetStats:
    """The statistics, as the command makes them: with spec.json beside each output."""
    write(rows)
    for stage in ("reencode", "extract", "shards"):
        rows.layout.write_spec(stage)
    return dataset_stats(rows.layout)


def printed(found: DatasetStats, *, width: int = 100) -> str:
    output = io.StringIO()
    print_stats(found, Console(file=output, width=width))
    return output.getvalue()


MARKUP = "mk [x] [/red] [bold]"


def test_names_like_markup_are_printed_as_they_are(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path / MARKUP)
    fail(0, error="[red]Error[/b]")(rows)
    for row in rows.manifest[:60]:
        row["subset"] = "[/i] sub"
    for row in rows.questions[:5]:
        row["kind"] = "[/b] kind"
    finish(rows)
    result = invoke("stats", rows.layout.dataset)
    assert result.exit_code == 0
    for text in (MARKUP, "[red]Error[/b]", "[/i] sub", "[/b] kind"):
        assert text in result.stdout


def test_status_prints_names_like_markup_as_they_are(tmp_path: Path) -> None:
    layout = Layout(dataset=str(tmp_path / MARKUP), specs=Specs())
    write_manifest(layout, {"a": 100, "b": 100})
    begun = invoke("status", layout.dataset)
    assert begun.exit_code == 0
    assert f"cope-prep run {layout.dataset}" in begun.stdout
    bad = make_row(
        layout, "reencode", "a", status="failed", error_class="[/b]Error", error_message="[/i] bad"
    )
    append(layout, "reencode", bad)
    result = invoke("status", layout.dataset)
    assert result.exit_code == 0
    for text in (layout.dataset, "[/b]Error", "[/i] bad"):
        assert text in result.stdout


@pytest.mark.parametrize("width", [30, 45, 60, 79])
def test_narrow_terminal_loses_nothing(tmp_path: Path, width: int) -> None:
    rows = plain_rows(tmp_path)
    fail(0)(rows)
    found = finish(rows)
    text = printed(found, width=width)
    assert "…" not in text
    whole = " ".join(text.replace("│", " ").split())
    for group in found.subsets:
        assert f"{group.subset}" in text
    numbers = ("Listed 40", "Sharded 40") if width < 70 else ()  # else the table fits
    for shown in (*numbers, "CorruptVideoError", "reencode"):
        assert shown in whole
    first = [line for line in text.splitlines()[2:] if line[:1] in "┏┃┡│├└"]
    assert all(len(line) <= width for line in first)


def test_wide_terminal_has_tables(tmp_path: Path) -> None:
    text = printed(finish(plain_rows(tmp_path)), width=100)
    assert "│ slides" in text
    assert "Listed 40" not in text


def test_share_of_what_is_known_stands_beside_a_ratio(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    for number in range(90):
        rows.manifest[number]["size_bytes"] = 0
        key = ("reencode", f"{number:03d}.mp4")
        rows.ledger[key] = dataclasses.replace(rows.ledger[key], source_size_bytes=0)
    found = finish(rows)
    text = printed(found)
    assert "0.089 × (25 %)" in text
    assert "In brackets: the share of the videos" in text
    assert "0.089 × (25 %)" in all_tables(found)["sizes"].rows[-1]
    assert "In brackets" in all_tables(found)["sizes"].note
    for row in rows.manifest:
        row["size_bytes"] = 2_000_000
    whole = finish(
        dataclasses.replace(rows, layout=Layout(dataset=str(tmp_path / "b"), specs=rows.layout.specs))
    )
    assert "0.356 ×" in printed(whole)  # the re-encoded files: all of them
    assert "%)" not in all_tables(whole)["sizes"].rows[-1]


def test_larger_than_those_that_are_known_says_of_how_many(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    for number in range(120):
        size_bytes = 1000 if number < 30 else 0
        rows.manifest[number]["size_bytes"] = size_bytes
        key = ("reencode", f"{number:03d}.mp4")
        rows.ledger[key] = dataclasses.replace(rows.ledger[key], source_size_bytes=size_bytes)
    texts = {finding.rule: finding.text for finding in findings(finish(rows))}
    assert "the source files (of 30 of 120 videos that is known)" in texts["larger-than-source"]


def test_more_videos_in_the_shards_than_listed(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    del rows.manifest[10:]
    found = finish(rows)
    assert "120 videos in the shards, 10 listed" in printed(found)
    assert tiles(found, findings(found))[0].detail == "10 listed"


def test_subset_called_as_all_of_them_is_told_apart(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    names = {"films": "all", "slides": "", "sports": "(none)"}
    for row in (*rows.manifest, *rows.gops):
        row["subset"] = names[row["subset"]]
    found = finish(rows)
    labels = [row[0] for row in all_tables(found)["counts"].rows]
    assert labels == ["(none)", '"(none)"', '"all"', "all"]
    lines = printed(found).splitlines()
    for label in labels:
        assert any(line.startswith(f"│ {label} ") for line in lines), label


def test_windows_without_a_vector_are_counted(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    for row in rows.gops[:12]:
        row["intra_share"][3] = 1.0
    found = finish(rows)
    assert "No vector" in printed(found)
    assert all_tables(found)["clipped"].rows[-1][-2:] == ("12", "0.71%")


def test_failure_in_two_stages_counts_once(tmp_path: Path) -> None:
    """Were the extract rows of an earlier re-encoding counted, these 10 would be 20 failures."""
    rows = plain_rows(tmp_path)
    extracted = {key: row for key, row in rows.ledger.items() if key[0] == "extract"}
    fail(*range(10), error="TimeLimitError")(rows)
    for number in range(10):
        key = ("extract", f"{number:03d}.mp4")
        rows.ledger[key] = dataclasses.replace(
            extracted[key], status="failed", output_uri="", error_class="TimeLimitError"
        )
    texts = {finding.rule: finding.text for finding in findings(finish(rows))}
    assert "(10 of 10)" in texts["one-cause"]
    assert "TimeLimitError 10" in texts["try-again"]


SECRET = "hunter2"


@pytest.fixture
def secret_dataset(tmp_path: Path) -> Iterator[str]:
    """In a store whose URL has a password; messages of its ledger quote it."""
    url = f"memory://user:{SECRET}@{tmp_path.name}/dataset"
    layout = Layout(dataset=url, specs=Specs())
    write_manifest(layout, {"a": 100, "b": 100})
    append(
        layout,
        "reencode",
        make_row(
            layout,
            "reencode",
            "a",
            status="failed",
            error_class="StorageError",
            error_message=f"{url}/a.mp4: cannot be read",
        ),
    )
    yield url
    fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.mark.parametrize("flags", [["stats"], ["stats", "--json"], ["status"], ["status", "--json"]])
def test_no_secret_is_printed(secret_dataset: str, flags: list[str]) -> None:
    result = invoke(flags[0], secret_dataset, *flags[1:])
    assert result.exit_code == 0
    assert "cannot be read" in " ".join(result.stdout.split())
    assert "***@" in result.stdout
    assert SECRET not in result.stdout + result.stderr


@pytest.mark.parametrize("flags", [["stats"], ["stats", "--json"], ["status"], ["status", "--json"]])
def test_no_secret_is_in_an_error(flags: list[str]) -> None:
    result = invoke(flags[0], f"memory://user:{SECRET}@nothing/there", *flags[1:])
    assert result.exit_code == 2
    assert "***@nothing/there" in result.stderr
    assert SECRET not in result.stdout + result.stderr


def test_no_secret_is_in_the_names_of_files_written(secret_dataset: str) -> None:
    result = invoke("stats", secret_dataset, "--csv", f"{secret_dataset}/tables")
    assert result.exit_code == 0
    assert "groups.csv" in result.stderr
    assert SECRET not in result.stdout + result.stderr


@pytest.mark.parametrize("make", [lambda url: Screen(url, every_s=2.0), None])
def test_no_secret_is_shown_by_the_watcher(secret_dataset: str, make: Callable[[str], Screen] | None) -> None:
    output = io.StringIO()
    console = Console(file=output, width=120, height=40)
    status = dataset_status(secret_dataset)
    if make is None:
        LinesView(console).show(status, "")
        LinesView(console).end(status)
    else:
        screen = make(status.dataset)
        screen.status = status
        console.print(screen)
    assert "failed" in output.getvalue()
    assert SECRET not in output.getvalue()


def test_sheets_without_a_report_are_wrong_usage(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    finish(rows)
    result = invoke("stats", rows.layout.dataset, "--sheets", "3", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["class"] == "ConfigurationError"
    assert "--html" in result.stderr


def test_before_the_index_the_note_starts_no_other_run(tmp_path: Path) -> None:
    """Without the flags of the run a command would begin another spec."""
    rows = plain_rows(tmp_path)
    write(rows, "index")
    for stage in ("reencode", "extract"):
        rows.layout.write_spec(stage)
    (note,) = [note for note in dataset_stats(rows.layout).notes if "no index yet" in note]
    assert "the same cope-prep run" in note
    assert rows.layout.dataset not in note

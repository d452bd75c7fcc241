"""--max-failures stops a run that fails everywhere; --retry-failed tries again what was named, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from failing_videos import ledger_rows, run, write_dataset
from rich.console import Console
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.jobs.failure_limit import FailureCount, FailureLimit, TooManyFailures, parse_failure_limit
from cope_prep.jobs.failure_options import spelled_out
from cope_prep.jobs.report import Outlet, end_stages
from cope_prep.jobs.stage import run_items
from cope_prep.schemas.errors import ConfigurationError

MIXED = {
    "a": "good",
    "corrupt": "CorruptVideoError",
    "none": "NotAVideoError",
    "store": "StorageError",
    "lost": "WorkerLostError",
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A StorageError waits for no store here, which takes a minute."""
    defaults = run_items.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "pauses_s", (0.01, 0.01))


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_run_stops_after_too_many_failures_and_goes_on_later(tmp_path: Path) -> None:
    contents = {f"{index:02d}": "CorruptVideoError" for index in range(9)}
    layout = write_dataset(tmp_path, contents)
    summary = run(layout, max_failures=FailureLimit(number=3))
    assert (summary.num_run, summary.num_failed) == (4, 4)
    assert summary.stopped.startswith("reencode was stopped: 4 of 4 failed, and --max-failures is 3.")
    assert "4 of them: CorruptVideoError" in summary.stopped
    assert len(ledger_rows(layout)) == 4
    rest = run(layout, max_failures=FailureLimit(number=5))
    assert (rest.num_run, rest.num_failed, rest.stopped) == (5, 9, "")


def test_allowed_failures_stop_nothing(tmp_path: Path) -> None:
    summary = run(write_dataset(tmp_path, MIXED), max_failures=FailureLimit(number=4))
    assert (summary.num_run, summary.num_failed, summary.stopped) == (5, 4, "")


def stops_at(limit: FailureLimit, ends: str) -> int | None:
    """After how many ends it stops; `x` is a failure."""
    count = FailureCount("reencode", limit)
    for number, end in enumerate(ends, start=1):
        count.add("StorageError" if end == "x" else "")
        try:
            count.check()
        except TooManyFailures:
            return number
    return None


def test_percentage_counts_from_fifty_videos_on() -> None:
    assert stops_at(FailureLimit(share=0.1), "x" * 200) == 50
    assert stops_at(FailureLimit(share=0.1), ("x" + "." * 9) * 20) == 51  # 6 of 51
    assert stops_at(FailureLimit(share=0.1), ("." * 9 + "x") * 20) is None
    assert stops_at(FailureLimit(number=0), "..x") == 3


@pytest.mark.parametrize("text", ["", "x", "-1", "5 %%", "101%", "1.5", "nan%", "٣"])
def test_wrong_limit_fails(text: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"is neither a number nor a percentage\. For instance 100 or 5%"
    ):
        parse_failure_limit(text)


def test_limits_are_read() -> None:
    assert parse_failure_limit(None) is None
    assert parse_failure_limit("12") == FailureLimit(number=12)
    assert parse_failure_limit(" 2.5% ") == FailureLimit(share=0.025)


def test_next_run_tries_failures_of_the_infrastructure_again(tmp_path: Path) -> None:
    layout = write_dataset(tmp_path, MIXED)
    assert run(layout).num_run == 5
    before = ledger_rows(layout)
    assert run(layout).num_run == 2
    after = ledger_rows(layout)
    changed = {name for name in MIXED if after[name].finished_unix_s != before[name].finished_unix_s}
    assert changed == {"store", "lost"}


def test_odd_reply_fails_its_video_alone(tmp_path: Path) -> None:
    layout = write_dataset(tmp_path, {"odd": "odd", "good": "good", "best": "best"})
    summary = run(layout)
    assert (summary.num_ok, summary.num_failed) == (2, 1)
    row = ledger_rows(layout)["odd"]
    assert row.status == "failed"
    assert "bug in cope-prep" in row.error_message


def test_only_failures_of_the_named_classes_are_tried_again(tmp_path: Path) -> None:
    layout = write_dataset(tmp_path, MIXED | {"store": "good", "lost": "good"})
    run(layout)
    before = ledger_rows(layout)
    assert run(layout, retry_failed=True, retry_classes=frozenset({"NotAVideoError"})).num_run == 1
    after = ledger_rows(layout)
    assert after["none"].finished_unix_s > before["none"].finished_unix_s
    assert after["corrupt"] == before["corrupt"]
    assert run(layout, retry_failed=True).num_run == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("run --retry-failed ./dataset", "run --retry-failed=all ./dataset"),
        ("run --retry-failed TimeLimitError ./dataset", "run --retry-failed=TimeLimitError ./dataset"),
        ("run ./dataset --retry-failed", "run ./dataset --retry-failed=all"),
        ("run ./dataset --retry-failed --json", "run ./dataset --retry-failed=all --json"),
        ("run d --retry-failed A.Error", "run d --retry-failed=all A.Error"),
        ("run d --retry-failed StorageError,KeyError", "run d --retry-failed=StorageError,KeyError"),
        ("run d --retry-failed=KeyError --retry-failed=X", "run d --retry-failed=KeyError --retry-failed=X"),
        ("run -- --retry-failed", "run -- --retry-failed"),
        ("run --retry-failed all ./dataset", "run --retry-failed=all ./dataset"),
    ],
)
def test_retry_failed_has_a_value_or_none(given: str, expected: str) -> None:
    assert list(spelled_out(given.split())) == expected.split()


@pytest.fixture
def bad_dataset(tmp_path: Path) -> str:
    """Two files that are no videos, after a run."""
    (tmp_path / "clips").mkdir()
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / "clips" / name).write_text("text")
    dataset = str(tmp_path / "dataset")
    assert invoke("manifest", "files", str(tmp_path / "clips"), dataset).exit_code == 0
    assert invoke("reencode", dataset, "--no-ray", "--quiet").exit_code == 1
    return dataset


def num_run(dataset: str, *flags: str) -> int:
    result = invoke("reencode", *flags, dataset, "--no-ray", "--quiet", "--json")
    assert result.exit_code == 1, result.stderr
    return json.loads(result.stdout)["stages"][0]["num_run"]


def test_command_takes_the_flag_before_the_dataset(bad_dataset: str) -> None:
    assert num_run(bad_dataset) == 0
    assert num_run(bad_dataset, "--retry-failed") == 2
    assert num_run(bad_dataset, "--retry-failed", "NotAVideoError") == 2
    assert num_run(bad_dataset, "--retry-failed", "StorageError, NotAVideoError") == 2
    assert num_run(bad_dataset, "--retry-failed=TimeLimitError") == 0
    assert num_run(bad_dataset, "--retry-failed", "TimeLimitError,NotAVideoError") == 2


def test_unknown_class_names_those_of_the_ledger(bad_dataset: str) -> None:
    result = invoke("reencode", bad_dataset, "--no-ray", "--retry-failed=Nonsense")
    assert result.exit_code == 2
    assert "--retry-failed=Nonsense: no such error class" in result.stderr
    assert "NotAVideoError" in result.stderr


def test_run_that_was_stopped_ends_with_1_and_makes_no_later_stage(bad_dataset: str) -> None:
    result = invoke(
        "run", bad_dataset, "--no-ray", "--quiet", "--retry-failed", "--max-failures", "0", "--json"
    )
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["stopped"].startswith("reencode was stopped: 1 of 1 failed")
    assert [stage["stage"] for stage in document["stages"]] == ["reencode"]
    assert document["stages"][0]["num_run"] == 1
    assert "cope-prep: reencode was stopped" in result.stderr
    assert not (Path(bad_dataset) / "shards").exists()


def test_failed_shards_are_tried_again_by_the_same_command(media: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    media.write_clip(tmp_path / "videos" / "a.mp4", num_frames=24, size_px=(96, 64), painter=media.moving)
    dataset = str(tmp_path / "dataset")
    assert invoke("manifest", "files", str(tmp_path / "videos"), dataset).exit_code == 0
    assert invoke("reencode", dataset, "--no-ray", "--quiet", "--size", "96x64").exit_code == 0
    assert invoke("extract", dataset, "--no-ray", "--quiet").exit_code == 0
    (samples,) = Path(dataset, "extract").rglob("*.tar")
    content = samples.read_bytes()
    samples.write_bytes(b"\xff" * 512 + content[512:])
    failed = invoke("shard", dataset, "--no-ray", "--quiet", "--max-failures", "0")
    assert failed.exit_code == 1
    assert "--retry-failed" not in failed.stderr
    assert "1 shards failed: the same command, given again, tries them again." in failed.stderr
    assert invoke("shard", dataset, "--no-ray", "--retry-failed").exit_code == 2, "it has no such flag"
    samples.write_bytes(content)
    assert invoke("shard", dataset, "--no-ray", "--quiet").exit_code == 0


def test_failed_ok_ends_with_0_and_lists_the_failures(bad_dataset: str) -> None:
    for command in ("reencode", "extract", "run"):
        result = invoke(command, bad_dataset, "--no-ray", "--quiet", "--json", "--failed-ok")
        assert result.exit_code == 0, result.stderr
    stages = {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}
    assert [failure["video_id"] for failure in stages["reencode"]["failures"]] == ["one.mp4", "two.mp4"]
    assert "2 failed" in result.stderr


def test_failed_ok_is_for_no_other_failure(bad_dataset: str, tmp_path: Path) -> None:
    flags = ("--no-ray", "--quiet", "--retry-failed", "--max-failures", "0", "--failed-ok")
    assert invoke("run", bad_dataset, *flags).exit_code == 1
    out = Outlet(console=Console(file=io.StringIO()), json_output=True)
    for name in ("CorruptVideoError", "WorkerLostError"):
        summary = run(write_dataset(tmp_path / name, {"a": "good", "bad": name}))
        ends = functools.partial(end_stages, out, command="reencode", dataset="x", summaries=[summary])
        with pytest.raises(typer.Exit) as ended:
            ends(failed_ok=False)
        assert ended.value.exit_code == 1
        # The next run would try again what a node failed, and only that.
        with pytest.raises(typer.Exit) if name == "WorkerLostError" else contextlib.nullcontext():
            ends(failed_ok=True)

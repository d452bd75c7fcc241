"""`cope-prep stats --html` on a dataset of generated clips: one file with all that is known, and no network."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import io
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pytest
from PIL import Image
from report_page import Page
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.jobs.dashboard.html_report import render_report
from cope_prep.jobs.dashboard.report_sheets import Sheet
from cope_prep.pipeline import storage
from cope_prep.pipeline.findings import findings
from cope_prep.pipeline.layout import Layout, Specs, the_specs
from cope_prep.pipeline.stats import dataset_stats
from cope_prep.schemas.arrow import MANIFEST

FAST = ["--size", "64x64", "--gop-size", "61", "--preset", "ultrafast", "--no-ray", "--quiet"]
SECTIONS = (
    "headline",
    "look",
    "counts",
    "failures",
    "sizes",
    "distributions",
    "sources",
    "tokens",
    "questions",
    "outliers",
    "specs",
)
EVIL = "<script>alert(1)</script>.mp4"
"""A video's id: a file script>.mp4 in a folder of a telling name."""
NOW = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def finished(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of three clips, one of them with a bad name, and of a file that is none. Not to be changed."""
    clips = tmp_path_factory.mktemp("clips")
    for name, num_frames in (("clip0.mp4", 70), ("clip1.mp4", 100), (EVIL, 64)):
        path = clips / name
        path.parent.mkdir(exist_ok=True)
        media.write_clip(path, num_frames=num_frames)
    (clips / "<img src=x onerror=alert(2)>.mp4").write_bytes(b"this is text")
    dataset = str(tmp_path_factory.mktemp("finished") / "dataset")
    assert invoke("manifest", "files", str(clips), dataset).exit_code == 0
    assert invoke("run", dataset, *FAST).exit_code == 1  # the file of text
    return dataset


@pytest.fixture
def dataset(finished: str, tmp_path: Path) -> str:
    """A copy of it, to damage."""
    return str(shutil.copytree(finished, tmp_path / "dataset"))


@pytest.fixture(scope="module")
def report(finished: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("report") / "report.html"
    result = invoke("stats", finished, "--html", str(file))
    assert result.exit_code == 0
    assert "sheets: 3/3" in result.stderr
    assert str(file) in result.stderr
    return file.read_text(encoding="utf-8")


def make_report(dataset: str, file: Path, *arguments: str) -> Page:
    result = invoke("stats", dataset, "--html", str(file), *arguments)
    assert result.exit_code == 0, result.stderr
    return Page(file.read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_anywhere(report: str) -> None:
    page = Page(report)
    assert len(page.links) > 10
    outside = [link for link in page.links if not link[2].startswith(("data:", "#"))]
    assert outside == []
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    assert "default-src 'none'" in report  # and the browser is told to load nothing
    own = page.scripts[-1][1]
    assert "Plotly.newPlot" in own
    assert not any(word in own for word in ("fetch(", "XMLHttpRequest", "import(", "http:", "https:"))


def test_every_section_is_there_in_order(report: str) -> None:
    page = Page(report)
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    linked = {value for tag, _, value in page.links if tag == "a"}
    assert {f"#{name}" for name in SECTIONS if name != "headline"} <= linked


def test_the_figures_are_those_of_the_statistics(finished: str, report: str) -> None:
    stats = dataset_stats(Layout(dataset=finished, specs=the_specs(finished, "shards")))
    words = Page(report).words.replace("\xa0", " ")
    for finding in findings(stats):
        assert finding.text in words
        assert finding.advice in words
    assert f"{stats.total.num_windows:,}" in words
    for stage, hashed in stats.spec_hashes.items():
        assert f"{stage} {hashed}" in words.replace("\n", " ")
    assert '"gop_size": 61' in words
    for failure in stats.failures:
        assert failure.error_class in words
        assert failure.example_message in words
    for figure in stats.outliers.values():
        assert all(outlier.video_id in words for outlier in figure)
    assert "cope-prep 0." in words
    assert "schema version" in words


def test_charts_are_complete_json(report: str) -> None:
    charts = {
        attrs["data-for"]: json.loads(text)
        for attrs, text in Page(report).scripts
        if attrs.get("type") == "application/json"
    }
    assert len(charts) == 16
    assert set(charts) <= set(Page(report).ids)
    assert all(chart["data"] or chart["layout"]["annotations"] for chart in charts.values())
    assert len(charts["distribution-motion_mean_px"]["data"][0]["y"]) > 5


def test_ids_and_messages_are_escaped(report: str) -> None:
    page = Page(report)
    assert EVIL in page.words
    assert "onerror=alert(2)" in page.words
    assert len([text for attrs, text in page.scripts if "type" not in attrs]) == 2  # plotly's and ours
    assert not any("alert(" in text for _, text in page.scripts[-1:])
    assert not any(tag == "img" and value == "x" for tag, _, value in page.links)


def test_sheets_are_pictures_of_the_first_outliers(report: str) -> None:
    images = [image for image in Page(report).images if image]
    assert len(images) == 3  # each video once
    for image in images:
        kind, _, text = image.partition(",")
        assert kind == "data:image/webp;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(text)))
        picture.load()
        assert picture.width > 900
    assert len(report) < 7_000_000


def test_the_number_of_sheets_is_a_choice(finished: str, tmp_path: Path) -> None:
    assert make_report(finished, tmp_path / "none.html", "--sheets", "0").images == []
    assert 1 <= len(make_report(finished, tmp_path / "one.html", "--sheets", "1").images) <= 3


def test_json_has_the_findings_and_stays_one_object(finished: str, tmp_path: Path) -> None:
    result = invoke("stats", finished, "--json", "--html", str(tmp_path / "report.html"), "--sheets", "1")
    document = json.loads(result.stdout)
    assert {finding["rule"] for finding in document["findings"]} >= {"failures", "tokens"}
    assert (tmp_path / "report.html").exists()
    table = invoke("stats", finished).stdout
    assert "What to look at" in table
    assert "25.0 % of the videos (1 of 4) failed." in table


def test_samples_that_cannot_be_read_are_no_sheets(dataset: str, tmp_path: Path) -> None:
    (shard,) = Path(dataset).glob("shards/*/shard-*.tar")
    content = bytearray(shard.read_bytes())
    content[1024 : len(content) // 2] = bytes(len(content) // 2 - 1024)
    shard.write_bytes(content)
    damaged = make_report(dataset, tmp_path / "damaged.html")
    assert "No sheet: " in damaged.words
    shard.unlink()
    gone = make_report(dataset, tmp_path / "gone.html")
    assert gone.images == []
    assert gone.words.count("No sheet: ") == 3
    assert f"{shard.name}: no such file" in gone.words
    assert [name for name in gone.ids if name in SECTIONS] == list(SECTIONS)


def test_without_html_no_shard_is_opened(dataset: str) -> None:
    for shard in Path(dataset).glob("shards/*/shard-*.tar"):
        shard.unlink()
    assert invoke("stats", dataset).exit_code == 0


def test_reencoded_files_may_be_gone(dataset: str, tmp_path: Path) -> None:
    for path in Path(dataset).glob("reencode/*/*.mp4"):
        path.unlink()
    assert len(make_report(dataset, tmp_path / "report.html").images) == 3


def test_in_the_middle_of_a_run_the_report_says_so(dataset: str, tmp_path: Path) -> None:
    shutil.rmtree(Path(dataset, "shards"))
    page = make_report(dataset, tmp_path / "report.html")
    for text in (
        "There is no index yet",
        "No sample is in the shards yet.",
        "NotAVideoError",
        "none in shards",
    ):
        assert text in page.words
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)


def test_missing_ledgers_are_said(dataset: str, tmp_path: Path) -> None:
    for folder in Path(dataset).glob("*/*/ledger"):
        shutil.rmtree(folder)
    page = make_report(dataset, tmp_path / "report.html")
    assert "There is no ledger of reencode and extract" in page.words
    assert "Nothing is known of the sources" in page_json(tmp_path / "report.html")


def page_json(file: Path) -> str:
    scripts = Page(file.read_text(encoding="utf-8")).scripts
    return "".join(text for attrs, text in scripts if attrs.get("type") == "application/json")


def test_an_empty_dataset_is_a_report(tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    storage.publish_table(f"{dataset}/manifest.parquet", MANIFEST.empty_table())
    page = make_report(dataset, tmp_path / "report.html")
    assert "manifest.parquet lists no video." in page.words
    assert "There is nothing to look at yet" in page.words


def test_no_credential_is_shown(finished: str) -> None:
    layout = Layout(dataset=finished, specs=the_specs(finished, "shards"))
    stats = dataset_stats(layout)
    url = "s3://AKIAKEY:hidden0@bucket/films"
    signed = "https://host/clip.mp4?X-Amz-Signature=hidden1&X-Amz-Credential=hidden2"
    changed = dataclasses.replace(
        stats,
        dataset=url,
        notes=(f"It comes at the end of: cope-prep run {url}",),
        failures=tuple(
            dataclasses.replace(one, example_message=f"{signed}: no answer") for one in stats.failures
        ),
    )
    sheet = Sheet(video_id="a", gop_index=0, figures=("bytes_per_s",), image=None, reason=f"{signed}: 403")
    text = render_report(layout, changed, [sheet], now=NOW)
    for secret in ("AKIAKEY", "hidden0", "hidden1", "hidden2"):
        assert secret not in text
    assert "It comes at the end of: cope-prep run s3://***@bucket/films" in text
    assert "no answer" in text
    assert "2026-01-02 03:04 UTC" in text


def test_the_file_may_be_remote(finished: str, tmp_path: Path) -> None:
    uri = f"memory://{tmp_path.name}/report.html"
    try:
        assert invoke("stats", finished, "--html", uri, "--sheets", "0").exit_code == 0
        with fsspec.open(uri, "rt", encoding="utf-8") as file:
            assert "What to look at" in file.read()
    finally:
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


@pytest.mark.parametrize(
    ("target", "exit_code", "message"),
    [
        ("", 2, "is a folder"),
        ("file/report.html", 1, "cannot be made"),
        ("nosuch://x/r.html", 2, "kind of URL"),
    ],
)
def test_a_target_that_cannot_be_written_is_one_message(
    target: str, exit_code: int, message: str, finished: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    uri = target if "://" in target else str(tmp_path / target)
    result = invoke("stats", finished, "--html", uri, "--sheets", "0", "--quiet")
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("package", ["plotly", "jinja2"])
def test_missing_packages_are_said_before_any_work(
    package: str, finished: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = invoke("stats", finished, "--html", str(tmp_path / "report.html"))
    assert result.exit_code == 2
    assert f"needs {package}" in result.stderr
    assert "pip install 'cope-prep[dashboard]'" in result.stderr


def test_of_very_many_subsets_the_largest_are_listed(finished: str) -> None:
    layout = Layout(dataset=finished, specs=the_specs(finished, "shards"))
    stats = dataset_stats(layout)
    many = tuple(
        dataclasses.replace(stats.total, subset=f"subset-{number:04d}", num_listed=number)
        for number in range(1, 1001)
    )
    words = Page(render_report(layout, dataclasses.replace(stats, subsets=many), now=NOW)).words
    assert "800 smaller subsets are left out; --csv has them." in words
    assert "subset-0801" in words
    assert "subset-0800" not in words


def test_specs_of_another_dataset_do_not_matter(finished: str) -> None:
    layout = Layout(dataset=finished, specs=Specs())  # nothing has been made with these
    page = Page(render_report(layout, dataset_stats(layout), now=NOW))
    assert "There is no index yet" in page.words


def test_no_name_is_refused_before_any_work(finished: str) -> None:
    result = invoke("stats", finished, "--html", "")
    assert result.exit_code == 2
    assert "names no file" in result.stderr

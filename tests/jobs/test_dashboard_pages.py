"""Pages of the dashboard without a browser: what they say of datasets that are not as they should be.

Streamlit's AppTest runs a page's script in this process, so that a dataset in memory is a remote one.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from cope_prep.jobs.dashboard.opened import Arguments
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger
from cope_prep.schemas.arrow import LEDGER, MANIFEST, QUESTIONS
from cope_prep.schemas.specs import SCHEMA_VERSION, EncodeSpec

testing = pytest.importorskip("streamlit.testing.v1")
sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
import stats_rows  # noqa: E402

PAGES = ("overview", "progress", "explore", "mix")


def script(name: str, arguments: str) -> None:
    """What AppTest runs: a page as the app draws it."""
    from cope_prep.jobs.dashboard import app
    from cope_prep.jobs.dashboard.opened import Arguments

    app.run_page(name, Arguments.from_json(arguments))


def run_page(name: str, dataset: str, **given: Any) -> Any:
    """The page after its first run."""
    arguments = Arguments(dataset=dataset, **given).to_json()
    page = testing.AppTest.from_function(script, default_timeout=120, args=(name, arguments)).run()
    assert not page.exception
    return page


def text_of(page: Any) -> str:
    """All text of a page, without the escapes of Markdown."""
    kinds = (page.error, page.info, page.warning, page.markdown, page.caption)
    return "\n".join(element.value for elements in kinds for element in elements).replace("\\", "")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> stats_rows.Rows:
    """Tables of 60 videos, without any shard."""
    layout = Layout(dataset=str(tmp_path_factory.mktemp("pages") / "dataset"), specs=Specs())
    made = stats_rows.make_rows(layout)
    stats_rows.write(made)
    for stage in ("reencode", "extract", "shards"):
        layout.write_spec(stage)
    return made


@pytest.fixture
def copied(rows: stats_rows.Rows, tmp_path: Path) -> Layout:
    """Other tables of the same content, to damage."""
    shutil.copytree(rows.layout.dataset, tmp_path / "dataset")
    return Layout(dataset=str(tmp_path / "dataset"), specs=rows.layout.specs)


@pytest.fixture
def remote(rows: stats_rows.Rows) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(rows.layout.dataset + "/", "/pages-remote", recursive=True)
    yield "memory://pages-remote"
    memory.rm("/pages-remote", recursive=True)


def test_overview_of_a_remote_dataset(remote: str, rows: stats_rows.Rows) -> None:
    page = run_page("overview", remote)
    values = {metric.label: metric.value for metric in page.metric}
    assert values["Videos"] == str(len(rows.manifest))
    assert values["GOPs"] == str(len(rows.gops))
    assert not page.error
    subsets = next(frame.value for frame in page.dataframe if "Subset" in frame.value)
    assert subsets["Listed"].tolist() == [60, 20, 20, 20]


def test_explore_of_a_remote_dataset(remote: str, rows: stats_rows.Rows) -> None:
    page = run_page("explore", remote)
    assert f"**{len(rows.manifest)}** videos, 1 to 50 shown" in text_of(page)
    page.text_input(key="filter-video_id").set_value("clips/00").run()
    assert "**10** of 60 videos, 1 to 10 shown" in text_of(page)
    page.text_input(key="filter-video_id").set_value("' OR 1=1 --").run()
    assert "**0** of 60 videos" in text_of(page)
    assert "No video matches" in text_of(page)


def test_progress_of_a_remote_dataset(remote: str) -> None:
    page = run_page("progress", remote)
    assert "of 60 tried" in str([bar.text for bar in page.get("progress")]) + text_of(page)
    assert "0 shards so far" in text_of(page)  # their spec is there, and nothing else
    assert not page.error


def empty(layout: Layout) -> None:
    shutil.rmtree(layout.dataset)
    Path(layout.dataset).mkdir()


def without_index(layout: Layout) -> None:
    shutil.rmtree(layout.folder("shards"))


def without_ledgers(layout: Layout) -> None:
    for stage in ("reencode", "extract"):
        shutil.rmtree(layout.ledger(stage))


def without_manifest(layout: Layout) -> None:
    storage.remove(layout.manifest)


def damaged_index(layout: Layout) -> None:
    Path(layout.index).write_bytes(b"PAR1 no more")


def damaged_spec(layout: Layout) -> None:
    Path(layout.folder("shards"), "spec.json").write_text("{")


def damaged_dataset_json(layout: Layout) -> None:
    Path(layout.dataset_json).write_text("{")


def newer_manifest(layout: Layout) -> None:
    table = storage.read_table(layout.manifest, MANIFEST)
    version = {"cope_prep.schema_version": str(SCHEMA_VERSION + 1)}
    storage.publish_table(layout.manifest, table.replace_schema_metadata(version))


def numberless_questions(layout: Layout) -> None:
    without_index(layout)
    table = storage.read_table(layout.questions, QUESTIONS)
    storage.publish_table(
        layout.questions, table.replace_schema_metadata({"cope_prep.schema_version": "one"})
    )


def older_index(layout: Layout) -> None:
    with storage.open_read(layout.index) as file:
        table = pa.parquet.read_table(file).drop_columns(["clipped_residuals"])
    storage.publish_table(layout.index, table)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (empty, {"overview": "is no dataset", "progress": "has no manifest", "explore": "is no dataset"}),
        (
            without_index,
            {
                "overview": "There is no index yet",
                "progress": "there are no shards yet",
                "mix": "not known yet",
            },
        ),
        (without_ledgers, {"overview": "There is no ledger of", "progress": "No ledger", "explore": "60"}),
        (without_manifest, {"overview": "manifest.parquet is missing", "progress": "has no manifest"}),
        (damaged_index, dict.fromkeys(("overview", "explore"), "is not a readable Parquet table")),
        (damaged_dataset_json, {"progress": "dataset.json: is malformed"}),
        (damaged_spec, dict.fromkeys(PAGES, "does not hold valid specs")),
        (newer_manifest, dict.fromkeys(("overview", "progress", "explore"), "Update cope-prep")),
        (numberless_questions, {"mix": "is not a readable Parquet table"}),
        (older_index, dict.fromkeys(("overview", "explore"), "clipped_residuals")),
    ],
)
def test_what_is_wrong_is_said(
    copied: Layout, damage: Callable[[Layout], None], said: dict[str, str]
) -> None:
    damage(copied)
    for name, text in said.items():
        assert text in text_of(run_page(name, copied.dataset)), name


def test_a_ledger_of_an_older_version_will_do(copied: Layout, rows: stats_rows.Rows) -> None:
    folder = copied.ledger("reencode")
    for name in storage.list_files(folder):
        storage.remove(storage.join(folder, name))
    Ledger(folder).append(
        [dataclasses.replace(row) for (stage, _), row in rows.ledger.items() if stage == "reencode"]
    )
    (name,) = storage.list_files(folder)
    nullable = [field.name for field in LEDGER if field.nullable]
    table = storage.read_table(storage.join(folder, name), LEDGER).drop_columns(nullable)
    storage.publish_table(storage.join(folder, name), table)
    for page in ("overview", "progress", "explore"):
        assert not run_page(page, copied.dataset).error
    assert len(nullable) > 4


@pytest.mark.parametrize("name", PAGES)
def test_an_unreachable_store_is_said_without_credentials(name: str) -> None:
    said = text_of(run_page(name, "http://KEY:SECRET@127.0.0.1:9/dataset"))
    assert "127.0.0.1:9" in said
    assert "SECRET" not in said


def test_a_failure_that_is_not_ours_shows_no_more_than_its_class(
    rows: stats_rows.Rows, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from cope_prep.jobs.dashboard import page_overview

    def fail(*_: object) -> None:
        raise RuntimeError("SECRET path")

    monkeypatch.setattr(page_overview, "_headline", fail)
    said = text_of(run_page("overview", rows.layout.dataset))
    assert "RuntimeError" in said
    assert "SECRET" not in said
    assert "SECRET path" in caplog.text


def test_several_specs_can_be_chosen(copied: Layout) -> None:
    other = Layout(dataset=copied.dataset, specs=Specs(encode=EncodeSpec(width_px=64, height_px=64)))
    other.write_spec("reencode")
    page = run_page("overview", copied.dataset)
    (choice,) = page.sidebar.selectbox
    assert len(choice.options) == 2
    assert "reencode only" in choice.options[1]
    choice.select_index(1).run()
    assert not page.exception
    assert "There is no index yet" in text_of(page)
    named = run_page("overview", copied.dataset, spec=other.specs.hash_of("reencode")[:6])
    assert "There is no index yet" in text_of(named)
    assert "names 0 sets of specs" in text_of(run_page("overview", copied.dataset, spec="nothing"))


def test_markdown_in_names_stays_text(tmp_path: Path) -> None:
    dataset = tmp_path / "[click](http:evil) **bold** $x$"
    said = run_page("overview", str(dataset)).error[0].value
    assert r"\[click\]\(http\:evil\) \*\*bold\*\* \$x\$" in said

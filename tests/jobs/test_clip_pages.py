"""Clip and Compare without a browser: local and remote datasets, and those that are not as they should be."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cope_prep.jobs.dashboard import page_compare, shared
from cope_prep.jobs.dashboard.opened import Arguments, Choice, find_choices
from cope_prep.jobs.progress import format_bytes
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.ledger import Ledger
from cope_prep.pipeline.manifest import manifest_from_files
from cope_prep.schemas.arrow import INDEX, MANIFEST
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import SCHEMA_VERSION, EncodeSpec, ExtractSpec, Int8Residual

testing = pytest.importorskip("streamlit.testing.v1")
sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
import clip_dataset  # noqa: E402
from clip_dataset import BIKES, BUNNY, FAILED, WAITING  # noqa: E402

INT8 = Specs(encode=clip_dataset.SPECS.encode, extract=ExtractSpec(residual=Int8Residual()))


def script(name: str, arguments: str) -> None:
    """What AppTest runs: a page as the app draws it."""
    from cope_prep.jobs.dashboard import app
    from cope_prep.jobs.dashboard.opened import Arguments

    app.run_page(name, Arguments.from_json(arguments))


def run_page(name: str, dataset: str, *, query: dict[str, str] | None = None, **given: Any) -> Any:
    """The page after its first run."""
    arguments = Arguments(dataset=dataset, **given).to_json()
    page = testing.AppTest.from_function(script, default_timeout=120, args=(name, arguments))
    for key, value in (query or {}).items():
        page.query_params[key] = value
    page.run()
    assert not page.exception
    return page


def text_of(page: Any) -> str:
    """All text of a page, without the escapes of Markdown."""
    kinds = (page.error, page.info, page.warning, page.markdown, page.caption, page.subheader, page.text)
    return "\n".join(element.value for elements in kinds for element in elements).replace("\\", "")


@pytest.fixture(scope="module")
def layout(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return clip_dataset.make(tmp_path_factory.mktemp("pages"), real_clips)


@pytest.fixture(scope="module")
def other(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return clip_dataset.make(tmp_path_factory.mktemp("other"), real_clips, specs=INT8)


@pytest.fixture
def copied(layout: Layout, tmp_path: Path) -> Layout:
    """The same dataset, to damage."""
    shutil.copytree(layout.dataset, tmp_path / "dataset")
    return Layout(dataset=str(tmp_path / "dataset"), specs=layout.specs)


@pytest.fixture
def remote(layout: Layout) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(layout.dataset + "/", "/clip-pages", recursive=True)
    yield "memory://clip-pages"
    memory.rm("/clip-pages", recursive=True)


@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_clip_is_shown_wherever_it_is(layout: Layout, remote: str, where: str) -> None:
    dataset = layout.dataset if where == "local" else remote
    page = run_page("clip", dataset, query={"video": BIKES, "gop": "1", "anchor": "1"})
    assert not page.error
    text = text_of(page)
    for part in (
        BIKES,
        "In shard-00000.tar",
        "From the sample alone",
        "What GOP 2 of 2 is",
        clip_dataset.TRICKY,
    ):
        assert part in text
    assert page.select_slider[0].value == 9
    assert len(page.get("image")) == 11  # eight panels, three legends
    assert len(page.get("video")) == 1
    assert len(page.get("plotly_chart")) == 2
    page.button("clip_back").click().run()
    assert page.select_slider[0].value == 8
    assert "None: this is the I-frame." in text_of(page)
    assert page.query_params["anchor"] == "0"


def test_figures_are_those_of_the_window_that_is_shown(layout: Layout) -> None:
    (stored,) = [
        row
        for row in storage.read_table(layout.index, INDEX).to_pylist()
        if row["video_id"] == BIKES and row["gop_index"] == 0
    ]
    sizes = [
        sum(
            one["size_bytes"] for one in stored["members"] if one["name"].startswith(f"residual.{window:02}.")
        )
        for window in range(7)
    ]
    assert len(set(sizes)) == 7
    for anchor in (1, 3):
        page = run_page("clip", layout.dataset, query={"video": BIKES, "gop": "0", "anchor": str(anchor)})
        facts = {
            column.caption[0].value.replace("\\", ""): column.markdown[0].value.replace("\\", "").strip("*")
            for column in page.columns
            if len(column.caption) == len(column.markdown) == 1
        }
        window = anchor - 1
        assert facts["Residual"] == format_bytes(sizes[window])
        assert facts["Its packets"] == format_bytes(stored["packet_bytes"][window])
        assert facts["PSNR"] == f"{stored['psnr_y_db'][window]:.1f} dB"
        assert facts["Max. error"] == f"{stored['max_error'][window]}"
        assert facts["Energy"] == f"{stored['residual_energy'][window]:,.0f}"


def test_without_an_id_the_first_video_with_samples_is_shown(layout: Layout) -> None:
    page = run_page("clip", layout.dataset)
    assert page.subheader[0].value.replace("\\", "") == BUNNY


def test_what_has_no_samples_says_why(layout: Layout) -> None:
    assert "Re-encoding failed: CorruptVideoError: it is full of holes" in text_of(
        run_page("clip", layout.dataset, query={"video": FAILED})
    )
    assert "It is not re-encoded yet with these settings." in text_of(
        run_page("clip", layout.dataset, query={"video": WAITING})
    )


def test_in_the_middle_of_a_run_there_is_what_is_extracted(real_clips: list[Path], tmp_path: Path) -> None:
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=clip_dataset.SPECS)
    (tmp_path / "clips").mkdir()
    for clip in real_clips:
        shutil.copy(clip, tmp_path / "clips")
    manifest_from_files(str(tmp_path / "clips"), layout.dataset)
    for stage in ("reencode", "extract"):
        layout.write_spec(stage)
    clip_dataset.process(layout, "bikes.mp4", tmp_path / "clips" / "bikes.mp4")
    page = run_page("clip", layout.dataset, query={"video": "bikes.mp4"})
    assert not page.error
    assert f"In {video_key('bikes.mp4')}.tar" in text_of(page)
    assert len(page.get("plotly_chart")) == 2
    page = run_page("clip", layout.dataset, query={"video": "bigbuckbunny.mp4"})
    assert "It is not re-encoded yet with these settings." in text_of(page)


def test_a_clip_without_ledgers_or_questions_is_shown(copied: Layout) -> None:
    storage.remove(copied.questions)
    for stage in ("reencode", "extract"):
        shutil.rmtree(copied.ledger(stage))
    page = run_page("clip", copied.dataset, query={"video": BIKES})
    assert not page.error
    assert "No question is about this video." in text_of(page)
    assert len(page.get("plotly_chart")) == 2


def test_damaged_questions_cost_only_what_is_made_of_them(copied: Layout, other: Layout) -> None:
    Path(copied.questions).write_bytes(b"no table")
    page = run_page("clip", copied.dataset, query={"video": BIKES})
    (error,) = page.error
    assert "questions.parquet" in error.value.replace("\\", "")
    assert len(page.get("video")) == 1
    assert len(page.get("plotly_chart")) == 2
    page = run_page("compare", copied.dataset, compare=(other.dataset,))
    (error,) = page.error
    assert "questions.parquet" in error.value.replace("\\", "")
    assert len(page.get("image")) == 8


def test_samples_and_questions_can_both_be_damaged(copied: Layout) -> None:
    Path(copied.questions).write_bytes(b"no table")
    storage.remove(copied.shard(0))
    page = run_page("clip", copied.dataset, query={"video": BIKES})
    shown = [error.value.replace("\\", "") for error in page.error]
    assert shown[0] == f"{copied.shard(0)}: no such file"
    assert "questions.parquet" in shown[1]
    assert len(shown) == 2


def test_a_damaged_reencoded_file_costs_two_panels(copied: Layout) -> None:
    Path(copied.reencoded(video_key(BIKES))).write_bytes(b"no video")
    page = run_page("clip", copied.dataset, query={"video": BIKES, "gop": "0", "anchor": "1"})
    assert not page.error
    assert "cannot be opened as video" in text_of(page)
    assert len(page.get("image")) == 11 - 3  # without re-encoded, error and its legend


def test_a_missing_shard_is_one_line(copied: Layout) -> None:
    storage.remove(copied.shard(0))
    page = run_page("clip", copied.dataset, query={"video": BIKES})
    assert [error.value.replace("\\", "") for error in page.error] == [f"{copied.shard(0)}: no such file"]
    assert len(page.get("video")) == 1


def test_an_empty_dataset_is_one_line(tmp_path: Path) -> None:
    page = run_page("clip", str(tmp_path))
    (error,) = page.error
    assert error.value.replace("\\", "").startswith(
        f"{shared.short_name(str(tmp_path))}: has no video: neither a manifest nor an index lists one"
    )
    page = run_page("compare", str(tmp_path), compare=(str(tmp_path / "missing"),))
    (error,) = page.error
    assert "has no outputs to compare" in error.value
    assert "There is one set of specs here" not in text_of(page)


def test_a_dataset_with_one_set_of_specs_says_how_to_get_another(layout: Layout) -> None:
    page = run_page("compare", layout.dataset)
    assert not page.error
    assert "There is one set of specs here and nothing to compare it with" in text_of(page)


def test_datasets_to_compare_with_are_not_listed_at_every_click(
    layout: Layout, other: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []

    def find(dataset: str) -> tuple[Choice, ...]:
        listed.append(dataset)
        return find_choices(dataset)

    monkeypatch.setattr(page_compare, "find_choices", find)
    page_compare.st.cache_data.clear()
    page = run_page("compare", layout.dataset, compare=(other.dataset,))
    page.toggle("compare_all").set_value(True).run()
    assert not page.error
    assert listed == [other.dataset]


def test_tables_that_cannot_be_read_are_one_line(copied: Layout, layout: Layout) -> None:
    Path(copied.index).write_bytes(b"no table")
    for name in ("clip", "compare"):
        page = run_page(name, copied.dataset, compare=(layout.dataset,))
        assert len(page.error) == (1 if name == "clip" else 2)  # Compare: its figures, and its pictures
        assert all("index.parquet" in error.value.replace("\\", "") for error in page.error)


def test_a_newer_version_is_one_line(copied: Layout) -> None:
    table = storage.read_table(copied.manifest, MANIFEST)
    newer = {"cope_prep.schema_version": str(SCHEMA_VERSION + 1)}
    storage.publish_table(copied.manifest, table.replace_schema_metadata(newer))
    page = run_page("clip", copied.dataset)
    assert len(page.error) == 1
    assert f"has schema version {SCHEMA_VERSION + 1}" in text_of(page)


def test_links_and_urls_name_the_specs(copied: Layout) -> None:
    """The second set of specs has no samples: what the first has would be another video's frames."""
    second = Layout(dataset=copied.dataset, specs=Specs(encode=EncodeSpec(width_px=64, height_px=64)))
    second.write_spec("reencode")
    (listed,) = [
        row for row in storage.read_table(copied.manifest, MANIFEST).to_pylist() if row["video_id"] == BIKES
    ]
    row = replace(
        clip_dataset.ledger_row(second, "reencode", BIKES, error="too dark"),
        source_size_bytes=listed["size_bytes"],
        source_version=listed["version"],
    )
    Ledger(second.ledger("reencode")).append([row])
    spec_hash = second.specs.hash_of("reencode")
    page = run_page("clip", copied.dataset, query={"video": BIKES})
    assert f"In {Path(copied.shard(0)).name}" in text_of(page)
    page = run_page("clip", copied.dataset, query={"video": BIKES, "spec": spec_hash})
    assert "Re-encoding failed: CorruptVideoError: too dark" in text_of(page)
    page.sidebar.selectbox("specs").select_index(0).run()
    assert f"In {Path(copied.shard(0)).name}" in text_of(page)
    assert page.query_params["video"] == BIKES

    page = run_page("explore", copied.dataset, query={"spec": spec_hash})
    links = next(frame.value["clip"] for frame in page.dataframe if "clip" in frame.value)
    assert len(links)
    assert all(link.endswith(f"&spec={spec_hash}") for link in links)
    page = run_page("progress", copied.dataset)
    failures = next(frame.value for frame in page.dataframe if "Clip" in frame.value)
    links = dict(zip(failures["Video"], failures["Clip"], strict=True))
    assert links[BIKES].endswith(f"&spec={spec_hash}")


def test_specs_of_a_url_that_are_not_there_are_said(copied: Layout) -> None:
    Layout(dataset=copied.dataset, specs=INT8).write_spec("extract")
    page = run_page("clip", copied.dataset, query={"video": BIKES, "spec": "../0*"})
    assert not page.error
    assert "No output here has the specs ../0*." in text_of(page)
    assert len(page.get("video")) == 1


def test_two_datasets_are_compared(layout: Layout, other: Layout) -> None:
    page = run_page("compare", layout.dataset, compare=(other.dataset,))
    assert not page.error
    tables = {tuple(frame.value.columns): frame.value for frame in page.dataframe}
    settings = tables["Setting", "Left", "Right"]
    assert settings.values.tolist() == [["extract.residual", "dct quality=90", "int8 step=8 deadzone=8"]]
    figures = tables["Figure", "Left", "Right", "Right over left"].set_index("Figure")
    assert figures.loc["Videos in the shards"].tolist() == ["2", "2", "1 ×"]
    assert figures.loc["Largest error of all", "Right"] == "8 grey levels"
    assert len(page.get("image")) == 8
    assert [box.value for box in page.selectbox if box.label == "Video"] == [BUNNY]
    page.toggle("compare_all").set_value(True).run()
    assert max(len(frame.value) for frame in page.dataframe if "Setting" in frame.value) > 10


def test_the_right_anchor_is_the_nearest_in_time(
    layout: Layout, real_clips: list[Path], tmp_path: Path
) -> None:
    halves = Specs(encode=clip_dataset.SPECS.encode, extract=ExtractSpec(window=15))
    other = clip_dataset.make(tmp_path, real_clips, specs=halves)
    page = run_page("compare", layout.dataset, compare=(other.dataset,))
    assert not page.error
    shown = [element.value for element in page.markdown if " s**, GOP " in element.value]
    assert shown == ["**1.00 s**, GOP 1, P 1", "**1.00 s**, GOP 1, P 2"]
    page.select_slider[0].set_value(3).run()
    shown = [element.value for element in page.markdown if " s**, GOP " in element.value]
    assert shown == ["**3.00 s**, GOP 1, P 3", "**3.00 s**, GOP 1, P 6"]


def test_a_dataset_to_compare_with_that_is_not_there_is_said(layout: Layout, tmp_path: Path) -> None:
    page = run_page("compare", layout.dataset, compare=(str(tmp_path / "missing"),))
    assert "nothing to compare it with" in text_of(page)

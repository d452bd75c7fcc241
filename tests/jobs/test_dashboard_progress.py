"""What Progress says of a job: of shards that are being made, of several specs, of ledgers that are not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cope_prep.jobs.dashboard.opened import Arguments, find_choices
from cope_prep.jobs.dashboard.progress_state import (
    SHARD_WITHIN_S,
    STAGE_WITHIN_S,
    GrowthWatch,
    headline,
    without_ledger,
)
from cope_prep.jobs.status import dataset_status
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import SCHEMA_VERSION, EncodeSpec, ExtractSpec

testing = pytest.importorskip("streamlit.testing.v1")
sys.path.insert(0, str(Path(__file__).parent))
from status_tables import NOW_UNIX_S, append, make_row, write_manifest  # noqa: E402

VIDEOS = ("a.mp4", "b.mp4")
AFTER_STAGES_S = NOW_UNIX_S + STAGE_WITHIN_S + 1


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Two videos, both extracted; no shards."""
    layout = Layout(dataset=str(tmp_path / "dataset"), specs=Specs())
    write_manifest(layout, dict.fromkeys(VIDEOS, 100))
    end_stages(layout)
    return layout


def end_stages(layout: Layout, *stages: str) -> None:
    for stage in stages or ("reencode", "extract"):
        source = {"source_size_bytes": 100 if stage == "reencode" else 50}
        append(layout, stage, *(make_row(layout, stage, name, **source) for name in VIDEOS))
        for name in VIDEOS:
            storage.publish_bytes(layout.reencoded(video_key(name)), b"")


def add_shards(layout: Layout, number: int) -> None:
    """So many shards without an index."""
    layout.write_spec("shards")
    for index in range(number):
        storage.publish_bytes(layout.shard(index), b"")


def finish_shards(layout: Layout, num_videos: int = len(VIDEOS)) -> None:
    add_shards(layout, 1)
    document = {
        "schema_version": SCHEMA_VERSION,
        "counts": {"videos": num_videos, "gops": 2, "windows": 2, "seconds": 4.0},
        "shards": [{"name": "shard"}],
        "bytes": {"total": 100},
    }
    storage.publish_bytes(layout.dataset_json, json.dumps(document).encode())


def said(layout: Layout, watch: GrowthWatch | None = None, *, now_unix_s: float = AFTER_STAGES_S) -> str:
    """The headline at a time."""
    status = dataset_status(layout.dataset, now_unix_s=now_unix_s)
    choices = find_choices(layout.dataset)
    return headline(
        status,
        (watch or GrowthWatch()).look(status, now_unix_s=now_unix_s),
        dataset=layout.dataset,
        now_unix_s=now_unix_s,
        choices=choices,
        missing=without_ledger(status, choices),
    )


def test_sharding_that_goes_on_is_running_and_advises_nothing(layout: Layout) -> None:
    watch = GrowthWatch()
    add_shards(layout, 1)
    first = said(layout, watch)
    assert "1 shard so far" in first
    assert "If no job is running" in first
    add_shards(layout, 3)
    later = said(layout, watch, now_unix_s=AFTER_STAGES_S + 600)
    assert ":green-badge[Running] Sharding: 3 shards so far" in later
    assert "cope-prep run" not in later
    dead = said(layout, watch, now_unix_s=AFTER_STAGES_S + 600 + SHARD_WITHIN_S)
    assert "Not running" in dead
    assert "Sharding has stopped: 3 shards so far" in dead
    assert f"the same `cope-prep run {layout.dataset}` and the flags that it had" in dead


def test_between_two_stages_a_job_is_not_said_to_be_over(layout: Layout) -> None:
    soon = said(layout, now_unix_s=NOW_UNIX_S + 5)
    assert "there are no shards yet" in soon
    assert "Not running" not in soon
    assert "Not running" in said(layout)


def test_the_page_shows_shards_that_are_being_made(layout: Layout) -> None:
    add_shards(layout, 2)
    text = page_text(layout)
    assert "2 shards so far" in text
    assert "none yet" not in text
    assert "no shards yet" not in text


def test_finished_is_only_what_every_spec_is(layout: Layout) -> None:
    finish_shards(layout)
    assert ":blue-badge[Finished]" in said(layout)
    other = Layout(dataset=layout.dataset, specs=Specs(extract=ExtractSpec(window=60)))
    end_stages(other, "extract")
    unpacked = said(layout)
    assert "Finished" not in unpacked
    extract_hash = other.specs.hash_of("extract")
    assert f"Extract `{extract_hash}`: 0 of its 2 videos are in shards" in unpacked
    finish_shards(other, num_videos=1)
    assert f"Extract `{extract_hash}`: 1 of its 2 videos are in shards" in said(layout)
    finish_shards(other)
    assert ":blue-badge[Finished]" in said(layout)
    small = Layout(dataset=layout.dataset, specs=Specs(encode=EncodeSpec(width_px=64, height_px=64)))
    end_stages(small, "reencode")
    assert f"Re-encode `{small.specs.hash_of('reencode')}`: re-encoded, and not extracted" in said(layout)


@pytest.mark.parametrize("lost", ["reencode", "extract"])
def test_a_ledger_that_is_gone_is_said(layout: Layout, lost: str) -> None:
    finish_shards(layout)
    folder = layout.ledger(lost)
    for name in storage.list_files(folder):
        storage.remove(storage.join(folder, name))
    found = said(layout)
    assert f"{layout.specs.hash_of(lost)}`: the ledger is not there" in found
    assert "cope-prep run" not in found
    other = "extract" if lost == "reencode" else "reencode"
    assert layout.specs.hash_of(other) not in found
    assert ":orange-badge[no ledger]" in page_text(layout)


def script(arguments: str) -> None:
    """What AppTest runs."""
    from cope_prep.jobs.dashboard import app
    from cope_prep.jobs.dashboard.opened import Arguments

    app.run_page("progress", Arguments.from_json(arguments))


def page_text(layout: Layout) -> str:
    arguments = Arguments(dataset=layout.dataset).to_json()
    page = testing.AppTest.from_function(script, default_timeout=120, args=(arguments,)).run()
    assert not page.exception
    assert not page.error
    return "\n".join(element.value for elements in (page.markdown, page.caption) for element in elements)

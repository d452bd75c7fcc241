"""The programs in docs/format.md run as they stand, on a shard of a real clip, without cope_prep."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cope_prep.pipeline import storage
from cope_prep.pipeline.extract import extract_video
from cope_prep.pipeline.finish import finish_shards
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.shard import build_shard
from cope_prep.pipeline.shard_plan import ExtractedVideo, plan_shards
from cope_prep.pipeline.tar import MAX_MEMBERS
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.records import video_key
from cope_prep.schemas.specs import SCHEMA_VERSION, EncodeSpec, ExtractSpec

PAGE = Path(__file__).parents[2] / "docs" / "format.md"

GUARD = "import sys; assert not [name for name in sys.modules if name.startswith('cope_prep')]"


@pytest.fixture(scope="module")
def layout(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """One real clip, in GOPs of 2 s."""
    specs = Specs(encode=EncodeSpec(width_px=128, height_px=96, gop_size=60), extract=ExtractSpec(window=15))
    layout = Layout(dataset=str(tmp_path_factory.mktemp("format")), specs=specs)
    clip = real_clips[1]
    key = video_key(clip.name)
    reencode_video(str(clip), layout.reencoded(key), spec=specs.encode)
    report = extract_video(
        layout.reencoded(key),
        layout.extracted(key),
        spec=specs.extract,
        encode_spec=specs.encode,
        video_id=clip.name,
    )
    video = ExtractedVideo(
        video_id=clip.name, video_key=key, subset="", output_bytes=report.output_bytes, version="1"
    )
    plan = plan_shards(layout, [video])
    build_shard(layout, plan.shards[0])
    finish_shards(layout, plan)
    return layout


def program(name: str) -> str:
    """The block of the page whose first line is `# name`."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(f"# {name} ")]
    return found


def run(name: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program(name)}\n{GUARD}\n", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_reader_is_ten_lines() -> None:
    lines = [
        line for line in program("reader.py").splitlines() if line and not line.startswith(("#", "import"))
    ]
    assert len(lines) <= 10
    assert not re.search(r"^(import|from) .*(cope_prep|pipeline)", PAGE.read_text(), re.MULTILINE)


def test_reader_reads_every_sample(layout: Layout) -> None:
    lines = run("reader.py", layout.shard(0))
    rows = storage.read_table(layout.index, INDEX).to_pylist()
    assert [line.split()[0] for line in lines] == [row["key"] for row in rows]
    assert len(lines) == 5
    assert lines[0].endswith("[0.0, 0.5, 1.0, 1.5] (96, 128, 3) (3, 6, 8, 2) 3")


def test_range_read_reads_one_video(layout: Layout) -> None:
    rows = storage.read_table(layout.index, INDEX).to_pylist()
    lines = run("range_read.py", layout.folder("shards"), rows[0]["video_id"])
    assert [line.split()[0] for line in lines] == [row["key"] for row in rows]
    assert all("(3, 6, 8, 2)" in line for line in lines)
    assert run("range_read.py", layout.folder("shards"), "no such video") == []


def test_rebuild_is_exact(layout: Layout) -> None:
    lines = run("rebuild.py", layout.shard(0))
    assert len(lines) == 5
    assert all(line.endswith(" 4 anchors, exact") for line in lines)


def test_page_names_every_column_and_figure() -> None:
    text = PAGE.read_text()
    missing = [name for name in INDEX.names if f"`{name}`" not in text]
    assert missing == []
    assert f"Schema version: **{SCHEMA_VERSION}**" in text
    assert f"at most {MAX_MEMBERS:,} members" in text

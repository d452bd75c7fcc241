"""Files that are none, and files of a few KB that promise gigabytes: an answer in a line, in little memory."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from typer.testing import CliRunner

from cope_prep.jobs.cli import app
from cope_prep.pipeline import storage, tar
from cope_prep.pipeline.layout import Layout
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import StorageError
from cope_prep.schemas.wire import pack_array

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import crafted
from limited import call_limited
from readers import SPECS

HELPER = str(Path(__file__).with_name("odd_files.py"))


@pytest.fixture(scope="module")
def whole(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one shard. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    crafted.make_dataset(media, folder)
    return folder


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_dataset_with_a_pipe_or_a_device_is_answered(whole: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(whole, tmp_path / "dataset")
    (tmp_path / "videos").mkdir()
    shutil.copy(whole / crafted.VIDEO_ID, tmp_path / "videos")
    made = CliRunner().invoke(app, ["manifest", "files", str(tmp_path / "videos"), str(tmp_path / "dataset")])
    assert made.exit_code == 0, made.output
    said = call_limited(
        HELPER, "commands_on", str(tmp_path / "dataset"), kind, extra_bytes=8 << 30
    )  # DuckDB has threads
    for name in ("dataset.json", "index.parquet", crafted.SHARD):
        assert "not a plain file" in said[f"{name} verify"], said
    (reencoded,) = [name for name in said if name.endswith(".mp4 verify")]
    assert "is not a file" in said[reencoded]
    assert "not a plain file" in said["manifest.parquet status"]
    assert "not a plain file" in said["spec.json status"]
    assert not [name for name, text in said.items() if "UNEXPECTED" in text or not text]


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Is a directory"):
        storage.open_read(str(tmp_path))


def _repeated(table: pa.Table, num_rows: int, **texts: str) -> pa.Table:
    """The first row so many times."""
    columns = []
    for field in INDEX:
        value = texts.get(field.name)
        row = table[field.name].combine_chunks().slice(0, 1) if value is None else pa.array([value])
        columns.append(row.take(pa.array(np.zeros(num_rows, np.int32))))
    return pa.table(columns, schema=INDEX)


def _many_rows(layout: Layout) -> None:
    """Groups of equal rows: each is small enough, together they are not."""
    group = _repeated(storage.read_table(layout.index, INDEX), 1 << 16)
    with pq.ParquetWriter(layout.index, INDEX, compression="zstd") as writer:
        for _ in range(32):
            writer.write_table(group)


def _long_text(layout: Layout) -> None:
    """One long name, said by every row: 1.2 GB if it is unfolded."""
    table = _repeated(storage.read_table(layout.index, INDEX), 20_000, video_id="x" * 60_000)
    pq.write_table(table, layout.index, compression="zstd")


def _sparse_shard(layout: Layout) -> None:
    """One .json of nearly 2 GiB, of which the disk holds some KB."""
    _sparse_member(layout, "json")


def _sparse_residual(layout: Layout) -> None:
    _sparse_member(layout, "residual.00.jpg")


def _sparse_member(layout: Layout, member: str) -> None:
    info = tarfile.TarInfo(f"0123456789abcdef_00000.{member}")
    info.size = (1 << 31) - 4096
    with crafted.shard_path(layout).open("wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(len(tar.END_OF_ARCHIVE) + 512 + info.size)


SMALL_BUT_LARGE = {
    "rows": (_many_rows, "rows for shard-00000.tar"),
    "text": (_long_text, "bytes of text"),
    "sparse-json": (_sparse_shard, "has a .json of 2147479552 bytes"),
    "sparse-residual": (_sparse_residual, "needs more memory than there is"),
}


@pytest.fixture(scope="module")
def verified(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Case -> what verify says of it with 512 MiB."""
    folder = tmp_path_factory.mktemp("large")
    for name, (craft, _) in SMALL_BUT_LARGE.items():
        shutil.copytree(whole, folder / name)
        craft(Layout(dataset=str(folder / name), specs=SPECS))
    return call_limited(HELPER, "verify_all", str(folder))


@pytest.mark.parametrize("case", SMALL_BUT_LARGE)
def test_small_file_does_not_fill_the_memory(verified: dict[str, str], case: str) -> None:
    assert SMALL_BUT_LARGE[case][1] in verified[case], verified[case]
    assert "UNEXPECTED" not in verified[case]


def _members(whole: Path, folder: Path, *, num_frames: int) -> None:
    """The members of a sample of 8192 x 8192 in 48 windows, which unfolds to 600 MB."""
    side, num_windows, grid = 8192, 48, 2048
    layout = Layout(dataset=str(whole), specs=SPECS)
    with crafted.shard_path(layout).open("rb") as file:
        members = tar.read_members(file, next(iter(tar.scan(file, name="shard"))))
    about = json.loads(members["json"])
    about |= {"width_px": side, "height_px": side, "block_px": 4, "num_windows": num_windows}
    about |= {"num_frames": num_frames, "anchor_crc32c": [0] * (num_windows + 1)}
    about |= {"motion_step_px": [1] * num_windows, "rounding": [0] * num_windows}
    about["stats"] = {name: [0.0] * num_windows for name in about["stats"]}
    compressor = zstandard.ZstdCompressor(level=1)
    members |= {f"residual.{index:02d}.jpg": members["residual.00.jpg"] for index in range(num_windows)}
    members["json"] = json.dumps(about).encode()
    members["motion.npy.zst"] = pack_array(np.zeros((num_windows, grid, grid, 2), np.int8), compressor)
    members["intra.npy.zst"] = pack_array(np.zeros(num_windows * grid * grid // 8, np.uint8), compressor)
    for name, content in members.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("num_frames", "message"),
    [(577, "needs more memory than there is"), (600, "48 windows, but 600 frames at s = 12 make 49")],
)
def test_sample_that_unfolds_to_gigabytes_is_refused(
    whole: Path, tmp_path: Path, num_frames: int, message: str
) -> None:
    _members(whole, tmp_path, num_frames=num_frames)
    said = call_limited(HELPER, "decode", str(tmp_path))
    assert said.startswith("FormatError")
    assert message in said

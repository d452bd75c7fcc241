"""Datasets from strangers: every reader says in a line what is wrong, in little memory, and opens nothing else."""

from __future__ import annotations

import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

from cope_prep.pipeline import parquet
from cope_prep.pipeline.layout import Layout

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import crafted
from crafted import VIDEO_ID, with_column, with_json, with_member, with_tar_entry
from limited import call_limited
from readers import SPECS
from references import OpenWatch

_FAR = (1 << 62) - 5
_PICKLE = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
_ABSURD = "{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776, 1099511627776), }"
_FIELDS = "{'descr': [('a', '<i8', (2147483647,))], 'fortran_order': False, 'shape': (1,), }"

Craft = Callable[[Layout], None]


def _same_for_motion(content: bytes) -> Craft:
    return with_member("motion.npy.zst", lambda _: content)


def _document(**changes: object) -> Craft:
    return lambda layout: crafted.change_document(layout, **changes)


def _sizes_unknown(layout: Layout) -> None:
    with_column("size_bytes", 1 << 40)(layout)
    crafted.change_document(layout, shards=[{"name": crafted.SHARD, "bytes": 0, "crc32c": 1}])


def _huge_document(layout: Layout) -> None:
    with open(layout.dataset_json, "ab") as file:
        file.truncate(20 << 30)  # no byte of it is on the disk


def _deep_document(layout: Layout) -> None:
    Path(layout.dataset_json).write_text("[" * 1_000_000)


CASES: dict[str, Craft] = {
    "bomb-without-size": _same_for_motion(crafted.bomb(1 << 30, declared_bytes=None)),
    "bomb-of-another-size": _same_for_motion(crafted.bomb(1 << 30, declared_bytes=1 << 30)),
    "npy-pickle": _same_for_motion(crafted.npy(_PICKLE)),
    "npy-absurd-shape": _same_for_motion(crafted.npy(_ABSURD)),
    "npy-fields": _same_for_motion(crafted.npy(_FIELDS)),
    "npy-code": _same_for_motion(crafted.npy("__import__('os').abort()")),
    "iframe-bomb": with_member("iframe.jpg", lambda jpeg: crafted.jpeg_of_size(jpeg, 65_500)),
    "residual-bomb": with_member("residual.00.jpg", lambda jpeg: crafted.jpeg_of_size(jpeg, 65_500)),
    "large-and-empty": crafted.large_and_empty,
    "json-deep": with_member("json", lambda _: b"[" * 200_000),
    "json-long-number": with_member("json", lambda text: text[:-1] + b',"x":' + b"9" * 10_000 + b"}"),
    "json-windows": with_json(num_windows=10**9),
    "json-windows-negative": with_json(num_windows=-1),
    "json-size": with_json(width_px=10**9, height_px=10**9),
    "json-odd-size": with_json(width_px=100, height_px=60),
    "json-nan": with_json(start_s=float("nan"), fps=float("inf")),
    "json-video-id": with_json(video_id="../../../../etc/passwd"),
    "tar-traversal": with_tar_entry("../../escaped.json"),
    "tar-absolute": with_tar_entry("/tmp/escaped.json"),
    "tar-link": with_tar_entry("0123456789abcdef_00000.json", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "tar-hard-link": with_tar_entry("0123456789abcdef_00000.json", kind=tarfile.LNKTYPE, link="/etc/passwd"),
    "tar-device": with_tar_entry("0123456789abcdef_00000.json", kind=tarfile.CHRTYPE),
    "tar-negative-size": with_tar_entry("0123456789abcdef_00000.json", size=-1),
    "tar-huge-size": with_tar_entry("0123456789abcdef_00000.json", size=1 << 60),
    "index-offset-negative": with_column("offset_bytes", -5),
    "index-offset-far": with_column("offset_bytes", _FAR),
    "index-size-negative": with_column("size_bytes", -5),
    "index-size-huge": with_column("size_bytes", _FAR),
    "index-shard": with_column("shard", "../../../secret.tar"),
    "index-members": with_column(
        "members", [{"name": "json", "offset_bytes": -(10**15), "size_bytes": 10**15}]
    ),
    "index-windows": with_column("num_windows", 2_000_000_000),
    "index-frames": with_column("num_frames", -2_000_000_000),
    "index-long-name": with_column("key", "k" * 10_000_000),
    "document-shards": _document(shards=[{"name": "../../../secret.tar", "bytes": 10, "crc32c": 1}]),
    "document-numbers": _document(shards=[{"name": crafted.SHARD, "bytes": 10**30, "crc32c": -1}], counts={}),
    "document-infinity": _document(shards=[{"name": crafted.SHARD, "bytes": float("inf"), "crc32c": 1}]),
    "document-no-size": _sizes_unknown,
    "document-types": _document(shards={"a": 1}, index=[], counts=7, specs=None),
    "document-deep": _deep_document,
    "document-huge": _huge_document,
}
UNHARMED = {
    # A video id and a key are text: no path is made of them, and a sample is found by its place.
    *(("loader", "json-video-id"), ("clip", "json-video-id")),
    *(("loader", "index-long-name"), ("clip", "index-long-name")),
    # The tar's own headers say where a sample's members are, and its .json how many windows and frames it has.
    *(("loader", "index-members"), ("loader", "index-windows"), ("clip", "index-frames")),
    # A clip is looked up in the index and in its shard.
    *(("clip", f"document-{case}") for case in ("shards", "numbers", "infinity", "types", "deep", "huge")),
}
"""(reader, case) that read it as it is, and rightly: what is wrong there is not what they go by."""


@pytest.fixture(scope="module")
def said(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Case -> reader -> what it said, read in one process with 512 MiB."""
    folder = tmp_path_factory.mktemp("crafted")
    whole = tmp_path_factory.mktemp("whole")
    crafted.make_dataset(media, whole)
    secret = folder.parent / "secret.tar"
    secret.write_bytes(b"secret")
    for name, craft in {"whole": lambda layout: None, **CASES}.items():
        shutil.copytree(whole, folder / name)
        craft(Layout(dataset=str(folder / name), specs=SPECS))
    before = {path for path in folder.parent.rglob("*") if "numba" not in str(path)}
    watch = OpenWatch(secret)
    said = call_limited(str(Path(__file__).with_name("readers.py")), "read_all", str(folder), VIDEO_ID)
    assert not watch.was_opened()
    watch.close()
    assert {path for path in folder.parent.rglob("*") if "numba" not in str(path)} == before
    return said


def test_whole_dataset_is_read(said: dict[str, dict[str, str]]) -> None:
    assert said["whole"] == {"verify": "", "provenance": "", "clip": "", "loader": "", "dataset.json": ""}


@pytest.mark.parametrize("case", CASES)
def test_crafted_dataset_is_refused_in_a_line(said: dict[str, dict[str, str]], case: str) -> None:
    for reader, text in said[case].items():
        assert "UNEXPECTED" not in text, (reader, text)
        assert len(text) < 5000, (reader, len(text))
    for reader in ("loader", "clip"):
        assert bool(said[case][reader]) != ((reader, case) in UNHARMED), (reader, said[case][reader])
    assert said[case]["verify"], "verify found nothing"


def test_table_of_countless_rows_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    crafted.write_rows(path, 1 << 20)
    assert path.stat().st_size < 20_000
    assert parquet.open_parquet(path).metadata.num_rows == 1 << 20
    monkeypatch.setattr(parquet, "MAX_ROWS", (1 << 20) - 1)
    with pytest.raises(pa.ArrowInvalid, match="declares 1048576 rows"):
        parquet.open_parquet(path)

"""Which shards a URI means, what the catalog says of each sample, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.loader import GopDataset, MixPart, ShardReader
from cope_prep.pipeline.loader.catalog import Catalog, join_catalogs, open_shards, read_catalog
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import ConfigurationError, FormatError, SchemaVersionError
from cope_prep.schemas.specs import SCHEMA_VERSION, ExtractSpec


def rows_of(layout: Layout) -> list[dict[str, Any]]:
    return storage.read_table(layout.index, INDEX).to_pylist()


def row_of(catalog: Catalog, sample: int) -> dict[str, Any]:
    """An entry of a catalog under the names of the index."""
    return {
        "shard": catalog.shard_uris[catalog.shard[sample]].rpartition("/")[2],
        "video_id": catalog.video_id(sample),
        "gop_index": int(catalog.gop_index[sample]),
        "start_s": float(catalog.start_s[sample]),
        "num_frames": int(catalog.num_frames[sample]),
        "height_px": int(catalog.size_px[sample, 0]),
        "width_px": int(catalog.size_px[sample, 1]),
        "offset_bytes": int(catalog.offset_bytes[sample]),
        "size_bytes": int(catalog.size_bytes[sample]),
        "crc32c": int(catalog.crc32c[sample]),
    }


@pytest.fixture(scope="module")
def two_outputs(
    datasets: ModuleType, media: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Layout, Layout]:
    """One dataset with shards of windows of 4 frames, and of 8."""
    folder = tmp_path_factory.mktemp("two")
    specs = [Specs(encode=datasets.SPECS.encode, extract=ExtractSpec(window=window)) for window in (4, 8)]
    first, second = (datasets.make_dataset(folder, media, num_videos=3, specs=each) for each in specs)
    return first, second


def test_catalog_is_the_index(small: Layout) -> None:
    catalog = read_catalog(open_shards(small.dataset))
    rows = rows_of(small)
    assert len(catalog) == len(rows) == 90
    names = list(row_of(catalog, 0))
    assert [row_of(catalog, sample) for sample in range(90)] == [
        {name: row[name] for name in names} for row in rows
    ]
    assert len(catalog.shard_uris) > 3
    for uri, size_bytes in zip(catalog.shard_uris, catalog.shard_bytes, strict=True):
        assert Path(uri).stat().st_size == size_bytes


def test_places_hold_the_bytes_that_the_checksums_are_of(small: Layout) -> None:
    catalog = read_catalog(open_shards(small.dataset))
    for sample in range(0, 90, 7):
        content = storage.read_bytes(
            catalog.shard_uris[catalog.shard[sample]],
            int(catalog.offset_bytes[sample]),
            int(catalog.size_bytes[sample]),
        )
        assert google_crc32c.value(content) == catalog.crc32c[sample]


def test_dataset_and_folder_of_shards_mean_the_same(small: Layout) -> None:
    by_dataset = open_shards(small.dataset)
    by_folder = open_shards(small.folder("shards"))
    assert by_dataset == by_folder
    assert by_dataset.specs == small.specs
    assert by_dataset.spec_hash == small.specs.hash_of("extract")


def test_take_keeps_the_samples_asked_for(small: Layout) -> None:
    catalog = read_catalog(open_shards(small.dataset))
    wanted = np.array([0, 3, 17, 89])
    mask = np.zeros(90, np.bool_)
    mask[wanted] = True
    for taken in (catalog.take(wanted), catalog.take(mask)):
        assert len(taken) == 4
        assert [row_of(taken, index) for index in range(4)] == [row_of(catalog, index) for index in wanted]


def test_spec_chooses_among_several_outputs(two_outputs: tuple[Layout, Layout], reader: ShardReader) -> None:
    first, second = two_outputs
    assert first.dataset == second.dataset
    for layout in two_outputs:
        whole = layout.specs.hash_of("shards")
        for spec in (whole, whole[:6]):
            assert open_shards(layout.dataset, spec=spec).specs == layout.specs
        part = MixPart(dataset=layout.dataset, spec=whole)
        dataset = GopDataset([part], reader=reader)
        assert dataset.geometry.window == layout.specs.extract.window


def test_several_outputs_without_a_choice_fail(two_outputs: tuple[Layout, Layout]) -> None:
    first, second = two_outputs
    with pytest.raises(ConfigurationError, match="has 2 outputs of shards") as caught:
        open_shards(first.dataset)
    assert all(layout.specs.hash_of("shards") in str(caught.value) for layout in (first, second))


@pytest.mark.parametrize("spec", ["", "ffffffffffff"])
def test_spec_that_chooses_none_or_several_fails(two_outputs: tuple[Layout, Layout], spec: str) -> None:
    found = "2" if spec == "" else "0"
    with pytest.raises(ConfigurationError, match=f"has {found} outputs of shards .* begins with {spec}"):
        open_shards(two_outputs[0].dataset, spec=spec)


def test_dataset_without_shards_fails(tmp_path: Path) -> None:
    for uri in (str(tmp_path), str(tmp_path / "not there")):
        with pytest.raises(ConfigurationError) as caught:
            open_shards(uri)
        assert str(caught.value) == f"{uri}: has no output of shards. Run: cope-prep shard {uri}"


@pytest.mark.parametrize("name", ["dataset.json", "spec.json", "index.parquet"])
def test_unfinished_shards_fail(copied: Layout, name: str) -> None:
    folder = copied.folder("shards")
    Path(folder, name).unlink()
    # Without its spec a folder is not known as an output of the dataset, but as itself it can be named.
    for uri in (copied.dataset, folder) if name != "spec.json" else (folder,):
        with pytest.raises(ConfigurationError) as caught:
            read_catalog(open_shards(uri))
        assert (
            str(caught.value) == f"{folder}: holds no finished shards. Run: cope-prep shard {copied.dataset}"
        )


def edit(layout: Layout, change: Callable[[dict[str, Any]], object]) -> None:
    path = Path(layout.dataset_json)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


MALFORMED = {
    "no version": lambda document: document.pop("schema_version"),
    "version in words": lambda document: document.update(schema_version="one"),
    "no shards": lambda document: document.pop("shards"),
    "shards without names": lambda document: document.update(shards=[{"bytes": 1}]),
    "shards without sizes": lambda document: document.update(shards=[{"name": "shard-00000.tar"}]),
    "sizes in words": lambda document: document.update(shards=[{"name": "a", "bytes": "many"}]),
    "no index": lambda document: document.pop("index"),
    "index without checksum": lambda document: document.update(index={}),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_dataset_json_fails(copied: Layout, change: Callable[[dict[str, Any]], object]) -> None:
    edit(copied, change)
    with pytest.raises(FormatError, match=r"dataset\.json: is malformed"):
        open_shards(copied.dataset)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe"])
def test_dataset_json_that_is_no_object_fails(copied: Layout, content: bytes) -> None:
    Path(copied.dataset_json).write_bytes(content)
    with pytest.raises(FormatError, match=r"dataset\.json: is malformed"):
        open_shards(copied.dataset)


def test_newer_dataset_json_fails(copied: Layout) -> None:
    edit(copied, lambda document: document.update(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(SchemaVersionError, match=rf"version {SCHEMA_VERSION + 1}, .* Update cope-prep"):
        open_shards(copied.dataset)


def test_newer_index_fails(copied: Layout) -> None:
    metadata = {b"cope_prep.schema_version": str(SCHEMA_VERSION + 1).encode()}
    pq.write_table(pq.read_table(copied.index).replace_schema_metadata(metadata), copied.index)
    with pytest.raises(SchemaVersionError, match=r"index\.parquet: has schema version .* Update cope-prep"):
        read_catalog(open_shards(copied.dataset))


def test_index_of_an_unknown_shard_fails(copied: Layout) -> None:
    edit(copied, lambda document: document["shards"].pop(2))
    with pytest.raises(
        FormatError, match=r"names shards that dataset\.json does not have: \['shard-00002.tar'"
    ):
        read_catalog(open_shards(copied.dataset))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a table" * 100])
def test_index_that_is_no_table_fails(copied: Layout, content: bytes) -> None:
    Path(copied.index).write_bytes(content)
    with pytest.raises(FormatError, match=r"index\.parquet: is not a readable Parquet table"):
        read_catalog(open_shards(copied.dataset))


@pytest.mark.parametrize("name", ["crc32c", "num_frames"])
def test_index_without_a_column_or_of_another_type_fails(copied: Layout, name: str) -> None:
    table = pq.read_table(copied.index)
    place = table.column_names.index(name)
    other = table.set_column(place, name, table[name].cast(pa.float64()))
    for damaged in (table.drop_columns([name]), other):
        pq.write_table(damaged, copied.index)
        with pytest.raises(SchemaVersionError, match=f"has no column {name} of type"):
            read_catalog(open_shards(copied.dataset))


def test_empty_index_is_an_empty_catalog(copied: Layout, datasets: ModuleType) -> None:
    datasets.write_index(copied, pq.read_table(copied.index).slice(0, 0))
    catalog = read_catalog(open_shards(copied.dataset))
    assert (len(catalog), len(catalog.video_ids), len(catalog.shard_uris)) == (0, 0, 0)
    with pytest.raises(ConfigurationError, match="has no GOP"):
        GopDataset(copied.dataset)


def test_index_of_another_run_fails(copied: Layout) -> None:
    """Its own dataset.json beside it still describes the one before."""
    pq.write_table(pq.read_table(copied.index).slice(3), copied.index)
    with pytest.raises(FormatError, match=r"index\.parquet: is \d+ bytes, dataset\.json says \d+"):
        read_catalog(open_shards(copied.dataset))


def test_joined_catalogs_keep_every_sample(two_outputs: tuple[Layout, Layout], small: Layout) -> None:
    folders = [
        open_shards(small.dataset),
        *(open_shards(layout.folder("shards")) for layout in two_outputs),
    ]
    parts = [read_catalog(folder) for folder in folders]
    joined = join_catalogs(parts)
    assert len(joined) == sum(map(len, parts))
    assert joined.folders == tuple(folders)
    sample = 0
    for folder, part in enumerate(parts):
        for index in range(len(part)):
            assert row_of(joined, sample) == row_of(part, index)
            shard = joined.shard[sample]
            assert joined.shard_uris[shard] == part.shard_uris[part.shard[index]]
            assert joined.shard_bytes[shard] == part.shard_bytes[part.shard[index]]
            assert joined.shard_folder[shard] == folder
            sample += 1
    assert sample == len(joined)


def test_a_video_of_two_parts_stays_two(two_outputs: tuple[Layout, Layout]) -> None:
    parts = [read_catalog(open_shards(layout.folder("shards"))) for layout in two_outputs]
    ids = [set(part.video_ids.to_pylist()) for part in parts]
    assert ids[0] == ids[1]
    joined = join_catalogs(parts)
    assert len(joined.video_ids) == 2 * len(ids[0])
    boundary = len(parts[0])
    assert set(joined.video[:boundary]).isdisjoint(joined.video[boundary:])


def test_one_catalog_joins_to_itself(small: Layout) -> None:
    catalog = read_catalog(open_shards(small.dataset))
    assert join_catalogs([catalog]) is catalog

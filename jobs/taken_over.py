"""Outputs that are gone on purpose: a later stage has taken them over (`--consume`).

    re-encoded file   gone, but its samples are extracted: not to be made again
    extracted tar     gone, but its samples are in a published shard: not to be made again

A command of one stage accepts any later output of the dataset. `run` accepts only those of its own specs: if
it is asked for another window or another shard size, it makes again what it needs for that.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, find_specs
from cope_prep.pipeline.ledger import KnownRow, Ledger
from cope_prep.pipeline.provenance import extraction_version


def input_identity(reencoded: KnownRow) -> tuple[int, str]:
    """(size, version) by which the extract stage's ledger knows a re-encoded file.

    The file is a function of the source and of the spec, which is in its path. Its own time stamp would say
    "changed" when only the same bytes were written again.
    """
    return reencoded.output_bytes, reencoded.source_sha256 or reencoded.source_version


def extract_version(extracted: KnownRow) -> str:
    """What the shards call the version of an extraction: it changes when other bytes come out."""
    return extraction_version(extracted.output_bytes, extracted.output_crc32c)


def taken_by_extract(layout: Layout, reencoded: Mapping[str, KnownRow], *, own_only: bool) -> set[str]:
    """Of re-encoded videos, the ids of those whose samples are in a tar or in a shard."""
    taken: set[str] = set()
    for extract in _later_layouts(layout, "extract", own_only=own_only):
        rows = {
            row.video_id: row
            for row in Ledger(extract.ledger("extract")).read_known()
            if row.status != "failed"
            and row.video_id in reencoded
            and input_identity(reencoded[row.video_id]) == (row.source_size_bytes, row.source_version)
        }
        tars = set(storage.list_files(extract.folder("extract")))
        gone = {name: row for name, row in rows.items() if posixpath.basename(row.output_uri) not in tars}
        taken.update(rows.keys() - gone.keys())
        if gone:
            taken |= taken_by_shards(extract, gone, own_only=own_only)
    return taken


def taken_by_shards(layout: Layout, extracted: Mapping[str, KnownRow], *, own_only: bool) -> set[str]:
    """Of extracted videos, the ids of those whose samples are in a published shard."""
    from cope_prep.pipeline.shard import published_versions

    taken: set[str] = set()
    for shards in _later_layouts(layout, "shards", own_only=own_only):
        versions = published_versions(shards)
        taken.update(name for name, row in extracted.items() if versions.get(name) == extract_version(row))
    return taken


def _later_layouts(layout: Layout, stage: str, *, own_only: bool) -> list[Layout]:
    """Layouts of a stage's outputs that were made from this layout's output of the stage before."""
    if own_only:
        return [layout]
    before = {"extract": "reencode", "shards": "extract"}[stage]
    return [
        Layout(dataset=layout.dataset, specs=specs)
        for specs in find_specs(layout.dataset, stage)
        if specs.hash_of(before) == layout.specs.hash_of(before)
    ]

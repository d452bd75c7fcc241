"""How far the shards of one set of specs are, from dataset.json and the plan; listed only while they are made."""

from __future__ import annotations

from typing import Any

import pyarrow.compute

from cope_prep.jobs.status_records import BegunShards, DamagedShards, ShardsStatus
from cope_prep.pipeline import storage
from cope_prep.pipeline.finish import read_dataset_json
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.shard_plan import PLAN, plan_uri
from cope_prep.schemas.errors import FormatError, SourceNotFoundError

pc: Any = pyarrow.compute


class ShardsReader:
    """Reads it again and again; what has not changed is not read again."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._spec_hash = layout.specs.hash_of("shards")
        self._index: tuple[storage.FileStat, ShardsStatus] | None = None
        self._plan: tuple[storage.FileStat, int] | None = None

    def read(self) -> list[ShardsStatus | BegunShards | DamagedShards]:
        """What there is: an index, shards that are not in it yet, or something that cannot be read.

        Raises:
            StorageError: the store could not answer.
        """
        try:
            index, num_planned = self._read_index(), self._read_plan()
        except FormatError as exc:
            name = exc.subject.rpartition("/")[2]
            message = redacted(str(FormatError(name, exc.found, exc.remedy)))
            return [DamagedShards(spec_hash=self._spec_hash, message=message)]
        if index is not None and (num_planned or 0) <= index.num_shards:
            return [index]
        names = storage.list_files(self._layout.folder("shards"))
        begun = BegunShards(
            spec_hash=self._spec_hash,
            num_shards=sum(name.endswith(".tar") for name in names),
            num_planned=num_planned,
            has_index=index is not None,
        )
        return [begun] if index is None else [index, begun]

    def _read_index(self) -> ShardsStatus | None:
        try:
            stat = storage.stat(self._layout.dataset_json)
            if self._index is None or self._index[0] != stat:
                self._index = stat, _shards_status(self._layout, read_dataset_json(self._layout))
        except SourceNotFoundError:
            return None
        return self._index[1]

    def _read_plan(self) -> int | None:
        """How many shards there are to be; None if that is not known."""
        uri = plan_uri(self._layout)
        try:
            stat = storage.stat(uri)
            if self._plan is None or self._plan[0] != stat:
                indices = storage.read_table(uri, PLAN, columns=["shard_index"])["shard_index"]
                last = pc.max(indices).as_py()
                self._plan = stat, 0 if last is None else last + 1
        except SourceNotFoundError:
            return None
        return self._plan[1]


def _shards_status(layout: Layout, document: dict[str, Any]) -> ShardsStatus:
    try:
        counts = document["counts"]
        return ShardsStatus(
            spec_hash=layout.specs.hash_of("shards"),
            extract_hash=layout.specs.hash_of("extract"),
            num_shards=len(document["shards"]),
            num_videos=counts["videos"],
            num_gops=counts["gops"],
            num_windows=counts["windows"],
            duration_s=counts["seconds"],
            output_bytes=document["bytes"]["total"],
        )
    except (LookupError, TypeError) as exc:
        raise FormatError(layout.dataset_json, f"lacks {exc}", "Run cope-prep shard.") from exc

"""What is done in a dataset, read from its ledgers: for `cope-prep status` and the dashboard.

One status a stage and spec. The rate is that of the last ten minutes in which anything ended (status_rates.py);
the time left follows from it by weight (bytes, or seconds of video). Nothing is opened but the tables, and
nothing listed but their folders and, while videos wait for extraction, that of the re-encoded files: asking
costs a running job nothing.

A StatusReader asks again and again: what cannot have changed is not read again. It also sees what is
new by its own clock, where that of the job is another. What it costs: benchmarks/bench_status.py.
"""

from __future__ import annotations

import time

import pyarrow as pa

from cope_prep.jobs.status_figures import (
    LEDGER_COLUMNS,
    MANIFEST_COLUMNS,
    Ends,
    Inputs,
    Listing,
    ends_of,
    is_there,
    pc,
    reencoded_inputs,
    source_inputs,
    stage_status,
)
from cope_prep.jobs.status_rates import LastEnd
from cope_prep.jobs.status_records import (
    BegunShards,
    DamagedShards,
    DatasetStatus,
    NodeRate,
    RatePoint,
    RecentFailure,
    ShardsStatus,
    StageStatus,
)
from cope_prep.jobs.status_shards import ShardsReader
from cope_prep.jobs.video_stage import no_manifest
from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import MAX_SPEC_BYTES, Layout, Specs, find_specs
from cope_prep.pipeline.ledger import LedgerFollower
from cope_prep.pipeline.quarantine import Quarantine, Sources
from cope_prep.pipeline.redact import redacted
from cope_prep.schemas.arrow import MANIFEST
from cope_prep.schemas.errors import SourceNotFoundError

__all__ = [
    "BegunShards",
    "DamagedShards",
    "DatasetStatus",
    "NodeRate",
    "RatePoint",
    "RecentFailure",
    "ShardsStatus",
    "StageStatus",
    "StatusReader",
    "dataset_status",
]


def dataset_status(dataset: str, *, now_unix_s: float | None = None) -> DatasetStatus:
    """How far a dataset is.

    Raises:
        ConfigurationError: it has no manifest.
        FormatError: a ledger, the manifest or a spec.json is damaged or, as SchemaVersionError, of a newer
            version. A damaged dataset.json is among what is returned.
        StorageError: the store could not answer.
    """
    return StatusReader(dataset).read(now_unix_s=now_unix_s)


class StatusReader:
    """How far a dataset is, asked as often as one likes."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self._layout = Layout(dataset=dataset, specs=Specs())
        self._manifest: tuple[storage.FileStat, pa.Table, Inputs] | None = None
        self._specs: dict[str, bytes] = {}
        self._ledgers: dict[str, LedgerFollower] = {}
        self._listings: dict[str, Listing] = {}
        self._last_ends: dict[str, LastEnd] = {}
        self._shards: dict[str, ShardsReader] = {}
        self._quarantine = Quarantine(dataset)

    def read(self, *, now_unix_s: float | None = None) -> DatasetStatus:
        """The status now, without credentials. After an error it can be asked again.

        Raises:
            ConfigurationError, FormatError, StorageError: as dataset_status.
        """
        now_unix_s = time.time() if now_unix_s is None else now_unix_s
        sources = self._read_manifest()
        stages = [
            self._read_stage(Layout(dataset=self.dataset, specs=specs), stage, sources, now_unix_s=now_unix_s)
            for stage in ("reencode", "extract")
            for specs in find_specs(self.dataset, stage, read=self._read_once)
        ]
        shards = [
            found
            for specs in find_specs(self.dataset, "shards", read=self._read_once)
            for found in self._shards_reader(Layout(dataset=self.dataset, specs=specs)).read()
        ]
        return DatasetStatus(
            dataset=redacted(self.dataset),
            num_videos=len(sources),
            source_bytes=pc.sum(sources.size_bytes).as_py() or 0,
            stages=tuple(stages),
            shards=tuple(found for found in shards if isinstance(found, ShardsStatus)),
            begun_shards=tuple(found for found in shards if isinstance(found, BegunShards)),
            damaged_shards=tuple(found for found in shards if isinstance(found, DamagedShards)),
            num_quarantined=len(self._quarantine.held(Sources(self._layout.manifest))),
        )

    def _read_manifest(self) -> Inputs:
        uri = self._layout.manifest
        try:
            stat = storage.stat(uri)
            if self._manifest is None or self._manifest[0] != stat:
                table = storage.read_table(uri, MANIFEST, columns=MANIFEST_COLUMNS)
                self._manifest = stat, table, source_inputs(table)
        except SourceNotFoundError as exc:
            raise no_manifest(self.dataset) from exc
        return self._manifest[2]

    def _shards_reader(self, layout: Layout) -> ShardsReader:
        return self._shards.setdefault(layout.dataset_json, ShardsReader(layout))

    def _read_once(self, uri: str) -> bytes:
        """A file that never changes: the folder's name is the hash of what spec.json says."""
        if uri not in self._specs:
            self._specs[uri] = storage.read_small(uri, MAX_SPEC_BYTES)
        return self._specs[uri]

    def _ledger(self, layout: Layout, stage: str) -> pa.Table:
        uri = layout.ledger(stage)
        return self._ledgers.setdefault(uri, LedgerFollower(uri, LEDGER_COLUMNS)).read()

    def _read_stage(self, layout: Layout, stage: str, sources: Inputs, *, now_unix_s: float) -> StageStatus:
        inputs, ends = sources, ends_of(sources, self._ledger(layout, "reencode"))
        if stage == "extract":
            inputs, ends = self._extractable(layout, ends)
        return stage_status(
            inputs,
            ends,
            stage=stage,
            spec_hash=layout.specs.hash_of(stage),
            num_videos=len(sources),
            last_end=self._last_ends.setdefault(layout.ledger(stage), LastEnd()),
            now_unix_s=now_unix_s,
        )

    def _extractable(self, layout: Layout, reencoded: Ends) -> tuple[Inputs, Ends]:
        """What is extracted or can be: the file may be gone once it is extracted."""
        candidates, rows = reencoded_inputs(reencoded)
        ledger = self._ledger(layout, "extract")
        extracted = ends_of(candidates, ledger)
        if len(extracted.rows) == len(candidates):
            return candidates, extracted  # what is in the folder changes nothing
        there = is_there(rows, self._files(layout.folder("reencode")))
        there[extracted.place] = True
        if there.all():
            return candidates, extracted
        inputs = candidates.where(there)
        return inputs, ends_of(inputs, ledger)

    def _files(self, folder: str) -> Listing:
        listing = self._listings.get(folder)
        if listing is None or listing.is_old():
            listing = self._listings[folder] = Listing(folder)
        return listing

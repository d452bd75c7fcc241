"""GopDataset: GOPs, or single windows, in one global order, for pre-training on primitives.

dataset = GopDataset("s3://bucket/dataset", batch_size=8)
loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=4, pin_memory=True)
for epoch in range(3):
    dataset.set_epoch(epoch)
    for batch in loader:
        inputs = to_device(batch, "cuda")
        ...
        state = dataset.state_dict(after=batch)
"""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Literal

import numpy as np

from cope_prep.pipeline.loader.batch import GopBatch, Skipped
from cope_prep.pipeline.loader.buffer import Buffer
from cope_prep.pipeline.loader.collate import Row, fill_gops, gop_arrays
from cope_prep.pipeline.loader.filters import GopFilter
from cope_prep.pipeline.loader.gops import geometry_of, gop_row, identities, load_sample, with_filter
from cope_prep.pipeline.loader.merge import merge_whole
from cope_prep.pipeline.loader.mix import Source, open_mix
from cope_prep.pipeline.loader.order import DEFAULT_SHUFFLE, Shuffle, compact
from cope_prep.pipeline.loader.plan import LastBatch
from cope_prep.pipeline.loader.primitives import (
    GopArrays,
    GopLayout,
    WholeGop,
    decode_whole,
    load_window,
    residual_scale,
)
from cope_prep.pipeline.loader.reader import ShardReader
from cope_prep.pipeline.loader.samples import ByteLimitedCache, SampleStore
from cope_prep.pipeline.loader.stream import InfoMaker, OnError, StreamDataset
from cope_prep.pipeline.token_counts import TokenCounts
from cope_prep.schemas.errors import ConfigurationError

Unit = Literal["gop", "window"]
"""What a unit of the order is: a GOP, or one window with the anchors that it starts from and ends at."""


class GopDataset(StreamDataset[GopBatch]):
    """Batches of GOPs, or of windows, from the shards of one dataset or of a mix of several."""

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int = 1,
        unit: Unit = "gop",
        key_frames: int = 1,
        window: int | None = None,
        where: GopFilter | None = None,
        seed: int = 0,
        shuffle: Shuffle | None = DEFAULT_SHUFFLE,
        last: LastBatch = "drop",
        on_error: OnError = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        tokens: TokenCounts | None = None,
        reader: ShardReader | None = None,
        windows_per_visit: int = 1,
        keep_bytes: int = 256 << 20,
    ) -> None:
        """
        source: DATASET, DATASET/shards/<hash> (any fsspec URL), or parts of a mix.
        batch_size: units of one rank's batch.
        key_frames: pictures of a full GOP, the others are Δ: 1, 2, 4 or 8 at s = 30. For unit="gop".
        window: read windows of so many frames, a multiple of the stored ones; None as they are stored.
        where: leave out GOPs by the index; for a mix, each part has its own filter.
        shuffle: None for the order of the shards.
        last: "drop" what does not fill a global batch, or "wrap" around to the epoch's beginning.
        on_error: "raise", or "skip": the place of an unreadable sample stays empty, and is reported.
        rank, world_size: from torch.distributed or the environment if None.
        windows_per_visit: so many windows of a GOP stay side by side in the order, and the GOP is decoded once for
            them; 1 mixes best, and decodes each GOP from its beginning for each of its windows. For unit="window".
        keep_bytes: decoded GOPs that a worker keeps for the windows of a visit.

        Raises:
            ConfigurationError: no shards, nothing passes the filter, or an argument that does not fit them.
        """
        if unit not in ("gop", "window"):
            raise ConfigurationError(f"unit {unit!r}", "must be 'gop' or 'window'")
        if unit == "window" and key_frames != 1:
            raise ConfigurationError(
                f"key_frames {key_frames}", "is for unit='gop': a window has two pictures"
            )
        if windows_per_visit < 1 or (unit == "gop" and windows_per_visit > 1):
            raise ConfigurationError(
                f"windows_per_visit {windows_per_visit}", "must be 1 or more, for unit='window'"
            )
        mix = open_mix(with_filter(source, where), per_video=False)
        catalog = mix.catalog
        self.geometry = geometry_of(mix.folders, window=window, key_frames=key_frames)
        self._scale = residual_scale(self.geometry.residual_spec)
        self._tokens = tokens or TokenCounts()
        self._unit: Unit = unit
        chunk_bytes = (shuffle or DEFAULT_SHUFFLE).chunk_bytes
        store = SampleStore(catalog, reader=reader or ShardReader(), chunk_bytes=chunk_bytes)
        part = mix.part_of_sample()
        chunk = store.chunk
        if unit == "window":
            num_windows = (catalog.num_frames - 1) // self.geometry.window
            self._first_unit = np.cumsum(num_windows) - num_windows
            self._sample_of_unit = np.repeat(np.arange(len(catalog)), num_windows)
            part, chunk = part[self._sample_of_unit], chunk[self._sample_of_unit]
            chunk = compact(chunk)  # without those of GOPs that have no window
        self._windows_per_visit = windows_per_visit
        self._whole: ByteLimitedCache[WholeGop] = ByteLimitedCache(keep_bytes, attrgetter("nbytes"))
        super().__init__(
            store,
            chunk_of_unit=chunk,
            part_of_unit=part,
            group_of_unit=self._sample_of_unit if unit == "window" else chunk,
            visit_size=windows_per_visit,
            weights=[part.weight for part in mix.parts],
            identity={
                "kind": "gops",
                "unit": unit,
                "window": self.geometry.window,
                "windows_per_visit": windows_per_visit,
                "parts": identities(mix),
            },
            categories=[{"name": part.dataset, "weight": part.weight} for part in mix.parts],
            category_of_unit=part,
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            last=last,
            on_error=on_error,
            rank=rank,
            world_size=world_size,
        )

    def _samples_of(self, unit: int) -> np.ndarray:
        return np.array([unit if self._unit == "gop" else self._sample_of_unit[unit]])

    def _make_batch(self, units: np.ndarray, make_info: InfoMaker) -> GopBatch:
        rows = [
            self._row(int(unit), position) for unit, position in zip(units, make_info.positions, strict=True)
        ]
        skipped: list[Skipped] = []
        buffer = Buffer.allocate(gop_arrays(rows, self.geometry))
        fill_gops(
            buffer.arrays(),
            rows,
            geometry=self.geometry,
            tokens=self._tokens,
            load=self._load,
            on_failure=lambda row, exc: skipped.append(self._failed(row.sample, row.position, exc)),
        )
        return GopBatch.from_buffer(
            buffer, make_info.of([row.sample for row in rows], skipped, self.store, self._scale)
        )

    def _row(self, unit: int, position: int) -> Row:
        if self._unit == "gop":
            return gop_row(self.store.catalog, unit, position, self.geometry)
        sample = int(self._sample_of_unit[unit])
        row = gop_row(self.store.catalog, sample, position, self.geometry)
        index = unit - int(self._first_unit[sample])
        layout = GopLayout(
            is_picture=np.array([True, False]), anchor_s=row.layout.anchor_s[index : index + 2]
        )
        return replace(row, window=index, layout=layout)

    def _load(self, row: Row, out: GopArrays) -> None:
        if row.window < 0:
            load_sample(self.store, row, self.geometry, out)
            return
        record = self.store.record(row.sample) if self._windows_per_visit == 1 else None
        if record is not None and record.window == self.geometry.window:
            load_window(record, row.window, out=out)
            return
        whole = self._whole.get(row.sample, lambda: self._decode(row.sample))
        load_window(whole, row.window, out=out)

    def _decode(self, sample: int) -> WholeGop:
        record = self.store.record(sample)
        if record.window == self.geometry.window:
            return decode_whole(record)
        return merge_whole(record, window=self.geometry.window)

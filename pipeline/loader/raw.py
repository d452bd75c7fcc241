"""RawDataset: samples as they are stored, in the one global order; nothing is decoded."""

from __future__ import annotations

import numpy as np

from cope_prep.pipeline.loader.batch import RawBatch, Skipped
from cope_prep.pipeline.loader.buffer import Buffer
from cope_prep.pipeline.loader.filters import GopFilter
from cope_prep.pipeline.loader.gops import identities, with_filter
from cope_prep.pipeline.loader.mix import Source, open_mix
from cope_prep.pipeline.loader.order import DEFAULT_SHUFFLE, Shuffle
from cope_prep.pipeline.loader.plan import LastBatch
from cope_prep.pipeline.loader.primitives import residual_scale
from cope_prep.pipeline.loader.reader import ShardReader
from cope_prep.pipeline.loader.samples import SampleStore
from cope_prep.pipeline.loader.stream import InfoMaker, OnError, StreamDataset
from cope_prep.schemas.errors import CopePrepError


class RawDataset(StreamDataset[RawBatch]):
    """Batches of the bytes of GOP samples: order, state, cache, checks and mixes as GopDataset has them."""

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int = 1,
        where: GopFilter | None = None,
        seed: int = 0,
        shuffle: Shuffle | None = DEFAULT_SHUFFLE,
        last: LastBatch = "drop",
        on_error: OnError = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        reader: ShardReader | None = None,
    ) -> None:
        """Arguments as GopDataset's. The order is that of GopDataset(unit="gop")."""
        mix = open_mix(with_filter(source, where), per_video=False)
        self._scale = residual_scale(mix.folders[0].specs.extract.residual)
        chunk_bytes = (shuffle or DEFAULT_SHUFFLE).chunk_bytes
        store = SampleStore(mix.catalog, reader=reader or ShardReader(), chunk_bytes=chunk_bytes)
        part = mix.part_of_sample()
        super().__init__(
            store,
            chunk_of_unit=store.chunk,
            part_of_unit=part,
            group_of_unit=store.chunk,
            visit_size=1,
            weights=[part.weight for part in mix.parts],
            identity={"kind": "raw", "parts": identities(mix)},
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
        return np.array([unit])

    def _make_batch(self, units: np.ndarray, make_info: InfoMaker) -> RawBatch:
        sizes = self.store.catalog.size_bytes[units]
        ends = np.cumsum(sizes)
        buffer = Buffer.allocate(
            {
                "data": (np.uint8, (int(ends[-1]),)),
                "offset_bytes": (np.int64, (len(units) + 1,)),
                "is_valid": (np.bool_, (len(units),)),
            }
        )
        arrays = buffer.arrays()
        arrays["offset_bytes"][0] = 0
        arrays["offset_bytes"][1:] = ends
        skipped: list[Skipped] = []
        for index, (unit, end, size) in enumerate(
            zip(units.tolist(), ends.tolist(), sizes.tolist(), strict=True)
        ):
            place = arrays["data"][end - size : end]
            try:
                self.store.read_into(place.data, unit)
                arrays["is_valid"][index] = True
            except CopePrepError as exc:
                skipped.append(self._failed(unit, make_info.positions[index], exc))
                place[:] = 0
                arrays["is_valid"][index] = False
        return RawBatch.from_buffer(buffer, make_info.of(units.tolist(), skipped, self.store, self._scale))

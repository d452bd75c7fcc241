"""What a simulation replays: the units of an epoch, GOPs or questions, from the index and the questions alone.

The same functions in the same order as GopDataset and QADataset, without torch and without a reader; tests
compare the orders. A bare index.parquet is enough: what dataset.json would say comes from flags.
"""

from __future__ import annotations

import posixpath
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Specs
from cope_prep.pipeline.loader.catalog import Catalog, ShardFolder, open_shards, read_catalog
from cope_prep.pipeline.loader.order import Shuffle, compact, epoch_order
from cope_prep.pipeline.loader.questions import plan_questions
from cope_prep.pipeline.loader.reader import ShardReader
from cope_prep.pipeline.loader.samples import SampleStore
from cope_prep.pipeline.parquet import read_columns
from cope_prep.schemas.errors import ConfigurationError, FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class BareIndex(ShardFolder):
    """An index.parquet alone: sizes of shards are not known (0), specs are what the caller says."""

    index: str

    @property
    def index_uri(self) -> str:
        """URI of the index, whatever its name."""
        return self.index


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochUnits:
    """The units of an epoch in storage order, and the chunks that they are read with."""

    name: str
    """GOPs or questions."""
    catalog: Catalog
    specs: Specs
    chunk_of_unit: np.ndarray
    """int64 [num_units], ascending without gaps: what the order is made of."""
    first_sample: np.ndarray
    """int64 [num_units]: a unit needs samples first_sample ... first_sample + num_samples - 1."""
    num_samples: np.ndarray
    """int64 [num_units]."""
    chunk: np.ndarray
    """int64 [num_samples in the catalog]: chunk of each sample."""
    chunk_bytes: np.ndarray
    """int64 [num_chunks]."""
    num_without_video: int
    """Questions that are left out because their video is not in the index."""
    seconds: dict[str, float]
    """Time taken: `index`, `questions`, `chunks`."""

    def __len__(self) -> int:
        return len(self.first_sample)

    def sums(self, per_sample: np.ndarray) -> np.ndarray:
        """int64 [num_units]: sums over the samples of each unit of a figure, int [num_samples]."""
        ends = np.concatenate([[0], np.cumsum(per_sample, dtype=np.int64)])
        return ends[self.first_sample + self.num_samples] - ends[self.first_sample]

    def chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 [num_units] twice: the first and the last chunk of each unit."""
        first = self.chunk[self.first_sample].astype(np.int32)
        return first, self.chunk[self.first_sample + self.num_samples - 1].astype(np.int32)

    @property
    def memory_bytes(self) -> int:
        """What a loader keeps of this in memory, with one epoch's order."""
        catalog = self.catalog
        columns = (catalog.shard, catalog.video, catalog.gop_index, catalog.start_s, catalog.num_frames)
        places = (catalog.size_px, catalog.offset_bytes, catalog.size_bytes, catalog.crc32c)
        ours = (self.chunk_of_unit, self.first_sample, self.num_samples, self.chunk, self.chunk_bytes)
        order_bytes = 4 * len(self)
        return sum(array.nbytes for array in (*columns, *places, *ours, catalog.video_ids)) + order_bytes


def open_index(uri: str, *, spec: str | None, bare_specs: Specs | None) -> ShardFolder:
    """The shards of DATASET or DATASET/shards/<hash>; or an index.parquet, alone or beside its dataset.json.

    bare_specs: settings of a bare index; None for the defaults.

    Raises:
        ConfigurationError: there are no shards, or settings were given that dataset.json knows.
        SourceNotFoundError, FormatError: there is no index at that path, or it is none.
    """
    is_file = uri.endswith(".parquet")
    folder = storage.parent(uri) if is_file else uri
    has_document = posixpath.basename(uri) == "index.parquet" and storage.exists(
        storage.join(folder, "dataset.json")
    )
    if is_file and not has_document:
        return BareIndex(
            uri=folder,
            specs=bare_specs or Specs(),
            spec_hash="",
            shard_bytes=dict.fromkeys(_shard_names(uri), 0),
            index_bytes=0,
            index_crc32c=0,
            index=uri,
        )
    if bare_specs is not None:
        raise ConfigurationError(
            uri, "has its settings in dataset.json", "Leave out --fps, --gop-size and --window."
        )
    return open_shards(folder, spec=spec)


def gop_units(folder: ShardFolder, *, shuffle: Shuffle) -> EpochUnits:
    """Each GOP a unit, as GopDataset has them."""
    return _make_units(folder, None, shuffle=shuffle, seed=0)


def question_units(folder: ShardFolder, questions: str, *, shuffle: Shuffle, seed: int) -> EpochUnits:
    """Each question a unit that needs all GOPs of its video, as QADataset has them.

    Raises:
        ConfigurationError: no question is about a video of the index.
    """
    return _make_units(folder, questions, shuffle=shuffle, seed=seed)


def order_of(units: EpochUnits, *, shuffle: Shuffle, seed: int, epoch: int) -> np.ndarray:
    """uint32 [num_units]: the epoch's order."""
    return epoch_order(units.chunk_of_unit, shuffle=shuffle, seed=seed, epoch=epoch)


def _make_units(folder: ShardFolder, questions: str | None, *, shuffle: Shuffle, seed: int) -> EpochUnits:
    seconds: dict[str, float] = defaultdict(float)
    with _timed(seconds, "index"):
        catalog = read_catalog(folder)
    if len(catalog) == 0:
        raise ConfigurationError(folder.index_uri, "has no samples")
    with _timed(seconds, "chunks"):
        store = SampleStore(
            catalog,
            reader=ShardReader(),
            chunk_bytes=shuffle.chunk_bytes,
            by_video=questions is not None,
        )
    first_sample, num_samples = np.arange(len(catalog)), np.ones(len(catalog), np.int64)
    num_without_video = 0
    if questions is not None:
        with _timed(seconds, "questions"):
            plan = plan_questions(questions, catalog.video_ids, mix=None, seed=seed)
            first_gop, num_gops = catalog.video_spans()
            video = plan.video[np.argsort(first_gop[plan.video], kind="stable")]
            first_sample, num_samples = first_gop[video], num_gops[video]
            num_without_video = plan.num_without_video
        if len(first_sample) == 0:
            raise ConfigurationError(
                questions, f"none of its {num_without_video} questions is about a video of {folder.index_uri}"
            )
    return EpochUnits(
        name="GOPs" if questions is None else "questions",
        catalog=catalog,
        specs=folder.specs,
        chunk_of_unit=compact(store.chunk[first_sample]),
        first_sample=first_sample,
        num_samples=num_samples,
        chunk=store.chunk,
        chunk_bytes=store.chunk_bytes,
        num_without_video=num_without_video,
        seconds=dict(seconds),
    )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start_s = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start_s


def _shard_names(uri: str) -> list[str]:
    try:
        with storage.open_read(uri) as file:
            return read_columns(file, ["shard"])["shard"].unique().to_pylist()
    except pa.ArrowInvalid as exc:
        found = str(exc).partition("\n")[0]
        raise FormatError(uri, f"is not an index of shards ({found})") from exc

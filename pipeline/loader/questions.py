"""questions.parquet for the loader: who asks about which video, at once; the texts, when they are wanted.

The plan needs three columns. The texts, a gigabyte for LLaVA-Video-178K, are unpacked once into an Arrow file
beside the local cache and mapped into memory from there, so that any row is at hand, and all processes of a
machine share one copy in its page cache. The first process that asks unpacks, the others wait for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from cope_prep.pipeline import storage
from cope_prep.pipeline.llava_layout import QuestionFile
from cope_prep.pipeline.loader.catalog import dictionary_codes, read_parquet
from cope_prep.pipeline.loader.remote_file import fetch_stat, open_file
from cope_prep.pipeline.loader.shared_folder import link_file, lock_byte, locked, unnamed_file
from cope_prep.pipeline.manifest_report import SkipCounter
from cope_prep.pipeline.mix_yaml import read_mix, resolve_mix
from cope_prep.pipeline.parquet import PARQUET_THREADS, open_parquet
from cope_prep.schemas.arrow import QUESTIONS
from cope_prep.schemas.errors import ConfigurationError, SourceNotFoundError, StorageError
from cope_prep.schemas.records import QARecord

logger = logging.getLogger("cope_prep.loader")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPlan:
    """The questions of a table that are used, without their texts; one entry a question, in the table's order."""

    uri: str
    version: str
    """Changes with the table's content."""
    row: np.ndarray
    """int64 [num_questions]: in the table."""
    video: np.ndarray
    """int64 [num_questions]: index into the video ids that were asked for."""
    json_path: pa.DictionaryArray
    """[num_questions]: the question file that each came from."""
    kind: pa.DictionaryArray
    """[num_questions]: cap, oe or mc."""
    num_without_video: int
    """Questions of the table (and mix) that are left out because their video is not in the shards."""

    def __len__(self) -> int:
        return len(self.row)

    def with_videos(self, video: np.ndarray) -> QuestionPlan:
        """The same with other numbers for the videos."""
        return replace(self, video=video)

    def only(self, wanted: np.ndarray) -> QuestionPlan:
        """These questions only; bool [num_questions]."""
        mask = pa.array(wanted)
        return replace(
            self,
            row=self.row[wanted],
            video=self.video[wanted],
            json_path=self.json_path.filter(mask),
            kind=self.kind.filter(mask),
        )


def plan_questions(uri: str, video_ids: pa.Array, *, mix: str | None, seed: int) -> QuestionPlan:
    """Which questions there are about these videos.

    mix: LLaVA-NeXT mix YAML; its strategies choose among the rows of each question file, as they are in the table.

    Raises:
        ConfigurationError: there is no such table, or the mix does not fit it.
        FormatError, SchemaVersionError: it is not a table of questions.
    """
    table = _read_light(uri)
    row = np.arange(len(table))
    if mix is not None:
        row = _rows_of_mix(table["json_path"], mix, seed=seed)
        table = table.take(row)
    asked = dictionary_codes(table["video_id"])
    places = pc.index_in(asked.dictionary, value_set=video_ids)  # pyright: ignore[reportAttributeAccessIssue]
    video = places.take(asked.indices)
    is_there = video.is_valid().to_numpy(zero_copy_only=False)
    table = table.filter(pa.array(is_there))
    return QuestionPlan(
        uri=uri,
        version=_version(uri),
        row=row[is_there],
        video=video.drop_null().to_numpy().astype(np.int64),
        json_path=dictionary_codes(table["json_path"]),
        kind=dictionary_codes(table["kind"]),
        num_without_video=int(len(is_there) - is_there.sum()),
    )


class QuestionTexts:
    """Rows of one or several tables of questions as QARecords, from memory-mapped copies of them."""

    def __init__(self, plans: Sequence[QuestionPlan], folder: str) -> None:
        """`folder`: where the copies are, or are made when the first text is wanted."""
        self._sources = [(plan.uri, plan.version) for plan in plans]
        self._folder = folder
        self._tables: list[_MappedTable | None] = [None] * len(plans)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": [None] * len(self._tables)}

    def record(self, part: int, row: int) -> QARecord:
        """A question: row `row` of the table of part `part`."""
        table = self._tables[part]
        if table is None:
            uri, version = self._sources[part]
            table = self._tables[part] = _MappedTable(_unpacked(uri, version, self._folder))
        return table.record(row)


class _MappedTable:
    def __init__(self, path: str) -> None:
        self._file = pyarrow.ipc.open_file(pa.memory_map(path))
        sizes = [self._file.get_batch(index).num_rows for index in range(self._file.num_record_batches)]
        self._ends = np.cumsum(sizes)

    def record(self, row: int) -> QARecord:
        index = int(np.searchsorted(self._ends, row, side="right"))
        batch = self._file.get_batch(index)
        values = batch.slice(row - int(self._ends[index]) + batch.num_rows, 1).to_pylist()[0]
        turns = tuple((turn["from"], turn["value"]) for turn in values.pop("turns") or ())
        return QARecord(**values, turns=turns)


def _read_light(uri: str) -> pa.Table:
    """video_id, json_path and kind of every question, as codes."""
    columns = ["video_id", "json_path", "kind"]
    try:
        return read_parquet(uri, QUESTIONS, columns, dictionary=columns)
    except SourceNotFoundError as exc:
        raise ConfigurationError(
            uri, "there is no table of questions", "Make the manifest with: cope-prep manifest llava-video"
        ) from exc


def questions_uri(dataset: str, shards: str) -> str:
    """questions.parquet of a dataset that was given as DATASET or as DATASET/shards/<hash>."""
    return storage.join(dataset if dataset != shards else storage.parent(shards, 2), "questions.parquet")


def _rows_of_mix(json_path: pa.ChunkedArray, mix: str, *, seed: int) -> np.ndarray:
    """int64: the rows that a mix takes, in the table's order."""
    encoded = dictionary_codes(json_path)
    codes = encoded.indices.to_numpy()
    names = encoded.dictionary.to_pylist()
    # The kind is in the table already: resolving needs the paths alone.
    files = [QuestionFile(path=name, kind="") for name in names]
    chosen = []
    skips = SkipCounter()
    resolved = resolve_mix(read_mix(mix), files, mix=mix, skips=skips)
    for skipped in skips.result():
        logger.info("%s: %s is left out: %s", mix, skipped.what, skipped.reason)
    for file, sampling in resolved:
        rows = np.flatnonzero(codes == names.index(file.path))
        chosen.append(rows[sampling.positions(len(rows), seed=seed, name=file.path)])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _version(uri: str) -> str:
    stat = fetch_stat(uri)
    return f"{stat.size_bytes}-{stat.version}"


def texts_folder(cache_dir: str) -> str:
    """Where texts are unpacked: beside the chunks, whose folder has a limit and forgets."""
    return f"{os.path.abspath(cache_dir)}-questions"


def _unpacked(uri: str, version: str, folder: str) -> str:
    """Path of the table as an Arrow file, made if it is not there."""
    name = f"{google_crc32c.value(f'{uri} {version}'.encode()):08x}-{version.replace('/', '_')}.arrow"
    path = os.path.join(folder, name)
    if os.path.exists(path):
        return path
    try:
        os.makedirs(folder, exist_ok=True)
        with locked(folder, lock_byte(name)) as lock_fd:
            if not os.path.exists(path):  # made by who held the lock before
                with unnamed_file(folder, name) as written_fd:
                    _unpack(uri, written_fd)
                    os.fsync(written_fd)
                    link_file(written_fd, folder, name, lock_fd=lock_fd)
    except OSError as exc:
        raise StorageError(
            folder,
            f"the texts of {uri} cannot be unpacked there ({exc.strerror or exc})",
            "Make room, or choose another cache folder: they are put beside it.",
        ) from exc
    return path


def _unpack(uri: str, out_fd: int) -> None:
    with open_file(uri) as file, open(out_fd, "wb", closefd=False) as out:
        parquet = open_parquet(file)
        with pyarrow.ipc.new_file(out, parquet.schema_arrow) as writer:
            for batch in parquet.iter_batches(batch_size=1 << 14, use_threads=PARQUET_THREADS):
                writer.write_batch(batch)

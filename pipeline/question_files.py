"""Question files: one JSON array of records -> columns, with every record that cannot be used counted.

A file of some 300 MB is read in pieces and decoded record by record, so that no more than a batch of
records exists as Python objects at a time: the cost is that of `json.loads`, the memory that of the columns.
A record needs a `video` path and `conversations` in which human and gpt take turns; several pairs are kept.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa

from cope_prep.pipeline import storage
from cope_prep.pipeline.source_tree import is_unicode
from cope_prep.schemas.arrow import QUESTIONS

_PIECE_BYTES = 8 * 1024 * 1024
_BATCH_RECORDS = 16_384
_TURNS: pa.ListType = QUESTIONS.field("turns").type
_WHITESPACE = " \t\n\r"
_DELIMITER = re.compile(rf"[{_WHITESPACE}]*([,\]])")

DUPLICATE = "repeats the video and conversation of an earlier record"


class _NotAnArray(ValueError):  # noqa: N818 (never leaves this module)
    """The text is not one JSON array; the message says what it is."""


class _Record(NamedTuple):
    video_id: str
    data_source: str
    speakers: list[str]
    values: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedFile:
    """The usable records of one question file, in the file's order."""

    sha256: str
    """Of the file's bytes, 64 hex digits."""
    failure: str
    """Why no record of it can be used; empty if some can."""
    num_records: int
    """Of the array, usable or not."""
    positions: np.ndarray
    """int64 [num_usable]: positions in the array, ascending."""
    digests: np.ndarray
    """uint64 [num_usable]: hash of video and conversation; equal for repeated records."""
    columns: pa.Table
    """video_id, data_source (empty if the record has none) and turns, [num_usable]."""
    rejected: dict[str, list[int]]
    """Reason -> positions of the records that cannot be used."""


def parse_question_file(uri: str) -> ParsedFile:
    """Read a question file.

    Raises:
        StorageError: the store could not deliver it.
    """
    builder = _ColumnBuilder()
    digest = hashlib.sha256()
    failure = ""
    with storage.open_read(uri) as file:
        try:
            for record in _iterate_array(_decode_pieces(file, digest)):
                builder.add(record)
        except UnicodeDecodeError as exc:
            failure = f"is not UTF-8 text ({exc.reason})"
        except _NotAnArray as exc:
            failure = str(exc)
        while piece := file.read(_PIECE_BYTES):  # the hash is of the whole file, usable or not
            digest.update(piece)
    if failure:
        builder = _ColumnBuilder()  # half a file is not a smaller file: percentages of it mean nothing
    return builder.finish(sha256=digest.hexdigest(), failure=failure)


def _decode_pieces(file: IO[bytes], digest: hashlib._Hash) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)


def _iterate_array(pieces: Iterator[str]) -> Iterator[object]:
    """The elements of a JSON array, decoded one by one."""
    decoder = json.JSONDecoder()
    text, at = "", 0

    def more() -> bool:
        nonlocal text, at
        piece = next(pieces, None)
        if piece is None:
            return False
        text, at = text[at:] + piece, 0
        return True

    def next_character() -> str:
        """The next character that is not white space; empty at the end of the text."""
        nonlocal at
        while True:
            while at < len(text) and text[at] in _WHITESPACE:
                at += 1
            if at < len(text):
                return text[at]
            if not more():
                return ""

    if next_character() != "[":
        raise _NotAnArray("is not a JSON array of records")
    at += 1
    if next_character() == "]":
        at += 1
    else:
        index = 0
        while True:
            next_character()
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as exc:  # a number of 5,000 digits is a plain ValueError
                if more():  # perhaps the record goes on in the next piece
                    continue
                raise _NotAnArray(f"is not valid JSON from record {index} on: truncated, or damaged") from exc
            delimiter = _DELIMITER.match(text, end)
            if delimiter is None:  # the piece ends here, perhaps within a number, as in 1.5|e3
                if more():
                    continue
                raise _NotAnArray(f"is not valid JSON after record {index}: truncated, or damaged")
            yield value
            index += 1
            at = delimiter.end()
            if delimiter[1] == "]":
                break
    if next_character():
        raise _NotAnArray("has text after the end of its array")


def _read_record(record: object) -> _Record | str:
    """The parts of a record, or why it cannot be used."""
    if not isinstance(record, dict):
        return "is not an object"
    video, turns = record.get("video"), record.get("conversations")
    if not isinstance(video, str) or not video.strip():
        return "has no video path"
    if not isinstance(turns, list) or not turns:
        return "has no conversations"
    speakers, values = [], []
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        value = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(value, str):
            return "has a turn without text"
        if speaker not in ("human", "gpt"):
            return f"has an unknown speaker {_shorten(speaker)}"
        speakers.append(speaker)
        values.append(value)
    if speakers[0] != "human" or speakers[-1] != "gpt" or any(a == b for a, b in pairwise(speakers)):
        return "has turns that do not alternate between human and gpt"
    if video[0] == "/" or ".." in video.split("/"):
        return "has a video path that is not inside the root"
    if "//" in video or "./" in video:
        video = posixpath.normpath(video)  # one file has one id, however it is written
    source = record.get("data_source")
    if not isinstance(source, str):
        source = ""
    if not all(is_unicode(text) for text in (video, source, *values)):
        return "has text that is not valid Unicode"
    return _Record(video, source, speakers, values)


def _shorten(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class _ColumnBuilder:
    """Collects records in plain lists and turns them into Arrow a batch at a time."""

    def __init__(self) -> None:
        self._num_records = 0
        self._rejected: dict[str, list[int]] = {}
        self._positions: list[int] = []
        self._digests: list[bytes] = []
        self._batches: list[pa.RecordBatch] = []
        self._start_batch()

    def _start_batch(self) -> None:
        self._videos: list[str] = []
        self._sources: list[str] = []
        self._speakers: list[str] = []
        self._values: list[str] = []
        self._offsets = [0]

    def add(self, record: object) -> None:
        """Take the array's next record."""
        position = self._num_records
        self._num_records += 1
        parts = _read_record(record)
        if isinstance(parts, str):
            self._rejected.setdefault(parts, []).append(position)
            return
        self._positions.append(position)
        content = "\0".join((parts.video_id, *parts.values))  # the speakers follow from the order
        self._digests.append(hashlib.blake2b(content.encode(), digest_size=8).digest())
        self._videos.append(parts.video_id)
        self._sources.append(parts.data_source)
        self._speakers += parts.speakers
        self._values += parts.values
        self._offsets.append(len(self._values))
        if len(self._videos) == _BATCH_RECORDS:
            self._flush()

    def _flush(self) -> None:
        turn = _TURNS.value_type
        turns = pa.StructArray.from_arrays(
            [pa.array(self._speakers, pa.string()), pa.array(self._values, pa.string())],
            fields=[turn.field(0), turn.field(1)],
        )
        self._batches.append(
            pa.RecordBatch.from_arrays(
                [
                    pa.array(self._videos, pa.string()),
                    pa.array(self._sources, pa.string()),
                    pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), turns, type=_TURNS),
                ],
                schema=pa.schema([QUESTIONS.field(name) for name in ("video_id", "data_source", "turns")]),
            )
        )
        self._start_batch()

    def finish(self, *, sha256: str, failure: str) -> ParsedFile:
        """Everything that was added."""
        self._flush()
        return ParsedFile(
            sha256=sha256,
            failure=failure,
            num_records=self._num_records,
            positions=np.array(self._positions, dtype=np.int64),
            digests=np.frombuffer(b"".join(self._digests), dtype="<u8"),
            columns=pa.Table.from_batches(self._batches),
            rejected=self._rejected,
        )

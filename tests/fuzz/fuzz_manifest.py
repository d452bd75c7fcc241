"""Fuzz what a manifest is made from and stored in: LLaVA's question files (JSON), and the Parquet tables.

input := kind (1 byte) | content; of the kinds see READERS
"""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from fuzzing import fuzz, instrumented, mutate_bytes, mutate_json

with instrumented():
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cope_prep.pipeline import question_files, storage
    from cope_prep.schemas.arrow import MANIFEST, QUESTIONS
    from cope_prep.schemas.errors import CopePrepError

_NAME = "input"


def one_input(data: bytes) -> None:
    """Read a question file or a table."""
    if not data:
        return
    content = data[1:]
    # A file costs a hundred times what most inputs do.
    with mock.patch.object(storage, "open_read", side_effect=lambda uri: io.BytesIO(content)):
        READERS[data[0] % len(READERS)](content)


def _read_questions(content: bytes) -> None:
    with mock.patch.object(
        question_files, "_PIECE_BYTES", 61
    ):  # records go on in the next, as in a large file
        parsed = question_files.parse_question_file(_NAME)
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, list):
        assert parsed.failure
        return
    assert parsed.failure == ""
    assert parsed.num_records == len(document)
    num_rejected = sum(map(len, parsed.rejected.values()))
    assert len(parsed.positions) == len(parsed.digests) == parsed.columns.num_rows
    assert len(parsed.positions) + num_rejected == parsed.num_records
    for video_id in parsed.columns["video_id"].to_pylist():
        assert not video_id.startswith("/")
        assert ".." not in video_id.split("/")


def _read_manifest(content: bytes) -> None:
    _read_table(MANIFEST)


def _read_question_table(content: bytes) -> None:
    _read_table(QUESTIONS)


def _read_table(schema: pa.Schema) -> None:
    try:
        table = storage.read_table(_NAME, schema)
    except CopePrepError:
        return
    assert table.schema.names == schema.names
    table.validate(full=True)


READERS = (_read_questions, _read_manifest, _read_question_table)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """A JSON file by its values or its bytes, a table by its bytes."""
    rng = random.Random(seed)
    kind, content = data[:1] or b"\0", data[1:]
    changed = mutate_json(content, rng) if kind == b"\0" and rng.random() < 0.5 else None
    return kind + (mutate_bytes(content, max_size - 1) if changed is None else changed)[: max_size - 1]


def seeds() -> list[bytes]:
    """A question file and two tables."""
    record = (
        '{"id": 1, "video": "academic_source/a.mp4", "data_source": "0_30_s_academic", "conversations":'
        ' [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": "A cat."}]}'
    )
    texts = [
        f"[{record}]",
        f"[{record}, {record}, {{}}]",
        "[]",
        '[{"video": 1e5, "conversations": [[-1.5]]}]',
    ]
    found = [b"\0" + text.encode() for text in texts]
    rows = {
        "video_id": ["a.mp4"],
        "video_key": ["0" * 16],
        "uri": ["/a.mp4"],
        "subset": [""],
        "size_bytes": [1],
        "version": ["1"],
    }
    for compression in ("none", "zstd"):
        buffer = io.BytesIO()
        pq.write_table(pa.table(rows, schema=MANIFEST), buffer, compression=compression)
        found.append(b"\1" + buffer.getvalue())
    buffer = io.BytesIO()
    pq.write_table(QUESTIONS.empty_table(), buffer)
    found.append(b"\2" + buffer.getvalue())
    return found


if __name__ == "__main__":
    fuzz(one_input, seeds=seeds(), mutate=mutate)

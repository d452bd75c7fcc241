"""Question files: pieces of any size give the records of json.loads; bad records and files are named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cope_prep.pipeline import question_files
from cope_prep.pipeline.question_files import parse_question_file

TURNS = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "So."}]


def record(**changes: object) -> dict[str, object]:
    return {"id": "1", "data_source": "s", "video": "a/b.mp4", "conversations": TURNS, **changes}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.lists(JSON_VALUES, max_size=6),
    piece_bytes=st.integers(1, 40),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
    bom=st.booleans(),
)
def test_pieces_give_what_json_loads_gives(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    values: list[object],
    piece_bytes: int,
    indent: int | None,
    ascii_only: bool,
    bom: bool,
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    content = b"\xef\xbb\xbf" * bom + text.encode("utf-8", "replace") + b" \n"
    path = tmp_path / "f.json"
    path.write_bytes(content)
    monkeypatch.setattr(question_files, "_PIECE_BYTES", piece_bytes)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        found = list(question_files._iterate_array(question_files._decode_pieces(file, digest)))
    assert found == json.loads(content.decode("utf-8-sig"))
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
def test_records_become_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, piece_bytes: int) -> None:
    monkeypatch.setattr(question_files, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(question_files, "_BATCH_RECORDS", 2)
    records = [record(video=f"a/{index}.mp4") for index in range(5)]
    records[2]["conversations"] = [
        *TURNS,
        {"from": "human", "value": "Grüße 🎈?"},
        {"from": "gpt", "value": ""},
    ]
    del records[3]["data_source"]
    content = json.dumps(records, ensure_ascii=False).encode()
    path = tmp_path / "f.json"
    path.write_bytes(content)
    parsed = parse_question_file(str(path))
    assert parsed.sha256 == hashlib.sha256(content).hexdigest()
    assert (parsed.failure, parsed.num_records, parsed.rejected) == ("", 5, {})
    assert parsed.positions.tolist() == [0, 1, 2, 3, 4]
    rows = parsed.columns.to_pylist()
    assert [row["video_id"] for row in rows] == [f"a/{index}.mp4" for index in range(5)]
    assert [row["data_source"] for row in rows] == ["s", "s", "s", "", "s"]
    assert [row["turns"] for row in rows] == [entry["conversations"] for entry in records]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "is not an object"),
        ([], "is not an object"),
        (17, "is not an object"),
        (record(video=None), "has no video path"),
        (record(video=" "), "has no video path"),
        (record(video=["a.mp4"]), "has no video path"),
        ({"id": "1", "image": "a.jpg", "conversations": TURNS}, "has no video path"),
        (record(conversations=None), "has no conversations"),
        (record(conversations=[]), "has no conversations"),
        (record(conversations="Why?"), "has no conversations"),
        (record(conversations=[{"from": "human"}, TURNS[1]]), "has a turn without text"),
        (record(conversations=["Why?", "So."]), "has a turn without text"),
        (record(conversations=[{"from": "user", "value": "?"}]), "has an unknown speaker 'user'"),
        (record(conversations=[{"from": {}, "value": "?"}]), "has an unknown speaker {}"),
        (record(conversations=TURNS[:1]), "has turns that do not alternate between human and gpt"),
        (record(conversations=TURNS[::-1]), "has turns that do not alternate between human and gpt"),
        (record(conversations=[*TURNS, TURNS[1]]), "has turns that do not alternate between human and gpt"),
        (record(video="/etc/a.mp4"), "has a video path that is not inside the root"),
        (record(video="a/../../b.mp4"), "has a video path that is not inside the root"),
        (record(video="a\ud800.mp4"), "has text that is not valid Unicode"),
        (
            record(conversations=[TURNS[0], {"from": "gpt", "value": "\udc00"}]),
            "has text that is not valid Unicode",
        ),
    ],
)
def test_bad_record_is_rejected_with_a_reason(tmp_path: Path, bad: object, reason: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps([record(), bad, record(id="2", video="c.mp4")]))
    parsed = parse_question_file(str(path))
    assert parsed.rejected == {reason: [1]}
    assert parsed.num_records == 3
    assert parsed.positions.tolist() == [0, 2]
    assert parsed.columns.num_rows == 2


def test_one_file_has_one_id_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps([record(video=name) for name in ("a/b.mp4", "./a/b.mp4", "a//b.mp4")]))
    assert parse_question_file(str(path)).columns["video_id"].to_pylist() == ["a/b.mp4"] * 3


def test_digest_is_that_of_video_and_conversation(tmp_path: Path) -> None:
    other = [TURNS[0], {"from": "gpt", "value": "No."}]
    records = [record(), record(id="2", data_source="t"), record(video="c.mp4"), record(conversations=other)]
    path = tmp_path / "f.json"
    path.write_text(json.dumps(records))
    digests = parse_question_file(str(path)).digests.tolist()
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


GOOD = json.dumps([record()]).encode()


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
@pytest.mark.parametrize(
    ("content", "failure"),
    [
        (b"", "not a JSON array"),
        (b"  \n", "not a JSON array"),
        (b'{"datasets": []}', "not a JSON array"),
        (GOOD.replace(b"}]}]", b"}]}\n"), "not valid JSON after record 0"),
        (GOOD[:-2], "not valid JSON from record 0 on: truncated"),
        (GOOD[:-1] + b",", "not valid JSON from record 1 on"),
        (GOOD[:-1] + b",]", "not valid JSON from record 1 on"),
        (GOOD[:-1] + b" 3]", "not valid JSON after record 0"),
        (GOOD + b"[", "text after the end"),
        (GOOD.replace(b"So.", b"\xff"), "not UTF-8"),
        (b"\x1f\x8b\x08\x00", "not"),  # gzip: no array or no UTF-8, as the pieces fall
        (b"[" + b"[" * 200_000, "not valid JSON from record 0"),
    ],
)
def test_file_that_is_no_array_is_named_and_still_hashed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, failure: str, piece_bytes: int
) -> None:
    monkeypatch.setattr(question_files, "_PIECE_BYTES", max(piece_bytes, len(content) // 100))
    path = tmp_path / "f.json"
    path.write_bytes(content)
    parsed = parse_question_file(str(path))
    assert failure in parsed.failure
    assert parsed.sha256 == hashlib.sha256(content).hexdigest()
    assert parsed.num_records == parsed.columns.num_rows == len(parsed.positions) == 0


def test_empty_array_is_no_failure(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(" [ ] ")
    parsed = parse_question_file(str(path))
    assert (parsed.failure, parsed.num_records, parsed.columns.num_rows) == ("", 0, 0)

"""The ledger: what is appended is read back, the last row of a video wins, and a merge loses nothing."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pyarrow as pa
import pytest

from cope_prep.pipeline import ledger as ledger_module
from cope_prep.pipeline import patience, storage
from cope_prep.pipeline.ledger import Ledger, LedgerRow, LedgerWriter, last_finished, rows_of
from cope_prep.schemas.arrow import LEDGER, SOURCE_COLUMNS
from cope_prep.schemas.errors import FormatError, SchemaVersionError, StorageError


def make_row(video_id: str, *, finished_unix_s: float = 1.0, **changes: object) -> LedgerRow:
    row = LedgerRow(
        video_id=video_id,
        video_key=f"{abs(hash(video_id)):016x}"[:16],
        stage="reencode",
        spec_hash="0123456789ab",
        status="ok",
        source_size_bytes=10,
        source_version="v1",
        output_uri=f"/out/{video_id}.mp4",
        finished_unix_s=finished_unix_s,
    )
    return dataclasses.replace(row, **changes)


def parts(ledger: Ledger) -> list[str]:
    return storage.list_files(ledger.folder_uri)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger"))


def test_row_has_the_columns_of_the_schema() -> None:
    assert [field.name for field in dataclasses.fields(LedgerRow)] == LEDGER.names


def test_empty_ledger_reads_as_an_empty_table(ledger: Ledger) -> None:
    assert ledger.read().num_rows == 0
    assert ledger.read().schema.equals(LEDGER)


def test_rows_survive_the_round_trip(ledger: Ledger) -> None:
    rows = [make_row("a"), make_row("b", finished_unix_s=2.0, num_frames=7, duration_s=0.25)]
    ledger.append(rows)
    assert rows_of(ledger.read()) == rows


def test_last_finished_row_wins_over_parts(ledger: Ledger) -> None:
    ledger.append([make_row("a", finished_unix_s=5.0, attempts=2), make_row("b", finished_unix_s=1.0)])
    ledger.append([make_row("a", finished_unix_s=3.0, attempts=1), make_row("b", finished_unix_s=9.0)])
    assert {row.video_id: row.finished_unix_s for row in rows_of(ledger.read())} == {"a": 5.0, "b": 9.0}


def test_last_finished_agrees_with_a_plain_loop(ledger: Ledger) -> None:
    rows = [
        make_row(f"v{(i * 7919) % 50}", finished_unix_s=float((i * 104729) % 1009), attempts=i + 1)
        for i in range(400)
    ]
    expected: dict[str, LedgerRow] = {}
    for row in rows:
        if row.video_id not in expected or row.finished_unix_s >= expected[row.video_id].finished_unix_s:
            expected[row.video_id] = row
    ledger.append(rows)
    assert {row.video_id: row for row in rows_of(ledger.read())} == expected
    assert len(expected) == 50


def test_compact_leaves_one_part_with_the_same_rows(ledger: Ledger) -> None:
    for index in range(5):
        ledger.append([make_row("same", finished_unix_s=float(index)), make_row(f"v{index}")])
    before = ledger.read()
    ledger.compact()
    assert len(parts(ledger)) == 1
    assert ledger.read().sort_by("video_id").equals(before.sort_by("video_id"))


def test_compact_killed_before_deleting_changes_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        ledger.append([make_row("same", finished_unix_s=float(index)), make_row(f"v{index}")])
    before = ledger.read()

    def die(uri: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "remove", die)
    with pytest.raises(KeyboardInterrupt):
        ledger.compact()
    assert len(parts(ledger)) == 4
    assert ledger.read().sort_by("video_id").equals(before.sort_by("video_id"))


def test_reader_follows_a_merge_that_happens_under_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.append([make_row("a")])
    ledger.append([make_row("b")])
    listing = storage.list_files
    stale = [listing(ledger.folder_uri)]
    Ledger(ledger.folder_uri).compact()
    monkeypatch.setattr(storage, "list_files", lambda uri: stale.pop() if stale else listing(uri))
    assert {row.video_id for row in rows_of(ledger.read())} == {"a", "b"}
    assert not stale


KNOWN_SOURCE = {
    "source_codec": "h264",
    "source_width_px": 1920,
    "source_height_px": 1080,
    "source_fps": 29.97,
    "source_duration_s": 12.5,
}


def append_as_before_the_source_columns(ledger: Ledger, rows: list[LedgerRow]) -> None:
    table = ledger_module.pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=LEDGER)
    uri = storage.join(ledger.folder_uri, "part-0000000000001-old.parquet")
    storage.publish_table(uri, table.drop_columns(list(SOURCE_COLUMNS)))


def test_parts_from_before_and_after_the_source_columns_are_one_ledger(ledger: Ledger) -> None:
    old = [make_row("a"), make_row("b"), make_row("both")]
    new = [make_row("c", **KNOWN_SOURCE), make_row("both", finished_unix_s=2.0, **KNOWN_SOURCE)]
    append_as_before_the_source_columns(ledger, old)
    ledger.append(new)
    expected = {row.video_id: row for row in (*old, *new)}
    assert expected["a"].source_codec is None
    assert {row.video_id: row for row in rows_of(ledger.read())} == expected
    ledger.compact()
    assert len(parts(ledger)) == 1
    assert {row.video_id: row for row in rows_of(ledger.read())} == expected


def test_ledger_of_old_parts_alone_says_nothing_of_the_sources(ledger: Ledger) -> None:
    append_as_before_the_source_columns(ledger, [make_row("a", **KNOWN_SOURCE)])
    (row,) = rows_of(ledger.read())
    assert [getattr(row, name) for name in SOURCE_COLUMNS] == [None] * 5


def test_writer_flushes_by_rows_and_at_the_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FLUSH_INTERVAL_S", 1e9)
    monkeypatch.setattr(ledger_module, "FLUSH_ROWS", 4)
    with LedgerWriter(ledger) as writer:
        for index in range(6):
            writer.add(make_row(f"v{index}"))
        assert ledger.read().num_rows == 4
    assert ledger.read().num_rows == 6
    assert len(parts(ledger)) == 1


def test_writer_flushes_by_time(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FLUSH_INTERVAL_S", 0.0)
    with LedgerWriter(ledger) as writer:
        writer.add(make_row("a"))
        assert ledger.read().num_rows == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_writer_flushes_when_the_run_is_cut_short(ledger: Ledger, error: type[BaseException]) -> None:
    def cut_short() -> None:
        with LedgerWriter(ledger) as writer:
            writer.add(make_row("a"))
            raise error

    with pytest.raises(error):
        cut_short()
    assert ledger.read().num_rows == 1


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_later_run_counts_whatever_the_clocks_say(ledger: Ledger, ahead_s: float) -> None:
    """The first driver's clock was an hour wrong; the second one's row is the one that counts."""
    now_s = time.time()
    before = {"finished_unix_s": now_s + ahead_s, "status": "failed", "output_uri": ""}
    ledger.append([make_row("again", **before), make_row("left alone", **before)])
    with LedgerWriter(ledger) as writer:
        writer.add(make_row("again", finished_unix_s=now_s))
        writer.add(make_row("new", finished_unix_s=now_s))
    rows = {row.video_id: row for row in rows_of(ledger.read())}
    assert {name: row.status for name, row in rows.items()} == {
        "again": "ok",
        "left alone": "failed",
        "new": "ok",
    }
    assert rows["new"].finished_unix_s == now_s
    assert rows["again"].finished_unix_s == pytest.approx(max(now_s, now_s + ahead_s), abs=0.01)


def test_clock_that_is_set_right_during_a_run_loses_no_row(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour ahead when the last run failed and when this one began, right when the video was done."""
    now_s = time.time()
    ledger.append([make_row("a", finished_unix_s=now_s + 3600, status="failed", output_uri="")])
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: now_s + 4200)
        writer = LedgerWriter(ledger).__enter__()
    written = [writer.add(make_row("a", finished_unix_s=now_s + shift_s)) for shift_s in (700.0, -500.0)]
    writer.__exit__(None, None, None)
    assert rows_of(ledger.read()) == [written[-1]], "and what `add` returns is what is recorded"
    assert written[-1].status == "ok"


class FullDisk:
    """Refuses to publish tables until there is room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        self.num_refused = 0
        self._publish = storage.publish_table
        monkeypatch.setattr(storage, "publish_table", self.publish_table)

    def publish_table(self, uri: str, table: pa.Table) -> None:
        if self.is_full:
            self.num_refused += 1
            raise StorageError(uri, "cannot be written (No space left on device)")
        self._publish(uri, table)


def test_writer_keeps_its_rows_while_the_disk_is_full(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "FLUSH_INTERVAL_S", 0.0)
    disk = FullDisk(monkeypatch)
    with LedgerWriter(ledger) as writer:
        for index in range(5):
            writer.add(make_row(f"v{index}"))
        assert disk.num_refused == 5
        disk.is_full = False
        writer.flush_if_due()
        assert ledger.read().num_rows == 5
    assert len(caplog.records) == 1, "one line, however often it is tried"
    assert "trying again for 60 s" in caplog.text


def test_writer_gives_up_on_a_disk_that_stays_full(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FLUSH_INTERVAL_S", 0.0)
    FullDisk(monkeypatch)

    def go_on() -> None:
        with LedgerWriter(ledger, patience_s=0.2) as writer:
            while True:
                writer.add(make_row("a"))

    with pytest.raises(StorageError, match="No space left"):
        go_on()


def test_writer_waits_for_room_at_the_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)

    def make_room(seconds: float) -> None:
        disk.is_full = disk.num_refused < 3

    monkeypatch.setattr(patience.time, "sleep", make_room)
    with LedgerWriter(ledger) as writer:
        writer.add(make_row("a"))
    assert disk.num_refused == 3
    assert ledger.read().num_rows == 1


def test_long_run_does_not_pile_up_parts(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MERGE_PARTS", 8)
    monkeypatch.setattr(ledger_module, "FLUSH_ROWS", 1)
    with LedgerWriter(ledger) as writer:
        for index in range(30):
            writer.add(make_row(f"v{index}"))
            writer.flush_if_due()
            assert len(parts(ledger)) <= 9
    assert ledger.read().num_rows == 30


def test_full_size_ledger_keeps_one_row_a_video(ledger: Ledger) -> None:
    """178,510 videos, as in LLaVA-Video-178K, half of them twice."""
    table = ledger_module.pa.Table.from_pylist([dataclasses.asdict(make_row("x"))], schema=LEDGER)
    num_videos = 178_510
    numbers = list(range(num_videos)) + list(range(num_videos // 2))
    big = table.take([0] * len(numbers))
    big = big.set_column(
        0, LEDGER.field("video_id"), ledger_module.pa.array([f"v{number}" for number in numbers])
    )
    assert last_finished(big).num_rows == num_videos


def test_row_without_output_that_says_ok_fails() -> None:
    with pytest.raises(FormatError, match="is ok with the output ''"):
        make_row("a", output_uri="")


def test_foreign_table_in_the_ledger_fails(ledger: Ledger) -> None:
    storage.publish_table(
        storage.join(ledger.folder_uri, "part-0-x.parquet"), LEDGER.empty_table().select([0, 1])
    )
    with pytest.raises(SchemaVersionError, match="missing columns"):
        ledger.read()

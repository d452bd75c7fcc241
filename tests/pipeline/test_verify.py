"""Verify: a good dataset passes, and whatever is done to it is found, named and placed; nothing makes it raise."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Literal

import google_crc32c
import pyarrow as pa
import pytest

from cope_prep.pipeline import storage, tar, verify, verify_report
from cope_prep.pipeline.extract import extract_video
from cope_prep.pipeline.finish import describe_index, finish_shards, read_dataset_json
from cope_prep.pipeline.index_rows import index_row, read_json
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.shard import build_shard
from cope_prep.pipeline.shard_plan import ExtractedVideo, plan_shards
from cope_prep.pipeline.verify import verify_dataset
from cope_prep.pipeline.verify_index import KeyOrder
from cope_prep.pipeline.verify_report import ProblemLog, VerifyCounts, VerifyReport
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import FormatError
from cope_prep.schemas.records import sample_key, video_key
from cope_prep.schemas.specs import (
    EncodeSpec,
    ExtractSpec,
    Int8Residual,
    LosslessIframe,
    LosslessResidual,
    ShardSpec,
)

SPECS = Specs(
    encode=EncodeSpec(width_px=96, height_px=64, gop_size=48, preset="ultrafast"),
    extract=ExtractSpec(window=12),
    shard=ShardSpec(target_bytes=60_000),
)
SHARD = "shard-00000.tar"

Samples = list[tuple[str, dict[str, bytes]]]
"""Key and members, in the order of a shard."""


def make_dataset(clips: list[Path], layout: Layout) -> Layout:
    """Clips, re-encoded small, extracted and sharded."""
    specs = layout.specs
    videos = []
    for clip in clips:
        key = video_key(clip.name)
        reencode_video(str(clip), layout.reencoded(key), spec=specs.encode)
        report = extract_video(
            layout.reencoded(key),
            layout.extracted(key),
            spec=specs.extract,
            encode_spec=specs.encode,
            video_id=clip.name,
        )
        videos.append(
            ExtractedVideo(
                video_id=clip.name,
                video_key=key,
                subset="",
                output_bytes=report.output_bytes,
                version="1",
            )
        )
    plan = plan_shards(layout, videos)
    for shard in plan.shards:
        build_shard(layout, shard)
    finish_shards(layout, plan)
    return layout


@pytest.fixture(scope="session")
def pristine(real_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Three real clips in several shards."""
    layout = make_dataset(
        real_clips[:3], Layout(dataset=str(tmp_path_factory.mktemp("pristine")), specs=SPECS)
    )
    assert storage.exists(layout.shard(1))
    return layout


@pytest.fixture
def layout(pristine: Layout, tmp_path: Path) -> Layout:
    """A copy to damage."""
    shutil.copytree(pristine.dataset, tmp_path / "dataset")
    return Layout(dataset=str(tmp_path / "dataset"), specs=SPECS)


def shard_path(layout: Layout, name: str = SHARD) -> Path:
    return Path(layout.folder("shards")) / name


def read_samples(layout: Layout, name: str = SHARD) -> Samples:
    with shard_path(layout, name).open("rb") as file:
        return [(span.key, tar.read_members(file, span)) for span in tar.scan(file, name=name)]


def write_samples(layout: Layout, samples: Samples, name: str = SHARD) -> None:
    content = b"".join(tar.sample_bytes(key, members) for key, members in samples) + tar.END_OF_ARCHIVE
    shard_path(layout, name).write_bytes(content)


def reindex(layout: Layout) -> None:
    """Write index.parquet and what dataset.json says of files anew: only the damage itself is left to find."""
    rows, entries = [], []
    for name in sorted(path.name for path in Path(layout.folder("shards")).glob("*.tar")):
        content = shard_path(layout, name).read_bytes()
        with shard_path(layout, name).open("rb") as file:
            for span in tar.scan(file, name=name):
                block = content[span.offset_bytes : span.offset_bytes + span.size_bytes]
                rows.append(index_row(block, span, read_json(block, span), shard=name, subset=""))
        entries.append({"name": name, "bytes": len(content), "crc32c": google_crc32c.value(content)})
    storage.publish_table(layout.index, pa.Table.from_pylist(rows, schema=INDEX))
    document = read_dataset_json(layout)
    document |= {"index": describe_index(layout.index), "shards": entries}
    sizes = document["bytes"]
    sizes["total"] = sum(entry["bytes"] for entry in entries)
    sizes["overhead"] = sizes["total"] - sizes["iframe"] - sizes["motion"] - sizes["residual"]
    storage.publish_bytes(layout.dataset_json, json.dumps(document).encode())


def edit_json(members: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    return {**members, "json": json.dumps(json.loads(members["json"]) | changes).encode()}


def found(report: VerifyReport) -> set[tuple[str, str, str]]:
    return {(problem.kind, problem.shard, problem.key) for problem in report.problems}


def kinds(report: VerifyReport) -> set[str]:
    return set(report.num_problems)


def test_clean_dataset_is_ok(pristine: Layout) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_dataset(pristine, progress=lambda done, total: seen.append((done, total)))
    assert report.problems == ()
    assert report.ok
    counts = report.counts
    document = read_dataset_json(pristine)
    assert counts.videos == document["counts"]["videos"] == 3
    assert counts.gops == counts.gops_rebuilt == counts.gops_compared == document["counts"]["gops"] > 6
    assert counts.windows == document["counts"]["windows"]
    assert counts.gops_without_source == 0
    assert seen == [(done, counts.gops) for done in range(1, counts.gops + 1)]
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
@pytest.mark.parametrize(
    "extract",
    [
        ExtractSpec(window=1, residual=LosslessResidual(), iframe=LosslessIframe()),
        ExtractSpec(window=1, residual=Int8Residual(step=4)),
        ExtractSpec(window=16, motion_block_px=8, residual=LosslessResidual()),
        ExtractSpec(window=31, motion_block_px=4, residual=Int8Residual(), iframe=LosslessIframe()),
    ],
    ids=["s1 lossless", "s1 int8", "s16 lossless", "s31 int8"],
)
def test_every_coding_is_ok(
    real_clips: list[Path], tmp_path: Path, codec: Literal["h264", "mpeg4"], extract: ExtractSpec
) -> None:
    encode = EncodeSpec(codec=codec, width_px=96, height_px=64, gop_size=32, quality=5)
    layout = Layout(dataset=str(tmp_path), specs=Specs(encode=encode, extract=extract))
    report = verify_dataset(make_dataset(real_clips[2:3], layout))
    assert report.problems == ()
    assert report.counts.gops_compared == report.counts.gops > 2


def test_remote_dataset(pristine: Layout) -> None:
    remote = Layout(dataset="memory://test-verify", specs=SPECS)
    for path in Path(pristine.dataset).rglob("*"):
        if path.is_file():
            uri = storage.join(remote.dataset, path.relative_to(pristine.dataset).as_posix())
            storage.publish_bytes(uri, path.read_bytes())
    assert verify_dataset(remote).to_dict() == verify_dataset(pristine).to_dict()
    content = storage.read_bytes(remote.shard(0))
    storage.publish_bytes(remote.shard(0), content[: len(content) // 2])
    assert "tar" in kinds(verify_dataset(remote))


def test_consumed_sources_are_counted(layout: Layout) -> None:
    (first, *_) = read_samples(layout)
    storage.remove(layout.reencoded(first[0].partition("_")[0]))
    report = verify_dataset(layout)
    assert report.ok
    assert report.counts.gops_without_source > 0
    assert report.counts.gops_compared + report.counts.gops_without_source == report.counts.gops


def test_sample_rebuilds_so_many(pristine: Layout) -> None:
    report = verify_dataset(pristine, sample=3, seed=1)
    assert report.ok
    assert report.counts.gops_rebuilt == report.counts.gops_compared == 3
    assert report.counts.gops > 3


# The eight kinds of damage of the specification.


def test_bit_flip_in_a_residual_is_found(layout: Layout) -> None:
    with shard_path(layout).open("rb") as file:
        span = list(tar.scan(file, name=SHARD))[1]
    (residual,) = [member for member in span.members if member.name == "residual.01.jpg"]
    content = bytearray(shard_path(layout).read_bytes())
    content[residual.offset_bytes + residual.size_bytes // 2] ^= 4
    shard_path(layout).write_bytes(content)
    report = verify_dataset(layout)
    assert ("checksum", SHARD, span.key) in found(report)
    assert {problem.key for problem in report.problems} == {span.key}
    assert {problem.offset_bytes for problem in report.problems} == {span.offset_bytes}
    reindex(layout)
    assert found(verify_dataset(layout)) == {("rebuild", SHARD, span.key)}


def test_truncation_is_found(layout: Layout) -> None:
    with shard_path(layout).open("rb") as file:
        spans = list(tar.scan(file, name=SHARD))
    cut = spans[-1]
    content = shard_path(layout).read_bytes()
    shard_path(layout).write_bytes(content[: cut.offset_bytes + cut.size_bytes // 2])
    report = verify_dataset(layout)
    assert ("tar", SHARD, cut.key) in found(report)
    assert ("index", SHARD, cut.key) in found(report)
    assert all(problem.key in (cut.key, "") for problem in report.problems)


@pytest.mark.parametrize("num_bytes", [1, 512, 1024, 1025])
def test_truncation_at_the_end_is_found(layout: Layout, num_bytes: int) -> None:
    content = shard_path(layout).read_bytes()
    shard_path(layout).write_bytes(content[:-num_bytes])
    assert ("tar", SHARD) in {(problem.kind, problem.shard) for problem in verify_dataset(layout).problems}


def test_swapped_members_are_found(layout: Layout) -> None:
    samples = read_samples(layout)
    key, members = samples[1]
    names = list(members)
    i, j = names.index("residual.00.jpg"), names.index("residual.02.jpg")
    names[i], names[j] = names[j], names[i]
    samples[1] = key, {name: members[name] for name in names}
    write_samples(layout, samples)
    report = verify_dataset(layout)
    assert {("members", SHARD, key), ("checksum", SHARD, key), ("index", SHARD, key)} <= found(report)
    reindex(layout)
    assert found(verify_dataset(layout)) == {("members", SHARD, key)}


def test_swapped_contents_are_found(layout: Layout) -> None:
    samples = read_samples(layout)
    key, members = samples[1]
    first, third = members["residual.00.jpg"], members["residual.02.jpg"]
    samples[1] = key, {**members, "residual.00.jpg": third, "residual.02.jpg": first}
    write_samples(layout, samples)
    reindex(layout)
    assert found(verify_dataset(layout)) == {("rebuild", SHARD, key)}


@pytest.mark.parametrize("name", ["residual.01.jpg", "iframe.jpg", "motion.npy.zst", "json"])
def test_missing_member_is_found(layout: Layout, name: str) -> None:
    samples = read_samples(layout)
    key, members = samples[1]
    samples[1] = key, {other: content for other, content in members.items() if other != name}
    write_samples(layout, samples)
    report = verify_dataset(layout)
    assert ("members", SHARD, key) in found(report)
    assert any(name in problem.message for problem in report.problems if problem.kind == "members")


def test_stale_index_is_found(layout: Layout) -> None:
    """The index of a time when the first sample of shard 0 was larger, and shard 1 was not there yet."""
    samples = read_samples(layout)
    (first_key, _), (second_key, _) = samples[:2]
    samples[0] = first_key, edit_json(samples[0][1], note="longer" * 200)
    write_samples(layout, samples)
    others = {path.name: path.read_bytes() for path in Path(layout.folder("shards")).glob("*.tar")}
    current = shard_path(layout, "shard-00000.tar").read_bytes()
    for name in others:
        if name != SHARD:
            shard_path(layout, name).unlink()
    reindex(layout)
    stale = storage.read_bytes(layout.index)
    for name, content in others.items():
        shard_path(layout, name).write_bytes(content)
    samples[0] = first_key, edit_json(samples[0][1], note="")
    write_samples(layout, samples)
    assert shard_path(layout).read_bytes() != current
    reindex(layout)
    assert verify_dataset(layout).ok
    storage.publish_bytes(layout.index, stale)
    report = verify_dataset(layout)
    (other_key, _) = read_samples(layout, "shard-00001.tar")[0]
    expected = {("index", "", ""), ("index", SHARD, second_key), ("index", "shard-00001.tar", other_key)}
    assert expected <= found(report)


def test_wrong_spec_hash_is_found(layout: Layout) -> None:
    samples = read_samples(layout)
    key, members = samples[1]
    samples[1] = key, edit_json(members, spec_hash="0123456789ab")
    write_samples(layout, samples)
    reindex(layout)
    report = verify_dataset(layout)
    assert ("spec-hash", SHARD, key) in found(report)
    assert report.num_problems["spec-hash"] == 1


@pytest.mark.parametrize("position", [1, 3])
def test_duplicated_key_is_found(layout: Layout, position: int) -> None:
    samples = read_samples(layout)
    assert len(samples) >= 3
    key = samples[0][0]
    samples.insert(position, samples[0])
    write_samples(layout, samples)
    report = verify_dataset(layout)
    assert ("duplicate-key", SHARD, key) in found(report)


@pytest.mark.parametrize(
    ("section", "name"), [("counts", "gops"), ("counts", "videos"), ("bytes", "residual")]
)
def test_wrong_count_is_found(layout: Layout, section: str, name: str) -> None:
    document = read_dataset_json(layout)
    document[section][name] += 1
    storage.publish_bytes(layout.dataset_json, json.dumps(document).encode())
    (problem,) = verify_dataset(layout).problems
    assert (problem.kind, problem.shard, problem.key, problem.offset_bytes) == ("count", "", "", -1)
    assert f"{name} {document[section][name]} (found {document[section][name] - 1})" in problem.message


# What else may be wrong.


def test_any_flipped_bit_of_a_shard_is_found(layout: Layout) -> None:
    content = shard_path(layout).read_bytes()
    rng = random.Random(5)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        shard_path(layout).write_bytes(damaged)
        report = verify_dataset(layout, sample=0)
        assert SHARD in {problem.shard for problem in report.problems}


@pytest.mark.parametrize("name", ["index.parquet", "dataset.json"])
def test_damaged_table_or_document_never_raises(layout: Layout, name: str) -> None:
    path = shard_path(layout, name)
    content = path.read_bytes()
    rng = random.Random(6)
    num_found = 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged[: rng.choice([len(content), len(content), rng.randrange(len(content))])])
        num_found += not verify_dataset(layout, sample=0).ok
    assert num_found == 60 if name == "index.parquet" else num_found > 20


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, '{"shards": 3, "counts": []}'])
def test_nonsense_in_dataset_json_is_found(layout: Layout, text: str) -> None:
    storage.publish_bytes(layout.dataset_json, text.encode())
    assert kinds(verify_dataset(layout, sample=0)) & {"unreadable", "schema-version"}


def test_shard_names_lead_nowhere_else(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "secret.tar").write_bytes(b"not yours")
    document = read_dataset_json(layout)
    document["shards"].append({"name": "../../../../secret.tar", "bytes": 9})
    document["shards"].append("not even an object")
    storage.publish_bytes(layout.dataset_json, json.dumps(document).encode())
    report = verify_dataset(layout, sample=0)
    assert [problem.kind for problem in report.problems] == ["format"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(SHARD, "missing-file"), ("index.parquet", "missing-file"), ("dataset.json", "missing-file")],
)
def test_missing_file_is_found(layout: Layout, name: str, kind: str) -> None:
    shard_path(layout, name).unlink()
    assert kind in kinds(verify_dataset(layout, sample=0))


def test_shard_that_no_one_knows_is_found(layout: Layout) -> None:
    shutil.copy(shard_path(layout), shard_path(layout, "shard-00077.tar"))
    report = verify_dataset(layout, sample=0)
    assert ("index", "shard-00077.tar", "") in found(report)
    assert "duplicate-key" in kinds(report)


def test_newer_schema_version_is_found(layout: Layout) -> None:
    samples = read_samples(layout)
    key, members = samples[1]
    samples[1] = key, edit_json(members, schema_version=99)
    write_samples(layout, samples)
    reindex(layout)
    assert ("schema-version", SHARD, key) in found(verify_dataset(layout))


def test_gops_out_of_order_are_found(layout: Layout) -> None:
    samples = read_samples(layout)
    assert samples[0][0][:16] == samples[1][0][:16]
    samples[0], samples[1] = samples[1], samples[0]
    write_samples(layout, samples)
    reindex(layout)
    report = verify_dataset(layout)
    assert ("adjacency", SHARD, samples[0][0]) in found(report)
    assert kinds(report) == {"adjacency"}


def test_missing_gop_is_found(layout: Layout) -> None:
    samples = read_samples(layout)
    del samples[1]
    write_samples(layout, samples)
    reindex(layout)
    report = verify_dataset(layout)
    assert ("adjacency", SHARD, samples[1][0]) in found(report)


def test_missing_last_gop_is_found_by_the_source(layout: Layout) -> None:
    samples = read_samples(layout)
    (key, _), (kept, _) = samples[-1], samples[-2]
    assert key[:16] == kept[:16]
    write_samples(layout, samples[:-1])
    reindex(layout)
    report = verify_dataset(layout)
    assert ("source", SHARD, kept) in found(report)


def test_wrong_recorded_error_is_found(layout: Layout) -> None:
    samples = read_samples(layout)
    key, members = samples[1]
    stats = json.loads(members["json"])["stats"]
    stats["psnr_y_db"][1] += 0.01
    stats["max_error"][2] -= 1
    samples[1] = key, edit_json(members, stats=stats)
    write_samples(layout, samples)
    reindex(layout)
    report = verify_dataset(layout)
    assert found(report) == {("source", SHARD, key)}
    assert report.num_problems == {"source": 2}


def test_another_source_is_found(layout: Layout, pristine: Layout) -> None:
    keys = {key[:16] for name in (SHARD, "shard-00001.tar") for key, _ in read_samples(layout, name)}
    first, second = sorted(keys)[:2]
    shutil.copy(layout.reencoded(first), layout.reencoded(second))
    assert kinds(verify_dataset(layout)) == {"source"}
    Path(layout.reencoded(first)).write_bytes(b"no video")
    assert kinds(verify_dataset(layout)) == {"source"}


@pytest.mark.parametrize(
    "changes",
    [
        {"width_px": 112},
        {"width_px": 8192, "height_px": 8192},
        {"num_windows": 1200},
        {"num_windows": -1},
        {"num_windows": True},
        {"num_windows": "many"},
        {"stats": {}},
        {"stats": 3},
        {"start_s": "late"},
        {"start_s": 10**400},
        {"start_s": 0.5},
        {"window": 11},
        {"fps": 60},
        {"video_id": "other.mp4"},
        {"key": "other"},
        {"motion_step_px": [float("inf")] * 3},
        {"iframe_packet_bytes": 1 << 40},
        {"anchor_crc32c": [-1, 2, 3, 4]},
        {"residual": {"kind": "wavelet"}},
        {"schema_version": "one"},
    ],
    ids=str,
)
def test_nonsense_in_a_sample_is_found(layout: Layout, changes: dict[str, object]) -> None:
    samples = read_samples(layout)
    key, members = samples[1]
    samples[1] = key, edit_json(members, **changes)
    write_samples(layout, samples)
    report = verify_dataset(layout)
    named = {problem.kind for problem in report.problems if problem.key == key}
    assert named & {"format", "members"}


def test_crafted_samples_never_raise(layout: Layout) -> None:
    """Damage that the index and dataset.json agree with: no checksum stands before the readers."""
    samples = read_samples(layout)
    rng = random.Random(7)
    num_found = 0
    for _ in range(80):
        key, members = samples[1]
        name = rng.choice(sorted(members))
        content = bytearray(members[name])
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        damaged = [*samples]
        damaged[1] = key, {**members, name: bytes(content)}
        write_samples(layout, damaged)
        with contextlib.suppress(FormatError, pa.ArrowInvalid, TypeError):  # no row can be made of this .json
            reindex(layout)
        num_found += not verify_dataset(layout).ok
    assert num_found > 60


def test_sample_too_large_for_memory_is_not_read(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    (key, _), *_ = read_samples(layout)
    monkeypatch.setattr(verify, "MAX_SAMPLE_BYTES", 10_000)
    report = verify_dataset(layout, sample=0)
    assert ("format", SHARD, key) in found(report)
    assert any("no sample is larger than 10000" in problem.message for problem in report.problems)


def test_empty_dataset_is_ok(tmp_path: Path) -> None:
    report = verify_dataset(make_dataset([], Layout(dataset=str(tmp_path), specs=SPECS)))
    assert report.ok
    assert report.counts == VerifyCounts()


def test_problems_of_a_kind_are_capped() -> None:
    log = ProblemLog()
    for index in range(verify_report.MAX_LISTED + 50):
        log.at(SHARD, f"key {index}", index)
        log.add("index", "is wrong")
    log.add("tar", "is wrong too")
    report = log.report(VerifyCounts())
    assert len(report.problems) == verify_report.MAX_LISTED + 1
    assert report.num_problems == {"index": verify_report.MAX_LISTED + 50, "tar": 1}
    assert not report.ok


@pytest.mark.parametrize(
    ("gops", "expected"),
    [
        ("a0 a1 a2 b0", [None, None, None, None]),
        ("a0 a0", [None, "duplicate-key"]),
        ("a0 b0 a0", [None, None, "duplicate-key"]),
        ("a0 b0 a1", [None, None, "adjacency"]),
        ("a1 a0 a2", ["adjacency", "adjacency", "adjacency"]),
        ("a0 a2 a3", [None, "adjacency", None]),
        ("a0 a2 a1 a2", [None, "adjacency", "adjacency", "duplicate-key"]),
        ("a0 | a1", [None, "adjacency"]),
        ("x", ["format"]),
    ],
)
def test_key_order(gops: str, expected: list[str | None]) -> None:
    order = KeyOrder()
    found_kinds = []
    for word in gops.split():
        if word == "|":
            order.begin_shard()
            continue
        problem = order.check(sample_key(word[0] * 16, int(word[1:])) if word[1:] else word)
        found_kinds.append(problem[0] if problem else None)
    assert found_kinds == expected

"""Manifests of plain folders and of a miniature LLaVA-Video-178K with every folder kind and trap."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cope_prep.pipeline import manifest, storage
from cope_prep.pipeline.manifest import ManifestReport, manifest_from_files, manifest_from_llava_video
from cope_prep.schemas.arrow import MANIFEST, QUESTIONS
from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.records import VideoRecord, video_key


def read_manifest(dataset: Path | str) -> list[dict[str, Any]]:
    return storage.read_table(f"{dataset}/manifest.parquet", MANIFEST).to_pylist()


def read_questions(dataset: Path | str) -> list[dict[str, Any]]:
    return storage.read_table(f"{dataset}/questions.parquet", QUESTIONS).to_pylist()


def ids(dataset: Path | str) -> list[str]:
    return [row["video_id"] for row in read_manifest(dataset)]


def skipped(report: ManifestReport) -> dict[str, tuple[str, int]]:
    """What -> (reason, count); a thing that is skipped for two reasons shows the last."""
    return {entry.what: (entry.reason, entry.count) for entry in report.skipped}


def write(path: Path, content: bytes | str = b"video") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- manifest files -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for name in ("b.mp4", "a/x.MKV", "a/deep/y.webm", "a.mp4", "ünï côde.mp4"):
        write(root / name, name)
    for name in ("a/x.srt", "a/y.srt", "notes", "thumb.gif"):
        write(root / name)
    for name in (".hidden.mp4", ".cache/c.mp4", "a/.tmp-1-b.mp4", "a/.git/deep/d.mp4"):
        write(root / name)
    return root


def test_folder_lists_its_videos_recursively(folder: Path, tmp_path: Path) -> None:
    report = manifest_from_files(str(folder), str(tmp_path / "ds"))
    rows = read_manifest(tmp_path / "ds")
    names = ["a.mp4", "a/deep/y.webm", "a/x.MKV", "b.mp4", "ünï côde.mp4"]
    assert [row["video_id"] for row in rows] == names
    for row in rows:
        key = row.pop("video_key")
        record = VideoRecord(**row)
        path = folder / record.video_id
        assert key == record.video_key
        assert record.uri == str(path)
        assert record.subset == ""
        stat = storage.stat(record.uri)
        assert (record.size_bytes, record.version) == (stat.size_bytes, stat.version)
    assert read_questions(tmp_path / "ds") == []
    assert (report.num_videos, report.num_questions) == (5, 0)
    assert report.total_bytes == sum((folder / name).stat().st_size for name in names)
    reason = "not a video by its extension"
    assert skipped(report) == {".srt": (reason, 2), "no extension": (reason, 1), ".gif": (reason, 1)}


def test_relative_and_file_urls_mean_the_same_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("videos", "./videos/", f"file://{folder}", str(folder)):
        manifest_from_files(source, "ds")
        assert read_manifest("ds")[0]["uri"] == str(folder / "a.mp4")


def test_extensions_can_be_named(folder: Path, tmp_path: Path) -> None:
    manifest_from_files(str(folder), str(tmp_path / "ds"), extensions=["gif", ".MKV"])
    assert ids(tmp_path / "ds") == ["a/x.MKV", "thumb.gif"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", ["a.mp4", "b.mp4", "ünï côde.mp4"]),
        ("**/*.mkv", []),
        ("**/*.MKV", ["a/x.MKV"]),
        ("**", ["a.mp4", "a/deep/y.webm", "a/x.MKV", "b.mp4", "ünï côde.mp4"]),
        ("*/*", ["a/x.MKV"]),
        ("a/*", ["x.MKV"]),
        ("[ab].mp4", ["a.mp4", "b.mp4"]),
        ("?.mp4", ["a.mp4", "b.mp4"]),
    ],
)
def test_glob(folder: Path, tmp_path: Path, pattern: str, expected: list[str]) -> None:
    source, dataset = f"{folder}/{pattern}", str(tmp_path / "ds")
    if not expected:
        with pytest.raises(ConfigurationError, match="no video is there"):
            manifest_from_files(source, dataset)
        return
    manifest_from_files(source, dataset)
    assert ids(dataset) == expected
    assert all(Path(row["uri"]).is_file() for row in read_manifest(dataset))


def test_name_with_brackets_is_a_name_if_it_is_there(tmp_path: Path) -> None:
    write(tmp_path / "set[1]" / "a.mp4")
    manifest_from_files(str(tmp_path / "set[1]"), str(tmp_path / "ds"))
    assert ids(tmp_path / "ds") == ["a.mp4"]


def test_single_file_is_taken_whatever_its_extension(tmp_path: Path) -> None:
    path = write(tmp_path / "film.dat")
    write(tmp_path / "other.mp4")
    report = manifest_from_files(str(path), str(tmp_path / "ds"))
    assert [(row["video_id"], row["uri"]) for row in read_manifest(tmp_path / "ds")] == [
        ("film.dat", str(path))
    ]
    assert report.num_videos == 1


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a server that has a.mp4, whatever the query."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "web"))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    write(tmp_path / "web" / "a.mp4")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("query", ["", "?Expires=9&Signature=HUSH/4321/HUSH", "#t=HUSH"])
def test_presigned_url_keeps_its_signature_out_of_the_id(web: str, tmp_path: Path, query: str) -> None:
    manifest_from_files(f"{web}/a.mp4{query}", str(tmp_path / "ds"))
    (row,) = read_manifest(tmp_path / "ds")
    assert (row["video_id"], row["uri"]) == ("a.mp4", f"{web}/a.mp4{query}")
    assert row["size_bytes"] == len(b"video")


def test_question_mark_in_a_local_name_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "why?.mp4")
    manifest_from_files(str(path), str(tmp_path / "ds"))
    assert ids(tmp_path / "ds") == ["why?.mp4"]


def test_dataset_inside_the_source_is_left_out(folder: Path) -> None:
    dataset = folder / "ds"
    write(dataset / "reencode" / "0" / "0.mp4")
    assert manifest_from_files(str(folder), str(dataset)).num_videos == 5
    assert manifest_from_files(str(folder), str(dataset)).num_videos == 5


def test_source_inside_the_dataset_is_used(tmp_path: Path) -> None:
    write(tmp_path / "ds" / "source" / "a.mp4")
    assert manifest_from_files(str(tmp_path / "ds" / "source"), str(tmp_path / "ds")).num_videos == 1


def test_links(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "e.mp4")
    (folder / "out.mp4").symlink_to(tmp_path / "elsewhere" / "e.mp4")
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "broken.mp4").symlink_to("nothing")
    (folder / "loop").symlink_to(folder)
    (folder / "again").symlink_to("a")
    (folder / "inside.mp4").symlink_to("b.mp4")
    report = manifest_from_files(str(folder), str(tmp_path / "ds"))
    assert set(ids(tmp_path / "ds")) == {
        *("a.mp4", "a/deep/y.webm", "a/x.MKV", "b.mp4", "ünï côde.mp4"),
        "inside.mp4",
    }
    found = {entry.reason: sorted(entry.examples) for entry in report.skipped if entry.what == "links"}
    assert [names for reason, names in found.items() if "out of the source" in reason] == [["out", "out.mp4"]]
    assert [names for reason, names in found.items() if "own names" in reason] == [["again", "loop"]]
    assert [names for reason, names in found.items() if "nowhere" in reason] == [["broken.mp4"]]


def test_source_that_is_a_link_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    (folder / "inside.mp4").symlink_to(folder / "b.mp4")
    assert manifest_from_files(str(tmp_path / "link"), str(tmp_path / "ds")).num_videos == 6


def test_name_that_is_not_utf8_is_counted(folder: Path, tmp_path: Path) -> None:
    try:
        write(Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4")))
    except OSError:
        pytest.skip("this file system refuses such names")
    report = manifest_from_files(str(folder), str(tmp_path / "ds"))
    assert report.num_videos == 5
    assert skipped(report)["names"] == ("are not valid UTF-8: rename them", 1)


def test_pipe_is_counted_and_not_opened(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe.mp4")
    report = manifest_from_files(str(folder), str(tmp_path / "ds"))
    assert report.num_videos == 5
    assert skipped(report)["special files"][1] == 1


@pytest.mark.parametrize("source", ["nothing", "nothing/*.mp4", "nothing.mp4", "empty", "texts"])
def test_source_without_videos_fails_and_keeps_the_old_manifest(tmp_path: Path, source: str) -> None:
    write(tmp_path / "good" / "a.mp4")
    write(tmp_path / "texts" / "a.txt")
    (tmp_path / "empty").mkdir()
    manifest_from_files(str(tmp_path / "good"), str(tmp_path / "ds"))
    with pytest.raises(ConfigurationError, match=r"no video is there|there is no such"):
        manifest_from_files(str(tmp_path / source), str(tmp_path / "ds"))
    assert ids(tmp_path / "ds") == ["a.mp4"]


def test_dataset_that_is_the_source_fails(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="both the source and the dataset"):
        manifest_from_files(str(folder), f"{folder}/../videos/")


def test_rebuilding_replaces(folder: Path, tmp_path: Path) -> None:
    manifest_from_files(str(folder), str(tmp_path / "ds"))
    (folder / "b.mp4").unlink()
    assert manifest_from_files(str(folder), str(tmp_path / "ds")).num_videos == 4
    assert "b.mp4" not in ids(tmp_path / "ds")
    assert sorted(os.listdir(tmp_path / "ds")) == ["manifest.parquet", "questions.parquet"]


def test_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("1", "2"):
        manifest_from_files(str(folder), str(tmp_path / name))
    first, second = ((tmp_path / name / "manifest.parquet").read_bytes() for name in ("1", "2"))
    assert first == second


def test_two_ids_with_one_key_fail(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "video_key", lambda video_id: "0" * 16)
    with pytest.raises(ConfigurationError, match=r"has the same video_key as a\.mp4"):
        manifest_from_files(str(folder), str(tmp_path / "ds"))
    assert not (tmp_path / "ds" / "manifest.parquet").exists()


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    yield f"memory://{tmp_path.name}"
    fs.rm(f"/{tmp_path.name}", recursive=True)


def test_remote_folder_glob_and_file(remote: str) -> None:
    for name in ("a.mp4", "sub/b.mp4", "sub/deep/c.mkv", "sub/.x/d.mp4", ".tmp-1.mp4", "t.txt", "ds/e.mp4"):
        storage.publish_bytes(f"{remote}/v/{name}", name.encode())
    dataset = f"{remote}/v/ds"
    report = manifest_from_files(f"{remote}/v/", dataset)
    rows = read_manifest(dataset)
    assert [row["video_id"] for row in rows] == ["a.mp4", "sub/b.mp4", "sub/deep/c.mkv"]
    assert [storage.read_bytes(row["uri"]).decode() for row in rows] == ids(dataset)
    assert [storage.stat(row["uri"]).version for row in rows] == [row["version"] for row in rows]
    assert skipped(report) == {".txt": ("not a video by its extension", 1)}
    manifest_from_files(f"{remote}/v/*/*.mp4", dataset)
    assert ids(dataset) == ["sub/b.mp4"]
    manifest_from_files(f"{remote}/v/sub/b.mp4", dataset)
    assert ids(dataset) == ["b.mp4"]
    with pytest.raises(ConfigurationError, match="there is no such"):
        manifest_from_files(f"{remote}/w", dataset)
    with pytest.raises(ConfigurationError, match="both the source and the dataset"):
        manifest_from_files(dataset, dataset)


# --- manifest llava-video -----------------------------------------------------------------------------

VIDEOS = {
    "0_30_s_academic_v0_1": "academic_source/Charades",
    "1_2_m_youtube_v0_1": "liwei_youtube_videos/videos/youtube_video_2024",
    "30_60_s_nextqa": "NextQA/NExTVideo/1006",
    "2_3_m_activitynetqa": "ActivityNet-QA/all_test",
    "1_2_m_activitynet": "ActivityNet-QA/all_test",  # named as the card's globs have it
    "0_30_s_perceptiontest": "perception_test/videos",
}
"""Subset folder -> folder of its videos."""
FILES = {
    ("0_30_s_academic_v0_1", "cap"): "0_30_s_academic_v0_1_cap_processed.json",
    ("0_30_s_academic_v0_1", "oe"): "0_30_s_academic_oe_v0_1_qa_processed.json",
    ("0_30_s_academic_v0_1", "mc"): "0_30_s_academic_mc_v0_1_qa_processed.json",
    ("1_2_m_youtube_v0_1", "cap"): "1_2_m_youtube_v0_1_cap_processed.json",
    ("1_2_m_youtube_v0_1", "oe"): "1_2_m_youtube_oe_v0_1_qa.json",  # as in older mixes
    ("30_60_s_nextqa", "oe"): "30_60_s_nextqa_oe_qa_processed.json",
    ("30_60_s_nextqa", "mc"): "30_60_s_nextqa_mc_qa_processed.json",
    ("2_3_m_activitynetqa", "oe"): "2_3_m_activitynetqa_oe_qa_processed.json",
    ("1_2_m_activitynet", "oe"): "1_2_m_activitynetqa_oe_qa_processed.json",
    ("0_30_s_perceptiontest", "mc"): "0_30_s_perceptiontest_mc_qa_processed.json",
}
"""(subset folder, kind) -> question file."""
RECORDS = {"cap": 3, "oe": 7, "mc": 5}
"""Records of a file, about 3 videos."""


def record(video: str, *, number: int = 0, turns: int = 1, **changes: object) -> dict[str, object]:
    conversation = []
    for turn in range(turns):
        conversation.append({"from": "human", "value": f"<image>\nQuestion {number}.{turn}?"})
        conversation.append({"from": "gpt", "value": f"Answer {number}.{turn}."})
    return {
        "id": f"{number}",
        "data_source": "theirs",
        "video": video,
        "conversations": conversation,
    } | changes


def write_json(path: Path, records: object) -> None:
    write(path, json.dumps(records, indent=4))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A miniature of the data set, complete and in good order."""
    root = tmp_path / "LLaVA-Video-178K"
    for folder, videos in VIDEOS.items():
        for index in range(3):
            write(root / videos / f"{folder}-{index}.mp4", f"{folder} {index}")
    for (folder, kind), name in FILES.items():
        write_json(
            root / folder / name,
            [
                record(f"{VIDEOS[folder]}/{folder}-{number % 3}.mp4", number=number, turns=1 + number % 2)
                for number in range(RECORDS[kind])
            ],
        )
    write_json(root / "llava_hound" / "sharegptvideo_qa_255k_processed.json", [record("v_1")])
    return root


def build(root: Path, **options: Any) -> ManifestReport:
    return manifest_from_llava_video(str(root), str(root.parent / "ds"), **options)


def write_mix(root: Path, *lines: str) -> str:
    return str(write(root.parent / "mix.yaml", "datasets:\n" + "".join(f"  - {line}\n" for line in lines)))


def test_whole_tree_by_subset_and_kind(root: Path) -> None:
    report = build(root)
    assert report.counts == {key: RECORDS[key[1]] for key in FILES}
    assert report.num_questions == sum(report.counts.values())
    assert report.num_videos == 3 * len(VIDEOS)
    assert report.missing_videos.count == 0
    assert report.unknown_folders == {}
    assert [(entry.what, entry.count) for entry in report.skipped] == [("llava_hound", 1)]
    assert "folders of frames" in report.skipped[0].reason
    for path, digest in report.json_hashes.items():
        assert digest == hashlib.sha256((root / path).read_bytes()).hexdigest()
    assert sorted(report.json_hashes) == sorted(f"{folder}/{name}" for (folder, _), name in FILES.items())


def test_tables_hold_what_the_report_says(root: Path) -> None:
    report = build(root)
    dataset = root.parent / "ds"
    videos, questions = read_manifest(dataset), read_questions(dataset)
    assert Counter((row["subset"], row["kind"]) for row in questions) == report.counts
    assert sum(row["size_bytes"] for row in videos) == report.total_bytes
    assert [row["video_id"] for row in videos] == sorted(row["video_id"] for row in videos)
    assert {row["video_id"] for row in questions} == {row["video_id"] for row in videos}
    assert len({row["question_id"] for row in questions}) == len(questions)
    for row in videos:
        assert row["uri"] == str(root / row["video_id"])
        assert row["video_key"] == video_key(row["video_id"])
        assert row["subset"] + "-" == Path(row["video_id"]).name[:-5].replace("_v0_1", "")


def test_multi_turn_conversations_are_kept_in_order(root: Path) -> None:
    build(root)
    path = "30_60_s_nextqa/30_60_s_nextqa_mc_qa_processed.json"
    rows = [row for row in read_questions(root.parent / "ds") if row["json_path"] == path]
    records = json.loads((root / path).read_text())
    assert len(rows) == len(records) == 5
    for position, (row, entry) in enumerate(zip(rows, records, strict=True)):
        assert row["question_id"] == f"{path}:{position}"
        assert row["turns"] == entry["conversations"]
        assert row["data_source"] == "theirs"
        assert row["json_sha256"] == hashlib.sha256((root / path).read_bytes()).hexdigest()
    assert {len(row["turns"]) for row in rows} == {2, 4}


def test_data_source_defaults_to_the_subset(root: Path) -> None:
    path = root / "0_30_s_academic_v0_1" / FILES["0_30_s_academic_v0_1", "cap"]
    write_json(path, [record("academic_source/Charades/0_30_s_academic_v0_1-0.mp4", data_source=None)])
    build(root)
    rows = [row for row in read_questions(root.parent / "ds") if row["json_path"].endswith(path.name)]
    assert [row["data_source"] for row in rows] == ["0_30_s_academic"]


def test_archives_extracted_into_the_subset_folder(root: Path) -> None:
    (root / "NextQA").rename(root / "30_60_s_nextqa" / "NextQA")
    report = build(root)
    assert report.missing_videos.count == 0
    rows = [row for row in read_manifest(root.parent / "ds") if row["subset"] == "30_60_s_nextqa"]
    assert len(rows) == 3
    for row in rows:
        assert row["video_id"].startswith("NextQA/NExTVideo/")
        assert row["uri"] == str(root / "30_60_s_nextqa" / row["video_id"])


def test_extraction_root_has_precedence(root: Path) -> None:
    name = "NextQA/NExTVideo/1006/30_60_s_nextqa-0.mp4"
    write(root / "30_60_s_nextqa" / name, "another file altogether")
    report = build(root)
    uris = {row["video_id"]: row["uri"] for row in read_manifest(root.parent / "ds")}
    assert uris[name] == str(root / name)
    assert skipped(report)["videos"] == ("no question that is used names them", 1)


def test_linked_video_folder_is_followed_and_loops_end(root: Path) -> None:
    (root / "NextQA").rename(root.parent / "disk2")
    (root / "NextQA").symlink_to(root.parent / "disk2")
    (root.parent / "disk2" / "loop").symlink_to(root)
    report = build(root)
    assert report.missing_videos.count == 0
    assert report.num_videos == 3 * len(VIDEOS)


def test_same_id_for_equal_files_is_one_video(root: Path) -> None:
    for folder in ("0_30_s_academic_v0_1", "1_2_m_youtube_v0_1"):
        write(root / folder / "shared" / "s.mp4", b"same")
        write_json(root / folder / FILES[folder, "cap"], [record("shared/s.mp4", number=len(folder))])
    build(root)
    rows = [row for row in read_manifest(root.parent / "ds") if row["video_id"] == "shared/s.mp4"]
    assert [(row["subset"], row["uri"]) for row in rows] == [
        ("0_30_s_academic", str(root / "0_30_s_academic_v0_1" / "shared" / "s.mp4"))
    ]


@pytest.mark.parametrize("content", [b"diff", b"longer"])
def test_same_id_for_different_files_fails(root: Path, content: bytes) -> None:
    build(root)
    before = read_questions(root.parent / "ds")
    write(root / "0_30_s_academic_v0_1" / "shared" / "s.mp4", b"same")
    write(root / "1_2_m_youtube_v0_1" / "shared" / "s.mp4", content)
    folder = "1_2_m_youtube_v0_1"
    write_json(root / folder / FILES[folder, "cap"], [record("shared/s.mp4")])
    with pytest.raises(
        ConfigurationError, match=r"shared/s.mp4: names two different videos, 0_30_s_academic"
    ):
        build(root)
    assert read_questions(root.parent / "ds") == before
    assert sorted(os.listdir(root.parent / "ds")) == ["manifest.parquet", "questions.parquet"]


def test_missing_videos_and_their_questions_are_counted(root: Path) -> None:
    (root / "NextQA/NExTVideo/1006/30_60_s_nextqa-1.mp4").unlink()
    for index in range(3):
        (root / f"perception_test/videos/0_30_s_perceptiontest-{index}.mp4").unlink()
    write(root / "0_30_s_perceptiontest" / "0_30_s_perceptiontest_videos_1.tar.gz")
    report = build(root)
    missing = report.missing_videos
    assert missing.count == 4
    assert missing.examples[0] == "NextQA/NExTVideo/1006/30_60_s_nextqa-1.mp4"
    assert missing.videos_by_subset == {"0_30_s_perceptiontest": 3, "30_60_s_nextqa": 1}
    assert missing.questions_by_subset == {"0_30_s_perceptiontest": 5, "30_60_s_nextqa": 2 + 2}
    assert report.counts["30_60_s_nextqa", "oe"] == 5
    assert report.counts["30_60_s_nextqa", "mc"] == 3
    assert ("0_30_s_perceptiontest", "mc") not in report.counts
    assert report.num_videos == 3 * len(VIDEOS) - 4
    assert skipped(report)["archives in 0_30_s_perceptiontest"][1] == 1
    there = set(ids(root.parent / "ds"))
    assert {row["video_id"] for row in read_questions(root.parent / "ds")} == there


def test_no_video_at_all_fails_with_a_remedy(root: Path) -> None:
    for path in root.rglob("*.mp4"):
        path.unlink()
    with pytest.raises(ConfigurationError, match=r"none of the 18 videos .* Extract the archives"):
        build(root)
    assert not (root.parent / "ds" / "questions.parquet").exists()


def test_unknown_folders_are_listed_with_counts(root: Path) -> None:
    write(root / "gpt4o_qa_prompt" / "a.txt")
    write(root / "gpt4o_qa_prompt" / "deep" / "b.mp4")
    write_json(root / "3_5_m_youtube_v0_1" / "3_5_m_youtube_oe_v0_1_qa_processed.json", [record("x.mp4")])
    write(root / ".cache" / "x.mp4")
    write(root / "README.md")
    report = build(root)
    assert report.unknown_folders == {"3_5_m_youtube_v0_1": 1, "gpt4o_qa_prompt": 2}
    assert report.num_questions == sum(RECORDS[kind] for _, kind in FILES)
    assert [entry.what for entry in report.skipped] == ["llava_hound"]


def test_other_json_files_are_listed(root: Path) -> None:
    write_json(root / "0_30_s_academic_v0_1_cap_processed.json", [])
    write_json(root / "30_60_s_nextqa" / "info.json", {})
    found = skipped(build(root))
    assert found["0_30_s_academic_v0_1_cap_processed.json"][0] == "is a JSON file outside the subset folders"
    assert found["30_60_s_nextqa/info.json"][0] == "its name does not say cap, oe or mc"


def test_two_spellings_of_one_file_are_used_once(root: Path) -> None:
    folder = root / "30_60_s_nextqa"
    write_json(folder / "30_60_s_nextqa_oe_qa.json", [record("NextQA/NExTVideo/1006/30_60_s_nextqa-0.mp4")])
    (root / "1_2_m_activitynetqa").symlink_to("1_2_m_activitynet")  # what some do to please the card
    report = build(root)
    reason, _ = skipped(report)["30_60_s_nextqa/30_60_s_nextqa_oe_qa.json"]
    assert reason.startswith("is 30_60_s_nextqa/30_60_s_nextqa_oe_qa_processed.json under another name")
    assert report.counts["30_60_s_nextqa", "oe"] == 7
    assert ("1_2_m_activitynet", "oe") not in report.counts
    assert report.counts["1_2_m_activitynetqa", "oe"] == 7


def test_bad_records_and_repeated_ones_are_counted(root: Path) -> None:
    video = "NextQA/NExTVideo/1006/30_60_s_nextqa-0.mp4"
    records = [record(video, number=number) for number in range(6)]
    records[1]["conversations"] = []
    records[3] = record(video, number=2, id="other id")
    records[4]["conversations"] = [{"from": "robot", "value": "?"}]
    path = "30_60_s_nextqa/30_60_s_nextqa_oe_qa_processed.json"
    write_json(root / path, [*records, record(video, number=2)])
    report = build(root)
    entries = [entry for entry in report.skipped if entry.what == path]
    assert {entry.reason: (entry.count, entry.examples) for entry in entries} == {
        "has no conversations": (1, ("record 1",)),
        "has an unknown speaker 'robot'": (1, ("record 4",)),
        "repeats the video and conversation of an earlier record": (2, ("record 3", "record 6")),
    }
    rows = [row["question_id"] for row in read_questions(root.parent / "ds") if row["json_path"] == path]
    assert rows == [f"{path}:{position}" for position in (0, 2, 5)]


@pytest.mark.parametrize("content", [b"", b"{}", b'[{"id"', b"\xff\xfe", b"null"])
def test_file_that_is_no_array_is_listed_and_the_rest_is_used(root: Path, content: bytes) -> None:
    path = "30_60_s_nextqa/30_60_s_nextqa_oe_qa_processed.json"
    write(root / path, content)
    report = build(root)
    assert path in skipped(report)
    assert ("30_60_s_nextqa", "oe") not in report.counts
    assert report.counts["30_60_s_nextqa", "mc"] == 5
    assert report.json_hashes[path] == hashlib.sha256(content).hexdigest()


def test_mix_samples_each_file(root: Path) -> None:
    nextqa = "30_60_s_nextqa/30_60_s_nextqa"
    mix = write_mix(
        root,
        f"{{json_path: /mnt/x/{nextqa}_oe_qa.json, sampling_strategy: 'end:30%'}}",
        f"{{json_path: {nextqa}_mc_qa_processed.json, sampling_strategy: 'first:2'}}",
        "{json_path: 1_2_m_activitynetqa/1_2_m_activitynetqa_oe_qa.json, sampling_strategy: 'random:3'}",
        "{json_path: /mnt/x/llava_hound/llava_hound_255k.json}",
        "{json_path: 0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap.json}",
    )
    report = build(root, mix=mix)
    assert report.counts == {
        ("30_60_s_nextqa", "oe"): 3,
        ("30_60_s_nextqa", "mc"): 2,
        ("1_2_m_activitynet", "oe"): 3,
        ("0_30_s_academic_v0_1", "cap"): 3,
    }
    positions = [row["question_id"].split(":") for row in read_questions(root.parent / "ds")]
    by_file = {path: [int(at) for name, at in positions if name == path] for path, _ in positions}
    assert by_file[f"{nextqa}_oe_qa_processed.json"] == [4, 5, 6]
    assert by_file[f"{nextqa}_mc_qa_processed.json"] == [0, 1]
    assert set(by_file) == set(report.json_hashes)
    assert skipped(report)["videos"] == ("no question that is used names them", report_unused(root, report))
    assert "folders of frames" in skipped(report)["/mnt/x/llava_hound/llava_hound_255k.json"][0]


def report_unused(root: Path, report: ManifestReport) -> int:
    """Videos of folders that a question of the mix names, but which no question itself names."""
    known = {video_id.partition("/")[0] for video_id in ids(root.parent / "ds")}
    files = [path.relative_to(root).as_posix() for path in root.rglob("*.mp4")]
    return sum(path.partition("/")[0] in known for path in files) - report.num_videos


def test_mix_does_not_depend_on_the_order_but_on_the_seed(root: Path) -> None:
    lines = [
        f"{{json_path: {folder}/{name}, sampling_strategy: 'random:3'}}"
        for (folder, _), name in FILES.items()
    ]
    build(root, mix=write_mix(root, *lines), seed=5)
    first = read_questions(root.parent / "ds")
    build(root, mix=write_mix(root, *reversed(lines)), seed=5)
    assert read_questions(root.parent / "ds") == first
    build(root, mix=write_mix(root, *lines), seed=6)
    assert read_questions(root.parent / "ds") != first


def test_repetitions_are_those_within_the_sample(root: Path) -> None:
    video = "NextQA/NExTVideo/1006/30_60_s_nextqa-0.mp4"
    path = "30_60_s_nextqa/30_60_s_nextqa_oe_qa_processed.json"
    write_json(root / path, [record(video), {"bad": 1}, record(video)])
    report = build(root, mix=write_mix(root, f"{{json_path: {path}, sampling_strategy: 'end:1'}}"))
    assert report.num_questions == 1
    assert path not in skipped(report)


def test_mix_that_names_missing_files_fails_and_keeps_the_old_tables(root: Path) -> None:
    build(root)
    before = read_questions(root.parent / "ds")
    mix = write_mix(
        root, "{json_path: 2_3_m_nextqa/a_oe.json}", "{json_path: b_mc.json, sampling_strategy: all}"
    )
    with pytest.raises(
        ConfigurationError, match=r"2_3_m_nextqa/a_oe.json is not there; b_mc.json is not there"
    ):
        build(root, mix=mix)
    assert read_questions(root.parent / "ds") == before


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_root_that_is_no_copy_fails(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"no such folder|no question file"):
        build(tmp_path / name)


def test_remote_copy_gives_the_same_report(root: Path, remote: str) -> None:
    local = build(root)
    for path in root.rglob("*"):
        if path.is_file():
            storage.publish_bytes(f"{remote}/L/{path.relative_to(root).as_posix()}", path.read_bytes())
    report = manifest_from_llava_video(f"{remote}/L", f"{remote}/ds")
    assert report.to_dict() == local.to_dict()
    assert read_questions(f"{remote}/ds") == read_questions(root.parent / "ds")
    row = read_manifest(f"{remote}/ds")[0]
    assert storage.read_bytes(row["uri"]) == (root / row["video_id"]).read_bytes()


def test_report_is_json(root: Path) -> None:
    write(root / "unknown" / "a")
    (root / "NextQA/NExTVideo/1006/30_60_s_nextqa-1.mp4").unlink()
    document = build(root).to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["unknown_folders"] == {"unknown": 1}
    assert document["missing_videos"]["count"] == 1
    assert {"subset": "30_60_s_nextqa", "kind": "oe", "num_questions": 5} in document["counts"]


def test_progress_is_told(root: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    build(root, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("question files", len(FILES), len(FILES))

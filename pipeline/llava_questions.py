"""Join the question files of LLaVA-Video-178K to the videos on disk, and write questions.parquet.

One question file at a time: parse, sample, drop repeated records and those without a video, write. A video
is looked up in one listing of the tree, in the extraction root first and then in the subset folders; an id
means one file, whichever record names it, so the answer does not depend on the order of the files.
"""

from __future__ import annotations

import filecmp
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cope_prep.pipeline import storage
from cope_prep.pipeline.llava_layout import QuestionFile, is_subset_folder, video_subset
from cope_prep.pipeline.manifest_report import NUM_EXAMPLES, MissingVideos, Progress, SkipCounter
from cope_prep.pipeline.mix_yaml import Sampling
from cope_prep.pipeline.question_files import DUPLICATE, ParsedFile, parse_question_file
from cope_prep.pipeline.source_tree import SourceTree
from cope_prep.schemas.arrow import QUESTIONS
from cope_prep.schemas.errors import ConfigurationError

_ROW_GROUP_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsResult:
    """What was written, and what the manifest needs to know."""

    counts: Counter[tuple[str, str]]
    """(subset, kind) -> questions written."""
    videos: dict[str, str]
    """Video id -> path in the tree, of the videos that are there."""
    folders: dict[str, str]
    """Video id, also of missing ones -> first subset folder that names it."""
    missing: MissingVideos
    json_hashes: dict[str, str]
    """Question file -> sha256."""


def write_questions(
    uri: str,
    tree: SourceTree,
    *,
    plan: Sequence[tuple[QuestionFile, Sampling]],
    seed: int,
    skips: SkipCounter,
    progress: Progress | None = None,
) -> QuestionsResult:
    """Publish questions.parquet; the files of the plan are in order of their path.

    Raises:
        ConfigurationError: none of the videos is there, or one id names two different videos; nothing is
            published then.
    """
    finder = _VideoFinder(tree)
    counts: Counter[tuple[str, str]] = Counter()
    lost_questions: Counter[str] = Counter()
    lost_videos: defaultdict[str, set[str]] = defaultdict(set)
    folders: dict[str, str] = {}
    hashes: dict[str, str] = {}
    path_of_hash: dict[str, str] = {}
    with storage.publish(uri) as local, pq.ParquetWriter(local, QUESTIONS, compression="zstd") as writer:
        for index, (file, sampling) in enumerate(plan):
            parsed = parse_question_file(tree.uri(file.path))
            hashes[file.path] = parsed.sha256
            first = path_of_hash.setdefault(parsed.sha256, file.path)
            if parsed.failure:
                skips.add(file.path, parsed.failure)
            elif first != file.path:
                skips.add(file.path, f"has the same bytes as {first}", count=parsed.num_records)
            else:
                kept = _sampled_rows(parsed, file, sampling=sampling, seed=seed, skips=skips)
                videos = _select(parsed.columns, kept)["video_id"].combine_chunks().dictionary_encode()
                names = videos.dictionary.to_pylist()
                for name in names:
                    folders.setdefault(name, file.folder)
                is_there = np.array([finder.find(name) is not None for name in names], dtype=bool)
                if not is_there.all():
                    lost_videos[file.folder].update(
                        name for name, there in zip(names, is_there, strict=True) if not there
                    )
                row_is_there = is_there[videos.indices.to_numpy()]
                lost_questions[file.folder] += int(np.count_nonzero(~row_is_there))
                kept = kept[row_is_there]
                counts[file.folder, file.kind] += len(kept)
                writer.write_table(_question_rows(parsed, file, kept), row_group_size=_ROW_GROUP_ROWS)
            if progress is not None:
                progress("question files", index + 1, len(plan))
        lost = sorted(set[str]().union(*lost_videos.values()))
        _note_archives(tree, folders=lost_videos, skips=skips)
        if not finder.videos:
            raise ConfigurationError(tree.root, _none_found(lost, skips), "Extract the archives into it.")
    return QuestionsResult(
        counts=+counts,
        videos=finder.videos,
        folders=folders,
        missing=MissingVideos(
            count=len(lost),
            examples=tuple(lost[:NUM_EXAMPLES]),
            videos_by_subset={folder: len(names) for folder, names in lost_videos.items()},
            questions_by_subset=dict(+lost_questions),
        ),
        json_hashes=hashes,
    )


def _sampled_rows(
    parsed: ParsedFile, file: QuestionFile, *, sampling: Sampling, seed: int, skips: SkipCounter
) -> np.ndarray:
    """int64: the rows of the columns that the sampling takes, without repetitions; the rest is counted."""
    is_taken = np.zeros(parsed.num_records, dtype=bool)
    is_taken[sampling.positions(parsed.num_records, seed=seed, name=file.name)] = True
    rows = np.flatnonzero(is_taken[parsed.positions])
    _, first = np.unique(parsed.digests[rows], return_index=True)
    is_first = np.zeros(len(rows), dtype=bool)
    is_first[first] = True
    rejected = {**parsed.rejected, DUPLICATE: parsed.positions[rows[~is_first]].tolist()}
    for reason, positions in rejected.items():
        bad = [position for position in positions if is_taken[position]]
        if bad:
            skips.add(
                file.path, reason, *(f"record {position}" for position in bad[:NUM_EXAMPLES]), count=len(bad)
            )
    return rows[is_first]


def _select(columns: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows in ascending order; by a mask, because `take` would first join the chunks to one."""
    is_selected = np.zeros(columns.num_rows, dtype=bool)
    is_selected[rows] = True
    return columns.filter(pa.array(is_selected))


def _question_rows(parsed: ParsedFile, file: QuestionFile, rows: np.ndarray) -> pa.Table:
    """The rows of questions.parquet."""
    columns = _select(parsed.columns, rows)
    default_source = video_subset(file.folder)
    sources = columns["data_source"].to_pylist()

    def constant(text: str) -> pa.Array:
        return pa.repeat(pa.scalar(text), len(rows))

    return pa.table(
        {
            "question_id": [f"{file.path}:{position}" for position in parsed.positions[rows].tolist()],
            "video_id": columns["video_id"],
            "subset": constant(file.folder),
            "data_source": [source or default_source for source in sources],
            "kind": constant(file.kind),
            "turns": columns["turns"],
            "json_path": constant(file.path),
            "json_sha256": constant(parsed.sha256),
        },
        schema=QUESTIONS,
    )


def _note_archives(tree: SourceTree, *, folders: dict[str, set[str]], skips: SkipCounter) -> None:
    """Archives beside missing videos have most likely not been extracted; otherwise they are no news."""
    for path in tree.files:
        folder = path.partition("/")[0]
        if folder in folders and path.endswith((".tar.gz", ".tar", ".zip")):
            skips.add(f"archives in {folder}", "videos of this folder are missing: extract them", path)


def _none_found(lost: list[str], skips: SkipCounter) -> str:
    if lost:
        return f"none of the {len(lost)} videos that the questions name is there (first: {lost[0]})"
    reasons = "; ".join(f"{entry.what} {entry.reason} ({entry.count})" for entry in skips.result())
    return f"no question of it can be used: {reasons or 'the mix takes none'}"


class _VideoFinder:
    """Video id -> file. `videos` holds what was found so far."""

    def __init__(self, tree: SourceTree) -> None:
        self._tree = tree
        tops = {path.partition("/")[0] for path in tree.files}
        self._folders = sorted(top for top in tops if is_subset_folder(top))
        self._missing: set[str] = set()
        self.videos: dict[str, str] = {}

    def find(self, video_id: str) -> str | None:
        """The path of a video in the tree; None if it is not there.

        Raises:
            ConfigurationError: subset folders hold different files under this id.
        """
        if video_id in self.videos:
            return self.videos[video_id]
        if video_id in self._missing:
            return None
        path = self._look_up(video_id)
        if path is None:
            self._missing.add(video_id)
        else:
            self.videos[video_id] = path
        return path

    def _look_up(self, video_id: str) -> str | None:
        files = self._tree.files
        if video_id in files:
            return video_id
        paths = [path for folder in self._folders if (path := f"{folder}/{video_id}") in files]
        for other in paths[1:]:
            if not self._same_content(paths[0], other):
                raise ConfigurationError(
                    video_id,
                    f"names two different videos, {paths[0]} and {other}",
                    "Keep the right one, or put it into the extraction root, which has precedence.",
                )
        return paths[0] if paths else None

    def _same_content(self, path: str, other: str) -> bool:
        if self._tree.files[path].size_bytes != self._tree.files[other].size_bytes:
            return False
        uris = self._tree.uri(path), self._tree.uri(other)
        if storage.is_local(self._tree.root):
            return filecmp.cmp(*uris, shallow=False)
        return storage.read_bytes(uris[0]) == storage.read_bytes(uris[1])

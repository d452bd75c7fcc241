"""Stage 0: what there is to do. A folder of videos, or LLaVA-Video-178K, becomes two tables.

    manifest.parquet    one row a source video, sorted by video id
    questions.parquet   one row a QA record, by question file and position (no rows for a plain folder)

Both are published atomically, questions first: a stage starts from the manifest, so a crash in between
leaves it the old one. Nothing is built if the source or the mix is wrong, or if no video is found.

Cost for LLaVA-Video-178K: one listing of the tree, one pass over the JSON files. Questions are written file
by file as columns, so memory is that of the largest question file and of the listing.
"""

from __future__ import annotations

import glob
import posixpath
import re
from collections import Counter
from collections.abc import Collection

import pyarrow as pa
from fsspec.utils import glob_translate

from cope_prep.pipeline import llava_layout, llava_questions, mix_yaml, storage
from cope_prep.pipeline.manifest_report import ManifestReport, MissingVideos, Progress, SkipCounter, Skipped
from cope_prep.pipeline.source_tree import SourceTree, absolute, is_unicode, list_tree
from cope_prep.pipeline.storage import FileStat
from cope_prep.schemas.arrow import MANIFEST, QUESTIONS
from cope_prep.schemas.errors import ConfigurationError, SourceNotFoundError
from cope_prep.schemas.records import video_key

__all__ = [
    "VIDEO_EXTENSIONS",
    "ManifestReport",
    "MissingVideos",
    "Progress",
    "Skipped",
    "manifest_from_files",
    "manifest_from_llava_video",
]

VIDEO_EXTENSIONS = (
    *("mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "mts", "m2ts", "mpg", "mpeg", "m2v"),
    *("vob", "flv", "f4v", "wmv", "asf", "3gp", "3g2", "ogv", "mxf"),
)
"""What `manifest_from_files` takes for a video; upper case counts too. GIF is not among them: a folder of
videos has more thumbnails than animations. Name it if yours is different."""
_OF_THE_WEB = re.compile(r"(?:^|::)https?://", re.IGNORECASE)


def manifest_from_files(
    source: str,
    dataset: str,
    *,
    extensions: Collection[str] = VIDEO_EXTENSIONS,
    progress: Progress | None = None,
) -> ManifestReport:
    """Build the tables for a folder (recursive), a single file or a glob; any fsspec URL.

    A video's id is its path relative to the folder, to the file's folder, or to the glob's part before the
    first wildcard; a web address counts without its query. Hidden files and the dataset's own folder are left
    out. Files with other extensions, and links that lead out of the folder, are counted in the report. A
    single file is taken whatever its extension.

    Raises:
        ConfigurationError: nothing is there, no video is there, or the source is the dataset.
    """
    skips = SkipCounter()
    suffixes = {"." + extension.lower().removeprefix(".") for extension in extensions}
    folder, pattern = _split_glob(source)
    if pattern or storage.is_folder(folder):
        deep = not pattern or "**" in pattern
        tree = list_tree(
            folder,
            dataset=dataset,
            skips=skips,
            max_depth=None if deep else pattern.count("/") + 1,
            progress=progress,
        )
        files = _select(tree, pattern=pattern, suffixes=suffixes, skips=skips)
        found = {path: (tree.uri(path), stat) for path, stat in files.items()}
    else:
        uri = absolute(source)
        found = {_name_of(uri): (uri, _stat_source(source))}
    if not found:
        others = ", ".join(f"{entry.count} {entry.what}" for entry in skips.result()) or "nothing else"
        raise ConfigurationError(
            source,
            f"no video is there (but {others})",
            f"Taken for videos are {' '.join(sorted(suffixes))}; a glob names files, as in DIR/**/*.mp4.",
        )
    rows = {path: (uri, "", stat) for path, (uri, stat) in found.items()}
    storage.publish_table(storage.join(dataset, "questions.parquet"), QUESTIONS.empty_table())
    storage.publish_table(storage.join(dataset, "manifest.parquet"), _manifest_table(rows))
    return ManifestReport(
        num_videos=len(found),
        num_questions=0,
        total_bytes=sum(stat.size_bytes for _, stat in found.values()),
        skipped=skips.result(),
    )


def _split_glob(source: str) -> tuple[str, str]:
    """(folder, pattern relative to it); the pattern is empty if the source names something as it stands."""
    if not glob.has_magic(source) or storage.exists(source):
        return absolute(source), ""
    parts = source.split("/")
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    folder = "/".join(parts[:first]) or ("/" if source.startswith("/") else ".")
    return absolute(folder), "/".join(parts[first:])


def _name_of(uri: str) -> str:
    """The last part of a path or URL; of the web's URLs without the query, which may hold a signature."""
    if _OF_THE_WEB.search(uri):
        uri = re.split(r"[?#]", uri, maxsplit=1)[0].rstrip("/")
    return uri.rpartition("/")[2]


def _stat_source(uri: str) -> FileStat:
    if not is_unicode(uri):
        raise ConfigurationError(ascii(uri), "its name is not valid UTF-8", "Rename it.")
    try:
        return storage.stat(uri)
    except SourceNotFoundError as exc:
        raise ConfigurationError(uri, "there is no such file or folder") from exc


def _select(tree: SourceTree, *, pattern: str, suffixes: set[str], skips: SkipCounter) -> dict[str, FileStat]:
    """The tree's videos that match the pattern; what is no video by its extension is counted."""
    matches = re.compile(glob_translate(pattern or "**")).match
    videos = {}
    for path, stat in tree.files.items():
        if not matches(path):
            continue
        suffix = posixpath.splitext(path)[1].lower()
        if suffix in suffixes:
            videos[path] = stat
        else:
            skips.add(suffix or "no extension", "not a video by its extension", path)
    return videos


def manifest_from_llava_video(
    root: str,
    dataset: str,
    *,
    mix: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ManifestReport:
    """Build the tables for a copy of LLaVA-Video-178K, with every question file or with those of a mix.

    The archives may have been extracted into the root or into the subset folders; the root has precedence.
    A video's id is the `video` path of its records, its subset the first folder (sorted) that names it.
    The manifest holds the videos that a question names. Questions whose video is missing are left out of
    questions.parquet, because nothing could be trained on them, and counted by subset. Records that cannot
    be used, and repeated ones, are counted by file and reason. `seed` decides the mix's `random` samples.

    Raises:
        ConfigurationError: the root is not such a copy, the mix is wrong, no video is there, or one id
            names two different videos.
    """
    skips = SkipCounter()
    tree = list_tree(
        root,
        dataset=dataset,
        skips=skips,
        follow_links=True,  # the names come from the questions; folders on other disks are usual
        leave_out=llava_layout.is_llava_hound,
        progress=progress,
    )
    for folder in storage.list_folders(tree.root):
        if llava_layout.is_llava_hound(folder):
            skips.add(folder, mix_yaml.LLAVA_HOUND_REASON)
    files = llava_layout.find_question_files(tree.files, skips=skips)
    if not files:
        raise ConfigurationError(
            tree.root,
            "no question file of LLaVA-Video-178K is there",
            "Name the folder that holds 0_30_s_academic_v0_1, 0_30_s_nextqa and so on.",
        )
    if mix is None:
        plan = [(file, mix_yaml.ALL) for file in llava_layout.without_twins(files, skips=skips)]
    else:
        plan = mix_yaml.resolve_mix(mix_yaml.read_mix(mix), files, mix=mix, skips=skips)
    result = llava_questions.write_questions(
        storage.join(dataset, "questions.parquet"), tree, plan=plan, seed=seed, skips=skips, progress=progress
    )
    rows = {
        video_id: (tree.uri(path), llava_layout.video_subset(result.folders[video_id]), tree.files[path])
        for video_id, path in sorted(result.videos.items())
    }
    storage.publish_table(storage.join(dataset, "manifest.parquet"), _manifest_table(rows))
    unknown = _unknown_folders(tree, used={video_id.partition("/")[0] for video_id in result.folders})
    used_paths = set(result.videos.values())
    unused = [
        path
        for path in tree.files
        if posixpath.splitext(path)[1][1:].lower() in VIDEO_EXTENSIONS
        and path not in used_paths
        and path.partition("/")[0] not in unknown
    ]
    if unused:
        skips.add("videos", "no question that is used names them", *unused, count=len(unused))
    return ManifestReport(
        num_videos=len(rows),
        num_questions=sum(result.counts.values()),
        total_bytes=sum(stat.size_bytes for _, _, stat in rows.values()),
        counts=dict(result.counts),
        skipped=skips.result(),
        missing_videos=result.missing,
        unknown_folders=dict(unknown),
        json_hashes=result.json_hashes,
    )


def _unknown_folders(tree: SourceTree, *, used: set[str]) -> Counter[str]:
    """Top-level folder that is no subset and that no record names -> number of files in it."""
    tops = (path.split("/", 1)[0] for path in tree.files if "/" in path)
    return Counter(top for top in tops if top not in used and not llava_layout.is_subset_folder(top))


def _manifest_table(rows: dict[str, tuple[str, str, FileStat]]) -> pa.Table:
    """(video id -> uri, subset, stat) as the manifest's columns.

    Raises:
        ConfigurationError: two ids hash to one video_key, so that their outputs would be one file.
    """
    keys: dict[str, str] = {}
    for video_id in rows:
        other = keys.setdefault(video_key(video_id), video_id)
        if other != video_id:
            raise ConfigurationError(
                video_id, f"has the same video_key as {other} ({video_key(video_id)})", "Rename one of them."
            )
    return pa.table(
        {
            "video_id": list(rows),
            "video_key": list(keys),
            "uri": [uri for uri, _, _ in rows.values()],
            "subset": [subset for _, subset, _ in rows.values()],
            "size_bytes": [stat.size_bytes for _, _, stat in rows.values()],
            "version": [stat.version for _, _, stat in rows.values()],
        },
        schema=MANIFEST,
    )

"""What a mix holds, before any byte of a shard is read: records by source and kind, tokens, bytes to stream.

A mix is LLaVA-NeXT's YAML over the questions of one dataset, or ours over several datasets (mix.py). What is
counted is what QADataset shows in an epoch, weights and strategies chosen by the same functions with the same
seed. Without shards yet, the questions alone are counted.

Cost: columns only, no loop over records; 1.4 million of them take about 2 s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import yaml

from cope_prep.pipeline import storage
from cope_prep.pipeline.llava_layout import is_llava_hound
from cope_prep.pipeline.loader.gops import geometry_of
from cope_prep.pipeline.loader.mix import MixPart, read_mix_parts, unit_copies
from cope_prep.pipeline.loader.mix_published import PublishedCheck, check_published
from cope_prep.pipeline.loader.mix_records import PartRecords, read_part
from cope_prep.pipeline.loader.questions import QuestionPlan
from cope_prep.pipeline.mix_yaml import read_mix
from cope_prep.pipeline.token_counts import gop_tokens
from cope_prep.schemas.errors import ConfigurationError, SourceNotFoundError

DENSITIES = (1, 2, 4, 8)
"""Key frames a GOP, where they divide its anchors."""
NAMES_DATASETS = "names its datasets itself"
"""What the error of `read_any_mix` found, of a mix over several datasets when `dataset` was given."""
_NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class KindCount:
    """Records of one kind of one source."""

    kind: str
    """cap, oe or mc."""
    num_records: int
    num_videos: int
    """Distinct."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCount:
    """What a source gives an epoch: one folder of question files of one dataset."""

    dataset: str
    source: str
    kinds: tuple[KindCount, ...]
    num_records: int
    num_videos: int
    """Distinct, over all kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """What the records cost at a number of key frames a GOP: each one the tokens of its whole video."""

    key_frames: int
    num_tokens: int
    tokens_per_record: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Records of the mix that no epoch shows."""

    dataset: str
    reason: str
    num_records: int
    num_videos: int
    examples: tuple[str, ...]
    """Some of the videos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixPlan:
    """What an epoch of a mix holds."""

    seed: int
    sources: tuple[SourceCount, ...]
    num_records: int
    num_videos: int
    """Distinct; of two datasets, a video of both counts twice."""
    densities: tuple[Density, ...]
    """Empty if not known."""
    bytes_once: int | None
    """All videos of the epoch, each once: what is streamed if every video stays in a cache."""
    bytes_per_record: int | None
    """The video of each record anew: what is streamed without any cache."""
    unknown: tuple[str, ...]
    """Why tokens and bytes are not known."""
    left_out: tuple[LeftOut, ...]
    not_video: tuple[str, ...]
    """Question files of the mix that come without videos (LLaVA-Hound)."""
    published: PublishedCheck | None
    """None if nothing of LLaVA-Video-178K is in the mix."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def read_any_mix(uri: str, *, dataset: str | None, spec: str | None = None) -> list[MixPart]:
    """The parts of a mix file of either kind; LLaVA-NeXT's chooses among the questions of `dataset`.

    Raises:
        ConfigurationError: it is not there, is neither, or `dataset` is missing or too much.
    """
    if not _is_llava_mix(uri):
        if dataset is not None or spec is not None:
            raise ConfigurationError(
                uri, NAMES_DATASETS, "Leave out --dataset and --spec; a part may have a spec."
            )
        return read_mix_parts(uri)
    if dataset is None:
        raise ConfigurationError(
            uri, "names question files, not datasets", "Say whose they are with --dataset DATASET."
        )
    return [MixPart(dataset=dataset, mix=uri, spec=spec)]


def plan_mix(parts: Sequence[MixPart], *, seed: int, picture_tokens: int, delta_tokens: int) -> MixPlan:
    """Count what epoch 0 of the mix shows.

    Raises:
        ConfigurationError: no questions, a mix that does not fit them, or datasets that cannot be in one batch.
    """
    found = [read_part(part, seed=seed) for part in parts]
    part = np.repeat(np.arange(len(found)), [len(records.questions) for records in found])
    copies = _copies(found, part, seed=seed)
    first_video = np.cumsum([0, *(records.num_videos for records in found)])
    video = np.concatenate([records.questions.video for records in found]) + first_video[part]
    records_of_video = np.zeros(first_video[-1], np.int64)
    np.add.at(records_of_video, video, copies)
    num_records = int(copies.sum())
    unknown = tuple(records.why_no_shards for records in found if records.catalog is None)
    video_bytes = None if unknown else _video_bytes(found)
    return MixPlan(
        seed=seed,
        sources=tuple(_count_sources(found, video, copies)),
        num_records=num_records,
        num_videos=int(np.count_nonzero(records_of_video)),
        densities=() if unknown else tuple(_densities(found, records_of_video, picture_tokens, delta_tokens)),
        bytes_once=None if video_bytes is None else int(video_bytes[records_of_video > 0].sum()),
        bytes_per_record=None if video_bytes is None else int(video_bytes @ records_of_video),
        unknown=unknown,
        left_out=tuple(_left_out(found)),
        not_video=tuple(_without_video(parts)),
        published=check_published(_taken(found), is_whole=all(map(_takes_all, parts))),
    )


def _is_llava_mix(uri: str) -> bool:
    try:
        document = yaml.safe_load(storage.read_bytes(uri))
    except SourceNotFoundError as exc:
        raise ConfigurationError(uri, "there is no such mix file") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigurationError(uri, f"is not valid YAML ({' '.join(str(exc).split())})") from exc
    entries = document.get("datasets") if isinstance(document, dict) else None
    keys = {key for entry in entries if isinstance(entry, dict) for key in entry} if entries else set()
    if not keys & {"dataset", "json_path"}:
        raise ConfigurationError(
            uri,
            "is not a mix",
            "Write datasets: [{json_path: ..., sampling_strategy: ...}], or [{dataset: ..., weight: ...}].",
        )
    return "json_path" in keys


def _copies(found: Sequence[PartRecords], part: np.ndarray, *, seed: int) -> np.ndarray:
    """int64 [num_questions]: how often epoch 0 shows each question."""
    # A weight chooses questions by their number in the order of the shards, as QADataset sorts them.
    place = np.concatenate([records.first_gop[records.questions.video] for records in found])
    in_order = np.lexsort((place, part))
    copies = np.empty(len(part), np.int64)
    weights = [records.part.weight for records in found]
    copies[in_order] = unit_copies(part[in_order], weights, seed=seed, epoch=0)
    return copies


def _groups(questions: QuestionPlan) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The (source, kind) pairs of a part's questions, and which of them each question is of."""
    folders = [path.partition("/")[0] for path in questions.json_path.dictionary.to_pylist()]
    kinds = questions.kind.dictionary.to_pylist()
    sources = sorted(set(folders))
    source = np.array([sources.index(folder) for folder in folders], np.int64)
    group = source[questions.json_path.indices.to_numpy()] * len(kinds) + questions.kind.indices.to_numpy()
    return [(source, kind) for source in sources for kind in kinds], group


def _count_sources(
    found: Sequence[PartRecords], video: np.ndarray, copies: np.ndarray
) -> Iterator[SourceCount]:
    ends = np.cumsum([len(records.questions) for records in found]).tolist()
    for records, end in zip(found, ends, strict=True):
        place = slice(end - len(records.questions), end)
        pairs, group = _groups(records.questions)
        shown = copies[place] > 0
        num_records = np.bincount(group, copies[place], len(pairs)).astype(np.int64)
        num_videos = _num_distinct(group[shown], video[place][shown], len(pairs))
        sources = list(dict.fromkeys(source for source, _ in pairs))
        source_of_pair = np.array([sources.index(source) for source, _ in pairs], np.int64)
        source_videos = _num_distinct(source_of_pair[group[shown]], video[place][shown], len(sources))
        for index, source in enumerate(sources):
            kinds = tuple(
                KindCount(kind=kind, num_records=int(num_records[pair]), num_videos=int(num_videos[pair]))
                for pair, (of_source, kind) in enumerate(pairs)
                if of_source == source and num_records[pair]
            )
            yield SourceCount(
                dataset=records.part.dataset,
                source=source,
                kinds=kinds,
                num_records=sum(count.num_records for count in kinds),
                num_videos=int(source_videos[index]),
            )


def _num_distinct(group: np.ndarray, video: np.ndarray, num_groups: int) -> np.ndarray:
    """int64 [num_groups]: distinct videos of each group."""
    num_videos = int(video.max(initial=0)) + 1
    return np.bincount(np.unique(group * num_videos + video) // num_videos, minlength=num_groups)


def _video_bytes(found: Sequence[PartRecords]) -> np.ndarray:
    """int64 [num_videos over all parts]."""
    sums = [r.video_sums(r.catalog.size_bytes) for r in found if r.catalog is not None]
    return np.concatenate(sums)


def _densities(
    found: Sequence[PartRecords], records_of_video: np.ndarray, picture_tokens: int, delta_tokens: int
) -> Iterator[Density]:
    folders = [records.folder for records in found if records.folder is not None]
    geometry = geometry_of(folders, window=None, key_frames=1)
    full = (geometry.gop_size - 1) // geometry.window + 1
    num_records = int(records_of_video.sum())
    for key_frames in DENSITIES:
        if full % key_frames:
            continue
        sums = [
            records.video_sums(
                gop_tokens(
                    records.catalog.num_frames,
                    gop_size=geometry.gop_size,
                    window=geometry.window,
                    key_frames=key_frames,
                    picture_tokens=picture_tokens,
                    delta_tokens=delta_tokens,
                )
            )
            for records in found
            if records.catalog is not None
        ]
        num_tokens = int(np.concatenate(sums) @ records_of_video)
        yield Density(
            key_frames=key_frames,
            num_tokens=num_tokens,
            tokens_per_record=num_tokens / max(num_records, 1),
        )


def _left_out(found: Sequence[PartRecords]) -> Iterator[LeftOut]:
    for records in found:
        for absent in records.absent:
            videos = np.unique(absent.questions.video)
            yield LeftOut(
                dataset=records.part.dataset,
                reason=absent.reason,
                num_records=len(absent.questions),
                num_videos=len(videos),
                examples=tuple(absent.video_ids.take(videos[:_NUM_EXAMPLES]).to_pylist()),
            )


def _taken(found: Sequence[PartRecords]) -> Counter[tuple[str, str]]:
    """Records that the mix takes by (source, kind), whether their videos are there or not."""
    taken: Counter[tuple[str, str]] = Counter()
    for records in found:
        for questions in (records.questions, *(absent.questions for absent in records.absent)):
            pairs, group = _groups(questions)
            counts = np.bincount(group, minlength=len(pairs)).tolist()
            taken.update(dict(zip(pairs, counts, strict=True)))
    return taken


def _takes_all(part: MixPart) -> bool:
    """True if every question file of the part is taken whole, and once."""
    strategies = set() if part.mix is None else {entry.sampling.strategy for entry in read_mix(part.mix)}
    return part.weight == 1 and strategies <= {"all"}


def _without_video(parts: Sequence[MixPart]) -> Iterator[str]:
    for part in parts:
        for entry in () if part.mix is None else read_mix(part.mix):
            if any(map(is_llava_hound, entry.json_path.split("/")[-2:])):
                yield entry.json_path

"""The records of a part of a mix, sorted into those that an epoch can show and those that it cannot, and why.

QADataset leaves out questions whose video is not in the shards or does not pass the filter. Here they are kept
apart instead of dropped, so that a plan can name them. A dataset without shards yet has its questions alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cope_prep.pipeline.layout import find_specs
from cope_prep.pipeline.loader.catalog import Catalog, ShardFolder, open_shards, read_catalog
from cope_prep.pipeline.loader.mix import MixPart
from cope_prep.pipeline.loader.questions import QuestionPlan, plan_questions, questions_uri
from cope_prep.pipeline.loader.remote_file import open_file
from cope_prep.pipeline.parquet import read_columns
from cope_prep.schemas.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentRecords:
    """Records that no epoch shows."""

    reason: str
    questions: QuestionPlan
    video_ids: pa.Array
    """string: what `questions.video` is an index into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecords:
    """The records of one part. `video` of its questions counts the videos of the shards, if there are any."""

    part: MixPart
    catalog: Catalog | None
    """None: there are no shards yet."""
    why_no_shards: str
    questions: QuestionPlan
    """Those that an epoch can show."""
    absent: tuple[AbsentRecords, ...]
    first_gop: np.ndarray
    """int64 [num_videos]: first sample; 0 without shards."""

    @property
    def folder(self) -> ShardFolder | None:
        """The shards."""
        return None if self.catalog is None else self.catalog.folders[0]

    @property
    def num_videos(self) -> int:
        """Of the shards; without them, those that are asked about."""
        return len(self.first_gop)

    def video_sums(self, per_sample: np.ndarray) -> np.ndarray:
        """int64 [num_videos]: sums over each video of a figure of the shards' samples, int [num_samples]."""
        assert self.catalog is not None
        sums = np.zeros(self.num_videos, np.int64)
        # Not bincount, whose float64 is exact to 2^53 only: enough here, but not to be thought about.
        np.add.at(sums, self.catalog.video, per_sample)
        return sums


def read_part(part: MixPart, *, seed: int) -> PartRecords:
    """All records that the part's mix takes.

    Raises:
        ConfigurationError: no questions, several outputs of shards, a filter that leaves nothing, or a mix that
            does not fit the questions.
    """
    catalog, why_no_shards = None, ""
    try:
        catalog = read_catalog(open_shards(part.dataset, spec=part.spec), where=part.filter, per_video=True)
    except ConfigurationError as exc:
        if part.spec is not None or len(find_specs(part.dataset, "shards")) > 1:
            raise
        why_no_shards = f"{part.dataset} {exc.found}"
    if catalog is not None and len(catalog) == 0:
        raise ConfigurationError(part.dataset, "has no GOP that passes the filter", "Widen the filter.")
    # Arrow keeps what reading the index took, 150 MB at a million GOPs: reading the questions takes as much.
    pa.default_memory_pool().release_unused()
    uri = part.questions or questions_uri(part.dataset, catalog.folders[0].uri if catalog else "")
    video_ids = pa.array([], pa.string()) if catalog is None else catalog.video_ids
    questions = plan_questions(uri, video_ids, mix=part.mix, seed=seed)
    others, others_ids = questions, video_ids
    if questions.num_without_video:
        others_ids = _other_videos(uri, video_ids)
        others = plan_questions(uri, others_ids, mix=part.mix, seed=seed)
    if catalog is None:
        return PartRecords(
            part=part,
            catalog=None,
            why_no_shards=why_no_shards,
            questions=others,
            absent=(),
            first_gop=np.zeros(len(others_ids), np.int64),
        )
    first_gop, num_gops = catalog.video_spans()
    passes = num_gops[questions.video] > 0
    absent = []
    if others is not questions:
        absent.append(AbsentRecords(reason="not in the shards", questions=others, video_ids=others_ids))
    if not passes.all():
        absent.append(
            AbsentRecords(
                reason="does not pass the filter", questions=questions.only(~passes), video_ids=video_ids
            )
        )
    return PartRecords(
        part=part,
        catalog=catalog,
        why_no_shards="",
        questions=questions.only(passes),
        absent=tuple(absent),
        first_gop=first_gop,
    )


def _other_videos(uri: str, video_ids: pa.Array) -> pa.Array:
    """string: the videos of a table of questions that are not among `video_ids`."""
    with open_file(uri) as file:
        asked = read_columns(file, ["video_id"])["video_id"].unique()
    is_other = pc.invert(pc.is_in(asked, value_set=video_ids))  # pyright: ignore[reportAttributeAccessIssue]
    return asked.filter(is_other)

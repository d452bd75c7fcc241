"""Is this LLaVA-Video-178K as it was published? Its records by kind, against the published counts.

The counts are those of the 1.6M mix (dataset card of lmms-lab/LLaVA-Video-178K) without LLaVA-Hound, which comes
as folders of frames: 178,510 captions, 1,001,412 open-ended and 215,625 multiple choice, 1,395,547 together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cope_prep.pipeline.llava_layout import canonical, is_subset_folder

PUBLISHED = {"cap": 178_510, "oe": 1_001_412, "mc": 215_625}
PUBLISHED_TOTAL = 1_395_547
_DURATIONS = ("0_30_s", "30_60_s", "1_2_m", "2_3_m")
_PARTS = {f"{duration}_{source}" for duration in _DURATIONS for source in ("academic", "youtube")}
_QA_SETS = ("nextqa", "activitynetqa", "perceptiontest")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCheck:
    """The verdict."""

    status: Literal["matches", "differs", "not compared"]
    detail: str
    """What differs by kind, or why it is not compared."""
    records: dict[str, int]
    """Found, by kind, whether their videos are there or not."""


def check_published(records: Mapping[tuple[str, str], int], *, is_whole: bool) -> PublishedCheck | None:
    """Compare with the published counts; None if there is nothing of LLaVA-Video-178K.

    records: number by (source folder, kind). is_whole: every file of the mix is taken whole, once.
    """
    counts = dict.fromkeys(PUBLISHED, 0)
    folders = set()
    for (source, kind), number in records.items():
        if is_subset_folder(source):
            counts[kind] = counts.get(kind, 0) + number
            folders.add(canonical(source))
    if not folders:
        return None
    if not is_whole:
        return PublishedCheck(
            status="not compared", detail="the mix takes parts of files, or weighs them", records=counts
        )
    lacking = sorted(_PARTS - folders)
    lacking += [name for name in _QA_SETS if not any(folder.endswith(name) for folder in folders)]
    if lacking:
        return PublishedCheck(
            status="not compared", detail=f"there are no records of {', '.join(lacking)}", records=counts
        )
    total = sum(counts.values())
    differing = [
        f"{kind} {number:,} of {PUBLISHED.get(kind, 0):,}"
        for kind, number in counts.items()
        if number != PUBLISHED.get(kind, 0)
    ]
    if differing:
        detail = f"{', '.join(differing)}; together {total:,} of {PUBLISHED_TOTAL:,}"
        return PublishedCheck(status="differs", detail=detail, records=counts)
    return PublishedCheck(status="matches", detail=f"{total:,} records", records=counts)

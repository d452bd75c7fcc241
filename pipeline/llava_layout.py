"""The layout of LLaVA-Video-178K as people have it on disk: which folders and files are what.

    {0_30_s,30_60_s,1_2_m,2_3_m}_{academic,youtube}_v0_1/
        {dur}_{src}_v0_1_cap_processed.json, {dur}_{src}_{oe,mc}_v0_1_qa_processed.json
    {dur}_nextqa/, {dur}_activitynetqa/, {dur}_perceptiontest/
        {dur}_{set}_{oe,mc}_qa_processed.json
    llava_hound/                             frames without video files: left out

In circulation are also `{dur}_activitynet/` (the dataset card's own globs), folders without `_v0_1`, and
JSON files without `_processed` (mixes that were written before the upload). All of these are accepted: two
names mean the same file when `canonical` of both is equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cope_prep.pipeline.manifest_report import SkipCounter

KINDS = ("cap", "oe", "mc")
"""Caption, open-ended question, multiple choice."""

_SUBSET_FOLDER = re.compile(
    r"(0_30_s|30_60_s|1_2_m|2_3_m)_(academic|youtube|nextqa|activitynet(qa)?|perceptiontest)(_v0_1)?"
)
_ACTIVITYNET = re.compile(r"activitynet(?!qa)")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionFile:
    """One JSON file of a subset folder."""

    path: str
    """Relative to the root: `folder/name.json`."""
    kind: str
    """One of KINDS."""

    @property
    def folder(self) -> str:
        """The subset folder."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """The file name."""
        return self.path.partition("/")[2]


def is_subset_folder(name: str) -> bool:
    """True for a top-level folder that holds question files."""
    return _SUBSET_FOLDER.fullmatch(name) is not None


def is_llava_hound(name: str) -> bool:
    """True for the folder of LLaVA-Hound, or for a file named after it."""
    return name.lower().replace("-", "_").startswith("llava_hound")


def video_subset(folder: str) -> str:
    """A subset folder's name without its version: what VideoRecord.subset holds."""
    return folder.removesuffix("_v0_1")


def canonical(name: str) -> str:
    """What a folder or JSON name has in common with its other spellings."""
    name = name.removesuffix(".json").removesuffix("_processed").replace("_v0_1", "")
    return _ACTIVITYNET.sub("activitynetqa", name)


def kind_of(name: str) -> str | None:
    """`cap`, `oe` or `mc`, as the file name says; None if it says none of them, or several."""
    kinds = set(name.removesuffix(".json").split("_")).intersection(KINDS)
    return kinds.pop() if len(kinds) == 1 else None


def find_question_files(paths: Iterable[str], *, skips: SkipCounter) -> list[QuestionFile]:
    """The question files among the paths of a tree, sorted by path."""
    found = []
    for path in sorted(paths):
        if not path.endswith(".json"):
            continue
        folder, _, name = path.partition("/")
        if not name:
            skips.add(path, "is a JSON file outside the subset folders")
        elif is_subset_folder(folder) and "/" not in name:
            kind = kind_of(name)
            if kind is None:
                skips.add(path, "its name does not say cap, oe or mc")
            else:
                found.append(QuestionFile(path=path, kind=kind))
    return found


def without_twins(files: Iterable[QuestionFile], *, skips: SkipCounter) -> list[QuestionFile]:
    """Of files that are one file under two spellings, keep the one with the published name."""
    groups: dict[tuple[str, str], list[QuestionFile]] = {}
    for file in files:
        groups.setdefault((canonical(file.folder), canonical(file.name)), []).append(file)
    kept = []
    for group in groups.values():
        best, *others = sorted(group, key=_rank)
        kept.append(best)
        for other in others:
            skips.add(other.path, f"is {best.path} under another name, and that one is used")
    return sorted(kept, key=lambda file: file.path)


def _rank(file: QuestionFile) -> tuple[bool, bool, bool, str]:
    """Sorts the published spelling first."""
    return (
        not file.name.endswith("_processed.json"),
        _ACTIVITYNET.search(file.path) is not None,
        "_v0_1" not in file.folder,
        file.path,
    )

"""The mix YAML of LLaVA-NeXT: which question files are used, and how many records of each.

    datasets:
      - json_path: 0_30_s_nextqa/0_30_s_nextqa_oe_qa_processed.json    # relative, or absolute elsewhere
        sampling_strategy: random:10%    # all (default) | first:N | end:N | random:N; N a count or percentage

N counts the records of the file as it is, before any is left out, and a percentage is rounded up: both as
upstream. Two differences: `random` is seeded, where upstream shuffles without a seed; and `end:0` takes
nothing, where upstream's slice takes everything.

A path is matched to the files of the tree by its tail, so that a mix written on another machine works:
folder and name as written; else both up to spelling (`_processed`, `_v0_1`, `activitynet`); else the name
alone, when only one file has it.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, cast

import numpy as np
import yaml

from cope_prep.pipeline import storage
from cope_prep.pipeline.hashing import hash_positions
from cope_prep.pipeline.llava_layout import QuestionFile, canonical, is_llava_hound, is_subset_folder
from cope_prep.pipeline.manifest_report import SkipCounter
from cope_prep.schemas.errors import ConfigurationError, SourceNotFoundError

LLAVA_HOUND_REASON = "LLaVA-Hound comes as folders of frames: there is no video to take motion from"


_MAX_KEYS = 1000
_MAX_LISTED = 20
_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict = 2, 4, 4  # a list of ten lists of ten lists, by aliases
_short.maxstring = _short.maxother = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which records of a question file are used."""

    strategy: Literal["all", "first", "end", "random"] = "all"
    amount: Fraction = Fraction(0)
    """A count, or a share if `is_share`; unused by `all`."""
    is_share: bool = False

    def num_taken(self, num_records: int) -> int:
        """How many of a file's records are used."""
        if self.strategy == "all":
            return num_records
        wanted = math.ceil(self.amount * num_records) if self.is_share else int(self.amount)
        return min(wanted, num_records)

    def positions(self, num_records: int, *, seed: int, name: str) -> np.ndarray:
        """int64 [num_taken], ascending: the positions of the records in the file `name`.

        `random` ranks the positions by a hash of (seed, name, position): the same on every machine and for
        any order or selection of the files, and a larger N of the same file contains the smaller one.
        """
        taken = self.num_taken(num_records)
        if self.strategy == "end":
            return np.arange(num_records - taken, num_records)
        if self.strategy == "random":
            rank = hash_positions(num_records, key=f"{seed}\0{canonical(name)}")
            return np.sort(np.argsort(rank, kind="stable")[:taken])
        return np.arange(taken)


ALL = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class MixEntry:
    """One dataset of a mix."""

    json_path: str
    sampling: Sampling


def parse_sampling(text: str) -> Sampling:
    """`all`, `first:N`, `end:N` or `random:N`, N a count or a percentage -> a sampling.

    Raises:
        ConfigurationError: the text is none of these.
    """
    strategy, colon, number = (part.strip() for part in text.partition(":"))
    if strategy == "all" and not colon:
        return ALL
    if strategy in ("first", "end", "random"):
        strategy = cast("Literal['first', 'end', 'random']", strategy)
        digits = number.removesuffix("%").strip()
        try:
            if digits == number:
                if digits.isdecimal():
                    return Sampling(strategy=strategy, amount=Fraction(int(digits)))
            elif digits.replace(".", "", 1).isdecimal():
                share = Fraction(digits) / 100
                if share <= 1:
                    return Sampling(strategy=strategy, amount=share, is_share=True)
        except ValueError:  # a decimal point without digits on one side, or digits of another script
            pass
    raise ConfigurationError(
        f"sampling_strategy {_short.repr(text)}",
        "not a sampling strategy",
        "Use all, first:N, end:N or random:N, where N is a count or a percentage up to 100%.",
    )


class _Loader(yaml.SafeLoader):
    """YAML's plain types. Merge keys (`<<`) copy, so that ten lines of them could ask for all memory: bounded."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_KEYS:
            raise yaml.constructor.ConstructorError(None, None, f"a mapping of over {_MAX_KEYS} keys")


def list_mistakes(mistakes: Sequence[str]) -> str:
    """Mistakes as one line; of many the first ones."""
    more = f"; and {len(mistakes) - _MAX_LISTED} more" if len(mistakes) > _MAX_LISTED else ""
    return "; ".join(mistakes[:_MAX_LISTED]) + more


def read_datasets(uri: str, *, example: str) -> list[Any]:
    """The list `datasets` of a mix file, as YAML has it. `example` is for the message.

    Raises:
        ConfigurationError: the file is not there, or has no such list.
    """
    try:
        content = storage.read_bytes(uri)
    except SourceNotFoundError as exc:
        raise ConfigurationError(uri, "there is no such mix file") from exc
    try:
        document = yaml.load(content, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigurationError(uri, f"is not valid YAML ({' '.join(str(exc).split())[:500]})") from exc
    except Exception as exc:  # PyYAML's constructors raise whatever they meet, as for a date without a month
        raise ConfigurationError(uri, f"is not valid YAML ({type(exc).__name__}: {exc})") from exc
    datasets = document.get("datasets") if isinstance(document, dict) else None
    if not isinstance(datasets, list) or not datasets:
        raise ConfigurationError(uri, "has no list of datasets", f"Write datasets: [{example}].")
    return datasets


def read_mix(uri: str) -> list[MixEntry]:
    """Read a mix file.

    Raises:
        ConfigurationError: it is not there, or not a mix; every mistake in it is listed.
    """
    entries, mistakes = [], []
    for index, dataset in enumerate(read_datasets(uri, example="{json_path: ..., sampling_strategy: ...}")):
        try:
            entries.append(_read_entry(dataset))
        except ConfigurationError as exc:
            mistakes.append(f"dataset {index}: {exc}")
    if mistakes:
        raise ConfigurationError(uri, list_mistakes(mistakes))
    return entries


def _read_entry(dataset: object) -> MixEntry:
    if not isinstance(dataset, dict):
        raise ConfigurationError(_short.repr(dataset), "not a mapping with json_path")
    if unknown := sorted(map(str, set(dataset) - {"json_path", "sampling_strategy"})):
        raise ConfigurationError(
            ", ".join(unknown[:9])[:200],
            "not a key of a dataset",
            "The keys are json_path and sampling_strategy.",
        )
    path, strategy = dataset.get("json_path"), dataset.get("sampling_strategy")
    if not isinstance(path, str) or not path.strip():
        raise ConfigurationError(f"json_path {_short.repr(path)}", "not the path of a JSON file")
    if strategy is not None and not isinstance(strategy, str):
        strategy = _short.repr(
            strategy
        )  # no strategy, and perhaps a list of lists that would fill the memory
    sampling = ALL if strategy is None else parse_sampling(strategy)
    return MixEntry(json_path=path.strip(), sampling=sampling)


def resolve_mix(
    entries: Sequence[MixEntry], files: Sequence[QuestionFile], *, mix: str, skips: SkipCounter
) -> list[tuple[QuestionFile, Sampling]]:
    """The question files that a mix names, each with its sampling, sorted by path.

    Raises:
        ConfigurationError: files are not there, ambiguous, or named twice; all of them are listed.
    """
    chosen: dict[str, tuple[QuestionFile, Sampling]] = {}
    mistakes = []
    for entry in entries:
        if any(map(is_llava_hound, entry.json_path.split("/")[-2:])):
            skips.add(entry.json_path, LLAVA_HOUND_REASON)
            continue
        match _candidates(entry.json_path, files):
            case []:
                mistakes.append(f"{entry.json_path} is not there")
            case [file] if file.path in chosen:
                mistakes.append(f"{entry.json_path} is {file.path}, which the mix names twice")
            case [file]:
                chosen[file.path] = (file, entry.sampling)
            case several:
                paths = ", ".join(file.path for file in several)
                mistakes.append(f"{entry.json_path} could be any of {paths}")
    if mistakes:
        raise ConfigurationError(
            mix,
            f"{len(mistakes)} of its {len(entries)} datasets cannot be used: " + list_mistakes(mistakes),
            "Download what is missing, or correct the mix.",
        )
    return [chosen[path] for path in sorted(chosen)]


def _candidates(json_path: str, files: Sequence[QuestionFile]) -> list[QuestionFile]:
    """The files that match best; more than one means that the path is ambiguous."""
    *parents, name = [part for part in json_path.split("/") if part not in ("", ".")] or [""]
    folder = parents[-1] if parents else ""
    rules: list[Callable[[QuestionFile], bool]] = [
        lambda file: (file.folder, file.name) == (folder, name),
        lambda file: (canonical(file.folder), canonical(file.name)) == (canonical(folder), canonical(name)),
    ]
    if not is_subset_folder(folder):  # a path that names another subset is not this one
        rules.append(lambda file: file.name == name)
        rules.append(lambda file: canonical(file.name) == canonical(name))
    for rule in rules:
        if found := [file for file in files if rule(file)]:
            return found
    return []

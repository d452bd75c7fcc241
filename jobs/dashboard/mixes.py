"""The mixes that the page Mix may count: files of the command line, files in the dataset's folder, and no file.

A mix file of the dataset's folder came with the data, so it may choose among this dataset's questions and name
nothing else. One that names datasets of its own must be given on the command line.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from cope_prep.jobs.dashboard.opened import Opened
from cope_prep.pipeline import storage
from cope_prep.pipeline.loader.mix import MixPart
from cope_prep.pipeline.loader.mix_plan import NAMES_DATASETS, MixPlan, plan_mix, read_any_mix
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.token_counts import TokenCounts
from cope_prep.schemas.errors import ConfigurationError

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixChoice:
    """Something to count."""

    label: str
    uri: str | None
    """None: every question of the dataset, once."""
    is_given: bool = False
    """On the command line."""


def find_mixes(opened: Opened) -> tuple[MixChoice, ...]:
    """Everything first, then the files of the command line, then those in the dataset's folder.

    Raises:
        StorageError: the store could not answer.
    """
    given = [MixChoice(label=redacted(uri), uri=uri, is_given=True) for uri in opened.mixes]
    found = [
        MixChoice(label=f"{name} (in the dataset)", uri=storage.join(opened.dataset, name))
        for name in storage.list_files(opened.dataset)
        if posixpath.splitext(name)[1].lower() in _SUFFIXES
    ]
    known = {choice.uri for choice in given}
    everything = MixChoice(label="Every question of the dataset, once", uri=None)
    return (everything, *given, *(choice for choice in found if choice.uri not in known))


def read_parts(choice: MixChoice, opened: Opened) -> list[MixPart]:
    """The parts of a mix.

    Raises:
        ConfigurationError: there is no such file, it is no mix, or names what it may not.
    """
    spec = opened.layout.specs.hash_of("shards") if opened.stage == "shards" else None
    if choice.uri is None:
        return [MixPart(dataset=opened.dataset, spec=spec)]
    try:
        return read_any_mix(choice.uri, dataset=opened.dataset, spec=spec)
    except ConfigurationError as exc:
        if exc.found != NAMES_DATASETS:
            raise
    if not choice.is_given:
        raise ConfigurationError(
            choice.uri,
            "names datasets, and was found in this one: what lies outside of it is not opened",
            "Give the file on the command line: --mix FILE.",
        )
    return read_any_mix(choice.uri, dataset=None)


def count(parts: list[MixPart], *, seed: int) -> MixPlan:
    """What epoch 0 of the mix shows.

    Raises:
        ConfigurationError, FormatError, StorageError: as plan_mix.
    """
    tokens = TokenCounts()
    return plan_mix(parts, seed=seed, picture_tokens=tokens.picture, delta_tokens=tokens.delta)

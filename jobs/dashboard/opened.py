"""What the dashboard has open: the dataset, the set of specs that was chosen, and what else the pages may read.

All of it comes from the command line. A page's URL says only which page, and on Clip which video id; what an id
stands for is looked up in the dataset's tables, so that no URL ever names a file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Self

from cope_prep.pipeline.layout import Layout, Specs, find_specs
from cope_prep.schemas.errors import ConfigurationError

STAGES = ("shards", "extract", "reencode")
"""The furthest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What the command line says."""

    dataset: str
    """A folder or an fsspec URL."""
    spec: str | None = None
    """Hash of specs, or its beginning, to begin with."""
    mixes: tuple[str, ...] = ()
    """Mix YAML files."""
    compare: tuple[str, ...] = ()
    """Further datasets, for the page Compare."""

    def to_json(self) -> str:
        """One line, for the script's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        values = json.loads(text)
        return cls(
            dataset=values["dataset"],
            spec=values["spec"],
            mixes=tuple(values["mixes"]),
            compare=tuple(values["compare"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One set of specs of one dataset: what a page can be about."""

    layout: Layout
    stage: str
    """The furthest stage with these specs: shards, extract or reencode. Empty if none has begun."""

    @property
    def spec_hash(self) -> str:
        """Of the furthest stage; empty if none has begun."""
        return self.layout.specs.hash_of(self.stage) if self.stage else ""

    @property
    def label(self) -> str:
        """For people: the hash, and what it stands for."""
        if not self.stage:
            return "nothing has been made yet"
        encode, extract = self.layout.specs.encode, self.layout.specs.extract
        text = (
            f"{self.spec_hash} · {encode.codec} {encode.width_px}×{encode.height_px}, GOP {encode.gop_size}"
        )
        if self.stage != "reencode":
            text += f", window {extract.window}, residual {extract.residual.kind}"
        return text if self.stage == "shards" else f"{text} ({self.stage} only)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What every page is given."""

    layout: Layout
    """The dataset and the chosen specs."""
    stage: str = ""
    """The furthest stage with these specs, as Choice has it."""
    choices: tuple[Choice, ...] = field(default=())
    """Every set of specs of this dataset, the furthest stage first."""
    mixes: tuple[str, ...] = ()
    """Mix files of the command line."""
    compare: tuple[str, ...] = ()
    """Datasets of the command line to compare with; `find_choices` tells their sets of specs."""

    @property
    def dataset(self) -> str:
        """The dataset's URL as it is: to read from, never to show."""
        return self.layout.dataset


def find_choices(dataset: str) -> tuple[Choice, ...]:
    """Every set of specs that a dataset has outputs of, the furthest stage first; never empty.

    A stage's output is left out where a later stage has gone on from it. If nothing has been made yet, the only
    choice is the default specs.

    Raises:
        FormatError: a spec.json does not hold valid specs.
        StorageError: the store could not answer.
    """
    choices: list[Choice] = []
    gone_on: set[tuple[str, str]] = set()
    for place, stage in enumerate(STAGES):
        for specs in find_specs(dataset, stage):
            if (stage, specs.hash_of(stage)) in gone_on:
                continue
            choices.append(Choice(layout=Layout(dataset=dataset, specs=specs), stage=stage))
            gone_on.update((before, specs.hash_of(before)) for before in STAGES[place + 1 :])
    if not choices:
        choices.append(Choice(layout=Layout(dataset=dataset, specs=Specs()), stage=""))
    return tuple(choices)


def choice_of_hash(choices: tuple[Choice, ...], spec_hash: str) -> Choice | None:
    """The first choice of which this is the whole hash, of its own stage or else of one before; None without one.

    Many sets of specs can share a stage: a video that failed in it has failed in all of them.
    """
    own = [choice for choice in choices if choice.stage and choice.spec_hash == spec_hash]
    earlier = [
        choice
        for choice in choices
        if choice.stage
        and spec_hash in map(choice.layout.specs.hash_of, STAGES[STAGES.index(choice.stage) :])
    ]
    return next(iter(own + earlier), None)


def choose(choices: tuple[Choice, ...], spec: str | None) -> Choice:
    """The choice whose hash, of any of its stages, begins so; the first without a hash.

    Raises:
        ConfigurationError: there is none, or there are several.
    """
    if spec is None:
        return choices[0]
    found = [
        choice
        for choice in choices
        if choice.stage
        and any(
            choice.layout.specs.hash_of(stage).startswith(spec)
            for stage in STAGES[STAGES.index(choice.stage) :]
        )
    ]
    if len(found) != 1:
        there = ", ".join(choice.spec_hash for choice in choices if choice.stage) or "none"
        raise ConfigurationError(f"--spec {spec}", f"names {len(found)} sets of specs (there: {there})")
    return found[0]

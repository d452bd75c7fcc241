"""Several datasets as one: parts with weights, and which of their units an epoch holds.

A weight says how often an epoch shows a part: 1 is every unit once, 2 every unit twice, 0.25 a quarter of
them, another quarter in each epoch. The number of units of an epoch is always the same.

A mix can be written down:

    datasets:
      - dataset: /data/llava-video          # or DATASET/shards/<hash>, any fsspec URL
        weight: 0.5
        filter: {min_motion_px: 0.5}        # fields of GopFilter
        mix: mixes/llava.yaml               # LLaVA-NeXT mix YAML for this part's questions
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cope_prep.pipeline import storage
from cope_prep.pipeline.hashing import hash_positions
from cope_prep.pipeline.loader.catalog import Catalog, ShardFolder, join_catalogs, open_shards, read_catalog
from cope_prep.pipeline.loader.filters import GopFilter
from cope_prep.pipeline.mix_yaml import list_mistakes, read_datasets
from cope_prep.schemas.errors import ConfigurationError


class MixPart(BaseModel):
    """One dataset of a mix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    """DATASET, or DATASET/shards/<hash>."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """Times that an epoch shows each unit, on average."""
    filter: GopFilter = GopFilter()
    spec: str | None = None
    """Hash of the shards, or its beginning, where the dataset has several."""
    mix: str | None = None
    """LLaVA-NeXT mix YAML that chooses among the part's questions; QADataset only."""
    questions: str | None = None
    """questions.parquet, if it is not in the dataset's folder; QADataset only."""


Source = str | MixPart | Sequence[MixPart]
"""What a dataset is made of: one URI, or parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenMix:
    """The parts of a source, and their samples one part after the other."""

    parts: tuple[MixPart, ...]
    folders: tuple[ShardFolder, ...]
    """[num_parts]"""
    catalog: Catalog
    num_videos: tuple[int, ...]
    """[num_parts]: of each part's index, those that its filter leaves out included."""

    def part_of_sample(self) -> np.ndarray:
        """int32 [num_samples]."""
        return self.catalog.shard_folder[self.catalog.shard]


def open_mix(source: Source, *, per_video: bool) -> OpenMix:
    """Read the indexes of all parts. `per_video`: filters judge videos as a whole.

    Raises:
        ConfigurationError: a part has no shards, or its filter leaves nothing.
    """
    if isinstance(source, str):
        source = MixPart(dataset=source)
    parts = (source,) if isinstance(source, MixPart) else tuple(source)
    if not parts:
        raise ConfigurationError("the mix", "has no parts")
    folders = tuple(open_shards(part.dataset, spec=part.spec) for part in parts)
    catalogs = []
    for part, folder in zip(parts, folders, strict=True):
        catalog = read_catalog(folder, where=part.filter, per_video=per_video)
        if len(catalog) == 0:
            raise ConfigurationError(part.dataset, "has no GOP that passes the filter", "Widen the filter.")
        catalogs.append(catalog)
    return OpenMix(
        parts=parts,
        folders=folders,
        catalog=join_catalogs(catalogs),
        num_videos=tuple(len(catalog.video_ids) for catalog in catalogs),
    )


def part_sizes(part_of_unit: np.ndarray, weights: Sequence[float]) -> list[int]:
    """How many units an epoch has of each part."""
    available = np.bincount(part_of_unit, minlength=len(weights)).tolist()
    return [
        math.floor(weight) * count + _num_extra(weight, count)
        for weight, count in zip(weights, available, strict=True)
    ]


def unit_copies(part_of_unit: np.ndarray, weights: Sequence[float], *, seed: int, epoch: int) -> np.ndarray:
    """int64 [num_units]: how often the epoch shows each unit."""
    copies = np.floor(np.asarray(weights))[part_of_unit].astype(np.int64)
    for part, weight in enumerate(weights):
        units = np.flatnonzero(part_of_unit == part)
        num_extra = _num_extra(weight, len(units))
        if num_extra:
            rank = hash_positions(len(units), key=f"mix\0{seed}\0{epoch}\0{part}")
            copies[units[np.argpartition(rank, num_extra - 1)[:num_extra]]] += 1
    return copies


def repeat_units(copies: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The units of an epoch in storage order, uint32 [sum of copies], and groups in which no unit occurs twice.

    copies: int [num_units]. group: int [num_units], ascending or at least adjacent: the video of each unit.
    A group's second copies come after all of its first ones, as a group of their own.
    """
    units = np.repeat(np.arange(len(copies), dtype=np.uint32), copies)
    copy = np.arange(len(units)) - np.repeat(np.cumsum(copies) - copies, copies)
    group_rank = np.cumsum(np.diff(group, prepend=group[:1]) != 0)[units]
    in_order = np.lexsort((units, copy, group_rank))
    units, copy, group_rank = units[in_order], copy[in_order], group_rank[in_order]
    is_new = (np.diff(copy, prepend=0) != 0) | (np.diff(group_rank, prepend=0) != 0)
    return units, np.cumsum(is_new)


def _num_extra(weight: float, count: int) -> int:
    return round((weight - math.floor(weight)) * count)


def read_mix_parts(uri: str) -> list[MixPart]:
    """The parts of a mix file. Relative datasets and mixes are relative to the file.

    Raises:
        ConfigurationError: it is not there, or not such a mix; every mistake in it is listed.
    """
    parts, mistakes = [], []
    for index, entry in enumerate(read_datasets(uri, example="{dataset: ..., weight: ...}")):
        try:
            part = MixPart.model_validate(entry)
        except ValidationError as exc:
            mistakes += [
                f"dataset {index}: {'.'.join(map(str, error['loc']))[:200]}: {error['msg']}"
                for error in exc.errors()
            ]
            continue
        paths = {name: getattr(part, name) for name in ("dataset", "mix", "questions")}
        parts.append(part.model_copy(update={name: _beside(uri, path) for name, path in paths.items()}))
    if mistakes:
        raise ConfigurationError(uri, list_mistakes(mistakes))
    return parts


def _beside(uri: str, path: str | None) -> str | None:
    if path is None or "://" in path or posixpath.isabs(path):
        return path
    return storage.join(posixpath.dirname(uri), path)

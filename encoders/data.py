"""The data of a run: which shards, how they are read, and what the configuration takes them to be."""

from __future__ import annotations

from typing import Any, Literal

from cope_prep.encoders.settings import Settings
from cope_prep.pipeline.loader import (
    GopDataset,
    GopFilter,
    MixPart,
    QADataset,
    ShardReader,
    Shuffle,
    TokenCounts,
    read_mix_parts,
)
from cope_prep.pipeline.loader.collate import Geometry
from cope_prep.schemas.errors import ConfigurationError


class ExpectedGeometry(Settings):
    """What a dataset must be; what is not given may be anything."""

    fps: int | None = None
    gop_size: int | None = None
    window: int | None = None
    """As read: see DataConfig.window."""
    block_px: int | None = None
    residual: Literal["dct", "int8", "lossless"] | None = None


class DataConfig(Settings):
    """Shards, and how to read them. See docs/loader.md."""

    dataset: str
    """DATASET, DATASET/shards/<hash>, or a mix of datasets: a .yaml or .yml file."""
    spec: str | None = None
    """Hash of the shards, or its beginning, where the dataset has several."""
    questions_mix: str | None = None
    """LLaVA-NeXT mix YAML that chooses among the questions."""
    filter: GopFilter | None = None
    window: int | None = None
    """Merge stored windows into longer ones of so many frames."""
    seed: int = 0
    shuffle: Shuffle | None = Shuffle()
    last: Literal["drop", "wrap"] = "drop"
    on_error: Literal["raise", "skip"] = "raise"
    cache_dir: str | None = None
    cache_bytes: int | None = None
    expect: ExpectedGeometry = ExpectedGeometry()

    def source(self) -> MixPart | list[MixPart]:
        """The parts that the loaders read."""
        if self.dataset.endswith((".yaml", ".yml")):
            if self.spec or self.questions_mix or self.filter:
                raise ConfigurationError(
                    self.dataset,
                    "is a mix of datasets, beside which spec, questions_mix and filter have no place",
                    "Write them into its parts.",
                )
            return list(read_mix_parts(self.dataset))
        return MixPart(
            dataset=self.dataset,
            spec=self.spec,
            mix=self.questions_mix,
            filter=self.filter or GopFilter(),
        )

    def reader(self) -> ShardReader:
        """Reads shards, through the cache if they are remote."""
        return ShardReader(cache_dir=self.cache_dir, cache_bytes=self.cache_bytes)

    def windows(self, *, batch_size: int, windows_per_visit: int, held_out: bool = False) -> GopDataset:
        """Single windows with both their anchors, for stage 1. Held out, the last batch is filled up."""
        dataset = GopDataset(
            self.source(),
            batch_size=batch_size,
            unit="window",
            window=self.window,
            windows_per_visit=windows_per_visit,
            **self._common(held_out),
        )
        self.check(dataset.geometry)
        return dataset

    def questions(
        self,
        *,
        batch_size: int,
        key_frames: int,
        tokens: TokenCounts,
        max_gops: int | None,
        questions_per_visit: int = 1,
        held_out: bool = False,
    ) -> QADataset:
        """Questions with the GOPs of their videos, for stage 2."""
        dataset = QADataset(
            self.source(),
            batch_size=batch_size,
            key_frames=key_frames,
            window=self.window,
            max_gops=max_gops,
            tokens=tokens,
            questions_per_visit=questions_per_visit,
            **self._common(held_out),
        )
        self.check(dataset.geometry)
        return dataset

    def check(self, geometry: Geometry) -> None:
        """
        Raises:
            ConfigurationError: the shards are not what `expect` says.
        """
        found = geometry_values(geometry)
        for name, wanted in self.expect.model_dump(exclude_none=True).items():
            if found[name] != wanted:
                raise ConfigurationError(
                    self.dataset,
                    f"has {name} {found[name]}, the configuration expects {wanted} (data.expect.{name})",
                    "Train on shards that were made with it, or change the configuration.",
                )

    def _common(self, held_out: bool) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "last": "wrap" if held_out else self.last,
            "on_error": self.on_error,
            "reader": self.reader(),
        }


def geometry_values(geometry: Geometry) -> dict[str, Any]:
    """What a model learns to read: a Δ-encoder of one geometry is not one of another."""
    return {
        "fps": geometry.fps,
        "gop_size": geometry.gop_size,
        "window": geometry.window,
        "block_px": geometry.block_px,
        "residual": geometry.residual_spec.kind,
    }

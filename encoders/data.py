"""The data of a run: which shards, how they are read, and what the configuration takes them to be."""

from __future__ import annotations

from typing import Any, Literal

from cope_prep.encoders.run_record import SEVERAL, differences
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
from cope_prep.schemas.errors import ConfigurationError

Dataset = GopDataset | QADataset


class ExpectedGeometry(Settings):
    """What a dataset must be; what is not given may be anything."""

    fps: int | None = None
    gop_size: int | None = None
    window: int | None = None
    """As read: see DataConfig.window."""
    block_px: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    """Of every frame."""
    residual: Literal["dct", "int8", "lossless"] | None = None
    residual_quality: int | None = None
    """Of dct."""
    residual_step: int | None = None
    residual_deadzone: int | None = None
    """Of int8, in grey levels."""


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
        self.check(dataset)
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
        self.check(dataset)
        return dataset

    def check(self, dataset: Dataset) -> None:
        """
        Raises:
            ConfigurationError: the shards are not what `expect` says.
        """
        found = geometry_values(dataset)
        for name, wanted in self.expect.model_dump(exclude_none=True).items():
            if found.get(name) != wanted:
                has, expects = f"{name} {found.get(name)}", f"{wanted}"
                if name not in found:  # a parameter of another coding
                    has, expects = f"residual {found['residual']}", f"{name} {wanted}"
                raise ConfigurationError(
                    self.dataset,
                    f"has {has}, the configuration expects {expects} (data.expect.{name})",
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


def geometry_values(dataset: Dataset) -> dict[str, Any]:
    """What a model learns to read: a Δ-encoder of one geometry is not one of another.

    The frame's size is part of it, though a Δ-encoder takes any: vectors are in pixels of the frame, the tower's
    picture is one square for all. 8 px move that picture twice as far in a frame of half the width, and how far is
    what stage 1 has learned. It is read from the index, as `keep` leaves each video its own: then it is "several".
    """
    geometry = dataset.geometry
    residual = geometry.residual_spec.model_dump()
    sizes_px = dataset.store.catalog.size_px
    (low_h, low_w), (high_h, high_w) = sizes_px.min(axis=0).tolist(), sizes_px.max(axis=0).tolist()
    return {
        "fps": geometry.fps,
        "gop_size": geometry.gop_size,
        "window": geometry.window,
        "block_px": geometry.block_px,
        "width_px": low_w if low_w == high_w else SEVERAL,
        "height_px": low_h if low_h == high_h else SEVERAL,
        "residual": residual.pop("kind"),
        **{f"residual_{name}": value for name, value in residual.items()},
    }


def check_held_out(data: DataConfig, dataset: Dataset, eval_data: DataConfig, eval_dataset: Dataset) -> None:
    """
    Raises:
        ConfigurationError: held-out data of another geometry, whose figures would not be those of what is trained.
    """
    if different := differences(geometry_values(dataset), geometry_values(eval_dataset)):
        raise ConfigurationError(
            eval_data.dataset,
            f"is held-out data for {data.dataset}, which has {', '.join(different)}",
            "Make both with the same settings; eval_data.window merges stored windows.",
        )

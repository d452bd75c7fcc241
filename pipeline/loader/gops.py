"""What both datasets do with GOPs: agree on a geometry, describe a GOP of the catalog as a row, load it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cope_prep.pipeline.loader.catalog import Catalog, ShardFolder
from cope_prep.pipeline.loader.collate import Geometry, Row
from cope_prep.pipeline.loader.filters import GopFilter
from cope_prep.pipeline.loader.merge import merge_whole
from cope_prep.pipeline.loader.mix import MixPart, OpenMix, Source
from cope_prep.pipeline.loader.primitives import GopArrays, GopLayout, gop_layout, load_gop
from cope_prep.pipeline.loader.samples import SampleStore
from cope_prep.schemas.errors import ConfigurationError


def with_filter(source: Source, where: GopFilter | None) -> Source:
    """A source with the filter that was given beside it."""
    if where is None:
        return source
    part = single_part(source, "where", "filter")
    if not part.filter.is_open():
        raise ConfigurationError("where", f"{part.dataset} has a filter of its own", "Give one of the two.")
    return part.model_copy(update={"filter": where})


def single_part(source: Source, argument: str, own: str) -> MixPart:
    """The part that an argument beside the source is about.

    Raises:
        ConfigurationError: there are several; each should have its `own`.
    """
    if isinstance(source, str):
        return MixPart(dataset=source)
    if isinstance(source, MixPart):
        return source
    if len(source) != 1:
        raise ConfigurationError(
            argument,
            f"is for one dataset, there are {len(source)}",
            f"Give each part of the mix its own {own}.",
        )
    return source[0]


def geometry_of(folders: Sequence[ShardFolder], *, window: int | None, key_frames: int) -> Geometry:
    """What the parts of a mix have in common.

    Raises:
        ConfigurationError: they differ where a batch must not, or have no such windows or key frames.
    """
    first = folders[0].specs
    for folder in folders[1:]:
        for stage, name in (
            ("encode", "fps"), ("encode", "gop_size"), ("extract", "window"), ("extract", "block_px"),
            ("extract", "residual"),
        ):  # fmt: skip
            ours, theirs = (getattr(getattr(specs, stage), name) for specs in (first, folder.specs))
            if ours != theirs:
                raise ConfigurationError(
                    folder.uri,
                    f"has {name} {theirs}, {folders[0].uri} has {ours}: they cannot be in one batch",
                    "Extract them with the same settings, or train on one of them.",
                )
    stored = first.extract.window
    window = stored if window is None else window
    if window < stored or window % stored:
        raise ConfigurationError(
            f"window {window}", f"is not a multiple of the {stored} frames that the shards were extracted at"
        )
    if window >= first.encode.gop_size:
        raise ConfigurationError(
            f"window {window}",
            f"leaves no Δ in a GOP of {first.encode.gop_size} frames",
            "Choose a shorter one.",
        )
    geometry = Geometry(
        fps=first.encode.fps,
        gop_size=first.encode.gop_size,
        window=window,
        block_px=first.extract.block_px,
        residual_spec=first.extract.residual,
        key_frames=key_frames,
    )
    layout_of(geometry, num_frames=geometry.gop_size, start_s=0.0)  # says which key_frames there are
    return geometry


def identities(mix: OpenMix) -> list[dict[str, Any]]:
    """What a state remembers of each part: which index, and which of its rows."""
    return [
        {
            "index_crc32c": folder.index_crc32c,
            "filter": part.filter.model_dump(mode="json", exclude_none=True),
        }
        for part, folder in zip(mix.parts, mix.folders, strict=True)
    ]


def layout_of(geometry: Geometry, *, num_frames: int, start_s: float) -> GopLayout:
    """Which anchors of a GOP are pictures."""
    return gop_layout(
        num_frames=num_frames,
        gop_size=geometry.gop_size,
        fps=geometry.fps,
        start_s=start_s,
        window=geometry.window,
        key_frames=geometry.key_frames,
    )


def gop_row(catalog: Catalog, sample: int, position: int, geometry: Geometry) -> Row:
    """A whole GOP of the catalog."""
    height_px, width_px = catalog.size_px[sample].tolist()
    return Row(
        sample=sample,
        position=position,
        window=-1,
        height_px=height_px,
        width_px=width_px,
        gop_index=int(catalog.gop_index[sample]),
        layout=layout_of(
            geometry, num_frames=int(catalog.num_frames[sample]), start_s=float(catalog.start_s[sample])
        ),
    )


def load_sample(store: SampleStore, row: Row, geometry: Geometry, out: GopArrays) -> None:
    """Read a whole GOP and decode it into a row's own arrays."""
    record = store.record(row.sample)
    if record.window == geometry.window:
        load_gop(record, layout=row.layout, out=out)
    else:
        load_gop(merge_whole(record, window=geometry.window, layout=row.layout), layout=row.layout, out=out)

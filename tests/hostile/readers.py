"""Everything that reads a dataset, each turned into a line of text: for a process with little memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from cope_prep.jobs.report import provenance_text
from cope_prep.pipeline import video_samples
from cope_prep.pipeline.finish import read_dataset_json
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.loader.dataset import GopDataset
from cope_prep.pipeline.loader.reader import ShardReader
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.pipeline.verify import verify_dataset
from cope_prep.pipeline.verify_provenance import verify_provenance
from cope_prep.schemas.errors import CopePrepError
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, ShardSpec

SPECS = Specs(
    encode=EncodeSpec(width_px=96, height_px=64, gop_size=48, preset="ultrafast"),
    extract=ExtractSpec(window=12),
    shard=ShardSpec(target_bytes=60_000),
)


def read_all(folder: str, video_id: str, *only: str) -> dict[str, dict[str, str]]:
    """Name of each dataset in a folder -> what its readers say; all, or some."""
    return {path.name: read_everything(str(path), video_id, *only) for path in sorted(Path(folder).iterdir())}


def read_everything(dataset: str, video_id: str, *only: str) -> dict[str, str]:
    """Reader -> what it says: nothing, or one error of ours; anything else is written down as it is."""
    layout = Layout(dataset=dataset, specs=SPECS)
    readers: dict[str, Callable[[], str]] = {
        "verify": lambda: _verify(layout),
        "provenance": lambda: _provenance(layout),
        "clip": lambda: _clip(layout, video_id),
        "loader": lambda: _load(dataset),
        "dataset.json": lambda: str(read_dataset_json(layout))[:0],
    }
    found = {}
    for name in only or readers:
        try:
            found[name] = readers[name]()
        except CopePrepError as exc:
            found[name] = f"{type(exc).__name__}: {exc}"
        except Exception as exc:
            found[name] = f"UNEXPECTED {type(exc).__name__}: {exc}"
    return found


def _verify(layout: Layout) -> str:
    report = verify_dataset(layout)
    return " | ".join(f"{problem.kind}: {problem.message}" for problem in report.problems)


def _provenance(layout: Layout) -> str:
    report = verify_provenance(layout, hash_sources=True)
    provenance_text(report)
    return " | ".join(f"{problem.kind}: {problem.message}" for problem in report.problems)


def _clip(layout: Layout, video_id: str) -> str:
    samples = video_samples.find_samples(layout, video_id)
    if samples is None:
        return "no samples"
    video_samples.read_figures(samples)
    for index in range(len(samples.spans)):
        rebuild_anchors(video_samples.read_gop(samples, index))
    return ""


def _load(dataset: str) -> str:
    with tempfile.TemporaryDirectory() as cache:
        for _ in GopDataset(dataset, reader=ShardReader(cache_dir=cache), shuffle=None, last="wrap"):
            pass
    return ""

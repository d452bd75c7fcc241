"""The streaming loader: one global order, exact elastic resume, primitives instead of frames.

    from cope_prep.pipeline.loader import GopDataset, QADataset, to_device

docs/loader.md is the guide.
"""

from cope_prep.pipeline.loader.batch import GopBatch, QABatch, RawBatch, Skipped
from cope_prep.pipeline.loader.dataset import GopDataset
from cope_prep.pipeline.loader.device import DeviceGops, planes_to_rgb, to_device
from cope_prep.pipeline.loader.filters import GopFilter
from cope_prep.pipeline.loader.mix import MixPart, read_mix_parts
from cope_prep.pipeline.loader.order import Shuffle
from cope_prep.pipeline.loader.qa import QADataset
from cope_prep.pipeline.loader.raw import RawDataset
from cope_prep.pipeline.loader.reader import ShardReader
from cope_prep.pipeline.token_counts import TokenCounts

__all__ = [
    "DeviceGops",
    "GopBatch",
    "GopDataset",
    "GopFilter",
    "MixPart",
    "QABatch",
    "QADataset",
    "RawBatch",
    "RawDataset",
    "ShardReader",
    "Shuffle",
    "Skipped",
    "TokenCounts",
    "planes_to_rgb",
    "read_mix_parts",
    "to_device",
]

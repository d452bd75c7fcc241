"""Small towers, language models and configurations for the tests of models and tasks: not a test.

Tower: SigLIP of 3 layers, 32 wide, 42 px in patches of 14 (3 x 3). Language model: Qwen2 of 2 layers, 48 wide, with
a tokenizer of one token a byte. Δ-encoder: 2 motion and 1 residual tokens, 16 wide, one stage of ResNet.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import llava_checkpoint
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from cope_prep.encoders.alignment import AlignmentConfig
from cope_prep.encoders.build import ModelConfig, TowerConfig
from cope_prep.encoders.chat import encode_chat
from cope_prep.encoders.data import DataConfig
from cope_prep.encoders.delta_encoder import DeltaEncoder, DeltaEncoderConfig
from cope_prep.encoders.engine import TrainingConfig
from cope_prep.encoders.finetune import FinetuneConfig
from cope_prep.encoders.pretrain import PretrainConfig
from cope_prep.encoders.sequences import SequenceBatch, build_sequences
from cope_prep.encoders.token_stream import TokenLayout
from cope_prep.encoders.video_lm import VideoLM
from cope_prep.encoders.vision_tower import VisionTower
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import QADataset, TokenCounts
from cope_prep.pipeline.loader.batch import QABatch
from cope_prep.schemas.specs import EncodeSpec

VISION = llava_checkpoint.VISION | {"image_size": 42}
LANGUAGE = llava_checkpoint.LANGUAGE
DELTA = DeltaEncoderConfig(
    motion_tokens=2,
    residual_tokens=1,
    width=16,
    num_heads=2,
    num_layers=1,
    resnet_widths=(8,),
    output_width=32,
)
LAYOUT = TokenLayout(patches_per_side=3, delta_tokens=3)
TOKENIZER = llava_checkpoint.make_tokenizer()
COUNTS = TokenCounts(picture=6, delta=3)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """How many threads there are changes the order of sums, and small models are slower with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def siglip(**values: Any) -> SiglipVisionModel:
    return SiglipVisionModel(SiglipVisionConfig(**(VISION | values))).eval()


def qwen2(**values: Any) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(Qwen2Config(**(LANGUAGE | values))).eval()


def video_lm(*, layout: TokenLayout = LAYOUT, seed: int = 0) -> VideoLM:
    """Random values, large enough that all of the input matters to the output."""
    torch.manual_seed(seed)
    model = VideoLM(
        vision_tower=VisionTower(SiglipVisionConfig(**VISION)),
        delta_encoder=DeltaEncoder(DELTA),
        language_model=qwen2(),
        layout=layout,
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.startswith("delta_encoder"):
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def write_models(folder: Path, *, seed: int = 0) -> None:
    """`siglip` and `qwen2` as `save_pretrained` writes them, and the tokenizer beside the language model."""
    torch.manual_seed(seed)
    siglip().save_pretrained(folder / "siglip")
    qwen2().save_pretrained(folder / "qwen2")
    TOKENIZER.save_pretrained(folder / "tokenizer")


def sequences(batch: QABatch, *, layout: TokenLayout = LAYOUT, **options: Any) -> SequenceBatch:
    chats = [encode_chat(question.turns, TOKENIZER, system="S") for question in batch.questions]
    return build_sequences(batch, chats, layout, **options)


def data(layout: Layout, **values: Any) -> DataConfig:
    return DataConfig(dataset=layout.dataset, **values)


def training(**values: Any) -> TrainingConfig:
    defaults: dict[str, Any] = {
        "max_steps": 4,
        "batch_size": 4,
        "micro_batch_size": 4,
        "precision": "fp32",
        "device": "cpu",
        "num_workers": 0,
        "log_every": 1,
        "tensorboard": False,
        "lr": 1e-3,
    }
    return TrainingConfig(**(defaults | values))


def model_config(models: Path, **values: Any) -> ModelConfig:
    defaults: dict[str, Any] = {
        "siglip": str(models / "siglip"),
        "qwen2": str(models / "qwen2"),
        "tokenizer": str(models / "tokenizer"),
        "delta_encoder": DELTA,
    }
    return ModelConfig(**(defaults | values))


def pretrain_config(layout: Layout, models: Path, output: Path, **values: Any) -> PretrainConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(output),
        "tower": TowerConfig(siglip=str(models / "siglip")),
        "delta_encoder": DELTA,
        "alignment": AlignmentConfig(width=16, num_heads=2, reference_layers=1, warp_layers=1),
        "data": data(layout),
        "training": training(),
    }
    return PretrainConfig(**(defaults | values))


def finetune_config(layout: Layout, models: Path, output: Path, **values: Any) -> FinetuneConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(output),
        "model": model_config(models),
        "data": data(layout),
        "key_frames": 2,
        "training": training(),
    }
    return FinetuneConfig(**(defaults | values))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def make_tall(media: ModuleType, folder: Path) -> Layout:
    """4 videos of 32 x 96, 4 GOPs."""
    datasets = sys.modules["tests_loader_datasets"]  # conftest.py has loaded it
    encode = EncodeSpec(width_px=32, height_px=96, gop_size=32, preset="ultrafast")
    specs = replace(datasets.SPECS, encode=encode)
    return datasets.make_dataset(folder, media, num_videos=4, specs=specs, clip_frames=(32,), prefix="tall")


def copy_dataset(layout: Layout, folder: Path) -> Layout:
    """To be changed."""
    shutil.copytree(layout.dataset, folder / "dataset")
    return Layout(dataset=str(folder / "dataset"), specs=layout.specs)


def damage(layout: Layout) -> str:
    """Flip a bit in the middle of the sample of a GOP; its key."""
    row = pq.read_table(layout.index).to_pylist()[5]
    path = Path(layout.folder("shards"), row["shard"])
    content = bytearray(path.read_bytes())
    content[row["offset_bytes"] + row["size_bytes"] // 2] ^= 0x10
    path.write_bytes(content)
    return row["key"]


def questions(source: Any, *, batch_size: int = 6, **options: Any) -> QABatch:
    options = {"key_frames": 2, "tokens": COUNTS, "last": "wrap", **options}
    return next(iter(QADataset(source, batch_size=batch_size, **options)))


def ask_for_two_pictures(layout: Layout) -> str:
    """Spoil one record of a dataset's questions; its id."""
    table = pq.read_table(layout.questions)
    rows = table.to_pylist()
    rows[7]["turns"][0]["value"] = "<image>\n<image>\nWhat?"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), layout.questions)
    return rows[7]["question_id"]


def without(batch: QABatch, skipped: list[int]) -> QABatch:
    """The batch as it is when these questions could not be read, but for their GOPs."""
    valid = batch.question_is_valid.clone()
    kind = batch.run_kind.clone()
    valid[skipped], kind[skipped] = False, 0
    return replace(batch, question_is_valid=valid, run_kind=kind)

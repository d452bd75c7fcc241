"""Stage 2, as a task of the engine and as a program: `torchrun -m cope_prep.encoders.finetune CONFIG.toml`.

A sample is one question (with all turns of its record) and the GOPs of its video. The loss is the mean over
the answers' tokens. Which parts train, and how fast, is said by group: the vision tower, the projector (with
the newline), the Δ parts, the language model.
"""

from __future__ import annotations

import itertools
import logging
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from cope_prep.encoders.build import PARTS, ModelConfig, Part, build_tokenizer, build_video_lm
from cope_prep.encoders.chat import SYSTEM, EncodedChat, encode_chat, video_prompt
from cope_prep.encoders.data import DataConfig, check_held_out, geometry_values
from cope_prep.encoders.engine import TrainingConfig
from cope_prep.encoders.evaluate import EvalBatches, Tally, is_exact, limit_of
from cope_prep.encoders.program import run_program
from cope_prep.encoders.run_record import check_geometry
from cope_prep.encoders.sequences import SequenceBatch, build_sequences
from cope_prep.encoders.settings import Settings
from cope_prep.encoders.task import ParameterGroup, Prepared, Task
from cope_prep.encoders.token_stream import TokenLayout
from cope_prep.encoders.video_lm import DeltaMode, VideoLM
from cope_prep.pipeline.loader import QADataset, to_device
from cope_prep.pipeline.loader.batch import PAD, GopBatch, QABatch
from cope_prep.schemas.errors import ConfigurationError, FormatError

logger = logging.getLogger(__name__)


class GroupConfig(Settings):
    """Whether a part trains, and how fast."""

    train: bool = True
    lr_scale: float = Field(default=1.0, gt=0)
    """Times training.lr."""


class GroupsConfig(Settings):
    """All parts of the model. LLaVA-Video trains its tower at a fifth of the rate."""

    vision_tower: GroupConfig = GroupConfig(lr_scale=0.2)
    projector: GroupConfig = GroupConfig()
    delta: GroupConfig = GroupConfig()
    language_model: GroupConfig = GroupConfig()


class FinetuneConfig(Settings):
    """A run of stage 2."""

    task: Literal["finetune"] = "finetune"
    output_dir: str
    model: ModelConfig
    groups: GroupsConfig = GroupsConfig()
    data: DataConfig
    key_frames: int = 4
    """Of a full GOP; the paper trains at 4 I + 4 P."""
    max_gops: int | None = None
    questions_per_visit: int = 1
    system: str = SYSTEM
    time_prompt: bool = True
    """Say length and times of the frames before the question, as LLaVA-Video does."""
    allow_other_geometry: bool = False
    """Take a Δ-encoder that has learned from data of another fps, GOP, window, block, frame size or residual."""
    packing: bool = False
    max_length: int | None = None
    """Of a sequence in tokens; of a packed row, too."""
    eval_data: DataConfig | None = None
    """Held-out shards: exact match of greedy answers, by the questions' data_source."""
    eval_batches: EvalBatches = 50
    eval_batch_size: int | None = Field(default=None, ge=1)
    """Questions of a rank; None: as in training."""
    training: TrainingConfig

    @model_validator(mode="after")
    def _check(self) -> FinetuneConfig:
        if self.packing and self.max_length is None:
            raise ValueError("packing needs max_length, the length of a packed row")
        trained = [name for name in PARTS if getattr(self.groups, name).train]
        if not trained:
            raise ValueError("groups train nothing: let one of them train")
        if trained == ["delta"] and not self.model.delta_frames:
            raise ValueError("groups train delta alone, and model.delta_frames = false leaves it out")
        return self


class FinetuneTask(Task):
    """Questions and answers about videos, through VideoLM."""

    name = "finetune"

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config
        self.tokenizer: PreTrainedTokenizerBase = build_tokenizer(config.model)
        # Narrower than Task's, and no one else sets it.
        self.model: VideoLM = build_video_lm(  # pyright: ignore[reportIncompatibleVariableOverride]
            config.model
        )
        self.layout: TokenLayout = self.model.layout
        _check_vocabulary(self.tokenizer, self.model)
        self.dataset = self._dataset(config.data, config.training.micro_batch_size, held_out=False)
        self._check_geometry()
        self.eval_dataset = None
        if config.eval_data is not None:
            batch_size = config.eval_batch_size or config.training.micro_batch_size
            self.eval_dataset = self._dataset(config.eval_data, batch_size, held_out=True)
            check_held_out(config.data, self.dataset, config.eval_data, self.eval_dataset)
        self._trained = self._split_parameters()

    def _check_geometry(self) -> None:
        model = self.config.model
        origins = [model.stage1, model.start_from if "delta" in model.start_parts else None]
        if not self.config.allow_other_geometry:
            for origin in filter(None, origins):
                check_geometry(origin, geometry_values(self.dataset))

    def _dataset(self, data: DataConfig, batch_size: int, *, held_out: bool) -> QADataset:
        return data.questions(
            batch_size=batch_size,
            key_frames=self.config.key_frames,
            tokens=self.layout.counts(),
            max_gops=self.config.max_gops,
            # Held out, order is nothing: the questions of a video come together, and it is encoded once.
            questions_per_visit=min(batch_size, 8) if held_out else self.config.questions_per_visit,
            held_out=held_out,
        )

    def _split_parameters(self) -> dict[Part, list[str]]:
        """Names of what trains, by part. Names alone: parameters that FSDP2 has sharded must not stay whole."""
        trained: dict[Part, list[str]] = {}
        named = dict(self.model.named_parameters())
        for name, prefixes in PARTS.items():
            chosen: GroupConfig = getattr(self.config.groups, name)
            parameters = {key: named.pop(key) for key in list(named) if key.startswith(prefixes)}
            for parameter in parameters.values():
                parameter.requires_grad_(chosen.train)
            if chosen.train:
                trained[name] = list(parameters)
        assert not named, f"in no group: {sorted(named)}"
        return trained

    def parameter_groups(self) -> list[ParameterGroup]:
        # Looked up anew: FSDP2 puts sharded parameters in place of those that were there.
        named = dict(self.model.named_parameters())
        return [
            ParameterGroup(
                name=name,
                parameters={key: named[key] for key in keys},
                lr_scale=getattr(self.config.groups, name).lr_scale,
            )
            for name, keys in self._trained.items()
        ]

    def blocks(self) -> list[nn.Module]:
        return [
            *self.model.vision_tower.model.encoder.layers,
            *self.model.language_model.model.layers,
        ]

    def sequences(self, batch: QABatch) -> SequenceBatch:
        """The questions of a batch with their answers, as rows of integers, on the host.

        With data.on_error = "skip" a record that makes no conversation, or too long a one, has no row.
        """
        on_error = self.config.data.on_error
        chats: list[EncodedChat | None] = []
        for index, question in enumerate(batch.questions):
            try:
                chat = encode_chat(
                    question.turns,
                    self.tokenizer,
                    prompt=self._prompt(batch, index),
                    system=self.config.system,
                    question_id=question.question_id,
                )
            except FormatError as exc:
                if on_error == "raise":
                    raise
                logger.warning("left out: %s", exc)
                chat = None
            chats.append(chat)
        return build_sequences(
            batch,
            chats,
            self.layout,
            packing=self.config.packing,
            max_length=self.config.max_length,
            on_error=on_error,
        )

    def _prompt(self, batch: QABatch, index: int) -> str | None:
        if not self.config.time_prompt:
            return None
        is_shown = (batch.run_tokens[index] > 0) & (batch.run_kind[index] != PAD)
        times_s = batch.run_s[index][is_shown].tolist()
        return video_prompt(float(batch.duration_s[index]), times_s)

    def prepare(self, batch: GopBatch | QABatch, device: torch.device) -> Prepared:
        assert isinstance(batch, QABatch)
        sequences = self.sequences(batch)
        inputs = {
            "gops": to_device(batch, device),
            "sequences": sequences.to(device),
            "is_packed": self.config.packing,
        }
        num_samples = len(sequences.questions)
        return Prepared(
            inputs=inputs,
            weight=float(sequences.num_answer_tokens),
            num_samples=num_samples,
            num_skipped=int(batch.question_is_valid.sum()) - num_samples,
        )

    def evaluate(self, device: torch.device) -> dict[str, float]:
        return self.accuracies(device)

    def accuracies(
        self, device: torch.device, *, delta: DeltaMode = "given", num_batches: int | None = None
    ) -> dict[str, float]:
        """Share of exact answers on eval_data by data_source, and of all: `accuracy/<name>`, `accuracy/all`."""
        if self.eval_dataset is None:
            return {}
        tally = Tally()
        loader = DataLoader(self.eval_dataset, batch_size=None)
        for batch in itertools.islice(loader, num_batches or limit_of(self.config.eval_batches)):
            inputs = self.prepare(batch, device).inputs
            right = is_exact(self.model, **inputs, num_questions=len(batch), delta=delta).tolist()
            for index in sorted(inputs["sequences"].questions):
                question = batch.questions[index]
                # Its id alone is a place in a file: two datasets of a mix may have files of one name.
                known_by = (question.question_id, question.video_id, question.turns)
                tally.add(known_by, question.data_source, right[index])
        return {f"accuracy/{name}": share for name, share in tally.shares().items()}


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: VideoLM) -> None:
    embedding = model.language_model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    size = embedding.weight.shape[0]
    if len(tokenizer) > size:
        raise ConfigurationError(
            f"tokenizer {tokenizer.name_or_path}",
            f"has {len(tokenizer)} tokens, but the language model has embeddings for {size}",
            "Use the language model's own tokenizer.",
        )


def main() -> None:
    """Entry point of `python -m cope_prep.encoders.finetune`, under torchrun or alone."""
    run_program(FinetuneConfig, FinetuneTask)


if __name__ == "__main__":
    main()

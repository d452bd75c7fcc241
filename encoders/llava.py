"""Weights of LLaVA-Video checkpoints, into VideoLM's names. Local folders only.

The layout is that of `lmms-lab/LLaVA-Video-7B-Qwen2`: `config.json` (llava_config.py), tokenizer files, and
either `model.safetensors` or shards with an index. Tensors go one at a time from the mapped file into the parameter
that is there: loading takes the memory of the model and one tensor. Names, shapes and kinds are all checked from
the headers before the first is copied: a checkpoint that does not fit changes nothing.

What the names were checked against: transformers' `convert_llava_onevision_weights_to_hf.py` loads, strictly,
checkpoints of the same training code into a SigLIP of 26 layers with `post_layernorm` and without head, so exactly
those are stored; `model.vision_tower.vision_tower.vision_model.encoder.layers.*` stands in load reports that users
posted (LLaVA-NeXT issue 115); LLaVA-NeXT's `siglip_encoder.py` deletes the last layer and the head, and takes the
last hidden state before `post_layernorm`. NOT checked: the files of LLaVA-Video-7B-Qwen2 themselves, which could
not be downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cope_prep.encoders.safetensors_folder import (
    StoredTensor,
    listed,
    local_folder,
    open_shard,
    stored_tensors,
)
from cope_prep.schemas.errors import ConfigurationError, FormatError

NAMES = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower.model."),
    ("model.mm_projector.", "projector."),
    ("model.image_newline", "image_newline"),
    ("model.layers.", "language_model.model.layers."),
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
)
"""Prefixes: of the checkpoint, of VideoLM."""

DELTA_PARTS = ("delta_encoder.", "delta_projector.")
"""Of VideoLM: ours, LLaVA has none."""
_EXAMPLES = 2
"""Names that a report shows for each reason."""
_LAYER = re.compile(r"vision_tower\.model\.encoder\.layers\.(\d+)\.")
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What became of each stored tensor, and of each of the model's."""

    loaded: tuple[str, ...]
    """Our names."""
    unused: Mapping[str, str]
    """The checkpoint's names, each with the reason why it is deliberately left out."""
    missing: tuple[str, ...]
    """Our names that the checkpoint does not have and need not: they keep their initial values."""

    @property
    def missing_parts(self) -> tuple[str, ...]:
        """Parts of the model that `missing` are of."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.missing))

    def __str__(self) -> str:
        """Short for thousands of keys: by reason, with the first names."""
        lines = [f"{len(self.loaded)} tensors loaded"]
        for reason in dict.fromkeys(self.unused.values()):
            names = sorted(name for name, why in self.unused.items() if why == reason)
            more = f", and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
            lines.append(f"{len(names)} left out: {reason} ({', '.join(names[:_EXAMPLES])}{more})")
        if self.missing:
            lines.append(f"{len(self.missing)} not in the checkpoint: {', '.join(self.missing_parts)}")
        return "; ".join(lines)


def map_key(name: str) -> str | None:
    """VideoLM's name for a checkpoint's; None for one that is in no part we know."""
    for theirs, ours in NAMES:
        if name == theirs or (name.startswith(theirs) and theirs.endswith(".")):
            return ours + name[len(theirs) :]
    return None


def load_llava_weights(
    model: nn.Module,
    folder: str | Path,
    *,
    only: tuple[str, ...] | None = None,
) -> LoadReport:
    """Copy a checkpoint's tensors into `model` (VideoLM's names), each cast to its parameter's dtype.

    `only` are prefixes of the parts that `model` has, if it is not a whole VideoLM: the others are left aside.

    Raises:
        ConfigurationError: the checkpoint and the model do not fit: the names and shapes are listed.
        FormatError: a damaged file, an index that does not agree with its shards, or values that are not finite.
    """
    folder = local_folder(folder)
    stored = stored_tensors(folder)
    targets, aliases = _distinct(model)
    sources: dict[str, str] = {}
    unused: dict[str, str] = {}
    unknown: list[str] = []
    tied: list[tuple[str, str]] = []
    for name in stored:
        ours = map_key(name)
        if ours in targets:
            sources[ours] = name
        elif ours in aliases:
            tied.append((name, aliases[ours]))
        elif reason := _reason_unused(name, ours, targets):
            unused[name] = reason
        elif only is not None and ours is not None and not ours.startswith(only):
            unused[name] = f"of {ours.split('.')[0]}, which was not asked for"
        else:
            unknown.append(name)
    missing = [name for name in targets if name not in sources]
    unexpected = [name for name in missing if not name.startswith(DELTA_PARTS)]
    misfits = [
        f"{ours} is {_shown(targets[ours])}, stored as {_shown(stored[name])}"
        for ours, name in sources.items()
        if not _fits(stored[name], targets[ours])
    ]
    complaints = [
        listed("tensors that no part of the model takes", unknown),
        listed("parameters that the checkpoint does not have", unexpected),
        listed("tensors of another shape or kind", misfits),
    ]
    if any(complaints):
        raise ConfigurationError(
            str(folder),
            "does not fit the model: " + "; ".join(filter(None, complaints)),
            "Build the model from this folder's configuration (read_llava_config).",
        )
    by_file: dict[Path, list[str]] = {}
    for ours, name in sources.items():
        by_file.setdefault(stored[name].path, []).append(ours)
    for path, names in by_file.items():
        _copy(path, {sources[ours]: targets[ours] for ours in names})
    for name, known in tied:
        _check_tied(name, targets[known], stored)
        unused[name] = "equal to the embedding it is tied to"
    return LoadReport(loaded=tuple(sources), unused=unused, missing=tuple(missing))


def num_layers(names: Iterable[str | None], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in names if name and name.startswith(prefix)})


def _copy(path: Path, targets: Mapping[str, torch.Tensor]) -> None:
    with open_shard(path) as file, torch.no_grad():
        for name, target in targets.items():
            target.copy_(file.get_tensor(name))
            # By its extremes, which NaN passes through: isfinite would take twice the tensor's memory again.
            if target.is_floating_point() and not torch.stack(target.aminmax()).isfinite().all():
                raise FormatError(str(path), f"{name} has values that are not finite as {target.dtype}")


def _check_tied(name: str, target: torch.Tensor, stored: Mapping[str, StoredTensor]) -> None:
    with open_shard(stored[name].path) as file:
        if not torch.equal(file.get_tensor(name).to(target), target):
            raise FormatError(
                str(stored[name].path),
                f"{name} differs from the embedding, though tie_word_embeddings is true",
                "Set tie_word_embeddings to false in config.json.",
            )


def _reason_unused(name: str, ours: str | None, targets: Mapping[str, torch.Tensor]) -> str | None:
    """Why a tensor that the model has no place for may be left out; None if there is no reason."""
    if name == "model.faster_token":
        return "of the faster-video mode, which is off"
    if name.endswith((".rotary_emb.inv_freq", ".embeddings.position_ids")):
        return "computed, not learned"
    if ours is None:
        return None
    if ours.startswith("vision_tower.model.post_layernorm."):
        return "the tower's final norm: patch tokens are taken before it"
    if ours.startswith("vision_tower.model.head."):
        return "the tower's pooling head"
    layer = _LAYER.match(ours)
    # Only the one layer after ours is the one that LLaVA drops; more would be a tower of another depth.
    kept = num_layers(targets, "vision_tower.model.encoder.layers.")
    if layer is not None and int(layer[1]) == kept > 0:
        return "the tower's last layer, whose output is not used"
    return None


def _fits(stored: StoredTensor, target: torch.Tensor) -> bool:
    # A quantized tensor is no smaller float: int8 or float8 codes would be copied as if they were values.
    return stored.shape == tuple(target.shape) and (stored.dtype in _FLOATS) == target.is_floating_point()


def _shown(tensor: torch.Tensor | StoredTensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _distinct(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The model's tensors by name, and other names of tied ones with the name they go by."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first_name: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert not tensor.is_meta, f"{name} is on the meta device, where a copy does nothing"
        known = first_name.setdefault(id(tensor), name)
        if known == name:
            tensors[name] = tensor
        else:
            aliases[name] = known
    return tensors, aliases

"""Models and configurations from local folders of transformers, and an error where it would only warn.

`from_pretrained` takes a folder of another architecture, or one that lacks half of the weights, with a warning:
what is not stored keeps random values. A tower or a language model of noise would then train.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from cope_prep.encoders.safetensors_folder import listed, local_folder, read_json
from cope_prep.schemas.errors import ConfigurationError, FormatError

ModelT = TypeVar("ModelT", bound=PreTrainedModel)
ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)


def load_pretrained(kind: type[ModelT], folder: str | Path, *, may_miss: tuple[str, ...] = ()) -> ModelT:
    """A model with its weights, in float32. Nothing is downloaded.

    may_miss: prefixes of parameters that need not be stored.

    Raises:
        ConfigurationError: no such folder, another architecture, or weights that are not there.
        FormatError: a damaged file.
    """
    assert kind.config_class is not None
    config = load_config(kind.config_class, folder)
    try:
        # The configuration is given, so that what model_type says has been looked at.
        loaded: Any = kind.from_pretrained(
            str(folder), config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except SafetensorError as exc:
        raise FormatError(str(folder), f"has weights that cannot be read: {exc}") from exc
    except (OSError, ValueError, RuntimeError) as exc:
        raise ConfigurationError(
            str(folder), f"is no {kind.__name__} that transformers can load: {' '.join(str(exc).split())}"
        ) from exc
    model, found = loaded
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(may_miss))
    if missing:
        raise ConfigurationError(
            str(folder),
            listed(f"is no {kind.__name__}: lacks weights", missing),
            "Name a folder that `save_pretrained` wrote.",
        )
    return model


def load_config(kind: type[ConfigT], folder: str | Path) -> ConfigT:
    """A configuration from a folder's config.json; of a model of several parts, of the part that is of `kind`.

    Raises:
        ConfigurationError: no such file, or it is of another architecture.
        FormatError: it is not JSON.
    """
    path = local_folder(folder) / "config.json"
    values: Mapping[str, Any] = read_json(path)
    wanted = kind.model_type
    part = values.get(kind.base_config_key) if kind.base_config_key else None
    if isinstance(part, Mapping) and values.get("model_type") == wanted.removesuffix("_vision_model"):
        values = {"model_type": wanted, **part}
    if values.get("model_type") != wanted:
        raise ConfigurationError(
            str(path), f"model_type is {values.get('model_type')!r}, not {wanted!r}", "Name another folder."
        )
    try:
        return kind.from_dict(dict(values))
    except (TypeError, ValueError, StrictDataclassError) as exc:
        raise ConfigurationError(str(path), f"is no {kind.__name__}: {' '.join(str(exc).split())}") from exc

"""The random number generators of a process as tensors: torch's, each GPU's, numpy's and Python's.

What a run draws (dropout, for one) after a restart must be what it would have drawn without it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

_TORCH, _CUDA, _NUMPY, _PYTHON = "torch", "cuda", "numpy", "python"


def seed(value: int) -> None:
    """Begin all generators anew."""
    torch.manual_seed(value)
    np.random.seed(value % (1 << 32))
    random.seed(value)


def capture(device: torch.device) -> dict[str, torch.Tensor]:
    """The states: torch and cuda uint8 as they come; numpy and python int64 and float64 parts."""
    state = {_TORCH: torch.get_rng_state()}
    if device.type == "cuda":
        state[_CUDA] = torch.cuda.get_rng_state(device)
    legacy = np.random.get_state(legacy=True)
    assert isinstance(legacy, tuple)
    _, keys, position, has_gauss, gauss = legacy
    state[_NUMPY] = torch.tensor([*keys.tolist(), position, has_gauss])
    state[f"{_NUMPY}.gauss"] = torch.tensor([gauss], dtype=torch.float64)
    kind, words, next_gauss = random.getstate()
    state[_PYTHON] = torch.tensor([kind, *words])
    state[f"{_PYTHON}.gauss"] = torch.tensor([] if next_gauss is None else [next_gauss], dtype=torch.float64)
    return state


def restore(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put the states back; that of a GPU where there is one."""
    torch.set_rng_state(state[_TORCH])
    if device.type == "cuda" and _CUDA in state:
        torch.cuda.set_rng_state(state[_CUDA], device)
    *keys, position, has_gauss = state[_NUMPY].tolist()
    gauss = float(state[f"{_NUMPY}.gauss"])
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, gauss))
    kind, *words = state[_PYTHON].tolist()
    next_gauss = state[f"{_PYTHON}.gauss"].tolist()
    random.setstate((kind, tuple(words), next_gauss[0] if next_gauss else None))


@contextlib.contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """What is drawn within is not missed outside."""
    state = capture(device)
    try:
        yield
    finally:
        restore(state, device)

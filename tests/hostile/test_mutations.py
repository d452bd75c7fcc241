"""Damaged videos of every container: each ends in a verdict about the file, and nothing else happens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import corpus
from supervised import Sandbox

MUTATIONS_PER_CONTAINER = 90


def test_there_are_enough() -> None:
    assert len(corpus.CONTAINERS) * MUTATIONS_PER_CONTAINER >= 2000


def test_whole_files_are_read(contents: dict[str, bytes], sandbox: Sandbox) -> None:
    assert sandbox.outcomes(contents.items()) == {"ok": len(corpus.CONTAINERS)}
    sandbox.check()


@pytest.mark.parametrize("name", corpus.CONTAINERS)
def test_mutations(contents: dict[str, bytes], sandbox: Sandbox, name: str) -> None:
    found = sandbox.outcomes(corpus.mutations(contents, name, count=MUTATIONS_PER_CONTAINER))
    assert found.total() == MUTATIONS_PER_CONTAINER
    assert found["ok"] < found.total()  # damage was done
    sandbox.check()


@pytest.mark.parametrize("name", corpus.CONTAINERS)
def test_truncations(contents: dict[str, bytes], sandbox: Sandbox, name: str) -> None:
    found = sandbox.outcomes(corpus.truncations(contents, name))
    assert found.total() == 99
    sandbox.check()

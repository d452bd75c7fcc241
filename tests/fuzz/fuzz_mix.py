"""Fuzz the two parsers of mix files: LLaVA-NeXT's (question files and samplings) and the loader's (datasets)."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from fuzzing import fuzz, instrumented

with instrumented("yaml"):
    from cope_prep.pipeline import mix_yaml, storage
    from cope_prep.pipeline.llava_layout import QuestionFile
    from cope_prep.pipeline.loader.mix import read_mix_parts
    from cope_prep.pipeline.manifest_report import SkipCounter
    from cope_prep.schemas.errors import ConfigurationError

_MAX_MESSAGE = 20_000
"""Characters: what is wrong with a mix is a line or a few, not the mix."""

_FILES = [
    QuestionFile(path=f"{folder}/{folder}_{kind}_qa_processed.json", kind=kind)
    for folder in ("0_30_s_nextqa", "0_30_s_academic_v0_1")
    for kind in ("oe", "mc")
]
_NAME = "mix.yaml"


def one_input(data: bytes) -> None:
    """Read a mix with both parsers; what the first accepts is resolved and sampled."""
    with mock.patch.object(storage, "open_read", side_effect=lambda uri: io.BytesIO(data)):
        _read_llava_mix()
        _read_loader_mix()


def _read_llava_mix() -> None:
    try:
        entries = mix_yaml.read_mix(_NAME)
        plan = mix_yaml.resolve_mix(entries, _FILES, mix=_NAME, skips=SkipCounter())
        for file, sampling in plan:
            taken = sampling.positions(100, seed=0, name=file.name)
            assert len(set(taken.tolist())) == len(taken) <= 100
            assert all(0 <= position < 100 for position in taken.tolist())
    except ConfigurationError as exc:
        _check_message(exc)


def _read_loader_mix() -> None:
    try:
        for part in read_mix_parts(_NAME):
            assert 0 < part.weight <= 1000
    except ConfigurationError as exc:
        _check_message(exc)


def _check_message(exc: ConfigurationError) -> None:
    assert len(str(exc)) < _MAX_MESSAGE


def seeds() -> list[bytes]:
    """Good mixes of both kinds, and the constructs of YAML that a parser may stumble over."""
    return [
        b"datasets:\n"
        b"  - json_path: 0_30_s_nextqa/0_30_s_nextqa_oe_qa_processed.json\n"
        b"    sampling_strategy: random:10%\n"
        b"  - {json_path: 0_30_s_academic_v0_1_mc_qa_processed.json, sampling_strategy: first:5}\n",
        b"datasets:\n"
        b"  - {dataset: /data/a, weight: 0.5, filter: {min_motion_px: 0.5}}\n"
        b"  - {dataset: b, mix: m.yaml}\n",
        b"datasets: [{json_path: a.json, sampling_strategy: 'end:12.5%'}, {json_path: llava_hound/b.json}]",
        b"a: &a [x]\ndatasets: &b [*a, {json_path: *a, <<: {k: 1}}]\n",
        b"datasets: [!!int 0x1f, !!float .nan, !!timestamp 2001-12-14, !!binary aGk=, ? [a, b] : c, 190:20:30]",
    ]


if __name__ == "__main__":
    fuzz(one_input, seeds=seeds())

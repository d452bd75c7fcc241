"""Δ-tokens zeroed, and those of another video in their place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cope_prep.encoders.video_lm import gops_of_other_videos
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopFilter, to_device
from cope_prep.pipeline.loader.batch import QABatch
from cope_prep.schemas.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode helpers are on no search path
import small_models
from small_models import questions

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = GopFilter(min_duration_s=2)
"""Videos of several GOPs."""


def test_delta_of_zero_or_of_another(batch: QABatch) -> None:
    model, gops = small_models.video_lm(), to_device(batch, "cpu")
    with torch.no_grad():
        given, zero, swapped = (model.features(gops, delta=mode) for mode in ("given", "zero", "swap"))
    num_gops, num_deltas = batch.gops.delta_mask.shape
    first = num_gops * batch.gops.picture_mask.shape[1] * 6
    for other in (zero, swapped):
        assert torch.equal(other[:first], given[:first])
        assert torch.equal(other[-1], given[-1])
    with torch.no_grad():  # what the model reads of a frame in which nothing moves
        at_rest = model.delta_projector(torch.zeros(32))
    assert torch.allclose(zero[first:-1], at_rest.expand(num_gops * num_deltas * 3, 48), atol=1e-6)
    own, other = (table[first:-1].reshape(num_gops, num_deltas, 3, 48) for table in (given, swapped))
    video_ids, counts = batch.info.video_ids, batch.gops.delta_mask.sum(dim=1).tolist()
    assert len(set(video_ids)) < num_gops  # a video of several
    assert len(set(counts)) > 1
    num_seen = 0
    for gop, giver in enumerate(gops_of_other_videos(video_ids, counts)):
        for slot in range(counts[gop]):
            assert video_ids[giver] != video_ids[gop]
            assert torch.equal(other[gop, slot], own[giver, slot % counts[giver]])
            num_seen += 1
    assert num_seen > num_gops


@pytest.mark.parametrize(
    ("video_ids", "num_deltas", "expected"),
    [
        ("abcd", [7, 7, 7, 7], [1, 2, 3, 0]),
        ("aabb", [7, 7, 7, 7], [2, 3, 0, 1]),
        ("abab", [7, 3, 7, 3], [1, 2, 3, 0]),
        ("abcab", [7, 3, 7, 7, 3], [2, 3, 0, 2, 0]),
        ("abc", [7, 0, 3], [2, 1, 0]),
        ("aaab", [2, 2, 2, 2], [3, 3, 3, 0]),
        ("aa", [0, 0], [0, 1]),
        ("", [], []),
    ],
)
def test_which_gop_gives_its_deltas(video_ids: str, num_deltas: list[int], expected: list[int]) -> None:
    """Of another video, as long if there is one, each as often as the others, the next one first."""
    found = gops_of_other_videos(video_ids, num_deltas)
    assert found == expected
    for gop, giver in enumerate(found):
        assert video_ids[gop] != video_ids[giver] or num_deltas[gop] == 0


def test_swap_with_a_shorter_gop_repeats_it(small: Layout) -> None:
    """What stands in for a Δ-frame is never padding."""
    gops = to_device(questions(small.dataset, batch_size=8, max_gops=1, key_frames=1), "cpu")
    counts = gops.batch.delta_mask.sum(dim=1).tolist()
    longest, shortest = (counts.index(pick(counts)) for pick in (max, min))
    assert counts[longest] > 2 * counts[shortest] > 0
    gops.batch.delta_mask[[row for row in range(len(counts)) if row not in (longest, shortest)]] = False
    model = small_models.video_lm()
    with torch.no_grad():
        tables = [model.features(gops, delta=mode)[len(counts) * 6 : -1] for mode in ("given", "swap")]
    own, other = (table.reshape(len(counts), -1, 3, 48) for table in tables)
    for slot in range(counts[longest]):
        assert torch.equal(other[longest, slot], own[shortest, slot % counts[shortest]])
    for slot in range(counts[shortest]):
        assert torch.equal(other[shortest, slot], own[longest, slot])


def test_swap_of_a_single_video_fails(small: Layout) -> None:
    found = questions(small.dataset, batch_size=3, questions_per_visit=3, shuffle=None, where=LONG)
    assert len(found.gops) > 1
    message = r"Δ-frames of one video only, video-00\d\.mp4\. Raise eval_batch_size.*questions_per_visit"
    with pytest.raises(ConfigurationError, match=message):
        small_models.video_lm().features(to_device(found, "cpu"), delta="swap")

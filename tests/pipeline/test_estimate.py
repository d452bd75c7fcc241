"""From a sample to the whole: the draw is fixed by its seed, right on average, and honest about its error."""

from __future__ import annotations

import random

import pytest

from cope_prep.pipeline.estimate import draw_sample, estimate_total, largest, student_t
from cope_prep.schemas.errors import ConfigurationError
from cope_prep.schemas.records import VideoRecord

NUM_VIDEOS = 1000


def population(seed: int) -> tuple[list[VideoRecord], dict[str, float]]:
    """Videos of three subsets with bit rates of their own, a few of them broken; and what each costs."""
    draw = random.Random(seed)
    videos, costs = [], {}
    for index in range(NUM_VIDEOS):
        subset, rate = draw.choice([("academic", 1.0), ("youtube", 2.0), ("nextqa", 0.5)])
        duration_s = min(10_800.0, draw.lognormvariate(4, 1))
        size_bytes = int(duration_s * rate * 1e5 * draw.lognormvariate(0, 0.5))
        name = f"{subset}/{index}.{draw.choice(['mp4', 'mp4', 'mkv'])}"
        videos.append(
            VideoRecord(video_id=name, uri=f"/v/{name}", subset=subset, size_bytes=size_bytes, version="1")
        )
        costs[name] = 0.05 if draw.random() < 0.02 else 0.2 + 0.3 * duration_s * draw.lognormvariate(0, 0.2)
    return videos, costs


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    videos, _ = population(0)
    first = draw_sample(videos, size=40, seed=3)
    assert draw_sample(videos[::-1], size=40, seed=3) == first
    assert len({entry.video.video_id for entry in first}) == 40
    assert {entry.video.subset for entry in first} == {"academic", "youtube", "nextqa"}
    assert max(videos, key=lambda video: video.size_bytes) in [entry.video for entry in first]
    assert draw_sample(videos, size=40, seed=4) != first


def test_right_on_average_and_mostly_within_the_interval() -> None:
    ratios, hits = [], 0
    for seed in range(200):
        videos, costs = population(seed % 4)
        found = estimate_total(draw_sample(videos, size=40, seed=seed), costs)
        truth = sum(costs.values())
        ratios.append(found.value / truth)
        hits += found.low <= truth <= found.high
        assert found.low < found.value < found.high
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.03)
    assert 176 <= hits < 200  # about 190: an interval that always holds would be too wide


def test_a_sample_of_all_is_the_truth() -> None:
    videos, costs = population(1)
    found = estimate_total(draw_sample(videos, size=NUM_VIDEOS, seed=0), costs)
    assert found.low == found.value == found.high == pytest.approx(sum(costs.values()))


def test_one_video_for_the_others_has_a_wide_interval() -> None:
    videos, costs = population(2)
    drawn = draw_sample(videos[:3], size=2, seed=0)
    found = estimate_total(drawn, costs)
    assert found.low < found.high
    assert found.low >= 0.0


def test_empty_files_and_huge_ones() -> None:
    sizes = [0] * 50 + [10**12, 10**12]
    videos = [
        VideoRecord(video_id=f"{index}.mp4", uri=f"/v/{index}.mp4", subset="", size_bytes=size, version="1")
        for index, size in enumerate(sizes)
    ]
    drawn = draw_sample(videos, size=10, seed=0)
    assert [entry.video.size_bytes for entry in drawn if entry.probability == 1.0] == [10**12, 10**12]
    ones = {video.video_id: 1.0 for video in videos}
    assert estimate_total(drawn, ones).value == pytest.approx(52.0)


def test_the_largest_video_is_foreseen_though_it_is_not_drawn() -> None:
    videos, _ = population(3)
    costs = {video.video_id: video.size_bytes / 1e6 for video in videos}
    greatest = max(videos, key=lambda video: video.size_bytes)
    drawn = [entry for entry in draw_sample(videos, size=40, seed=0) if entry.video != greatest]
    assert largest(drawn, costs, videos) == pytest.approx(costs[greatest.video_id])


def test_what_cannot_be_estimated_fails() -> None:
    videos, _ = population(0)
    with pytest.raises(ConfigurationError, match="lists no video"):
        draw_sample([], size=10, seed=0)
    with pytest.raises(ConfigurationError, match="says nothing of the spread"):
        draw_sample(videos, size=1, seed=0)


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (3, 3.182), (10, 2.228), (1000, 1.962)])
def test_student_t(freedom: int, expected: float) -> None:
    assert student_t(freedom) == pytest.approx(expected, abs=0.005)

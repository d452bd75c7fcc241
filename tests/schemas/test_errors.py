"""The error hierarchy: what its docstring draws, and that errors travel between processes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from cope_prep.schemas import errors
from cope_prep.schemas.errors import CopePrepError

CLASSES = [
    value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, CopePrepError)
]


def drawn_tree() -> dict[str, str | None]:
    """Class name -> name of its parent, as the module's docstring draws it."""
    parents: dict[str, str | None] = {}
    ancestors: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^(\s+[│├└─\s]*)(\w+Error)\b", line)
        if not match:
            continue
        column, name = len(match[1]), match[2]
        while ancestors and ancestors[-1][0] >= column:
            ancestors.pop()
        parents[name] = ancestors[-1][1] if ancestors else None
        ancestors.append((column, name))
    return parents


def test_docstring_draws_the_classes() -> None:
    actual = {cls.__name__: cls.__base__.__name__ for cls in CLASSES if cls is not CopePrepError}
    assert len(actual) >= 10
    assert drawn_tree() == {"CopePrepError": None, **actual}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_class_and_parts(cls: type[CopePrepError], protocol: int) -> None:
    error = cls("clip.mp4", "is empty", "Download it again.")
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is cls
    assert (copy.subject, copy.found, copy.remedy) == ("clip.mp4", "is empty", "Download it again.")
    assert str(copy) == str(error)


def test_message_names_subject_finding_and_remedy() -> None:
    assert str(CopePrepError("a.mp4", "is empty.", "Get it again.")) == "a.mp4: is empty. Get it again."
    assert str(CopePrepError("a.mp4", "is empty")) == "a.mp4: is empty"


def test_a_message_shows_no_credentials_and_the_parts_keep_them() -> None:
    uri = "s3://KEY:HUSH@bucket/a.mp4"
    error = CopePrepError(
        uri, "cannot be read (http://host/a?X-Amz-Signature=HUSH)", "See ftp://bob:HUSH@host."
    )
    for shown in (str(error), repr(error), str(CopePrepError(f"{uri}: gone")), f"{[error]}"):
        assert "***@bucket/a.mp4" in shown
        assert "HUSH" not in shown
    assert pickle.loads(pickle.dumps(error)).subject == uri


def test_every_class_says_what_it_means() -> None:
    assert all(cls.__doc__ for cls in CLASSES)

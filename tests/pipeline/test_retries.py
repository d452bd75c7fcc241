"""Which errors of a store are worth another attempt, of the request, of the video, or of neither."""

from __future__ import annotations

import errno
from typing import NoReturn

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from cope_prep.pipeline import retries
from cope_prep.pipeline.retries import RetryPolicy, insist_on
from cope_prep.schemas.errors import SourceNotFoundError, StorageError, StoreRefusedError


def error_of_s3(code: str) -> Exception:
    """As s3fs translates what botocore says, without asking a server."""
    return translate_boto_error(ClientError({"Error": {"Code": code}}, "GetObject"))


def error_of_http(status: int) -> Exception:
    error = OSError(f"answers {status}")
    error.status = status  # pyright: ignore[reportAttributeAccessIssue]
    return error


NoCredentialsError = type("NoCredentialsError", (Exception,), {})  # botocore's own says so by its name
FileExpired = type("FileExpired", (OSError,), {})


@pytest.mark.parametrize(
    ("error", "expected", "num_attempts"),
    [
        (error_of_s3("AccessDenied"), StoreRefusedError, 1),
        (error_of_s3("InvalidObjectState"), StoreRefusedError, 1),  # of an object in Glacier
        (error_of_s3("ExpiredToken"), StoreRefusedError, 1),
        (error_of_s3("InvalidRequest"), StoreRefusedError, 1),
        (error_of_s3("403"), StoreRefusedError, 1),
        (error_of_http(401), StoreRefusedError, 1),
        (error_of_http(451), StoreRefusedError, 1),
        (PermissionError(errno.EACCES, "not ours"), StoreRefusedError, 1),
        (retries.RangeIgnoredError(), StoreRefusedError, 1),
        # Of this machine, or of this moment: another attempt of the whole video may meet neither.
        (error_of_s3("RequestTimeTooSkewed"), StorageError, 1),
        (NoCredentialsError("Unable to locate credentials"), StorageError, 1),
        (AttributeError("of the package"), StorageError, 1),
        (FileExpired("another ETag"), StorageError, 1),
        (error_of_s3("SlowDown"), StorageError, 2),
        (error_of_http(429), StorageError, 2),
        (TimeoutError(), StorageError, 2),
        (error_of_s3("NoSuchKey"), SourceNotFoundError, 1),
    ],
    ids=repr,
)
def test_what_an_error_is_taken_for(error: Exception, expected: type[Exception], num_attempts: int) -> None:
    asked: list[float] = []

    def request(timeout_s: float) -> NoReturn:
        asked.append(timeout_s)
        raise error

    with pytest.raises((StorageError, SourceNotFoundError)) as caught:
        insist_on("opened", request, "s3://bucket/a.mp4", RetryPolicy(attempts=2, first_wait_s=0.0))
    assert type(caught.value) is expected
    assert len(asked) == num_attempts
    assert str(caught.value).startswith("s3://bucket/a.mp4: ")

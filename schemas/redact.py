"""Text that may be shown to anybody: URLs without their credentials.

A dataset's URL may hold a user and a password (`s3://KEY:SECRET@bucket/...`), or a signature in its query; so may a
message of a store's, and a row of a ledger that quotes it. In doubt more is hidden than must be.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

_USER_INFO = re.compile(
    # Not a host and its port: for these protocols, whose passwords hold no bare slash or blank.
    r"(?!(?:https?|ray|grpc|tcp|hdfs|webhdfs)://(?:[^\s/@:]*|\[[0-9a-f:.]+\]):\d{1,5}[,.;:)'\"]*(?:[/\s]|$))"
    # With a colon, up to the last @ of the word: a secret key of S3 may hold slashes. A chained URL is another one.
    # A password may hold blanks or quotes instead.
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,20}://)"
    r"(?P<hidden>[^\s/@:]*:(?:(?!://)[^\s'\"<>])*@|[^\s/@:]*:[^\s/@][^\n/@]*@|[^\s/@:]+@)",
    re.IGNORECASE,
)
_QUERY = re.compile(
    # What follows a question mark; in a name of a file it is as well hidden as not.
    r"(?P<url>\b[a-z][a-z0-9+.-]{0,20}://[^\s?#'\"<>]*)\?(?=[^\s'\"<>])"
    r"(?:[^\s'\"<>]|['\"](?=[\w%+/]))*",
    re.IGNORECASE,
)
_FRAGMENT = re.compile(
    r"(?P<url>\b[a-z][a-z0-9+.-]{0,20}://[^\s#'\"<>]*)#[^\s'\"<>=]{1,60}=[^\s'\"<>]*", re.IGNORECASE
)
_SECRET = re.compile(
    # Not after a slash: there it is part of a path. `tokens`, tokenizers and `credentials` are spoken of, and are
    # not values.
    r"(?<![\w/-])(?P<name>(?:"
    r"(?P<is_line>[\w-]{0,60}(?:authorization|passw(?:or)?d|passphrase)[\w-]{0,60})"
    r"|[\w-]{0,60}(?:secret|token(?!s|i[sz])|signature|credential(?!s)|(?:account|access|api|private|secret)[._-]?key)"
    r"[\w-]{0,60}"
    r"|sig(?==)"
    r")['\"]?\s*[=:]\s*(?:[bru](?=['\"]))?)"
    # A quoted value goes to its closing quote; a password without quotes may hold blanks.
    r"(?:(?P<quote>['\"])(?:\\.|(?!(?P=quote))[^\\\n])*|(?(is_line)[^\s'\"&;,][^\n'\"&;,]*|[^\s'\"&;,]+))",
    re.IGNORECASE,
)
_HEADLINE = re.compile(
    r"(?:secret|token|signature|credential)-(?!key|id|value|auth|access)[\w-]+:\s+", re.IGNORECASE
)
"""`my-token-video: is empty`: a name, of which something is said."""
_BEARER = re.compile(r"(?P<scheme>\b(?:bearer|basic)\s+)(?=\S*\d|\S{20})[\w.~+/=-]{6,}", re.IGNORECASE)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b(?::[^\s'\"<>]*(?=@))?")
_QUOTED_USER = re.compile(r"(?<=['\"])[^\s/@:'\"<>]+:[^\s'\"<>]*@")
"""User and password of a bucket's or host's name that a store quotes without its protocol."""
_CONTAINER_SCHEMES = ("abfs://", "abfss://", "wasb://", "wasbs://")
"""Azure's: what stands before the @ is the container's name."""


def redacted(text: str) -> str:
    """A URL, or a text with URLs in it, without user names, passwords, queries and named secrets."""
    text = _USER_INFO.sub(_without_user, text)
    text = _QUOTED_USER.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<url>?{HIDDEN}", text)
    text = _FRAGMENT.sub(rf"\g<url>#{HIDDEN}", text)
    text = _SECRET.sub(_without_value, text)
    text = _BEARER.sub(rf"\g<scheme>{HIDDEN}", text)
    return _KEY_ID.sub(HIDDEN, text)


def redacted_document(value: Any) -> Any:
    """What JSON holds, with the URLs in its strings so; an array is a list then."""
    if isinstance(value, str):
        return redacted(value) if "://" in value else value
    if isinstance(value, dict):
        return {name: redacted_document(entry) for name, entry in value.items()}
    return [redacted_document(entry) for entry in value] if isinstance(value, list | tuple) else value


def _without_user(match: re.Match[str]) -> str:
    if match["scheme"].lower() in _CONTAINER_SCHEMES and ":" not in match["hidden"]:
        return match[0]
    return f"{match['scheme']}{HIDDEN}@"


def _without_value(match: re.Match[str]) -> str:
    if not match["quote"] and not match["is_line"] and _HEADLINE.search(match["name"]):
        return match[0]
    return f"{match['name']}{match['quote'] or ''}{HIDDEN}"

"""How the dashboard writes what it is given: escaped for Markdown, without credentials, with readable numbers."""

from __future__ import annotations

import re
import time
from urllib.parse import quote

from cope_prep.pipeline.redact import redacted

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:&^=\"'])")

_MADE_OF_TEXT = re.compile(
    # Streamlit looks for these in the text, whatever is escaped: `:material/home:` and `:cat:` become pictures,
    # addresses links, `--`, `->`, `<=` and the like other characters.
    r"(:(?=[\w+/-]+:)|:(?=//)|(?<=\bwww)(?=\.)|@(?=\w)|[<>=~-](?=[<>=~-]))",
    re.IGNORECASE,
)
_JOINER = "\u2060"
"""Takes no room, and no line is broken there."""


def plain(text: str) -> str:
    """Any text as Markdown that shows it as it is, on one line and without credentials.

    Where Streamlit would still make something of it, a character without width (U+2060) is put in between.
    """
    apart = _MADE_OF_TEXT.sub(rf"\1{_JOINER}", " ".join(redacted(text).split()))
    return _MARKDOWN.sub(r"\\\1", apart)


def clip_url(video_id: str, *, spec: str = "") -> str:
    """Path and query of the page Clip for a video, and for the specs of a hash if there are several sets."""
    return f"/clip?video={quote(video_id, safe='')}" + (f"&spec={quote(spec, safe='')}" if spec else "")


def clock_time(unix_s: float) -> str:
    """`18:55:04`, in the server's time zone."""
    return time.strftime("%H:%M:%S", time.localtime(unix_s))


def counted(number: int, noun: str) -> str:
    """`1 video`, `1,204 videos`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def compact(number: float) -> str:
    """`978`, `12.3 k`, `1.43 M`: at most four characters and a prefix."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            return f"{number / size:.3g} {prefix}"
    return f"{number:,.0f}"

"""Text for a terminal: names from strangers must not move its cursor, set its title or turn words around.

Log records are text, too, and come from libraries that know nothing of credentials in URLs.
"""

from __future__ import annotations

import logging
import re

from cope_prep.pipeline.redact import redacted

_CONTROL = re.compile(
    # C0 without tab and line feed, DEL and C1; marks and embeddings of bidirectional text; lone surrogates
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""The same text with control characters as \x1b or \u202e."""
    return _CONTROL.sub(_escaped, text)


def printable_json(document: str) -> str:
    r"""JSON with the control characters that JSON leaves in its strings as \u009b: the same document."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", document)


class PrintableFormatter(logging.Formatter):
    """Log records, tracebacks included, without the credentials of URLs and without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text."""
        return printable(redacted(super().format(record)))


def log_printably() -> None:
    """Write so what nobody set up logging for; to whatever stderr is by then, for a progress bar replaces it."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())


def log_levels_printably() -> None:
    """Write warnings and errors so, with their level, unless logging is set up already."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

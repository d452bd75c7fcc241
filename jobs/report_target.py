"""Can the report of `stats --html` be made at all? Asked before any work, and without what drawing it imports."""

from __future__ import annotations

from cope_prep.pipeline import storage
from cope_prep.schemas.errors import ConfigurationError


def check_report_target(uri: str) -> None:
    """Refuse before any work what cannot be written to, and say what is not installed.

    Raises:
        ConfigurationError: it is no name or a folder, or plotly or jinja2 is missing.
    """
    if not uri:
        raise ConfigurationError("--html", "names no file", "Give one, for instance report.html.")
    if storage.is_local(uri) and storage.is_folder(uri):
        raise ConfigurationError(f"--html {uri}", "is a folder", "Give a file, for instance report.html.")
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as exc:
        raise ConfigurationError(
            "--html", f"needs {exc.name}, which is not installed", "Run: pip install 'cope-prep[dashboard]'"
        ) from exc

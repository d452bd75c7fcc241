"""`make docs`, into any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from blocks import ROOT


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site that a mkdocs.yml describes; warnings are errors."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

"""Known vulnerabilities of the packages that constraints.txt pins, by pip-audit; or one line why it cannot be told.

A mirror of PyPI may answer for packages and not for vulnerabilities, and pip-audit takes that for "none known".
So an old version of requests, whose vulnerabilities are public since 2018, is asked about first: a service that
knows nothing of it knows nothing. One that knows it must answer for the pins, too.

    python .ci/audit.py [REQUIREMENTS]

exit code 0: nothing found, or no service to ask; 1: something found, or no answer for the pins; 2: no pip-audit
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KNOWN = "requests==2.19.0"
ROOT = Path(__file__).resolve().parents[1]
_LIMIT_S = 120.0


def main(arguments: list[str]) -> int:
    """Ask and print."""
    pinned = Path(arguments[0]) if arguments else ROOT / "constraints.txt"
    if importlib.util.find_spec("pip_audit") is None:
        print("audit: pip-audit is not installed: `make audit` does that")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder, "known.txt")
        known.write_text(f"{KNOWN}\n")
        answered, said = ask(known)
        if answered is None or not vulnerabilities(answered):
            print(f"audit: skipped: no vulnerability service answers here (nothing is known of {KNOWN})")
            if answered is None:
                print(said)
            return 0
        found, said = ask(pinned)
    if found is None:
        print(
            f"audit: pip-audit knows {KNOWN}, but gave no answer for {pinned.name}. It says:", said, sep="\n"
        )
        return 1
    lines = vulnerabilities(found)
    unknown = [entry["name"] for entry in found["dependencies"] if "skip_reason" in entry]
    print(f"audit: {len(found['dependencies'])} packages, {len(lines)} vulnerabilities", *lines, sep="\n  ")
    if unknown:
        print(f"audit: {len(unknown)} packages are not known there: {', '.join(unknown)}")
    return 1 if lines else 0


def ask(requirements: Path) -> tuple[dict[str, Any] | None, str]:
    """What pip-audit finds in a file of exact versions, None if it did not look; and what else it says."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(requirements), "--no-deps", "--disable-pip"]
    options = ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_LIMIT_S:g} s"
    try:
        return json.loads(done.stdout), done.stderr.strip()
    except ValueError:
        return None, done.stderr.strip() or f"nothing, and ended with {done.returncode}"


def vulnerabilities(found: dict[str, Any]) -> list[str]:
    """One line each."""
    return [
        f"{entry['name']} {entry['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or '-'}"
        for entry in found["dependencies"]
        for known in entry.get("vulns", ())
    ]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

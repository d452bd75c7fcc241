"""Run every benchmark in turn, each in a process of its own; results go to benchmarks/results/.

python benchmarks/run_all.py [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run those named, or all; the exit code is the number that failed."""
    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    scripts |= {"ttft": HERE / "ttft.py", "training-step": HERE / "training_step.py"}
    wanted = sys.argv[1:] or list(scripts)
    if unknown := set(wanted) - set(scripts):
        sys.exit(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(scripts)}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    num_failed = 0
    for name in wanted:
        print(f"== {name}", flush=True)
        out = results / f"{name}-{datetime.now(UTC):%Y-%m-%d}.json"
        num_failed += subprocess.run([sys.executable, scripts[name], "--json", out]).returncode != 0
    return num_failed


if __name__ == "__main__":
    sys.exit(main())

"""Run a function of a test in a process of its own that may have so much memory and no more.

    python limited.py MEMORY_BYTES FILE FUNCTION ARGUMENT...    prints what the function returned, as JSON

The limit is of address space beyond what the process has after its imports, so that an allocation that is too
large fails at once, used or not.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def call_limited(file: str, function: str, *arguments: str, extra_bytes: int = 512 << 20) -> Any:
    """What `function` of a helper file returns, as JSON has it; the process must end by itself."""
    place = (str(Path(file).parent), Path(file).stem)
    command = [sys.executable, __file__, str(extra_bytes), *place, function, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _main() -> None:
    extra_bytes, folder, module_name, function, *arguments = sys.argv[1:]
    sys.path.insert(0, folder)
    call = getattr(importlib.import_module(module_name), function)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(extra_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps(call(*arguments)))


if __name__ == "__main__":
    _main()

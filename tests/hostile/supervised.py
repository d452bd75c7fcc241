"""Damaged files through the path that every source takes: a child process that answers with a Reply."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cope_prep.jobs.worker import Child, Done, Failure, Reply
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.schemas.specs import EncodeSpec

SPEC = EncodeSpec(width_px=64, height_px=64, preset="ultrafast")
TIME_LIMIT_S = 60.0
"""Far beyond what any of these files takes on a busy machine."""
MAX_RSS_BYTES = 1 << 30

SOURCE_ERRORS = {"NotAVideoError", "NoVideoStreamError", "CorruptVideoError", "UnsupportedVideoError"}
SOURCE_ERRORS |= {"MemoryLimitError"}  # what a header asks for may be more than there is


class Sandbox:
    """A child process in an empty working folder, with folders for its sources and its results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources, self.results, self.current = (
            folder / name for name in ("sources", "results", "current")
        )
        for path in (self.sources, self.results, self.current):
            path.mkdir()
        self._noise = folder / "stderr"
        with _standard_error_to(self._noise), _working_folder(self.current):
            self._child = Child()

    def reencode(self, name: str, content: bytes) -> Reply:
        """Have a source re-encoded; it is removed afterwards, and so is the result."""
        source, result = self.sources / name, self.results / "out.mp4"
        source.write_bytes(content)
        reply = self.reencode_path(str(source), str(result))
        source.unlink()
        if isinstance(reply, Done):
            result.unlink()  # there is one
        assert os.listdir(self.results) == []
        return reply

    def reencode_path(self, source: str, result: str) -> Reply:
        """Have what is at a path re-encoded."""
        call = pickle.dumps(partial(reencode_video, source, result, spec=SPEC))
        return pickle.loads(self._child.run(call, subject=source, time_limit_s=TIME_LIMIT_S))

    def outcomes(self, files: Iterable[tuple[str, bytes]]) -> Counter[str]:
        """Error class, or status -> how many of the files ended so; each must be a verdict about the file."""
        found: Counter[str] = Counter()
        for name, content in files:
            reply = self.reencode(name, content)
            if isinstance(reply, Failure):
                assert reply.error_class in SOURCE_ERRORS, (name, reply)
                assert "\n" not in reply.error_message.replace(name, ""), (name, reply.error_message)
                found[reply.error_class] += 1
            else:
                found[reply.value.status] += 1
        return found

    def check(self) -> None:
        """Nothing was printed, left in the working folder, or put elsewhere; and memory stayed bounded."""
        assert self._noise.read_text() == ""
        assert os.listdir(self.current) == []
        assert sorted(os.listdir(self.folder)) == ["current", "results", "sources", "stderr"]
        assert peak_rss_bytes(self._child.pid) < MAX_RSS_BYTES

    def stop(self) -> None:
        """End the child."""
        self._child.stop()


def peak_rss_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


@contextmanager
def _standard_error_to(path: Path) -> Iterator[None]:
    saved = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextmanager
def _working_folder(path: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)

"""Calls that a stage's workers can import: the well-behaved one and every way to misbehave."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from cope_prep.pipeline import storage
from cope_prep.schemas.errors import CorruptVideoError, StorageError


def echo(value: object) -> object:
    return value


def pid() -> int:
    return os.getpid()


def environment(name: str) -> str | None:
    return os.environ.get(name)


def reject(name: str) -> None:
    raise CorruptVideoError(name, "holds no frame", "Download it again.")


def break_down(name: str) -> None:
    raise ZeroDivisionError(name)


def hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def write_forever(uri: str, started: str) -> None:
    with storage.publish(uri) as path:
        Path(path).write_bytes(b"half")
        Path(started).touch()
        time.sleep(3600)


def _count(path: str) -> int:
    with open(path, "ab") as file:
        file.write(b".")
    return os.path.getsize(path)


def die(counter: str, signum: int = signal.SIGKILL) -> None:
    _count(counter)
    os.kill(os.getpid(), signum)


def die_until(counter: str, attempt: int) -> str:
    if _count(counter) < attempt:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def kill_ray_worker_until(counter: str, attempt: int) -> str:
    if _count(counter) < attempt:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    return "done"


def fail_storage(counter: str) -> None:
    _count(counter)
    raise StorageError("s3://bucket/x", "answers 503")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a stage's function reports, as run_video_stage reads it."""

    output_bytes: int = 4
    output_crc32c: int = 0xDEADBEEF
    num_frames: int = 30
    num_gops: int = 1
    duration_s: float = 1.0


def copy_video(source_uri: str, output_uri: str) -> Report:
    content = Path(source_uri).read_bytes()
    if content == b"bad":
        raise CorruptVideoError(source_uri, "holds no frame", "Download it again.")
    storage.publish_bytes(output_uri, content)
    return Report(output_bytes=len(content))

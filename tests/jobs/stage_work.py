"""Calls that a stage's workers can import: the well-behaved one and every way to misbehave."""

from __future__ import annotations

import errno
import functools
import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from cope_prep.jobs.limits import over_limit
from cope_prep.pipeline import storage
from cope_prep.pipeline.split import NeedsMemory, Split, Unfit, parts_folder
from cope_prep.schemas import errors
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


def fail_attribute() -> None:
    raise AttributeError("x")


def allocate_on_a_small_machine(size_bytes: int, machine_bytes: int) -> int:
    """Where `ulimit -v` leaves this process so much more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + machine_bytes
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    return allocate(size_bytes)


def read_without_memory(name: str, as_storage: bool) -> None:
    """As the kernel refuses it to a read or a socket."""
    try:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    except OSError as exc:
        if as_storage:
            raise StorageError(name, f"cannot be read ({exc})") from exc
        raise


def fill_memory(step_bytes: int, started: str) -> None:
    """Grow step by step, as a decoder does that keeps every picture, and leave half an output behind."""
    with storage.publish(f"{started}.out") as path:
        Path(path).write_bytes(b"half")
        held = []
        while True:
            held.append(b"x" * step_bytes)
            time.sleep(0.01)


def allocate(size_bytes: int) -> int:
    return len(bytearray(size_bytes))


def decode_without_memory(name: str) -> None:
    """As the pipeline words FFmpeg's ENOMEM."""
    try:
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory", name)
    except av.error.FFmpegError as exc:
        raise CorruptVideoError(name, "does not decode") from exc


def keep_in_memory(size_bytes: int) -> int:
    _kept.append(b"x" * size_bytes)
    return os.getpid()


def limits() -> dict[str, int]:
    return {
        name: resource.getrlimit(getattr(resource, name))[0]
        for name in ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_DATA")
    }


_kept: list[bytes] = []


def hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def write_forever(uri: str, started: str) -> None:
    with storage.publish(uri) as path:
        Path(path).write_bytes(b"half")
        Path(started).touch()
        time.sleep(3600)


def write_until(uri: str, started: str, finish: str) -> str:
    """Write an output, which is whole when a file `finish` appears."""
    with storage.publish(uri) as path:
        Path(path).write_bytes(b"half")
        Path(started).touch()
        while not os.path.exists(finish):
            time.sleep(0.02)
        Path(path).write_bytes(b"whole")
    return "done"


def split_until(uri: str, started: str, finish: str) -> Split:
    """As write_until, but then it turns out to be long."""
    write_until(uri, started, finish)
    part = functools.partial(echo, 0)
    return split("long", [part, part])


def write_and_lose(uri: str, counter: str, signum: int) -> str:
    """At the first attempt its Ray worker gets a signal while the output is half written."""
    with storage.publish(uri) as path:
        Path(path).write_bytes(b"half")
        if _count(counter) < 2:
            os.kill(os.getppid(), signum)
            time.sleep(3600)
        Path(path).write_bytes(b"whole")
    return "done"


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


def copy_after_deaths(source_uri: str, output_uri: str, counter: str, attempt: int) -> Report:
    die_until(counter, attempt)
    return copy_video(source_uri, output_uri)


def fail_as(error_class: str, name: str) -> None:
    """Raise an error of cope-prep's by the name of its class, or another one."""
    if error_class == "MemoryLimitError":
        raise over_limit(name, 2 * 1024**3)
    raise getattr(errors, error_class, LookupError)(name, "was made to fail", "Leave it.")


def copy_or_fail(source: str, output: str) -> object:
    """The source's content is an error class, or what is copied; or it is odd, and so is the reply."""
    content = Path(source).read_text()
    if content == "odd":
        return Unfit(reason="nothing was split")
    if content.endswith("Error"):
        fail_as(content, source)
    return copy_video(source, output)


def whole(name: str, unfit: Unfit | None) -> tuple[str, str | None]:
    return name, unfit.reason if unfit else None


def join(name: str, values: list[object], *, is_fit: bool = True) -> object:
    return (name, values) if is_fit else Unfit(reason="the parts differ")


def split(name: str, parts: list[functools.partial[Any]], *, is_fit: bool = True) -> Split:
    return Split(
        parts=tuple(parts),
        join=functools.partial(join, name, is_fit=is_fit),
        whole=functools.partial(whole, name),
    )


def ask_for_memory(memory_bytes: int) -> NeedsMemory:
    return NeedsMemory(memory_bytes=memory_bytes, call=functools.partial(echo, "had it"))


def split_and_fail(output_uri: str) -> Split:
    """Three parts: the second one fails."""
    unused = functools.partial(echo, None)
    return Split(
        parts=tuple(functools.partial(write_part, output_uri, index) for index in range(3)),
        join=unused,
        whole=unused,
    )


def write_part(output_uri: str, index: int) -> int:
    if index == 1:
        raise CorruptVideoError("part 1", "was made to fail")
    storage.publish_bytes(storage.join(parts_folder(output_uri), f"{index}.packets"), b"x")
    return index

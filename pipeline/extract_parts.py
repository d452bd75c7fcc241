"""A long video's samples extracted in parts, side by side, and joined: the same tar as in one piece.

    extract_or_split ──> Split: extract_part x n ──> join_extract ──> ExtractReport

GOPs are closed, and a sample is made of its GOP alone, so a part is a range of GOPs, read from its first I-frame
on, and a part file is a piece of the tar: whole samples one after the other.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c

from cope_prep.pipeline import storage, tar
from cope_prep.pipeline.decode import open_stream
from cope_prep.pipeline.extract import (
    ExtractReport,
    Samples,
    check_source,
    extract_gops,
    extract_video,
    write_samples,
)
from cope_prep.pipeline.memory import extraction_memory_bytes
from cope_prep.pipeline.split import NeedsMemory, Split, Unfit, UnfitError, cut, parts_folder, remove_parts
from cope_prep.schemas.errors import SourceNotFoundError
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec

PART_WORK_S = 60.0
"""About how long one part should take on one core."""
_WORK_PER_FRAME_S, _WORK_PER_WINDOW_S = 0.0003, 0.0013
"""At 384 x 384. Measured: docs/decisions/0016."""
_MEASURED_PX = 384 * 384
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TarPart:
    """Some GOPs of a video, extracted."""

    uri: str
    samples: Samples


def extract_or_split(
    video_uri: str,
    out_uri: str,
    *,
    spec: ExtractSpec,
    encode_spec: EncodeSpec,
    video_id: str,
    source_crc32c: int | None = None,
    memory_bytes: int | None = None,
) -> ExtractReport | Split | NeedsMemory:
    """Extract a file as `extract_video` does, or say that it takes several calls, or more memory.

    `memory_bytes` is what this process may use, None if there is no limit. Errors as `extract_video`.
    """
    with contextlib.ExitStack() as stack:
        stream = open_stream(stack, video_uri)
        num_frames, size_px = stream.frames, (stream.width, stream.height)
    needed = extraction_memory_bytes(size_px, spec=spec, encode_spec=encode_spec)
    names = {"spec": spec, "encode_spec": encode_spec, "video_id": video_id}
    if memory_bytes is not None and needed > memory_bytes:
        again = functools.partial(
            extract_or_split,
            video_uri,
            out_uri,
            **names,
            source_crc32c=source_crc32c,
            memory_bytes=needed,
        )
        return NeedsMemory(memory_bytes=needed, call=again)
    gop_size = encode_spec.gop_size
    num_gops = -(-num_frames // gop_size)
    gop_work_s = gop_size * (_WORK_PER_FRAME_S + _WORK_PER_WINDOW_S / spec.window)
    gop_work_s *= size_px[0] * size_px[1] / _MEASURED_PX
    starts = cut(num_gops, unit=1, units_per_part=max(1, round(PART_WORK_S / max(gop_work_s, 1e-6))))
    if len(starts) < 2:
        return extract_video(video_uri, out_uri, **names, source_crc32c=source_crc32c)
    check_source(video_uri, source_crc32c)  # once for all parts
    return Split(
        parts=tuple(
            functools.partial(
                extract_part,
                video_uri,
                storage.join(parts_folder(out_uri), f"{first:06d}.samples"),
                **names,
                first_gop=first,
                stop_gop=stop,
            )
            for first, stop in zip(starts, (*starts[1:], None), strict=True)
        ),
        join=functools.partial(join_extract, out_uri, encode_spec=encode_spec),
        whole=functools.partial(extract_whole, video_uri, out_uri, **names, source_crc32c=source_crc32c),
    )


def extract_part(
    video_uri: str,
    part_uri: str,
    *,
    spec: ExtractSpec,
    encode_spec: EncodeSpec,
    video_id: str,
    first_gop: int,
    stop_gop: int | None,
) -> TarPart:
    """Extract the GOPs from `first_gop` to the one before `stop_gop` (None: to the end) into a part file.

    Errors as `extract_gops`.
    """
    records = extract_gops(
        video_uri,
        spec=spec,
        encode_spec=encode_spec,
        video_id=video_id,
        first_gop=first_gop,
        stop_gop=stop_gop,
    )
    with storage.publish(part_uri) as path, open(path, "wb") as file:
        return TarPart(uri=part_uri, samples=write_samples(file, records))


def join_extract(out_uri: str, parts: list[TarPart], *, encode_spec: EncodeSpec) -> ExtractReport | Unfit:
    """Join the part files into the tar. Unfit if one is gone: this join was done before, and its worker lost.

    Raises:
        StorageError: the store failed.
    """
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    num_bytes = crc32c = 0
    try:
        with storage.publish(out_uri) as path, open(path, "wb") as file:
            for part in parts:
                found = 0
                for chunk in _chunks(part.uri):
                    num_bytes += file.write(chunk)
                    crc32c = google_crc32c.extend(crc32c, chunk)
                    found = google_crc32c.extend(found, chunk)
                if found != part.samples.crc32c:
                    raise UnfitError("a part was damaged in the store")
            num_bytes += file.write(tar.END_OF_ARCHIVE)
            crc32c = google_crc32c.extend(crc32c, tar.END_OF_ARCHIVE)
    except UnfitError as exc:
        return Unfit(reason=str(exc))
    remove_parts(out_uri)
    num_frames = sum(part.samples.num_frames for part in parts)
    return ExtractReport(
        num_frames=num_frames,
        num_gops=sum(part.samples.num_gops for part in parts),
        num_windows=sum(part.samples.num_windows for part in parts),
        duration_s=num_frames / encode_spec.fps,
        output_bytes=num_bytes,
        output_crc32c=crc32c,
        wall_s=time.perf_counter() - wall_s,
        cpu_s=time.process_time() - cpu_s,
    )


def _chunks(part_uri: str) -> Iterator[bytes]:
    try:
        with storage.open_read(part_uri) as piece:
            while chunk := piece.read(_CHUNK_BYTES):
                yield chunk
    except SourceNotFoundError as exc:
        raise UnfitError("a part is gone") from exc


def extract_whole(
    video_uri: str,
    out_uri: str,
    unfit: Unfit | None,
    *,
    spec: ExtractSpec,
    encode_spec: EncodeSpec,
    video_id: str,
    source_crc32c: int | None,
) -> ExtractReport:
    """Extract in one piece what was to be done in parts, and remove what the parts left first."""
    remove_parts(out_uri)  # the disk may be full of them
    return extract_video(
        video_uri,
        out_uri,
        spec=spec,
        encode_spec=encode_spec,
        video_id=video_id,
        source_crc32c=source_crc32c,
    )

"""Arrow schemas of the tables: manifest, questions, ledger and index."""

from __future__ import annotations

import pyarrow as pa

from cope_prep.schemas.specs import SCHEMA_VERSION

_VERSION = {"cope_prep.schema_version": str(SCHEMA_VERSION)}


def _field(name: str, dtype: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable=nullable)


MANIFEST = pa.schema(
    [
        _field("video_id", pa.string()),
        _field("video_key", pa.string()),
        _field("uri", pa.string()),
        _field("subset", pa.string()),
        _field("size_bytes", pa.int64()),
        _field("version", pa.string()),
    ],
    metadata=_VERSION,
)
"""One row a source video: the fields of VideoRecord."""

QUESTIONS = pa.schema(
    [
        _field("question_id", pa.string()),
        _field("video_id", pa.string()),
        _field("subset", pa.string()),
        _field("data_source", pa.string()),
        _field("kind", pa.string()),
        _field(
            "turns",
            pa.list_(
                pa.field(
                    "turn",
                    pa.struct([_field("from", pa.string()), _field("value", pa.string())]),
                    nullable=False,
                )
            ),
        ),
        _field("json_path", pa.string()),
        _field("json_sha256", pa.string()),
    ],
    metadata=_VERSION,
)
"""One row a QA record: the fields of QARecord."""

LEDGER = pa.schema(
    [
        _field("video_id", pa.string()),
        _field("video_key", pa.string()),
        _field("stage", pa.string()),  # reencode, extract
        _field("spec_hash", pa.string()),
        _field("status", pa.string()),  # ok, partial, failed
        _field("error_class", pa.string()),  # empty when ok
        _field("error_message", pa.string()),
        _field("notes", pa.list_(pa.field("note", pa.string(), nullable=False))),
        _field("source_size_bytes", pa.int64()),  # of the stage's input
        _field("source_version", pa.string()),
        _field("source_sha256", pa.string()),  # reencode only; else empty
        _field("output_uri", pa.string()),  # empty when failed
        _field("output_bytes", pa.int64()),
        _field("output_crc32c", pa.uint32()),
        _field("num_frames", pa.int64()),
        _field("num_gops", pa.int64()),
        _field("duration_s", pa.float64()),  # of the re-encoded video
        _field("wall_s", pa.float64()),
        _field("cpu_s", pa.float64()),
        _field("attempts", pa.int32()),
        _field("finished_unix_s", pa.float64()),
        # Of the source video, by the re-encoder's probe; null in rows of other stages, of failures, and older ones.
        _field("source_codec", pa.string(), nullable=True),
        _field("source_width_px", pa.int32(), nullable=True),  # as decoded, before it is turned
        _field("source_height_px", pa.int32(), nullable=True),
        _field("source_fps", pa.float64(), nullable=True),  # by its header, as the duration
        _field("source_duration_s", pa.float64(), nullable=True),
        _field(
            "node", pa.string(), nullable=True
        ),  # host name of the machine that worked on it; null in older rows
        _field(
            "software", pa.string(), nullable=True
        ),  # versions of what made the output, as JSON; null in older rows
        # Of the file that source_sha256 is of, which may have come after the manifest; reencode only.
        _field("source_hashed_bytes", pa.int64(), nullable=True),
    ],
    metadata=_VERSION,
)
"""One row a video and stage; when a video has several, the last finished one counts."""

SOURCE_COLUMNS = (
    "source_codec",
    "source_width_px",
    "source_height_px",
    "source_fps",
    "source_duration_s",
)
"""The columns of LEDGER that say what the source video was like."""

QUARANTINE = pa.schema(
    [
        _field("video_id", pa.string()),
        _field("source_size_bytes", pa.int64()),  # of the source video, by the manifest
        _field("source_version", pa.string()),
        _field("is_released", pa.bool_()),
        _field("stage", pa.string()),  # reencode, extract; empty if a user has added it
        _field("error_class", pa.string()),  # empty if a user has added it
        _field("reason", pa.string()),
        _field("time_limit_s", pa.float64(), nullable=True),  # of a TimeLimitError
        _field("memory_limit_bytes", pa.int64(), nullable=True),  # of a MemoryLimitError
        _field("recorded_unix_s", pa.float64()),
    ],
    metadata=_VERSION,
)
"""One row a video that no run is to try, or that was released again; the last recorded one counts."""


def _per_window(name: str, dtype: pa.DataType) -> pa.Field:
    return _field(name, pa.list_(pa.field("window", dtype, nullable=False)))


INDEX = pa.schema(
    [
        _field("shard", pa.string()),  # file name, for instance shard-00000.tar
        _field("key", pa.string()),
        _field("video_id", pa.string()),
        _field("subset", pa.string()),
        _field("gop_index", pa.int32()),
        _field("start_s", pa.float64()),
        _field("num_frames", pa.int32()),
        _field("num_windows", pa.int32()),
        _field("width_px", pa.int32()),
        _field("height_px", pa.int32()),
        _field("offset_bytes", pa.int64()),  # of the sample's first tar header in the shard
        _field("size_bytes", pa.int64()),  # headers and padding of all members included
        _field("crc32c", pa.uint32()),  # of those bytes
        _field(
            "members",
            pa.list_(
                pa.field(
                    "member",
                    pa.struct(
                        [
                            _field("name", pa.string()),  # without the key: iframe.jpg, residual.00.jpg
                            _field("offset_bytes", pa.int64()),  # of the content, in the shard
                            _field("size_bytes", pa.int64()),
                        ]
                    ),
                    nullable=False,
                )
            ),
        ),
        _field("iframe_bytes", pa.int32()),
        _field("iframe_packet_bytes", pa.int32()),
        _field("iframe_psnr_y_db", pa.float32()),
        _per_window("motion_mean_px", pa.float32()),
        _per_window("motion_p95_px", pa.float32()),
        _per_window("zero_motion_share", pa.float32()),
        _per_window("intra_share", pa.float32()),
        _per_window("residual_energy", pa.float32()),
        _per_window("residual_nonzero_share", pa.float32()),
        _per_window("clipped_vectors", pa.int32()),
        _per_window("clipped_residuals", pa.int32()),
        _per_window("psnr_y_db", pa.float32()),
        _per_window("max_error", pa.int32()),
        _per_window("packet_bytes", pa.int32()),
        _field("motion_bytes", pa.int32()),  # stored size of motion and intra members together
        _field("residual_bytes", pa.int32()),  # stored size of all residual members together
    ],
    metadata=_VERSION,
)
"""One row a sample, in the order of the shards."""

PROVENANCE = pa.schema(
    [
        _field("video_id", pa.string()),
        _field("video_key", pa.string()),
        _field("shard", pa.string()),
        _field("offset_bytes", pa.int64()),  # of the video's first sample in the shard
        _field("size_bytes", pa.int64()),  # of all its samples, which are side by side
        _field("num_gops", pa.int32()),
        _field("source_uri", pa.string(), nullable=True),  # by the manifest, without credentials
        _field("source_bytes", pa.int64(), nullable=True),
        _field("source_sha256", pa.string(), nullable=True),
        _field("reencode_hash", pa.string(), nullable=True),  # of the spec, as the folder is called
        _field("reencoded_bytes", pa.int64(), nullable=True),
        _field("reencoded_crc32c", pa.uint32(), nullable=True),
        _field("reencode_software", pa.string(), nullable=True),  # JSON of name -> version
        _field("extract_hash", pa.string(), nullable=True),
        _field("extracted_bytes", pa.int64(), nullable=True),
        _field("extracted_crc32c", pa.uint32(), nullable=True),
        _field("extract_software", pa.string(), nullable=True),
    ],
    metadata=_VERSION,
)
"""One row a video, in the order of the shards: from which bytes its samples were made, and with what.

Null is what was not recorded: by an older version, or because the shards were copied without their ledgers.
"""

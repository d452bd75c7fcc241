"""Is one sample what it claims? From the cheap to the costly: tar bytes, index row, members, arrays, anchors.

    bytes      crc32c against the index
    .json      schema version, spec hash, ids that agree with the key
    index row  computed again from the bytes, column by column
    members    all there, in order
    arrays     decode_gop; size and times as the specs say
    anchors    rebuilt, each against its checksum

Every finding goes to the log; nothing here raises for a bad sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from cope_prep.pipeline.index_rows import index_row, read_json
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.rebuild import rebuild_anchors
from cope_prep.pipeline.tar import SampleSpan
from cope_prep.pipeline.verify_report import ProblemLog
from cope_prep.schemas import wire
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.errors import CopePrepError, SchemaVersionError
from cope_prep.schemas.records import GopRecord, sample_key, video_key


class SampleChecker:
    """The checks of one sample, with what they need to know of its dataset."""

    def __init__(self, layout: Layout, log: ProblemLog) -> None:
        self._specs = layout.specs
        self._log = log
        self._spec_hash = layout.specs.hash_of("extract")

    def check(
        self, block: bytes, span: SampleSpan, row: Mapping[str, Any] | None, *, shard: str
    ) -> tuple[GopRecord | None, dict[str, Any] | None]:
        """The record and the index row of a sample with the bytes `block`, each None if it has none.

        `row` is its row in index.parquet, None if it is not there.
        """
        log = self._log
        if row is not None and google_crc32c.value(block) != row["crc32c"]:
            log.add(
                "checksum", f"its bytes have crc32c {google_crc32c.value(block):08x}, not {row['crc32c']:08x}"
            )
        names = [member.name for member in span.members]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            log.add("duplicate-key", f"is in the shard twice in a row ({', '.join(twice)})")
            return None, None
        if "json" not in names:
            log.add("members", "lacks json")
            return None, None
        try:
            about = read_json(block, span)
            subset = row["subset"] if row is not None else ""
            values = index_row(block, span, about, shard=shard, subset=subset)
            found_row = pa.Table.from_pylist([values], schema=INDEX).to_pylist()[0]
        except CopePrepError as exc:
            log.add("format", str(exc))
            return None, None
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as exc:
            log.add("format", f"its .json holds a figure of a wrong type ({exc})")
            return None, None
        if row is not None and found_row != row:
            columns = [name for name in INDEX.names if found_row[name] != row[name]]
            # The checksum's own problem is listed already.
            if columns != ["crc32c"]:
                log.add("index", f"the index has another {', '.join(columns)} for it")
        return self._decode(block, span, about, names), found_row

    def rebuild(self, record: GopRecord) -> np.ndarray | None:
        """The anchors of a record, uint8 [num_anchors, 3H/2, W]; None if they do not rebuild."""
        try:
            return rebuild_anchors(record)
        except CopePrepError as exc:
            self._log.add("rebuild", str(exc))
        except Exception as exc:  # crafted content: whatever the codec libraries make of it
            self._log.add("rebuild", f"cannot be rebuilt ({type(exc).__name__}: {exc})")
        return None

    def _decode(
        self, block: bytes, span: SampleSpan, about: Mapping[str, Any], names: list[str]
    ) -> GopRecord | None:
        log = self._log
        if about.get("spec_hash") != self._spec_hash:
            log.add("spec-hash", f"was made with specs {about.get('spec_hash')}, not {self._spec_hash}")
        else:
            missing = self._check_members(about, names)
            if missing:
                return None
        contents = {
            member.name: block[start : start + member.size_bytes]
            for member in span.members
            for start in (member.offset_bytes - span.offset_bytes,)
        }
        try:
            record = wire.decode_gop(contents, key=span.key)
        except SchemaVersionError as exc:
            log.add("schema-version", str(exc))
            return None
        except CopePrepError as exc:
            log.add("format", str(exc))
            return None
        except Exception as exc:  # as in rebuild
            log.add("format", f"cannot be decoded ({type(exc).__name__}: {exc})")
            return None
        if record.key != span.key or about.get("key") != span.key:
            own = sample_key(video_key(record.video_id), record.gop_index)
            log.add("format", f"calls itself {about.get('key')}; its video and GOP make {own}")
            return None
        return record if self._fits_specs(record) else None

    def _check_members(self, about: Mapping[str, Any], names: list[str]) -> bool:
        """True if a member is missing."""
        num_windows = about.get("num_windows")
        if (
            not isinstance(num_windows, int)
            or not 0 <= num_windows <= len(names) + self._specs.encode.gop_size
        ):
            return False  # decode_gop will say so
        expected = wire.member_names(self._specs.extract, num_windows)
        missing = [name for name in expected if name not in names]
        extra = [name for name in names if name not in expected]
        if missing or extra:
            parts = [f"lacks {', '.join(missing)}"] if missing else []
            parts += [f"also holds {', '.join(extra)}"] if extra else []
            self._log.add("members", " and ".join(parts))
        elif names != expected:
            position = next(i for i, name in enumerate(names) if name != expected[i])
            self._log.add("members", f"has {names[position]} where {expected[position]} belongs")
        return bool(missing)

    def _fits_specs(self, record: GopRecord) -> bool:
        encode, extract = self._specs.encode, self._specs.extract
        expected: dict[str, Any] = {
            "fps": encode.fps,
            "window": extract.window,
            "block_px": extract.block_px,
            "compensation": encode.codec if extract.window == 1 else "warp",
            "residual_spec": extract.residual,
            "start_s": record.gop_index * encode.gop_size / encode.fps,
        }
        if encode.fit != "keep":
            expected |= {"width_px": encode.width_px, "height_px": encode.height_px}
        wrong = [
            f"{name} is {getattr(record, name)}, not {value}"
            for name, value in expected.items()
            if getattr(record, name) != value
        ]
        if record.num_frames > encode.gop_size:
            wrong.append(f"num_frames is {record.num_frames}, more than a GOP of {encode.gop_size}")
        if max(record.width_px, record.height_px) > 4096:
            wrong.append(f"is {record.width_px} x {record.height_px}, more than an EncodeSpec allows")
        if wrong:
            self._log.add("format", f"does not fit the specs: {'; '.join(wrong)}")
        return not wrong

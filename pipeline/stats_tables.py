"""The tables of a dataset as DuckDB sees them: views over local Parquet files, checked first.

    manifest, questions, gops (the index)    where they lie; of a remote one, a copy of the columns in question
    recorded                                 the last ledger row of each video and stage, both stages together
    ends                                     those of them that speak of the sources as they are listed

A remote table is copied one row group at a time into a temporary file: memory stays bounded, the column `members`
is neither decoded nor kept (it may travel all the same: s3fs reads ahead in blocks of 50 MB), and no thread of
DuckDB's holds a Python file (what comes of that: pipeline/parquet.py). A table that is not there is an empty one;
the caller says what is missing for it.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.ledger import Ledger
from cope_prep.pipeline.parquet import PARQUET_THREADS, check_schema, open_parquet
from cope_prep.schemas.arrow import INDEX, LEDGER, MANIFEST, QUESTIONS, SOURCE_COLUMNS
from cope_prep.schemas.errors import (
    ConfigurationError,
    CopePrepError,
    FormatError,
    SourceNotFoundError,
    StorageError,
)

if TYPE_CHECKING:
    import duckdb

STAGES = ("reencode", "extract")
MEMORY_LIMIT = "512MB"
"""DuckDB's own: beyond it, it writes to the temporary folder. A dataset of 178,510 videos stays below."""
MAX_THREADS = 4
"""Each adds about 30 MB."""

INDEX_COLUMNS = (
    "video_id",
    "subset",
    "num_frames",
    "num_windows",
    "width_px",
    "height_px",
    "size_bytes",
    "iframe_bytes",
    "motion_mean_px",
    "motion_p95_px",
    "zero_motion_share",
    "intra_share",
    "residual_energy",
    "residual_nonzero_share",
    "clipped_vectors",
    "clipped_residuals",
    "psnr_y_db",
    "motion_bytes",
    "residual_bytes",
)
_COLUMNS = {
    "manifest": (MANIFEST, ("video_id", "subset", "size_bytes", "version")),
    "questions": (QUESTIONS, ("video_id", "kind")),
    "gops": (INDEX, INDEX_COLUMNS),
}
_LEDGER_COLUMNS = (
    "video_id",
    "stage",
    "status",
    "error_class",
    "error_message",
    "source_size_bytes",
    "source_version",
    "source_sha256",
    "output_bytes",
    "duration_s",
    *SOURCE_COLUMNS,
)
_ENDS = """
CREATE VIEW ends AS
WITH reencoded AS (
    SELECT recorded.* FROM recorded LEFT JOIN manifest USING (video_id)
    WHERE stage = 'reencode' AND (
        manifest.video_id IS NULL
        OR (source_size_bytes = manifest.size_bytes AND source_version = manifest.version)
    )
)
FROM reencoded
UNION ALL
SELECT extracted.*
FROM (FROM recorded WHERE stage = 'extract') AS extracted LEFT JOIN reencoded USING (video_id)
WHERE NOT $has_reencode OR (
    reencoded.status <> 'failed'
    AND extracted.source_size_bytes = reencoded.output_bytes
    AND extracted.source_version = coalesce(nullif(reencoded.source_sha256, ''), reencoded.source_version)
)
"""
"""A source may have been replaced since: what jobs/status_figures.py says of its ends, in SQL. Without a ledger of
reencode nothing tells of what the extract stage's inputs were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """A connection in which the views are, and which of them have something behind them."""

    connection: duckdb.DuckDBPyConnection
    has_manifest: bool
    has_questions: bool
    has_index: bool
    index_path: str
    """A local Parquet file with what `gops` has; without an index, an empty one."""
    stages: tuple[str, ...]
    """Those whose ledgers have rows."""

    def arrays(self, query: str) -> dict[str, np.ndarray]:
        """The columns of a query as arrays, in any order of the rows."""
        found = self.connection.execute(query).fetchnumpy()
        return {name: np.asarray(column) for name, column in found.items()}

    def rows(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of a query by column. `$name` in it stands for a parameter."""
        found = self.connection.execute(query, parameters) if parameters else self.connection.execute(query)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@contextlib.contextmanager
def open_tables(layout: Layout) -> Iterator[Tables]:
    """The tables of a dataset; the temporary folder goes at the end.

    Raises:
        ConfigurationError: duckdb is not installed, or there is nothing of a dataset.
        FormatError, SchemaVersionError: a table is damaged, or of a newer version.
        StorageError: the store could not answer, or memory or the temporary folder did not do.
    """
    duckdb = import_duckdb()
    with tempfile.TemporaryDirectory(prefix="cope-prep-stats-") as folder:
        config: dict[str, Any] = {
            "threads": min(MAX_THREADS, os.cpu_count() or 1),
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": os.path.join(folder, "spill"),
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,  # nothing is fetched behind the user's back
            "autoload_known_extensions": False,
        }
        try:
            with duckdb.connect(":memory:", config=config) as connection:
                yield _fill(connection, layout, folder)
        except (duckdb.Error, pa.ArrowException, OSError) as exc:
            raise _explained(exc, layout, duckdb) from exc


def import_duckdb() -> Any:
    """The package duckdb.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import duckdb
    except ImportError as exc:
        raise ConfigurationError(
            "cope-prep stats", "duckdb is not installed", "Run: pip install 'cope-prep[dashboard]'"
        ) from exc
    return duckdb


def _explained(exc: Exception, layout: Layout, duckdb: Any) -> CopePrepError:
    """Which table an error of DuckDB's or Arrow's is about: they do not say, so each is read once more."""
    what = " ".join(str(exc).split()) or type(exc).__name__
    if isinstance(exc, duckdb.OutOfMemoryException):
        return StorageError(layout.dataset, f"its tables are too large for the memory ({what})")
    for name, uri in _uris(layout).items():
        if storage.is_local(uri) and os.path.exists(path := storage.local_path(uri)):
            try:
                parquet = open_parquet(path)
                for group in range(parquet.num_row_groups):
                    columns = list(_COLUMNS[name][1])
                    parquet.read_row_group(group, columns=columns, use_threads=PARQUET_THREADS)
            except (pa.ArrowException, OSError) as damage:
                return _damaged(name, uri, damage)
    if isinstance(exc, (duckdb.IOException, OSError)):
        return StorageError(
            tempfile.gettempdir(),
            f"the tables of {layout.dataset} cannot be put there ({what})",
            "Make room, or set TMPDIR to another folder.",
        )
    return FormatError(layout.dataset, f"its tables cannot be evaluated ({what})")


_REMEDIES = {
    "manifest": "Make it again with cope-prep manifest.",
    "questions": "Make it again with cope-prep manifest.",
    "gops": "Delete it, and run cope-prep shard with the flags of the run: the shards' own rows make it again.",
}


def _damaged(name: str, uri: str, exc: Exception) -> FormatError:
    return FormatError(
        uri, f"is not a readable Parquet table ({' '.join(str(exc).split())})", _REMEDIES[name]
    )


def _uris(layout: Layout) -> dict[str, str]:
    return {"manifest": layout.manifest, "questions": layout.questions, "gops": layout.index}


def _fill(connection: duckdb.DuckDBPyConnection, layout: Layout, folder: str) -> Tables:
    found: dict[str, bool] = {}
    paths: dict[str, str] = {}
    for name, uri in _uris(layout).items():
        schema, columns = _COLUMNS[name]
        path = _local_table(name, uri, folder=folder)
        found[name] = path is not None
        if path is None:
            path = os.path.join(folder, f"{name}.parquet")
            pq.write_table(_narrow(schema, columns).empty_table(), path)
        paths[name] = path
        _create_view(connection, name, path)
    _check_unique(connection, layout.manifest)
    path = os.path.join(folder, "ends.parquet")
    stages = _write_ledgers(layout, path)
    pa.default_memory_pool().release_unused()  # Arrow would keep it, beside DuckDB's own
    _create_view(connection, "recorded", path)
    connection.execute(_ENDS.replace("$has_reencode", str("reencode" in stages)))
    if not stages and not found["manifest"] and not found["gops"]:
        raise ConfigurationError(
            layout.dataset,
            "is no dataset: it has no manifest.parquet, ledger or index",
            f"Run: cope-prep manifest files DIR {layout.dataset}",
        )
    return Tables(
        connection=connection,
        has_manifest=found["manifest"],
        has_questions=found["questions"],
        has_index=found["gops"],
        index_path=paths["gops"],
        stages=stages,
    )


def _check_unique(connection: duckdb.DuckDBPyConnection, uri: str) -> None:
    query = "SELECT video_id, count(*) FROM manifest GROUP BY video_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    for video_id, number in connection.execute(query).fetchall():
        raise FormatError(uri, f"lists {video_id} {number} times", "Make it again with cope-prep manifest.")


def _write_ledgers(layout: Layout, path: str) -> tuple[str, ...]:
    """The last row of each video, stage after stage, as one Parquet file; the stages that have rows."""
    stages = []
    # It lives for seconds: packing it would take longer than it saves.
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(path, _narrow(LEDGER, _LEDGER_COLUMNS), **options) as writer:
        for stage in STAGES:
            ends = Ledger(layout.ledger(stage)).read(_LEDGER_COLUMNS)
            writer.write_table(ends)
            if len(ends):
                stages.append(stage)
    return tuple(stages)


class _Watched:
    """A file of a store, and the error that the store's client had in reading it, if any.

    Arrow raises OSError of damage, and clients of stores raise it of the network.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, *size: int) -> bytes:
        try:
            return self._file.read(*size)
        except Exception as exc:
            self.error = exc
            raise


def _local_table(name: str, uri: str, *, folder: str) -> str | None:
    """Path of a local Parquet file with at least the columns in question; None if there is no such table."""
    schema, columns = _COLUMNS[name]
    watched: _Watched | None = None
    try:
        with storage.open_read(uri) as file:
            watched = _Watched(file)
            parquet = open_parquet(watched)
            check_schema(uri, parquet.schema_arrow, schema)
            if storage.is_local(uri):
                return storage.local_path(uri)
            path = os.path.join(folder, posixpath.basename(uri))
            with pq.ParquetWriter(path, _narrow(parquet.schema_arrow, columns)) as writer:
                for group in range(parquet.num_row_groups):
                    rows = parquet.read_row_group(group, columns=list(columns), use_threads=PARQUET_THREADS)
                    writer.write_table(rows.select(list(columns)))
            return path
    except SourceNotFoundError:
        return None
    except CopePrepError:
        raise
    except (pa.ArrowException, OSError) as exc:
        if isinstance(exc, OSError) and (
            exc.errno is not None or watched is None or watched.error is not None
        ):
            raise StorageError(uri, f"cannot be read ({exc})") from exc
        raise _damaged(name, uri, exc) from exc
    except Exception as exc:  # of the store: aiohttp's and botocore's are no OSErrors
        raise StorageError(uri, f"cannot be read ({exc})") from exc


def _narrow(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in columns])


def _create_view(connection: duckdb.DuckDBPyConnection, name: str, path: str) -> None:
    # DuckDB takes a path for a pattern: its special characters must stand in brackets, and quotes double.
    pattern = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in os.path.abspath(path))
    quoted = pattern.replace("'", "''")
    # Else a folder called `subset=x` would be a column, and replace the file's own.
    connection.execute(
        f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{quoted}', hive_partitioning = false)"
    )

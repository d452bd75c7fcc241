"""The videos of a dataset to filter, sort and page through, all of it in DuckDB: the dashboard's Explore.

    open_videos(layout) -> VideoTable -> find(filters, sort, page) -> rows of that page, and how many match

What a user types reaches DuckDB as a bound parameter only; names of columns are checked against the table's own.
A DuckDB connection is not to be shared by threads: each call works on a cursor of its own, so one VideoTable serves
all sessions of the dashboard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv

from cope_prep.pipeline.explore_table import Column, read_videos_table
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.stats_tables import import_duckdb
from cope_prep.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    import duckdb

MAX_CATEGORIES = 200
"""Of more different values, the most frequent are offered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """A number within bounds, both inclusive; of a video without that number, no bound holds."""

    column: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contains:
    """The text is in the value somewhere, be it in capitals or not. No character of it is special."""

    column: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOf:
    """The value is one of these; None stands for: not known."""

    column: str
    values: tuple[str | None, ...]


Filter = Between | Contains | OneOf


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One page of what matches."""

    num_matches: int
    """On all pages."""
    rows: pa.Table
    """Of this page: all columns, or those asked for."""


class VideoTable:
    """One row a video."""

    def __init__(self, columns: Sequence[Column], table: pa.Table) -> None:
        self.columns = {column.name: column for column in columns}
        self.num_videos = len(table)
        # temp_directory: else it would make a folder .tmp where the user stands.
        self._connection: duckdb.DuckDBPyConnection = import_duckdb().connect(
            ":memory:", config={"temp_directory": "", "autoload_known_extensions": False}
        )
        self._connection.register("source", table)
        self._connection.execute("CREATE TABLE videos AS SELECT * FROM source")
        self._connection.unregister("source")

    def find(
        self,
        filters: Sequence[Filter] = (),
        *,
        sort: str = "video_id",
        descending: bool = False,
        offset: int = 0,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> Found:
        """The videos that pass all filters; what is not known comes last, equals in order of their ids.

        Raises:
            ConfigurationError: there is no such column, or a filter is not for its kind.
        """
        where, parameters = self._where(filters)
        names = list(self.columns) if columns is None else list(columns)
        shown = ", ".join(self._quoted(name) for name in names)
        direction = "DESC" if descending else "ASC"
        order = f"{self._quoted(sort)} {direction} NULLS LAST, video_id"
        bounds = "" if limit is None else "LIMIT $limit OFFSET $offset"
        paging = {} if limit is None else {"limit": limit, "offset": offset}
        rows = self._ask(
            f"SELECT {shown} FROM videos {where} ORDER BY {order} {bounds}", {**parameters, **paging}
        )
        (num_matches,) = self._ask(f"SELECT count(*) AS number FROM videos {where}", parameters)["number"]
        return Found(num_matches=num_matches.as_py(), rows=rows)

    def csv(
        self, filters: Sequence[Filter] = (), *, sort: str = "video_id", descending: bool = False
    ) -> bytes:
        """All that matches as CSV in UTF-8, headed by the names of the columns.

        Raises:
            ConfigurationError: as find.
        """
        rows = self.find(filters, sort=sort, descending=descending).rows
        names = [self.columns[name].csv_name or name for name in rows.column_names]
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(rows.rename_columns(names), sink)
        return sink.getvalue().to_pybytes()

    def categories(self, column: str) -> tuple[tuple[str | None, int], ...]:
        """The values of a column with their numbers of videos, the most frequent first, at most MAX_CATEGORIES."""
        name = self._quoted(column)
        found = self._ask(
            f"SELECT {name} AS value, count(*) AS number FROM videos GROUP BY ALL"
            f" ORDER BY number DESC, value LIMIT {MAX_CATEGORIES}"
        )
        return tuple((row["value"], row["number"]) for row in found.to_pylist())

    def bounds(self, column: str) -> tuple[float, float] | None:
        """Least and largest number of a column; None if no video has one."""
        name = self._quoted(column)
        (row,) = self._ask(f"SELECT min({name}) AS low, max({name}) AS high FROM videos").to_pylist()
        return None if row["low"] is None else (float(row["low"]), float(row["high"]))

    def _where(self, filters: Sequence[Filter]) -> tuple[str, dict[str, Any]]:
        clauses, parameters = [], {}
        for number, one in enumerate(filters):
            name, key = self._quoted(one.column), f"p{number}"
            is_number = self.columns[one.column].kind == "number"
            if is_number != isinstance(one, Between):
                raise ConfigurationError(one.column, f"cannot be filtered by {type(one).__name__}")
            match one:
                case Between():
                    for bound, sign in ((one.low, ">="), (one.high, "<=")):
                        if bound is not None:
                            key = f"p{len(parameters)}_{number}"
                            clauses.append(f"{name} {sign} ${key}")
                            parameters[key] = bound
                case Contains():
                    clauses.append(f"contains(lower({name}), lower(${key}))")
                    parameters[key] = one.text
                case OneOf():
                    known = f"list_contains(${key}::VARCHAR[], {name})"
                    clauses.append(f"({known} OR {name} IS NULL)" if None in one.values else known)
                    parameters[key] = [value for value in one.values if value is not None]
        return ("WHERE " + " AND ".join(clauses) if clauses else ""), parameters

    def _quoted(self, column: str) -> str:
        if column not in self.columns:
            raise ConfigurationError(column, "is no column", f"There are: {', '.join(self.columns)}.")
        return f'"{column}"'

    def _ask(self, query: str, parameters: dict[str, Any] | None = None) -> pa.Table:
        with self._connection.cursor() as cursor:
            return cursor.sql(query, params=parameters or None).to_arrow_table()


def open_videos(layout: Layout) -> VideoTable:
    """The videos of a dataset; it stays as it is when the dataset goes on.

    Raises:
        ConfigurationError, FormatError, StorageError: as open_tables.
    """
    return VideoTable(*read_videos_table(layout))

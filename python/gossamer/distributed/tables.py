"""Prompts as they lie in files, JSON objects a line or a Parquet table, read from any row on."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from ..errors import GossamerError
from ..generation.batch_rows import Row, read_row
from ..hashes import sha256


class Table(Protocol):
    """A file of rows.

    Attributes:
        rows: How many there are.
        digest: SHA-256 of the file.
    """

    rows: int
    digest: str

    def offset(self, first: int) -> int:
        """Returns what `read` needs to know of a row to find it."""

    def read(self, first: int, count: int, offset: int) -> Iterator[Row]:
        """Gives rows."""


def open_table(path: Path, *, measured: bool = True) -> Table:
    """Opens a file of rows.

    Args:
        path: A table where it is called *.parquet; JSON objects a line otherwise.
        measured: Whether it is read through once; otherwise there is `read` alone.

    Raises:
        GossamerError: it cannot be read.
    """
    try:
        return _Parquet(path, measured) if path.suffix == ".parquet" else _Lines(path, measured)
    except (OSError, pa.ArrowException) as error:
        raise GossamerError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


class _Lines:
    """JSON objects a line."""

    def __init__(self, path: Path, measured: bool) -> None:
        self._path = path
        self._offsets = array("q")
        self.digest = ""
        if measured:
            digest, place = hashlib.sha256(), 0
            with path.open("rb") as file:
                for line in file:
                    digest.update(line)
                    self._offsets.append(place)
                    place += len(line)
            self.digest = digest.hexdigest()
        self.rows = len(self._offsets)

    def offset(self, first: int) -> int:
        return self._offsets[first]

    def read(self, first: int, count: int, offset: int) -> Iterator[Row]:  # noqa: ARG002 - the place says it
        with self._path.open("rb") as file:
            file.seek(offset)
            for _ in range(count):
                yield read_row(file.readline())


class _Parquet:
    """A table; what is null in it is not there."""

    def __init__(self, path: Path, measured: bool) -> None:
        self._file = pq.ParquetFile(path)
        self.rows: int = self._file.metadata.num_rows
        self.digest = sha256(path) if measured else ""

    def offset(self, first: int) -> int:  # noqa: ARG002 - it is found by its number
        return 0

    def read(self, first: int, count: int, offset: int) -> Iterator[Row]:  # noqa: ARG002
        begin = 0
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            low, high = max(first - begin, 0), min(first + count - begin, size)
            if low < high:
                for row in self._file.read_row_group(group).slice(low, high - low).to_pylist():
                    yield _without_nulls(row)
            begin += size


def _without_nulls(value: Any) -> Any:
    """A row without what is null, in messages too."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def write_parquet(parts: list[Path], whole: IO[bytes], dst: Path) -> None:
    """Writes files of JSON objects as one table, whose columns are all that any row has.

    Raises:
        GossamerError: rows differ in the type of a column.
    """
    if not parts:
        pq.write_table(pa.table({"line": pa.array([], pa.int64())}), whole)
        return
    try:
        schema = pa.unify_schemas([_read(path).schema for path in parts], promote_options="permissive")
        with pq.ParquetWriter(whole, schema) as writer:
            for path in parts:
                writer.write_table(_read(path, schema).select(schema.names))
    except pa.ArrowException as error:
        raise GossamerError(f"{dst}: {str(error).splitlines()[0]}; lines of JSON, as in *.jsonl, may differ") from None


def _read(path: Path, schema: Any = None) -> Any:
    """A file of JSON objects as a table."""
    whole = pa.json.ReadOptions(block_size=path.stat().st_size)  # no object lies in two blocks
    return pa.json.read_json(path, whole, pa.json.ParseOptions(explicit_schema=schema))

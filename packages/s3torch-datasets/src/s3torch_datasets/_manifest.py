"""Reads the objects of a dataset from a file: a saved manifest, or an S3 Inventory."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_plus

from s3core import S3Client, S3Exception, parse_s3_uri
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._filters import ObjectFilter
from s3torch_datasets._index import IndexBuilder, ObjectIndex
from s3torch_datasets._manifest_rows import COLUMNS, RowReader, looks_like_inventory
from s3torch_datasets._manifest_write import require_pyarrow
from s3torch_datasets._object_source import ObjectSource
from s3torch_datasets._progress import progress_bar
from s3torch_datasets._ranged_reader import RangedS3Reader
from s3torch_datasets._streaming_reader import StreamingS3Reader

_ROWS_AT_A_TIME = 10_000
_WINDOW_BYTES = 64 * 2**20
_BUFFER_BYTES = 2**20
_UNNAMED_COLUMNS = ("bucket", "key", "size")


class ManifestObjects:
    """The `get_dataset_objects` of `from_manifest`.

    Args:
        manifest: `s3://bucket/key` or a path: `.parquet`, `.jsonl`, `.csv`, the last two also `.gz`, or the
            `manifest.json` of an S3 Inventory.
        columns: Names of the columns of a CSV file without a header, as in an inventory's `fileSchema`.
    """

    def __init__(self, manifest: str | os.PathLike[str], columns: str | Sequence[str] | None = None) -> None:
        self.manifest = os.fspath(manifest)
        self.columns = columns.split(",") if isinstance(columns, str) else columns
        if self.manifest.startswith("s3://") and not parse_s3_uri(self.manifest)[1]:
            raise ValueError(f"{self.manifest!r} names a bucket and no manifest")

    def __call__(self, client: S3Client) -> Iterable[S3BucketKeyData]:
        """Yields the objects of the manifest."""
        return self._objects(client, self.manifest, self.columns, None)

    def make_index(self, client: S3Client, object_filter: ObjectFilter | None, *, progress: bool) -> ObjectIndex:
        """Reads the manifest."""
        builder = IndexBuilder()
        with progress_bar(f"Reading {self.manifest}", " objects", shown=progress) as bar:
            block: list[S3BucketKeyData] = []
            for one in self._objects(client, self.manifest, self.columns, object_filter):
                block.append(one)
                if len(block) == _ROWS_AT_A_TIME:
                    builder.extend(block)
                    bar.update(len(block))
                    block = []
            builder.extend(block)
            bar.update(len(block))
        return builder.build()

    def _objects(
        self, client: S3Client, name: str, columns: Sequence[str] | None, kept: ObjectFilter | None
    ) -> Iterator[S3BucketKeyData]:
        try:
            yield from self._objects_of_file(client, name, columns, kept)
        except (ValueError, EOFError, RecursionError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
            if name in str(error):
                raise
            raise ValueError(f"{name} cannot be read: {error}") from error

    def _objects_of_file(
        self, client: S3Client, name: str, columns: Sequence[str] | None, kept: ObjectFilter | None
    ) -> Iterator[S3BucketKeyData]:
        with _open(client, name) as file:
            plain: BinaryIO = file
            ending = name
            if name.endswith(".gz"):
                ending = name.removesuffix(".gz")
                plain = cast(BinaryIO, gzip.GzipFile(fileobj=file))
            if ending.endswith(".parquet"):
                yield from _parquet_objects(name, plain, columns is not None, kept)
            elif ending.endswith((".jsonl", ".ndjson")):
                yield from RowReader(name, COLUMNS, False, kept).objects(_json_rows(name, plain))
            elif ending.endswith(".csv"):
                yield from _csv_objects(name, plain, columns, kept)
            elif os.path.basename(ending) == "manifest.json":
                yield from self._inventory_objects(client, name, plain, kept)
            else:
                raise ValueError(
                    f"{name}: a manifest ends in .parquet, .jsonl or .csv (the last two also in .gz), or is the "
                    "manifest.json of an S3 Inventory"
                )

    def _inventory_objects(
        self, client: S3Client, name: str, file: BinaryIO, kept: ObjectFilter | None
    ) -> Iterator[S3BucketKeyData]:
        inventory = json.load(file)
        try:
            bucket = inventory["destinationBucket"].rpartition(":")[2]
            columns = inventory["fileSchema"].split(",")
            keys = [entry["key"] for entry in inventory["files"]]
            kind = inventory["fileFormat"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} is not the manifest.json of an S3 Inventory: it lacks {error}") from error
        if kind not in ("CSV", "Parquet"):
            raise ValueError(f"{name}: an inventory in {kind} cannot be read; have S3 write CSV or Parquet")
        for key in keys:
            yield from self._objects(client, f"s3://{bucket}/{key}", columns, kept)


def _open(client: S3Client, name: str) -> BinaryIO:
    """Opens a file so that it is not held in memory as a whole: a manifest may be larger than the index it makes."""
    if not name.startswith("s3://"):
        return open(name, "rb")
    source = ObjectSource(client, S3BucketKeyData(*parse_s3_uri(name)))
    arguments = (source.bucket, source.key, source.get_object_info, source.get_stream)
    if name.endswith(".parquet"):
        return RangedS3Reader(*arguments)
    # A buffer in front, whose `readline` is many times faster.
    return io.BufferedReader(cast(io.RawIOBase, StreamingS3Reader(*arguments, window=_WINDOW_BYTES)), _BUFFER_BYTES)


def _json_rows(name: str, file: BinaryIO) -> Iterator[Sequence[Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield [row.get(column) for column in COLUMNS]
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{name}: line {number} is not a JSON object: {error}") from error


def _csv_objects(
    name: str, file: BinaryIO, columns: Sequence[str] | None, kept: ObjectFilter | None
) -> Iterator[S3BucketKeyData]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:  # spreadsheets write a byte order mark
        rows = filter(None, csv.reader(text))  # without empty lines
        first = next(rows, None)
        if first is None:
            return
        if columns is None and "key" in [cell.strip().lower() for cell in first]:
            # A header, which no inventory has: its keys are written as they are.
            yield from RowReader(name, first, looks_like_inventory(first), kept).objects(rows)
            return
        if columns is None:
            columns = _UNNAMED_COLUMNS[: len(first)]
        if len(columns) < len(first):
            raise ValueError(
                f"{name} has {len(first)} columns and no header; name them with columns=, as the fileSchema of the "
                "inventory's manifest.json does, or give the manifest.json itself"
            )
        reader = RowReader(name, columns, True, kept)
        key = [column.strip().lower() for column in columns].index("key")
        yield from reader.objects(_decoded(chain([first], rows), key))


def _decoded(rows: Iterable[list[str]], key: int) -> Iterator[Sequence[str]]:
    """Decodes keys, which an inventory in CSV percent-encodes."""
    for row in rows:
        yield [unquote_plus(cell) if position == key else cell for position, cell in enumerate(row)]


def _parquet_objects(
    name: str, file: BinaryIO, is_inventory: bool, kept: ObjectFilter | None
) -> Iterator[S3BucketKeyData]:
    module = require_pyarrow(name)
    with _parquet_errors(name):
        parquet = module.ParquetFile(file)
        names = parquet.schema_arrow.names
    reader = RowReader(name, names, is_inventory or looks_like_inventory(names), kept)
    known = reader.known_names()
    yield from replace(reader, names=known).objects(_parquet_rows(name, parquet, known))


def _parquet_rows(name: str, parquet: Any, names: list[str]) -> Iterator[Sequence[Any]]:
    with _parquet_errors(name):
        for batch in parquet.iter_batches(_ROWS_AT_A_TIME, columns=names):
            yield from zip(*(batch.column(each).to_pylist() for each in names), strict=True)


@contextlib.contextmanager
def _parquet_errors(name: str) -> Iterator[None]:
    """Makes one error of the many that pyarrow has for a malformed file: OSError, KeyError, OverflowError, ….

    Those of the disk, which have a number, and those of S3 are left as they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, S3Exception) or getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{name} cannot be read: {error}") from error

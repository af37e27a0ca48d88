"""Saves an index as a file that other tools read: Parquet or JSON lines."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from s3core import S3Client, parse_s3_uri
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._manifest_rows import COLUMNS
from s3torch_datasets._writer import S3Writer

_ROWS_AT_A_TIME = 50_000


def write_manifest(index: ObjectIndex, destination: str, get_client: Callable[[], S3Client]) -> None:
    """Saves an index; the destination holds all of it or what it held before.

    Args:
        index: The objects.
        destination: `s3://bucket/key` or a path, ending in `.parquet`, `.jsonl` or `.jsonl.gz`.
        get_client: Makes the client for `s3://`.

    Raises:
        ValueError: The ending is another one.
        ImportError: It is Parquet and pyarrow is not installed.
    """
    if destination.endswith(".parquet"):
        write = _write_parquet
        require_pyarrow(destination)
    elif destination.endswith((".jsonl", ".ndjson")):
        write = _write_json_lines
    elif destination.endswith((".jsonl.gz", ".ndjson.gz")):
        write = _write_compressed_json_lines
    else:
        raise ValueError(f"{destination}: a manifest ends in .parquet, .jsonl or .jsonl.gz")
    with _created(destination, get_client) as file:
        write(index, file)


def require_pyarrow(source: str) -> Any:
    """Returns pyarrow's Parquet module, or says how to get it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{source}: Parquet needs pyarrow: pip install 's3torch-datasets[parquet]', or use .jsonl"
        ) from error
    return pyarrow.parquet


@contextlib.contextmanager
def _created(destination: str, get_client: Callable[[], S3Client]) -> Iterator[IO[bytes]]:
    if destination.startswith("s3://"):
        bucket, key = parse_s3_uri(destination)
        with S3Writer(get_client().put_object(bucket, key)) as writer:
            yield writer
        return
    temporary = f"{destination}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or the new name might outlive a crash of the machine without its bytes
        os.replace(temporary, destination)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _row_blocks(index: ObjectIndex) -> Iterator[dict[str, list[Any]]]:
    for first in range(0, len(index), _ROWS_AT_A_TIME):
        block: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for one in index[first : first + _ROWS_AT_A_TIME]:
            info = one.object_info
            row = (one.bucket, one.key) + ((None,) * 3 if info is None else (info.size, info.etag, info.version_id))
            for name, value in zip(COLUMNS, row, strict=True):
                block[name].append(value)
        yield block


def _write_parquet(index: ObjectIndex, file: IO[bytes]) -> None:
    import pyarrow

    text = pyarrow.string()
    types = {"bucket": pyarrow.dictionary(pyarrow.int32(), text), "size": pyarrow.int64()}
    schema = pyarrow.schema([(name, types.get(name, text)) for name in COLUMNS])
    with require_pyarrow("manifest").ParquetWriter(file, schema) as writer:
        for block in _row_blocks(index):
            writer.write_table(pyarrow.table(block, schema))


def _write_json_lines(index: ObjectIndex, file: IO[bytes]) -> None:
    for block in _row_blocks(index):
        lines = (
            json.dumps({name: value for name, value in zip(COLUMNS, row, strict=True) if value is not None})
            for row in zip(*block.values(), strict=True)
        )
        file.write("".join(f"{line}\n" for line in lines).encode())


def _write_compressed_json_lines(index: ObjectIndex, file: IO[bytes]) -> None:
    # Without a time in its header, equal manifests are equal files.
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as compressed:
        _write_json_lines(index, cast(IO[bytes], compressed))

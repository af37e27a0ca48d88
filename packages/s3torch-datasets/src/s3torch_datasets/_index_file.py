"""An index as a file that processes map: all workers of a node share one copy of it.

Layout: a magic number, the length of a JSON header, the header (buckets, and format, offset and length of each column),
then the columns, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from typing import IO

from s3torch_datasets._index import ObjectIndex, recast

_MAGIC = b"s3torch-index-1\n"
_LENGTH = struct.Struct("<Q")
_ALIGNMENT_BYTES = 64


def write_index(index: ObjectIndex, path: str) -> None:
    """Writes an index so that the path holds all of it or does not exist.

    Raises:
        OSError: There is no room, or the folder cannot be written.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write_open_index(index, file)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_open_index(index: ObjectIndex, file: IO[bytes]) -> None:
    """Writes an index to an empty file.

    Raises:
        OSError: There is no room.
    """
    columns = {name: column.cast("B") if column.nbytes else memoryview(b"") for name, column in index.columns.items()}
    layout, offset = {}, 0
    for name, column in columns.items():
        layout[name] = (index.columns[name].format, offset, column.nbytes)
        offset += -(-column.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    header = json.dumps({"buckets": index.buckets, "columns": layout}).encode()
    file.write(_MAGIC + _LENGTH.pack(len(header)) + header)
    start = _aligned(file.tell())
    for name, column in columns.items():
        file.seek(start + layout[name][1])
        file.write(column)
    file.truncate(start + offset)
    file.flush()


def map_index(path: str) -> ObjectIndex:
    """Returns the index of a file, mapped and not copied; the file may be removed afterwards.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an index.
    """
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path} is not an index of s3torch_datasets; remove it")
        return map_open_index(file.fileno())


def map_open_index(descriptor: int) -> ObjectIndex:
    """Returns the index of an open file, mapped and not copied; it may be closed afterwards.

    The position in the file, which processes that inherited it have in common, is left alone.
    """
    return index_in(memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)))


def index_in(whole: memoryview) -> ObjectIndex:
    """Returns the index that a file's content holds, which it goes on using."""
    header_at = len(_MAGIC) + _LENGTH.size
    (length,) = _LENGTH.unpack(whole[len(_MAGIC) : header_at])
    header = json.loads(bytes(whole[header_at : header_at + length]))
    start = _aligned(header_at + length)
    columns = {
        name: recast(whole[start + offset : start + offset + size], form)
        for name, (form, offset, size) in header["columns"].items()
    }
    return ObjectIndex(tuple(header["buckets"]), columns)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES

"""Reads tar archives forward, as samples: groups of members with the same name up to the first dot."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from s3core import S3Exception

_BLOCK = tarfile.BLOCKSIZE
# WebDataset's rule: everything up to the first dot of the last part of the path is the key, the rest names the field.
_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# Nothing follows their header, whatever size it says: some programs write that of the file that a link is to.
_EMPTY_TYPES = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_MAX_HEADER_SIZE_BYTES = 2**20
_MAX_SIZE_DIGITS = 18
_PAX_LENGTH = re.compile(rb"([0-9]{1,8}) ")


class BrokenArchiveError(S3Exception, ValueError):
    """A tar shard is truncated, is no tar archive, or has sparse members; the message names shard and offset."""


class ForwardFile(Protocol):
    """What is used of a file."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(slots=True)
class TarSample:
    """The members of one sample.

    Args:
        key: Their common name.
        start: Offset in the archive of the first member's header.
        end: Offset behind the last member.
        fields: Contents by extension, in lower case.
    """

    key: str
    start: int
    end: int
    fields: dict[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Member:
    name: str
    start: int
    end: int
    data: bytes


def iterate_samples(file: ForwardFile, uri: str, offset: int = 0, end: int | None = None) -> Iterator[TarSample]:
    """Yields the samples of an archive in order.

    Members without an extension, directories, links, and names like `__this__` are passed over.

    Args:
        file: The archive, at `offset`.
        uri: Its name, for errors.
        offset: Where in the archive the file stands: the start of a sample.
        end: Where to stop, when not at the end of the archive.

    Raises:
        BrokenArchiveError: The archive ends early, is no archive, holds a sparse member, or repeats a member of a
            sample.
    """
    sample: TarSample | None = None
    for member in _members(file, uri, offset, end):
        match = _NAME.fullmatch(member.name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = TarSample(key, member.start, member.end)
        if extension in sample.fields:
            raise BrokenArchiveError(
                f"{uri}: at offset {member.start}: the sample {key!r} has a second member {extension!r}"
            )
        sample.fields[extension] = member.data
        sample.end = member.end
    if sample is not None:
        yield sample


def _members(file: ForwardFile, uri: str, offset: int, end: int | None) -> Iterator[_Member]:
    start = offset
    name: str | None = None
    size: int | None = None
    while end is None or offset < end:
        header = _read_exactly(file, _BLOCK, uri, offset)
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros; missing in typeshed
            return
        except tarfile.HeaderError as error:
            raise BrokenArchiveError(f"{uri}: at offset {offset}: not the header of a tar member ({error})") from None
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise _sparse_error(uri, offset)
        length = 0 if info.type in _EMPTY_TYPES else info.size
        if length < 0:
            raise BrokenArchiveError(f"{uri}: at offset {offset}: a member of {length} bytes")
        offset += _BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if length > _MAX_HEADER_SIZE_BYTES:
                raise BrokenArchiveError(f"{uri}: at offset {offset}: an extended header of {length} bytes")
            data = _read_padded(file, length, uri, offset)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                records = _pax_records(data, uri, offset)
                if any(keyword.startswith("GNU.sparse.") for keyword in records):
                    raise _sparse_error(uri, offset)
                name = records.get("path", name)
                size = _pax_size(records, uri, offset, size)
            offset += _padded(length)
            continue
        if size is not None and info.type not in _EMPTY_TYPES:
            length = size
        data = _read_padded(file, length, uri, offset)
        offset += _padded(length)
        if info.type in _FILE_TYPES:
            yield _Member(info.name if name is None else name, start, offset, data)
        if info.type != tarfile.XGLTYPE and info.type != tarfile.GNUTYPE_LONGLINK:
            name = size = None
            start = offset


def _sparse_error(uri: str, offset: int) -> BrokenArchiveError:
    """https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html: the data begins with a map of holes."""
    return BrokenArchiveError(
        f"{uri}: at offset {offset}: a sparse member, which cannot be streamed; make the archive without --sparse"
    )


def _read_exactly(file: ForwardFile, size: int, uri: str, offset: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise BrokenArchiveError(
            f"{uri}: the archive ends at offset {offset + len(data)}, before its end mark; "
            "it was cut short, upload it again"
        )
    return data


def _read_padded(file: ForwardFile, size: int, uri: str, offset: int) -> bytes:
    data = _read_exactly(file, size, uri, offset) if size else b""
    padding = _padded(size) - size
    if padding:
        _read_exactly(file, padding, uri, offset + size)
    return data


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _pax_size(records: dict[str, str], uri: str, offset: int, other: int | None) -> int | None:
    digits = records.get("size", "")
    if not digits.isdecimal():
        return other
    if len(digits) > _MAX_SIZE_DIGITS:
        raise BrokenArchiveError(f"{uri}: at offset {offset}: a member whose size has {len(digits)} digits")
    return int(digits)


def _pax_records(data: bytes, uri: str, offset: int) -> dict[str, str]:
    """https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html, "pax Extended Header"."""
    records = {}
    start, filled = 0, len(data.rstrip(b"\0"))
    while start < filled:
        found = _PAX_LENGTH.match(data, start)
        end = start + int(found[1]) if found is not None else 0
        if found is None or not found.end() < end <= len(data):
            raise BrokenArchiveError(f"{uri}: at offset {offset}: a malformed extended header")
        keyword, _, value = data[found.end() : end - 1].partition(b"=")
        records[keyword.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        start = end
    return records

"""Columns of text and of ETags as flat memory: no Python object per row, nothing for a fork to copy."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

NO_ETAG = 0xFFFF
_DIGEST_SIZE_BYTES = 16
_MD5_ETAG = re.compile(r'"([0-9a-f]{32})(?:-([1-9][0-9]{0,4}))?"')
_MD5_ETAGS = re.compile(r'(?:"[0-9a-f]{32}")*')
_ABSENT = "\x00"  # XML, which listings come in, cannot carry this character

Columns = dict[str, memoryview]


class TextColumn:
    """Reads a column of texts: their UTF-8 bytes end to end, and the offset of each.

    Args:
        data: The bytes of all rows.
        offsets: `rows + 1` offsets into them, format "Q".
    """

    __slots__ = ("_data", "_offsets")

    def __init__(self, data: memoryview, offsets: memoryview) -> None:
        self._data = data
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        return str(self._data[self._offsets[row] : self._offsets[row + 1]], "utf-8", "surrogateescape")


class TextColumnBuilder:
    """Gathers a `TextColumn`."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._offsets = array("Q", [0])

    def extend(self, texts: Iterable[str]) -> None:
        """Adds rows."""
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        ends = accumulate(map(len, encoded), initial=len(self._data))
        next(ends)
        self._offsets.extend(ends)
        self._data += b"".join(encoded)

    def extend_column(self, other: TextColumnBuilder) -> None:
        """Adds all rows of another column."""
        base = len(self._data)
        self._offsets.extend(base + offset for offset in memoryview(other._offsets)[1:])
        self._data += other._data

    def columns(self, name: str) -> Columns:
        """Returns the flat memory, without a copy."""
        return {f"{name}_bytes": memoryview(self._data), f"{name}_offsets": memoryview(self._offsets)}


class EtagColumn:
    """Reads a column of ETags.

    Nearly all are `"<md5>"` or `"<md5>-<parts>"` in hexadecimal: 16 bytes and a number each. A column with any other is
    held as text.

    Args:
        columns: What `EtagColumnBuilder.columns` returned.
    """

    __slots__ = ("_digests", "_parts", "_texts")

    def __init__(self, columns: Columns) -> None:
        self._texts: TextColumn | None = None
        if "etag_bytes" in columns:
            self._texts = TextColumn(columns["etag_bytes"], columns["etag_offsets"])
            return
        self._digests = columns["etag_digests"]
        self._parts = columns["etag_parts"]

    def __getitem__(self, row: int) -> str | None:
        if self._texts is not None:
            text = self._texts[row]
            return None if text == _ABSENT else text
        parts = self._parts[row]
        if parts == NO_ETAG:
            return None
        digest = self._digests[row * _DIGEST_SIZE_BYTES : (row + 1) * _DIGEST_SIZE_BYTES].hex()
        return f'"{digest}-{parts}"' if parts else f'"{digest}"'

    def rows_without(self) -> list[int]:
        """Returns the rows that have no ETag, in order."""
        if self._texts is not None:
            return [row for row in range(len(self._texts)) if self[row] is None]
        found: list[int] = np.flatnonzero(np.asarray(self._parts) == NO_ETAG).tolist()
        return found


class EtagColumnBuilder:
    """Gathers an `EtagColumn`, packed for as long as its rows allow."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._parts = array("H")
        self._texts: TextColumnBuilder | None = None

    def extend(self, etags: Sequence[str | None]) -> None:
        """Adds rows; an empty text is none."""
        if self._texts is None and not self._pack(etags):
            self._become_text()
        if self._texts is not None:
            self._texts.extend(etag or _ABSENT for etag in etags)

    def extend_column(self, other: EtagColumnBuilder) -> None:
        """Adds all rows of another column, and may turn that one into text."""
        if (self._texts is None) != (other._texts is None):
            self._become_text()
            other._become_text()
        if self._texts is not None:
            assert other._texts is not None
            self._texts.extend_column(other._texts)
        else:
            self._digests += other._digests
            self._parts.extend(other._parts)

    def columns(self) -> Columns:
        """Returns the flat memory, without a copy."""
        if self._texts is not None:
            return self._texts.columns("etag")
        return {"etag_digests": memoryview(self._digests), "etag_parts": memoryview(self._parts)}

    def _pack(self, etags: Sequence[str | None]) -> bool:
        """Adds the rows as digests, or none of them when one has another form."""
        texts = [etag for etag in etags if etag]
        lengths = set(map(len, texts))  # Each of them is whole, and not only all of them together.
        if len(texts) == len(etags) and lengths <= {34} and _MD5_ETAGS.fullmatch(joined := "".join(texts)):
            self._digests += bytes.fromhex(joined.replace('"', ""))
            self._parts.frombytes(bytes(self._parts.itemsize * len(etags)))
            return True
        digests, parts = [], []
        for etag in etags:
            if not etag:
                digests.append("0" * 32)
                parts.append(NO_ETAG)
                continue
            match = _MD5_ETAG.fullmatch(etag)
            if match is None:
                return False
            number = int(match[2] or 0)
            if number >= NO_ETAG:
                return False
            digests.append(match[1])
            parts.append(number)
        self._digests += bytes.fromhex("".join(digests))
        self._parts.extend(parts)
        return True

    def _become_text(self) -> None:
        if self._texts is None:
            packed = EtagColumn(self.columns())
            self._texts = TextColumnBuilder()
            self._texts.extend(packed[row] or _ABSENT for row in range(len(self._parts)))
            del packed
            self._digests, self._parts = bytearray(), array("H")

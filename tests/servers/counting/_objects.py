"""What an object is, whether it was uploaded or is made up on the fly."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

_BUFFER_BYTES = 32 * 2**20
_NO_HEADERS: Mapping[str, str] = {}
_LONG_AGO = 1_700_000_000.0


class S3Object(Protocol):
    """An object that can be served."""

    @property
    def key(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def etag(self) -> str: ...
    @property
    def modified(self) -> float:
        """Seconds since 1970."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Stored with it and answered with it."""

    @property
    def checksums(self) -> Mapping[str, str]:
        """Of all its bytes, as far as they are known, by the names of their headers."""

    @property
    def part_sizes(self) -> Sequence[int]:
        """Bytes of each part that it was uploaded in."""

    def views(self, start: int, end: int) -> list[memoryview]:
        """Its bytes `[start, end)`, not copied."""


@dataclass(frozen=True, slots=True)
class GeneratedObjects:
    """A folder of objects that take no memory: their bytes are slices of one buffer of random bytes.

    Attributes:
        bucket: Bucket in which they are.
        prefix: Begins every key; eight digits and `suffix` follow.
        count: How many there are.
        smallest: Size in bytes of the smallest.
        largest: Size in bytes of the largest; sizes between are as frequent as each other.
        suffix: Ends every key.
    """

    bucket: str
    prefix: str
    count: int
    smallest: int
    largest: int
    suffix: str = ""

    def key(self, index: int) -> str:
        """The key of object `index`, from 0; keys are in the order of their indices."""
        return f"{self.prefix}{index:08d}{self.suffix}"

    def index(self, key: str) -> int | None:
        """The index of a key, or None when there is no such object."""
        digits = key[len(self.prefix) : len(key) - len(self.suffix)]
        if not digits.isascii() or not digits.isdigit():
            return None
        index = int(digits)
        return index if index < self.count and self.key(index) == key else None

    def size(self, index: int) -> int:
        """Bytes of object `index`."""
        return self.smallest + index * 2_654_435_761 % (self.largest - self.smallest + 1)

    def __getitem__(self, index: int) -> GeneratedObject:
        return GeneratedObject(self.key(index), self.size(index), index * 4_099 * 64 % _BUFFER_BYTES, f'"{index:032x}"')


@dataclass(frozen=True, slots=True)
class GeneratedObject:
    """One of `GeneratedObjects`."""

    key: str
    size: int
    offset: int
    etag: str

    @property
    def modified(self) -> float:
        """Some time in the past."""
        return _LONG_AGO

    @property
    def headers(self) -> Mapping[str, str]:
        """None."""
        return _NO_HEADERS

    @property
    def checksums(self) -> Mapping[str, str]:
        """None."""
        return _NO_HEADERS

    @property
    def part_sizes(self) -> Sequence[int]:
        """One part."""
        return [self.size]

    def views(self, start: int, end: int) -> list[memoryview]:
        """Its bytes `[start, end)`: the buffer from `offset` on, over and over."""
        buffer, views = _buffer(), []
        position = (self.offset + start) % _BUFFER_BYTES
        while start < end:
            view = buffer[position : position + end - start]
            views.append(view)
            start, position = start + len(view), 0
        return views


@cache
def _buffer() -> memoryview:
    return memoryview(random.Random(20_240_117).randbytes(_BUFFER_BYTES))

"""Checksums of bodies: what a request states is compared with what arrives, and kept with what is made of that.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from servers.counting._errors import S3Error

_START = "x-amz-checksum-"


class BodySums:
    """The sums that a request states of its body, in a header or in a trailer that it announces.

    Args:
        headers: Of the request.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        stated = {*headers, *headers.get("x-amz-trailer", "").lower().split(",")}
        self._sums = {name: begin() for name, begin in _SUMS.items() if name in stated}

    def update(self, data: bytes | memoryview) -> None:
        """Take more of the body."""
        for one in self._sums.values():
            one.update(data)

    def check(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Compare them with what is stated, now that the whole body is here.

        Args:
            headers: Of the request, and its trailers.

        Returns:
            The body's checksums by the names of their headers.

        Raises:
            S3Error: One is another.
        """
        found = {name: base64.b64encode(one.digest()).decode() for name, one in self._sums.items()}
        for name, value in found.items():
            if headers.get(name) != value:
                raise S3Error(400, "BadDigest", f"The {name} you specified did not match what we received")
        return {name: value for name, value in found.items() if name.startswith(_START)}


def element_of(header: str) -> str:
    """The XML element that holds the checksum of a header."""
    return f"Checksum{header.removeprefix(_START).upper()}"


class _Sum(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc:
    def __init__(self, model: str, size: int) -> None:
        import anycrc  # which s3core brings along; a server that checks no bodies does without

        self._model = anycrc.Model(model)
        self._crc = self._model.calc(b"")
        self._size = size

    def update(self, data: bytes | memoryview, /) -> None:
        self._crc = self._model.calc(data, self._crc)

    def digest(self) -> bytes:
        return int(self._crc).to_bytes(self._size, "big")


_SUMS: Mapping[str, Callable[[], _Sum]] = {
    "content-md5": partial(hashlib.md5, usedforsecurity=False),
    f"{_START}crc32": partial(_Crc, "CRC32", 4),
    f"{_START}crc32c": partial(_Crc, "CRC32C", 4),
    f"{_START}crc64nvme": partial(_Crc, "CRC64-NVME", 8),
    f"{_START}sha1": hashlib.sha1,
    f"{_START}sha256": hashlib.sha256,
}

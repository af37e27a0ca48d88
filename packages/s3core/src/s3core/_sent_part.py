"""The parts of an upload that have arrived, and by what the object that they make is known."""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ._headers import checksum_header, joined_checksum
from ._info import ObjectInfo


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that has arrived.

    Args:
        etag: Its ETag.
        checksum: Its checksum in base64; None where none was sent.
        size: Its length in bytes.
    """

    etag: str
    checksum: str | None
    size: int


def is_made_of(
    parts: Sequence[SentPart], algorithm: str | None, info: ObjectInfo, headers: Mapping[str, str]
) -> bool | None:
    """Say whether an object is the one of these parts.

    The ETag tells where it is the MD5 of the parts' MD5s, as it is not with a key of KMS or of the user; then the
    checksum does, where the store keeps one.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html

    Args:
        parts: All parts in order.
        algorithm: Algorithm of their checksums; None for none.
        info: What a HEAD says about the object.
        headers: All headers of its answer.

    Returns:
        Whether it is; None where nothing tells.
    """
    if info.size != sum(part.size for part in parts):
        return False
    if info.etag is not None and info.etag.strip('"') == _joined_etag(parts):
        return True
    checksum = headers.get(checksum_header(algorithm)) if algorithm is not None else None
    if algorithm is None or checksum is None:
        return None
    return checksum == joined_checksum([(part.checksum or "", part.size) for part in parts], algorithm)


def _joined_etag(parts: Sequence[SentPart]) -> str | None:
    try:
        digests = b"".join(binascii.unhexlify(part.etag.strip('"')) for part in parts)
    except ValueError:
        return None
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"

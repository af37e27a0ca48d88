"""The headers that writes and reads carry beside their signature: encryption, storage class, metadata, checksums."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ._config import STORAGE_CLASS, S3ClientConfig
from ._exceptions import ConfigError
from ._loading import load

_CUSTOMER_KEY = "x-amz-server-side-encryption-customer-"
_COPY_SOURCE_KEY = "x-amz-copy-source-server-side-encryption-customer-"


def customer_key_headers(config: S3ClientConfig, *, for_copy_source: bool = False) -> dict[str, str]:
    """The key of SSE-C, which every request for the object's bytes carries.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html
    """
    if config.sse_customer_key is None:
        return {}
    start = _COPY_SOURCE_KEY if for_copy_source else _CUSTOMER_KEY
    key = config.customer_key_bytes
    return {
        f"{start}algorithm": "AES256",
        f"{start}key": base64.b64encode(key).decode(),
        f"{start}key-MD5": base64.b64encode(hashlib.md5(key, usedforsecurity=False).digest()).decode(),
    }


def creation_headers(
    config: S3ClientConfig, storage_class: str | None = None, metadata: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What the request that creates an object says about it (PutObject, CreateMultipartUpload, CopyObject).

    Args:
        config: Encryption and the default storage class.
        storage_class: Storage class of this object.
        metadata: User metadata, without the `x-amz-meta-` prefix.

    Raises:
        ConfigError: The storage class or a metadata entry cannot travel in a header.
    """
    headers = customer_key_headers(config)
    if config.sse is not None and config.sse != "SSE-C":
        headers["x-amz-server-side-encryption"] = config.sse
    if config.sse_kms_key_id is not None:
        headers["x-amz-server-side-encryption-aws-kms-key-id"] = config.sse_kms_key_id
    if config.sse_bucket_key_enabled:
        headers["x-amz-server-side-encryption-bucket-key-enabled"] = "true"
    if storage_class is not None and not (isinstance(storage_class, str) and STORAGE_CLASS.fullmatch(storage_class)):
        raise ConfigError(f"storage_class is {storage_class!r}; it must be a storage class such as 'STANDARD', or None")
    if storage_class or config.storage_class:
        headers["x-amz-storage-class"] = storage_class or config.storage_class or ""
    for name, value in (metadata or {}).items():
        if not (isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum() and name.isascii()):
            raise ConfigError(f"metadata has the name {name!r}; it must be letters, digits, hyphens and underscores")
        if not (isinstance(value, str) and value.isascii() and value.isprintable()):
            raise ConfigError(f"metadata {name!r} is {value!r}; it must be printable ASCII text")
        headers[f"x-amz-meta-{name}"] = value
    return headers


def checksum_of(pieces: Iterable[bytes | bytearray | memoryview], algorithm: str | None) -> str | None:
    """The checksum of a body in base64, or None when uploads carry none."""
    if algorithm is None:
        return None
    if algorithm == "SHA256":
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        return base64.b64encode(digest.digest()).decode()
    return base64.b64encode(_crc64nvme(pieces).to_bytes(8, "big")).decode()


def joined_checksum(parts: Sequence[tuple[str, int]], algorithm: str) -> str:
    """The checksum that an object made of parts is known by: of all its bytes, or, with SHA256, of the parts' own.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html

    Args:
        parts: Checksum and length of each part, in order.
        algorithm: Their algorithm.
    """
    digests = [base64.b64decode(checksum) for checksum, _ in parts]
    if algorithm == "SHA256":
        return f"{base64.b64encode(hashlib.sha256(b''.join(digests)).digest()).decode()}-{len(parts)}"
    model = _crc_model()
    crc = int(model.calc(b""))
    for digest, (_, size) in zip(digests, parts, strict=True):
        crc = int(model.combine(crc, int.from_bytes(digest, "big"), size))
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def checksum_header(algorithm: str) -> str:
    """The name of the header that carries a checksum."""
    return f"x-amz-checksum-{algorithm.lower()}"


def checksum_headers(algorithm: str | None, checksum: str | None) -> dict[str, str]:
    """The headers by which the store verifies a body.

    Ceph looks at a checksum only when the algorithm is named as well.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
    """
    if algorithm is None or checksum is None:
        return {}
    return {checksum_header(algorithm): checksum, "x-amz-sdk-checksum-algorithm": algorithm}


def _crc64nvme(pieces: Iterable[bytes | bytearray | memoryview]) -> int:
    model = _crc_model()
    crc = int(model.calc(b""))
    for piece in pieces:
        crc = int(model.calc(piece, crc))
    return crc


def _crc_model() -> Any:
    global _model
    if _model is None:
        load("anycrc")
        import anycrc

        _model = anycrc.Model("CRC64-NVME")
    return _model


_model: Any = None

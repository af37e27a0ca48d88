"""Where a checkpoint lies: a bucket and a key (one object) or a bucket and a base under which its objects lie."""

from __future__ import annotations

import os
from dataclasses import dataclass

from s3core import parse_s3_uri


def parse_object_uri(uri: str) -> tuple[str, str]:
    """Split the URI of one object and refuse a URI that names none.

    Args:
        uri: `s3://bucket/key`.

    Returns:
        The bucket and the key, byte for byte.

    Raises:
        ValueError: The URI is malformed, or has no key.
    """
    bucket, key = parse_s3_uri(uri)
    if not key:
        raise ValueError(
            f"{uri!r} names a bucket, not an object; give the checkpoint a key: 's3://{bucket}/my-model.pt'"
        )
    return bucket, key


@dataclass(frozen=True, slots=True)
class CheckpointAddress:
    """The place of a distributed checkpoint: its objects have the keys `base + name`.

    Args:
        bucket: The bucket.
        base: What every key of the checkpoint starts with; empty, or ending with `/`.
    """

    bucket: str
    base: str

    @classmethod
    def parse(cls, uri: str | os.PathLike[str]) -> CheckpointAddress:
        """Read `s3://bucket/some/checkpoint`, with or without the `/` at its end.

        Args:
            uri: The URI of the checkpoint's folder.

        Raises:
            ValueError: The URI is malformed.
        """
        bucket, key = parse_s3_uri(os.fspath(uri))
        return cls(bucket, key if not key or key.endswith("/") else key + "/")

    def key(self, name: str) -> str:
        """The key of one object of the checkpoint."""
        return self.base + name

    def uri(self, name: str = "") -> str:
        """The URI of one object of the checkpoint, or of the checkpoint itself, which `parse` reads as the same."""
        if name or self.base == "/" or self.base.endswith("//"):  # where a `/` at the end is part of the folder's name
            return f"s3://{self.bucket}/{self.base}{name}"
        return f"s3://{self.bucket}/{self.base}".removesuffix("/")

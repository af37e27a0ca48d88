"""What Lightning passes as a path, read as the S3 URI that it spells."""

from __future__ import annotations

import os
import re

from s3core import parse_s3_uri

# `Path("s3://bucket/key")` and `os.path.normpath` both collapse the two slashes to one, and what then takes it for a
# relative path may put the working directory before it.
_COLLAPSED = re.compile(r"(?:.*?/)??s3:/(?=[^/])", re.DOTALL)


def checkpoint_uri(path: object) -> str:
    """Check that a path is the S3 URI of a checkpoint.

    Args:
        path: What the user or Lightning passed.

    Returns:
        The URI, unchanged.

    Raises:
        TypeError: It is no text, or a path that does not spell an S3 URI.
        ValueError: It names a bucket but no checkpoint in it.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"a checkpoint's path is a str like 's3://bucket/folder/name.ckpt', got {type(path).__name__}: {path!r}"
        )
    uri = os.fspath(path)
    if not isinstance(uri, str) or not uri.startswith("s3://"):
        meant = meant_uri(path)
        remedy = (
            f"a Path took one of its slashes, so pass the str {meant!r}"
            if meant is not None
            else "to save to a local disk, leave the S3 plugin out"
        )
        raise TypeError(f"a checkpoint's path is an S3 URI like 's3://bucket/folder/name.ckpt', got {path!r}; {remedy}")
    _, key = parse_s3_uri(uri)
    if not key.strip("/"):
        raise ValueError(f"{uri!r} names a bucket, not a checkpoint; add a key: '{uri.rstrip('/')}/name.ckpt'")
    return uri


def metadata_uri(uri: str) -> str:
    """Where the metadata of a sharded checkpoint lies, without which it is none.

    Args:
        uri: Where the checkpoint lies, with or without a `/` at its end.
    """
    return f"{uri.rstrip('/')}/.metadata"


def meant_uri(path: object) -> str | None:
    """Read a path that may have gone through `pathlib`, which makes `s3:/bucket/key` of `s3://bucket/key`.

    A path in a local folder named `s3:` is taken for one too: nobody has such a folder who does not lack a slash.

    Args:
        path: Any path.

    Returns:
        The URI it stands for, or None when it is a path on a local disk.
    """
    if not isinstance(path, str | os.PathLike):
        return None
    text = os.fspath(path)
    if not isinstance(text, str):
        return None
    if text.startswith("s3://"):
        return text
    collapsed = _COLLAPSED.match(text)
    return None if collapsed is None or "://" in text else "s3://" + text[collapsed.end() :]

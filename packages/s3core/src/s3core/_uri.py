"""S3 URIs: `s3://bucket/key`, where the key is kept byte for byte."""

from __future__ import annotations

import re

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_ARN = re.compile(r"arn:[^:/]+:[^:/]+:[^:/]*:[^:/]*:[^:/]+[:/][^:/]+")
_SCHEME = "s3://"


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Split an S3 URI into its bucket and its key.

    The key is everything after the first `/` that follows the bucket, unchanged: nothing is decoded, collapsed or
    stripped, so `s3://b/a//b/` has the key `a//b/`. An access point's ARN may stand where the bucket does.

    Args:
        uri: `s3://bucket`, `s3://bucket/key` or `s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/key`.

    Returns:
        The bucket (or ARN) and the key; the key is empty when the URI names only a bucket.

    Raises:
        ValueError: The URI does not have this form.

    Example:
        >>> parse_s3_uri("s3://training-data/images/0001.jpg")
        ('training-data', 'images/0001.jpg')
    """
    if not isinstance(uri, str):
        raise ValueError(f"an S3 URI is a str like 's3://bucket/key', got {type(uri).__name__}: {uri!r}")
    if not uri.startswith(_SCHEME):
        raise ValueError(f"an S3 URI starts with 's3://', got {uri!r}; write it as 's3://bucket/key'")
    rest = uri[len(_SCHEME) :]
    arn = _ARN.match(rest)
    if arn is not None and (arn.end() == len(rest) or rest[arn.end()] == "/"):
        return arn.group(), rest[arn.end() + 1 :]
    bucket, _, key = rest.partition("/")
    check_bucket(bucket, uri)
    return bucket, key


def check_bucket(bucket: str, source: str | None = None) -> None:
    """Refuse what cannot be a bucket's name or an ARN.

    Args:
        bucket: The name as the user gave it.
        source: The URI it came from, for the message.

    Raises:
        ValueError: The name breaks S3's rules
            (https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html).
    """
    if not isinstance(bucket, str) or not (_BUCKET.fullmatch(bucket) or _ARN.fullmatch(bucket)):
        where = f" in {source!r}" if source is not None else ""
        raise ValueError(
            f"{bucket!r}{where} is not a bucket name: it has 3 to 255 letters, digits, dots, hyphens or underscores, "
            "and starts and ends with a letter or digit"
        )


def check_key(bucket: str, key: str) -> None:
    """Refuse what cannot be the key of an object.

    Args:
        bucket: The bucket, for the message.
        key: The key as the user gave it.

    Raises:
        ValueError: The key breaks S3's rules
            (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html).
    """
    if not isinstance(key, str) or not key:
        raise ValueError(f"the key in {uri_of(bucket)} is {key!r}; it must be a text that is not empty")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the key {key!r} in {uri_of(bucket)} has no UTF-8 form, which S3 keys are in") from None
    if size > 1024:
        raise ValueError(f"the key {key[:40]!r}… in {uri_of(bucket)} has {size} bytes; S3 allows 1024")


def uri_of(bucket: str, key: str = "") -> str:
    """Spell `s3://bucket/key`, for messages and logs."""
    return f"{_SCHEME}{bucket}/{key}" if key else f"{_SCHEME}{bucket}"

"""One S3 client for training jobs: list, read, write, copy and delete, without torch."""

from .__about__ import __version__
from ._config import S3ClientConfig
from ._exceptions import (
    AccessDeniedError,
    ArchivedObjectError,
    ConfigError,
    CredentialsError,
    NoSuchBucketError,
    NoSuchKeyError,
    ObjectChangedError,
    PreconditionFailedError,
    S3ConnectionError,
    S3Exception,
    S3TimeoutError,
    ThrottledError,
)
from ._info import ObjectInfo
from ._uri import parse_s3_uri

__all__ = [
    # Values
    "ObjectInfo",
    "S3ClientConfig",
    "parse_s3_uri",
    # Errors
    "AccessDeniedError",
    "ArchivedObjectError",
    "ConfigError",
    "CredentialsError",
    "NoSuchBucketError",
    "NoSuchKeyError",
    "ObjectChangedError",
    "PreconditionFailedError",
    "S3ConnectionError",
    "S3Exception",
    "S3TimeoutError",
    "ThrottledError",
    # Version
    "__version__",
]

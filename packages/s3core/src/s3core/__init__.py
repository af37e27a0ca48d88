"""One S3 client for training jobs: list, read, write, copy and delete, without torch."""

from .__about__ import __version__
from ._client import S3Client
from ._config import S3ClientConfig
from ._exceptions import (
    AccessDeniedError,
    ArchivedObjectError,
    ConfigError,
    CredentialsError,
    NoSuchBucketError,
    NoSuchKeyError,
    ObjectChangedError,
    ObjectExistsError,
    PreconditionFailedError,
    S3ConnectionError,
    S3Exception,
    S3TimeoutError,
    ThrottledError,
)
from ._get import GetObjectStream
from ._info import ListObjectResult, ObjectInfo
from ._list import ListObjectStream
from ._put import PutObjectStream
from ._ranges import RangeRead
from ._uri import parse_s3_uri

__all__ = [
    # The client
    "S3Client",
    "S3ClientConfig",
    # Its streams
    "GetObjectStream",
    "ListObjectStream",
    "PutObjectStream",
    # Values
    "ListObjectResult",
    "ObjectInfo",
    "RangeRead",
    "parse_s3_uri",
    # Errors
    "AccessDeniedError",
    "ArchivedObjectError",
    "ConfigError",
    "CredentialsError",
    "NoSuchBucketError",
    "NoSuchKeyError",
    "ObjectChangedError",
    "ObjectExistsError",
    "PreconditionFailedError",
    "S3ConnectionError",
    "S3Exception",
    "S3TimeoutError",
    "ThrottledError",
    # Version
    "__version__",
]

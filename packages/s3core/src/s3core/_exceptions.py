"""The tree of errors: each one an `S3Exception` and, where one fits, the builtin that people already catch.

Every class can be rebuilt from its message alone, because a `DataLoader` worker's error is re-raised in the main
process as `type(error)(message)`
(https://github.com/pytorch/pytorch/blob/v2.4.0/torch/_utils.py#L696-L722).
"""

from __future__ import annotations


class S3Exception(Exception):
    """Something went wrong with S3; the message names the operation, the `s3://bucket/key`, the cause and a remedy.

    Attributes:
        in_doubt: Whether a change was asked for and may have been made all the same: of an attempt no answer came, or
            one that leaves it open.
    """

    in_doubt = False


class NoSuchBucketError(S3Exception, FileNotFoundError):
    """The bucket does not exist."""


class NoSuchKeyError(S3Exception, FileNotFoundError):
    """The bucket has no object of this key (or version)."""


class AccessDeniedError(S3Exception, PermissionError):
    """The credentials are valid, but not for this."""


class CredentialsError(S3Exception, PermissionError):
    """There are no credentials, or they are wrong or expired."""


class ArchivedObjectError(S3Exception, PermissionError):
    """The object lies in an archive storage class and must be restored before it can be read."""


class ObjectChangedError(S3Exception, RuntimeError):
    """The object was replaced while it was read, so that its bytes would be of two versions."""


class ObjectExistsError(S3Exception, FileExistsError):
    """There is an object of this key, and it must not be replaced."""


class PreconditionFailedError(S3Exception, RuntimeError):
    """A condition that the request carried does not hold."""


class ThrottledError(S3Exception, ConnectionError):
    """The store asked to slow down until every attempt was used up."""


class S3TimeoutError(S3Exception, TimeoutError):
    """The store did not answer in time, in every attempt."""


class S3ConnectionError(S3Exception, ConnectionError):
    """The store cannot be reached, or the connection broke in every attempt."""


class ConfigError(S3Exception, ValueError):
    """A setting has a value that cannot work."""

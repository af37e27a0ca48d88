"""What stores say becomes our errors, each with a remedy."""

from __future__ import annotations

import pickle

import pytest

import s3core
from s3core import S3Exception
from s3core._errors import Failure, error_for, parse_failure, parse_native

CLASSES = [value for value in vars(s3core).values() if isinstance(value, type) and issubclass(value, S3Exception)]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_can_be_rebuilt_from_its_message_and_pickled(kind: type[S3Exception]) -> None:
    error = kind("GET of s3://bucket/key failed: why")
    for copy in (type(error)(str(error)), pickle.loads(pickle.dumps(error))):
        assert type(copy) is kind
        assert str(copy) == "GET of s3://bucket/key failed: why"
    assert not hasattr(error, "message")


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("NoSuchBucketError", FileNotFoundError),
        ("NoSuchKeyError", FileNotFoundError),
        ("AccessDeniedError", PermissionError),
        ("CredentialsError", PermissionError),
        ("ArchivedObjectError", PermissionError),
        ("ObjectChangedError", RuntimeError),
        ("ObjectExistsError", FileExistsError),
        ("PreconditionFailedError", RuntimeError),
        ("ThrottledError", ConnectionError),
        ("S3ConnectionError", ConnectionError),
        ("S3TimeoutError", TimeoutError),
        ("ConfigError", ValueError),
    ],
)
def test_an_error_is_also_the_builtin_that_people_catch(name: str, builtin: type[Exception]) -> None:
    assert issubclass(getattr(s3core, name), builtin)
    assert issubclass(getattr(s3core, name), S3Exception)


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [
        (404, "NoSuchBucket", "NoSuchBucketError"),
        (404, "NoSuchKey", "NoSuchKeyError"),
        (404, "NoSuchVersion", "NoSuchKeyError"),
        (404, "NoSuchUpload", "S3Exception"),
        (404, "", "NoSuchKeyError"),
        (403, "AccessDenied", "AccessDeniedError"),
        (403, "", "AccessDeniedError"),
        (403, "InvalidAccessKeyId", "CredentialsError"),
        (403, "SignatureDoesNotMatch", "CredentialsError"),
        (403, "RequestTimeTooSkewed", "CredentialsError"),
        (400, "ExpiredToken", "CredentialsError"),
        (400, "InvalidToken", "CredentialsError"),
        (401, "", "CredentialsError"),
        (403, "InvalidObjectState", "ArchivedObjectError"),
        (412, "PreconditionFailed", "PreconditionFailedError"),
        (412, "", "PreconditionFailedError"),
        (409, "ConditionalRequestConflict", "PreconditionFailedError"),
        (503, "SlowDown", "ThrottledError"),
        (503, "", "ThrottledError"),
        (429, "TooManyRequests", "ThrottledError"),
        (408, "RequestTimeout", "S3TimeoutError"),
        (301, "PermanentRedirect", "ConfigError"),
        (400, "AuthorizationHeaderMalformed", "ConfigError"),
        (416, "InvalidRange", "S3Exception"),
        (400, "EntityTooSmall", "S3Exception"),
        (500, "InternalError", "S3Exception"),
        (501, "NotImplemented", "S3Exception"),
        (418, "Teapot", "S3Exception"),
        (200, "AccessDenied", "AccessDeniedError"),
    ],
)
def test_each_answer_has_its_class(status: int, code: str, name: str) -> None:
    error = error_for(Failure(status, code, "said"), "GET", "s3://bucket/key")
    assert type(error) is getattr(s3core, name)
    assert str(error).startswith("GET of s3://bucket/key failed: ")
    assert f"HTTP {status}" in str(error)
    assert str(error).partition("failed: ")[2].partition(" (HTTP")[0]


def test_a_wrong_region_is_told_with_the_right_one() -> None:
    error = error_for(Failure(301, "PermanentRedirect", region="eu-north-1"), "GET", "s3://bucket/key")
    assert "'eu-north-1'" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>502 Bad Gateway</body></html>",
        b"<Error>",
        b"<Error><Code>half",
        b"\xff\xfe",
        "<Error><&></Error>",
    ],
)
def test_a_body_that_is_no_error_document_gives_the_status_alone(body: bytes | str) -> None:
    assert parse_failure(502, body) == Failure(502)


def test_an_error_document_is_read_whatever_its_namespace() -> None:
    body = (
        '<?xml version="1.0"?>\n<Error xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Code>InvalidRange</Code>'
        "<Message>a &amp; b</Message><Region>eu-north-1</Region><ActualObjectSize>7</ActualObjectSize></Error>"
    )
    assert parse_failure(416, body) == Failure(416, "InvalidRange", "a & b", "eu-north-1", 7)


def test_a_long_message_of_a_store_is_cut() -> None:
    assert len(str(error_for(Failure(500, "X", "m" * 10_000), "GET", "s3://b/k"))) < 600


def test_the_debug_output_of_obstore_is_left_out() -> None:
    text = (
        "Generic S3 error: Error performing GET http://h/b/k in 1s, after 2 retries - error sending request\n\n"
        'Debug source:\nGeneric { source: reqwest::Error { kind: Connect, source: ConnectError("tcp connect error", '
        'Os { code: 111, kind: ConnectionRefused, message: "Connection refused" }) } }'
    )
    failure, kind, cause = parse_native(OSError(text))
    assert failure == Failure()
    assert kind
    assert "Connection refused" in cause
    assert "reqwest" not in cause

"""What users get wrong: a clear error within the configured attempts, in our words."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from s3core import (
    ConfigError,
    CredentialsError,
    NoSuchBucketError,
    NoSuchKeyError,
    S3Client,
    S3ClientConfig,
    S3ConnectionError,
    S3Exception,
    S3TimeoutError,
    parse_s3_uri,
)
from servers import CountingServer, S3Server

pytestmark = pytest.mark.usefixtures("each_way")

FOREIGN = ("Debug source", "Traceback", "botocore", "urllib3", "reqwest", "hyper", "object at 0x", "HTTPConnectionPool")

USES: dict[str, Callable[[S3Client, str], Any]] = {
    "GET": lambda client, bucket: client.get_object(bucket, "key").read_all(),
    "GET of an odd key": lambda client, bucket: client.get_object(bucket, "odd//key").read_all(),
    "HEAD": lambda client, bucket: client.head_object(bucket, "key"),
    "LIST": lambda client, bucket: next(client.list_objects(bucket)),
    "PUT": lambda client, bucket: put(client, bucket, 10),
    "multipart": lambda client, bucket: put(client, bucket, 9 * 2**20),
    "DELETE": lambda client, bucket: client.delete_object(bucket, "key"),
    "ranges": lambda client, bucket: client.read_ranges([_range(bucket)]),
}


def _range(bucket: str) -> Any:
    from s3core import RangeRead

    return RangeRead(bucket, "key", 0, bytearray(10))


def put(client: S3Client, bucket: str, size: int) -> None:
    with client.put_object(bucket, "key") as stream:
        stream.write(bytes(size))


def check_words(error: BaseException, *secrets: str) -> None:
    words = str(error)
    assert not [foreign for foreign in FOREIGN if foreign in words], words
    assert "\n" not in words
    assert len(words) < 700
    assert not [secret for secret in secrets if secret in words]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("server", ["moto_server", "ceph_server"])
def test_an_unknown_bucket(
    request: pytest.FixtureRequest, make_client: Callable[..., S3Client], server: str, use: str
) -> None:
    # A HEAD has no body that could tell a bucket from a key.
    with pytest.raises((NoSuchBucketError, NoSuchKeyError), match="s3://no-such-bucket") as caught:
        USES[use](make_client(request.getfixturevalue(server)), "no-such-bucket")
    assert use == "HEAD" or isinstance(caught.value, NoSuchBucketError)
    assert "bucket" in str(caught.value).replace("no-such-bucket", "")
    check_words(caught.value)


@pytest.mark.parametrize("use", ["GET", "GET of an odd key", "HEAD", "ranges"])
def test_a_missing_key(moto_server: S3Server, make_client: Callable[..., S3Client], use: str) -> None:
    bucket = moto_server.create_bucket()
    with pytest.raises(NoSuchKeyError, match=rf"s3://{bucket}/.*check the key") as caught:
        USES[use](make_client(moto_server), bucket)
    check_words(caught.value)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("wrong", ["secret_access_key", "access_key_id"])
def test_wrong_keys(seaweedfs_server: S3Server, make_client: Callable[..., S3Client], use: str, wrong: str) -> None:
    bucket = seaweedfs_server.create_bucket()
    client = make_client(seaweedfs_server, **{wrong: "wrong-and-hidden"})
    with pytest.raises(PermissionError, match="s3://") as caught:
        USES[use](client, bucket)
    assert isinstance(caught.value, S3Exception)
    assert use == "HEAD" or isinstance(caught.value, CredentialsError)
    check_words(caught.value, seaweedfs_server.secret_key, *(["wrong-and-hidden"] if "secret" in wrong else []))


@pytest.mark.parametrize("use", USES)
def test_an_expired_token(counting_server: CountingServer, make_client: Callable[..., S3Client], use: str) -> None:
    counting_server.put("key", bytes(100))
    counting_server.put("odd//key", bytes(100))
    counting_server.expire_credentials()
    client = make_client(counting_server, session_token="hidden-token", max_attempts=3)
    with pytest.raises(S3Exception, match=r"s3://.*expired") as caught:
        USES[use](client, counting_server.bucket)
    if use != "HEAD":
        assert isinstance(caught.value, CredentialsError)
        assert "expired" in str(caught.value)
    assert len(counting_server.requests) == 1
    check_words(caught.value, "hidden-token", counting_server.secret_key)


@pytest.mark.parametrize("use", USES)
def test_an_endpoint_where_nobody_listens(use: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = S3ClientConfig(access_key_id="id", secret_access_key="hidden", max_attempts=2)
    client = S3Client("us-east-1", endpoint=f"http://127.0.0.1:{port}", s3client_config=config)
    with pytest.raises(S3ConnectionError, match=r"in up to 2 attempts.*check the endpoint") as caught:
        USES[use](client, "a-bucket")
    check_words(caught.value, "hidden")


@pytest.mark.parametrize("use", USES)
def test_an_endpoint_that_has_no_address(use: str) -> None:
    config = S3ClientConfig(access_key_id="id", secret_access_key="hidden", max_attempts=2, proxy="")
    client = S3Client("us-east-1", endpoint="http://no-such-host.invalid", s3client_config=config)
    with pytest.raises(S3ConnectionError, match="check the endpoint") as caught:
        USES[use](client, "a-bucket")
    check_words(caught.value, "hidden")


@pytest.mark.parametrize("use", USES)
def test_a_store_that_does_not_answer(
    counting_server: CountingServer, make_client: Callable[..., S3Client], use: str
) -> None:
    counting_server.put("key", bytes(100))
    counting_server.put("odd//key", bytes(100))
    counting_server.fault(hold=True)
    client = make_client(counting_server, read_timeout=0.3, max_attempts=2)
    with pytest.raises(S3TimeoutError, match=rf"s3://{counting_server.bucket}.*read_timeout") as caught:
        USES[use](client, counting_server.bucket)
    counting_server.wait_for_requests(2)
    counting_server.release()
    assert len(counting_server.requests) == 2
    check_words(caught.value)


@pytest.mark.parametrize("uri", ["bucket/key", "https://bucket/key", "s3:/bucket/key", "s3://b"])
def test_a_malformed_uri(uri: str) -> None:
    with pytest.raises(ValueError, match="s3://"):
        parse_s3_uri(uri)


def test_a_part_size_below_what_s3_allows() -> None:
    with pytest.raises(ValueError, match=r"part_size is 1048576; .*5 MiB"):
        S3ClientConfig(part_size=2**20)


@pytest.mark.parametrize(
    "endpoint",
    [
        *("localhost:9000", "ftp://host", "http://", "http://h:99999", "https://h?x=1", "http://[::1"),
        *("http://u:hidden-thing@h", "http://u:hidden-thing/more@h", "http://@h"),
        *("http://a b", "http://a..b", "http://a\n", "http://a%20b", f"http://{'a' * 64}", "http://ü", "http://h/ü"),
        *("http://256.0.0.1", "http://[fe80::1%25eth0]"),
    ],
)
def test_an_endpoint_that_is_no_url(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint is") as caught:
        S3Client("us-east-1", endpoint=endpoint)
    assert "https://s3.example.com" in str(caught.value)
    assert "hidden-thing" not in str(caught.value)


@pytest.mark.parametrize("host", ["a", "a.b.", "a_b-c.example:80", "10.0.0.1", "[::1]:9000", "1.example", "A.B/base"])
def test_an_endpoint_that_is_one(host: str) -> None:
    assert S3Client("us-east-1", endpoint=f"https://{host}/").endpoint == f"https://{host}"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "a NoneType; it must return a mapping"),
        ({}, "no 'access_key_id'"),
        ({"access_key_id": "id"}, "no 'secret_access_key'"),
        ({"access_key_id": "id", "secret_access_key": "hidden\n"}, "strip"),
        ({"access_key_id": "id", "secret_access_key": "x", "session_token": "hidden\n"}, "strip"),
        ({"access_key_id": "id", "secret_access_key": "x", "expires_at": "soon"}, "time zone"),
        ({"access_key_id": "id", "secret_access_key": "x", "expires_at": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001
    ],
)
@pytest.mark.parametrize("use", ["GET", "LIST"])
def test_a_credential_callable_that_returns_nonsense(
    moto_server: S3Server, make_client: Callable[..., S3Client], use: str, answer: Any, words: str
) -> None:
    with pytest.raises(CredentialsError, match=words) as caught:
        USES[use](make_client(moto_server, credentials=lambda: answer), "a-bucket")
    check_words(caught.value, "hidden")


@pytest.mark.parametrize("use", ["GET", "LIST"])
def test_a_credential_callable_that_raises(
    moto_server: S3Server, make_client: Callable[..., S3Client], use: str
) -> None:
    def ask() -> Any:
        raise LookupError("the vault is closed")

    with pytest.raises(CredentialsError, match="LookupError: the vault is closed") as caught:
        USES[use](make_client(moto_server, credentials=ask), "a-bucket")
    check_words(caught.value)


def test_no_credentials_at_all(run_program: Callable[..., str]) -> None:
    output = run_program(
        """
        os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"}
        client = S3Client("us-east-1", endpoint="http://127.0.0.1:9")
        reading, listing = client.get_object("a-bucket", "key"), client.list_objects("a-bucket")
        for use in (reading.read_all, lambda: next(listing)):
            try:
                use()
            except CredentialsError as error:
                print(error)
        """
    )
    for line in output.splitlines():
        assert "AWS_ACCESS_KEY_ID" in line
        assert "unsigned=True" in line
    assert len(output.splitlines()) == 2


def test_credentials_are_renewed_in_mid_work(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    asked: list[str] = []

    def ask() -> dict[str, Any]:
        asked.append("x")
        later = datetime.now(UTC) + timedelta(hours=1)
        return {"access_key_id": f"key{len(asked)}", "secret_access_key": "secret", "expires_at": later}

    client = make_client(counting_server, credentials=ask, part_size=5 * 2**20)
    data = bytes(12 * 2**20)
    stream = client.put_object(counting_server.bucket, "key")
    stream.write(data[: 6 * 2**20])
    counting_server.wait_for_requests(1, operation="UploadPart", status=200)
    counting_server.expire_credentials("key1")
    stream.write(data[6 * 2**20 :])
    stream.close()
    assert counting_server.get("key") == data
    reading = client.get_object(counting_server.bucket, "key")
    came = len(next(reading))
    counting_server.expire_credentials("key2")
    came += sum(len(chunk) for chunk in reading)
    assert came == len(data)
    counting_server.expire_credentials("key3")
    assert len(client.get_object(counting_server.bucket, "key").read_all()) == len(data)
    assert len(next(client.list_objects(counting_server.bucket))) == 1
    assert len(asked) == 4

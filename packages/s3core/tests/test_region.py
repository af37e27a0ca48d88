"""A region that is wrong or unknown: the store itself tells the right one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from s3core import NoSuchBucketError, S3Client, S3ClientConfig, S3ConnectionError
from servers import CountingServer
from servers._script import Script

pytestmark = pytest.mark.usefixtures("each_way")

USES: dict[str, Callable[[S3Client, str], Any]] = {
    "GET": lambda client, bucket: client.get_object(bucket, "key").read_all(),
    "GET of an odd key": lambda client, bucket: client.get_object(bucket, "odd//key").read_all(),
    "HEAD": lambda client, bucket: client.head_object(bucket, "key"),
    "LIST": lambda client, bucket: next(client.list_objects(bucket)),
    "PUT": lambda client, bucket: client.put_object(bucket, "new").close(),
}
OPERATIONS = dict(zip(USES, ["GetObject", "GetObject", "HeadObject", "ListObjectsV2", "PutObject"], strict=True))
HEADER = {"x-amz-bucket-region": "eu-north-1"}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("status", [301, 400])
def test_a_wrong_region_is_corrected(
    counting_server: CountingServer, make_client: Callable[..., S3Client], use: str, status: int
) -> None:
    for key in ("key", "odd//key"):
        counting_server.put(key, b"abc")
    code = "PermanentRedirect" if status == 301 else "AuthorizationHeaderMalformed"
    counting_server.fault(operation=OPERATIONS[use], times=1, status=status, code=code, headers=HEADER)
    counting_server.fault(operation="HeadBucket", headers=HEADER)
    USES[use](make_client(counting_server), counting_server.bucket)
    assert "/eu-north-1/s3/" in counting_server.requests[-1].headers["authorization"]


@pytest.mark.parametrize("use", USES)
def test_a_wrong_region_is_corrected_for_all_that_is_on_its_way(
    counting_server: CountingServer, make_client: Callable[..., S3Client], use: str
) -> None:
    for key in ("key", "odd//key"):
        counting_server.put(key, b"abc")
    operation = OPERATIONS[use]
    wrong: dict[str, Any] = {"status": 400, "code": "AuthorizationHeaderMalformed", "headers": HEADER}
    counting_server.fault(operation=operation, times=8, hold=True, **wrong)
    counting_server.fault(operation="HeadBucket", headers=HEADER)
    client, failures = make_client(counting_server), []

    def work() -> None:
        try:
            USES[use](client, counting_server.bucket)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    counting_server.wait_for_requests(8, operation=operation)
    while any(thread.is_alive() for thread in threads):
        counting_server.release()
    assert failures == []


@pytest.mark.parametrize("use", USES)
def test_keys_that_expire_are_renewed_where_the_store_names_the_region_that_was_asked(
    counting_server: CountingServer, make_client: Callable[..., S3Client], use: str
) -> None:
    for key in ("key", "odd//key"):
        counting_server.put(key, b"abc")
    names = iter(["old", "new"])
    client = make_client(
        counting_server, credentials=lambda: {"access_key_id": next(names), "secret_access_key": "secret"}
    )
    named = {"x-amz-bucket-region": counting_server.region}
    counting_server.fault(access_key="old", status=400, code="ExpiredToken", headers=named)
    USES[use](client, counting_server.bucket)
    assert "Credential=new/" in counting_server.requests[-1].headers["authorization"]


def test_aws_is_asked_again_when_it_is_busy_or_the_connection_breaks(
    start_script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It closes the connection, and says so: else a next request may go where nobody listens any more.
    end = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
    told = b"HTTP/1.1 403 Forbidden\r\nx-amz-bucket-region: eu-north-1\r\n" + end
    script = start_script([], [b"HTTP/1.1 503 Slow Down\r\n" + end], [told])
    monkeypatch.setattr("s3core._rest._AWS", script.endpoint)
    config = S3ClientConfig(access_key_id="a", secret_access_key="b", max_attempts=3)
    rest = S3Client("us-east-1", s3client_config=config)._runtime.rest
    assert rest.find_region("bucket") == "eu-north-1"
    script.answers = [[]] * 3
    with pytest.raises(S3ConnectionError, match=r"the region of s3://bucket is unknown"):
        rest.find_region("bucket")
    script.answers = [[b"HTTP/1.1 404 Not Found\r\n" + end]]
    with pytest.raises(NoSuchBucketError, match=r"s3://bucket"):
        rest.find_region("bucket")

"""What the config asks for is what is sent, with each kind of request that it belongs to."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable
from typing import Any

import pytest

from s3core import S3Client
from servers import CountingServer, RecordedRequest

pytestmark = pytest.mark.usefixtures("each_way")

MiB = 2**20
KEY = bytes(range(32))
SSE_C = {
    "algorithm": "AES256",
    "key": base64.b64encode(KEY).decode(),
    "key-md5": base64.b64encode(hashlib.md5(KEY).digest()).decode(),
}


@pytest.fixture
def sent(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> Callable[..., Any]:
    """Every kind of request under some settings: by S3's name for it, the requests of that kind."""

    def send(**config: Any) -> dict[str, list[RecordedRequest]]:
        bucket = counting_server.bucket
        for key in ("key", "odd//key"):
            counting_server.put(key, b"abc")
        counting_server.clear()
        client = make_client(counting_server, part_size=5 * MiB, **config)
        for key in ("key", "odd//key"):
            assert client.get_object(bucket, key).read_all() == b"abc"
        client.head_object(bucket, "key")
        for size in (10, 6 * MiB):
            with client.put_object(bucket, f"new{size}") as stream:
                stream.write(bytes(size))
        next(client.list_objects(bucket))
        client.copy_object(bucket, "key", bucket, "copied")
        client.delete_object(bucket, "new10")
        client.delete_objects(bucket, ["copied"])
        with client.put_object(bucket, "given up") as stream:
            stream.write(bytes(6 * MiB))
            stream.abort()
        found: dict[str, list[RecordedRequest]] = {}
        for request in counting_server.requests:
            found.setdefault(request.operation, []).append(request)
        return found

    return send


def values(requests: list[RecordedRequest], header: str) -> set[str | None]:
    return {request.headers.get(header) for request in requests}


CREATING = ("PutObject", "CreateMultipartUpload", "CopyObject")


def test_a_plain_config_sends_nothing_of_it(sent: Callable[..., Any]) -> None:
    for requests in sent().values():
        for request in requests:
            assert not [name for name in request.headers if "encryption" in name or "storage-class" in name]
            assert "x-amz-request-payer" not in request.headers
            assert "x-amz-expected-bucket-owner" not in request.headers


@pytest.mark.parametrize("sse", ["AES256", "aws:kms", "aws:kms:dsse"])
def test_encryption_is_asked_for_where_an_object_is_made(sent: Callable[..., Any], sse: str) -> None:
    more = {} if sse == "AES256" else {"sse_kms_key_id": "alias/key"}
    found = sent(sse=sse, sse_bucket_key_enabled=sse == "aws:kms", **more)
    for operation, requests in found.items():
        expected = sse if operation in CREATING else None
        assert values(requests, "x-amz-server-side-encryption") == {expected}, operation
        if more:
            key = values(requests, "x-amz-server-side-encryption-aws-kms-key-id")
            assert key == {"alias/key" if expected else None}
    bucket_key = values(found["PutObject"], "x-amz-server-side-encryption-bucket-key-enabled")
    assert bucket_key == {"true" if sse == "aws:kms" else None}


def test_a_customer_key_goes_with_everything_that_touches_the_bytes(sent: Callable[..., Any]) -> None:
    found = sent(sse="SSE-C", sse_customer_key=KEY)
    for operation in ("GetObject", "HeadObject", "PutObject", "CreateMultipartUpload", "UploadPart", "CopyObject"):
        for name, value in SSE_C.items():
            header = f"x-amz-server-side-encryption-customer-{name}"
            assert values(found[operation], header) == {value}, (operation, name)
    for operation in ("ListObjectsV2", "DeleteObject", "DeleteObjects", "AbortMultipartUpload"):
        assert values(found[operation], "x-amz-server-side-encryption-customer-key") == {None}
    copied = values(found["CopyObject"], "x-amz-copy-source-server-side-encryption-customer-key")
    assert copied == {SSE_C["key"]}


def test_requester_pays_and_the_expected_owner_go_with_every_request(sent: Callable[..., Any]) -> None:
    for operation, requests in sent(requester_pays=True, expected_bucket_owner="123456789012").items():
        assert values(requests, "x-amz-request-payer") == {"requester"}, operation
        assert values(requests, "x-amz-expected-bucket-owner") == {"123456789012"}, operation


def test_the_storage_class_goes_where_an_object_is_made(sent: Callable[..., Any]) -> None:
    for operation, requests in sent(storage_class="STANDARD_IA").items():
        assert values(requests, "x-amz-storage-class") == {"STANDARD_IA" if operation in CREATING else None}


@pytest.mark.parametrize("checksum", ["CRC64NVME", "SHA256", None])
def test_the_checksum_goes_with_every_body(sent: Callable[..., Any], checksum: str | None) -> None:
    found = sent(upload_checksum=checksum)
    for request in found["PutObject"] + found["UploadPart"]:
        sums = {name for name in request.headers if name.startswith("x-amz-checksum-")}
        assert sums == ({f"x-amz-checksum-{checksum.lower()}"} if checksum else set())
        assert request.headers.get("x-amz-sdk-checksum-algorithm") == checksum
    assert values(found["CreateMultipartUpload"], "x-amz-checksum-algorithm") == {checksum}


def test_the_user_agent_goes_with_every_request(sent: Callable[..., Any]) -> None:
    for requests in sent(user_agent_suffix="my-job/7").values():
        (agent,) = values(requests, "user-agent")
        assert agent is not None
        assert agent.startswith("s3core/")
        assert agent.endswith(" my-job/7")


def test_unsigned_requests_carry_no_signature(sent: Callable[..., Any]) -> None:
    for operation, requests in sent(unsigned=True).items():
        assert values(requests, "authorization") == {None}, operation


def test_each_request_is_one_line_at_level_debug(
    counting_server: CountingServer, sent: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "s3core")
    requests = [request for group in sent(session_token="hidden-token").values() for request in group]
    lines = [record.getMessage() for record in caplog.records if record.name == "s3core"]
    assert len(lines) == len(requests)
    assert all(record.levelno == logging.DEBUG for record in caplog.records if record.name == "s3core")
    assert all(f"s3://{counting_server.bucket}" in line for line in lines)
    assert not [line for line in lines if "hidden" in line or counting_server.secret_key in line]

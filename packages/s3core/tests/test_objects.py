"""Copy, delete and head."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from s3core import (
    AccessDeniedError,
    NoSuchBucketError,
    NoSuchKeyError,
    ObjectChangedError,
    S3Client,
    S3ConnectionError,
    S3Exception,
)
from s3core._head import Target
from s3core._objects import copy_object
from servers import CountingServer, S3Server

MiB = 2**20
PART = 5 * MiB
DATA = random.Random(1).randbytes(2 * PART + 5)


@pytest.fixture
def client(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> S3Client:
    return make_client(counting_server, max_attempts=3, part_size=PART)


def test_an_object_is_copied_within_and_between_buckets(
    s3_server: S3Server, make_client: Callable[..., S3Client]
) -> None:
    client, here, there = make_client(s3_server), s3_server.create_bucket(), s3_server.create_bucket()
    with client.put_object(here, "from here", metadata={"run": "7"}) as stream:
        stream.write(b"abc")
    client.copy_object(here, "from here", here, "to/a b")
    client.copy_object(here, "to/a b", there, "c")
    assert client.get_object(there, "c").read_all() == b"abc"
    assert s3_server.boto3_client().head_object(Bucket=there, Key="c")["Metadata"] == {"run": "7"}


@pytest.fixture(params=["moto_server", "seaweedfs_server", "ceph_server"])
def any_server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


def test_a_large_object_is_copied_in_parts(any_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client, bucket = make_client(any_server, part_size=PART), any_server.create_bucket()
    with client.put_object(bucket, "large", metadata={"run": "7"}) as stream:
        stream.write(DATA)
    source, target = Target(bucket, "large"), Target(bucket, "sp ace+ü")
    copy_object(client._runtime, source, target, most_at_once=PART, part_size=PART)
    assert client.get_object(bucket, "sp ace+ü").read_all() == DATA
    store = any_server.boto3_client()
    assert store.head_object(Bucket=bucket, Key="sp ace+ü")["Metadata"] == {"run": "7"}
    assert "Uploads" not in store.list_multipart_uploads(Bucket=bucket)


def test_a_copy_in_parts_that_fails_leaves_nothing(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.put("large", DATA)
    counting_server.put("target", b"old")
    counting_server.fault(operation="UploadPartCopy", status=403, code="AccessDenied")
    bucket = counting_server.bucket
    with pytest.raises(AccessDeniedError, match=f"s3://{bucket}/target"):
        copy_object(
            client._runtime, Target(bucket, "large"), Target(bucket, "target"), most_at_once=PART, part_size=PART
        )
    assert counting_server.get("target") == b"old"
    assert counting_server.uploads() == []


def test_an_object_that_is_replaced_while_it_is_copied_raises(
    counting_server: CountingServer, client: S3Client
) -> None:
    etag = counting_server.put("source", b"abc")
    bucket = counting_server.bucket
    for operation in ("CopyObject", "UploadPartCopy"):
        counting_server.fault(operation=operation, status=412, code="PreconditionFailed")
    for size in (1, 100):
        with pytest.raises(ObjectChangedError, match=f"s3://{bucket}/source"):
            copy_object(client._runtime, Target(bucket, "source"), Target(bucket, "b"), most_at_once=size, part_size=2)
    copies = [request for request in counting_server.requests if request.operation.endswith("Copy")]
    assert {request.headers["x-amz-copy-source-if-match"] for request in copies} == {etag}
    assert counting_server.uploads() == []


def test_a_copy_that_fails_behind_a_status_of_200_is_tried_again(
    counting_server: CountingServer, client: S3Client
) -> None:
    counting_server.put("source", b"abc")
    counting_server.fault(operation="CopyObject", times=1, status=200, code="InternalError")
    client.copy_object(counting_server.bucket, "source", counting_server.bucket, "target")
    assert counting_server.get("target") == b"abc"


CUT_ANSWERS = [b"", b"  ", b"<?xml version='1.0'?>", b"<html>sign in</html>"]


@pytest.mark.parametrize("body", CUT_ANSWERS)
@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObjects"])
def test_an_answer_that_ends_before_it_tells_of_success_is_asked_for_again(
    counting_server: CountingServer, make_client: Callable[..., S3Client], operation: str, body: bytes
) -> None:
    client = make_client(counting_server, max_attempts=2)
    bucket = counting_server.bucket

    def change() -> None:
        if operation == "CopyObject":
            client.copy_object(bucket, "old", bucket, "new")
        else:
            client.delete_objects(bucket, ["old"])

    counting_server.put("old", b"old")
    # Nothing is done, and the status says it is.
    answer = {"status": 500, "instead": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body}
    counting_server.fault(operation=operation, times=3, **answer)
    with pytest.raises(S3ConnectionError, match=r"s3://.* ended before it told"):
        change()
    assert counting_server.keys() == ["old"]
    change()
    assert counting_server.keys() == (["new", "old"] if operation == "CopyObject" else [])


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObject"])
def test_what_may_have_been_done_is_an_error_that_says_so(
    counting_server: CountingServer, make_client: Callable[..., S3Client], operation: str
) -> None:
    client = make_client(counting_server, max_attempts=1)
    counting_server.put("old", b"old")
    counting_server.fault(operation=operation, times=1, cut=0)
    counting_server.fault(operation=operation, times=1, status=504)
    counting_server.fault(operation=operation, times=1, status=503)
    bucket = counting_server.bucket

    def change() -> None:
        if operation == "CopyObject":
            client.copy_object(bucket, "old", bucket, "new")
        else:
            client.delete_object(bucket, "old")

    said = []
    for _ in range(3):
        with pytest.raises(S3Exception) as caught:
            change()
        said.append("the store has done it all the same" in str(caught.value))
    assert said == [True, True, False]


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        ({"status": 412, "code": "PreconditionFailed"}, ObjectChangedError),
        ({"status": 404, "code": "NoSuchKey"}, NoSuchKeyError),
    ],
)
def test_a_source_that_is_gone_after_an_answer_that_is_lost_is_an_error_that_says_so(
    counting_server: CountingServer, client: S3Client, refusal: dict[str, Any], kind: type[S3Exception]
) -> None:
    counting_server.put("old", b"old")
    counting_server.fault(operation="CopyObject", times=1, cut=0)
    counting_server.fault(operation="CopyObject", **refusal)
    with pytest.raises(kind, match="the store has done it all the same") as caught:
        client.copy_object(counting_server.bucket, "old", counting_server.bucket, "new")
    assert caught.value.in_doubt
    assert counting_server.get("new") == b"old"


def test_a_copy_of_what_is_not_there_names_it(s3_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client, bucket = make_client(s3_server), s3_server.create_bucket()
    with pytest.raises(NoSuchKeyError, match=f"s3://{bucket}/none"):
        client.copy_object(bucket, "none", bucket, "target")


def test_deleting_what_is_not_there_is_harmless(s3_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client, bucket = make_client(s3_server), s3_server.create_bucket()
    client.delete_object(bucket, "none")
    client.delete_objects(bucket, ["none", "nor this"])
    client.delete_objects(bucket, [])


def test_many_objects_are_deleted_a_thousand_per_request(counting_server: CountingServer, client: S3Client) -> None:
    keys = [f"{n:05}" for n in range(2500)]
    for key in keys[::100]:
        counting_server.put(key, b"")
    client.delete_objects(counting_server.bucket, iter(keys))
    assert counting_server.operations() == ["DeleteObjects"] * 3
    assert counting_server.keys() == []


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (405, "MethodNotAllowed")])
def test_many_objects_are_deleted_one_by_one_where_the_store_knows_no_other_way(
    counting_server: CountingServer, make_client: Callable[..., S3Client], status: int, code: str
) -> None:
    client = make_client(counting_server, max_attempts=1, user_agent_suffix=code)  # not the other case's connections
    counting_server.fault(operation="DeleteObjects", status=status, code=code)
    keys = [f"{n:05}" for n in range(2500)]
    for _ in range(2):
        for key in keys[::100]:
            counting_server.put(key, b"")
        client.delete_objects(counting_server.bucket, iter(keys[::10]))
        assert counting_server.keys() == []
    assert counting_server.operations() == ["DeleteObjects"] + ["DeleteObject"] * 500
    counting_server.put("a", b"")
    counting_server.fault(operation="DeleteObject", key="b", status=403, code="AccessDenied")
    with pytest.raises(AccessDeniedError, match=f"s3://{counting_server.bucket}/b"):
        client.delete_objects(counting_server.bucket, ["b", "a"])
    assert counting_server.keys() == []


def test_a_store_that_deletes_nothing_is_not_asked_for_each_object(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(counting_server, max_attempts=1, max_concurrency=2)
    for operation in ("DeleteObjects", "DeleteObject"):
        counting_server.fault(operation=operation, status=405, code="MethodNotAllowed")
    with pytest.raises(S3Exception, match=f"s3://{counting_server.bucket}/"):
        client.delete_objects(counting_server.bucket, [f"{n:05}" for n in range(1000)])
    assert len(counting_server.requests) < 100


def test_a_bulk_deletion_that_fails_in_part_names_the_first_and_counts_the_others(
    counting_server: CountingServer, client: S3Client
) -> None:
    counting_server.fault(operation="DeleteObjects", status=403, code="AccessDenied")
    with pytest.raises(AccessDeniedError, match=f"s3://{counting_server.bucket}"):
        client.delete_objects(counting_server.bucket, ["a", "b"])


def test_a_bulk_deletion_takes_its_keys_as_it_goes_and_ends_at_the_first_refusal(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(counting_server, max_concurrency=2)
    counting_server.fault(operation="DeleteObjects", status=403, code="AccessDenied")
    taken = 0

    def keys() -> Iterator[str]:
        nonlocal taken
        for taken in range(1_000_000):
            yield f"{taken}"

    with pytest.raises(AccessDeniedError):
        client.delete_objects(counting_server.bucket, keys())
    assert taken < 100_000


@pytest.mark.parametrize("key", ["", 3, "x" * 1025, "half a \ud800 pair"])
def test_a_key_that_cannot_be_one_is_not_deleted_in_bulk_either(client: S3Client, key: str) -> None:
    with pytest.raises(ValueError, match=r"key .*in s3://a-bucket"):
        client.delete_objects("a-bucket", ["good", key])


def test_one_text_is_not_taken_for_many_keys(client: S3Client) -> None:
    with pytest.raises(TypeError, match="delete_object"):
        client.delete_objects("a-bucket", "key")


def test_an_unknown_bucket_is_named(s3_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client = make_client(s3_server)
    with pytest.raises(NoSuchBucketError, match="s3://no-such-bucket"):
        client.delete_object("no-such-bucket", "key")
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket/key"):
        client.head_object("no-such-bucket", "key")
    with pytest.raises(NoSuchBucketError, match="s3://no-such-bucket/key"):
        client.get_object("no-such-bucket", "key").read_all()


def test_an_object_is_described(s3_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client, bucket = make_client(s3_server), s3_server.create_bucket()
    with client.put_object(bucket, "key") as stream:
        stream.write(b"abc")
    info = client.head_object(bucket, "key")
    assert (info.key, info.size) == ("key", 3)
    assert info.etag
    assert info.last_modified is not None
    with pytest.raises(NoSuchKeyError, match=f"HEAD of s3://{bucket}/none"):
        client.head_object(bucket, "none")


def test_an_object_is_found_or_not(s3_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client, bucket = make_client(s3_server), s3_server.create_bucket()
    with client.put_object(bucket, "key") as stream:
        stream.write(b"abc")
    assert client.find_object(bucket, "key") == client.head_object(bucket, "key")
    assert client.find_object(bucket, "none") is None
    with pytest.raises(NoSuchBucketError, match="s3://no-such-bucket"):
        client.find_object("no-such-bucket", "none")


def test_a_bucket_is_looked_for_once_though_several_of_its_keys_are_missing(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(counting_server)
    assert [client.find_object(counting_server.bucket, key) for key in ("a", "b", "c")] == [None] * 3
    assert counting_server.operations().count("HeadBucket") == 1


def test_an_object_that_may_not_be_looked_for_is_not_taken_for_missing(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(counting_server)
    counting_server.fault(operation="HeadObject", status=403, code="AccessDenied")
    with pytest.raises(AccessDeniedError, match=f"s3://{counting_server.bucket}/key"):
        client.find_object(counting_server.bucket, "key")


def test_a_bucket_that_may_not_be_looked_at_is_there(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(counting_server)
    counting_server.fault(operation="HeadBucket", status=403, code="AccessDenied")
    assert client.find_object(counting_server.bucket, "key") is None


def test_a_version_is_read_and_described(moto_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client, bucket = make_client(moto_server), moto_server.create_bucket()
    store = moto_server.boto3_client()
    store.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    versions = [
        store.put_object(Bucket=bucket, Key=key, Body=body)["VersionId"]
        for key in ("a", "o//a")
        for body in (b"first", b"2nd")
    ]
    for key, (first, second) in {"a": versions[:2], "o//a": versions[2:]}.items():
        assert client.get_object(bucket, key, version_id=first).read_all() == b"first"
        assert client.get_object(bucket, key, version_id=second).read_all() == b"2nd"
        assert client.head_object(bucket, key, version_id=first).size == 5
        assert client.head_object(bucket, key).version_id == second
        with pytest.raises(S3Exception):
            client.get_object(bucket, key, version_id="none").read_all()

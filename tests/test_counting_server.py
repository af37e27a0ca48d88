"""The counting server speaks S3 as boto3 does, records what it is asked, and injects the faults it is told."""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import os
import random
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from botocore.exceptions import ClientError, HTTPClientError, ResponseStreamingError

from servers import CountingServer, start_counting_server
from servers.counting import GeneratedObjects
from servers.counting._errors import S3Error
from servers.counting._maps import Maps
from servers.counting._store import Store, StoredObject

# A clock of Windows ticks 64 times a second, and what ends between two ticks ends at the first.
TICK_SECONDS = 1 / 64 if sys.platform == "win32" else 0.001

ODD_KEYS = ["a//b", "dir/", "/lead", "a/../b", "sp ace+%41ü漢", "&<>'\"", "~tilde", "a\tb"]


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Message
    body: bytes

    @property
    def code(self) -> str:
        """S3's code for an error; else empty."""
        return self.body.partition(b"<Code>")[2].partition(b"</Code>")[0].decode()


class Wire:
    """Requests with headers that boto3 would not send."""

    def __init__(self, server: CountingServer) -> None:
        # It connects again by itself when the server closes the connection.
        self._connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.endpoint).netloc)
        self._bucket = server.bucket

    def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send one, and return the status, the headers and the body of the answer."""
        self._connection.request(method, f"/{self._bucket}/{path}", body, headers or {})
        answer = self._connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


@pytest.fixture
def client(counting_server: CountingServer) -> Iterator[Any]:
    client = counting_server.boto3_client(retries={"total_max_attempts": 1})
    yield client
    client.close()


@pytest.fixture
def wire(counting_server: CountingServer) -> Iterator[Wire]:
    wire = Wire(counting_server)
    yield wire
    wire.close()


def _code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])


def _read_to_the_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


# Objects


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_key_is_kept_exactly(counting_server: CountingServer, client: Any, key: str) -> None:
    bucket = counting_server.bucket
    client.put_object(Bucket=bucket, Key=key, Body=b"body of " + key.encode())
    assert counting_server.objects() == {key: b"body of " + key.encode()}
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"body of " + key.encode()
    assert [c["Key"] for c in client.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]})
    assert counting_server.keys() == []


def test_an_object_comes_with_its_headers(counting_server: CountingServer, client: Any) -> None:
    put = client.put_object(
        Bucket=counting_server.bucket, Key="a", Body=b"abc", ContentType="text/plain", Metadata={"colour": "red"}
    )
    got = client.get_object(Bucket=counting_server.bucket, Key="a")
    got["Body"].read()
    head = client.head_object(Bucket=counting_server.bucket, Key="a")
    for answer in (got, head):
        assert (answer["ETag"], answer["ContentType"], answer["ContentLength"]) == (put["ETag"], "text/plain", 3)
        assert answer["Metadata"] == {"colour": "red"}
    assert put["ETag"] == '"900150983cd24fb0d6963f7d28e17f72"'


@pytest.mark.parametrize(
    ("wanted", "expected", "content_range"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=8-100", b"89", "bytes 8-9/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
    ],
)
def test_a_range_is_answered(
    counting_server: CountingServer, client: Any, wanted: str, expected: bytes, content_range: str
) -> None:
    counting_server.put("a", b"0123456789")
    got = client.get_object(Bucket=counting_server.bucket, Key="a", Range=wanted)
    assert (got["Body"].read(), got["ContentRange"]) == (expected, content_range)


@pytest.mark.parametrize(("data", "wanted"), [(b"", "bytes=0-9"), (b"0123456789", "bytes=10-")])
def test_a_range_behind_the_end_is_refused(
    counting_server: CountingServer, client: Any, data: bytes, wanted: str
) -> None:
    counting_server.put("a", data)
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket=counting_server.bucket, Key="a", Range=wanted)
    assert _code(caught.value) == "InvalidRange"


def test_conditions_are_checked(counting_server: CountingServer, client: Any) -> None:
    bucket, etag = counting_server.bucket, counting_server.put("a", b"old")
    client.get_object(Bucket=bucket, Key="a", IfMatch=etag)["Body"].read()
    client.put_object(Bucket=bucket, Key="b", Body=b"", IfNoneMatch="*")
    calls: list[Callable[[], Any]] = [
        lambda: client.get_object(Bucket=bucket, Key="a", IfMatch='"other"'),
        lambda: client.put_object(Bucket=bucket, Key="a", Body=b"", IfNoneMatch="*"),
        lambda: client.put_object(Bucket=bucket, Key="a", Body=b"", IfMatch='"other"'),
    ]
    for call in calls:
        with pytest.raises(ClientError) as caught:
            call()
        assert _code(caught.value) == "PreconditionFailed"
    assert counting_server.get("a") == b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="no two processes share a port")
def test_of_writers_to_two_processes_one_is_the_first() -> None:
    with start_counting_server(processes=2) as server:
        clients = [server.boto3_client(retries={"total_max_attempts": 1}) for _ in range(6)]
        barrier = threading.Barrier(6, timeout=60)

        def race(number: int) -> list[str]:
            outcomes = []
            for key in range(100):
                barrier.wait()
                try:
                    clients[number].put_object(Bucket=server.bucket, Key=str(key), Body=b"%d" % number, IfNoneMatch="*")
                    outcomes.append("first")
                except ClientError as error:
                    outcomes.append(_code(error))
            clients[number].close()
            return outcomes

        with ThreadPoolExecutor(6) as threads:
            outcomes = list(zip(*threads.map(race, range(6)), strict=True))
        assert [sorted(of_key) for of_key in outcomes] == [["PreconditionFailed"] * 5 + ["first"]] * 100
        winners = {str(key): b"%d" % of_key.index("first") for key, of_key in enumerate(outcomes)}
        assert server.objects() == dict(sorted(winners.items()))


def test_a_missing_object_and_a_missing_bucket_are_told_apart(counting_server: CountingServer, client: Any) -> None:
    for bucket, code in ((counting_server.bucket, "NoSuchKey"), ("no-such-bucket", "NoSuchBucket")):
        with pytest.raises(ClientError) as caught:
            client.get_object(Bucket=bucket, Key="none")
        assert _code(caught.value) == code


def test_a_missing_bucket_holds_nothing_to_delete_or_to_list(client: Any) -> None:
    bucket = "no-such-bucket"
    calls: list[Callable[[], Any]] = [
        lambda: client.delete_object(Bucket=bucket, Key="a"),
        lambda: client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}]}),
        lambda: client.delete_bucket(Bucket=bucket),
        lambda: client.list_objects_v2(Bucket=bucket),
        lambda: client.list_multipart_uploads(Bucket=bucket),
    ]
    for call in calls:
        with pytest.raises(ClientError) as caught:
            call()
        assert _code(caught.value) == "NoSuchBucket"


def test_an_object_is_deleted_under_a_condition(counting_server: CountingServer, client: Any) -> None:
    bucket, etag = counting_server.bucket, counting_server.put("a", b"abc")
    for key, condition, code in (("a", '"other"', "PreconditionFailed"), ("none", etag, "NoSuchKey")):
        with pytest.raises(ClientError) as caught:
            client.delete_object(Bucket=bucket, Key=key, IfMatch=condition)
        assert _code(caught.value) == code
    assert counting_server.keys() == ["a"]
    client.delete_object(Bucket=bucket, Key="a", IfMatch=etag)
    assert counting_server.keys() == []


def test_an_archived_object_has_a_head_and_no_body(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", b"abc", headers={"x-amz-storage-class": "GLACIER"})
    assert client.head_object(Bucket=counting_server.bucket, Key="a")["StorageClass"] == "GLACIER"
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket=counting_server.bucket, Key="a")
    assert _code(caught.value) == "InvalidObjectState"


def test_a_copy_outlives_its_source(counting_server: CountingServer, client: Any) -> None:
    bucket = counting_server.bucket
    counting_server.put("ä b", b"abc")
    client.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "ä b"})
    client.delete_object(Bucket=bucket, Key="ä b")
    assert counting_server.objects() == {"copy": b"abc"}


def test_a_copy_has_the_metadata_of_its_source_or_other(counting_server: CountingServer, client: Any) -> None:
    bucket = counting_server.bucket
    source = {"Bucket": bucket, "Key": "source"}
    counting_server.put("source", b"abc", headers={"x-amz-meta-colour": "red", "content-type": "text/plain"})
    client.copy_object(Bucket=bucket, Key="kept", CopySource=source, Metadata={"colour": "blue"})
    client.copy_object(
        Bucket=bucket, Key="replaced", CopySource=source, Metadata={"colour": "blue"}, MetadataDirective="REPLACE"
    )
    heads = {key: client.head_object(Bucket=bucket, Key=key) for key in ("kept", "replaced")}
    assert {key: head["Metadata"]["colour"] for key, head in heads.items()} == {"kept": "red", "replaced": "blue"}
    assert [head["ContentType"] for head in heads.values()] == ["text/plain", "binary/octet-stream"]


def test_a_copy_is_made_of_the_source_that_is_wanted(counting_server: CountingServer, client: Any) -> None:
    bucket, etag = counting_server.bucket, counting_server.put("source", b"abc")
    source = {"Bucket": bucket, "Key": "source"}
    conditions: list[dict[str, str]] = [{"CopySourceIfMatch": '"other"'}, {"CopySourceIfNoneMatch": etag}]
    for condition in conditions:
        with pytest.raises(ClientError) as caught:
            client.copy_object(Bucket=bucket, Key="copy", CopySource=source, **condition)
        assert _code(caught.value) == "PreconditionFailed"
    assert counting_server.keys() == ["source"]
    client.copy_object(Bucket=bucket, Key="copy", CopySource=source, CopySourceIfMatch=etag)
    assert counting_server.get("copy") == b"abc"


def test_both_kinds_of_chunks_are_unwrapped(counting_server: CountingServer) -> None:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(counting_server.endpoint).netloc)
    inner = b"5;chunk-signature=0\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n"
    headers = {"Content-Encoding": "aws-chunked,gzip", "Transfer-Encoding": "chunked"}
    for key in "ab":  # the second shows that the connection is still in step
        pieces = [inner[i : i + 7] for i in range(0, len(inner), 7)]
        connection.request("PUT", f"/{counting_server.bucket}/{key}", pieces, headers, encode_chunked=True)
        assert connection.getresponse().read() == b""
    connection.close()
    assert counting_server.objects() == {"a": b"hello world", "b": b"hello world"}


@pytest.mark.parametrize("body", [b"x" * 5000, b"zz\r\nhello\r\n0\r\n\r\n"], ids=["no line", "no size"])
def test_a_body_that_is_not_in_chunks_is_refused(counting_server: CountingServer, wire: Wire, body: bytes) -> None:
    answer = wire.send("PUT", "a", body, {"Content-Encoding": "aws-chunked"})
    assert (answer.status, answer.code) == (400, "IncompleteBody")
    assert counting_server.keys() == []


@pytest.mark.parametrize("body", [b"9\r\nabc", b"9\r\nabcdefghi\r\n", b"3\r\nabc\r\n0\r\n\r\n"])
def test_a_body_whose_chunks_are_not_all_here_is_refused(
    counting_server: CountingServer, wire: Wire, body: bytes
) -> None:
    headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": "9"}
    answer = wire.send("PUT", "a", body, headers)
    assert (answer.status, answer.code) == (400, "IncompleteBody")
    assert wire.send("PUT", "b", b"9\r\nabcdefghi\r\n0\r\n\r\n", headers).status == 200
    assert counting_server.objects() == {"b": b"abcdefghi"}


# Of b"123456789": the check values of https://reveng.sourceforge.io/crc-catalogue/, and what `md5sum` and others print.
NINE_DIGITS = {
    "Content-MD5": "25f9e794323b453885f5181f1b624d0b",
    "x-amz-checksum-crc32": "cbf43926",
    "x-amz-checksum-crc32c": "e3069283",
    "x-amz-checksum-crc64nvme": "ae8b14860a799888",
    "x-amz-checksum-sha1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    "x-amz-checksum-sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
}


def _checksum(header: str) -> str:
    return base64.b64encode(bytes.fromhex(NINE_DIGITS[header])).decode()


@pytest.mark.parametrize("header", NINE_DIGITS)
def test_a_body_is_compared_with_its_checksum(
    counting_server: CountingServer, client: Any, wire: Wire, header: str
) -> None:
    bucket = counting_server.bucket
    upload_id = client.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    for path in ("a", f"a?partNumber=1&uploadId={upload_id}"):
        refused = wire.send("PUT", path, b"123456780", {header: _checksum(header)})
        assert (refused.status, refused.code) == (400, "BadDigest")
        assert counting_server.keys() == []
        assert "Parts" not in client.list_parts(Bucket=bucket, Key="a", UploadId=upload_id)
    for path in (f"a?partNumber=1&uploadId={upload_id}", "a"):
        answer = wire.send("PUT", path, b"123456789", {header: _checksum(header)})
        assert answer.status == 200
        assert answer.headers.get(header) == (_checksum(header) if header != "Content-MD5" else None)
    assert counting_server.objects() == {"a": b"123456789"}


def test_the_checksum_in_a_trailer_is_one_too(counting_server: CountingServer, wire: Wire) -> None:
    name = "x-amz-checksum-crc32"
    headers = {"Content-Encoding": "aws-chunked", "x-amz-trailer": name, "x-amz-decoded-content-length": "9"}
    chunks = b"4\r\n1234\r\n5\r\n56789\r\n0\r\n"
    for trailer in (b"", b"x-amz-checksum-crc32:AAAAAA==\r\n"):
        assert wire.send("PUT", "a", chunks + trailer + b"\r\n", headers).code == "BadDigest"
    assert counting_server.keys() == []
    assert wire.send("PUT", "a", chunks + f"{name}:{_checksum(name)}\r\n\r\n".encode(), headers).status == 200
    assert counting_server.get("a") == b"123456789"


def test_keys_to_delete_are_compared_with_their_checksum(counting_server: CountingServer, wire: Wire) -> None:
    counting_server.put("a", b"abc")
    body = b"<Delete><Object><Key>a</Key></Object></Delete>"
    assert wire.send("POST", "?delete", body, {"Content-MD5": _checksum("Content-MD5")}).code == "BadDigest"
    assert counting_server.keys() == ["a"]
    checksum = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    assert wire.send("POST", "?delete", body, {"Content-MD5": checksum}).status == 200
    assert counting_server.keys() == []


def test_an_object_is_answered_with_its_checksum_where_that_is_asked_for(
    counting_server: CountingServer, client: Any, wire: Wire
) -> None:
    name, asked = "x-amz-checksum-crc64nvme", {"x-amz-checksum-mode": "ENABLED"}
    wire.send("PUT", "a", b"123456789", {name: _checksum(name)})
    source = {"Bucket": counting_server.bucket, "Key": "a"}
    client.copy_object(Bucket=counting_server.bucket, Key="copy", CopySource=source)
    for method, key in itertools.product(("HEAD", "GET"), ("a", "copy")):
        answer = wire.send(method, key, headers=asked)
        assert answer.headers[name] == _checksum(name)
        assert answer.headers["x-amz-checksum-type"] == "FULL_OBJECT"
        assert name not in wire.send(method, key).headers
        assert name not in wire.send(method, key, headers={**asked, "Range": "bytes=0-3"}).headers


# Listings


def test_a_listing_comes_in_pages_in_utf8_order(counting_server: CountingServer, client: Any) -> None:
    keys = ["a", "a!", "a/1", "a/2", "b", "é", "漢", "\U0001f600"]
    for key in random.Random(0).sample(keys, len(keys)):
        counting_server.put(key, b"")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=counting_server.bucket, PaginationConfig={"PageSize": 3}
    )
    found = [[c["Key"] for c in page["Contents"]] for page in pages]
    assert found == [keys[:3], keys[3:6], keys[6:]]


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_a_delimiter_rolls_up_folders(counting_server: CountingServer, client: Any, page_size: int) -> None:
    for key in ("data/a/1", "data/a/2", "data/a/3", "data/b", "data/c/1", "database", "other"):
        counting_server.put(key, b"")
    keys, prefixes = [], []
    for page in client.get_paginator("list_objects_v2").paginate(
        Bucket=counting_server.bucket, Prefix="data", Delimiter="/", PaginationConfig={"PageSize": page_size}
    ):
        keys += [c["Key"] for c in page.get("Contents", [])]
        prefixes += [p["Prefix"] for p in page.get("CommonPrefixes", [])]
    assert (keys, prefixes) == (["database"], ["data/"])
    inner = client.list_objects_v2(Bucket=counting_server.bucket, Prefix="data/", Delimiter="/")
    assert [c["Key"] for c in inner["Contents"]] == ["data/b"]
    assert [p["Prefix"] for p in inner["CommonPrefixes"]] == ["data/a/", "data/c/"]


def test_a_listing_starts_after_a_key(counting_server: CountingServer, client: Any) -> None:
    for key in "abcd":
        counting_server.put(key, b"")
    page = client.list_objects_v2(Bucket=counting_server.bucket, StartAfter="b", MaxKeys=1)
    assert [c["Key"] for c in page["Contents"]] == ["c"]
    assert page["IsTruncated"]
    assert [c["Key"] for c in client.list_objects(Bucket=counting_server.bucket, Marker="b")["Contents"]] == ["c", "d"]


def test_a_listing_of_fewer_than_no_keys_is_refused(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", b"")
    assert client.list_objects_v2(Bucket=counting_server.bucket, MaxKeys=0)["KeyCount"] == 0
    for most in (-1, -1000):
        with pytest.raises(ClientError) as caught:
            client.list_objects_v2(Bucket=counting_server.bucket, MaxKeys=most)
        assert _code(caught.value) == "InvalidArgument"


@pytest.mark.skipif(sys.platform == "win32", reason="no two processes share a port")
def test_generated_objects_are_listed_and_read_from_every_process() -> None:
    folder = GeneratedObjects("generated", "train/", count=2345, smallest=10, largest=99, suffix=".bin")
    with start_counting_server(processes=2, generated=[folder]) as server:
        client = server.boto3_client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="generated", Prefix="train/")
        listed = [(c["Key"], c["Size"]) for page in pages for c in page["Contents"]]
        assert listed == [(folder.key(i), folder.size(i)) for i in range(2345)]
        for index in (0, 7, 2344):
            made = folder[index]
            for _ in range(4):
                body = client.get_object(Bucket="generated", Key=made.key)["Body"].read()
                assert body == b"".join(made.views(0, made.size))
        client.close()
        assert server.counters()["operations"] == {"ListObjectsV2": 3, "GetObject": 12}


def test_dropped_uploads_are_counted_and_read_as_zeros() -> None:
    with start_counting_server(dropped="sink/") as server:
        client = server.boto3_client()
        for key in ("sink/a", "kept"):
            client.put_object(Bucket=server.bucket, Key=key, Body=b"hello")
        assert server.objects() == {"kept": b"hello", "sink/a": bytes(5)}
        client.close()


# Multipart uploads


def test_a_multipart_upload_is_visible_only_when_completed(counting_server: CountingServer, client: Any) -> None:
    bucket, key = counting_server.bucket, "big"
    parts = [os.urandom(5 * 2**20), b"the end"]
    upload_id = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    etags = [
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=n, Body=part)["ETag"]
        for n, part in enumerate(parts, 1)
    ]
    assert counting_server.keys() == []
    assert [u["UploadId"] for u in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload_id]
    listed = client.list_parts(Bucket=bucket, Key=key, UploadId=upload_id)["Parts"]
    assert [(p["PartNumber"], p["Size"]) for p in listed] == [(1, 5 * 2**20), (2, 7)]
    chosen = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
    client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": chosen})
    assert counting_server.objects() == {key: b"".join(parts)}
    assert counting_server.uploads() == []
    across = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={5 * 2**20 - 2}-{5 * 2**20 + 2}")["Body"].read()
    assert across == (parts[0] + parts[1])[5 * 2**20 - 2 : 5 * 2**20 + 3]


def test_parts_are_copied_from_an_object(counting_server: CountingServer, client: Any) -> None:
    bucket, data = counting_server.bucket, os.urandom(5 * 2**20 + 7)
    etag = counting_server.put("source", data)
    upload_id = client.create_multipart_upload(Bucket=bucket, Key="copy")["UploadId"]

    def copy(number: int, wanted: str, **conditions: str) -> dict[str, Any]:
        answer = client.upload_part_copy(
            Bucket=bucket,
            Key="copy",
            UploadId=upload_id,
            PartNumber=number,
            CopySource={"Bucket": bucket, "Key": "source"},
            CopySourceRange=wanted,
            **conditions,
        )
        return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

    parts = [copy(1, f"bytes=2-{5 * 2**20 + 1}", CopySourceIfMatch=etag), copy(2, "bytes=0-1")]
    for wanted, condition, code in (
        ("bytes=0-1", '"other"', "PreconditionFailed"),
        (f"bytes=0-{len(data)}", etag, "InvalidArgument"),
        ("bytes=5-", etag, "InvalidArgument"),
    ):
        with pytest.raises(ClientError) as caught:
            copy(3, wanted, CopySourceIfMatch=condition)
        assert _code(caught.value) == code
    client.complete_multipart_upload(Bucket=bucket, Key="copy", UploadId=upload_id, MultipartUpload={"Parts": parts})
    assert counting_server.get("copy") == data[2 : 5 * 2**20 + 2] + data[:2]


def test_an_aborted_upload_leaves_nothing(counting_server: CountingServer, client: Any) -> None:
    bucket = counting_server.bucket
    upload_id = client.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    client.upload_part(Bucket=bucket, Key="a", UploadId=upload_id, PartNumber=1, Body=b"abc")
    client.abort_multipart_upload(Bucket=bucket, Key="a", UploadId=upload_id)
    assert (counting_server.uploads(), counting_server.keys()) == ([], [])
    with pytest.raises(ClientError) as caught:
        client.upload_part(Bucket=bucket, Key="a", UploadId=upload_id, PartNumber=2, Body=b"late")
    assert _code(caught.value) == "NoSuchUpload"


def test_parts_that_s3_refuses_are_refused(counting_server: CountingServer, client: Any) -> None:
    bucket = counting_server.bucket
    upload_id = client.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    one, two = (
        {
            "PartNumber": n,
            "ETag": client.upload_part(Bucket=bucket, Key="a", UploadId=upload_id, PartNumber=n, Body=b"abc")["ETag"],
        }
        for n in (1, 2)
    )
    for parts, code in (
        ([one, two], "EntityTooSmall"),
        ([two, one], "InvalidPartOrder"),
        ([one | {"ETag": '"other"'}], "InvalidPart"),
    ):
        with pytest.raises(ClientError) as caught:
            client.complete_multipart_upload(
                Bucket=bucket, Key="a", UploadId=upload_id, MultipartUpload={"Parts": parts}
            )
        assert _code(caught.value) == code


def test_parts_are_completed_by_the_checksums_that_they_came_with(
    counting_server: CountingServer, client: Any, wire: Wire
) -> None:
    bucket, name = counting_server.bucket, "x-amz-checksum-crc64nvme"
    upload_id = client.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    sent = wire.send("PUT", f"a?partNumber=1&uploadId={upload_id}", b"123456789", {name: _checksum(name)})
    etag = sent.headers["ETag"]
    (listed,) = client.list_parts(Bucket=bucket, Key="a", UploadId=upload_id)["Parts"]
    assert listed["ChecksumCRC64NVME"] == _checksum(name)
    for wrong in ({"ChecksumCRC64NVME": "AAAAAAAAAAA="}, {"ChecksumSHA256": _checksum("x-amz-checksum-sha256")}):
        with pytest.raises(ClientError) as caught:
            client.complete_multipart_upload(
                Bucket=bucket,
                Key="a",
                UploadId=upload_id,
                MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag, **wrong}]},
            )
        assert _code(caught.value) == "InvalidPart"
    assert counting_server.keys() == []
    client.complete_multipart_upload(
        Bucket=bucket,
        Key="a",
        UploadId=upload_id,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag, "ChecksumCRC64NVME": _checksum(name)}]},
    )
    assert counting_server.get("a") == b"123456789"


# Records


def test_every_request_is_recorded(counting_server: CountingServer, client: Any) -> None:
    bucket = counting_server.bucket
    client.put_object(Bucket=bucket, Key="a b", Body=b"abc")
    client.get_object(Bucket=bucket, Key="a b", Range="bytes=1-2")["Body"].read()
    with pytest.raises(ClientError):
        client.get_object(Bucket=bucket, Key="none")
    put, got, missing = counting_server.requests
    assert (put.operation, put.path, put.key, put.status) == ("PutObject", f"/{bucket}/a%20b", "a b", 200)
    assert put.bytes_received >= 3
    assert (got.method, got.headers["range"], got.status, got.bytes_sent) == ("GET", "bytes=1-2", 206, 2)
    assert (missing.status, missing.connection) == (404, put.connection)
    counting_server.clear()
    assert counting_server.requests == []
    assert counting_server.keys() == ["a b"]


def test_a_reset_server_is_as_new(counting_server: CountingServer) -> None:
    counting_server.put("a", b"abc")
    counting_server.fault(status=503)
    counting_server.reset()
    server = counting_server.with_new_bucket()
    client = server.boto3_client()
    assert client.list_objects_v2(Bucket=server.bucket)["KeyCount"] == 0
    client.close()


def test_most_in_flight_counts_what_is_held(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", b"abc")
    counting_server.fault(operation="GetObject", hold=True)
    with ThreadPoolExecutor(5) as pool:
        answers = [
            pool.submit(lambda: client.get_object(Bucket=counting_server.bucket, Key="a")["Body"].read())
            for _ in range(5)
        ]
        counting_server.wait_for_requests(5, operation="GetObject")
        assert not any(answer.done() for answer in answers)
        assert counting_server.release() == 5
        assert [answer.result() for answer in answers] == [b"abc"] * 5
    assert counting_server.counters()["most_in_flight"] == 5
    assert counting_server.counters()["in_flight"] == 0


def test_what_is_still_arriving_when_all_is_released_is_not_held(counting_server: CountingServer) -> None:
    counting_server.fault(operation="PutObject", hold=True)
    address = urllib.parse.urlsplit(counting_server.endpoint)
    with socket.create_connection((str(address.hostname), int(address.port or 80)), 30) as connection:
        head = f"PUT /{counting_server.bucket}/a HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 3\r\n\r\n"
        connection.sendall(head.encode())
        counting_server.wait_for_requests(1, operation="PutObject")
        counting_server.release()
        connection.sendall(b"abc")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert counting_server.get("a") == b"abc"


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_reaches_the_server_and_leaves_it_alone(counting_server: CountingServer) -> None:
    child = os.fork()
    if not child:
        counting_server.put("from-child", b"abc")
        counting_server.stop()
        os._exit(len(counting_server.requests))
    assert os.waitpid(child, 0)[1] == 0
    assert counting_server.objects() == {"from-child": b"abc"}


# Faults


def test_an_error_is_answered_so_many_times(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", b"abc")
    counting_server.fault(method="GET", key="a", skip=1, times=2, status=503, code="SlowDown")
    answers = []
    for _ in range(4):
        try:
            answers.append(client.get_object(Bucket=counting_server.bucket, Key="a")["Body"].read().decode())
        except ClientError as error:
            answers.append(_code(error))
    assert answers == ["abc", "SlowDown", "SlowDown", "abc"]


def test_a_truncated_body_is_shorter_than_announced(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", bytes(5000))
    counting_server.fault(operation="GetObject", truncate=1000)
    got = client.get_object(Bucket=counting_server.bucket, Key="a")
    assert got["ContentLength"] == 5000
    with pytest.raises(ResponseStreamingError):
        got["Body"].read()
    assert counting_server.requests[0].bytes_sent == 1000


def test_a_cut_connection_is_reset(counting_server: CountingServer) -> None:
    counting_server.put("a", bytes(5000))
    counting_server.fault(operation="GetObject", cut=0, times=1)
    counting_server.fault(operation="GetObject", cut=10, times=1)
    host, port = urllib.parse.urlsplit(counting_server.endpoint).netloc.split(":")
    for _ in range(2):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"GET /{counting_server.bucket}/a HTTP/1.1\r\n\r\n".encode())
            with pytest.raises(ConnectionResetError):
                _read_to_the_end(connection)


def test_an_upload_is_cut_in_the_middle(counting_server: CountingServer, client: Any) -> None:
    counting_server.fault(operation="PutObject", cut_upload=1000)
    with pytest.raises(HTTPClientError):
        client.put_object(Bucket=counting_server.bucket, Key="a", Body=bytes(2**20))
    assert counting_server.keys() == []
    assert counting_server.counters()["in_flight"] == 0


def test_a_short_range_says_so(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", bytes(100))
    counting_server.fault(short_range=True)
    got = client.get_object(Bucket=counting_server.bucket, Key="a", Range="bytes=10-29")
    assert (got["ContentLength"], got["ContentRange"]) == (10, "bytes 10-19/100")
    assert len(got["Body"].read()) == 10
    assert counting_server.requests[0].headers["range"] == "bytes=10-29"


def test_a_range_may_be_ignored(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", bytes(100))
    counting_server.fault(ignore_range=True)
    got = client.get_object(Bucket=counting_server.bucket, Key="a", Range="bytes=10-29")
    assert (got["ResponseMetadata"]["HTTPStatusCode"], len(got["Body"].read())) == (200, 100)


def test_an_object_changes_after_its_first_answer(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", b"old")
    counting_server.fault(operation="GetObject", key="a", times=1, replace_with=b"new")
    old = client.get_object(Bucket=counting_server.bucket, Key="a")
    assert old["Body"].read() == b"old"
    assert client.get_object(Bucket=counting_server.bucket, Key="a")["Body"].read() == b"new"
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket=counting_server.bucket, Key="a", IfMatch=old["ETag"])
    assert _code(caught.value) == "PreconditionFailed"


def test_headers_are_changed_and_left_out(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", b"abc")
    counting_server.fault(headers={"etag": None, "Content-Type": "text/html"})
    got = client.get_object(Bucket=counting_server.bucket, Key="a")
    assert "ETag" not in got
    assert (got["ContentType"], got["Body"].read()) == ("text/html", b"abc")


def test_a_byte_is_corrupted(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", b"\x00\x00\x00")
    counting_server.fault(corrupt=1)
    assert client.get_object(Bucket=counting_server.bucket, Key="a")["Body"].read() == b"\x00\xff\x00"


def test_expired_credentials_are_refused(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", b"abc")
    counting_server.expire_credentials("another-key")
    client.head_object(Bucket=counting_server.bucket, Key="a")
    counting_server.expire_credentials(counting_server.access_key)
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket=counting_server.bucket, Key="a")
    assert _code(caught.value) == "ExpiredToken"
    counting_server.faults_clear()
    client.head_object(Bucket=counting_server.bucket, Key="a")


def test_an_answer_is_late_and_slow(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", bytes(100_000))
    counting_server.fault(operation="GetObject", delay_seconds=0.2, pace_bytes_per_second=500_000)
    start = time.monotonic()
    got = client.get_object(Bucket=counting_server.bucket, Key="a")
    assert time.monotonic() - start >= 0.2 - TICK_SECONDS
    got["Body"].read()
    assert time.monotonic() - start >= 0.4 - TICK_SECONDS


def test_the_whole_server_is_shaped(counting_server: CountingServer, client: Any) -> None:
    counting_server.put("a", b"abc")
    counting_server.shape(latency_seconds=0.1, pace_bytes_per_second=1_000_000)
    try:
        start = time.monotonic()
        client.head_object(Bucket=counting_server.bucket, Key="a")
        assert time.monotonic() - start >= 0.1 - TICK_SECONDS
        start = time.monotonic()
        client.put_object(Bucket=counting_server.bucket, Key="b", Body=bytes(300_000))
        assert time.monotonic() - start >= 0.3 - TICK_SECONDS
    finally:
        counting_server.shape()


def test_a_reader_that_stops_makes_the_server_wait(counting_server: CountingServer) -> None:
    counting_server.put("big", bytes(64 * 2**20))
    host, port = urllib.parse.urlsplit(counting_server.endpoint).netloc.split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)  # however much the kernel would give
        connection.connect((host, int(port)))
        connection.sendall(f"GET /{counting_server.bucket}/big HTTP/1.1\r\n\r\n".encode())
        assert connection.recv(1000)
        assert counting_server.requests[0].bytes_sent < 32 * 2**20


def test_many_connections_are_answered_at_once(counting_server: CountingServer) -> None:
    counting_server.put("a", b"abc")
    client = counting_server.boto3_client(max_pool_connections=32)
    lock, bodies = threading.Lock(), []

    def read() -> None:
        for _ in range(20):
            body = client.get_object(Bucket=counting_server.bucket, Key="a")["Body"].read()
            with lock:
                bodies.append(body)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert bodies == [b"abc"] * 160


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists what is mapped")
def test_the_memory_of_removed_objects_is_let_go_of(tmp_path: Path) -> None:
    maps = Maps()
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old" * 100_000)
    new.write_bytes(b"new")
    view = maps.view(str(old))
    old.unlink()
    assert bytes(maps.view(str(new))) == b"new"
    assert bytes(view[-3:]) == b"old"
    del view
    assert str(old) not in Path("/proc/self/maps").read_text()
    assert str(new) in Path("/proc/self/maps").read_text()
    maps.clear()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def _put(store: Store, key: str, data: bytes) -> Path:
    writer = store.new_piece(len(data))
    writer.write(data)
    piece = writer.finish()
    store.put("bucket", StoredObject(key, piece.etag, [piece]))
    return Path(piece.path)


def _bytes(store: Store, key: str) -> bytes:
    stored = store.get("bucket", key)
    assert stored is not None
    return b"".join(stored.views(0, stored.size))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path, kept_pieces=1)
    store.create_bucket("bucket")
    return store


def test_the_first_object_of_a_key_replaces_none(store: Store, tmp_path: Path) -> None:
    _put(store, "a", b"first")
    other = Store(tmp_path).new_piece()
    other.write(b"other")
    with pytest.raises(S3Error) as caught:
        Store(tmp_path).put("bucket", StoredObject("a", '"other"', [other.finish()]), is_first=True)
    assert (caught.value.code, _bytes(store, "a")) == ("PreconditionFailed", b"first")
    assert [path.name for path in (tmp_path / "buckets/bucket").iterdir()] == [hashlib.sha1(b"a").hexdigest()]


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is kept there")
def test_the_memory_of_a_removed_object_is_used_again(store: Store) -> None:
    first = _put(store, "a-long-one", b"a-long-one" * 2**20).stat().st_ino
    _put(store, "another", b"another" * 2**20)
    for key in ("a-long-one", "another"):
        store.delete("bucket", key)  # only one of them is kept
    third = _put(store, "short", b"s" * 2**20).stat().st_ino
    fourth = _put(store, "last", b"last" * 2**20).stat().st_ino
    assert third == first
    assert fourth != first
    assert _bytes(store, "short") == b"s" * 2**20
    assert _bytes(store, "last") == b"last" * 2**20


def test_the_memory_of_what_was_read_is_not_used_again(store: Store) -> None:
    _put(store, "read", b"read" * 2**20)
    stored = store.get("bucket", "read")
    assert stored is not None
    (view,) = stored.views(0, stored.size)
    store.delete("bucket", "read")
    _put(store, "new", b"new" * 2**21)
    assert view == b"read" * 2**20
    assert _bytes(store, "new") == b"new" * 2**21


def test_the_memory_of_a_copied_object_is_not_used_again(store: Store) -> None:
    _put(store, "old", b"old" * 2**20)
    stored = store.get("bucket", "old")
    assert stored is not None
    store.put("bucket", store.copy(stored, "copy"))
    store.delete("bucket", "old")
    _put(store, "new", b"new" * 2**20)
    assert _bytes(store, "copy") == b"old" * 2**20

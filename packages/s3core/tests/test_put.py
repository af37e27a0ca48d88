"""Writing one object: whole and visible after a clean close, and not at all otherwise."""

from __future__ import annotations

import base64
import gc
import hashlib
import mmap
import pickle
import random
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from s3core import (
    AccessDeniedError,
    ConfigError,
    CredentialsError,
    NoSuchBucketError,
    PutObjectStream,
    S3Client,
    S3ConnectionError,
    S3Exception,
    ThrottledError,
    _plan,
)
from s3core._head import Target, head_with_headers
from s3core._headers import checksum_of, joined_checksum
from servers import CountingServer, S3Server, wait_until

MiB = 2**20
PART = 5 * MiB
DATA = random.Random(1).randbytes(2 * PART + 12_345)


@pytest.fixture
def client(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> S3Client:
    return make_client(counting_server, part_size=PART, max_attempts=3)


def used(client: S3Client) -> int:
    return client._runtime.budget.used


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, len(DATA)])
def test_an_object_of_any_size_comes_out_as_it_went_in(
    s3_server: S3Server, make_client: Callable[..., S3Client], size: int
) -> None:
    bucket = s3_server.create_bucket()
    client = make_client(s3_server, part_size=PART)
    with client.put_object(bucket, "key") as stream:
        assert stream.write(DATA[:size]) == size
        assert stream.tell() == size
    assert stream.closed
    assert client.get_object(bucket, "key").read_all() == DATA[:size]
    assert "Uploads" not in s3_server.boto3_client().list_multipart_uploads(Bucket=bucket)
    assert used(client) == 0


@pytest.mark.parametrize(("size", "operations"), [(0, 1), (PART, 1), (PART + 1, 4)])
def test_what_fits_into_one_part_takes_one_request(
    counting_server: CountingServer, client: S3Client, size: int, operations: int
) -> None:
    with client.put_object(counting_server.bucket, "key") as stream:
        stream.write(DATA[:size])
    assert len(counting_server.requests) == operations
    assert counting_server.get("key") == DATA[:size]


def test_odd_pieces_of_a_reused_buffer_are_copied_before_write_returns(
    counting_server: CountingServer, client: S3Client
) -> None:
    """What `torch.save` does: many sizes, one buffer; 120 MB of them."""
    rng = random.Random(3)
    buffer = bytearray(7 * MiB)
    digest, total = hashlib.sha256(), 0
    with client.put_object(counting_server.bucket, "key") as stream:
        while total < 120_000_000:
            size = rng.choice([rng.randrange(100), rng.randrange(MiB), rng.randrange(len(buffer))])
            view = memoryview(buffer)[:size]
            view[:] = rng.randbytes(1) * size if size % 2 else rng.randbytes(size)
            assert stream.write(view) == size
            digest.update(view)
            buffer[:size] = b"\xee" * size
            total += size
    came = hashlib.sha256()
    for chunk in client.get_object(counting_server.bucket, "key"):
        came.update(chunk)
    assert came.digest() == digest.digest()
    assert used(client) == 0


@pytest.mark.parametrize("seed", range(4))
def test_pieces_that_are_copied_and_pieces_that_are_not_keep_their_order(
    counting_server: CountingServer, make_client: Callable[..., S3Client], seed: int
) -> None:
    client = make_client(counting_server, part_size=PART, memory_limit=PART * (1 if seed % 2 else 40))
    rng = random.Random(seed)
    pieces, kinds = [], []
    while sum(map(len, pieces)) < 3 * PART:
        size = rng.choice([0, rng.randrange(100), 64 * 1024, rng.randrange(MiB), rng.randrange(2 * PART)])
        pieces.append(rng.randbytes(size))
        kinds.append(rng.choice(["bytes", "copied", "lent"]))
    with client.put_object(counting_server.bucket, "key") as stream:
        for piece, kind in zip(pieces, kinds, strict=True):
            buffer = piece if kind == "bytes" else bytearray(piece)
            assert stream.write(buffer, copy=kind != "lent") == len(piece)
            if kind == "copied":
                buffer[:] = bytes(len(piece))
            assert used(client) <= client._runtime.config.memory_limit
    assert counting_server.get("key") == b"".join(pieces)
    assert used(client) == 0


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "SHA256"])
def test_a_part_in_pieces_has_one_checksum(
    counting_server: CountingServer, make_client: Callable[..., S3Client], algorithm: str
) -> None:
    """The server compares."""
    client = make_client(counting_server, part_size=PART, upload_checksum=algorithm)
    with client.put_object(counting_server.bucket, "key") as stream:
        for start in range(0, len(DATA), MiB + 1):
            stream.write(b"head")
            stream.write(memoryview(DATA)[start : start + MiB + 1], copy=False)
    parts = [request for request in counting_server.requests if request.operation == "UploadPart"]
    assert len(parts) == 3
    assert all(f"x-amz-checksum-{algorithm.lower()}" in request.headers for request in parts)


def test_an_aborted_upload_lets_go_of_what_it_did_not_copy(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.put("key", b"old")
    buffer = bytearray(DATA)
    stream = client.put_object(counting_server.bucket, "key")
    stream.write(buffer, copy=False)
    stream.abort()
    deadline = time.monotonic() + 20
    while True:  # a thread of the pool may still be on its way out
        try:
            buffer.append(0)  # refused while somebody looks at it
            break
        except BufferError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert counting_server.get("key") == b"old"


@pytest.mark.parametrize(
    "piece",
    [
        b"abc",
        bytearray(b"abc"),
        memoryview(b"abc"),
        memoryview(b"cba")[::-1],
        memoryview(b"a-b-c-")[::2],
        array("i", range(1000)),
        memoryview(bytes(range(24))).cast("B", (2, 3, 4)),
        b"",
        memoryview(b"").cast("B"),
    ],
)
def test_any_buffer_of_any_layout_is_written_by_its_bytes(
    counting_server: CountingServer, client: S3Client, piece: Any
) -> None:
    with client.put_object(counting_server.bucket, "key") as stream:
        assert stream.write(piece) == memoryview(piece).nbytes
    assert counting_server.get("key") == memoryview(piece).tobytes()


@pytest.mark.parametrize("piece", ["text", None, 3])
def test_what_is_no_buffer_is_refused_and_spoils_nothing(
    counting_server: CountingServer, client: S3Client, piece: Any
) -> None:
    stream = client.put_object(counting_server.bucket, "key")
    stream.write(b"abc")
    with pytest.raises(TypeError):
        stream.write(piece)
    stream.close()
    assert counting_server.get("key") == b"abc"


def test_a_closed_stream_takes_no_more(counting_server: CountingServer, client: S3Client) -> None:
    stream = client.put_object(counting_server.bucket, "key")
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match=f"s3://{counting_server.bucket}/key is closed"):
        stream.write(b"abc")
    assert counting_server.operations() == ["PutObject"]


def test_several_threads_may_write(counting_server: CountingServer, client: S3Client) -> None:
    with client.put_object(counting_server.bucket, "key") as stream:
        threads = [
            threading.Thread(target=lambda n=n: [stream.write(bytes([n]) * 100_000) for _ in range(40)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    written = counting_server.get("key")
    assert sorted(written[::100_000]) == sorted(bytes(range(4)) * 40)
    assert all(written[n : n + 100_000] == written[n : n + 1] * 100_000 for n in range(0, len(written), 100_000))


def test_a_slow_store_makes_the_writer_wait(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(counting_server, part_size=PART, memory_limit=3 * PART)
    counting_server.fault(operation="UploadPart", delay_seconds=0.05)
    with client.put_object(counting_server.bucket, "key") as stream:
        for _ in range(60):
            stream.write(bytes(MiB))
            assert used(client) <= 3 * PART
    assert used(client) == 0
    assert len(counting_server.get("key")) == 60 * MiB


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory in /proc")
@pytest.mark.parametrize(
    "piece", ["bytes(2**20)", "buffer", "os.urandom(2**20)", "memoryview(os.urandom(2**24))[:2**18]"]
)
def test_the_memory_of_a_process_is_bounded_while_it_writes(
    counting_server: CountingServer, run_program: Callable[..., str], piece: str
) -> None:
    counting_server.fault(operation="UploadPart", delay_seconds=0.02)
    output = run_program(
        f"""
        client = make_client(memory_limit=32 * 2**20)
        client.list_objects(bucket).__next__()
        buffer = bytearray(2**20)
        before = peak_kib()
        with client.put_object(bucket, "huge") as stream:
            for _ in range(300):
                stream.write({piece})
        print((peak_kib() - before) // 1024)
        """,
        counting_server,
        counting_server.bucket,
    )
    assert int(output) < 90


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory in /proc")
def test_what_is_not_copied_takes_no_memory(counting_server: CountingServer, run_program: Callable[..., str]) -> None:
    output = run_program(
        """
        client = make_client()
        client.list_objects(bucket).__next__()
        piece = memoryview(bytearray(b"x") * (100 * 2**20))
        before = peak_kib()
        with client.put_object(bucket, "huge") as stream:
            for _ in range(4):
                stream.write(b"head of a piece")
                stream.write(piece, copy=False)
        print((peak_kib() - before) // 1024)
        """,
        counting_server,
        counting_server.bucket,
    )
    assert int(output) < 40
    assert len(counting_server.get("huge")) == 4 * (100 * MiB + 15)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory in /proc")
def test_an_object_of_one_part_is_not_copied_once_more(
    counting_server: CountingServer, run_program: Callable[..., str]
) -> None:
    output = run_program(
        """
        client = make_client(part_size=128 * 2**20)
        client.list_objects(bucket).__next__()
        piece, more = bytes(60 * 2**20), memoryview(bytearray(b"x") * (40 * 2**20))
        before = peak_kib()
        with client.put_object(bucket, "large") as stream:
            stream.write(b"head")
            stream.write(piece)
            for start in range(0, len(more), 2**20):
                stream.write(more[start : start + 2**20])
        print((peak_kib() - before) // 1024)
        """,
        counting_server,
        counting_server.bucket,
    )
    assert int(output) < 70
    assert counting_server.get("large") == b"head" + bytes(60 * MiB) + b"x" * (40 * MiB)


def test_what_is_lent_may_change_after_an_interruption(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    """Closing is left to a thread here, whose second attempt sends what was written once more."""
    client, buffer = make_client(counting_server), bytearray(b"x" * MiB)
    counting_server.fault(operation="PutObject", times=1, hold=True, status=500)
    stream = client.put_object(counting_server.bucket, "key")
    stream.write(b"head")
    stream.write(buffer, copy=False)
    closing = threading.Thread(target=stream.close)
    closing.start()
    counting_server.wait_for_requests(1, operation="PutObject")
    buffer[:] = bytes(MiB)
    counting_server.release()
    closing.join()
    assert counting_server.get("key") == b"head" + b"x" * MiB


def test_a_size_hint_makes_parts_large_enough_for_the_object(counting_server: CountingServer, client: S3Client) -> None:
    stream = client.put_object(counting_server.bucket, "key", size_hint=10_000 * 6 * MiB)
    stream.write(bytes(6 * MiB))
    assert counting_server.requests == []
    stream.write(b"x")
    stream.close()
    parts = [request for request in counting_server.requests if request.operation == "UploadPart"]
    assert sorted(part.bytes_received for part in parts) == [1, 6 * MiB]


def test_an_object_past_the_limit_of_parts_fails_before_it_is_sent(
    counting_server: CountingServer, client: S3Client
) -> None:
    piece = untouched_zeros(10_000 * PART + 1)
    stream = client.put_object(counting_server.bucket, "key")
    with pytest.raises(S3Exception, match=r"size_hint, or raise part_size"):
        stream.write(piece)
    with pytest.raises(ConfigError, match=r"48\.8 TiB"):
        client.put_object(counting_server.bucket, "key", size_hint=50 * 2**40)
    assert counting_server.requests == []


def untouched_zeros(size: int) -> memoryview:
    """More bytes than there is memory: pages that nobody touches."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000))  # MAP_NORESERVE


def write_for_ever(stream: PutObjectStream) -> None:
    while True:
        stream.write(DATA[:MiB])


@pytest.mark.parametrize("size", [10, PART + 10])
def test_uploads_are_tried_again_when_the_store_throttles(
    counting_server: CountingServer, client: S3Client, size: int
) -> None:
    for operation in ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"):
        counting_server.fault(operation=operation, times=2, status=503, code="SlowDown")
    with client.put_object(counting_server.bucket, "key") as stream:
        stream.write(DATA[:size])
    assert counting_server.get("key") == DATA[:size]


@pytest.mark.parametrize("operation", ["UploadPart", "PutObject"])
@pytest.mark.parametrize(
    "fault",
    [
        {"cut_upload": 1000},
        {"cut": 0},
        {"status": 400, "code": "RequestTimeout"},
        {"status": 400, "code": "BadDigest"},
        {"status": 400, "code": "XAmzContentChecksumMismatch"},
        {"status": 500, "code": "InternalError"},
    ],
)
def test_a_body_that_did_not_arrive_is_sent_again(
    counting_server: CountingServer, client: S3Client, fault: dict[str, Any], operation: str
) -> None:
    counting_server.fault(operation=operation, times=1, **fault)
    data = DATA if operation == "UploadPart" else DATA[:100_000]
    with client.put_object(counting_server.bucket, "key") as stream:
        stream.write(data)
    assert counting_server.get("key") == data


@pytest.mark.parametrize("operation", ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_an_upload_that_fails_for_good_leaves_the_old_object_and_nothing_else(
    counting_server: CountingServer, client: S3Client, operation: str
) -> None:
    counting_server.put("key", b"old")
    counting_server.fault(operation=operation, status=503, code="SlowDown")
    size = 10 if operation == "PutObject" else len(DATA)
    stream = client.put_object(counting_server.bucket, "key")
    with pytest.raises(ThrottledError, match=f"s3://{counting_server.bucket}/key"), stream:
        stream.write(DATA[:size])
    assert counting_server.get("key") == b"old"
    assert counting_server.uploads() == []
    assert used(client) == 0


def test_a_close_after_a_failed_write_raises_and_completes_nothing(
    counting_server: CountingServer, client: S3Client
) -> None:
    counting_server.fault(operation="UploadPart", status=403, code="AccessDenied")
    stream = client.put_object(counting_server.bucket, "key")
    with pytest.raises(PermissionError):
        write_for_ever(stream)
    with pytest.raises(S3Exception, match="failed before"):
        stream.write(b"more")
    with pytest.raises(S3Exception, match="aborted because a write had failed before"):
        stream.close()
    assert counting_server.keys() == []
    assert counting_server.uploads() == []


class Held:
    """What a caller has at hand."""


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart"])
def test_a_stream_that_failed_keeps_nothing_of_its_caller(
    client: S3Client, counting_server: CountingServer, operation: str
) -> None:
    counting_server.fault(operation=operation, status=403, code="AccessDenied")
    stream = client.put_object(counting_server.bucket, "key")

    def write_on(held: Held) -> None:
        while True:
            stream.write(DATA)

    def fail() -> weakref.ref[Held]:
        held = Held()
        with pytest.raises(AccessDeniedError):
            write_on(held)
        return weakref.ref(held)

    held = fail()
    gc.collect()
    assert held() is None


def test_an_answer_to_the_completion_that_is_lost_does_not_lose_the_object(
    counting_server: CountingServer, client: S3Client
) -> None:
    counting_server.fault(operation="CompleteMultipartUpload", times=1, cut=0)
    with client.put_object(counting_server.bucket, "key") as stream:
        stream.write(DATA)
    assert counting_server.get("key") == DATA


OPAQUE = {"ETag": '"00112233445566778899aabbccddeeff-3"'}  # as of an object that KMS encrypts


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "SHA256"])
def test_an_object_whose_etag_is_no_md5_is_known_by_its_checksum(
    counting_server: CountingServer, make_client: Callable[..., S3Client], algorithm: str
) -> None:
    client = make_client(counting_server, part_size=PART, upload_checksum=algorithm)
    bounds = [(0, PART), (PART, 2 * PART), (2 * PART, len(DATA))]
    parts = b"".join(hashlib.sha256(DATA[start:end]).digest() for start, end in bounds)
    of_parts = base64.b64encode(hashlib.sha256(parts).digest()).decode() + "-3"
    checksum = of_parts if algorithm == "SHA256" else checksum_of([DATA], algorithm)
    header = f"x-amz-checksum-{algorithm.lower()}"
    counting_server.fault(operation="HeadObject", times=1, headers={**OPAQUE, header: checksum})
    counting_server.fault(operation="CompleteMultipartUpload", times=1, cut=0)
    with client.put_object(counting_server.bucket, "key") as stream:
        stream.write(DATA)
    assert counting_server.get("key") == DATA
    (question,) = [request for request in counting_server.requests if request.operation == "HeadObject"]
    assert question.headers["x-amz-checksum-mode"] == "ENABLED"

    counting_server.fault(operation="HeadObject", times=1, headers={**OPAQUE, header: "b3RoZXI="})
    counting_server.fault(operation="CompleteMultipartUpload", times=1, status=404, code="NoSuchUpload")
    stream = client.put_object(counting_server.bucket, "key")
    with pytest.raises(S3Exception, match="no longer exists; somebody aborted it or a lifecycle rule did"), stream:
        stream.write(DATA)


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "SHA256"])
def test_a_store_knows_an_object_by_the_checksum_that_its_parts_tell(
    seaweedfs_server: S3Server, make_client: Callable[..., S3Client], algorithm: str
) -> None:
    client = make_client(seaweedfs_server, part_size=PART, upload_checksum=algorithm)
    bucket = seaweedfs_server.create_bucket()
    with client.put_object(bucket, "key") as stream:
        stream.write(DATA)
    pieces = [DATA[start : start + PART] for start in range(0, len(DATA), PART)]
    parts = [(checksum_of([piece], algorithm) or "", len(piece)) for piece in pieces]
    _, headers = head_with_headers(client._runtime, Target(bucket, "key"), asks_checksum=True)
    assert headers[f"x-amz-checksum-{algorithm.lower()}"] == joined_checksum(parts, algorithm)


@pytest.mark.parametrize("answer", [{"headers": OPAQUE}, {"status": 403}])
def test_a_lost_answer_that_nothing_makes_up_for_is_an_error_that_says_so(
    counting_server: CountingServer, client: S3Client, answer: dict[str, Any]
) -> None:
    counting_server.fault(operation="HeadObject", **answer)
    counting_server.fault(operation="CompleteMultipartUpload", times=1, cut=0)
    stream = client.put_object(counting_server.bucket, "key")
    with pytest.raises(S3Exception, match=r"s3://.*/key failed: .* became the object .* look at it"), stream:
        stream.write(DATA)


def test_an_answer_that_is_lost_in_the_only_attempt_is_an_error_that_says_so(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.fault(operation="CompleteMultipartUpload", cut=0)
    stream = make_client(counting_server, part_size=PART, max_attempts=1).put_object(counting_server.bucket, "key")
    with pytest.raises(S3ConnectionError, match="the store has done it all the same"), stream:
        stream.write(DATA)


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        ({"status": 503, "code": "SlowDown"}, ThrottledError),
        ({"status": 403, "code": "AccessDenied"}, AccessDeniedError),
        ({"status": 409, "code": "OperationAborted"}, S3Exception),
        ({"status": 404, "code": "NoSuchBucket"}, NoSuchBucketError),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("size", "operation"), [(1000, "PutObject"), (len(DATA), "CompleteMultipartUpload")], ids=["small", "large"]
)
def test_an_answer_that_is_lost_before_the_others_are_refusals_is_an_error_that_says_so(
    counting_server: CountingServer,
    client: S3Client,
    size: int,
    operation: str,
    refusal: dict[str, Any],
    kind: type[S3Exception],
) -> None:
    counting_server.fault(operation=operation, times=1, cut=0)
    counting_server.fault(operation=operation, **refusal)
    stream = client.put_object(counting_server.bucket, "key")
    with pytest.raises(kind, match="the store has done it all the same") as caught, stream:
        stream.write(DATA[:size])
    assert caught.value.in_doubt


@pytest.mark.parametrize(
    ("size", "operation"), [(1000, "PutObject"), (len(DATA), "CompleteMultipartUpload")], ids=["small", "large"]
)
@pytest.mark.parametrize("is_lost", [True, False])
def test_keys_that_cannot_be_renewed_after_an_answer_that_is_lost_are_an_error_that_says_so(
    counting_server: CountingServer, make_client: Callable[..., S3Client], size: int, operation: str, is_lost: bool
) -> None:
    answers = iter([{"access_key_id": "old", "secret_access_key": "secret"}])
    client = make_client(counting_server, part_size=PART, credentials=lambda: next(answers))
    if is_lost:
        counting_server.fault(operation=operation, times=1, cut=0)
    counting_server.fault(operation=operation, status=400, code="ExpiredToken")
    stream = client.put_object(counting_server.bucket, "key")
    stream.write(DATA[:size])
    with pytest.raises(CredentialsError, match="StopIteration") as caught:
        stream.close()
    assert ("the store has done it all the same" in str(caught.value)) == caught.value.in_doubt == is_lost
    assert counting_server.keys() == ["key"] * is_lost


@pytest.mark.parametrize("other", [None, DATA[1:], DATA[::-1]], ids=["nothing", "shorter", "as long"])
def test_a_completion_that_finds_the_upload_gone_does_not_take_another_object_for_its_own(
    counting_server: CountingServer, client: S3Client, other: bytes | None
) -> None:
    if other is not None:
        counting_server.put("key", other)
    counting_server.fault(operation="CompleteMultipartUpload", times=1, status=404, code="NoSuchUpload")
    stream = client.put_object(counting_server.bucket, "key")
    with pytest.raises(S3Exception, match="no longer exists"), stream:
        stream.write(DATA)
    assert counting_server.keys() == ([] if other is None else ["key"])
    assert other is None or counting_server.get("key") == other


def test_a_completion_that_fails_behind_a_status_of_200_is_tried_again(
    counting_server: CountingServer, client: S3Client
) -> None:
    counting_server.fault(operation="CompleteMultipartUpload", times=1, status=200, code="InternalError")
    with client.put_object(counting_server.bucket, "key") as stream:
        stream.write(DATA)
    assert counting_server.get("key") == DATA


@pytest.mark.parametrize("body", [b"", b"  ", b"<?xml version='1.0'?>", b"<html>sign in</html>"])
def test_a_completion_whose_answer_ends_before_it_tells_of_success_is_none(
    counting_server: CountingServer, make_client: Callable[..., S3Client], body: bytes
) -> None:
    client = make_client(counting_server, part_size=PART, max_attempts=2)
    counting_server.put("key", b"old")
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    counting_server.fault(operation="CompleteMultipartUpload", times=2, status=500, instead=head + body)
    with (
        pytest.raises(S3ConnectionError, match=r"s3://.* ended before it told"),
        client.put_object(counting_server.bucket, "key") as stream,
    ):
        stream.write(DATA)
    assert counting_server.get("key") == b"old"
    assert counting_server.uploads() == []
    # Where it was one, the next attempt finds out.
    counting_server.fault(operation="CompleteMultipartUpload", times=1, instead=head + body)
    with client.put_object(counting_server.bucket, "key") as stream:
        stream.write(DATA)
    assert counting_server.get("key") == DATA


@pytest.mark.parametrize("status", [102, 103])
def test_an_answer_is_waited_for_behind_others_that_are_not_final(
    counting_server: CountingServer, client: S3Client, status: int
) -> None:
    interim = b"HTTP/1.1 %d Wait\r\nLink: </style>; rel=preload\r\n\r\n" % status
    counting_server.put("a", b"old")
    counting_server.fault(operation="PutObject", key="a", before=2 * interim, status=403, code="AccessDenied")
    with pytest.raises(AccessDeniedError), client.put_object(counting_server.bucket, "a") as stream:
        stream.write(b"new")
    counting_server.fault(operation="PutObject", key="b", before=interim)
    with client.put_object(counting_server.bucket, "b") as stream:
        stream.write(b"new")
    with client.put_object(counting_server.bucket, "c") as stream:
        stream.write(b"newer")
    assert [counting_server.get(key) for key in "abc"] == [b"old", b"new", b"newer"]


def test_an_answer_without_etag_is_no_success(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.fault(operation="PutObject", status=200, instead=b"HTTP/1.1 200 OK\r\n\r\n<html>sign in</html>")
    with (
        pytest.raises(S3Exception, match=r"PUT of s3://.* no ETag"),
        client.put_object(counting_server.bucket, "key") as stream,
    ):
        stream.write(b"new")
    assert counting_server.keys() == []


def test_a_put_whose_answer_is_lost_is_an_error_that_says_so(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.fault(operation="PutObject", cut=0)
    stream = make_client(counting_server, max_attempts=1).put_object(counting_server.bucket, "key")
    with pytest.raises(S3ConnectionError, match="the store has done it all the same"), stream:
        stream.write(b"new")


def test_copies_into_a_part_of_lent_memory_are_within_the_bound_too(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(counting_server, part_size=PART)
    budget, holder = client._runtime.budget, object()
    budget.take(holder, budget.limit)  # By others: a stream may go on, with one part at a time.
    counting_server.fault(operation="UploadPart", hold=True)
    lent = bytes(random.Random(2).randbytes(64 * 2**10))
    piece = random.Random(3).randbytes(PART - len(lent))
    stream = client.put_object(counting_server.bucket, "key")

    def write() -> None:
        with stream:
            for _ in range(4):
                stream.write(memoryview(lent), copy=False)
                stream.write(bytearray(piece))

    writing = threading.Thread(target=write)
    writing.start()
    counting_server.wait_for_requests(1, operation="UploadPart")
    time.sleep(0.3)
    begun = counting_server.operations().count("UploadPart")
    wait_until(lambda: counting_server.release() >= 0 and not writing.is_alive(), timeout_seconds=60)
    assert begun <= 2
    assert counting_server.get("key") == 4 * (lent + piece)
    budget.give_back(holder)


def test_a_completion_that_always_fails_behind_a_status_of_200_raises(
    counting_server: CountingServer, client: S3Client
) -> None:
    counting_server.fault(operation="CompleteMultipartUpload", status=200, code="InternalError")
    stream = client.put_object(counting_server.bucket, "key")
    with pytest.raises(S3Exception, match="InternalError"), stream:
        stream.write(DATA)
    assert counting_server.keys() == []
    assert counting_server.uploads() == []


def test_an_unknown_bucket_is_named(client: S3Client) -> None:
    stream = client.put_object("no-such-bucket", "key")
    with pytest.raises(NoSuchBucketError, match="s3://no-such-bucket/key"), stream:
        stream.write(b"abc")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"storage_class": "standard"}, "storage_class"),
        ({"storage_class": "STANDARD\r\nx-evil: 1"}, "storage_class"),
        ({"metadata": {"na me": "x"}}, "metadata"),
        ({"metadata": {"name": "line\nend"}}, "metadata"),
        ({"metadata": {"name": "ü"}}, "metadata"),
        ({"size_hint": -1}, "size_hint"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_at_once(client: S3Client, more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        client.put_object("a-bucket", "key", **more)


def test_metadata_and_storage_class_arrive(counting_server: CountingServer, client: S3Client) -> None:
    for size in (1, len(DATA)):
        with client.put_object(
            counting_server.bucket, f"key{size}", metadata={"run-id": "a b"}, storage_class="STANDARD_IA"
        ) as stream:
            stream.write(DATA[:size])
        answer = counting_server.boto3_client().head_object(Bucket=counting_server.bucket, Key=f"key{size}")
        assert answer["Metadata"] == {"run-id": "a b"}
        assert answer["StorageClass"] == "STANDARD_IA"


def test_checksums_are_verified_by_the_store(seaweedfs_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    bucket = seaweedfs_server.create_bucket()
    for checksum in ("CRC64NVME", "SHA256", None):
        for size in (100, len(DATA)):
            client = make_client(seaweedfs_server, part_size=PART, upload_checksum=checksum)
            with client.put_object(bucket, "key") as stream:
                stream.write(DATA[:size])
            assert client.get_object(bucket, "key").read_all() == DATA[:size]


def test_checksums_are_those_of_the_bytes(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(counting_server, part_size=PART, upload_checksum="SHA256")
    with client.put_object(counting_server.bucket, "key") as stream:
        stream.write(DATA[:100])
    (request,) = counting_server.requests
    expected = base64.b64encode(hashlib.sha256(DATA[:100]).digest()).decode()
    assert request.headers["x-amz-checksum-sha256"] == expected
    assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


def test_the_checksum_is_the_one_that_amazon_publishes(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    """CRC-64/NVME of `123456789`: https://reveng.sourceforge.io/crc-catalogue/all.htm#crc.cat.crc-64-nvme."""
    with make_client(counting_server).put_object(counting_server.bucket, "key") as stream:
        stream.write(b"123456789")
    (request,) = counting_server.requests
    assert base64.b64decode(request.headers["x-amz-checksum-crc64nvme"]).hex() == "ae8b14860a799888"


def test_a_stream_says_that_it_cannot_be_pickled(client: S3Client) -> None:
    stream: PutObjectStream = client.put_object("a-bucket", "key")
    with pytest.raises(TypeError, match="open one in the other process"):
        pickle.dumps(stream)


@pytest.mark.parametrize(
    ("make", "copy", "most"),
    [(bytes, True, 4), (bytearray, False, 4), (bytearray, True, 2)],
    ids=["bytes", "lent", "copied"],
)
def test_more_parts_are_on_their_way_from_the_callers_memory_than_copies(
    counting_server: CountingServer,
    make_client: Callable[..., S3Client],
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[int], bytes | bytearray],
    copy: bool,
    most: int,
) -> None:
    monkeypatch.setattr(_plan, "COPIED_PARTS", 2)
    monkeypatch.setattr(_plan, "REFERRED_PARTS", 4)
    counting_server.fault(operation="UploadPart", hold=True)
    with make_client(counting_server, part_size=5 * MiB).put_object(counting_server.bucket, "key") as stream:
        piece = make(5 * MiB)
        writing = threading.Thread(target=lambda: [stream.write(piece, copy=copy) for _ in range(8)])
        writing.start()
        counting_server.wait_for_requests(most, operation="UploadPart")
        writing.join(0.3)
        assert writing.is_alive()
        assert counting_server.operations().count("UploadPart") == most
        counting_server.faults_clear()
        counting_server.release()
        writing.join()
    assert counting_server.get("key") == bytes(40 * MiB)

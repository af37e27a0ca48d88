"""Large bodies, which go from the socket straight into place: broken, stalled and given up."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core import NoSuchKeyError, ObjectInfo, S3Client, S3ClientConfig, S3ConnectionError, S3Exception, S3TimeoutError
from s3core._wire import Chunks, NotUnderstood
from servers import CountingServer, wait_until
from servers._script import BODY, GOOD, ODD, WELL, Script
from servers._seaweedfs import start_seaweedfs

MiB = 2**20
PART = 5 * MiB
DATA = random.Random(7).randbytes(3 * PART + 4321)
LAST = f"bytes={3 * PART}-{len(DATA) - 1}"


@pytest.fixture
def client(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> S3Client:
    counting_server.put("big", DATA)
    return make_client(counting_server, part_size=PART, max_attempts=4)


@pytest.fixture
def proxied(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> S3Client:
    """A client that asks by the library, as through any proxy, which is the server itself here."""
    counting_server.put("big", DATA)
    return make_client(counting_server, part_size=PART, max_attempts=4, proxy=counting_server.endpoint)


def ranges(server: CountingServer) -> list[str]:
    return [request.headers["range"] for request in server.requests if request.operation == "GetObject"]


def test_a_body_that_breaks_once_is_asked_for_again(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.fault(operation="GetObject", cut=2 * MiB, times=1)
    assert (
        client.get_object(counting_server.bucket, "big", start=PART, end=2 * PART).read_all() == DATA[PART : 2 * PART]
    )
    assert len(ranges(counting_server)) == 2


def test_a_body_that_ends_early_is_taken_up_where_it_ended(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.fault(operation="GetObject", truncate=2 * MiB)
    buffer = bytearray(PART)
    assert client.get_object(counting_server.bucket, "big", end=PART).read_into(buffer) == PART
    assert buffer == DATA[:PART]
    assert ranges(counting_server) == [f"bytes={start}-{PART - 1}" for start in (0, 2 * MiB, 4 * MiB)]


def test_bodies_that_are_reset_again_and_again_get_there(counting_server: CountingServer, client: S3Client) -> None:
    for more in range(3):
        counting_server.fault(operation="GetObject", cut=(more + 1) * MiB, times=1)
    buffer = bytearray(PART)
    assert client.get_object(counting_server.bucket, "big", start=7, end=7 + PART).read_into(buffer) == PART
    assert buffer == DATA[7 : 7 + PART]
    assert len(ranges(counting_server)) > 1


def test_a_body_that_always_breaks_is_an_error(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.fault(operation="GetObject", cut=1000)
    with pytest.raises(S3ConnectionError, match=r"s3://.*/big .* in up to 4 attempts"):
        client.get_object(counting_server.bucket, "big", end=PART).read_all()


@pytest.mark.parametrize("refusals", [0, 2])
@pytest.mark.parametrize("size", [1000, PART])
def test_attempts_at_answers_and_at_bodies_count_together(
    counting_server: CountingServer, client: S3Client, size: int, refusals: int
) -> None:
    for _ in range(5):
        if refusals:
            counting_server.fault(operation="GetObject", times=refusals, status=503, code="SlowDown")
        counting_server.fault(operation="GetObject", times=1, truncate=100)
    stream = client.get_object(counting_server.bucket, "big", object_info=ObjectInfo("big", len(DATA)), end=size)
    with pytest.raises(S3Exception, match=r"s3://.*/big "):
        stream.read_all()
    assert len(ranges(counting_server)) == 4


@pytest.mark.parametrize("size", [1000, PART])
def test_a_stream_that_is_closed_asks_no_more(counting_server: CountingServer, client: S3Client, size: int) -> None:
    counting_server.fault(operation="GetObject", times=1, hold=True, status=503, code="SlowDown")
    stream = client.get_object(counting_server.bucket, "big", object_info=ObjectInfo("big", len(DATA)), end=size)
    stream.prefetch()
    counting_server.wait_for_requests(1, operation="GetObject")
    stream.close()
    counting_server.release()
    time.sleep(0.5)  # longer than it waits before the second attempt
    assert len(ranges(counting_server)) == 1


def test_connections_are_used_again(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> None:
    counting_server.put("big", DATA)
    client = make_client(counting_server, part_size=PART, max_concurrency=1)
    for _ in range(3):
        assert client.get_object(counting_server.bucket, "big").read_all() == DATA
    middle = {f"bytes={start}-{start + PART - 1}" for start in (PART, 2 * PART)}
    direct = [request.connection for request in counting_server.requests if request.headers["range"] in middle]
    native = [request.connection for request in counting_server.requests if request.headers["range"] not in middle]
    assert (len(direct), len(set(direct))) == (6, 1)
    # obstore notices the end of an answer a moment after its bytes are there, and opens another until then.
    assert len(set(native)) < len(native) == 6


def test_a_stalled_body_is_given_up_when_another_fails(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.put("big", DATA)
    failing = f"bytes={PART}-{2 * PART - 1}"
    counting_server.fault(operation="GetObject", range=LAST, pace_bytes_per_second=1000)
    counting_server.fault(operation="GetObject", range=failing, delay_seconds=1, status=403, code="AccessDenied")
    client = make_client(counting_server, part_size=PART, read_timeout=60)
    buffer = bytearray(len(DATA))
    with pytest.raises(PermissionError):
        client.get_object(counting_server.bucket, "big").read_into(buffer)
    assert buffer[:PART] == DATA[:PART]
    buffer[:] = bytes(len(buffer))
    wait_until(lambda: not _receiving())
    assert buffer == bytes(len(buffer))


def test_a_stalled_body_is_given_up_when_its_stream_is_closed(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.put("big", DATA)
    # The first one that is no small range. What is small goes on, however slowly, and would be seen by later tests.
    large = f"bytes={576 * 1024}-{1088 * 1024 - 1}"
    counting_server.fault(operation="GetObject", range=large, pace_bytes_per_second=100)
    client = make_client(counting_server, part_size=PART, read_timeout=60)
    with client.get_object(counting_server.bucket, "big") as stream:
        assert [bool(next(stream)) for _ in range(3)] == [True] * 3
        wait_until(lambda: bool(_receiving()))
    wait_until(lambda: not _receiving())


def _receiving() -> list[str]:
    """The threads that receive a body."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [names.get(ident, "") for ident, frame in sys._current_frames().items() if _is_in("_receive", frame)]


def _is_in(function: str, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == function:
            return True
        frame = frame.f_back
    return False


class _Opaque:
    """An answer of a urllib3 that keeps to itself what it reads from."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __getattr__(self, name: str) -> Any:
        if name == "_fp":
            raise AttributeError(name)
        return getattr(self._response, name)


def test_no_private_part_of_urllib3_is_needed(
    counting_server: CountingServer, proxied: S3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = proxied._runtime.rest._library
    send = library._urlopen
    monkeypatch.setattr(library, "_urlopen", lambda *args, **settings: _Opaque(send(*args, **settings)))
    assert proxied.get_object(counting_server.bucket, "big", start=5).read_all() == DATA[5:]
    counting_server.fault(operation="GetObject", cut=2 * MiB, times=2)
    assert proxied.get_object(counting_server.bucket, "big", end=PART).read_all() == DATA[:PART]


def test_a_body_of_the_library_that_breaks_again_and_again_gets_there(
    counting_server: CountingServer, proxied: S3Client
) -> None:
    for more in range(3):
        counting_server.fault(operation="GetObject", cut=(more + 1) * MiB, times=1)
    buffer = bytearray(PART)
    assert proxied.get_object(counting_server.bucket, "big", start=7, end=7 + PART).read_into(buffer) == PART
    assert buffer == DATA[7 : 7 + PART]


# A key that goes the way of large ranges, whatever its size.
ODD_KEY = "odd//key"


def client_of(script: Script, **settings: Any) -> S3Client:
    config = S3ClientConfig(
        access_key_id="a", secret_access_key="b", **{"max_attempts": 3, "read_timeout": 5} | settings
    )
    return S3Client("us-east-1", endpoint=script.endpoint, s3client_config=config)


@pytest.mark.parametrize("answer", WELL.values(), ids=WELL)
def test_a_good_answer_comes_in_any_pieces(start_script: Callable[..., Script], answer: list[bytes]) -> None:
    script = start_script(answer)
    client = client_of(script)
    for count in range(1, 4):
        assert client.get_object("bucket", ODD_KEY).read_all() == BODY
        assert script.requests == count
    assert client._runtime.rest._connections.is_understood


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_an_odd_answer_is_never_taken_for_other_bytes(start_script: Callable[..., Script], answer: list[bytes]) -> None:
    script = start_script(answer, answer)
    client = client_of(script)
    for _ in range(2):
        with suppress(S3Exception):
            assert client.get_object("bucket", ODD_KEY, etag='"e"').read_all() == BODY
    script.answers.clear()
    for _ in range(2):
        assert client.get_object("bucket", ODD_KEY).read_all() == BODY


@pytest.mark.parametrize("rest", [GOOD.replace(BODY, bytes(1000)), b"H"], ids=["all", "byte"])
def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one(
    start_script: Callable[..., Script], rest: bytes
) -> None:
    script = start_script([GOOD, rest], keeps=True)
    client = client_of(script)
    for count in range(1, 4):
        assert client.get_object("bucket", ODD_KEY).read_all() == BODY
        wait_until(lambda count=count: script.answered >= count)  # type: ignore[misc]  # The rest has come.


def test_a_connection_that_ended_while_idle_costs_nothing(start_script: Callable[..., Script]) -> None:
    script = start_script([GOOD], [GOOD], [GOOD])
    client = client_of(script, max_attempts=1)
    for count in range(1, 5):
        assert client.get_object("bucket", ODD_KEY).read_all() == BODY
        assert script.requests == count


def test_a_store_that_falls_silent_is_given_up(start_script: Callable[..., Script]) -> None:
    script = start_script(*[[GOOD[: -len(BODY)]]] * 10, keeps=True)
    client = client_of(script, max_attempts=2, read_timeout=0.5)
    began = time.monotonic()
    with pytest.raises(S3TimeoutError, match=r"s3://bucket/odd//key .* 2 attempts"):
        client.get_object("bucket", ODD_KEY).read_all()
    script.answers = [[GOOD[:50]]] * 10
    with pytest.raises(S3TimeoutError, match=r"s3://bucket/odd//key .* 2 attempts"):
        client.get_object("bucket", ODD_KEY).read_all()
    assert time.monotonic() - began < 20


def test_a_stall_is_noticed_in_twice_the_time_at_most(start_script: Callable[..., Script]) -> None:
    script = start_script([GOOD[:-500]], keeps=True)
    client = client_of(script, max_attempts=1, read_timeout=2)
    began = time.monotonic()
    with pytest.raises(S3TimeoutError, match=r"s3://bucket/odd//key"):
        client.get_object("bucket", ODD_KEY).read_all()
    assert 2 <= time.monotonic() - began < 5.5


XML = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>Nothing here.</Message></Error>"
MISSING = b"HTTP/1.1 404 Not Found\r\n"
CHUNKS = b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in (XML[:30], XML[30:])) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        [MISSING + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS],
        [MISSING + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS[:50], CHUNKS[50:]],
        [MISSING + b"Content-Length: %d\r\n\r\n" % len(XML) + XML],
        [MISSING + b"Content-Length: %d\r\n\r\n" % len(XML), XML],
    ],
    ids=["chunks", "chunks in pieces", "whole", "in pieces"],
)
def test_an_error_is_asked_for_once(start_script: Callable[..., Script], answer: list[bytes]) -> None:
    script = start_script(*[answer] * 10)
    client = client_of(script)
    for count in range(1, 11):
        with pytest.raises(NoSuchKeyError, match=r"s3://bucket/odd//key"):
            client.get_object("bucket", ODD_KEY).read_all()
        assert script.requests == count
    assert client.get_object("bucket", ODD_KEY).read_all() == BODY


@pytest.mark.parametrize("framing", [b"Content-Length: 500\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n"])
def test_an_error_that_is_cut_off_is_no_answer(start_script: Callable[..., Script], framing: bytes) -> None:
    script = start_script([b"HTTP/1.1 400 Bad Request\r\n" + framing + XML])
    assert client_of(script).get_object("bucket", ODD_KEY).read_all() == BODY
    assert script.requests == 2


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    st.sampled_from([b"", b"x-amz-checksum: a\r\n"]),
    st.integers(1, 200),
)
def test_chunks_are_joined_when_the_last_has_come(parts: list[bytes], trailer: bytes, step: int) -> None:
    whole = b"".join(b"%X;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"
    chunks = Chunks()
    for start in range(0, len(whole), step):
        assert not chunks.is_whole
        chunks.take(whole[start : start + step])
    chunks.take(b"more")
    assert chunks.is_whole
    assert chunks.body == b"".join(parts)
    assert chunks.rest == len(b"more")


KEYS = [f"key-{number:03}" for number in range(300)]
LISTING = (
    b"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>%s</ListBucketResult>"
    % "".join(f"<Contents><Key>{key}</Key><Size>7</Size></Contents>" for key in KEYS).encode()
)
FOUND = b"HTTP/1.1 200 OK\r\n"
IN_CHUNKS = FOUND + b"Transfer-Encoding: chunked\r\n\r\n"


def chunked(body: bytes, size: int, end: bytes = b"0\r\n\r\n") -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + end


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        ([FOUND + b"Content-Length: %d\r\n\r\n" % len(LISTING) + LISTING], 1),
        ([IN_CHUNKS + chunked(LISTING, 1000)], 1),
        ([IN_CHUNKS, chunked(LISTING, 9999)[:5000], chunked(LISTING, 9999)[5000:]], 1),
        ([IN_CHUNKS + chunked(LISTING, 10**6, b"0\r\nx-amz-checksum: a\r\n"), b"\r\n"], 1),
        ([IN_CHUNKS + chunked(LISTING, 1000) + b"more"], 3),
    ],
    ids=["whole", "chunks", "chunks in pieces", "a trailer", "more behind the end"],
)
def test_a_listing_is_read_whole(start_script: Callable[..., Script], answer: list[bytes], connections: int) -> None:
    script = start_script(*[answer] * 3, keeps=True)
    client = client_of(script)
    for count in range(1, 4):
        (page,) = client.list_objects("bucket")
        assert page.keys == KEYS
        assert script.requests == count
    assert script.connections == connections


@pytest.mark.parametrize(
    "answer",
    [
        [IN_CHUNKS + chunked(LISTING, 1000)[:-500]],
        [IN_CHUNKS + chunked(LISTING, 1000, b"xyz\r\n")],
        [IN_CHUNKS + b"5\r\nabcdefgh\r\n0\r\n\r\n"],
        [FOUND + b"Content-Length: %d\r\n\r\n" % len(LISTING) + LISTING[:-100]],
        [FOUND + b"\r\n" + LISTING],
        [FOUND.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % len(LISTING) + LISTING],
        [FOUND + b"Content-Length: 99999999999999\r\n\r\n" + LISTING],
        [b"HTTP/1.1 503 Slow Down\r\n" + IN_CHUNKS.partition(b"\r\n")[2] + chunked(XML, 30)],
    ],
    ids=["cut", "no chunk", "a long chunk", "short", "no length", "an older HTTP", "a huge length", "an error"],
)
def test_a_listing_that_breaks_once_is_asked_for_again(
    start_script: Callable[..., Script], answer: list[bytes]
) -> None:
    script = start_script(answer, [IN_CHUNKS + chunked(LISTING, 1000)])
    (page,) = client_of(script).list_objects("bucket")
    assert page.keys == KEYS
    assert script.requests == 2


def test_odd_listings_say_nothing_of_ranges(start_script: Callable[..., Script]) -> None:
    script = start_script(*[[FOUND + b"\r\n" + LISTING]] * 30)
    client = client_of(script)
    for _ in range(12):
        (page,) = client.list_objects("bucket")
        assert page.keys == KEYS
    assert script.requests < 24  # After some it is asked for in the other way at once.
    script.answers = []
    before = script.requests
    assert client.get_object("bucket", ODD_KEY).read_all() == BODY
    assert script.requests == before + 1
    assert client._runtime.rest._connections.is_understood


@pytest.mark.parametrize("length", [b"", b"0x5", b"5g", b"-5", b" 5", b"0000000000000005", b"5 5"])
def test_a_chunk_of_an_odd_length_is_refused(length: bytes) -> None:
    with pytest.raises(NotUnderstood):
        Chunks().take(length + b"\r\nabcde\r\n0\r\n\r\n")


def test_a_store_that_was_not_understood_is_tried_again_later(start_script: Callable[..., Script]) -> None:
    script = start_script(*[[GOOD.replace(b"HTTP/1.1", b"HTTP/1.0")]] * 16)
    client = client_of(script)
    connections = client._runtime.rest._connections
    for _ in range(10):
        assert client.get_object("bucket", ODD_KEY).read_all() == BODY
    assert not connections.is_understood
    connections._oddities._since -= 100
    assert connections.is_understood
    assert client.get_object("bucket", ODD_KEY).read_all() == BODY


def test_small_requests_too_are_tried_again_later(start_script: Callable[..., Script]) -> None:
    script = start_script(*[[GOOD.replace(b"HTTP/1.1", b"HTTP/1.0")]] * 40)
    client = client_of(script)
    for _ in range(10):
        known = ObjectInfo("key", len(BODY), '"e"')
        assert client.get_object("bucket", "key", object_info=known, etag='"e"').read_all() == BODY
    exchanges = client._runtime.exchanges
    assert not exchanges.is_understood
    exchanges._watcher.oddities._since -= 100
    assert exchanges.is_understood


@pytest.mark.parametrize(
    "answer",
    [
        b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"200 OK\r\nConnection: close\r\n\r\nhello",
        b"200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"204 No Content\r\n\r\n",
    ],
    ids=["chunks", "until the end", "twice", "no content"],
)
@pytest.mark.parametrize(
    "read",
    [lambda s: s.read_all(), next, lambda s: s.object_info, lambda s: s.read_into(bytearray(9))],
    ids=["read_all", "next", "object_info", "read_into"],
)
def test_a_whole_object_of_unknown_length_is_an_error(
    start_script: Callable[..., Script], read: Callable[[Any], Any], answer: bytes
) -> None:
    script = start_script(*[[b"HTTP/1.1 " + answer.replace(b"\r\n", b'\r\nETag: "e"\r\n', 1)]] * 40)
    stream = client_of(script).get_object("bucket", ODD_KEY)
    with pytest.raises(S3Exception, match=f"GET of s3://bucket/{ODD_KEY} failed: .*did not say how long it is"):
        read(stream)


@pytest.mark.parametrize(
    "length",
    ["", "Content-Length: many\r\n", "Content-Length: -5\r\n", 2 * "Content-Length: 5\r\n"],
    ids=["none", "no number", "negative", "twice"],
)
def test_a_head_that_does_not_tell_the_size_is_an_error(start_script: Callable[..., Script], length: str) -> None:
    client = client_of(start_script([f'HTTP/1.1 200 OK\r\n{length}ETag: "e"\r\n\r\n'.encode()]))
    with pytest.raises(S3Exception, match="HEAD of s3://bucket/key failed: the store did not tell the object's size"):
        client.head_object("bucket", "key")


def test_a_host_that_cannot_be_reached_is_named() -> None:
    config = S3ClientConfig(access_key_id="a", secret_access_key="b", max_attempts=2)
    client = S3Client("us-east-1", endpoint="http://no-such-host.invalid:8000", s3client_config=config)
    with pytest.raises(S3ConnectionError, match=r"s3://bucket/odd//key .*no-such-host.invalid:8000"):
        client.get_object("bucket", ODD_KEY).read_all()


def test_listing_and_reading_load_no_library(run_program: Callable[..., str], counting_server: CountingServer) -> None:
    counting_server.put("big", DATA)
    program = """
        import sys
        client = make_client()
        (page,) = client.list_objects(bucket)
        buffer = bytearray(2**24)
        count = client.get_object(bucket, page.keys[0]).read_into(buffer)
        print(count, "urllib3" in sys.modules)
    """
    assert run_program(program, counting_server, counting_server.bucket).split() == [str(len(DATA)), "False"]


def test_large_ranges_over_tls(make_client: Callable[..., S3Client], monkeypatch: pytest.MonkeyPatch) -> None:
    with start_seaweedfs(tls=True) as server:
        bucket = server.create_bucket()
        client = make_client(server, part_size=PART)
        with client.put_object(bucket, "big") as stream:
            stream.write(DATA)
        for _ in range(3):
            buffer = bytearray(len(DATA))
            assert client.get_object(bucket, "big").read_into(buffer) == len(DATA)
            assert buffer == DATA
        assert any(client._runtime.rest._connections._idle.values())
        stranger = make_client(server, ca_bundle=None, max_attempts=2)
        monkeypatch.setattr(stranger._runtime.rest._library, "open", pytest.fail)
        with pytest.raises(S3Exception, match=r"s3://.*certificate"):
            stranger.get_object(bucket, "big//odd").read_all()

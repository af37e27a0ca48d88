"""Small ranges, which share one thread: kept connections, odd answers, breaks, stalls, and the end of the thread."""

from __future__ import annotations

import gc
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core import NoSuchKeyError, ObjectChangedError, ObjectInfo, S3Client, S3ClientConfig, S3Exception, ThrottledError
from s3core._connection import Connection, Reply, connect
from s3core._exchanges import Exchanges
from s3core._outcome import Outcome
from s3core._pool import Pool
from s3core._wire import NotUnderstood, get_request, parse_head
from servers import CountingServer, wait_until
from servers._script import BODY, GOOD, ODD, WELL, Script
from servers._seaweedfs import start_seaweedfs

KiB = 1024
SIZES = [1, 2, 1000, 4 * KiB, 64 * KiB, 100_000, 256 * KiB]
BODIES = {f"{size}": random.Random(size).randbytes(size) for size in SIZES}


@pytest.fixture
def client(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> S3Client:
    for key, body in BODIES.items():
        counting_server.put(key, body)
    client = make_client(counting_server, max_attempts=3, read_timeout=5)
    next(client.list_objects(counting_server.bucket))  # From now on its keys are at hand.
    counting_server.clear()
    return client


def read(client: S3Client, bucket: str, key: str, *, etag: str | None = None) -> bytes:
    info = ObjectInfo(key, len(BODIES.get(key, b"x")))
    with client.get_object(bucket, key, object_info=info, etag=etag) as stream:
        return stream.read_all()


def is_shared(client: S3Client) -> bool:
    """Whether small ranges of the client still go by the one thread, and went there."""
    watcher = client._runtime.exchanges._watcher
    return watcher._is_started and not watcher._is_over


def test_many_at_a_time_are_right_and_keep_their_connections(counting_server: CountingServer, client: S3Client) -> None:
    keys = list(BODIES) * 40
    random.Random(1).shuffle(keys)
    infos = [ObjectInfo(key, len(BODIES[key])) for key in keys]
    for _ in range(2):
        streams = [client.get_object(counting_server.bucket, info.key, object_info=info) for info in infos]
        for stream in streams:
            stream.prefetch()
        assert [stream.read_all() for stream in streams] == [BODIES[key] for key in keys]
    asked = [request for request in counting_server.requests if request.operation == "GetObject"]
    assert len(asked) == 2 * len(keys)
    assert len({request.connection for request in asked}) <= client._runtime.config.concurrency
    assert is_shared(client)


def test_an_answer_tells_of_the_object(counting_server: CountingServer, client: S3Client) -> None:
    described = client.head_object(counting_server.bucket, "1000")
    with client.get_object(counting_server.bucket, "1000", object_info=ObjectInfo("1000", 1000)) as stream:
        stream.read_all()
        assert stream.object_info == described


def test_many_threads_at_a_time(counting_server: CountingServer, client: S3Client) -> None:
    keys = list(BODIES) * 10
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda key: read(client, counting_server.bucket, key), keys))
    assert found == [BODIES[key] for key in keys]


@pytest.mark.parametrize("effect", [{"cut": 50_000}, {"truncate": 50_000}, {"cut": 0}], ids=str)
def test_a_body_that_breaks_is_asked_for_again(
    counting_server: CountingServer, client: S3Client, effect: dict[str, int]
) -> None:
    counting_server.fault(operation="GetObject", times=1, **effect)
    assert read(client, counting_server.bucket, "100000") == BODIES["100000"]
    assert len(counting_server.requests) == 2
    assert is_shared(client)


def test_a_stall_is_asked_for_again(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> None:
    counting_server.put("1000", BODIES["1000"])
    client = make_client(counting_server, read_timeout=0.5)
    next(client.list_objects(counting_server.bucket))
    counting_server.fault(operation="GetObject", times=1, hold=True)
    began = time.monotonic()
    assert read(client, counting_server.bucket, "1000") == BODIES["1000"]
    assert time.monotonic() - began < 15
    counting_server.release()


def test_a_refusal_counts_among_the_attempts(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.fault(operation="GetObject", status=503, code="SlowDown")
    with pytest.raises(ThrottledError, match=r"s3://.*/1000"):
        read(client, counting_server.bucket, "1000")
    assert len(counting_server.requests) == 3
    counting_server.faults_clear()
    counting_server.fault(operation="GetObject", times=2, status=500, code="InternalError")
    assert read(client, counting_server.bucket, "1000") == BODIES["1000"]


def test_what_is_not_there_or_was_replaced_is_said(counting_server: CountingServer, client: S3Client) -> None:
    with pytest.raises(NoSuchKeyError, match=r"s3://.*/missing"):
        read(client, counting_server.bucket, "missing")
    with pytest.raises(ObjectChangedError):
        read(client, counting_server.bucket, "1000", etag='"another"')


def test_what_nobody_wants_any_more_is_not_asked_for(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.put("1000", BODIES["1000"])
    client = make_client(counting_server, max_concurrency=1)
    next(client.list_objects(counting_server.bucket))
    counting_server.fault(operation="GetObject", times=1, hold=True)
    streams = [client.get_object(counting_server.bucket, "1000", object_info=ObjectInfo("1000", 1000)) for _ in "abc"]
    for stream in streams:
        stream.prefetch()
    wait_until(lambda: any(request.operation == "GetObject" for request in counting_server.requests))
    streams[1].close()
    counting_server.release()
    assert [streams[0].read_all(), streams[2].read_all()] == [BODIES["1000"]] * 2
    assert sum(request.operation == "GetObject" for request in counting_server.requests) == 2


def test_a_header_with_a_line_end_is_not_sent(counting_server: CountingServer, client: S3Client) -> None:
    with pytest.raises((S3Exception, ValueError)):
        read(client, counting_server.bucket, "1000", etag='"a"\r\nX-Other: b')
    assert not counting_server.requests


def test_the_thread_ends_with_its_client(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> None:
    counting_server.put("1000", BODIES["1000"])
    before = set(threading.enumerate())
    client = make_client(counting_server, user_agent_suffix="of its own")
    next(client.list_objects(counting_server.bucket))
    assert read(client, counting_server.bucket, "1000") == BODIES["1000"]
    (thread,) = (one for one in set(threading.enumerate()) - before if one.name == "s3core-exchanges")
    del client

    def is_over() -> bool:
        gc.collect()
        return not thread.is_alive()

    wait_until(is_over)


def test_when_the_thread_fails_all_goes_on_without_it(
    counting_server: CountingServer,
    client: S3Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    assert read(client, counting_server.bucket, "1000") == BODIES["1000"]
    monkeypatch.setattr(client._runtime.exchanges._watcher, "_serve", fail)
    infos = [ObjectInfo(key, len(body)) for key, body in BODIES.items()] * 5
    streams = [client.get_object(counting_server.bucket, info.key, object_info=info) for info in infos]
    for stream in streams:
        stream.prefetch()
    assert [stream.read_all() for stream in streams] == [BODIES[info.key] for info in infos]
    assert not is_shared(client)
    assert read(client, counting_server.bucket, "1000") == BODIES["1000"]

    def errors() -> int:
        return sum(record.levelno >= logging.ERROR for record in caplog.records)

    wait_until(lambda: errors() > 0)  # The thread says so once all goes another way already.
    assert errors() == 1


def test_over_tls(make_client: Callable[..., S3Client]) -> None:
    with start_seaweedfs(tls=True) as server:
        bucket = server.create_bucket()
        client = make_client(server)
        for key, body in BODIES.items():
            with client.put_object(bucket, key) as stream:
                stream.write(body)
        keys = list(BODIES) * 20
        streams = [client.get_object(bucket, key, object_info=ObjectInfo(key, len(BODIES[key]))) for key in keys]
        for stream in streams:
            stream.prefetch()
        assert [stream.read_all() for stream in streams] == [BODIES[key] for key in keys]
        assert is_shared(client)
        assert client._runtime.exchanges._watcher._lines
        stranger = make_client(server, ca_bundle=None, max_attempts=2)
        stranger._runtime.keys()
        with pytest.raises(S3Exception, match=r"s3://.*certificate"):
            stranger.get_object(bucket, "1", object_info=ObjectInfo("1", 1)).read_all()


def client_of(script: Script) -> S3Client:
    config = S3ClientConfig(access_key_id="a", secret_access_key="b", max_attempts=3, read_timeout=5)
    client = S3Client("us-east-1", endpoint=script.endpoint, s3client_config=config)
    client._runtime.keys()
    return client


@pytest.mark.parametrize("answer", WELL.values(), ids=WELL)
def test_a_good_answer_comes_in_any_pieces(start_script: Callable[..., Script], answer: list[bytes]) -> None:
    script = start_script(answer)
    client = client_of(script)
    for _ in range(3):
        assert read(client, "bucket", "1000", etag='"e"') == BODY
    assert script.requests == 3
    assert is_shared(client)


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_after_an_odd_answer_the_bytes_are_asked_for_again(
    start_script: Callable[..., Script], answer: list[bytes]
) -> None:
    script = start_script(answer)
    client = client_of(script)
    assert read(client, "bucket", "1000", etag='"e"') == BODY
    assert script.requests == 2
    assert read(client, "bucket", "1000", etag='"e"') == BODY
    assert is_shared(client)


def test_a_head_with_line_ends_of_its_own_is_not_waited_for(start_script: Callable[..., Script]) -> None:
    head, _, body = GOOD.partition(b"\r\n\r\n")
    script = start_script([head.replace(b"\r", b"") + b"\n\n", body], keeps=True)
    client = client_of(script)
    began = time.monotonic()
    assert read(client, "bucket", "1000", etag='"e"') == BODY
    assert time.monotonic() - began < 4  # and not `read_timeout`
    assert script.requests == 2


OTHER = GOOD.replace(BODY, bytes(1000))


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("rest", [OTHER, OTHER[:500], OTHER[:50], b"H"], ids=["all", "body", "head", "byte"])
def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one(
    start_script: Callable[..., Script], rest: bytes, keeps: bool
) -> None:
    script = start_script([GOOD, rest], keeps=keeps)
    client = client_of(script)
    for count in range(1, 4):
        assert read(client, "bucket", "1000") == BODY
        wait_until(lambda count=count: script.answered >= count)  # type: ignore[misc]  # The rest has come.


def test_a_store_that_is_never_understood_is_asked_once(start_script: Callable[..., Script]) -> None:
    script = start_script(*[[GOOD.replace(b"HTTP/1.1", b"HTTP/1.0")]] * 100)
    client = client_of(script)
    for _ in range(20):
        assert read(client, "bucket", "1000", etag='"e"') == BODY
    assert script.requests <= 20 + 2 * 8  # as a small range, and then as any other


def test_what_waits_goes_on_when_all_others_have_stalled(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.put("1000", BODIES["1000"])
    client = make_client(counting_server, read_timeout=0.5, max_concurrency=2)
    next(client.list_objects(counting_server.bucket))
    counting_server.fault(operation="GetObject", times=2, hold=True)
    streams = [
        client.get_object(counting_server.bucket, "1000", object_info=ObjectInfo("1000", 1000)) for _ in range(6)
    ]
    for stream in streams:
        stream.prefetch()
    assert [stream.read_all() for stream in reversed(streams)] == [BODIES["1000"]] * 6
    counting_server.release()


def test_where_no_thread_can_be_started_there_is_an_error(
    counting_server: CountingServer, make_client: Callable[..., S3Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting_server.put("1000", BODIES["1000"])
    client = make_client(counting_server, max_attempts=7)  # like no other, which would leave it a connection
    next(client.list_objects(counting_server.bucket))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        runtime = client._runtime
        patched.setattr(threading.Thread, "start", refuse)
        patched.setattr(runtime.pool, "_count", 0)
        patched.setattr(runtime.pool, "_idle", SimpleQueue())
        patched.setattr(runtime.pool, "_queue", SimpleQueue())
        with pytest.raises(S3Exception, match="no thread can be started"):
            read(client, counting_server.bucket, "1000")
    assert read(client, counting_server.bucket, "1000") == BODIES["1000"]


class Ask:
    """An exchange whose connection may take its time."""

    is_wanted = True

    def __init__(self, origin: str, may_connect: threading.Event) -> None:
        self.origin = origin
        self.replies: list[Reply] = []
        self.failures = 0
        self._may_connect = may_connect

    def connect(self) -> Connection:
        assert self._may_connect.wait(60)
        return connect(self.origin, 5, ssl.create_default_context)

    def request(self) -> bytes:
        return get_request("/bucket/key", "localhost", {})

    def on_reply(self, reply: Reply) -> None:
        self.replies.append(reply)

    def on_failure(self, attempts: int) -> None:
        self.failures += 1


def test_a_connection_that_takes_its_time_holds_nothing_up(start_script: Callable[..., Script]) -> None:
    script = start_script()
    exchanges = Exchanges(Pool(8), 8, 5)
    at_once, never = threading.Event(), threading.Event()
    at_once.set()
    slow = [Ask(script.endpoint, never) for _ in range(3)]
    for ask in slow:
        exchanges.submit(ask)
    quick = Ask(script.endpoint, at_once)
    exchanges.submit(quick)
    wait_until(lambda: all(ask.replies for ask in [*slow, quick]))
    assert [ask.replies[0].body for ask in slow] == [BODY] * 3
    assert script.connections == 1
    never.set()
    wait_until(lambda: script.connections == 4)
    assert not any(ask.failures for ask in [*slow, quick])


def test_a_connection_that_cannot_be_opened_fails_one_exchange_each(start_script: Callable[..., Script]) -> None:
    origin = start_script().endpoint
    exchanges = Exchanges(Pool(8), 100, 5)
    at_once = threading.Event()
    at_once.set()
    asks = [Ask("http://127.0.0.1:1", at_once) for _ in range(80)] + [Ask(origin, at_once) for _ in range(80)]
    for ask in asks:
        exchanges.submit(ask)
    wait_until(lambda: all(ask.failures + len(ask.replies) == 1 for ask in asks))
    assert [bool(ask.replies) for ask in asks] == [False] * 80 + [True] * 80


def test_ctrl_c_while_waiting_does_not_stop_the_thread() -> None:
    outcome: Outcome[int] = Outcome()
    assert outcome._bell.locked()
    with pytest.raises(TimeoutError):
        outcome.result(timeout=0.01)
    waiting = [threading.Thread(target=outcome.result) for _ in range(3)]
    for thread in waiting:
        thread.start()
    outcome.set_result(5)
    for thread in waiting:
        thread.join(5)
        assert not thread.is_alive()
    outcome._bell.acquire(blocking=False)  # as Ctrl-C between taking and giving back would leave it
    assert outcome.result() == 5


def test_a_connection_that_ended_while_idle_costs_nothing(start_script: Callable[..., Script]) -> None:
    script = start_script([GOOD], [GOOD], [GOOD])
    client = client_of(script)
    for count in range(1, 5):
        assert read(client, "bucket", "1000", etag='"e"') == BODY
        assert script.requests == count
        wait_until(lambda: script.answers == [] or not client._runtime.exchanges._watcher._lines)


names = st.from_regex(r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
values = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f\x85\xa0"), max_size=20)


@given(
    st.integers(200, 599), st.dictionaries(names.map(str.lower), values, max_size=8), st.sampled_from(["", " ", "\t "])
)
def test_a_head_is_read_as_it_was_written(status: int, headers: dict[str, str], space: str) -> None:
    lines = [f"HTTP/1.1 {status} Reason", *(f"{name.title()}:{space}{value}{space}" for name, value in headers.items())]
    assert parse_head("\r\n".join(lines).encode("latin-1")) == (status, headers)


@pytest.mark.parametrize(
    "line", ["no colon", ": no name", "a b: c", "a : b", " a: b", "a: b\n", "a: b\rc: d", "content-length: 2"]
)
def test_a_head_with_an_odd_line_is_refused(line: str) -> None:
    with pytest.raises(NotUnderstood):
        parse_head(f"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n{line}".encode())

"""Ctrl-C between any two steps of a read: whoever catches it and reads on gets the right bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest

from interruptions import each_interruption, interrupted
from s3core import GetObjectStream, ListObjectStream, S3Client, _budget, _get, _list, _put, _window
from s3core._fetch import Wish
from servers import CountingServer

DATA = random.Random(1).randbytes(2 * 2**20 + 17)
KEYS = [f"{n:02}" for n in range(20)]


def next_chunk(stream: GetObjectStream) -> bytes:
    return bytes(next(stream, b""))


def into_buffer(stream: GetObjectStream) -> bytes:
    buffer = bytearray(400_001)
    return bytes(buffer[: stream.read_into(buffer)])


def chunk_or_buffer(stream: GetObjectStream) -> bytes:
    return next_chunk(stream) if stream.tell() % 2 == 0 else into_buffer(stream)


def chunk_and_rest(stream: GetObjectStream) -> bytes:
    return next_chunk(stream) if stream.tell() == 0 else stream.read_all()


def prefetched_rest(stream: GetObjectStream) -> bytes:
    stream.prefetch()
    return stream.read_all()


@pytest.mark.parametrize("is_version_known", [False, True])
@pytest.mark.parametrize("read", [next_chunk, into_buffer, chunk_or_buffer, chunk_and_rest, prefetched_rest])
def test_the_bytes_after_an_interruption_are_those_at_the_position(
    counting_server: CountingServer,
    make_client: Callable[..., S3Client],
    read: Callable[[GetObjectStream], bytes],
    is_version_known: bool,
) -> None:
    counting_server.put("key", DATA)
    client = make_client(counting_server)
    info = client.head_object(counting_server.bucket, "key")
    known: dict[str, Any] = {"object_info": info, "etag": info.etag} if is_version_known else {}
    for interruption in each_interruption(_get, _window):
        stream = client.get_object(counting_server.bucket, "key", **known)
        with interrupted(interruption):
            while True:
                start = stream.tell()
                try:
                    came = read(stream)
                except KeyboardInterrupt:
                    continue
                assert came == DATA[start : start + len(came)]
                assert stream.tell() == start + len(came)
                if not came:
                    break
        assert stream.tell() == len(DATA)
        stream.close()
        assert client._runtime.budget.used == 0


def test_a_stream_that_was_interrupted_while_it_gave_up_what_came_goes_on(
    counting_server: CountingServer, make_client: Callable[..., S3Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DATA * 10
    counting_server.put("key", data)
    client = make_client(counting_server, part_size=5 * 2**20, max_attempts=1)
    stream = client.get_object(counting_server.bucket, "key")
    came = bytes(next(stream))
    counting_server.fault(operation="GetObject", skip=1, times=1, hold=True)
    came += bytes(next(stream))
    counting_server.wait_for_requests(3, operation="GetObject")
    counting_server.fault(operation="GetObject", status=403, code="AccessDenied")
    end = Wish.end

    def interrupted_end(wish: Wish) -> None:
        end(wish)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Wish, "end", interrupted_end)
        with pytest.raises(KeyboardInterrupt):
            stream.read_into(bytearray(len(data)))
    counting_server.faults_clear()
    counting_server.release()
    assert came == data[: stream.tell()]
    assert stream.read_all() == data[len(came) :]


@pytest.mark.parametrize("modules", [(_get, _window), (_budget,)])
def test_the_memory_of_a_stream_is_given_back_once_when_its_closing_is_interrupted(
    counting_server: CountingServer, make_client: Callable[..., S3Client], modules: tuple[ModuleType, ...]
) -> None:
    counting_server.put("key", DATA)
    client = make_client(counting_server)
    holder = object()
    client._runtime.budget.take(holder, 12345)  # of another stream
    for interruption in each_interruption(*modules):
        stream = client.get_object(counting_server.bucket, "key")
        with interrupted(interruption), suppress(KeyboardInterrupt), stream:
            next(stream)
            next(stream)
        del stream
        assert client._runtime.budget.used == 12345
    client._runtime.budget.give_back(holder)


@pytest.mark.parametrize("module", [_put, _budget])
def test_the_memory_of_an_upload_is_given_back_once_when_it_is_interrupted(
    counting_server: CountingServer, make_client: Callable[..., S3Client], module: ModuleType
) -> None:
    client = make_client(counting_server, part_size=5 * 2**20)
    holder = object()
    client._runtime.budget.take(holder, 12345)  # of another stream
    piece = bytearray(3 * 2**20)
    for interruption in each_interruption(module):
        stream = client.put_object(counting_server.bucket, "new")
        with interrupted(interruption), suppress(KeyboardInterrupt), stream:
            for _ in range(6):
                stream.write(piece)
        del stream
        assert client._runtime.budget.used == 12345
    client._runtime.budget.give_back(holder)


def test_no_page_is_left_out_after_an_interruption(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    for key in KEYS:
        counting_server.put(key, b"")
    client = make_client(counting_server)
    for interruption in each_interruption(_list):
        listing: ListObjectStream = client.list_objects(counting_server.bucket, max_keys=7)
        came: list[str] = []
        with interrupted(interruption):
            while True:
                try:
                    came += next(listing).keys
                except KeyboardInterrupt:
                    continue
                except StopIteration:
                    break
        assert came == KEYS

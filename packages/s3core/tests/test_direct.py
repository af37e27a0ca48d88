"""Large bodies, which go from the socket straight into place: broken, stalled and given up."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from s3core import S3Client, S3ConnectionError
from servers import CountingServer, wait_until

MiB = 2**20
PART = 5 * MiB
DATA = random.Random(7).randbytes(3 * PART + 4321)
LAST = f"bytes={3 * PART}-{len(DATA) - 1}"


@pytest.fixture
def client(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> S3Client:
    counting_server.put("big", DATA)
    return make_client(counting_server, part_size=PART, max_attempts=4)


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


def test_connections_are_used_again(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> None:
    counting_server.put("big", DATA)
    client = make_client(counting_server, part_size=PART, max_concurrency=1)
    for _ in range(3):
        assert client.get_object(counting_server.bucket, "big").read_all() == DATA
    native, direct = 1, 1
    assert len({request.connection for request in counting_server.requests}) <= native + direct


def test_a_stalled_body_is_given_up_when_another_fails(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.put("big", DATA)
    failing = f"bytes={PART}-{2 * PART - 1}"
    counting_server.fault(operation="GetObject", range=LAST, pace_bytes_per_second=100)
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
    counting_server.fault(operation="GetObject", skip=2, pace_bytes_per_second=100)
    client = make_client(counting_server, part_size=PART, read_timeout=60)
    with client.get_object(counting_server.bucket, "big") as stream:
        assert next(stream)
        assert next(stream)
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


def test_no_private_part_of_urllib3_is_needed(counting_server: CountingServer, client: S3Client) -> None:
    rest = client._runtime.rest
    send = rest.try_send
    rest.try_send = lambda request: _Opaque(send(request))  # type: ignore[method-assign, return-value, assignment]
    assert client.get_object(counting_server.bucket, "big", start=5).read_all() == DATA[5:]
    counting_server.fault(operation="GetObject", cut=2 * MiB, times=2)
    assert client.get_object(counting_server.bucket, "big", end=PART).read_all() == DATA[:PART]

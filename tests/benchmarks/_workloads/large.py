"""One large object: read, filled in place, streamed, opened for its first kilobyte, and written."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks._meter import Meter
from benchmarks._peers import Bytes, Peer
from benchmarks._peers.local_disk import LocalDisk
from benchmarks._target import Target
from benchmarks._workloads._workload import Workload, check, is_thorough, read_back
from servers.counting import GeneratedObject

_CHUNK_BYTES = 8 * 2**20
_FIRST_BYTES = 1000


def _large(target: Target) -> tuple[str, GeneratedObject]:
    made = target.folder("large")[0]
    return made.key.removeprefix(target.prefix), made


def _check_bytes(found: memoryview, made: GeneratedObject) -> None:
    check(len(found) == made.size, f"{len(found)} bytes came instead of {made.size}")
    start = 0
    for view in made.views(0, made.size):
        check(found[start : start + len(view)] == view, f"other bytes came from {start} on")
        start += len(view)


def _read(peer: Peer, meter: Meter) -> None:
    name, made = _large(peer.target)
    meter.start()
    data = peer.read(name)
    meter.tick(1, made.size)
    meter.stop()
    _check_bytes(memoryview(data), made)


def _read_into(peer: Peer, meter: Meter) -> None:
    name, made = _large(peer.target)
    buffer = bytearray(made.size)
    meter.start()
    peer.read_into(name, memoryview(buffer))
    meter.tick(1, made.size)
    meter.stop()
    _check_bytes(memoryview(buffer), made)


def _stream(peer: Peer, meter: Meter) -> None:
    name, made = _large(peer.target)
    ends: list[tuple[int, bytes]] = []
    done, looked_at = 0, made.size if is_thorough(peer) else 64
    meter.start()
    for chunk in peer.stream(name):
        meter.tick(0, len(chunk))
        done += len(chunk)
        ends.append((done, bytes(memoryview(chunk)[-looked_at:])))
    meter.stop()
    check(done == made.size, f"{done} bytes came instead of {made.size}")
    for end, data in ends:
        check(data == b"".join(made.views(end - len(data), end)), f"other bytes came before {end}")


def _first_kilobyte(peer: Peer, meter: Meter) -> None:
    _open_often(peer, meter, peer.read_start)


def _range(peer: Peer, meter: Meter) -> None:
    _open_often(peer, meter, peer.read_range)


def _open_often(peer: Peer, meter: Meter, read: Callable[[str, int], Bytes]) -> None:
    name, made = _large(peer.target)
    expected = b"".join(made.views(0, _FIRST_BYTES))
    found = []
    meter.start()
    for _ in range(peer.target.scale.openings):
        found.append(bytes(read(name, _FIRST_BYTES)))
        meter.tick(1, _FIRST_BYTES)
        if meter.elapsed_seconds > peer.target.scale.seconds:
            break
    meter.stop()
    check(all(data == expected for data in found), "other bytes came")


def _upload(peer: Peer, meter: Meter) -> None:
    target, made = peer.target, _large(peer.target)[1]
    # What is written under sink/ is dropped by the local server.
    name = "saved/uploaded" if is_thorough(peer) else "sink/uploaded"
    # As a file is read: `bytes` each time. The object repeats itself, so that few of them are held.
    held: dict[bytes, bytes] = {}
    chunks = []
    for start in range(0, made.size, _CHUNK_BYTES):
        data = b"".join(made.views(start, min(start + _CHUNK_BYTES, made.size)))
        chunks.append(held.setdefault(data, data))
    meter.start()
    peer.upload(name, iter(chunks))
    meter.tick(1, made.size)
    meter.stop()
    if is_thorough(peer):
        _check_bytes(memoryview(read_back(peer, name)), made)
    elif not isinstance(peer, LocalDisk):
        head = target.boto3_client().head_object(Bucket=target.bucket, Key=target.key(name))
        check(head["ContentLength"] == made.size, f"{head['ContentLength']} bytes were written instead of {made.size}")


WORKLOADS = [
    Workload("read", "one large object, read()", "MB", "read", _read, ("large",)),
    Workload("readinto", "one large object, readinto()", "MB", "read_into", _read_into, ("large",)),
    Workload("stream", "one large object, streamed", "MB", "stream", _stream, ("large",)),
    Workload("first-kilobyte", "first kilobyte of a large object", "times", "read_start", _first_kilobyte, ("large",)),
    Workload("range", "kilobyte of a large object, reader of ranges", "times", "read_start", _range, ("large",)),
    Workload("upload", "one large object, written", "MB", "upload", _upload),
]

"""What a reader of a dataset asks for after a failure, in a forked child, and after pickling."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from s3core import ObjectChangedError, S3Exception
from s3torch_datasets import S3IterableDataset, S3MapDataset, S3ReaderConstructor
from s3torch_datasets._look_ahead import count_look_aheads
from servers import CountingServer

Fill = Callable[..., list[bytes]]

CONSTRUCTORS = {
    "sequential": S3ReaderConstructor.sequential(),
    "range_based": S3ReaderConstructor.range_based(buffer_size=10),
    "streaming": S3ReaderConstructor.streaming(window=160),
}


@pytest.fixture(params=CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def reader(request: pytest.FixtureRequest, counting_server: CountingServer, connection: dict[str, Any]) -> Any:
    """A reader of an object of 100 bytes that was named and not listed."""
    counting_server.put("one", bytes(range(100)))
    uri = f"s3://{counting_server.bucket}/one"
    return S3MapDataset.from_objects(uri, reader_constructor=request.param, **connection)[0]


def is_so_in_a_child(check: Callable[[], bool]) -> bool:
    """Whether a forked child finds it so; an error there ends the child, too."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_read_that_failed_can_be_tried_again(reader: Any, counting_server: CountingServer) -> None:
    counting_server.fault(key="one", times=2, status=500)  # both attempts
    with pytest.raises(S3Exception, match="/one"):
        reader.read()
    assert reader.read() == bytes(range(100))


def test_a_reader_goes_on_in_mid_object_after_a_failure(reader: Any, counting_server: CountingServer) -> None:
    assert reader.read(20) == bytes(range(20))
    counting_server.fault(key="one", times=2, status=500)
    rest = b""
    try:
        rest = reader.read()
    except S3Exception:
        rest = reader.read()
    assert rest == bytes(range(20, 100))


@pytest.mark.parametrize("constructor", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
@pytest.mark.parametrize("is_read_ahead", [False, True])
def test_an_object_of_known_size_and_unknown_etag_is_read_in_one_version(
    counting_server: CountingServer,
    connection: dict[str, Any],
    tmp_path: Path,
    constructor: Any,
    is_read_ahead: bool,
) -> None:
    """A list of keys and sizes tells no ETag; the first range that comes does."""
    for key in ("first", "one"):
        counting_server.put(key, bytes(range(100)))
    manifest = tmp_path / "objects.csv"
    manifest.write_text("".join(f"{counting_server.bucket},{key},100\n" for key in ("first", "one")))
    dataset = S3IterableDataset.from_manifest(manifest, reader_constructor=constructor, **connection)
    readers = iter(dataset)
    first = next(readers)
    assert not is_read_ahead or first.read() == bytes(range(100))
    reader = next(readers)
    assert reader.read(20) == bytes(range(20))
    counting_server.put("one", bytes(100))
    rest = b""
    with suppress(ObjectChangedError):
        rest = reader.read()
    assert rest in (b"", bytes(range(20, 100)))


@pytest.mark.parametrize("constructor", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
@pytest.mark.parametrize("told", [0, 60, 300])
@pytest.mark.parametrize(
    "read",
    [
        lambda reader: reader.read(),
        lambda reader: b"".join(iter(lambda: reader.read(7), b"")),
        lambda reader: b"".join(reader),
        lambda reader: bytes(reader.read(reader.seek(0, 2) + reader.seek(0))),
        lambda reader: (buffer := bytearray(400))[: reader.readinto(buffer)],
    ],
    ids=["at once", "in pieces", "lines", "to the end", "into a buffer"],
)
def test_a_size_that_is_told_without_an_etag_is_no_more_than_a_guess(
    counting_server: CountingServer,
    connection: dict[str, Any],
    tmp_path: Path,
    constructor: Any,
    told: int,
    read: Callable[[Any], bytes],
) -> None:
    """As in an old list of keys and sizes."""
    data = bytes(range(100)) * 2
    counting_server.put("one", data)
    manifest = tmp_path / "objects.csv"
    manifest.write_text(f"{counting_server.bucket},one,{told}\n")
    for kind in (S3MapDataset, S3IterableDataset):
        dataset = kind.from_manifest(manifest, reader_constructor=constructor, transform=read, **connection)
        assert list(dataset) == [data]


def test_a_pickled_reader_reads_the_same_version_and_names_none(reader: Any, counting_server: CountingServer) -> None:
    counting_server.put("one", bytes(range(100)), headers={"x-amz-version-id": "v1"})
    assert reader.read(20) == bytes(range(20))
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read() == bytes(range(20, 100))
    assert not any("versionId" in request.query for request in counting_server.requests)
    copy = pickle.loads(pickle.dumps(reader))
    counting_server.put("one", bytes(200))
    with pytest.raises(ObjectChangedError):
        copy.read()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_forked_child_opens_anew_what_was_on_its_way(
    counting_server: CountingServer, connection: dict[str, Any]
) -> None:
    counting_server.put("one", bytes(range(100)))
    uri = f"s3://{counting_server.bucket}/one"
    dataset = S3MapDataset.from_objects(uri, reader_constructor=CONSTRUCTORS["streaming"], **connection)
    reader: Any = dataset[0]
    counting_server.fault(key="one", times=1, hold=True)
    reader.prefetch()
    assert is_so_in_a_child(lambda: reader.read() == bytes(range(100)))
    counting_server.release()
    assert reader.read() == bytes(range(100))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_an_iterator_goes_on_in_a_forked_child(fill: Fill, make_iterable: Callable[..., Any]) -> None:
    contents = fill(20)
    iterator = iter(make_iterable(transform=methodcaller("read")))
    assert next(iterator) == contents[0]  # with others on their way
    assert is_so_in_a_child(lambda: list(iterator) == contents[1:])
    assert list(iterator) == contents[1:]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_what_was_inherited_takes_no_room_from_what_reads_ahead_in_a_forked_child(
    fill: Fill, make_iterable: Callable[..., Any]
) -> None:
    fill(200, 100)
    iterator = iter(make_iterable(transform=methodcaller("read")))
    next(iterator)  # as many on their way as there may be

    def go_on() -> bool:
        counts = [count_look_aheads()]
        next(iterator), next(iterator)
        counts.append(count_look_aheads())
        iterator.close()
        return [*counts, count_look_aheads()] == [0, 1, 0]

    assert is_so_in_a_child(go_on)
    assert count_look_aheads() == 1
    iterator.close()
    assert count_look_aheads() == 0


def test_the_cache_names_no_version_of_named_objects(
    counting_server: CountingServer, connection: dict[str, Any], tmp_path: Path
) -> None:
    counting_server.put("one", b"bytes", headers={"x-amz-version-id": "v1"})
    uri = f"s3://{counting_server.bucket}/one"
    for _ in range(2):
        dataset = S3IterableDataset.from_objects(
            uri, transform=methodcaller("read"), cache_dir=tmp_path / "cache", **connection
        )
        assert list(dataset) == [b"bytes"]
    assert not any("versionId" in request.query for request in counting_server.requests)
    assert counting_server.operations() == ["HeadObject", "GetObject", "HeadObject"]

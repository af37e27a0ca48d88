"""One object as a file: all that it gives is of one version."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from s3core import NoSuchKeyError, ObjectChangedError, S3Client, S3ClientConfig
from s3torch_datasets import S3ReaderConstructor, SequentialS3Reader, open_reader
from servers import CountingServer

MiB = 2**20
OLD, NEW = b"a" * 4 * MiB, b"b" * 4 * MiB
CONSTRUCTORS = {
    "sequential": S3ReaderConstructor.sequential(),
    "range_based": S3ReaderConstructor.range_based(buffer_size=0),
    "range_based with a buffer": S3ReaderConstructor.range_based(buffer_size=64 * 2**10),
    "streaming": S3ReaderConstructor.streaming(window=MiB),
}


@pytest.fixture
def client(counting_server: CountingServer, config: S3ClientConfig) -> S3Client:
    return S3Client(counting_server.region, endpoint=counting_server.endpoint, s3client_config=config)


@pytest.mark.parametrize("constructor", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
@pytest.mark.parametrize("move", [lambda reader: reader, lambda reader: pickle.loads(pickle.dumps(reader))])
def test_an_object_that_is_replaced_between_two_reads_is_an_error(
    counting_server: CountingServer, client: S3Client, constructor: Any, move: Callable[[Any], Any]
) -> None:
    counting_server.put("one", OLD)
    reader = open_reader(client, counting_server.bucket, "one", constructor)
    assert reader.read(1000) == OLD[:1000]
    counting_server.put("one", NEW)
    reader = move(reader)
    reader.seek(3 * MiB)
    with pytest.raises(ObjectChangedError, match="/one"):
        reader.read(1000)


@pytest.mark.parametrize("constructor", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_an_object_that_is_replaced_after_its_size_was_asked_for_is_an_error(
    counting_server: CountingServer, client: S3Client, constructor: Any
) -> None:
    counting_server.put("one", OLD)
    reader = open_reader(client, counting_server.bucket, "one", constructor)
    assert reader.seek(0, 2) == len(OLD)
    counting_server.put("one", NEW)
    reader.seek(-1000, 2)
    with pytest.raises(ObjectChangedError, match="/one"):
        reader.read()


def test_it_reads_by_default_as_datasets_do_and_asks_for_nothing_before(
    counting_server: CountingServer, client: S3Client
) -> None:
    with open_reader(client, counting_server.bucket, "missing") as reader:
        assert isinstance(reader, SequentialS3Reader)
        assert not counting_server.requests
        with pytest.raises(NoSuchKeyError, match="/missing"):
            reader.read()


def test_a_window_stays_where_it_is_while_the_end_of_the_object_is_read(
    counting_server: CountingServer, client: S3Client
) -> None:
    """`torch.load` and `zipfile` look at the directory at the end, in several steps, and read on from the front."""
    data = b"".join(number.to_bytes(4, "little") for number in range(10 * MiB))
    counting_server.put("one", data)
    reader = open_reader(client, counting_server.bucket, "one", S3ReaderConstructor.streaming(window=32 * MiB))
    for start, size in ((-22, 22), (-4096, 4096), (-70_000, 60_000), (-MiB, 10)):
        at = reader.seek(start, 2)
        assert reader.read(size) == data[at : at + size]
    reader.seek(0)
    assert reader.read(9 * MiB) == data[: 9 * MiB]
    reader.seek(-22, 2)
    assert reader.read() == data[-22:]
    reader.seek(9 * MiB)
    assert reader.read(30 * MiB) == data[9 * MiB : 39 * MiB]
    assert reader.read() == data[39 * MiB :]
    sent = sum(request.bytes_sent for request in counting_server.requests)
    assert sent < len(data) + 2 * MiB


def test_an_object_of_one_block_is_fetched_once(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.put("one", OLD)
    reader = open_reader(client, counting_server.bucket, "one", S3ReaderConstructor.streaming())
    for start in (-22, -70_000, -3 * MiB, -len(OLD)):
        reader.seek(start, 2)
        assert reader.read(22) == OLD[:22]
    assert sum(request.bytes_sent for request in counting_server.requests) == len(OLD)


def test_the_first_bytes_of_a_large_object_are_fetched_alone(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.put("one", OLD * 5)
    reader = open_reader(client, counting_server.bucket, "one", S3ReaderConstructor.streaming())
    assert reader.read(1000) == OLD[:1000]
    assert sum(request.bytes_sent for request in counting_server.requests) == 128 * 2**10

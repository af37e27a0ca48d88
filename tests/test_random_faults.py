"""Reads and writes under faults that strike at random: right bytes or an error, the old object or the new one.

A failure names its seed. `FAULT_SEEDS=1000 hatch run test tests/test_random_faults.py` looks further than usual.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import SEEK_END
from typing import Any

import pytest

from s3core import GetObjectStream, S3Client, S3ClientConfig, S3Exception
from s3torch_datasets import S3MapDataset, S3Reader, S3ReaderConstructor
from servers import CountingServer

KiB, MiB = 2**10, 2**20
SEEDS = range(int(os.environ.get("FAULT_SEEDS", "4")))
ACTIONS = 40
SIZES = [0, 1, 1000, 64 * KiB, 300_000, MiB, 5 * MiB, 5 * MiB + 1, 9 * MiB]
READERS = [
    S3ReaderConstructor.sequential(),
    S3ReaderConstructor.range_based(),
    S3ReaderConstructor.range_based(buffer_size=1000),
    S3ReaderConstructor.range_based(buffer_size=0),
    S3ReaderConstructor.streaming(),
    S3ReaderConstructor.streaming(window=3 * MiB),
]


@dataclass
class World:
    """A server whose objects are replaced and whose answers fail, by one source of chance.

    Attributes:
        versions: What each object has ever been, the newest last.
    """

    server: CountingServer
    chance: random.Random
    versions: dict[str, list[bytes]] = field(default_factory=dict)

    def client(self) -> S3Client:
        chance = self.chance
        config = S3ClientConfig(
            access_key_id=self.server.access_key,
            secret_access_key=self.server.secret_key,
            max_attempts=chance.choice([1, 2, 4]),
            max_concurrency=chance.choice([2, 8, 128]),
            part_size=5 * MiB,
        )
        return S3Client(self.server.region, endpoint=self.server.endpoint, s3client_config=config)

    def new_body(self, size: int | None = None) -> bytes:
        return self.chance.randbytes(self.chance.choice(SIZES) if size is None else size)

    def replace(self, key: str) -> None:
        """Put another object, mostly of the same size."""
        before = self.versions.get(key, [])
        body = self.new_body(len(before[-1]) if before and self.chance.random() < 0.6 else None)
        self.versions.setdefault(key, []).append(body)
        self.server.put(key, body)

    def shake(self, *operations: str) -> None:
        """Have some of the next requests fail, and no others."""
        chance = self.chance
        self.server.faults_clear()
        for _ in range(chance.randrange(4)):
            effects: list[dict[str, Any]] = [
                {"status": chance.choice([500, 502, 503]), "code": "SlowDown"},
                {"cut": chance.choice([0, 1, 100, 5000, 70_000, MiB])},
                {"truncate": chance.choice([0, 1, 300, 5000, 70_000, MiB])},
                {"cut_upload": chance.choice([0, 1000, 70_000, 3 * MiB])},
                {"short_range": True},
                {"ignore_range": True},
                {"headers": {"Connection": "close"}},
                {"delay_seconds": 0.05},
            ]
            times = {"skip": chance.randrange(6), "times": chance.randrange(1, 4)}
            self.server.fault(operation=chance.choice(operations), **times, **chance.choice(effects))


@pytest.fixture(params=SEEDS)
def world(request: pytest.FixtureRequest, counting_server: CountingServer) -> Iterator[World]:
    yield World(counting_server, random.Random(request.param))
    counting_server.faults_clear()


@dataclass
class Piece:
    """What a read gave."""

    start: int
    data: bytes

    def is_of(self, body: bytes) -> bool:
        return body[self.start : self.start + len(self.data)] == self.data


def read_stream(stream: GetObjectStream, chance: random.Random) -> tuple[bytes, bool]:
    """Read on, in some way: the bytes, and whether they end the object."""
    way = chance.randrange(3)
    if way == 0:
        return stream.read_all(), True
    if way == 1:
        data = bytes(next(stream, b""))
        return data, not data
    buffer = bytearray(chance.choice([1, 1000, 100_000, 3 * MiB, 20 * MiB]))
    count = stream.read_into(buffer)
    return bytes(buffer[:count]), count < len(buffer)


def read_reader(reader: S3Reader, chance: random.Random) -> tuple[bytes, bool]:
    """Seek or not, and read in some way: the bytes, and whether they end the object."""
    way = chance.randrange(5)
    if way == 0:
        reader.seek(chance.choice([0, 1000, 70_000, chance.randrange(10 * MiB)]))
    elif way == 1:
        reader.seek(0, SEEK_END)
        return b"", True
    size = chance.choice([1, 1000, 100_000, 3 * MiB, None])
    if way == 2 and size is not None:
        buffer = bytearray(size)
        count = reader.readinto(buffer)
        return bytes(buffer[:count]), count < size
    data = reader.read(size)
    return data, size is None or len(data) < size


def read_to_the_end_or_not(world: World, file: Any, read: Callable[[Any, random.Random], tuple[bytes, bool]]) -> None:
    """Read an object that may be replaced meanwhile, and check that all came from one version."""
    pieces, length = [], None
    for _ in range(world.chance.randrange(1, 12)):
        start = file.tell()
        try:
            data, is_end = read(file, world.chance)
        except S3Exception:
            assert file.tell() == start or isinstance(file, S3Reader)  # which may have moved by its seek
            continue
        pieces.append(Piece(file.tell() - len(data), data))
        if is_end:
            length = file.tell()
        if world.chance.random() < 0.1:
            world.replace(file.key)
    assert any(
        all(piece.is_of(body) for piece in pieces) and length in (None, len(body)) for body in world.versions[file.key]
    ), f"{[(piece.start, len(piece.data)) for piece in pieces]}, {length}: {list(map(len, world.versions[file.key]))}"


def test_what_is_read_is_of_one_version(world: World) -> None:
    keys = [f"objects/{number}" for number in range(6)]
    for key in keys:
        world.replace(key)
    for _ in range(ACTIONS):
        client, key = world.client(), world.chance.choice(keys)
        world.shake("GetObject", "GetObject", "HeadObject")
        if world.chance.random() < 0.5:
            with client.get_object(world.server.bucket, key) as stream:
                read_to_the_end_or_not(world, stream, read_stream)
            continue
        dataset: S3MapDataset[S3Reader] = S3MapDataset.from_objects(
            f"s3://{world.server.bucket}/{key}",
            region=client.region,
            endpoint=client.endpoint,
            s3client_config=client.s3client_config,
            reader_constructor=world.chance.choice(READERS),
        )
        with dataset[0] as reader:
            read_to_the_end_or_not(world, reader, read_reader)


def test_what_is_written_is_there_whole_or_not_at_all(world: World) -> None:
    chance, there = world.chance, dict[str, bytes | None]()
    for _ in range(ACTIONS):
        client, key, body = world.client(), f"objects/{chance.randrange(3)}", world.new_body()
        world.shake("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
        is_aborted = chance.random() < 0.2
        stream = client.put_object(world.server.bucket, key)
        start, is_done = 0, False
        try:
            while start < len(body):
                piece = bytearray(body[start : start + chance.choice([300_000, 2 * MiB, 8 * MiB])])
                start += stream.write(piece)
                piece[:] = bytes(len(piece))  # The memory is the caller's again.
            if is_aborted:
                stream.abort()
            else:
                stream.close()
                is_done = True
        except S3Exception:
            stream.abort()
        now = world.server.objects().get(key)
        may_be = [body] if is_done else [there.get(key)] if is_aborted else [there.get(key), body]
        assert now in may_be, f"{None if now is None else len(now)} of {len(body)} bytes, done: {is_done}"
        there[key] = now

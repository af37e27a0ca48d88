"""The classes are called as those of s3torchconnector 1.5: names, order, kinds and defaults of all arguments."""

from __future__ import annotations

import inspect
import io
from abc import ABC
from io import SEEK_SET
from typing import Any

import pytest

from s3torch_datasets import (
    RangedS3Reader,
    S3BucketKeyData,
    S3IterableDataset,
    S3MapDataset,
    S3Reader,
    S3ReaderConstructor,
    S3ReaderConstructorProtocol,
    S3Writer,
    SequentialS3Reader,
)


def identity(obj: Any) -> Any:
    return obj


# The signatures of its documentation, as functions.


def read(self, size=None): ...
def seek(self, offset, whence=SEEK_SET, /): ...
def readinto(self, buf): ...
def nothing(self): ...
def write(self, data): ...
def make_writer(stream): ...
def static(): ...
def range_based(buffer_size=None): ...
def get_reader_type_string(constructor): ...
def make_sequential(bucket, key, get_object_info, get_stream): ...
def make_ranged(bucket, key, get_object_info, get_stream, buffer_size=None): ...
def call_constructor(self, bucket, key, get_object_info, get_stream): ...
def make_key_data(bucket, key, object_info=None): ...
def make_map(
    region, get_dataset_objects, endpoint=None, transform=identity, s3client_config=None, reader_constructor=None
): ...
def map_from_objects(
    object_uris, *, region, endpoint=None, transform=identity, s3client_config=None, reader_constructor=None
): ...
def map_from_prefix(
    s3_uri, *, region, endpoint=None, transform=identity, s3client_config=None, reader_constructor=None
): ...
def make_iterable(
    region,
    get_dataset_objects,
    endpoint=None,
    transform=identity,
    s3client_config=None,
    enable_sharding=False,
    reader_constructor=None,
): ...
def iterable_from_objects(
    object_uris,
    *,
    region,
    endpoint=None,
    transform=identity,
    s3client_config=None,
    enable_sharding=False,
    reader_constructor=None,
): ...
def iterable_from_prefix(
    s3_uri,
    *,
    region,
    endpoint=None,
    transform=identity,
    s3client_config=None,
    enable_sharding=False,
    reader_constructor=None,
): ...


FILE_METHODS = [("tell", nothing), ("readable", nothing), ("writable", nothing)]
READERS = [S3Reader, SequentialS3Reader, RangedS3Reader]
CASES: list[tuple[Any, Any]] = [
    *((getattr(reader, name), spec) for reader in READERS for name, spec in FILE_METHODS),
    *((reader.read, read) for reader in READERS),
    *((reader.seek, seek) for reader in READERS),
    *((reader.readinto, readinto) for reader in READERS),
    (SequentialS3Reader, make_sequential),
    (RangedS3Reader, make_ranged),
    (S3ReaderConstructorProtocol.__call__, call_constructor),
    (S3ReaderConstructor.sequential, static),
    (S3ReaderConstructor.default, static),
    (S3ReaderConstructor.range_based, range_based),
    (S3ReaderConstructor.get_reader_type_string, get_reader_type_string),
    (S3Writer, make_writer),
    (S3Writer.write, write),
    *((getattr(S3Writer, name), spec) for name, spec in [*FILE_METHODS, ("close", nothing), ("flush", nothing)]),
    (S3BucketKeyData, make_key_data),
    (S3MapDataset, make_map),
    (S3MapDataset.from_objects, map_from_objects),
    (S3MapDataset.from_prefix, map_from_prefix),
    (S3IterableDataset, make_iterable),
    (S3IterableDataset.from_objects, iterable_from_objects),
    (S3IterableDataset.from_prefix, iterable_from_prefix),
]


def described(callable_: Any) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each argument; all transforms that return their argument are the same default."""
    found = []
    for parameter in inspect.signature(callable_).parameters.values():
        default = parameter.default
        if getattr(default, "__name__", "") == "identity":
            assert default(CASES) is CASES
            default = identity
        found.append((parameter.name, parameter.kind, default))
    return found


@pytest.mark.parametrize(("ours", "theirs"), CASES, ids=[getattr(ours, "__qualname__", "") for ours, _ in CASES])
def test_the_arguments_are_those_of_the_compatible_library(ours: Any, theirs: Any) -> None:
    found, expected = described(ours), described(theirs)
    # Where theirs has to be told the region, it may be left out here.
    region = ("region", inspect.Parameter.KEYWORD_ONLY)
    found = [(*region, inspect.Parameter.empty) if one == (*region, None) else one for one in found]
    assert found[: len(expected)] == expected
    added = found[len(expected) :]
    assert all(
        kind is inspect.Parameter.VAR_KEYWORD
        or (kind is inspect.Parameter.KEYWORD_ONLY and default is not inspect.Parameter.empty)
        for _, kind, default in added
    )


def test_the_classes_are_what_they_are_there() -> None:
    assert issubclass(S3Reader, ABC)
    assert issubclass(S3Reader, io.BufferedIOBase)
    assert issubclass(S3Writer, io.BufferedIOBase)
    assert all(inspect.isabstract(kind) == (kind is S3Reader) for kind in READERS)
    assert S3Reader.__abstractmethods__ == {"bucket", "key", "read", "seek", "tell", "readinto"}
    for kind in (S3MapDataset, S3IterableDataset):
        dataset = kind.from_prefix("s3://bucket/p", region="eu-west-1", endpoint="http://e")
        assert (dataset.region, dataset.endpoint) == ("eu-west-1", "http://e")

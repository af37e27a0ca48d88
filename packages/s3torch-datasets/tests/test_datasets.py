"""Both kinds of dataset in one process: what they yield, what they ask of the server, what they refuse."""

from __future__ import annotations

import gc
import io
import json
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, Subset, random_split

from s3core import ObjectChangedError, ObjectInfo, S3Client, S3ClientConfig, S3Exception
from s3torch_datasets import (
    SKIP,
    ObjectFilter,
    S3BucketKeyData,
    S3ConcatDataset,
    S3IterableDataset,
    S3MapDataset,
    S3Reader,
    S3ReaderConstructor,
    S3TarDataset,
)
from servers import CountingServer

Make = Callable[..., Any]
Fill = Callable[..., list[bytes]]
KINDS = [S3MapDataset, S3IterableDataset]


def read(reader: S3Reader) -> bytes:
    return reader.read()


def key_of(reader: S3Reader) -> str:
    return reader.key


def samples(dataset: Any) -> list[Any]:
    return [dataset[row] for row in range(len(dataset))] if isinstance(dataset, S3MapDataset) else list(dataset)


@pytest.fixture(params=["make_map", "make_iterable"])
def make(request: pytest.FixtureRequest) -> Make:
    found: Make = request.getfixturevalue(request.param)
    return found


# What they yield


def test_all_objects_of_a_prefix_come_in_order(make: Make, fill: Fill) -> None:
    contents = fill(20)
    assert samples(make(transform=read)) == contents


def test_the_sample_is_the_reader_where_there_is_no_transform(make: Make, fill: Fill) -> None:
    contents = fill(3)
    readers = samples(make())
    assert [reader.read() for reader in readers] == contents
    assert all(isinstance(reader, S3Reader) for reader in readers)


@pytest.mark.parametrize("kind", KINDS)
def test_named_objects_come_in_the_order_named(
    kind: Any, connection: dict[str, Any], counting_server: CountingServer, fill: Fill
) -> None:
    contents = fill(5)
    uris = [f"s3://{counting_server.bucket}/data/{number:05}" for number in (3, 0, 3)]
    dataset = kind.from_objects((uri for uri in uris), transform=read, **connection)
    for _ in range(2):  # a generator of URIs lasts for more than one epoch
        assert samples(dataset) == [contents[3], contents[0], contents[3]]
    assert samples(kind.from_objects(uris[0], transform=read, **connection)) == [contents[3]]
    assert {request.operation for request in counting_server.requests} == {"GetObject"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uri", ["https://bucket/key", "s3://", "s3://bucket", "bucket/key"])
def test_a_uri_that_names_no_object_is_refused_at_once(kind: Any, uri: str) -> None:
    with pytest.raises(ValueError, match=uri):
        kind.from_objects([uri], region="us-east-1")


@pytest.mark.parametrize("kind", KINDS)
def test_get_dataset_objects_is_called_once_with_a_client(
    kind: Any, connection: dict[str, Any], counting_server: CountingServer, fill: Fill
) -> None:
    contents, calls = fill(4), []

    def get_dataset_objects(client: S3Client) -> Iterator[S3BucketKeyData]:
        calls.append(client)
        for page in client.list_objects(counting_server.bucket, "data/"):
            for info in page.object_info:
                yield S3BucketKeyData(counting_server.bucket, info.key, info)

    region, endpoint, config = connection.values()
    dataset = kind(region, get_dataset_objects, endpoint, read, config)
    for _ in range(2):
        assert samples(dataset) == contents
    assert len(calls) == 1


def test_an_unknown_option_is_refused_by_name(make: Make) -> None:
    with pytest.raises(TypeError, match=r"S3\w+Dataset has no option cache_dirr; did you mean cache_dir\?"):
        make(cache_dirr="/tmp")
    with pytest.raises(TypeError, match=r"has no option zzz; there are: .*on_error"):
        make(zzz=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error"),
        ({"cache_size": 0}, "cache_size"),
    ],
)
def test_a_bad_option_is_refused_at_once(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("option", "value"), [("seed", None), ("seed", 1.5), ("seed", "3"), ("rank", "0"), ("shuffle_buffer", 1e3)]
)
def test_a_number_that_is_none_is_refused_at_once(
    connection: dict[str, Any], counting_server: CountingServer, option: str, value: Any
) -> None:
    with pytest.raises(TypeError, match=f"{option} must be an int, got {value!r}"):
        S3TarDataset.from_prefix(f"s3://{counting_server.bucket}/", **{option: value}, **connection)


def test_numbers_of_numpy_are_numbers(make_iterable: Make, fill: Fill) -> None:
    fill(6)
    numbers = {"seed": 3, "rank": 1, "world_size": 2}
    ours, numpys = (
        make_iterable(transform=read, shuffle=True, enable_sharding=True, **options)
        for options in (numbers, {name: np.int64(number) for name, number in numbers.items()})
    )
    assert list(numpys) == list(ours)
    assert json.dumps(numpys.state_dict()) == json.dumps(ours.state_dict())


@pytest.mark.parametrize(
    "constructor",
    [
        S3ReaderConstructor.sequential(),
        S3ReaderConstructor.range_based(),
        S3ReaderConstructor.range_based(buffer_size=0),
        S3ReaderConstructor.streaming(),
        S3ReaderConstructor.streaming(window=1000),
    ],
)
def test_every_reader_reads_the_same(make: Make, fill: Fill, constructor: Any) -> None:
    contents = fill(6)
    assert samples(make(transform=read, reader_constructor=constructor)) == contents


class WholeReader(io.BytesIO):
    """A user's own reader: anything that reads."""

    def __init__(self, bucket: str, key: str, get_object_info: Callable, get_stream: Callable) -> None:
        self.size = get_object_info().size
        super().__init__(b"".join(bytes(chunk) for chunk in get_stream(start=1)))


def test_a_reader_constructor_of_ones_own_works_unchanged(make: Make, fill: Fill) -> None:
    contents = fill(4)
    dataset = make(transform=lambda reader: (reader.size, reader.read()), reader_constructor=WholeReader)
    assert samples(dataset) == [(len(data), data[1:]) for data in contents]


# What they ask of the server


def test_an_epoch_is_one_listing_and_one_get_an_object(
    make_iterable: Make, fill: Fill, counting_server: CountingServer
) -> None:
    fill(50)
    dataset = make_iterable(transform=read)
    list(dataset)
    list(dataset)
    operations = counting_server.operations()
    assert operations.count("ListObjectsV2") == 1
    assert operations.count("GetObject") == 100
    assert len(operations) == 101


def test_objects_that_nobody_reads_cost_no_request(make: Make, fill: Fill, counting_server: CountingServer) -> None:
    fill(30)
    assert samples(make(transform=key_of)) == [f"data/{number:05}" for number in range(30)]
    assert "GetObject" not in counting_server.operations()


def test_reading_ahead_stops_where_objects_are_not_read(
    make_iterable: Make, fill: Fill, counting_server: CountingServer, config: S3ClientConfig
) -> None:
    fill(200)
    readers = iter(make_iterable(s3client_config=replace(config, max_concurrency=8)))
    next(readers).read()
    for _ in readers:
        pass
    assert counting_server.operations().count("GetObject") < 20


def test_a_batch_is_fetched_at_the_same_time(make_map: Make, fill: Fill, counting_server: CountingServer) -> None:
    contents = fill(40)
    dataset = make_map(transform=read)
    counting_server.shape(latency_seconds=0.1)
    try:
        assert dataset.__getitems__(list(range(40))) == contents
    finally:
        counting_server.shape()
    assert counting_server.counters()["most_in_flight"] >= 20


def test_no_more_than_the_configured_requests_are_in_flight(
    make: Make, fill: Fill, counting_server: CountingServer, config: S3ClientConfig
) -> None:
    fill(40)
    dataset = make(transform=read, s3client_config=replace(config, max_concurrency=5))
    counting_server.shape(latency_seconds=0.02)
    try:
        list(DataLoader(dataset, batch_size=20, collate_fn=list))
    finally:
        counting_server.shape()
    assert 4 <= counting_server.counters()["most_in_flight"] <= 5


def test_a_budget_of_bytes_bounds_what_is_fetched_ahead(
    make_iterable: Make, fill: Fill, counting_server: CountingServer, config: S3ClientConfig
) -> None:
    fill(40, size=2**20)
    small = replace(config, memory_limit=5 * 36 * 2**20)  # 5 MiB ahead
    iterator = iter(make_iterable(transform=read, s3client_config=small))
    next(iterator)
    counting_server.wait_for_requests(6, operation="GetObject")
    assert counting_server.operations().count("GetObject") == 6
    assert len(list(iterator)) == 39


def test_all_iterators_of_a_process_share_the_budget(
    make_iterable: Make, fill: Fill, counting_server: CountingServer, config: S3ClientConfig
) -> None:
    fill(20, size=2**20)
    small = replace(config, memory_limit=4 * 36 * 2**20)  # 4 MiB ahead, then 2, and 1 for each of the others
    iterators = [iter(make_iterable(transform=read, s3client_config=small)) for _ in range(4)]
    for iterator in iterators:
        next(iterator)
    assert counting_server.operations().count("GetObject") <= 4 + (4 + 2 + 1 + 1)
    assert [len(list(iterator)) for iterator in iterators] == [19] * 4


def test_an_iterator_beside_another_reads_ahead_too(
    make_iterable: Make, fill: Fill, counting_server: CountingServer, config: S3ClientConfig
) -> None:
    contents = fill(30, size=2**20)
    small = replace(config, memory_limit=8 * 36 * 2**20)
    first = iter(make_iterable(transform=read, s3client_config=small))
    next(first)  # with 8 objects on their way, which nobody takes
    counting_server.wait_for_requests(9, operation="GetObject")
    counting_server.clear()
    counting_server.shape(latency_seconds=0.05)
    try:
        assert list(make_iterable(transform=read, s3client_config=small)) == contents
    finally:
        counting_server.shape()
    assert counting_server.counters()["most_in_flight"] >= 4
    assert list(first) == contents[1:]


@pytest.mark.parametrize(("memory_mib", "least", "most"), [(1024, 100, 128), (36, 2, 6)])
def test_objects_of_unknown_size_are_taken_to_be_like_those_before(
    fill: Fill, counting_server: CountingServer, config: S3ClientConfig, memory_mib: int, least: int, most: int
) -> None:
    config = replace(config, memory_limit=memory_mib * 2**20)
    fill(300, size=1000)
    counting_server.shape(latency_seconds=0.2)
    uris = [f"s3://{counting_server.bucket}/data/{number:05}" for number in range(300)]
    dataset = S3IterableDataset.from_objects(
        uris, region="us-east-1", endpoint=counting_server.endpoint, transform=read, s3client_config=config
    )
    try:
        assert len(list(dataset)) == 300
    finally:
        counting_server.shape()
    assert least <= counting_server.counters()["most_in_flight"] <= most


def test_an_iterator_that_is_dropped_stops_what_is_on_its_way(
    make_iterable: Make, fill: Fill, counting_server: CountingServer
) -> None:
    from s3torch_datasets._look_ahead import count_look_aheads

    fill(300, size=1000)
    iterator = iter(make_iterable(transform=read))
    next(iterator)
    assert count_look_aheads() > 0
    del iterator
    gc.collect()
    assert count_look_aheads() == 0
    assert counting_server.operations().count("GetObject") <= 134


def test_ranges_of_a_large_object_do_not_read_ahead(
    make_iterable: Make, fill: Fill, counting_server: CountingServer
) -> None:
    fill(20, size=1000)
    constructor = S3ReaderConstructor.range_based(buffer_size=10)
    assert len(list(make_iterable(transform=lambda reader: reader.read(5), reader_constructor=constructor))) == 20
    ranges = [request.headers["range"] for request in counting_server.requests if request.operation == "GetObject"]
    assert ranges == ["bytes=0-9"] * 20


def test_seeking_in_a_listed_object_sends_no_head(make: Make, fill: Fill, counting_server: CountingServer) -> None:
    fill(5)
    assert samples(make(transform=lambda reader: reader.seek(0, 2))) == [1, 2, 3, 4, 5]
    assert set(counting_server.operations()) == {"ListObjectsV2"}


# Objects that change, are missing, or are empty


def test_an_object_that_was_replaced_since_it_was_listed_raises(
    make: Make, fill: Fill, counting_server: CountingServer
) -> None:
    fill(3)
    dataset = make(transform=read)
    len(dataset.index)
    counting_server.put("data/00001", b"other")
    with pytest.raises(ObjectChangedError, match="data/00001") as caught:
        samples(dataset)
    assert "listed" in caught.value.__notes__[0]


@pytest.mark.parametrize("constructor", [S3ReaderConstructor.range_based(10), S3ReaderConstructor.streaming(10)])
def test_an_object_that_is_replaced_between_two_ranges_raises(
    constructor: Any, connection: dict[str, Any], counting_server: CountingServer
) -> None:
    counting_server.put("big", b"1" * 100)
    uri = f"s3://{counting_server.bucket}/big"
    (reader,) = S3IterableDataset.from_objects(uri, reader_constructor=constructor, **connection)
    assert reader.read(5) == b"11111"
    counting_server.put("big", b"2" * 100)
    with pytest.raises(ObjectChangedError, match="big"):
        reader.read(30)


def test_empty_objects_are_samples(make: Make, counting_server: CountingServer) -> None:
    counting_server.put("data/empty", b"")
    counting_server.put("data/full", b"x")
    assert samples(make(transform=read)) == [b"", b"x"]


def test_a_missing_object_raises_at_its_own_sample(
    connection: dict[str, Any], counting_server: CountingServer, fill: Fill
) -> None:
    contents = fill(3)
    uris = [f"s3://{counting_server.bucket}/{key}" for key in ("data/00000", "data/00001", "gone", "data/00002")]
    iterator = iter(S3IterableDataset.from_objects(uris, transform=read, **connection))
    assert [next(iterator), next(iterator)] == contents[:2]
    with pytest.raises(FileNotFoundError, match="gone"):
        next(iterator)
    assert list(iterator) == contents[2:]


@pytest.mark.parametrize("key", ["a//b", "/lead", "a/../b", "sp ace+%41ü漢", "dir/"])
@pytest.mark.parametrize("kind", KINDS)
def test_odd_keys_are_read_exactly(
    kind: Any, key: str, connection: dict[str, Any], counting_server: CountingServer
) -> None:
    counting_server.put(key, b"here")
    (sample,) = samples(
        kind.from_prefix(f"s3://{counting_server.bucket}", transform=lambda r: (r.key, r.read()), **connection)
    )
    assert sample == (key, b"here")


# Errors in a transform


def fail_on_two(reader: S3Reader) -> bytes:
    data = reader.read()
    if len(data) == 2:
        raise RuntimeError("cannot decode")
    return data


def test_an_error_in_the_transform_names_the_object(make: Make, fill: Fill) -> None:
    fill(3)
    with pytest.raises(RuntimeError, match="cannot decode") as caught:
        samples(make(transform=fail_on_two))
    assert "data/00001" in caught.value.__notes__[0]


def test_stop_iteration_in_the_transform_is_an_error_and_no_end(make: Make, fill: Fill) -> None:
    fill(3)

    def transform(reader: S3Reader) -> bytes:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        samples(make(transform=transform))


def test_an_index_error_in_the_transform_is_an_error_and_no_end(make: Make, fill: Fill) -> None:
    fill(3)
    names = ["cat", "dog"]
    dataset = make(transform=lambda reader: names[len(reader.read()) - 1])
    with pytest.raises(IndexError) as caught:
        list(dataset)
    assert "data/00002" in caught.value.__notes__[0]


def test_stop_iteration_in_on_error_is_an_error_and_no_end(make: Make, fill: Fill) -> None:
    fill(3)
    spare: Iterator[bytes] = iter([])
    with pytest.raises(RuntimeError, match=r"on_error raised StopIteration for s3://.*/data/00001"):
        samples(make(transform=fail_on_two, on_error=lambda error, uri: next(spare)))


def test_skip_leaves_objects_out_and_counts_them(make: Make, fill: Fill, caplog: pytest.LogCaptureFixture) -> None:
    contents = fill(4)
    dataset = make(transform=fail_on_two, on_error="skip")
    with caplog.at_level(logging.WARNING, "s3torch_datasets"):
        (batch,) = DataLoader(dataset, batch_size=4, collate_fn=list)
    assert batch == [contents[0], contents[2], contents[3]]
    assert dataset.skipped == 1
    assert "data/00001" in caplog.text


def test_a_callable_gives_the_sample_or_skips(make: Make, fill: Fill) -> None:
    contents = fill(4)
    replaced = make(transform=fail_on_two, on_error=lambda error, uri: (str(error), uri[-5:]))
    assert samples(replaced) == [contents[0], ("cannot decode", "00001"), contents[2], contents[3]]
    skipping = make(transform=fail_on_two, on_error=lambda error, uri: SKIP)
    assert next(iter(DataLoader(skipping, batch_size=4, collate_fn=len))) == 3


def test_a_batch_of_which_nothing_is_left_raises(make_map: Make, fill: Fill) -> None:
    fill(4)
    with pytest.raises(S3Exception, match="data/00001"):
        make_map(transform=fail_on_two, on_error="skip").__getitems__([1, 1])


# Filters


def test_a_filter_chooses_by_suffix_glob_size_and_predicate(make: Make, counting_server: CountingServer) -> None:
    for key in ("data/a.jpg", "data/b.JPG", "data/x/c.jpg", "data/d.png"):
        counting_server.put(key, key.encode())
    keys = lambda **how: samples(make(transform=key_of, object_filter=ObjectFilter(**how)))  # noqa: E731
    assert keys(suffix=".jpg") == ["data/a.jpg", "data/x/c.jpg"]
    assert keys(suffix=(".jpg", ".png")) == ["data/a.jpg", "data/d.png", "data/x/c.jpg"]
    assert keys(glob="data/?.[jp]*") == ["data/a.jpg", "data/d.png"]
    assert keys(min_size=11) == ["data/x/c.jpg"]
    assert keys(max_size=10, suffix=".jpg") == ["data/a.jpg"]
    assert keys(predicate=has_an_etag_and_a_b) == ["data/b.JPG"]


def has_an_etag_and_a_b(info: ObjectInfo) -> bool:
    return info.etag is not None and info.last_modified is not None and "b" in info.key


def test_directory_markers_and_archived_objects_are_left_out_and_counted(
    make: Make, counting_server: CountingServer, caplog: pytest.LogCaptureFixture
) -> None:
    counting_server.put("data/", b"")
    counting_server.put("data/folder/", b"")
    counting_server.put("data/full/", b"an object all the same")
    counting_server.put("data/old", b"x", headers={"x-amz-storage-class": "GLACIER"})
    counting_server.put("data/older", b"x", headers={"x-amz-storage-class": "DEEP_ARCHIVE"})
    counting_server.put("data/slow", b"x", headers={"x-amz-storage-class": "GLACIER_IR"})
    with caplog.at_level(logging.INFO, "s3torch_datasets"):
        assert samples(make(transform=key_of)) == ["data/full/", "data/slow"]
    assert "2 directory markers and 2 archived objects" in caplog.text
    everything = ObjectFilter(directory_markers=True, archived=True)
    assert len(samples(make(transform=key_of, object_filter=everything))) == 6


def test_a_filter_that_asks_for_the_size_of_a_named_object_says_so(connection: dict[str, Any]) -> None:
    dataset = S3MapDataset.from_objects("s3://bucket/k", object_filter=ObjectFilter(min_size=1), **connection)
    with pytest.raises(ValueError, match="s3://bucket/k"):
        len(dataset)


def test_a_filter_with_bounds_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ValueError, match="max_size"):
        ObjectFilter(min_size=5, max_size=4)


# PyTorch


def test_an_index_out_of_range_is_an_index_error(make_map: Make, fill: Fill) -> None:
    contents = fill(3)
    dataset = make_map(transform=read)
    assert dataset[-1] == contents[-1]
    for outside in (3, -4):
        with pytest.raises(IndexError):
            dataset[outside]


def test_samplers_subsets_and_splits_work(make_map: Make, fill: Fill) -> None:
    contents = fill(10)
    dataset = make_map(transform=read)
    assert list(Subset(dataset, [7, 2])) == [contents[7], contents[2]]
    parts = random_split(dataset, [6, 4], generator=torch.Generator().manual_seed(1))
    assert sorted(data for part in parts for data in part) == sorted(contents)
    halves = [DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False) for rank in (0, 1)]
    loaded = [list(DataLoader(dataset, batch_size=None, sampler=half)) for half in halves]
    assert loaded == [contents[0::2], contents[1::2]]


class Labelled(S3MapDataset[Any]):
    """As is usual with datasets that have no `__getitems__`."""

    def __getitem__(self, index: int) -> Any:
        return index, super().__getitem__(index)


def test_a_subclass_with_a_getitem_of_its_own_makes_the_samples_of_a_batch(
    fill: Fill, counting_server: CountingServer, connection: dict[str, Any]
) -> None:
    expected = list(enumerate(fill(4)))
    dataset = Labelled.from_prefix(f"s3://{counting_server.bucket}/data/", transform=read, **connection)
    assert dataset[1] == expected[1]
    assert list(DataLoader(dataset, batch_size=2, collate_fn=list)) == [expected[:2], expected[2:]]
    assert S3ConcatDataset([Subset(dataset, [3, 2]), dataset]).__getitems__([0, 2, 3]) == [
        expected[row] for row in (3, 0, 1)
    ]


def test_a_subset_fetches_its_batch_at_the_same_time(
    make_map: Make, fill: Fill, counting_server: CountingServer
) -> None:
    fill(30)
    subset = Subset(make_map(transform=read), range(30))
    counting_server.shape(latency_seconds=0.1)
    try:
        list(DataLoader(subset, batch_size=30, collate_fn=list))
    finally:
        counting_server.shape()
    assert counting_server.counters()["most_in_flight"] >= 15


def test_a_dataset_pickles_after_use(make: Make, fill: Fill) -> None:
    contents = fill(5)
    dataset = make(transform=read)
    assert samples(dataset) == contents
    assert samples(pickle.loads(pickle.dumps(dataset))) == contents


def test_a_reader_of_a_dataset_reads_on_after_pickling(make: Make, fill: Fill) -> None:
    contents = fill(5)
    reader = samples(make())[4]
    reader.read(2)
    assert pickle.loads(pickle.dumps(reader)).read() == contents[4][2:]


def test_making_a_dataset_sends_nothing(make: Make, counting_server: CountingServer) -> None:
    make()
    assert counting_server.requests == []


def test_the_type_of_a_sample_follows_from_the_transform() -> None:
    def texts(dataset: Iterable[str]) -> Iterable[str]:
        return dataset

    assert texts(S3IterableDataset.from_objects("s3://bucket/k", region="r", transform=key_of)) is not None

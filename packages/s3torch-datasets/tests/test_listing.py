"""Listing: parallel where that helps, in the order of a plain listing, and made once."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core import ListObjectResult, NoSuchBucketError, S3Client, S3ClientConfig, S3Exception
from s3torch_datasets import ObjectFilter, S3MapDataset
from s3torch_datasets._parallel_listing import list_prefix, plan_ranges
from servers import CountingServer, S3Server, start_counting_server
from servers.counting import GeneratedObjects

Make = Callable[..., Any]

keys = st.text(min_size=1, max_size=5)


@given(st.lists(keys), st.lists(keys), st.integers(2, 20), st.text(max_size=2))
def test_ranges_hold_every_key_behind_one_once_and_in_order(
    cuts: list[str], names: list[str], max_ranges: int, after: str
) -> None:
    ranges = plan_ranges(cuts, max_ranges, after)
    assert len(ranges) <= max_ranges
    found = [
        name
        for one in ranges
        for name in sorted(set(names))
        if name > one.after and (one.last is None or name <= one.last)
    ]
    assert found == sorted(name for name in set(names) if name > after)


def put_keys(server: CountingServer, names: list[str]) -> list[str]:
    for name in names:
        server.put(name, b"")
    return sorted(names, key=str.encode)


def listed(dataset: Any) -> list[str]:
    return [one.key for one in dataset.index]


def test_many_folders_are_listed_at_the_same_time_and_in_order(make_map: Make, counting_server: CountingServer) -> None:
    rng = random.Random(1)
    names = [f"data/{rng.randrange(40):02}/{number:05}" for number in range(7500)]
    names += [f"data/{number:02}!{number}" for number in range(40)] + ["data/zz", "data/7", "data/漢/ü", "data/a//b"]
    expected = put_keys(counting_server, names)
    counting_server.shape(latency_seconds=0.02)
    try:
        assert listed(make_map()) == expected
    finally:
        counting_server.shape()
    assert counting_server.counters()["most_in_flight"] >= 8


def test_a_million_tiny_folders_would_not_cost_a_request_each(make_map: Make, counting_server: CountingServer) -> None:
    expected = put_keys(counting_server, [f"data/{number:05}/x" for number in range(4200)])
    assert listed(make_map()) == expected
    assert len(counting_server.requests) < 200


def test_a_page_without_keys_ends_no_range(make_map: Make, counting_server: CountingServer) -> None:
    expected = put_keys(counting_server, [f"data/{number % 20:02}/{number:05}" for number in range(6000)])
    dataset = make_map()

    class Sparse:
        """The same store, which sends a page without keys before each other one."""

        def __init__(self, client: S3Client) -> None:
            self._client = client
            self.s3client_config = client.s3client_config

        def list_objects(self, *arguments: Any, **options: Any) -> Iterator[ListObjectResult]:
            is_cut = "start_after" in options and "max_keys" not in options
            for page in self._client.list_objects(*arguments, **options):
                if is_cut:
                    yield ListObjectResult([], [], [], [], [])
                yield page

    client: Any = Sparse(dataset._get_client())
    found = list_prefix(client, counting_server.bucket, "data/", ObjectFilter(), lambda count: None)
    assert [one.key for one in found.builder.build()] == expected


def test_folders_far_down_are_found(make_map: Make, counting_server: CountingServer) -> None:
    names = [f"data/only/this/{number % 20}/{number:05}" for number in range(5500)]
    expected = put_keys(counting_server, names)
    assert listed(make_map()) == expected
    assert any(request.query.get("start-after") for request in counting_server.requests)


def test_objects_without_folders_are_listed_plainly(make_map: Make, counting_server: CountingServer) -> None:
    expected = put_keys(counting_server, [f"data/{number:05}" for number in range(4500)])
    assert listed(make_map()) == expected


def test_many_objects_without_folders_are_listed_at_the_same_time(config: S3ClientConfig) -> None:
    folder = GeneratedObjects("generated", "data/", count=60_000, smallest=1, largest=9)
    with start_counting_server(generated=[folder], latency_seconds=0.05) as server:
        dataset = S3MapDataset.from_prefix(
            "s3://generated/data/", region=server.region, endpoint=server.endpoint, s3client_config=config
        )
        assert listed(dataset) == [folder.key(number) for number in range(60_000)]
        counters = server.counters()
    assert counters["most_in_flight"] >= 8
    # A page of a thousand each, those that only look for cuts, and one for the end of each part.
    assert counters["operations"]["ListObjectsV2"] < 60 + 150


def test_a_short_listing_is_one_request_a_page(make_map: Make, counting_server: CountingServer) -> None:
    expected = put_keys(counting_server, [f"data/{number % 3}/{number:05}" for number in range(2500)])
    assert listed(make_map()) == expected
    assert counting_server.operations() == ["ListObjectsV2"] * 3


def test_markers_are_counted_over_all_ranges(make_map: Make, counting_server: CountingServer) -> None:
    names = [f"data/{number:02}/" for number in range(30)]
    put_keys(counting_server, names)
    expected = [f"data/{number % 30:02}/{number:05}" for number in range(5300)]
    for name in expected:
        counting_server.put(name, b"1")
    assert listed(make_map()) == sorted(expected)


def test_an_error_in_one_range_is_raised(make_map: Make, counting_server: CountingServer) -> None:
    put_keys(counting_server, [f"data/{number % 30:02}/{number:05}" for number in range(5300)])
    counting_server.fault(operation="ListObjectsV2", skip=8, status=403, code="AccessDenied")
    with pytest.raises(PermissionError, match=counting_server.bucket):
        len(make_map())
    counting_server.faults_clear()
    assert len(make_map()) == 5300


@pytest.mark.parametrize("parameter", [{"delimiter": "/"}, {"max-keys": "1"}], ids=["folders", "keys"])
def test_a_prefix_that_cannot_be_looked_into_is_listed_plainly(
    make_map: Make, counting_server: CountingServer, parameter: dict[str, str]
) -> None:
    count = 4500 if "delimiter" in parameter else 20_500
    expected = put_keys(counting_server, [f"data/{number:05}" for number in range(count)])
    counting_server.fault(operation="ListObjectsV2", query=parameter, status=403, code="AccessDenied")
    assert listed(make_map()) == expected


def test_a_missing_bucket_is_named(connection: dict[str, Any]) -> None:
    with pytest.raises(NoSuchBucketError, match="no-such-bucket"):
        len(S3MapDataset.from_prefix("s3://no-such-bucket/x", **connection))


def test_an_empty_prefix_is_an_empty_dataset_and_a_warning(make_map: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "s3torch_datasets"):
        assert len(make_map()) == 0
    assert re.search(r"s3://[^/]+/data/: no object is there", caplog.text)


def test_a_failed_listing_can_be_tried_again(make_map: Make, counting_server: CountingServer) -> None:
    put_keys(counting_server, ["data/a"])
    counting_server.fault(operation="ListObjectsV2", status=403, code="AccessDenied", times=1)
    dataset = make_map()
    with pytest.raises(S3Exception):
        len(dataset)
    assert len(dataset) == 1


def test_a_slow_listing_shows_a_bar_and_a_quick_one_does_not(
    make_map: Make, counting_server: CountingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    put_keys(counting_server, [f"data/{number:05}" for number in range(2500)])
    assert len(make_map(progress=True)) == 2500
    assert "Listing" not in capsys.readouterr().err
    counting_server.shape(latency_seconds=0.6)
    try:
        assert len(make_map(progress=False)) == 2500
        assert capsys.readouterr().err == ""
        assert len(make_map(progress=True)) == 2500
    finally:
        counting_server.shape()
    assert f"Listing s3://{counting_server.bucket}/data/" in capsys.readouterr().err


def test_only_the_first_rank_shows_a_bar(
    make_map: Make,
    counting_server: CountingServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_keys(counting_server, [f"data/{number:05}" for number in range(2500)])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    counting_server.shape(latency_seconds=0.6)
    try:
        assert len(make_map(progress=True)) == 2500
    finally:
        counting_server.shape()
    assert capsys.readouterr().err == ""


def test_every_server_lists_all_objects_whatever_its_order(s3_server: S3Server) -> None:
    bucket = s3_server.create_bucket()
    client = s3_server.boto3_client()
    names = [f"data/{number % 3}/{number:03}" for number in range(60)] + [f"data/{number}!x" for number in range(3)]
    for name in names:
        client.put_object(Bucket=bucket, Key=name, Body=name.encode())
    client.close()
    config = S3ClientConfig(access_key_id=s3_server.access_key, secret_access_key=s3_server.secret_key)
    dataset = S3MapDataset.from_prefix(
        f"s3://{bucket}/data/",
        region=s3_server.region,
        endpoint=s3_server.endpoint,
        s3client_config=replace(config, max_concurrency=4),
        transform=lambda reader: (reader.key, reader.read()),
    )
    assert sorted(dataset.__getitems__(range(len(dataset)))) == sorted((name, name.encode()) for name in names)
    assert attrgetter("key")(dataset.index[0]).startswith("data/")

"""Datasets one after the other."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, random_split

from s3core import S3Exception
from s3torch_datasets import S3ConcatDataset, S3MapDataset
from servers import CountingServer

read = methodcaller("read")


@pytest.fixture
def parts(counting_server: CountingServer, connection: dict[str, Any]) -> list[S3MapDataset[bytes]]:
    for part in "ab":
        for number in range(20):
            counting_server.put(f"{part}/{number:02}", f"{part}{number}".encode())
    prefix = f"s3://{counting_server.bucket}/"
    return [S3MapDataset.from_prefix(prefix + part, transform=read, **connection) for part in "ab"]


EXPECTED = [f"{part}{number}".encode() for part in "ab" for number in range(20)]


def test_samples_come_as_from_torchs_own(parts: list[S3MapDataset[bytes]]) -> None:
    both = S3ConcatDataset(parts)
    assert len(both) == 40
    assert [both[number] for number in (0, 19, 20, 39, -1)] == [EXPECTED[n] for n in (0, 19, 20, 39, -1)]
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    assert both.__getitems__(rows) == [EXPECTED[row] for row in rows]
    assert both.__getitems__([]) == []
    assert list(both) == EXPECTED


def test_a_batch_over_both_is_fetched_at_the_same_time(
    parts: list[S3MapDataset[bytes]], counting_server: CountingServer
) -> None:
    both = S3ConcatDataset(parts)
    counting_server.shape(latency_seconds=0.1)
    try:
        (batch,) = DataLoader(both, batch_size=40, collate_fn=list)
    finally:
        counting_server.shape()
    assert batch == EXPECTED
    assert counting_server.counters()["most_in_flight"] >= 25


def test_other_kinds_of_datasets_may_be_among_them(parts: list[S3MapDataset[bytes]]) -> None:
    halves = random_split(parts[0], [10, 10], generator=torch.Generator().manual_seed(0))
    mixed: S3ConcatDataset[Any] = S3ConcatDataset([*halves, TensorDataset(torch.arange(3)), parts[1]])
    rows = [22, 5, 15, 21, 23, 0]
    expected = [mixed[row] for row in rows]
    assert mixed.__getitems__(rows) == expected
    assert expected[0] == (torch.tensor(2),)


def test_parts_of_a_split_are_fetched_at_the_same_time_and_may_skip(
    parts: list[S3MapDataset[bytes]], counting_server: CountingServer, connection: dict[str, Any]
) -> None:
    make: Callable[..., S3MapDataset[bytes]] = S3MapDataset.from_prefix
    skipping = make(f"s3://{counting_server.bucket}/a", transform=read, on_error="skip", **connection)
    split: S3ConcatDataset[bytes] = S3ConcatDataset(
        [Subset(Subset(skipping, range(10)), [3, 4]), Subset(parts[1], [7])]
    )
    assert split.__getitems__([0, 1, 2]) == [b"a3", b"a4", b"b7"]
    counting_server.delete("a/03")
    counting_server.clear()
    counting_server.shape(latency_seconds=0.1)
    try:
        assert split.__getitems__([0, 1, 2]) == [b"a4", b"b7"]
    finally:
        counting_server.shape()
    assert counting_server.counters()["most_in_flight"] >= 2
    assert split.__getitems__([0, 2]) == [b"b7"]  # nothing is left of the first part


def test_an_index_error_in_a_transform_is_an_error_and_no_end(
    counting_server: CountingServer, connection: dict[str, Any], parts: list[S3MapDataset[bytes]]
) -> None:
    uri = f"s3://{counting_server.bucket}/a/00"
    short: S3MapDataset[int] = S3MapDataset.from_objects(uri, transform=lambda reader: reader.read()[9], **connection)
    both: S3ConcatDataset[Any] = S3ConcatDataset([parts[0], short, parts[1]])
    with pytest.raises(IndexError, match="index out of range"):
        list(both)


def test_a_row_out_of_range_is_an_index_error(parts: list[S3MapDataset[bytes]]) -> None:
    with pytest.raises(IndexError, match="40"):
        S3ConcatDataset(parts).__getitems__([0, 40])


def test_skipped_objects_are_left_out(
    counting_server: CountingServer, connection: dict[str, Any], parts: list[S3MapDataset[bytes]]
) -> None:
    make: Callable[..., S3MapDataset[bytes]] = S3MapDataset.from_prefix
    skipping = make(f"s3://{counting_server.bucket}/a", transform=read, on_error="skip", **connection)
    both = S3ConcatDataset([skipping, parts[1]])
    assert len(both) == 40
    counting_server.delete("a/03")
    assert both.__getitems__([2, 3, 25]) == [b"a2", b"b5"]


def test_skipped_objects_leave_the_order_of_a_batch_with_other_datasets(
    parts: list[S3MapDataset[bytes]], counting_server: CountingServer, connection: dict[str, Any]
) -> None:
    make: Callable[..., S3MapDataset[bytes]] = S3MapDataset.from_prefix
    skipping = make(f"s3://{counting_server.bucket}/a", transform=read, on_error="skip", **connection)
    numbers = TensorDataset(torch.arange(3))
    mixed: S3ConcatDataset[Any] = S3ConcatDataset([skipping, numbers])
    assert len(mixed) == 23
    counting_server.delete("a/01")
    assert mixed.__getitems__([1, 20, 2, 21]) == [numbers[0], b"a2", numbers[1]]
    assert mixed.__getitems__([1, 20]) == [numbers[0]]
    with pytest.raises(S3Exception, match="a/01"):
        mixed.__getitems__([1])


@pytest.mark.parametrize("kind", [S3ConcatDataset, ConcatDataset])
def test_a_part_that_is_a_concatenation_itself_is_read_like_the_others(
    parts: list[S3MapDataset[bytes]], counting_server: CountingServer, connection: dict[str, Any], kind: Any
) -> None:
    make: Callable[..., S3MapDataset[bytes]] = S3MapDataset.from_prefix
    skipping = make(f"s3://{counting_server.bucket}/a", transform=read, on_error="skip", **connection)
    inner, numbers = kind([skipping, parts[1]]), TensorDataset(torch.arange(3))
    outer: S3ConcatDataset[Any] = S3ConcatDataset([Subset(inner, range(40)), kind([numbers]), parts[1]])
    assert len(outer) == 63
    counting_server.delete("a/03")
    counting_server.clear()
    counting_server.shape(latency_seconds=0.1)
    try:
        assert outer.__getitems__([3, 44, 2, 42, 20]) == [b"b1", b"a2", numbers[2], b"b0"]
    finally:
        counting_server.shape()
    assert counting_server.counters()["most_in_flight"] >= 3
    assert outer.__getitems__([3, 44]) == [b"b1"]  # nothing is left of the inner one

"""Who reads what in a replicated load: each block once, evenly, and in an order in which no rank waits for ever."""

from __future__ import annotations

import pickle
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from s3torch_checkpoint.dcp._sharing import Share, SharePlan, plan_sharing

SIZES = [100, 2000, 50, 7, 900, 1200]


def item(number: int) -> ReadItem:
    index = MetadataIndex(f"object.{number}")
    zero = torch.Size([0])
    return ReadItem(LoadItemType.BYTE_IO, index, zero, index, zero, zero)


STORED = {item(number).storage_index: _StorageInfo("file", 0, size) for number, size in enumerate(SIZES)}
needs = st.lists(st.sets(st.integers(0, len(SIZES) - 1)), min_size=1, max_size=5)


def share(wanted: list[set[int]], hosts: list[str] | None = None, round_bytes: int = 1000) -> list[SharePlan]:
    plans = [LoadPlan([item(number) for number in sorted(numbers)]) for numbers in wanted]
    return plan_sharing(plans, STORED, hosts, "load", round_bytes=round_bytes)


def name(plan: SharePlan, part: Share) -> object:
    return plan.items[part.item][0]


def test_an_item_without_bytes_is_not_passed_on() -> None:
    stored = {item(0).storage_index: _StorageInfo("file", 0, 0)}
    plans = plan_sharing([LoadPlan([item(0)]), LoadPlan([item(0)])], stored, None, "load")
    assert [(plan.items, plan.shares) for plan in plans] == [([], []), ([], [])]


@given(needs)
def test_each_shared_item_is_read_once_and_reaches_everyone_who_needs_it(wanted: list[set[int]]) -> None:
    plans = share(wanted)
    for number in range(len(SIZES)):
        ranks = {rank for rank, numbers in enumerate(wanted) if number in numbers}
        parts = [(plan.rank, part) for plan in plans for part in plan.shares if name(plan, part) == f"object.{number}"]
        if len(ranks) < 2:
            assert parts == []
        else:
            assert {rank for rank, _ in parts} == ranks
            assert len({part.owner for _, part in parts}) == 1
            for _, part in parts:
                assert {part.owner, *part.receivers} == ranks


@given(needs, st.integers(1, 3000))
def test_no_rank_waits_for_ever(wanted: list[set[int]], round_bytes: int) -> None:
    """All ranks do their parts in order, each blocking until the other side has come to it too."""
    queues = {
        plan.rank: deque((name(plan, part), part) for part in plan.shares)
        for plan in share(wanted, round_bytes=round_bytes)
    }
    while any(queues.values()):
        ready = next(
            (
                head
                for queue in queues.values()
                if queue
                for head in [queue[0]]
                if all(queues[rank] and queues[rank][0][0] == head[0] for rank in (head[1].owner, *head[1].receivers))
            ),
            None,
        )
        assert ready is not None
        for rank in (ready[1].owner, *ready[1].receivers):
            queues[rank].popleft()


@given(needs, st.integers(1, 3000))
def test_a_rank_reads_little_more_than_a_round_for_others_at_a_time(wanted: list[set[int]], round_bytes: int) -> None:
    for plan in share(wanted, round_bytes=round_bytes):
        for turn in range(plan.turns):
            mine = [part for part in plan.shares if part.owner == plan.rank and part.turn == turn]
            sizes = [SIZES[int(str(name(plan, part)).rpartition(".")[2])] for part in mine]
            assert sum(sizes[:-1]) < round_bytes


def test_the_reading_is_dealt_out_evenly() -> None:
    plans = share([set(range(len(SIZES)))] * 4)
    owners = {name(plan, part): part.owner for plan in plans for part in plan.shares}
    assert set(owners.values()) == {0, 1, 2, 3}


def test_machines_share_within_themselves() -> None:
    plans = share([{1}, {1}, {1}, {1}, {1}], hosts=["a", "a", "b", "b", "c"])
    assert [[(part.owner, part.receivers) for part in plan.shares] for plan in plans] == [
        [(0, (1,))],
        [(0, (1,))],
        [(2, (3,))],
        [(2, (3,))],
        [],
    ]


@pytest.mark.parametrize("size", [1, 3])
def test_plans_pickle(size: int) -> None:
    plans = share([{0, 1}] * size)
    assert pickle.loads(pickle.dumps(plans)) == plans

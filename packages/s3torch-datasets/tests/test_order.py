"""Sharding and shuffling as arithmetic: complete, disjoint, even, reproducible."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch_datasets._permutation import Permutation
from s3torch_datasets._sharding import Place, Shard, ShardRemainder, plan_shard

totals = st.integers(0, 300)
counts = st.integers(1, 9)


def shards(total: int, world: int, workers: int, remainder: ShardRemainder = "keep") -> list[list[Shard]]:
    return [
        [plan_shard(total, Place(rank, world, worker, workers), remainder) for worker in range(workers)]
        for rank in range(world)
    ]


def all_positions(shard: Shard) -> list[int]:
    return shard.positions(0, shard.size).tolist()


@given(totals, counts, counts)
def test_shards_are_complete_disjoint_and_within_one_of_each_other(total: int, world: int, workers: int) -> None:
    found = [shard for of_rank in shards(total, world, workers) for shard in of_rank]
    assert sorted(position for shard in found for position in all_positions(shard)) == list(range(total))
    assert max(shard.size for shard in found) - min(shard.size for shard in found) <= 1


@given(totals, counts, counts, st.sampled_from(["drop_last", "pad"]))
def test_all_ranks_have_as_many_with_drop_last_and_pad(
    total: int, world: int, workers: int, remainder: ShardRemainder
) -> None:
    found = shards(total, world, workers, remainder)
    assert len({tuple(shard.size for shard in of_rank) for of_rank in found}) == 1
    seen = Counter(position for of_rank in found for shard in of_rank for position in all_positions(shard))
    if remainder == "drop_last":
        assert total - len(seen) < world
        assert set(seen.values()) <= {1}
    else:
        assert set(seen) == set(range(total))
        assert seen.total() - total < world


@given(totals, counts, counts, st.integers(0, 40), st.integers(0, 40))
def test_positions_can_be_had_in_pieces(total: int, world: int, workers: int, first: int, count: int) -> None:
    shard = plan_shard(total, Place(world - 1, world, 0, workers), "pad")
    assert shard.positions(first, count).tolist() == all_positions(shard)[first : first + count]


def test_a_place_outside_of_its_world_is_refused() -> None:
    with pytest.raises(ValueError, match="rank=2"):
        Place(rank=2, world_size=2)
    with pytest.raises(ValueError, match="3 of 2"):
        Place(worker=3, num_workers=2)


def test_an_unknown_remainder_is_refused() -> None:
    with pytest.raises(ValueError, match="drop_last"):
        plan_shard(5, Place(), "wrap")  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(), st.integers(0, 50))
def test_a_shuffle_has_every_element_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(Permutation(size, seed, epoch)(np.arange(size)).tolist()) == list(range(size))


def test_an_empty_range_can_be_shuffled() -> None:
    assert Permutation(0, 1)(np.arange(0)).tolist() == []


@settings(deadline=None)
@given(st.integers(1, 10**12), st.integers(0, 2**63), st.data())
def test_any_position_is_found_alone_as_in_a_block(size: int, seed: int, data: st.DataObject) -> None:
    shuffled = Permutation(size, seed)
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)), dtype=np.int64)
    block = shuffled(positions)
    assert block.min() >= 0
    assert block.max() < size
    assert [int(shuffled(positions[n : n + 1])[0]) for n in range(len(positions))] == block.tolist()


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert Permutation(10, 7, 0)(np.arange(10)).tolist() == [1, 7, 6, 0, 4, 2, 8, 9, 3, 5]
    assert Permutation(10**9, 7, 3)(np.arange(5)).tolist() == [
        981984328,
        739085661,
        64566099,
        319000996,
        767590490,
    ]


@pytest.mark.parametrize("size", [10, 900, 5000, 100_000])
def test_epochs_and_seeds_give_unrelated_orders(size: int) -> None:
    orders = [Permutation(size, seed, epoch)(np.arange(size)) for seed in (0, 1) for epoch in (0, 1)]
    for number, one in enumerate(orders):
        for other in [np.arange(size), *orders[:number]]:
            # Two random orders agree in one place on average.
            assert int((one == other).sum()) < 8


@pytest.mark.parametrize("size", [1500, 50_000])
def test_a_shuffled_order_has_no_trend(size: int) -> None:
    order = Permutation(size, 3, 1)(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 4 / np.sqrt(size)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / np.sqrt(size)


@pytest.mark.parametrize("size", [5, 2000])
def test_each_element_comes_first_about_equally_often(size: int) -> None:
    seeds = 4000
    firsts = np.array([int(Permutation(size, seed)(np.array([0]))[0]) for seed in range(seeds)])
    groups = np.bincount(firsts * 5 // size, minlength=5)
    assert ((groups - seeds / 5) ** 2 / (seeds / 5)).sum() < 23.5  # chi squared of 4 degrees, one in ten thousand

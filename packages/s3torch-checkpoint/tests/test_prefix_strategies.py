"""Prefix strategies: the layout of each, and the promise that all of them share."""

from __future__ import annotations

import pickle

import pytest

from s3torch_checkpoint.dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)

STRATEGIES = [
    DefaultPrefixStrategy(),
    RoundRobinPrefixStrategy(["left", "right"], epoch_num=3),
    BinaryPrefixStrategy(),
    BinaryPrefixStrategy(epoch_num=0, min_prefix_length=1, prefix_count=3),
    HexPrefixStrategy(prefix_count=300, min_prefix_length=2),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
class TestEveryStrategy:
    def test_each_rank_has_a_prefix_of_its_own(self, strategy: S3PrefixStrategyBase) -> None:
        prefixes = [strategy.generate_prefix(rank) for rank in range(600)]
        assert len(set(prefixes)) == 600

    def test_a_prefix_ends_with_the_rank(self, strategy: S3PrefixStrategyBase) -> None:
        assert strategy(17).endswith("__17_")

    def test_no_prefix_begins_with_a_slash(self, strategy: S3PrefixStrategyBase) -> None:
        assert not strategy.generate_prefix(0).startswith("/")

    def test_it_pickles(self, strategy: S3PrefixStrategyBase) -> None:
        assert pickle.loads(pickle.dumps(strategy)).generate_prefix(5) == strategy.generate_prefix(5)


def test_binary_digits_are_written_lowest_first() -> None:
    strategy = BinaryPrefixStrategy(prefix_count=4)
    folders = [strategy.generate_prefix(rank).split("/")[0] for rank in range(4)]
    assert folders == ["0000000000", "1000000000", "0100000000", "1100000000"]


def test_hexadecimal_digits_are_written_lowest_first() -> None:
    strategy = HexPrefixStrategy(min_prefix_length=3, prefix_count=20)
    folders = [strategy.generate_prefix(rank).split("/")[0] for rank in (0, 1, 15, 16, 19)]
    assert folders == ["000", "100", "f00", "010", "310"]


def test_ranks_go_round_the_folders() -> None:
    strategy = BinaryPrefixStrategy(prefix_count=2, min_prefix_length=1)
    assert [strategy.generate_prefix(rank) for rank in range(3)] == ["0/__0_", "1/__1_", "0/__2_"]


def test_folders_are_long_enough_for_their_count() -> None:
    assert BinaryPrefixStrategy(min_prefix_length=1, prefix_count=9).generate_prefix(8).split("/")[0] == "0001"


def test_an_epoch_adds_a_folder() -> None:
    assert RoundRobinPrefixStrategy(["a", "b/"], epoch_num=5).generate_prefix(1) == "b/epoch_5/__1_"
    assert HexPrefixStrategy(epoch_num=0, prefix_count=1).generate_prefix(0) == "0000000000/epoch_0/__0_"


@pytest.mark.parametrize(
    "make",
    [
        lambda: RoundRobinPrefixStrategy([]),
        lambda: RoundRobinPrefixStrategy("abc"),
        lambda: RoundRobinPrefixStrategy(["a", ""]),
        lambda: BinaryPrefixStrategy(epoch_num=-1),
        lambda: BinaryPrefixStrategy(min_prefix_length=0),
        lambda: HexPrefixStrategy(prefix_count=0),
    ],
)
def test_arguments_that_cannot_work_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"must be|may be"):
        make()  # type: ignore[operator]

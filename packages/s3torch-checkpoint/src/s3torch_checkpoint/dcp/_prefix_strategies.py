"""Where each rank's objects lie under a checkpoint: one folder, or spread over prefixes that S3 scales apart.

S3 serves 3,500 writes a second per prefix and splits a hot prefix by its first differing characters, which is why the
numeric strategies write the digits that differ first
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.distributed as dist

from .._checks import check_count

_HEX_DIGITS = "0123456789abcdef"


class S3PrefixStrategyBase(ABC):
    """Says what the names of one rank's objects start with; subclass it for a layout of your own.

    The writer appends the number of the file, the id of the save and `.distcp`. Names never clash, because the id is
    new for each rank and save, so a prefix needs not be unique.
    """

    def __call__(self, rank: int) -> str:
        """The prefix of a rank, as `generate_prefix` gives it."""
        return self.generate_prefix(rank)

    @abstractmethod
    def generate_prefix(self, rank: int) -> str:
        """Give what the names of a rank's objects start with, relative to the checkpoint.

        Args:
            rank: The rank in the process group that saves.

        Returns:
            A prefix such as `"__3_"` or `"shard1/__3_"`; it must not start with `/`.
        """


class DefaultPrefixStrategy(S3PrefixStrategyBase):
    """All objects in one folder: `__{rank}_`."""

    def generate_prefix(self, rank: int) -> str:
        """`__{rank}_`."""
        return f"__{rank}_"


class _FolderPrefixStrategy(S3PrefixStrategyBase):
    """`{folder of the rank}/epoch_{n}/__{rank}_`; the subclass chooses the folder."""

    def __init__(self, epoch_num: int | None) -> None:
        check_count("epoch_num", epoch_num, 0, optional=True)
        self.epoch_num = epoch_num

    def generate_prefix(self, rank: int) -> str:
        """`{folder}/__{rank}_`, with `epoch_{n}/` between when an epoch was given."""
        epoch = "" if self.epoch_num is None else f"epoch_{self.epoch_num}/"
        return f"{self._folder(rank)}/{epoch}__{rank}_"

    @abstractmethod
    def _folder(self, rank: int) -> str: ...


class RoundRobinPrefixStrategy(_FolderPrefixStrategy):
    """Deals the ranks over prefixes of the user's: rank 0 the first, rank 1 the second, and round again.

    Args:
        user_prefixes: The prefixes, at least one; a `/` at their end makes no difference.
        epoch_num: Adds `epoch_{n}/` below the prefix; None adds nothing.

    Example:
        >>> RoundRobinPrefixStrategy(["shard1", "shard2"], epoch_num=5).generate_prefix(2)
        'shard1/epoch_5/__2_'
    """

    def __init__(self, user_prefixes: Sequence[str], epoch_num: int | None = None) -> None:
        super().__init__(epoch_num)
        if isinstance(user_prefixes, str) or not user_prefixes:
            raise ValueError(f"user_prefixes is {user_prefixes!r}; it must be a list of at least one prefix")
        self.user_prefixes = [prefix.rstrip("/") for prefix in user_prefixes]
        if not all(self.user_prefixes):
            raise ValueError(f"user_prefixes is {list(user_prefixes)!r}; no prefix may be empty")

    def _folder(self, rank: int) -> str:
        return self.user_prefixes[rank % len(self.user_prefixes)]


class _NumericPrefixStrategy(_FolderPrefixStrategy):
    """Numbers the folders in some base, the lowest digit first, so that neighbours differ at their first character."""

    base = 10

    def __init__(
        self, epoch_num: int | None = None, min_prefix_length: int = 10, prefix_count: int | None = None
    ) -> None:
        super().__init__(epoch_num)
        check_count("min_prefix_length", min_prefix_length)
        check_count("prefix_count", prefix_count, optional=True)
        self.min_prefix_length = min_prefix_length
        self.prefix_count = prefix_count

    def _folder(self, rank: int) -> str:
        count = self.prefix_count or max(_world_size(), rank + 1)
        length = max(self.min_prefix_length, len(_digits(count - 1, self.base)))
        return _digits(rank % count, self.base).ljust(length, "0")


class BinaryPrefixStrategy(_NumericPrefixStrategy):
    """Folders numbered in binary, the lowest digit first: 0000000000, 1000000000, 0100000000, and so on.

    Args:
        epoch_num: Adds `epoch_{n}/` below the folder; None adds nothing.
        min_prefix_length: Digits of a folder's name; more are used when the count needs them.
        prefix_count: Number of folders; None makes one for each rank.
    """

    base = 2


class HexPrefixStrategy(_NumericPrefixStrategy):
    """Folders numbered in hexadecimal, the lowest digit first: 0000000000, 1000000000, …, f000000000, and so on.

    Args:
        epoch_num: Adds `epoch_{n}/` below the folder; None adds nothing.
        min_prefix_length: Digits of a folder's name; more are used when the count needs them.
        prefix_count: Number of folders; None makes one for each rank.
    """

    base = 16


def _digits(number: int, base: int) -> str:
    """Write a number with its lowest digit first."""
    digits = ""
    while True:
        number, digit = divmod(number, base)
        digits += _HEX_DIGITS[digit]
        if not number:
            return digits


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

"""Which rows of the index an iteration reads, by their number in it."""

from __future__ import annotations

from s3torch_datasets._permutation import Permutation
from s3torch_datasets._sharding import Shard

_BLOCK_ROWS = 1024


class ShardRows:
    """The rows of a shard in the order of an epoch, made a block at a time.

    They are asked for by number: an iterator that Ctrl-C interrupts would lose the row that it was about to hand out.

    Args:
        shard: The positions of the shard.
        shuffled: Says which row is at a position; None where each is at its own.
    """

    def __init__(self, shard: Shard, shuffled: Permutation | None) -> None:
        self._shard = shard
        self._shuffled = shuffled
        self._block: tuple[int, list[int]] = (0, [])

    def get(self, number: int) -> int | None:
        """Returns the row of this number, from 0; None behind the last one."""
        if number >= self._shard.size:
            return None
        first, rows = self._block
        if not first <= number < first + len(rows):
            first = number - number % _BLOCK_ROWS
            positions = self._shard.positions(first, _BLOCK_ROWS)
            rows = (positions if self._shuffled is None else self._shuffled(positions)).tolist()
            self._block = first, rows
        return rows[number - first]

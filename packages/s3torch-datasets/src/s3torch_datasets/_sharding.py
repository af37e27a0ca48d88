"""Who reads what: the split of a range of positions over ranks and workers, as arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

ShardRemainder = Literal["keep", "drop_last", "pad"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an iteration runs: a rank of the job, and a worker of that rank's DataLoader.

    Args:
        rank: Number of the rank, from 0.
        world_size: Number of ranks.
        worker: Number of the worker, from 0.
        num_workers: Number of workers of each rank; 1 for a DataLoader without.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank={self.rank} and world_size={self.world_size}")
        if not 0 <= self.worker < self.num_workers:
            raise ValueError(f"worker must be in [0, num_workers), got {self.worker} of {self.num_workers}")


@dataclass(frozen=True, slots=True)
class Shard:
    """The positions of one worker of one rank: an arithmetic progression, taken modulo the total.

    Rank `r` of `R` has every `R`-th position from `r`, and worker `w` of `W` every `W`-th of those, so that all shards
    together hold each position once, and their sizes differ by one at most.

    Args:
        total: Number of positions in all.
        start: First position.
        step: Distance of positions.
        size: Number of positions of this shard.
    """

    total: int
    start: int
    step: int
    size: int

    def positions(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Returns up to `count` positions of the shard from its `first`-th on."""
        count = max(0, min(count, self.size - first))
        found = self.start + self.step * np.arange(first, first + count, dtype=np.int64)
        return found % self.total if self.total else found


def plan_shard(total: int, place: Place, remainder: ShardRemainder = "keep") -> Shard:
    """Returns the shard of one worker of one rank.

    Args:
        total: Number of positions to share.
        place: The worker and the rank.
        remainder: What becomes of positions that do not divide by the number of ranks. "keep": some ranks have one
            more. "drop_last": they are left out, and all ranks have the same number. "pad": positions from the start
            are repeated until all ranks have the same number.

    Raises:
        ValueError: The remainder is none of the three.
    """
    if remainder not in get_args(ShardRemainder):
        raise ValueError(f"shard_remainder must be one of {get_args(ShardRemainder)}, got {remainder!r}")
    of_rank = len(range(place.rank, total, place.world_size))
    if remainder == "drop_last":
        of_rank = total // place.world_size
    elif remainder == "pad":
        of_rank = -(-total // place.world_size)
    size = len(range(place.worker, of_rank, place.num_workers))
    return Shard(total, place.rank + place.worker * place.world_size, place.world_size * place.num_workers, size)

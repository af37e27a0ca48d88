"""Finds out where an iteration runs: which rank of the job, which worker of its DataLoader."""

from __future__ import annotations

import os

import torch.distributed
from torch.utils.data import get_worker_info

from s3torch_datasets._sharding import Place
from s3torch_datasets._spawning import is_spawning


class InheritedRank:
    """What a process knew of ranks when it spawned another with a dataset.

    Args:
        rank: Its rank.
        world_size: How many there were.
        pid: The process that it was handed to; None for this one.
    """

    def __init__(self, rank: int, world_size: int, pid: int | None = None) -> None:
        self.numbers = rank, world_size
        self._pid = os.getpid() if pid is None else pid

    @property
    def is_of_parent(self) -> bool:
        """Whether it was handed to this process, and not to one that this was forked from."""
        return self._pid == os.getpid()

    def __reduce__(self) -> tuple[type[InheritedRank], tuple[int, int, int | None]]:
        return InheritedRank, (*self.numbers, None if is_spawning() else self._pid)


def find_rank(inherited: InheritedRank | None = None) -> tuple[int, int]:
    """Returns the rank and the number of ranks.

    From the default process group where there is one; in a DataLoader's worker that was spawned from what its parent
    knew; else from the environment that `torchrun` sets
    (https://pytorch.org/docs/stable/elastic/run.html#environment-variables), so that an iteration that begins before
    `init_process_group` is sharded too; else from what the parent knew, if anything. Ranks that were spawned with a
    dataset have a parent, too, which knew less than the environment that they set, and that their forked workers have.

    Args:
        inherited: What the parent process knew.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if inherited is not None and inherited.is_of_parent and get_worker_info() is not None:
        return inherited.numbers
    rank, world_size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size):
        return int(rank), int(world_size)
    return (0, 1) if inherited is None else inherited.numbers


def find_worker() -> tuple[int, int]:
    """Returns the number of this DataLoader worker and how many there are; (0, 1) outside of workers."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def find_place(rank: int | None, world_size: int | None, inherited: InheritedRank | None = None) -> Place:
    """Returns the place of an iteration that starts now.

    Args:
        rank: The rank where the user says it; None to find it.
        world_size: The number of ranks where the user says it; None to find it.
        inherited: What the parent process knew.
    """
    if rank is None or world_size is None:
        rank, world_size = find_rank(inherited)
    return Place(rank, world_size, *find_worker())

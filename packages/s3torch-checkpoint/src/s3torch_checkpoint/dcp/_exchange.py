"""Passes blocks between ranks such that one rank's error ends the load of all, and leaves none of them waiting.

Reading from S3 can fail on one rank alone, so no rank enters a transfer between ranks before it knows that every rank
has what it is to send. They agree through the job's key-value store, whose waits have a timeout, and rank 0 of the
group decides for all. Collectives are not used: a rank that failed elsewhere would not enter them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from .._errors import CheckpointError

_IN_FLIGHT = 8
_GO = "go"
_OK = "ok"


class RankAgreement:
    """Lets all ranks go on together, or stop together.

    Args:
        load_id: New for each load.
        rank: This rank in the group.
        world_size: Ranks in the group.
        timeout_seconds: How long rank 0 waits for the slowest rank.
    """

    def __init__(self, load_id: str, rank: int, world_size: int, timeout_seconds: float) -> None:
        self._store = PrefixStore(f"s3torch-checkpoint/{load_id}", _get_default_store())
        self._rank = rank
        self._world_size = world_size
        self._timeout_seconds = timeout_seconds

    def settle(self, turn: int, error: BaseException | None) -> None:
        """Report how a round went for this rank, and wait for what that means for all.

        Args:
            turn: Number of the round.
            error: What went wrong on this rank; None when all went well.

        Raises:
            CheckpointError: Another rank failed, or did not report in time.
            BaseException: The error of this rank.
        """
        report = _OK if error is None else f"{type(error).__name__}: {error}"[:1000]
        self._store.set(f"{turn}/{self._rank}", report)
        if self._rank == 0:
            self._store.set(f"{turn}/verdict", self._judge(turn))
        if error is not None:
            raise error
        try:
            # Rank 0 may have begun to wait later, by as much as the ranks are apart.
            verdict = self._get(f"{turn}/verdict", 2 * self._timeout_seconds + 30)
        except Exception as failure:
            raise CheckpointError(
                f"rank 0 has not said whether to go on with a replicated load: {type(failure).__name__}: {failure}"
            ) from failure
        if verdict != _GO:
            raise CheckpointError(f"a replicated load was ended: {verdict}")

    def _judge(self, turn: int) -> str:
        deadline = time.monotonic() + self._timeout_seconds
        for rank in range(self._world_size):
            try:
                report = self._get(f"{turn}/{rank}", max(0.1, deadline - time.monotonic()))
            except Exception:
                return f"rank {rank} has not read its part within {self._timeout_seconds:.0f} s"
            if report != _OK:
                return f"rank {rank} failed: {report}"
        return _GO

    def _get(self, key: str, timeout_seconds: float) -> str:
        self._store.wait([key], timedelta(seconds=timeout_seconds))
        return self._store.get(key).decode(errors="replace")


class BlockExchange:
    """Sends and receives blocks between pairs of ranks, a few at a time, in the order that all ranks keep.

    Args:
        group: The process group; None for the default one.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        # Which kind of memory the group can send: gloo and mpi the CPU's, others the device's only.
        config = str(dist.get_backend_config(group)) if hasattr(dist, "get_backend_config") else dist.get_backend(group)
        self._through_cpu = "gloo" in config or "mpi" in config
        self._pending: deque[tuple[list[Any], Callable[[], None]]] = deque()

    def send(self, data: memoryview, receivers: tuple[int, ...], on_done: Callable[[], None]) -> None:
        """Send a block.

        Args:
            data: Its bytes; they must stay as they are until `on_done`.
            receivers: Ranks in the group.
            on_done: Called when the bytes are no longer needed.
        """
        wire = self._wire(data)
        works = [dist.isend(wire, self._global(rank), group=self._group) for rank in receivers]
        self._push([*works, wire], on_done)

    def receive(self, data: memoryview, owner: int, on_done: Callable[[], None]) -> None:
        """Receive a block.

        Args:
            data: Where its bytes go.
            owner: The rank in the group that sends it.
            on_done: Called when they are there.
        """
        if self._through_cpu:
            wire = torch.frombuffer(data, dtype=torch.uint8)
            self._push([dist.irecv(wire, self._global(owner), group=self._group), wire], on_done)
            return
        device_wire = torch.empty(len(data), dtype=torch.uint8, device=_current_device())

        def copy_back() -> None:
            torch.frombuffer(data, dtype=torch.uint8).copy_(device_wire)
            on_done()

        self._push([dist.irecv(device_wire, self._global(owner), group=self._group), device_wire], copy_back)

    def finish(self) -> None:
        """Wait for all that is on its way."""
        while self._pending:
            self._pop()

    def _wire(self, data: memoryview) -> torch.Tensor:
        wire = torch.frombuffer(data, dtype=torch.uint8)
        return wire if self._through_cpu else wire.to(_current_device())

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)

    def _push(self, works: list[Any], on_done: Callable[[], None]) -> None:
        self._pending.append((works, on_done))
        if len(self._pending) > _IN_FLIGHT:
            self._pop()

    def _pop(self) -> None:
        works, on_done = self._pending.popleft()
        for work in works[:-1]:
            work.wait()
        on_done()


def _current_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())

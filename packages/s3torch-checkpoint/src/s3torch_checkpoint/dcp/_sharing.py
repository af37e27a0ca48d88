"""Which rank reads what, when several ranks need the same bytes: each block once, dealt out evenly; no network here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from .._region import cut_region
from ._payload import payload_of

BLOCK_BYTES = 32 * 2**20
# What each rank reads before the ranks pass it on: the bound of what a rank holds for others.
ROUND_BYTES = 512 * 2**20

Identity: TypeAlias = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """One block of a stored item that several ranks need.

    Args:
        item: Which item of the receiving rank's `SharePlan.items` it belongs to.
        block: Number of the block within the item.
        turn: The round in which it is read and passed on.
        owner: The rank that reads it, in the process group.
        receivers: The other ranks that need it.
    """

    item: int
    block: int
    turn: int
    owner: int
    receivers: tuple[int, ...]


@dataclass(slots=True)
class SharePlan:
    """One rank's part: the items it shares with others, and the blocks in the order in which all ranks pass them on.

    Args:
        load_id: New for each load: names its messages.
        rank: The rank.
        world_size: How many ranks there are.
        turns: How many rounds there are.
        items: The shared items.
        shares: The blocks that this rank reads for others or gets from them.
    """

    load_id: str
    rank: int
    world_size: int
    turns: int = 0
    items: list[Identity] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LoadNote:
    """What a rank's load plan carries between the ranks.

    Args:
        metadata_version: ETag of the metadata that the rank has read, of the whole job; None for what it saved alone.
        host: The machine it runs on.
        share_plan: What it shares, filled in by the coordinator.
    """

    metadata_version: str | None
    host: str
    share_plan: SharePlan | None = None


def identity_of(item: ReadItem) -> Identity:
    """What makes two load items need the same bytes in the same shape, and tells a rank's own items apart."""
    return (
        item.storage_index.fqn,
        _tuple(item.storage_index.offset),
        tuple(item.storage_offsets),
        tuple(item.lengths),
        item.dest_index.fqn,
        _tuple(item.dest_index.offset),
        tuple(item.dest_offsets),
    )


def block_sizes(item: ReadItem, info: Any) -> list[int]:
    """Lengths in bytes of the blocks in which an item is shared; `ItemReader` cuts the same."""
    payload = payload_of(info)
    is_whole = item.type == LoadItemType.BYTE_IO or payload is None or getattr(info, "transform_descriptors", None)
    if is_whole or payload is None:
        return [info.length]
    blocks = cut_region(
        payload.shape,
        tuple(item.storage_offsets),
        tuple(item.lengths),
        payload.dtype.itemsize,
        max_block_bytes=BLOCK_BYTES,
    )
    return [block.end - block.start for block in blocks]


def plan_sharing(
    plans: Sequence[LoadPlan],
    storage_data: Mapping[Any, Any],
    hosts: Sequence[str] | None,
    load_id: str,
    *,
    round_bytes: int = ROUND_BYTES,
) -> list[SharePlan]:
    """Deal the blocks that several ranks need over these ranks, the same number of bytes to each.

    Args:
        plans: The load plans of all ranks.
        storage_data: Where each item is stored.
        hosts: The ranks' machines, to share within each; None to share among all ranks.
        load_id: New for each load.
        round_bytes: How much a rank reads for others before it passes it on.

    Returns:
        A plan for each rank.
    """
    shared = [SharePlan(load_id, rank, len(plans)) for rank in range(len(plans))]
    load_bytes = [0] * len(plans)
    turns = 0
    for (_, identity), ranks in _needed_by(plans, hosts):
        if len(ranks) < 2:
            continue
        item = ranks[min(ranks)]
        info = storage_data.get(item.storage_index)
        if info is None:  # the rank itself says what is missing
            continue
        sizes = block_sizes(item, info)
        if 0 in sizes:  # of what has no bytes there is nothing to pass on, and no rank can send it
            continue
        for rank in ranks:
            shared[rank].items.append(identity)
        for block, size in enumerate(sizes):
            owner = min(ranks, key=lambda rank: (load_bytes[rank], rank))
            turn = load_bytes[owner] // round_bytes
            load_bytes[owner] += size
            turns = max(turns, turn + 1)
            receivers = tuple(rank for rank in ranks if rank != owner)
            for rank in ranks:
                shared[rank].shares.append(Share(len(shared[rank].items) - 1, block, turn, owner, receivers))
    for plan in shared:
        plan.turns = turns
        plan.shares.sort(key=lambda share: share.turn)  # stable: the same order on every rank
    return shared


def _needed_by(
    plans: Sequence[LoadPlan], hosts: Sequence[str] | None
) -> Iterator[tuple[tuple[str, Identity], dict[int, ReadItem]]]:
    groups: dict[tuple[str, Identity], dict[int, ReadItem]] = defaultdict(dict)
    for rank, plan in enumerate(plans):
        host = hosts[rank] if hosts is not None else ""
        for item in plan.items:
            groups[host, identity_of(item)].setdefault(rank, item)
    yield from groups.items()


def _tuple(size: Any) -> tuple[int, ...] | None:
    return None if size is None else tuple(size)

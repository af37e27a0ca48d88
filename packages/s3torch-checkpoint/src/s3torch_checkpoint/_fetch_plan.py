"""Which requests bring many byte ranges of many objects: overlaps once, small neighbours together, large ones alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

KiB = 2**10
MiB = 2**20

# Closing a gap of 512 KiB costs 6 ms at 90 MB/s, a request of its own 30 ms.
MAX_GAP_BYTES = 512 * KiB
# From here on a range fills enough of a part to be worth its own request, and needs no copy through a buffer.
ALONE_BYTES = 2 * MiB
MAX_JOINED_BYTES = 8 * MiB
OVERFETCH = 0.05


@dataclass(frozen=True, slots=True)
class Want:
    """A byte range `[start, end)` of one object that somebody needs."""

    key: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of one fetch, and the wants (by their index) that lie over it, the one that receives it first."""

    start: int
    end: int
    wants: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """One range to read; its segments are in order, disjoint, and begin and end with it."""

    key: str
    start: int
    end: int
    segments: tuple[Segment, ...]


def plan_fetches(
    wants: Sequence[Want],
    *,
    allowance_bytes: int = 0,
    max_gap_bytes: int = MAX_GAP_BYTES,
    alone_bytes: int = ALONE_BYTES,
    max_joined_bytes: int = MAX_JOINED_BYTES,
) -> list[Fetch]:
    """Plan the fewest sensible requests for a set of byte ranges.

    Each wanted byte is fetched once, however many wants overlap there. Segments shorter than `alone_bytes` are joined
    with their neighbours across gaps of at most `max_gap_bytes`, the smallest gaps first, as long as all gaps together
    stay within 5 % of what is needed.

    Args:
        wants: The ranges, in any order; empty ones need nothing.
        allowance_bytes: What is needed, when that is more than the wanted bytes (a tensor's stored length, with the
            frame around its payload).
        max_gap_bytes: The longest gap to fetch and throw away.
        alone_bytes: Length from which a segment is a request of its own.
        max_joined_bytes: The longest request that joins several segments.

    Returns:
        The requests, ordered by key and offset.
    """
    by_key: dict[str, list[int]] = defaultdict(list)
    for index, want in enumerate(wants):
        if not 0 <= want.start <= want.end:
            raise ValueError(f"a byte range needs 0 <= start <= end, got [{want.start}, {want.end}) of {want.key!r}")
        if want.start < want.end:
            by_key[want.key].append(index)
    segments = {key: _segments(wants, by_key[key]) for key in sorted(by_key)}
    needed = sum(segment.end - segment.start for parts in segments.values() for segment in parts)
    budget = int(max(needed, allowance_bytes) * (1 + OVERFETCH)) - needed
    joined = _affordable_joints(segments, budget, max_gap_bytes, alone_bytes)
    fetches: list[Fetch] = []
    for key, parts in segments.items():
        run: list[Segment] = []
        for index, segment in enumerate(parts):
            if run and ((key, index) not in joined or segment.end - run[0].start > max_joined_bytes):
                fetches.append(Fetch(key, run[0].start, run[-1].end, tuple(run)))
                run = []
            run.append(segment)
        fetches.append(Fetch(key, run[0].start, run[-1].end, tuple(run)))
    return fetches


def _segments(wants: Sequence[Want], indexes: list[int]) -> list[Segment]:
    """Cut the wants of one object where any of them starts or ends, so that each segment has one set of wants."""
    order = sorted(indexes, key=lambda index: (wants[index].start, wants[index].end, index))
    segments: list[Segment] = []
    position = 0
    while position < len(order):
        # A cluster: wants that touch each other through overlaps. Almost always it is one want.
        end = wants[order[position]].end
        stop = position + 1
        while stop < len(order) and wants[order[stop]].start < end:
            end = max(end, wants[order[stop]].end)
            stop += 1
        segments += _cut_cluster(wants, order[position:stop])
        position = stop
    return segments


def _cut_cluster(wants: Sequence[Want], cluster: list[int]) -> list[Segment]:
    if len(cluster) == 1:
        want = wants[cluster[0]]
        return [Segment(want.start, want.end, (cluster[0],))]
    cuts = sorted({cut for index in cluster for cut in (wants[index].start, wants[index].end)})
    segments: list[Segment] = []
    active: list[int] = []
    coming = iter(cluster)
    following = next(coming, None)
    for start, end in pairwise(cuts):
        active = [index for index in active if wants[index].end > start]
        while following is not None and wants[following].start <= start:
            active.append(following)
            following = next(coming, None)
        segments.append(Segment(start, end, tuple(active)))
    return segments


def _affordable_joints(
    segments: dict[str, list[Segment]], budget: int, max_gap_bytes: int, alone_bytes: int
) -> set[tuple[str, int]]:
    """Choose before which segments the gap is closed, the smallest gaps first, until the budget is spent."""
    gaps: list[tuple[int, str, int]] = []
    for key, parts in segments.items():
        for index in range(1, len(parts)):
            before, after = parts[index - 1], parts[index]
            gap = after.start - before.end
            if gap <= max_gap_bytes and max(before.end - before.start, after.end - after.start) < alone_bytes:
                gaps.append((gap, key, index))
    joined: set[tuple[str, int]] = set()
    for gap, key, index in sorted(gaps):
        if gap > budget:
            break
        budget -= gap
        joined.add((key, index))
    return joined

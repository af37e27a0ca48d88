"""Lists a prefix in parallel: finds where to cut it, and lists the ranges of keys in between at the same time.

S3 lists in the order of the UTF-8 bytes of keys, which is the order of Python's strings, and can start after any key.
Folders, or single keys where there are none, say where a range of keys may be cut so that about as much lies in each;
nothing depends on them being right.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from s3core import S3Client, S3Exception
from s3torch_datasets._background_listing import OnListed, OnPiece, ignore
from s3torch_datasets._filters import ObjectFilter
from s3torch_datasets._in_parallel import Report, call_in_parallel
from s3torch_datasets._key_cuts import find_key_cuts
from s3torch_datasets._page_selector import PageSelector

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_PLAIN_PAGES = 4
# Keys without folders are cut by asking for some dozens of them, which pays when many are to come.
_FLAT_PAGES = 20
_WANTED_CUTS = 16
_MAX_RANGES = 32  # two for each thread, since some are longer; the last page of each reaches into the next
_MAX_DEPTH = 6
_MAX_FOLDER_PAGES = 20


class _NotInOrder(Exception):
    """The store does not list in the order of keys, so that ranges of keys mean nothing to it."""


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys after `after`, up to and including `last`; None for no bound."""

    after: str
    last: str | None


def plan_ranges(cuts: Iterable[str], max_ranges: int, after: str) -> list[KeyRange]:
    """Returns ranges that together hold every key behind one once, in order, cut at some of the cuts.

    Args:
        cuts: Where ranges may end.
        max_ranges: Most ranges.
        after: The key that all of them lie behind.
    """
    ordered = sorted({cut for cut in cuts if cut > after})
    wanted = min(len(ordered), max_ranges - 1)
    bounds = [ordered[number * len(ordered) // wanted] for number in range(wanted)]
    return [KeyRange(first, last) for first, last in zip([after, *bounds], [*bounds, None], strict=True)]


def list_prefix(
    client: S3Client,
    bucket: str,
    prefix: str,
    object_filter: ObjectFilter,
    on_listed: OnListed,
    on_piece: OnPiece = ignore,
) -> PageSelector:
    """Lists all objects of a prefix: a few pages one by one, and what lies behind in parallel.

    Args:
        client: The client to list with.
        bucket: The bucket.
        prefix: Raw prefix of the keys.
        object_filter: Which objects to keep.
        on_listed: Called in this thread with the number of objects found since the last call.
        on_piece: Called in this thread with the objects of one page after the other, for as long as they are listed so.

    Returns:
        The objects in the order of a plain listing, and what was left out.
    """
    plain = PageSelector(bucket, object_filter)
    last_key = ""
    has_order = not bucket.endswith("--x-s3")  # directory buckets list in no order
    for number, page in enumerate(client.list_objects(bucket, prefix), 1):
        piece = PageSelector(bucket, object_filter)
        piece.add(page)
        plain.add_selector(piece)
        on_listed(len(page.keys))
        on_piece(piece.builder.build())
        has_order = has_order and _is_in_order([last_key, *page.keys])
        last_key = page.keys[-1] if page.keys else last_key
        if number in (_PLAIN_PAGES, _FLAT_PAGES) and has_order:
            lister = _Lister(client, bucket, prefix, object_filter, on_listed)
            try:
                cuts = lister.find_folders() if number == _PLAIN_PAGES else lister.find_keys(page.keys or [last_key])
            except S3Exception as error:  # what is allowed may be to list this prefix and no other
                logger.debug("s3://%s/%s is listed page by page: %s", bucket, prefix, error)
                continue
            ranges = plan_ranges(cuts, _MAX_RANGES, last_key)
            if len(ranges) > 1:
                try:
                    return lister.list_ranges(plain, ranges)
                except _NotInOrder:
                    on_listed(-lister.reported)
    return plain


def _is_in_order(keys: list[str]) -> bool:
    return all(one < other for one, other in pairwise(keys))


class _Lister:
    """Lists parts of a prefix at the same time."""

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        prefix: str,
        object_filter: ObjectFilter,
        on_listed: OnListed,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._filter = object_filter
        self._on_listed = on_listed
        self.reported = 0

    def find_folders(self) -> list[str]:
        """Returns folders below the prefix, from as many levels as it takes to find enough."""
        cuts: list[str] = []
        level = [self._prefix]
        for _ in range(_MAX_DEPTH):
            level = [folder for folders in self._in_parallel(self._find_folders, level) for folder in folders]
            cuts += level
            if not level or len(cuts) >= _WANTED_CUTS:
                break
        return cuts

    def find_keys(self, known: list[str]) -> list[str]:
        """Returns keys behind those of a page, from asking for one key after each of some texts."""

        def probe(points: list[str]) -> list[str | None]:
            return list(self._in_parallel(self._find_first, points))

        return find_key_cuts(probe, self._prefix, known, _WANTED_CUTS)

    def list_ranges(self, plain: PageSelector, ranges: list[KeyRange]) -> PageSelector:
        """Returns the objects that were listed before, and those of all ranges.

        Raises:
            _NotInOrder: The store does not list in the order of keys.
        """
        whole = PageSelector(self._bucket, self._filter)
        whole.add_selector(plain)
        # Each part is freed once it is added, while others are still listed: rows are not all held twice.
        with closing(self._in_parallel(self._list_range, ranges)) as parts:
            for part in parts:
                whole.add_selector(part)
        return whole

    def _find_folders(self, prefix: str, report: Report, stop: threading.Event) -> list[str]:
        found: list[str] = []
        for number, page in enumerate(self._client.list_objects(self._bucket, prefix, "/"), 1):
            found += page.common_prefixes
            # A page of keys alone says that there are no folders, or few: looking on would list all of it twice.
            if not page.common_prefixes or number == _MAX_FOLDER_PAGES or stop.is_set():
                break
        return found

    def _find_first(self, after: str, report: Report, stop: threading.Event) -> str | None:
        page = next(iter(self._client.list_objects(self._bucket, self._prefix, max_keys=1, start_after=after)))
        return page.keys[0] if page.keys else None

    def _list_range(self, keys: KeyRange, report: Report, stop: threading.Event) -> PageSelector:
        selector = PageSelector(self._bucket, self._filter)
        before = keys.after
        for page in self._client.list_objects(self._bucket, self._prefix, start_after=keys.after):
            if stop.is_set():
                break
            if not page.keys:  # no end: a page may hold less than was asked for, and others follow
                continue
            if not _is_in_order([before, *page.keys]):
                raise _NotInOrder
            before = page.keys[-1]
            count = len(page.keys)
            if keys.last is not None and before > keys.last:
                count = sum(key <= keys.last for key in page.keys)
            selector.add(page, 0, count)
            report(count)
            if count < len(page.keys) or before == keys.last:
                break
        return selector

    def _in_parallel(self, call: Callable[[T, Report, threading.Event], R], items: list[T]) -> Generator[R, None, None]:
        return call_in_parallel(call, items, self._client.s3client_config.concurrency, self._report)

    def _report(self, count: int) -> None:
        self.reported += count
        self._on_listed(count)

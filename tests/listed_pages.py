"""Listings of the counting server, page by page."""

from __future__ import annotations

from servers import CountingServer

LIST = "ListObjectsV2"
PAGE = 1000


def hold_page(server: CountingServer, number: int) -> None:
    """Hold one page, counted from 1, until `release`."""
    server.fault(operation=LIST, skip=number - 1, times=1, hold=True)


def listings(server: CountingServer) -> int:
    """How many pages were asked for."""
    return server.operations().count(LIST)

"""A listing of very many keys: page by page, and into the index of a dataset."""

from __future__ import annotations

from benchmarks._meter import Meter
from benchmarks._peers import Peer
from benchmarks._workloads._workload import Workload, check, is_thorough


def _list(peer: Peer, meter: Meter) -> None:
    folder = peer.target.folder("listed")
    found: list[tuple[str, int]] = []
    meter.start()
    is_whole = True
    for page in peer.list_keys("listed/"):
        meter.tick(len(page), 0)
        if is_thorough(peer):
            found += page
        if meter.elapsed_seconds > 4 * peer.target.scale.seconds:
            is_whole = False
            break
    meter.stop()
    check(not is_whole or meter.units == folder.count, f"{meter.units} keys were listed instead of {folder.count}")
    if is_thorough(peer):
        expected = [(folder[index].key, folder[index].size) for index in range(folder.count)]
        check(found == expected, "other keys or sizes were listed")


def _index(peer: Peer, meter: Meter) -> None:
    folder = peer.target.folder("listed")
    meter.start()
    dataset = peer.index_objects("listed/")
    meter.tick(len(dataset), 0)
    meter.stop()
    check(meter.units == folder.count, f"the dataset has {meter.units} objects instead of {folder.count}")
    if is_thorough(peer):
        is_right = all(dataset[index].key == folder[index].key for index in range(folder.count))
        check(is_right, "the dataset has other keys")


WORKLOADS = [
    Workload("list", "listing, page by page", "keys", "list_keys", _list, ("listed",)),
    Workload("index", "listing into a map-style dataset", "keys", "index_objects", _index, ("listed",)),
]

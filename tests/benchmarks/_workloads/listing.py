"""A listing of very many keys: page by page, and into the index of a dataset."""

from __future__ import annotations

from benchmarks._meter import Meter
from benchmarks._peers import Peer
from benchmarks._workloads._workload import Workload, check


def _list(peer: Peer, meter: Meter) -> None:
    expected = peer.target.folder("listed").count
    meter.start()
    is_whole = True
    for count in peer.count_keys("listed/"):
        meter.tick(count, 0)
        if meter.elapsed_seconds > 4 * peer.target.scale.seconds:
            is_whole = False
            break
    meter.stop()
    check(not is_whole or meter.units == expected, f"{meter.units} keys were listed instead of {expected}")


def _index(peer: Peer, meter: Meter) -> None:
    expected = peer.target.folder("listed").count
    meter.start()
    meter.tick(peer.count_objects("listed/"), 0)
    meter.stop()
    check(meter.units == expected, f"the dataset has {meter.units} objects instead of {expected}")


WORKLOADS = [
    Workload("list", "listing, page by page", "keys", "count_keys", _list, ("listed",)),
    Workload("index", "listing into a map-style dataset", "keys", "count_objects", _index, ("listed",)),
]

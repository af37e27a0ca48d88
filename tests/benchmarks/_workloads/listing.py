"""A listing of very many keys."""

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


WORKLOADS = [Workload("list", "listing", "keys", "count_keys", _list, ("listed",))]

"""Samples packed into shards: tar files, or what a peer has instead."""

from __future__ import annotations

from functools import partial

from benchmarks._data import sample_digest
from benchmarks._meter import Meter
from benchmarks._peers import Peer
from benchmarks._workloads._workload import Workload, check, drain


def _read(peer: Peer, meter: Meter, *, workers: int) -> None:
    meter.start()
    found = drain(peer.read_samples(workers), meter, peer.target, workers)
    meter.stop()
    keys = [key for key, _, _ in found]
    check(bool(keys), "nothing came")
    check(len(set(keys)) == len(keys), "a sample came twice")
    for one in found:
        check(one == sample_digest(peer.target, one[0]), f"{one[0]} came with other bytes")


WORKLOADS = [
    Workload(
        f"shards-{workers}w",
        f"100 kB samples in shards, {workers} workers",
        "objects",
        "read_samples",
        partial(_read, workers=workers),
        ("tar", "own-shards"),
        workers,
    )
    for workers in (0, 2)
]

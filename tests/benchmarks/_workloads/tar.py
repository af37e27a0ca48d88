"""Samples packed into shards: tar files, or what a peer has instead."""

from __future__ import annotations

from functools import partial

from benchmarks._data import sample_digest
from benchmarks._meter import Meter
from benchmarks._peers import Peer
from benchmarks._workloads._workload import Workload, check_samples, drain


def _read(peer: Peer, meter: Meter, *, workers: int) -> None:
    meter.start()
    found, is_whole = drain(peer.read_samples(workers), meter, peer.target, workers)
    meter.stop()
    count = peer.target.scale.tar_shards * peer.target.scale.samples_per_shard
    check_samples(found, is_whole, count, partial(sample_digest, peer.target))


WORKLOADS = [
    Workload(
        f"shards-{workers}w",
        f"100 kB samples in shards, {workers} workers",
        "objects",
        "read_samples",
        partial(_read, workers=workers),
        ("tar",),
        workers,
    )
    for workers in (0, 2)
]

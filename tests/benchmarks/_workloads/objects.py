"""Many objects through datasets: 100 kB each, and images of some megabytes."""

from __future__ import annotations

from functools import partial

from benchmarks._meter import Meter
from benchmarks._peers import Digest, Peer, digest
from benchmarks._workloads._workload import Workload, check, check_samples, drain
from servers.counting import GeneratedObjects


def _iterate(peer: Peer, meter: Meter, *, name: str, workers: int, is_shuffled: bool = False) -> None:
    meter.start()
    found, is_whole = drain(peer.iterate(peer.target.folder(name), workers, is_shuffled), meter, peer.target, workers)
    meter.stop()
    _check(found, is_whole, peer.target.folder(name), is_shuffled)


def _fetch(peer: Peer, meter: Meter, *, name: str, workers: int) -> None:
    meter.start()
    found, is_whole = drain(peer.fetch(peer.target.folder(name), workers), meter, peer.target, workers)
    meter.stop()
    _check(found, is_whole, peer.target.folder(name), is_shuffled=True)


def _first_batch(peer: Peer, meter: Meter, *, workers: int) -> None:
    meter.start()
    found, is_whole = drain(peer.iterate(peer.target.folder("small"), workers, False), meter, peer.target, workers, 1)
    meter.stop()
    meter.units = 1  # batch, not 64 objects
    _check(found, is_whole, peer.target.folder("small"))


def _check(found: list[Digest], is_whole: bool, folder: GeneratedObjects, is_shuffled: bool = False) -> None:
    def expected(key: str) -> Digest | None:
        index = folder.index(key)
        if index is None:
            return None
        made = folder[index]
        return digest(key, b"".join(made.views(0, made.size)))

    check_samples(found, is_whole, folder.count, expected)
    check(not is_shuffled or found != sorted(found), "what should be shuffled came in the order of the keys")


_SMALL, _IMAGES = "100 kB objects", "3-7 MB objects"

WORKLOADS = [
    *(
        Workload(
            f"small-iterable-{workers}w",
            f"{_SMALL}, iterable, {workers} workers",
            "objects",
            "iterate",
            partial(_iterate, name="small", workers=workers),
            ("small",),
            workers,
        )
        for workers in (0, 2, 4)
    ),
    Workload(
        "small-iterable-shuffled",
        f"{_SMALL}, iterable, shuffled",
        "objects",
        "iterate",
        partial(_iterate, name="small", workers=0, is_shuffled=True),
        ("small",),
    ),
    *(
        Workload(
            f"small-map-{workers}w",
            f"{_SMALL}, map-style, shuffled, {workers} workers",
            "objects",
            "fetch",
            partial(_fetch, name="small", workers=workers),
            ("small",),
            workers,
        )
        for workers in (0, 2, 4)
    ),
    *(
        Workload(
            f"images-iterable-{workers}w",
            f"{_IMAGES}, iterable, {workers} workers",
            "MB",
            "iterate",
            partial(_iterate, name="images", workers=workers),
            ("images",),
            workers,
        )
        for workers in (0, 2)
    ),
    *(
        Workload(
            f"first-batch-{workers}w",
            f"first batch of 64 {_SMALL}, {workers} workers",
            "times",
            "iterate",
            partial(_first_batch, workers=workers),
            ("small",),
            workers,
        )
        for workers in (0, 2)
    ),
]

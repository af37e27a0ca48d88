"""What a workload is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks._meter import Meter
from benchmarks._peers import Digest, Peer
from benchmarks._peers.local_disk import LocalDisk
from benchmarks._target import Target


class WrongBytesError(Exception):
    """A peer delivered, or wrote, other bytes than it should."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One thing to measure.

    Attributes:
        name: On the command line and in JSON.
        title: In the report.
        unit: What its rate counts: `objects`, `MB`, `keys` or `times`, per second.
        ability: The method of a peer that it takes.
        run: Does it, measures it, and checks the bytes after it was measured.
        data: Names of the data that must be there before.
        workers: Processes that work beside the first.
    """

    name: str
    title: str
    unit: str
    ability: str
    run: Callable[[Peer, Meter], None]
    data: tuple[str, ...] = ()
    workers: int = 0


def check(is_right: bool, what: str) -> None:
    """Insist on something.

    Raises:
        WrongBytesError: When it is not so.
    """
    if not is_right:
        raise WrongBytesError(what)


def is_thorough(peer: Peer) -> bool:
    """Whether time does not matter: reading a gigabyte back each time would take longer than what is measured."""
    return peer.target.scale.name == "quick"


def read_back(peer: Peer, name: str) -> bytes:
    """What a peer wrote under a name."""
    if isinstance(peer, LocalDisk):
        return bytes(peer.read(name))
    target = peer.target
    body: bytes = target.boto3_client().get_object(Bucket=target.bucket, Key=target.key(name))["Body"].read()
    return body


def names_below(peer: Peer, folder: str) -> list[str]:
    """The names of what a peer wrote in a folder, which ends with a slash."""
    target = peer.target
    if isinstance(peer, LocalDisk):
        return [folder + path.name for path in Path(target.local_directory, target.key(folder)).iterdir()]
    found = target.boto3_client().list_objects_v2(Bucket=target.bucket, Prefix=target.key(folder))
    return [entry["Key"].removeprefix(target.prefix) for entry in found["Contents"]]


def drain(
    batches: Iterator[list[Digest]], meter: Meter, target: Target, workers: int, most_batches: int | None = None
) -> tuple[list[Digest], bool]:
    """Take batches until there are no more, or for as long as the scale says.

    Workers finish their batches at about the same time, and a slow peer few of them: it ends after one of each.

    Returns:
        What came, and whether that was until there were no more.
    """
    found: list[Digest] = []
    is_whole = True
    for number, batch in enumerate(batches, 1):
        meter.tick(len(batch), sum(size for _, size, _ in batch))
        found += batch
        is_over = meter.elapsed_seconds > target.scale.seconds and number % max(workers, 1) == 0
        if is_over or number == most_batches:
            is_whole = False
            break
    if hasattr(batches, "close"):
        batches.close()
    return found, is_whole


def check_samples(
    found: Collection[Digest], is_whole: bool, count: int, expected: Callable[[str], Digest | None]
) -> None:
    """Insist on the right bytes of each, on each once, and, where nothing was cut short, on all of them.

    Args:
        found: What came.
        is_whole: Whether that was until there were no more.
        count: How many there are.
        expected: What the one of a key should be, or None when there is none.

    Raises:
        WrongBytesError: When it is not so.
    """
    keys = {key for key, _, _ in found}
    check(bool(found), "nothing came")
    check(len(keys) == len(found), "the same came twice")
    for one in found:
        check(one == expected(one[0]), f"{one[0]} came with other bytes, or is not there")
    check(not is_whole or len(keys) == count, f"{len(keys)} came instead of {count}")

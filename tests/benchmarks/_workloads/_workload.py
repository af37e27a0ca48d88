"""What a workload is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks._meter import Meter
from benchmarks._peers import Digest, Peer
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


def drain(
    batches: Iterator[list[Digest]], meter: Meter, target: Target, workers: int, most_batches: int | None = None
) -> list[Digest]:
    """Take batches until there are no more, or for as long as the scale says.

    Workers finish their batches at about the same time, and a slow peer few of them: it ends after one of each.
    """
    found: list[Digest] = []
    for number, batch in enumerate(batches, 1):
        meter.tick(len(batch), sum(size for _, size, _ in batch))
        found += batch
        is_over = meter.elapsed_seconds > target.scale.seconds and number % max(workers, 1) == 0
        if is_over or number == most_batches:
            break
    if hasattr(batches, "close"):
        batches.close()
    return found

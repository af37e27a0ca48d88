"""From records of rounds to one line for each cell."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks._peers import MAIN_PEER, NAMES, library_of
from benchmarks._peers._loading import CONCURRENCY
from benchmarks._workloads import WORKLOADS, Workload

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Cell:
    """A workload of a peer in a setting, over all rounds; numbers are medians.

    Attributes:
        setting: Where it was measured.
        workload: What.
        peer: Who.
        reason: Why there are no numbers, or empty.
        is_error: Whether that is because something went wrong.
        rates: Of all rounds, in the workload's unit per second.
        first_seconds: To the first progress; None where the only one was at the end.
        p50_seconds: Between one progress and the next.
        p99_seconds: The same.
        cpu_seconds: In all.
        cpu_seconds_per_unit: Of the workload's unit.
        cpu_seconds_per_gib: Of the bytes needed.
        peak_rss_bytes: The most memory.
        requests: That the server counted.
        most_in_flight: Of these at once, or somewhat more: the sum of what each of the server's processes had at most.
        bytes_sent_ratio: Bytes of bodies in both directions over bytes needed.
    """

    setting: str
    workload: Workload
    peer: str
    reason: str = ""
    is_error: bool = False
    rates: Sequence[float] = ()
    first_seconds: float | None = None
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    cpu_seconds: float | None = None
    cpu_seconds_per_unit: float | None = None
    cpu_seconds_per_gib: float | None = None
    peak_rss_bytes: float | None = None
    requests: float | None = None
    most_in_flight: float | None = None
    bytes_sent_ratio: float | None = None

    @property
    def rate(self) -> float | None:
        """The median rate."""
        return statistics.median(self.rates) if self.rates else None


def summarize(results: Mapping[str, Any]) -> list[Cell]:
    """One cell for each workload and peer of each setting, in the order of the report."""
    grouped: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for record in results["records"]:
        grouped.setdefault((record["setting"], record["workload"], record["peer"]), []).append(record)
    cells = [_cell(*key, records) for key, records in grouped.items() if key[1] in WORKLOADS]
    workloads, settings = list(WORKLOADS), list(dict.fromkeys(cell.setting for cell in cells))
    return sorted(
        cells,
        key=lambda c: (settings.index(c.setting), workloads.index(c.workload.name), NAMES.index(library_of(c.peer))),
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """A workload that ours and the main peer both could do."""

    ours: Cell
    theirs: Cell
    our_rate: float
    their_rate: float

    @property
    def gain(self) -> float:
        """How many times as fast ours is."""
        return self.our_rate / self.their_rate


def beside_main_peer(cells: Sequence[Cell]) -> Iterator[Pair]:
    """Ours with the main peer, setting by setting, in the order of the report."""
    found = {(cell.setting, cell.workload.name): cell for cell in cells if cell.peer == MAIN_PEER}
    for ours in cells:
        theirs = found.get((ours.setting, ours.workload.name))
        if ours.peer == "ours" and ours.rate and theirs is not None and theirs.rate:
            yield Pair(ours, theirs, ours.rate, theirs.rate)


def limit(results: Mapping[str, Any], cell: Cell) -> float | None:
    """The rate that `CONCURRENCY` requests in flight could reach at best, where that is known."""
    if cell.setting != "shaped" or not cell.workload.name.startswith("small"):
        return None
    seconds: float = results["latency_seconds"] + 100_000 / results["pace_bytes_per_second"]
    return CONCURRENCY / seconds


def _has_first(workload: str, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there was progress before the end, or the first progress is what was measured."""
    return workload.startswith("first-batch") or all(
        record["first_seconds"] is not None and record["first_seconds"] < record["seconds"] for record in records
    )


def _cell(setting: str, workload: str, peer: str, records: Sequence[Mapping[str, Any]]) -> Cell:
    whole = [record for record in records if "rate" in record]
    failed = [record for record in records if "rate" not in record]
    if failed:
        reason = failed[0].get("cannot") or failed[0].get("error", "no result")
        return Cell(setting, WORKLOADS[workload], peer, reason, is_error="cannot" not in failed[0])

    def median(name: str) -> float | None:
        found = [record[name] for record in whole if record.get(name) is not None]
        return statistics.median(found) if found else None

    def quotient(amount: str, basis: str) -> float | None:
        found = [
            record[amount] / record[basis] for record in whole if record.get(basis) and record.get(amount) is not None
        ]
        return statistics.median(found) if found else None

    sent, received = quotient("bytes_sent", "needed_bytes"), quotient("bytes_received", "needed_bytes")
    cpu_seconds_per_byte = quotient("cpu_seconds", "needed_bytes")
    return Cell(
        setting,
        WORKLOADS[workload],
        peer,
        rates=[record["rate"] for record in whole],
        first_seconds=median("first_seconds") if _has_first(workload, whole) else None,
        p50_seconds=median("p50_seconds"),
        p99_seconds=median("p99_seconds"),
        cpu_seconds=median("cpu_seconds"),
        cpu_seconds_per_unit=statistics.median(
            record["cpu_seconds"] / (record["rate"] * record["seconds"]) for record in whole
        ),
        cpu_seconds_per_gib=None if cpu_seconds_per_byte is None else cpu_seconds_per_byte * _GIB,
        peak_rss_bytes=median("peak_rss_bytes"),
        requests=median("requests"),
        most_in_flight=median("most_in_flight"),
        bytes_sent_ratio=None if sent is None or received is None else sent + received,
    )

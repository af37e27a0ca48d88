"""The report in Markdown: a table for each workload, and one of ratios over all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from benchmarks._peers import MAIN_PEER
from benchmarks._peers._loading import CONCURRENCY
from benchmarks._summary import Cell, beside_main_peer, limit, summarize

_COLUMNS = (
    "",
    "rate",
    "spread",
    "rounds",
    "ours is",
    "CPU s/GiB",
    "peak MiB",
    "requests",
    "in flight",
    "bytes moved / needed",
    "first",
    "p50",
    "p99",
)


def write_report(results: Mapping[str, Any]) -> str:
    """The whole report."""
    cells = summarize(results)
    return "\n".join([*_head(results), *_beside(cells), *_ratios(cells), *_tables(results, cells)]) + "\n"


def _head(results: Mapping[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    yield "# Benchmarks"
    yield ""
    yield (
        f"{results['made']}, {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}; scale `{results['scale']}`. "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + "."
    )
    yield ""
    yield (
        f"{_settings(results)} "
        "Each measurement is a fresh process, and peers take turns. Rates are medians, the spread is from the slowest "
        "round to the fastest; *ours is* says how many times as fast as this row ours is. CPU time is the client's, "
        "in all its processes. *In flight* are the most requests that each process of the server had at once, in sum. "
        "Memory is the most that was resident, workers included."
    )
    yield ""


def _settings(results: Mapping[str, Any]) -> str:
    store = results.get("store")
    if store is not None:
        where = f" at {store['endpoint']}" if store["endpoint"] else ""
        return f"Setting `remote`: {store['uri']} in {store['region']}{where}."
    return (
        f"Setting `shaped`: a local server that answers after {results['latency_seconds'] * 1000:.0f} ms and moves at "
        f"most {results['pace_bytes_per_second'] / 1e6:.0f} MB/s a connection; `loopback`: the same without either."
    )


def _beside(cells: Sequence[Cell]) -> Iterator[str]:
    """What it gains and what it costs to change from the main peer."""
    for setting, pairs in groupby(beside_main_peer(cells), key=lambda pair: pair.ours.setting):
        yield f"## {setting}: ours beside {MAIN_PEER}"
        yield ""
        yield from _row(["", "ours", MAIN_PEER, "rounds", "rate", "CPU time", "peak memory"])
        yield from _row(["---", *["---:"] * 6])
        for pair in pairs:
            ours, theirs, unit = pair.ours, pair.theirs, pair.ours.workload.unit
            rates = _rate(pair.our_rate, unit), _rate(pair.their_rate, unit)
            rounds = " and ".join(dict.fromkeys(str(len(cell.rates)) for cell in (ours, theirs)))
            cpu = _quotient(ours.cpu_seconds_per_unit, theirs.cpu_seconds_per_unit)
            memory = _quotient(ours.peak_rss_bytes, theirs.peak_rss_bytes)
            yield from _row([ours.workload.title, *rates, rounds, _ratio(ours, theirs), cpu, memory])
        yield ""


def _quotient(ours: float | None, theirs: float | None) -> str:
    return "-" if ours is None or not theirs else f"{ours / theirs:.2f} x"


def _ratios(cells: Sequence[Cell]) -> Iterator[str]:
    peers = list(dict.fromkeys(cell.peer for cell in cells if cell.peer != "ours"))
    ours = _ours(cells)
    if not ours or not peers or peers == [MAIN_PEER]:  # which has a table of its own
        return
    for setting, some in groupby(cells, key=lambda cell: cell.setting):
        yield f"## {setting}: how many times as fast ours is"
        yield ""
        yield from _row(["", *peers])
        yield from _row(["---", *["---:"] * len(peers)])
        for _, row in groupby(some, key=lambda cell: cell.workload.name):
            found = {cell.peer: cell for cell in row}
            first = next(iter(found.values()))
            ratios = [_ratio(ours.get((setting, first.workload.name)), found.get(peer)) for peer in peers]
            yield from _row([first.workload.title, *ratios])
        yield ""


def _tables(results: Mapping[str, Any], cells: Sequence[Cell]) -> Iterator[str]:
    ours = _ours(cells)
    for (setting, _), some in groupby(cells, key=lambda cell: (cell.setting, cell.workload.name)):
        rows = list(some)
        workload = rows[0].workload
        yield f"### {setting}: {workload.title}"
        yield ""
        yield from _row(_COLUMNS)
        yield from _row(["---", *["---:"] * (len(_COLUMNS) - 1)])
        for cell in rows:
            yield from _row(_cells(cell, ours.get((setting, workload.name))))
        most = limit(results, rows[0])
        if most is not None:
            yield from _row(
                [f"limit of {CONCURRENCY} in flight", _rate(most, workload.unit), *[""] * (len(_COLUMNS) - 2)]
            )
        yield ""
        for cell in rows:
            if cell.reason:
                yield f"- {cell.peer}: {'failed: ' if cell.is_error else ''}{cell.reason}"
        yield ""


def _cells(cell: Cell, ours: Cell | None) -> list[str]:
    if cell.rate is None:
        return [cell.peer, "failed" if cell.is_error else "-", *[""] * (len(_COLUMNS) - 2)]
    unit = cell.workload.unit
    is_bytes = cell.cpu_seconds_per_gib is not None and unit != "times"
    return [
        cell.peer,
        _rate(cell.rate, unit),
        f"{_number(min(cell.rates))}-{_number(max(cell.rates))}",
        str(len(cell.rates)),
        "" if cell.peer == "ours" else _ratio(ours, cell),
        f"{cell.cpu_seconds_per_gib:.2f}" if is_bytes else f"{cell.cpu_seconds:.2f} s in all",
        "" if cell.peak_rss_bytes is None else f"{cell.peak_rss_bytes / 2**20:,.0f}",
        "" if cell.requests is None else f"{cell.requests:,.0f}",
        "" if cell.most_in_flight is None else f"{cell.most_in_flight:,.0f}",
        "" if cell.bytes_sent_ratio is None else f"{cell.bytes_sent_ratio:.2f}",
        _milliseconds(cell.first_seconds),
        _milliseconds(cell.p50_seconds),
        _milliseconds(cell.p99_seconds),
    ]


def _ours(cells: Iterable[Cell]) -> dict[tuple[str, str], Cell]:
    return {(cell.setting, cell.workload.name): cell for cell in cells if cell.peer == "ours"}


def _ratio(ours: Cell | None, peer: Cell | None) -> str:
    if ours is None or peer is None or not ours.rate or not peer.rate:
        return "-"
    return f"{ours.rate / peer.rate:.2f} x"


def _row(columns: Iterable[str]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"


def _rate(rate: float, unit: str) -> str:
    return f"{_number(rate)} {'/s' if unit == 'times' else unit + '/s'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{_number(seconds * 1000)} ms"

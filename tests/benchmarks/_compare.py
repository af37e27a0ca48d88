"""Two runs side by side: which cells changed by more than the rounds of either differ among themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks._summary import Cell, summarize

_ENOUGH_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Change:
    """A cell in two runs.

    Attributes:
        before: In the first run.
        after: In the second.
    """

    before: Cell
    after: Cell

    @property
    def ratio(self) -> float:
        """The second rate over the first."""
        return (self.after.rate or 0.0) / (self.before.rate or 1.0)

    @property
    def has_enough_rounds(self) -> bool:
        """Whether the rounds of either run say how much they differ among themselves."""
        return min(len(self.before.rates), len(self.after.rates)) >= _ENOUGH_ROUNDS

    @property
    def is_clear(self) -> bool:
        """Whether the rounds of the two runs do not overlap, and are enough to say so."""
        before, after = self.before.rates, self.after.rates
        return self.has_enough_rounds and (min(after) > max(before) or max(after) < min(before))

    @property
    def verdict(self) -> str:
        """What became of the rate, in words."""
        if not self.has_enough_rounds:
            return "too few rounds to say"
        return ("faster" if self.ratio > 1 else "slower") if self.is_clear else "within the spread"


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Every cell that has a rate in both runs."""
    earlier = {_key(cell): cell for cell in summarize(before)}
    pairs = [(earlier.get(_key(cell)), cell) for cell in summarize(after)]
    return [Change(old, new) for old, new in pairs if old is not None and old.rates and new.rates]


def regressions(changes: list[Change], tolerance: float) -> list[Change]:
    """The changes of our own cells that are clear, and worse by more than the tolerance."""
    return [
        change
        for change in changes
        if change.before.peer == "ours" and change.is_clear and change.ratio < 1.0 - tolerance
    ]


def losses(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[Cell, str]]:
    """Our own cells that had a rate before and have none now, and why."""
    later = {_key(cell): cell for cell in summarize(after)}
    gone = [(cell, later.get(_key(cell))) for cell in summarize(before) if cell.peer == "ours" and cell.rates]
    return [
        (cell, "it was not measured" if now is None else now.reason)
        for cell, now in gone
        if now is None or not now.rates
    ]


def write_comparison(changes: list[Change]) -> Iterator[str]:
    """A table in Markdown, line by line."""
    yield "| setting | workload | peer | before | after | ratio | |"
    yield "| --- | --- | --- | ---: | ---: | ---: | --- |"
    for change in changes:
        cell = change.after
        yield (
            f"| {cell.setting} | {cell.workload.name} | {cell.peer} | {change.before.rate:,.1f} | {cell.rate:,.1f} "
            f"| {change.ratio:.2f} | {change.verdict} |"
        )


def _key(cell: Cell) -> tuple[str, str, str]:
    return cell.setting, cell.workload.name, cell.peer

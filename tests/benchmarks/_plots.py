"""The report in pictures, as SVG and PNG: the gain over the main peer, and for each setting every peer's rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._peers import MAIN_PEER, NAMES, library_of
from benchmarks._summary import Cell, beside_main_peer, summarize

_COLUMNS = 4


def write_plots(results: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw the rates of every workload, and return the files.

    Args:
        results: Of a run.
        directory: Where to put `gain` and a picture named after each setting.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    cells = summarize(results)
    files = []

    def save(figure: Any, name: str) -> None:
        for suffix in ("svg", "png"):
            files.append(directory / f"{name}.{suffix}")
            figure.savefig(files[-1])
        pyplot.close(figure)

    gains = _gains(cells)
    if gains:
        titles = list(dict.fromkeys(title for bars in gains.values() for title in bars))
        figure, axis = pyplot.subplots(figsize=(9, 1 + 0.34 * len(titles)))
        _draw_gains(axis, gains, titles)
        figure.tight_layout()
        save(figure, "gain")
    for setting in dict.fromkeys(cell.setting for cell in cells):
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell.setting == setting and cell.rates:
                groups.setdefault(cell.workload.name, []).append(cell)
        if not groups:
            continue
        rows = -(-len(groups) // _COLUMNS)
        figure, axes = pyplot.subplots(rows, _COLUMNS, figsize=(4.2 * _COLUMNS, 2.6 * rows), squeeze=False)
        for axis in axes.flat[len(groups) :]:
            axis.remove()
        for axis, group in zip(axes.flat, groups.values(), strict=False):
            _draw(axis, group)
        figure.suptitle(f"{setting}: rate, more is better")
        figure.tight_layout(rect=(0, 0, 1, 0.98))
        save(figure, setting)
    return files


def _gains(cells: list[Cell]) -> dict[str, dict[str, float]]:
    """How many times as fast ours is as the main peer, by setting and title of the workload."""
    gains: dict[str, dict[str, float]] = {}
    for pair in beside_main_peer(cells):
        gains.setdefault(pair.ours.setting, {})[pair.ours.workload.title] = pair.gain
    return gains


def _draw_gains(axis: Any, gains: Mapping[str, Mapping[str, float]], titles: list[str]) -> None:
    height = 0.8 / len(gains)
    for number, (setting, bars) in enumerate(gains.items()):
        places = [titles.index(title) + (number - (len(gains) - 1) / 2) * height for title in bars]
        drawn = axis.barh(places, list(bars.values()), height, label=setting)
        axis.bar_label(drawn, [f" {value:.3g} x" for value in bars.values()], fontsize=6)
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=1)
    axis.margins(x=0.1)
    axis.set_yticks(range(len(titles)), titles, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel(f"times as fast as {MAIN_PEER}", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.legend(fontsize=7)


def _draw(axis: Any, cells: list[Cell]) -> None:
    names = [cell.peer for cell in cells]
    rates = [cell.rate or 0.0 for cell in cells]
    below = [rate - min(cell.rates) for rate, cell in zip(rates, cells, strict=True)]
    above = [max(cell.rates) - rate for rate, cell in zip(rates, cells, strict=True)]
    colours = [f"C{NAMES.index(library_of(name)) % 10}" for name in names]
    axis.barh(names, rates, xerr=[below, above], color=colours, error_kw={"elinewidth": 1})
    axis.invert_yaxis()
    unit = cells[0].workload.unit
    axis.set_title(cells[0].workload.title, fontsize=8)
    axis.set_xlabel("per second" if unit == "times" else f"{unit}/s", fontsize=7)
    axis.tick_params(labelsize=7)

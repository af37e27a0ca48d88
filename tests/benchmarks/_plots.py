"""The report in pictures: for each setting one bar a peer and workload, as SVG and PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._peers import NAMES, library_of
from benchmarks._summary import Cell, summarize

_COLUMNS = 4


def write_plots(results: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw the rates of every workload, and return the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    cells = summarize(results)
    files = []
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
        for suffix in ("svg", "png"):
            files.append(directory / f"{setting}.{suffix}")
            figure.savefig(files[-1])
        pyplot.close(figure)
    return files


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

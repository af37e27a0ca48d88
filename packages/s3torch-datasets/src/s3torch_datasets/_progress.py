"""A progress bar for work that takes longer than a second, shown by one process of a job."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from s3torch_datasets._place import find_rank, find_worker

_DELAY_SECONDS = 1.0


def progress_bar(description: str, unit: str, *, shown: bool | None, total: int | None = None) -> Any:
    """Returns a tqdm bar that appears after a second.

    Args:
        description: What is going on.
        unit: What is counted.
        shown: True or False to show it or not; None to show it in rank 0 and worker 0, when stderr is a terminal.
        total: How many there will be, where that is known.
    """
    first = find_rank()[0] == 0 and find_worker()[0] == 0
    disable = (None if first else True) if shown is None else not (shown and first)
    return tqdm(desc=description, unit=unit, unit_scale=True, total=total, delay=_DELAY_SECONDS, disable=disable)

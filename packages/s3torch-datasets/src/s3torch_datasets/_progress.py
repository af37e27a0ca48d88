"""A progress bar for work that takes longer than a second, shown by one process of a job."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from s3torch_datasets._place import find_rank, find_worker

_DELAY_SECONDS = 1.0


def progress_bar(description: str, unit: str, *, shown: bool, total: int | None = None, is_kept: bool = True) -> Any:
    """Returns a tqdm bar that appears after a second, in rank 0 and worker 0.

    Args:
        description: What is going on.
        unit: What is counted.
        shown: False for no bar in any process.
        total: How many there will be, where that is known.
        is_kept: Whether it stays on the screen at the end.
    """
    is_first = find_rank()[0] == 0 and find_worker()[0] == 0
    return tqdm(
        desc=description,
        unit=unit,
        unit_scale=True,
        total=total,
        leave=is_kept,
        delay=_DELAY_SECONDS,
        # Where a bar is wanted, `TQDM_DISABLE` has the last word, which it has only when `disable` is not given.
        **({} if shown and is_first else {"disable": True}),
    )

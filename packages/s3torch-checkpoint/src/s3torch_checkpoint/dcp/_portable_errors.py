"""Errors that reach the other ranks: torch pickles one rank's error for all, and hangs the job where that fails.

See `_DistWrapper` in
https://github.com/pytorch/pytorch/blob/v2.4.0/torch/distributed/checkpoint/utils.py#L157-L170: an error that cannot be
pickled is raised by `gather_object` on its rank alone, one that cannot be rebuilt on the coordinator alone, while the
others wait in the collective.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from .._errors import CheckpointError


@contextmanager
def portable_errors() -> Iterator[None]:
    """Turn an error of a planner or a stream transform that does not pickle into one that does, of the same text."""
    try:
        yield
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise CheckpointError(f"{type(error).__name__}: {error}") from error
        raise

"""A transaction of fsspec that is over at its end, also where one of its files cannot be committed."""

from __future__ import annotations

from typing import Any

from fsspec.transaction import Transaction


class WholeTransaction(Transaction):  # type: ignore[misc]  # fsspec ships no type information
    """Ends for its filesystem whatever happens.

    In many versions of fsspec the filesystem stays in a transaction whose commit has failed: what is written from then
    on waits for an end that never comes.
    """

    def complete(self, commit: bool = True) -> Any:
        """Commit the files, or give them up.

        Args:
            commit: Which of both.
        """
        filesystem = self.fs
        try:
            return super().complete(commit)
        finally:
            if filesystem is not None:
                filesystem._intrans = False
                filesystem._transaction = None

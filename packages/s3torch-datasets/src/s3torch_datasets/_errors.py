"""What a dataset does when an object cannot be read or transformed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Literal

from s3core import ObjectChangedError, S3Exception

logger = logging.getLogger(__name__)


class Skip:
    """The type of `SKIP`."""

    def __repr__(self) -> str:
        return "SKIP"

    def __reduce__(self) -> str:
        return "SKIP"


SKIP: Final = Skip()
"""What an `on_error` callable returns to leave the object out."""

OnError = Literal["raise", "skip"] | Callable[[Exception, str], Any]


def check_on_error(on_error: OnError) -> None:
    """Raises ValueError for anything that is no policy."""
    if on_error not in ("raise", "skip") and not callable(on_error):
        raise ValueError(f'on_error must be "raise", "skip" or a callable(error, uri), got {on_error!r}')


class ErrorHandler:
    """Applies a policy, and counts what it left out.

    Args:
        on_error: "raise"; "skip"; or a callable `(error, uri)` that returns the sample to use instead, or `SKIP`, or
            raises.
    """

    def __init__(self, on_error: OnError) -> None:
        self._on_error = on_error
        self._last = ""
        self.skipped = 0

    def __call__(self, error: Exception, uri: str) -> Any:
        """Returns a sample to use instead, or `SKIP`; raises the error, which then names the object, otherwise."""
        name_object(error, uri)
        if self._on_error == "raise":
            raise error
        if self._on_error == "skip":
            outcome: Any = SKIP
        else:
            assert callable(self._on_error)
            try:
                outcome = self._on_error(error, uri)
            except StopIteration as stopped:
                raise replace_stop_iteration(stopped, "on_error", uri) from stopped
        if outcome is SKIP:
            self.skipped += 1
            self._last = f"{uri}: {type(error).__name__}: {error}"
            logger.warning("skipped %s (%d so far): %s: %s", uri, self.skipped, type(error).__name__, error)
        return outcome

    def nothing_left(self, count: int) -> S3Exception:
        """Returns the error for a batch of which every object was left out."""
        return S3Exception(
            f"on_error left out every one of {count} objects that were asked for; the last: {self._last}"
        )


def replace_stop_iteration(error: Exception, source: str, uri: str) -> Exception:
    """Returns the error, or another one for StopIteration: passed on, that would silently end the epoch."""
    if not isinstance(error, StopIteration):
        return error
    replaced = RuntimeError(f"{source} raised StopIteration for {uri}")
    replaced.__cause__ = error
    return replaced


def name_object(error: BaseException, uri: str) -> None:
    """Adds the object to an error that does not name it."""
    note = f"while reading {uri}"
    if isinstance(error, ObjectChangedError):
        note = f"{uri} is not the version that was listed; make the dataset, or its manifest, anew to read this one"
    elif uri in str(error):
        return
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)

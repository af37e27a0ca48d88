"""An index that several processes need: one of them makes it, and the others have its pieces meanwhile."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from s3torch_datasets._background_listing import MakeIndex, OnListed, OnPiece, ignore
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._piece_file import PieceReader, PieceWriter

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CAN_SHARE = fcntl is not None

_POLL_SECONDS = 0.005


def make_once(
    path: str,
    make: MakeIndex,
    find_made: Callable[[], ObjectIndex | None],
    keep: Callable[[ObjectIndex], ObjectIndex],
    on_listed: OnListed,
    on_piece: OnPiece,
) -> ObjectIndex:
    """Makes an index, or waits for the process that does; when that fails or is killed, the next one makes it.

    Args:
        path: Begins the names of the files that the processes have in common: a lock, and pieces.
        make: Makes the index, as `BackgroundListing` has it.
        find_made: Returns the index that another process has made, if there is one.
        keep: Called with the new index before others look for it; returns the one to use.
        on_listed: Called with the number of objects found since the last call, whoever finds them.
        on_piece: Called with the pieces of the index, from its beginning on, whoever makes them.
    """
    pieces_path = f"{path}.pieces"
    may_tell = True
    with closing(PieceReader(pieces_path)) as reader:
        while True:
            with try_lock(f"{path}.lock") as is_mine:
                if is_mine:
                    made = find_made()
                    if made is not None:
                        return made
                    # After a process that failed, of whose pieces some were told, the rest comes with the whole.
                    return keep(_make_for_all(pieces_path, make, on_listed, on_piece if may_tell else ignore))
            may_tell = False
            on_listed(0)  # for its exception, when nobody wants the index any more
            for count, piece in reader.read():
                on_listed(count)
                if piece is not None:
                    on_piece(piece)
            time.sleep(_POLL_SECONDS)


def _make_for_all(path: str, make: MakeIndex, on_listed: OnListed, on_piece: OnPiece) -> ObjectIndex:
    with closing(PieceWriter(path)) as writer:

        def tell_listed(count: int) -> None:
            writer.write(count)
            on_listed(count)

        def tell_piece(piece: ObjectIndex) -> None:
            writer.write(0, piece)
            on_piece(piece)

        return make(tell_listed, tell_piece)


@contextlib.contextmanager
def try_lock(path: str) -> Iterator[bool]:
    """Says whether the lock is had, which one process can have; all have it where nothing can be locked.

    Args:
        path: Where the lock's file is, or will be.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:  # The folder cannot be written.
        yield True
        return
    try:
        is_mine = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_mine = False
        except OSError:  # Lustre and NFS may be mounted without locks.
            pass
        yield is_mine
    finally:
        # Closing alone would leave it to a child that was forked meanwhile, which shares the open file.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

"""The base of the package's files: `io.BufferedIOBase`, which type checkers also take for the `IO[bytes]` of torch."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

    # As typeshed declares `io.BufferedReader`: without it, `torch.save(state, writer)` is an error to mypy.
    class BinaryFile(io.BufferedIOBase, BinaryIO):
        """A binary file."""

        def __enter__(self) -> BinaryFile: ...
else:
    BinaryFile = io.BufferedIOBase

"""`torch.save` of one tensor within a data object, without a checksum that nobody looks at.

torch computes the CRC-32 of each record of an archive, for programs that unzip it: a sixth of the time of a save. It
never checks one, and no program finds an archive in the midst of a data object to unzip it. The store checks every part
on its way by our own checksum.
https://docs.pytorch.org/docs/stable/generated/torch.serialization.set_crc32_options.html
"""

from __future__ import annotations

from contextvars import copy_context
from functools import cache
from typing import IO

import torch
from torch import serialization


def save_tensor(tensor: torch.Tensor, stream: IO[bytes]) -> None:
    """Write a tensor as `torch.save` does.

    Args:
        tensor: What to write.
        stream: Where to; it needs `write` and `flush`.
    """
    if _is_option_of_a_context():
        copy_context().run(_save_without_checksum, tensor, stream)
    else:
        torch.save(tensor, stream)


def _save_without_checksum(tensor: torch.Tensor, stream: IO[bytes]) -> None:
    serialization.set_crc32_options(False)
    torch.save(tensor, stream)


@cache
def _is_option_of_a_context() -> bool:
    """Whether the option can be set for one save alone: not in all versions of torch, the oldest have none."""
    if not hasattr(serialization, "set_crc32_options"):
        return False
    before = serialization.get_crc32_options()
    copy_context().run(serialization.set_crc32_options, not before)
    if serialization.get_crc32_options() == before:
        return True
    serialization.set_crc32_options(before)
    return False

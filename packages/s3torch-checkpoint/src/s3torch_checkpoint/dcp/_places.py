"""The memory that the destinations of a load lie in: what two of them share must not be filled by both at a time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class _Stretches:
    """Stretches of one device's memory, in their order; no two of them overlap.

    Args:
        starts: Their first addresses.
        ends: The addresses behind them.
        owners: Whose each is; None for what several share.
    """

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    owners: list[Hashable | None] = field(default_factory=list)


class Places:
    """Which memory is a destination's already."""

    def __init__(self) -> None:
        self._devices: dict[torch.device, _Stretches] = defaultdict(_Stretches)

    def take(self, owner: Hashable, tensor: torch.Tensor) -> bool:
        """Note whose the memory of a tensor is, from its first element to its last one.

        Args:
            owner: The destination; the parts of one may lie between each other, as columns do.
            tensor: It, or a part of it.

        Returns:
            Whether none of it was noted for another one before.
        """
        is_free = True
        for device, start, end in _memory_of(tensor):
            noted = self._devices[device]
            low, high = bisect_right(noted.ends, start), bisect_left(noted.starts, end)
            is_mine = True
            if low < high:
                is_mine = all(there == owner for there in noted.owners[low:high])
                start, end = min(start, noted.starts[low]), max(end, noted.ends[high - 1])
            noted.starts[low:high] = (start,)
            noted.ends[low:high] = (end,)
            noted.owners[low:high] = (owner if is_mine else None,)
            is_free = is_free and is_mine
        return is_free


def _memory_of(tensor: torch.Tensor) -> list[tuple[torch.device, int, int]]:
    """The addresses `[start, end)` of a tensor's elements, or of those of the tensors that it wraps."""
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        wrapped = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
        return [place for name in wrapped for place in _memory_of(getattr(tensor, name))]
    address = tensor.data_ptr() if tensor.layout == torch.strided else 0
    if not address:  # also without elements, and on the meta device
        return []
    if tensor.is_contiguous():
        return [(tensor.device, address, address + tensor.nbytes)]
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return [(tensor.device, address, address + (last + 1) * tensor.itemsize)]

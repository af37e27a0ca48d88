"""Writes the items of a save plan into the objects of one rank."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from .._memory import alone, is_plain, tensor_buffer
from .._upload import UploadFile
from ._payload import ItemStream, note_payload
from ._save_tensor import save_tensor

# Frame of one item: `torch.save` adds about 1.5 kB to a tensor.
_FRAME_BYTES = 2048


@dataclass(slots=True)
class FilePlan:
    """One data object to be: its name, its items in the order of writing, and its length as far as it is known."""

    name: str
    items: list[WriteItem]
    size_hint: int


@dataclass(slots=True)
class _Bin:
    size: int = 0
    items: list[WriteItem] = field(default_factory=list)


def stored_size(item: WriteItem) -> int:
    """About how many bytes an item takes in its object; what is pickled is not known before, and counts nothing."""
    size = _FRAME_BYTES
    if item.type != WriteItemType.BYTE_IO and item.tensor_data is not None:
        size += item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
    return size


def deal_items(items: Sequence[WriteItem], bin_count: int) -> list[list[WriteItem]]:
    """Deal items over files so that each file has about the same size.

    Args:
        items: The items of one rank.
        bin_count: How many files there may be.

    Returns:
        The items of each file, pickled objects first; no file is empty, so there can be fewer than `bin_count`.
    """
    bins = [_Bin() for _ in range(max(1, min(bin_count, len(items))))]
    heap = [(0, index) for index in range(len(bins))]
    heapify(heap)
    for item in sorted(items, key=stored_size, reverse=True):
        size, index = heappop(heap)
        bins[index].items.append(item)
        heappush(heap, (size + stored_size(item), index))
    for bin_ in bins:
        bin_.items.sort(key=lambda item: item.type != WriteItemType.BYTE_IO)
    return [bin_.items for bin_ in bins if bin_.items]


class ItemWriter:
    """Writes the items of one save; for several threads.

    Args:
        planner: Resolves items to their tensors or bytes.
        extensions: torch's stream transforms, from the outermost; empty for none.
    """

    def __init__(self, planner: SavePlanner, extensions: Sequence[Any]) -> None:
        self._planner = planner
        self._extensions = extensions
        # What a planner of another kind resolves may be memory that it uses for the next item.
        self._gives_the_state = all(
            getattr(getattr(planner, name), "__func__", None) is getattr(DefaultSavePlanner, name)
            for name in ("resolve_data", "lookup_object", "transform_object")
        )

    def write(self, target: UploadFile, name: str, item: WriteItem) -> WriteResult:
        """Write one item and say where it lies.

        Args:
            target: The object; the item begins where it now ends.
            name: The object's name, relative to the checkpoint.
            item: What to write.

        Returns:
            torch's record of the write.
        """
        data = self._planner.resolve_data(item)
        offset = target.tell()
        tensor = None
        lasting = None
        if item.type != WriteItemType.BYTE_IO:
            if not isinstance(data, torch.Tensor):
                raise TypeError(f"the planner resolved {item.index.fqn!r} to a {type(data).__name__}, not to a tensor")
            tensor = compact_cpu_tensor(data)
            # What the state dict holds outlasts the upload; a copy that was made here goes when it is written.
            is_lasting = self._gives_the_state and is_plain(tensor) and data.device == tensor.device
            if is_lasting and not self._extensions and data.data_ptr() == tensor.data_ptr():
                lasting = tensor_buffer(tensor)
        raw = ItemStream(target, lasting)
        stream = outermost = cast("IO[bytes]", raw)
        for extension in self._extensions:
            stream = extension.transform_to(stream)
        if tensor is not None:
            save_tensor(tensor, stream)
        else:
            if not isinstance(data, io.BytesIO):
                raise TypeError(
                    f"the planner resolved {item.index.fqn!r} to a {type(data).__name__}, not to io.BytesIO"
                )
            stream.write(data.getbuffer())
        if stream is not outermost:
            stream.close()
        info = _StorageInfo(name, offset, raw.length)
        if self._extensions:
            info.transform_descriptors = [extension.get_descriptor() for extension in reversed(self._extensions)]
        elif tensor is not None:
            note_payload(info, raw.storage_offset, tensor)
        return WriteResult(index=item.index, size_in_bytes=raw.length, storage_data=info)


def compact_cpu_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Bring a tensor to the CPU, contiguous and alone in its storage, with as few copies as that takes (often none).

    Args:
        tensor: A tensor of any device, dtype, shape and strides.

    Returns:
        A tensor of the same values whose storage holds nothing else.
    """
    tensor = tensor.detach().cpu()
    if tensor.layout != torch.strided:
        return tensor
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        if is_plain(tensor) and type(tensor) is torch.Tensor and tensor.nbytes:
            return alone(tensor)
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor

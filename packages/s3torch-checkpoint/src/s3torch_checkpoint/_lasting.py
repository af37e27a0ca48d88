"""Which memory lasts while an object is saved: that of the CPU tensors in it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ._memory import storage_buffer

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, getattr(torch.nn, "Buffer", torch.Tensor)})


class LastingMemory:
    """The storages of the tensors in an object's containers.

    What `torch.save` hands over may be a storage of the object itself, which can be sent from where it lies, or a copy
    that is dropped at once, such as that of a tensor on a device. Of tensors within objects of other classes nothing is
    known, since saving them may make new ones.

    Args:
        obj: What is saved: tensors in dictionaries, lists, tuples and sets, however deep, or a module.
    """

    def __init__(self, obj: object) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        for tensor in _tensors_of(obj):
            if type(tensor) in _PLAIN and tensor.layout == torch.strided and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                self._storages[storage.data_ptr()] = storage

    def find(self, view: memoryview) -> memoryview | None:
        """Find the storage that some bytes are.

        Args:
            view: The bytes, which may be anybody's.

        Returns:
            All bytes of the storage, which this view keeps alive; None where they are no whole storage of the object.
        """
        if not view.nbytes:
            return None
        address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
        storage = self._storages.get(address)
        if storage is None or (storage.data_ptr(), storage.nbytes()) != (address, view.nbytes):
            return None
        return storage_buffer(storage)


def _tensors_of(obj: object) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    pending = [obj]
    while pending:
        one = pending.pop()
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, torch.nn.Module):
            pending.extend([*one.parameters(), *one.buffers()])
        elif isinstance(one, dict | list | tuple | set | frozenset) and id(one) not in seen:
            seen.add(id(one))
            pending.extend(one.values() if isinstance(one, dict) else one)

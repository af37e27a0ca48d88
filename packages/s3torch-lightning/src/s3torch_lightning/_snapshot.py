"""A copy of a checkpoint in host memory, so that training may go on while it is uploaded."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch

_STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint was at one moment.

    Args:
        pickled: Everything but the tensors' memory.
        storages: The tensors' memory, copied to the host; each once, however many tensors share it.
    """

    pickled: bytes
    storages: tuple[torch.UntypedStorage, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that it takes."""
        return len(self.pickled) + sum(storage.nbytes() for storage in self.storages)

    def restore(self) -> Any:
        """Build the checkpoint again, over the copied memory."""
        return _StorageUnpickler(io.BytesIO(self.pickled), self.storages).load()


def take_snapshot(obj: object) -> Snapshot:
    """Copy whatever `torch.save` would write, walking it the same way.

    Tensors on a device are copied to the host. Tensors that share memory share it in the copy.

    Args:
        obj: The checkpoint.

    Returns:
        The copy.

    Raises:
        Exception: The checkpoint cannot be pickled; `torch.save` would raise the same.
    """
    buffer = io.BytesIO()
    pickler = _StoragePickler(buffer)
    pickler.dump(obj)
    return Snapshot(buffer.getvalue(), tuple(pickler.copies))


class _StoragePickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, protocol=2)
        self.copies: list[torch.UntypedStorage] = []
        self._places: dict[tuple[torch.device, int, int], int] = {}
        self._sources: list[torch.UntypedStorage] = []  # keeps them alive, so that no address is used twice

    def persistent_id(self, obj: object) -> Any:
        if isinstance(obj, torch.storage.TypedStorage):
            return _STORAGE, self._place(obj._untyped_storage), obj.dtype
        if isinstance(obj, torch.UntypedStorage):
            return _STORAGE, self._place(obj), torch.uint8
        return None

    def _place(self, storage: torch.UntypedStorage) -> int:
        # An empty storage, or one on the meta device, has no address: each is one of its own.
        # Two may begin at one address and end apart, as those of NumPy's views do; each is copied to its own end.
        address = storage.data_ptr() if storage.device.type != "meta" else 0
        identity = (storage.device, address, storage.nbytes())
        place = self._places.get(identity)
        if place is None or not address:
            place = self._places[identity] = len(self.copies)
            self._sources.append(storage)
            self.copies.append(_host_copy(storage))
        return place


class _StorageUnpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, storages: tuple[torch.UntypedStorage, ...]) -> None:
        super().__init__(buffer)
        self._storages = storages

    def persistent_load(self, pid: Any) -> Any:
        _, place, dtype = pid
        # As `torch.load` itself builds it, also where there was no type; torch has no annotations there.
        return torch.storage.TypedStorage(wrap_storage=self._storages[place], dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]


def _host_copy(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    copy: Any = storage
    copied: torch.UntypedStorage = copy.clone() if storage.device.type in ("cpu", "meta") else copy.cpu()
    return copied

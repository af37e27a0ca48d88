"""How large a checkpoint will be, before it is written: the storages that `torch.save` would write, each once."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch


class _Sink(io.RawIOBase):
    """Counts what is written and keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        length = memoryview(data).nbytes
        self.length += length
        return length


class _StorageCounter(pickle.Pickler):
    """Walks an object exactly as `torch.save` does, and notes each storage instead of writing it."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__(sink, protocol=2)
        self.storage_bytes: dict[int, int] = {}

    def persistent_id(self, obj: object) -> Any:
        if isinstance(obj, torch.storage.TypedStorage):
            storage = obj._untyped_storage
        elif isinstance(obj, torch.UntypedStorage):
            storage = obj
        else:
            return None
        # Storages on the meta device have no address; each is counted as its own.
        address = storage.data_ptr() if storage.device.type != "meta" else 0
        self.storage_bytes[address or id(storage)] = storage.nbytes()
        return ("storage", len(self.storage_bytes))


def estimate_saved_bytes(obj: object) -> int:
    """Estimate what `torch.save(obj, …)` will write, without reading any tensor's memory.

    Args:
        obj: Anything that `torch.save` takes.

    Returns:
        About the length of the file in bytes; 0 when the object cannot be walked (saving it says why).
    """
    sink = _Sink()
    counter = _StorageCounter(sink)
    try:
        counter.dump(obj)
    except Exception:
        return 0
    # Each storage is a member of a zip archive: two headers and padding to 64 bytes.
    return sink.length + sum(counter.storage_bytes.values()) + 512 * (len(counter.storage_bytes) + 8)

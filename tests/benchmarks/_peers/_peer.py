"""What a peer may be asked, and how it says that it can't."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypeAlias

from benchmarks._target import Target
from servers.counting import GeneratedObjects

Digest: TypeAlias = tuple[str, int, int]
Bytes: TypeAlias = bytes | bytearray | memoryview

# Set where time does not matter, before the process starts: then checksums are those of all bytes.
IS_THOROUGH = "BENCHMARKS_ARE_THOROUGH"

_IS_THOROUGH = IS_THOROUGH in os.environ
_LOOKED_AT_BYTES = 4096


class CannotDoError(Exception):
    """This peer can't do this; the message, which goes into the report, says why."""


def digest(key: str, data: Bytes) -> Digest:
    """The key, the length, and a checksum of both ends: enough to tell objects apart, too little to be measured."""
    view = memoryview(data)
    if _IS_THOROUGH:
        return key, len(view), zlib.crc32(view)
    return key, len(view), zlib.crc32(view[-_LOOKED_AT_BYTES:], zlib.crc32(view[:_LOOKED_AT_BYTES]))


class Peer:
    """A library, used as its own documentation recommends.

    Every method is one thing to do. Those that a peer leaves as they are raise `CannotDoError` with its reason. Names
    and folders are those of the target.

    Attributes:
        why_not: Why a method is left as it is, by name of the method.
    """

    why_not: ClassVar[Mapping[str, str]] = {}

    def __init__(self, target: Target) -> None:
        self.target = target

    # Many objects.

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        """Read every object once, through an iterable dataset and a `DataLoader` where there are such."""
        self._cannot("iterate")

    def fetch(self, folder: GeneratedObjects, workers: int) -> Iterator[list[Digest]]:
        """Read every object once, shuffled, through a map-style dataset and a `DataLoader` where there are such."""
        self._cannot("fetch")

    def prepare_samples(self, samples: Iterable[tuple[str, bytes]]) -> None:
        """Write samples in the peer's own format, where that is not tar; this is not measured."""

    def read_samples(self, workers: int) -> Iterator[list[Digest]]:
        """Read every sample once, out of the tar files in the folder `tar` or the peer's own format."""
        self._cannot("read_samples")

    def list_keys(self, name: str) -> Iterator[Sequence[tuple[str, int]]]:
        """List all keys under a prefix with their sizes, page by page."""
        self._cannot("list_keys")

    def index_objects(self, name: str) -> Any:
        """Make a map-style dataset of all objects under a prefix, whose items have a `key`."""
        self._cannot("index_objects")

    # One object.

    def read(self, name: str) -> Bytes:
        """Read a large object into memory."""
        self._cannot("read")

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Read a large object into memory that there is already."""
        self._cannot("read_into")

    def stream(self, name: str) -> Iterator[Bytes]:
        """Read a large object piece by piece, in order."""
        self._cannot("stream")

    def read_start(self, name: str, size: int) -> Bytes:
        """Open an object, read its first bytes, and close it."""
        self._cannot("read_start")

    def read_range(self, name: str, size: int) -> Bytes:
        """As `read_start`, in the way that the library has for a few bytes of an object where it has one."""
        return self.read_start(name, size)

    def upload(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write an object from pieces whose number and sum are not known before."""
        self._cannot("upload")

    # Checkpoints.

    def save(self, name: str, state: Any) -> None:
        """Save a checkpoint in the way that the library recommends."""
        self._cannot("save")

    def save_to_writer(self, name: str, state: Any) -> None:
        """`torch.save` to a file that the library opens."""
        self._cannot("save_to_writer")

    def load(self, name: str) -> Any:
        """Load a checkpoint in the way that the library recommends, weights only."""
        self._cannot("load")

    def load_from_reader(self, name: str) -> Any:
        """`torch.load` from a file that the library opens, weights only."""
        self._cannot("load_from_reader")

    def storage_writer(self, name: str) -> Any:
        """A `torch.distributed.checkpoint.StorageWriter`."""
        self._cannot("storage_writer")

    def storage_reader(self, name: str) -> Any:
        """A `torch.distributed.checkpoint.StorageReader`."""
        self._cannot("storage_reader")

    def load_safetensors(self, name: str) -> Mapping[str, Any]:
        """Load all tensors of a safetensors file."""
        self._cannot("load_safetensors")

    def save_safetensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        """Write a safetensors file."""
        self._cannot("save_safetensors")

    def lightning_saver(self) -> Callable[[str, dict[str, Any]], None]:
        """What saves a checkpoint under a name through a Lightning `CheckpointIO`."""
        self._cannot("lightning_saver")

    def reason_against(self, method: str) -> str | None:
        """Why the peer can't do this, or None when it can."""
        is_left = getattr(type(self), method) is getattr(Peer, method)
        return self.why_not.get(method, "has nothing for this") if is_left else None

    def _cannot(self, method: str) -> NoReturn:
        raise CannotDoError(self.why_not.get(method, "has nothing for this"))

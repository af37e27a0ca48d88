"""Where the raw bytes of a tensor lie inside what `torch.save` wrote of it, so that a load can fetch rows of them.

`torch.save` writes a zip archive whose members are stored uncompressed; the member `data/0` is the tensor's storage.
Its offset goes into the checkpoint's metadata as one more attribute of torch's own record, which torch's readers carry
along and ignore (https://github.com/pytorch/pytorch/blob/v2.4.0/torch/distributed/checkpoint/filesystem.py#L52-L58).
"""

from __future__ import annotations

import io
import math
import struct
import sys
from dataclasses import dataclass
from typing import Any

import torch

from .._upload import UploadFile

_ATTRIBUTE = "s3torch_payload"
# A local file header: signature, 22 bytes of no interest here, length of the name, length of the extra field.
# https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7
_LOCAL_HEADER = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
_STORAGE_MEMBER = b"/data/0"
# The members before the storage take well under 2 kB; a head that grows beyond this has no tensor to find.
_MAX_HEAD_BYTES = 64 * 2**10
# What is compared before a storage is taken for the tensor's memory, at both of its ends.
_SAMPLE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Payload:
    """The bytes of one stored tensor: contiguous, little-endian.

    Args:
        start: Offset of the first byte in the object.
        dtype: dtype of the stored elements.
        shape: Shape of the stored tensor.
    """

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class ItemStream(io.RawIOBase):
    """What one item is written to: passes bytes on, counts them, and never closes what lies beneath.

    Args:
        target: Where the bytes go.
        lasting: The memory of the tensor that is written, when it outlasts the upload: it then is not copied.
    """

    def __init__(self, target: UploadFile, lasting: memoryview | None = None) -> None:
        super().__init__()
        self._target = target
        self._lasting = lasting
        self._length = 0
        self._head: bytearray | None = bytearray()
        self.storage_offset: int | None = None

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self._length

    def writable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._length

    def write(self, data: Any, /) -> int:
        """Pass `data` on; remember where the storage of a `torch.save` begins."""
        length = data.nbytes if isinstance(data, memoryview) else len(memoryview(data))
        if self._head is not None:
            self._look_for_storage(data, length)
        if self.storage_offset == self._length and self._is_lasting(data, length):
            # torch's view of this memory does not keep it alive; ours does.
            self._target.write(self._lasting, copy=False)
        else:
            self._target.write(data)
        self._length += length
        return length

    def _is_lasting(self, data: Any, length: int) -> bool:
        return (
            self._lasting is not None
            and length == self._lasting.nbytes
            and bytes(data[:_SAMPLE_BYTES]) == bytes(self._lasting[:_SAMPLE_BYTES])
            and bytes(data[-_SAMPLE_BYTES:]) == bytes(self._lasting[-_SAMPLE_BYTES:])
        )

    def _look_for_storage(self, data: Any, length: int) -> None:
        head = self._head
        assert head is not None
        if _ends_with_storage_header(head):
            self.storage_offset = len(head)
            self._head = None
        elif len(head) + length > _MAX_HEAD_BYTES:
            self._head = None
        else:
            head += data


def _ends_with_storage_header(head: bytearray) -> bool:
    position = head.rfind(_LOCAL_HEADER)
    if position < 0 or len(head) < position + _LOCAL_HEADER_BYTES:
        return False
    name_length, extra_length = struct.unpack_from("<HH", head, position + 26)
    name_start = position + _LOCAL_HEADER_BYTES
    name = bytes(head[name_start : name_start + name_length])
    return name.endswith(_STORAGE_MEMBER) and len(head) == name_start + name_length + extra_length


def note_payload(storage_info: Any, offset: int | None, tensor: torch.Tensor) -> None:
    """Write down where a tensor's bytes begin within its stored item.

    Nothing is noted when it would not hold for a reader: a tensor that is not contiguous, of a type of its own,
    quantised, empty, or on a big-endian machine.

    Args:
        storage_info: torch's record of the stored item.
        offset: Offset of the bytes from the start of the item.
        tensor: The tensor exactly as it was given to `torch.save`.
    """
    if (
        offset is not None
        and type(tensor) is torch.Tensor
        and sys.byteorder == "little"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and tensor.storage_offset() == 0
        and tensor.numel() > 0
    ):
        note = (offset, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        setattr(storage_info, _ATTRIBUTE, note)


def payload_of(storage_info: Any) -> Payload | None:
    """Read what `note_payload` wrote; None for a record without it, or one that contradicts itself.

    Args:
        storage_info: torch's record of a stored item, with its offset and length in the object.
    """
    note = getattr(storage_info, _ATTRIBUTE, None)
    if sys.byteorder != "little" or not (isinstance(note, tuple) and len(note) == 3):
        return None
    offset, dtype_name, shape = note
    dtype = getattr(torch, dtype_name, None) if isinstance(dtype_name, str) else None
    if not isinstance(dtype, torch.dtype) or not isinstance(offset, int) or not isinstance(shape, tuple):
        return None
    payload = Payload(storage_info.offset + offset, dtype, shape)
    if offset < 0 or offset + payload.length > storage_info.length:
        return None
    return payload

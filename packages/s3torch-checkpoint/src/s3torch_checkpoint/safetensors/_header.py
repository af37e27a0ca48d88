"""The header of a safetensors file: read with suspicion, written so that every reader takes it.

The format is eight bytes with the length of the header (little-endian), the header as JSON, then the tensors' bytes
(https://github.com/huggingface/safetensors#format). Everything here is pure: no network, and no allocation that a
hostile header could choose the size of.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .._errors import CorruptCheckpointError

LENGTH_BYTES = 8
# The library's own bound: https://github.com/huggingface/safetensors/blob/v0.5.3/safetensors/src/tensor.rs#L10
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"
_ALIGNMENT = 8
_MAX_DIMS = 64  # PyTorch's own bound
_MAX_BYTES = 2**63  # PyTorch counts in 64 bits, and a size of 0 as 1 in the strides of the sizes before it.


def _torch_dtypes() -> dict[str, torch.dtype]:
    names = {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "I16": "int16",
        "U16": "uint16",
        "F16": "float16",
        "BF16": "bfloat16",
        "I32": "int32",
        "U32": "uint32",
        "F32": "float32",
        "F64": "float64",
        "I64": "int64",
        "U64": "uint64",
        "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }
    # Older versions of torch lack the newest dtypes.
    return {code: dtype for code, name in names.items() if (dtype := getattr(torch, name, None)) is not None}


DTYPES = _torch_dtypes()
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file.

    Args:
        name: Its name.
        dtype: Its dtype.
        shape: Its shape.
        start: Offset of its first byte in the object.
        end: Offset past its last byte in the object.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """All tensors of a file, in the order of their offsets, and its free-form metadata (None where there is none)."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str] | None


def header_length(prefix: bytes, object_size: int, uri: str) -> int:
    """Read how long the header is, before anything is allocated for it.

    Args:
        prefix: At least the first eight bytes of the object, or all of a shorter one.
        object_size: Size of the object in bytes.
        uri: The object, for the message.

    Returns:
        The length of the JSON text in bytes.

    Raises:
        CorruptCheckpointError: The object is too short, or the length cannot be right.
    """
    if object_size < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        raise _refusal(uri, f"it has {object_size} bytes, too few for a header")
    (length,) = struct.unpack_from("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise _refusal(uri, f"its header claims {length} bytes, the format allows {MAX_HEADER_BYTES}")
    if length > object_size - LENGTH_BYTES:
        raise _refusal(uri, f"its header claims {length} bytes, but the object has only {object_size}")
    return int(length)


def parse_header(text: bytes, object_size: int, uri: str) -> Header:
    """Read and check a header.

    Args:
        text: The JSON text, of exactly the length that the object announces.
        object_size: Size of the object in bytes.
        uri: The object, for the message.

    Returns:
        The tensors, which lie one after the other over the whole rest of the object.

    Raises:
        CorruptCheckpointError: The header is not valid JSON, names something twice, or its shapes, dtypes and offsets
            do not fit each other and the object.
    """
    if not text.startswith(b"{"):
        raise _refusal(uri, "its header is not a JSON object")
    try:
        fields = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(uri, f"its header is not valid: {error}") from error
    metadata = _parse_metadata(fields.pop(METADATA_KEY, None), uri)
    data_start = LENGTH_BYTES + len(text)
    entries = sorted(
        (_parse_entry(name, field, data_start, uri) for name, field in fields.items()),
        key=lambda entry: (entry.start, entry.end),
    )
    position = data_start
    for entry in entries:
        if entry.start != position:
            what = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            raise _refusal(uri, f"tensor {entry.name!r} {what}: it starts at byte {entry.start}, not {position}")
        position = entry.end
    if position != object_size:
        raise _refusal(uri, f"its tensors end at byte {position}, but the object has {object_size} bytes")
    return Header({entry.name: entry for entry in entries}, metadata)


def parse_json(text: bytes) -> Any:
    """Read JSON in which no object names anything twice.

    Raises:
        ValueError: It is no such text.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)


def build_header(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None
) -> tuple[bytes, list[str]]:
    """Lay out a file: tensors of wide dtypes first, so that each is aligned to its element size.

    Args:
        tensors: dtype and shape of each tensor, by name.
        metadata: Text to store with them.

    Returns:
        The length and the JSON text, padded to eight bytes, and the names in the order in which their bytes follow.

    Raises:
        ValueError: A dtype has no name in the format, or a name or the metadata is not what the format allows.
    """
    fields: dict[str, Any] = {}
    if metadata is not None:
        for key, value in metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise ValueError(f"safetensors metadata maps str to str, got {key!r}: {value!r}")
        fields[METADATA_KEY] = dict(metadata)
    if METADATA_KEY in tensors:
        raise ValueError(f"no tensor can be called {METADATA_KEY!r}: the format keeps that name for itself")
    order = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    position = 0
    for name in order:
        dtype, shape = tensors[name]
        if dtype not in CODES:
            known = ", ".join(sorted(str(known) for known in CODES))
            raise ValueError(f"tensor {name!r} has dtype {dtype}, which safetensors cannot store; it knows {known}")
        end = position + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"the header would take {len(text)} bytes, more than the {MAX_HEADER_BYTES} allowed")
    return struct.pack("<Q", len(text)) + text, order


def _parse_metadata(value: Any, uri: str) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _refusal(uri, f"its {METADATA_KEY} is not a map of texts")
    return value


def _parse_entry(name: str, field: Any, data_start: int, uri: str) -> TensorEntry:
    if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refusal(uri, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    code, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise _refusal(uri, f"tensor {name!r} has the dtype {code!r}, which this version of torch has no name for")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(_is_count(size) for size in shape):
        raise _refusal(uri, f"tensor {name!r} has a shape that is not a short list of whole numbers")
    if math.prod(size or 1 for size in shape) * DTYPES[code].itemsize >= _MAX_BYTES:
        raise _refusal(uri, f"tensor {name!r} has the shape {shape}, which is too large for any memory")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise _refusal(uri, f"tensor {name!r} has data_offsets that are not two whole numbers")
    start, end = offsets
    length = math.prod(shape) * DTYPES[code].itemsize
    if end - start != length:
        raise _refusal(
            uri, f"tensor {name!r} needs {length} bytes for {code} of shape {shape}, but its data_offsets are {offsets}"
        )
    return TensorEntry(name, DTYPES[code], tuple(shape), data_start + start, data_start + end)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name!r} is there twice")
            seen.add(name)
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refusal(uri: str, reason: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{uri} is not a valid safetensors file: {reason}")

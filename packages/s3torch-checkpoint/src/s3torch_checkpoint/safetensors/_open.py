"""`safe_open`: a safetensors file to look into, by one tensor or one slice at a time."""

from __future__ import annotations

from types import EllipsisType, TracebackType
from typing import Any, Self

import torch

from s3core import S3Client, S3ClientConfig

from .._fetch import Piece, fetch_pieces
from .._fetch_plan import Want
from .._progress import TransferProgress
from .._region import cut_region
from .._tensor_pieces import BlockPiece, PlainPiece
from ._file import SafetensorsFile, open_file
from ._header import CODES, TensorEntry
from ._load import load_tensors, select

_BLOCK_BYTES = 32 * 2**20


class safe_open:  # noqa: N801 (the library's name)
    """Open a safetensors file; only its header is read.

    Args:
        uri: `s3://bucket/key` of the file.
        framework: `"pt"`; there for the library's signature.
        device: Where to put tensors.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        progress: Show a progress bar on rank 0 when loading takes longer than a second.

    Raises:
        CorruptCheckpointError: It is no valid safetensors file.
        NoSuchKeyError: There is no such object.

    Example:
        >>> with safe_open("s3://my-bucket/model.safetensors") as file:  # doctest: +SKIP
        ...     rows = file.get_slice("embedding.weight")[1000:2000]
    """

    def __init__(
        self,
        uri: str,
        framework: str = "pt",
        device: str | torch.device | int = "cpu",
        *,
        region: str | None = None,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        progress: bool = True,
    ) -> None:
        if framework not in ("pt", "torch", "pytorch"):
            raise ValueError(f"framework is {framework!r}; only 'pt' is possible")
        self._client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
        self._device = torch.device(device)
        self._progress = progress
        self._file = open_file(self._client, uri)

    def keys(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._file.header.tensors)

    def offset_keys(self) -> list[str]:
        """The names of all tensors, in the order of their bytes."""
        return list(self._file.header.tensors)

    def metadata(self) -> dict[str, str] | None:
        """The texts that were stored with the tensors; None where there are none."""
        metadata = self._file.header.metadata
        return None if metadata is None else dict(metadata)

    def get_tensor(self, name: str) -> torch.Tensor:
        """Load one tensor.

        Args:
            name: Its name.

        Raises:
            KeyError: There is no such tensor.
            S3Exception: It could not be read, or the file was replaced since it was opened.
        """
        entries = select(self._file, [name])
        description = f"Loading {name} of {self._file.uri}"
        return load_tensors(self._client, [(self._file, entries)], self._device, description, self._progress)[name]

    def get_slice(self, name: str) -> SafeSlice:
        """Open one tensor to load a part of it.

        Args:
            name: Its name.

        Raises:
            KeyError: There is no such tensor.
        """
        (entry,) = select(self._file, [name])
        return SafeSlice(self._client, self._file, entry, self._device, self._progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open."""


class SafeSlice:
    """One tensor of a file; indexing it fetches what the index selects. Made by `safe_open.get_slice`.

    Args:
        client: Client of the bucket.
        file: The file.
        entry: The tensor.
        device: Where to put what is loaded.
        progress: Whether to show a progress bar.
    """

    def __init__(
        self, client: S3Client, file: SafetensorsFile, entry: TensorEntry, device: torch.device, progress: bool
    ) -> None:
        self._client = client
        self._file = file
        self._entry = entry
        self._device = device
        self._progress = progress

    def get_shape(self) -> list[int]:
        """The shape of the whole tensor."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """The dtype's name in the format, such as `"BF16"`."""
        return CODES[self._entry.dtype]

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Load a part.

        Args:
            index: Whole numbers, slices with a step of at least 1, and `...`, as for a tensor.

        Raises:
            IndexError: The index does not fit the shape.
            S3Exception: It could not be read, or the file was replaced since it was opened.
        """
        offsets, lengths, steps, dropped = _resolve(index, self._entry.shape)
        covering = torch.empty(lengths, dtype=self._entry.dtype, device=self._device)
        itemsize = self._entry.dtype.itemsize
        in_place = self._device.type == "cpu"
        pieces: list[Piece] = []
        blocks = cut_region(
            self._entry.shape, offsets, lengths, itemsize, max_block_bytes=None if in_place else _BLOCK_BYTES
        )
        for block in blocks:
            want = Want(self._file.key, self._entry.start + block.start, self._entry.start + block.end)
            part = covering
            for dimension, (offset, length) in enumerate(zip(block.offsets, block.lengths, strict=True)):
                part = part.narrow(dimension, offset, length)
            if in_place and block.is_dense(itemsize) and part.is_contiguous():
                pieces.append(PlainPiece(want, part, _nothing))
            else:
                pieces.append(BlockPiece(want, block, self._entry.dtype, part, _nothing))
        etags = {self._file.key: self._file.etag} if self._file.etag is not None else {}
        total = sum(piece.want.end - piece.want.start for piece in pieces)
        with TransferProgress(f"Loading {self._entry.name} of {self._file.uri}", total, self._progress) as bar:
            fetch_pieces(self._client, self._file.bucket, pieces, bar, etags=etags)
        return covering[
            tuple(0 if drop else slice(None, None, step) for step, drop in zip(steps, dropped, strict=True))
        ]


def _nothing() -> None: ...


def _resolve(index: Any, shape: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[bool]]:
    """Turn an index into the region that covers it: offset, length and step per dimension, and which ones it drops."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if sum(isinstance(part, EllipsisType) for part in parts) > 1:
        raise IndexError("an index has at most one ellipsis")
    given = sum(not isinstance(part, EllipsisType) for part in parts)
    if given > len(shape):
        raise IndexError(f"{given} indices are too many for a tensor of shape {shape}")
    filler = [slice(None)] * (len(shape) - given)
    where = next((i for i, part in enumerate(parts) if isinstance(part, EllipsisType)), None)
    full = parts + filler if where is None else parts[:where] + filler + parts[where + 1 :]
    offsets, lengths, steps, dropped = [], [], [], []
    for part, size in zip(full, shape, strict=True):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            if step < 1:
                raise IndexError(f"the step {step} is not possible; it must be at least 1")
            offset, length, drop = start, max(0, stop - start), False
        elif isinstance(part, int) and not isinstance(part, bool):
            if not -size <= part < size:
                raise IndexError(f"index {part} is out of range for a dimension of size {size}")
            offset, length, step, drop = part % size, 1, 1, True
        else:
            raise IndexError(f"a {type(part).__name__} cannot select from a stored tensor; use numbers and slices")
        offsets.append(offset)
        lengths.append(length)
        steps.append(step)
        dropped.append(drop)
    return offsets, lengths, steps, dropped

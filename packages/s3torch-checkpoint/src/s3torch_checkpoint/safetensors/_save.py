"""Writes tensors to one safetensors object: the header, then each tensor's memory, without collecting them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

import torch

from s3core import S3Client, S3ClientConfig

from .._address import parse_object_uri
from .._memory import tensor_buffer
from .._progress import TransferProgress
from .._upload import upload
from ._header import build_header


def save_file(
    tensors: Mapping[str, torch.Tensor],
    uri: str,
    metadata: Mapping[str, str] | None = None,
    *,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    progress: bool = True,
) -> None:
    """Save tensors to one safetensors file, which appears when it is whole.

    Tensors may be on any device and of any strides; one at a time is brought to the CPU and made contiguous.

    Args:
        tensors: The tensors by name. No two may share memory, which the format cannot express.
        uri: `s3://bucket/key` of the file.
        metadata: Texts to store with them.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        progress: Show a progress bar on rank 0 when it takes longer than a second.

    Raises:
        ValueError: A tensor is sparse, distributed, shares memory, or has a dtype that the format does not know.
        S3Exception: It could not be written; what was at this URI before is still there.
    """
    bucket, key = parse_object_uri(uri)
    _check(tensors)
    header, order = build_header({name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, metadata)
    size = len(header) + sum(tensors[name].nbytes for name in order)
    client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
    with (
        TransferProgress(f"Saving {uri}", size, progress) as bar,
        upload(client, bucket, key, bar, size_hint=size) as file,
    ):
        file.write(header)
        for name in order:
            tensor = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
            # The caller's memory outlasts the upload; a copy that was made here goes when it is written.
            is_lasting = tensor.device == tensors[name].device and tensor.data_ptr() == tensors[name].data_ptr()
            file.write(tensor_buffer(tensor), copy=not is_lasting)


def _check(tensors: Mapping[str, torch.Tensor]) -> None:
    extents: dict[tuple[str, int], list[tuple[int, int, str]]] = defaultdict(list)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"safetensors maps names to tensors, got {name!r}: {type(tensor).__name__}")
        if type(tensor).__torch_dispatch__ != torch.Tensor.__torch_dispatch__:
            raise ValueError(
                f"tensor {name!r} is a {type(tensor).__name__}, which has no memory of its own; save a plain tensor of "
                "its values, such as a DTensor's full_tensor()"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"tensor {name!r} is sparse or quantised, which safetensors cannot store; make it dense")
        if tensor.device.type == "meta":
            raise ValueError(f"tensor {name!r} is on the meta device and has no values to save")
        if tensor.numel() == 0:
            continue
        extents[str(tensor.device), tensor.untyped_storage().data_ptr()].append((*_extent(tensor), name))
    for views in extents.values():
        # Of views in the order of their starts, the first that reaches into another one reaches into the next.
        for (_, end, name), (start, _, other) in pairwise(sorted(views)):
            if start < end:
                raise ValueError(
                    f"tensors {name!r} and {other!r} share memory, which safetensors cannot store; save one of them, "
                    "or a clone()"
                )


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Where the bytes of a view begin and end in its storage."""
    last: int = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.itemsize
    return start, start + (last + 1) * tensor.itemsize

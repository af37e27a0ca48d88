"""The bytes of a CPU tensor as a buffer that S3 can fill, for every dtype and without a copy."""

from __future__ import annotations

import ctypes

import torch


def tensor_buffer(tensor: torch.Tensor) -> memoryview:
    """View the memory of a tensor as bytes.

    The view keeps the tensor's storage alive, so that a transfer into it never writes into freed memory. Neither numpy
    nor `Tensor.view(torch.uint8)` can say this for every dtype (bfloat16, complex, quantised, packed 4-bit).

    Args:
        tensor: A contiguous strided tensor on the CPU, of any dtype and shape.

    Returns:
        A writable view of `tensor.nbytes` bytes, in the machine's byte order.

    Raises:
        ValueError: The tensor is not contiguous, not strided, or not on the CPU.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"only a contiguous strided CPU tensor has its bytes in one piece, got {tensor.layout}, {tensor.device}, "
            f"shape {tuple(tensor.shape)}, strides {tensor.stride() if tensor.layout == torch.strided else None}"
        )
    start = tensor.storage_offset() * tensor.itemsize
    return storage_buffer(tensor.untyped_storage())[start : start + tensor.nbytes]


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """See the memory of a tensor as that of a tensor whose storage holds nothing else, without a copy.

    `torch.save` writes all of a tensor's storage, however little of it the tensor shows.

    Args:
        tensor: A contiguous strided tensor on the CPU, of at least one byte.

    Returns:
        A tensor of the same dtype, shape and memory.
    """
    storage = torch.frombuffer(tensor_buffer(tensor), dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=tensor.dtype, device="cpu").set_(storage, 0, tensor.shape, tensor.stride())


def storage_buffer(storage: torch.UntypedStorage) -> memoryview:
    """View the memory of a CPU storage as bytes; the view keeps the storage alive.

    Args:
        storage: A storage on the CPU.

    Returns:
        A writable view of all its bytes.

    Raises:
        ValueError: It only says that it has memory, as that of a fake tensor does.
    """
    length = storage.nbytes()
    if length == 0:
        return memoryview(bytearray())
    if not storage.data_ptr():
        raise ValueError(f"a storage of {length} bytes has no memory behind it")
    array = (ctypes.c_ubyte * length).from_address(storage.data_ptr())
    array._storage = storage  # type: ignore[attr-defined]  # ctypes instances have a __dict__; this one owns the memory
    return memoryview(array).cast("B")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor's elements lie in one piece of CPU memory, in their order, exactly as they are stored.

    A conjugated or negated view is not plain: its memory holds other values than it shows. Nor is a subclass that takes
    operations over, such as a wrapper of other tensors: it may have no memory at all
    (https://docs.pytorch.org/docs/stable/notes/extending.html#extending-torch-native-api).
    """
    return (
        type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.is_quantized
    )

"""The data of a run: what it is, and how it comes to where it is read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks._peers import Digest, digest
from benchmarks._target import Target
from servers.counting import GeneratedObject, GeneratedObjects

_TENSORS = 48
_ROW_BYTES = 1024 * 4
_UPLOAD_THREADS = 32


def samples(target: Target) -> Iterator[tuple[str, bytes]]:
    """All samples: their names, and their bytes, which are those of the small objects."""
    scale = target.scale
    for index in range(scale.tar_shards * scale.samples_per_shard):
        yield _sample_name(index), b"".join(_sample(target, index).views(0, 100_000))


def sample_digest(target: Target, name: str) -> Digest | None:
    """What a sample should be, or None when there is none of that name."""
    digits = name.removesuffix(".bin")
    if not digits.isdigit() or _sample_name(int(digits)) != name:
        return None
    return digest(name, b"".join(_sample(target, int(digits)).views(0, 100_000)))


def _sample_name(index: int) -> str:
    return f"{index:06d}.bin"


def _sample(target: Target, index: int) -> GeneratedObject:
    return target.folder("small")[index]


def make_state(size: int) -> dict[str, torch.Tensor]:
    """A model's weights of about `size` bytes: float32 of one dimension, of different lengths, in rows of 4 KiB."""
    source = GeneratedObjects("", "", 1, size, size)[0]
    rows = size // _ROW_BYTES
    bounds = [rows * i * (i + 1) // (_TENSORS * (_TENSORS + 1)) * _ROW_BYTES for i in range(_TENSORS + 1)]
    state = {}
    for number, (start, end) in enumerate(pairwise(bounds)):
        if end > start:
            data = bytearray().join(source.views(start, end))
            state[f"layers.{number}.weight"] = torch.frombuffer(data, dtype=torch.float32)
    return state


def is_same_state(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    """Compare tensors bit by bit; random bits are not all numbers."""
    return found.keys() == expected.keys() and all(
        found[key].dtype == tensor.dtype and torch.equal(found[key].view(torch.int32), tensor.view(torch.int32))
        for key, tensor in expected.items()
    )


def prepare(target: Target, name: str, is_generating: bool) -> None:
    """Put the data of a name into the bucket.

    Args:
        target: Where to put it.
        name: One of `Workload.data`.
        is_generating: Whether the server makes the generated objects up by itself.
    """
    if name in _MAKERS:
        client = target.boto3_client()
        for file_name, data in _MAKERS[name][1](target):
            client.upload_fileobj(io.BytesIO(data), target.bucket, target.key(file_name))
    elif not is_generating:
        _upload_generated(target, target.folder(name))


def prepare_local(target: Target, name: str) -> None:
    """Write the data of a name to the local directory, or leave what is there."""
    root = Path(target.local_directory)
    if name in _MAKERS:
        key, make = _MAKERS[name]
        if not (root / target.key(key)).exists():
            for file_name, data in make(target):
                _write(root / target.key(file_name), data)
    elif name != "listed":
        for made in _all(target.folder(name)):
            path = root / made.key
            if not path.exists():
                _write(path, b"".join(made.views(0, made.size)))


def _all(folder: GeneratedObjects) -> Iterator[GeneratedObject]:
    return (folder[index] for index in range(folder.count))


def _write(path: Path, data: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _upload_generated(target: Target, folder: GeneratedObjects) -> None:
    client = target.boto3_client(max_pool_connections=_UPLOAD_THREADS)

    def put(made: GeneratedObject) -> None:
        client.upload_fileobj(io.BytesIO(b"".join(made.views(0, made.size))), folder.bucket, made.key)

    with ThreadPoolExecutor(_UPLOAD_THREADS) as pool:
        for _ in pool.map(put, _all(folder)):
            pass


def _make_tar(target: Target) -> Iterator[tuple[str, bytes]]:
    every = samples(target)
    for shard in range(target.scale.tar_shards):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for _ in range(target.scale.samples_per_shard):
                name, data = next(every)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        yield f"tar/{shard:06d}.tar", buffer.getvalue()


def _make_model(target: Target) -> Iterator[tuple[str, bytes]]:
    buffer = io.BytesIO()
    torch.save(make_state(target.scale.model_bytes), buffer)
    yield "model/model.pt", buffer.getvalue()


def _make_safetensors(target: Target) -> Iterator[tuple[str, bytes]]:
    import safetensors.torch

    yield "model/model.safetensors", safetensors.torch.save(make_state(target.scale.model_bytes))


def _make_distributed(target: Target) -> Iterator[tuple[str, bytes]]:
    from benchmarks._workloads.distributed import write_distributed

    yield from write_distributed(target.scale.distributed_bytes)


_MAKERS: dict[str, tuple[str, Any]] = {
    "tar": ("tar/", _make_tar),
    "model": ("model/model.pt", _make_model),
    "safetensors": ("model/model.safetensors", _make_safetensors),
    "distributed": ("distributed/.metadata", _make_distributed),
}

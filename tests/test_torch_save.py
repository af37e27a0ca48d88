"""What `torch.save` does to a stream: many writes of odd sizes from memory that it uses again at once."""

from __future__ import annotations

import hashlib
import io

import pytest
import torch

from s3core import S3Client, S3ClientConfig
from s3torch_checkpoint import S3Checkpoint
from servers import S3Server

_TOTAL_BYTES = 500_000_000
_LARGEST_TENSOR = 9_000_001


def _odd_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    noise = torch.randint(0, 255, (_LARGEST_TENSOR,), dtype=torch.uint8, generator=generator)
    tensors: dict[str, torch.Tensor] = {}
    total = 0
    while total < _TOTAL_BYTES:
        size = int(torch.randint(1, _LARGEST_TENSOR, (), generator=generator))
        tensors[f"layer{len(tensors)}"] = noise[:size] ^ (len(tensors) % 256)
        total += size
    return tensors


class _Digest(io.RawIOBase):
    """Where the reference goes, so that it takes no memory."""

    def __init__(self) -> None:
        self.sum = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # torch hands over buffers
        self.sum.update(view)
        self.size += len(view)
        return len(view)


@pytest.mark.parametrize("name", ["seaweedfs_server"])
def test_half_a_gigabyte_of_odd_tensors_is_written_byte_for_byte(request: pytest.FixtureRequest, name: str) -> None:
    server: S3Server = request.getfixturevalue(name)
    bucket = server.create_bucket()
    config = S3ClientConfig(access_key_id=server.access_key, secret_access_key=server.secret_key, part_size=5 * 2**20)
    client = S3Client(server.region, endpoint=server.endpoint, s3client_config=config)
    tensors = _odd_tensors()
    expected = _Digest()
    torch.save(tensors, expected)  # type: ignore[arg-type]  # any file will do
    checkpoint = S3Checkpoint(server.region, endpoint=server.endpoint, s3client_config=config)
    with checkpoint.writer(f"s3://{bucket}/checkpoint.pt") as writer:
        torch.save(tensors, writer)
    del tensors
    came = _Digest()
    for chunk in client.get_object(bucket, "checkpoint.pt"):
        came.write(chunk)
    assert came.size == expected.size > _TOTAL_BYTES
    assert came.sum.digest() == expected.sum.digest()
    client.delete_object(bucket, "checkpoint.pt")

"""Batches in pinned memory, from where they get to a CUDA device while the next ones are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from s3torch_datasets import S3Reader

SIZE = 1000

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:::torch"),  # what it says of its own options of pinned memory
]

Make = Callable[..., Any]
Fill = Callable[..., list[bytes]]


def as_tensor(reader: S3Reader) -> torch.Tensor:
    return torch.frombuffer(bytearray(reader.read()), dtype=torch.uint8)


def with_key(reader: S3Reader) -> dict[str, Any]:
    return {"key": reader.key, "data": as_tensor(reader), "length": SIZE}


def on_device(loader: DataLoader[Any]) -> list[torch.Tensor]:
    """All batches, copied to the device as a training does it."""
    copied = []
    for batch in loader:
        assert batch.is_pinned()
        copied.append(batch.cuda(non_blocking=True))
    torch.cuda.synchronize()
    return copied


def samples(batches: list[torch.Tensor]) -> list[bytes]:
    return [bytes(row.tolist()) for row in torch.cat(batches).cpu()]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_map_dataset_are_pinned_and_right(make_map: Make, fill: Fill, workers: int) -> None:
    contents = fill(22, SIZE)
    loader = DataLoader(make_map(transform=as_tensor), batch_size=4, num_workers=workers, pin_memory=True)
    for _ in range(2):
        assert samples(on_device(loader)) == contents


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_an_iterable_dataset_are_pinned_and_right(make_iterable: Make, fill: Fill, workers: int) -> None:
    contents = fill(22, SIZE)
    dataset = make_iterable(transform=as_tensor, enable_sharding=True)
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, pin_memory=True, persistent_workers=workers > 0)
    for _ in range(2):
        assert sorted(samples(on_device(loader))) == sorted(contents)


def test_workers_are_started_in_each_way_after_the_device_was_used(
    make_map: Make, fill: Fill, start_method: str
) -> None:
    torch.zeros(1, device="cuda")
    contents = fill(10, SIZE)
    loader = DataLoader(
        make_map(transform=as_tensor),
        batch_size=4,
        num_workers=2,
        pin_memory=True,
        multiprocessing_context=start_method,
    )
    assert samples(on_device(loader)) == contents


@pytest.mark.parametrize("workers", [0, 2])
def test_tensors_within_samples_are_pinned_and_the_rest_is_left(make_map: Make, fill: Fill, workers: int) -> None:
    contents = fill(8, SIZE)
    loader = DataLoader(make_map(transform=with_key), batch_size=4, num_workers=workers, pin_memory=True)
    batches = list(loader)
    assert all(batch["data"].is_pinned() and batch["length"].is_pinned() for batch in batches)
    assert [key for batch in batches for key in batch["key"]] == [f"data/{number:05}" for number in range(8)]
    assert samples([batch["data"] for batch in batches]) == contents


@pytest.mark.parametrize("workers", [0, 2])
def test_readers_pass_through_a_loader_that_pins(make_map: Make, fill: Fill, workers: int) -> None:
    contents = fill(8)
    loader = DataLoader(make_map(), batch_size=4, num_workers=workers, pin_memory=True, collate_fn=list)
    assert [reader.read() for batch in loader for reader in batch] == contents

"""Which bytes of a save need no copy: those that the object holds, and no others."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3core import S3Exception
from s3torch_checkpoint import S3Checkpoint
from s3torch_checkpoint._lasting import LastingMemory
from s3torch_checkpoint._memory import storage_buffer
from s3torch_checkpoint.dcp import S3StorageWriter
from servers.counting import CountingServer

MiB = 2**20


@pytest.fixture
def checkpoint(options: dict[str, Any]) -> S3Checkpoint:
    return S3Checkpoint(**options)


def seen(storage: torch.UntypedStorage) -> memoryview:
    """The memory as torch's zip writer shows it: read-only, and nobody's."""
    return memoryview((ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())).toreadonly()


class Fresh:
    """Saves a tensor that is made for the purpose."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __getstate__(self) -> dict[str, Any]:
        return {"tensor": torch.full((MiB,), self.value)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensor: tensor,
        lambda tensor: {"model": {"a": [1, (tensor,)]}},
        lambda tensor: [{"b": frozenset([tensor])}],
        lambda tensor: {"view": tensor[5:7]},
        lambda tensor: torch.nn.Parameter(tensor),
    ],
)
def test_storages_of_tensors_in_containers_are_found(wrap: Any) -> None:
    tensor = torch.arange(100.0)
    memory = LastingMemory(wrap(tensor))
    found = memory.find(seen(tensor.untyped_storage()))
    assert found is not None
    assert found == storage_buffer(tensor.untyped_storage())
    assert memory.find(seen(tensor.untyped_storage())[:-1]) is None
    assert memory.find(seen(tensor.untyped_storage())[4:]) is None
    assert memory.find(memoryview(b"other")) is None
    assert memory.find(memoryview(b"")) is None


def test_modules_and_circles_are_walked() -> None:
    module = torch.nn.BatchNorm1d(4)
    circle: list[Any] = [module]
    circle.append(circle)
    memory = LastingMemory(circle)
    for tensor in module.state_dict().values():
        assert memory.find(seen(tensor.untyped_storage())) is not None


def test_what_was_found_outlives_the_object() -> None:
    tensor = torch.full((MiB,), 7.0)
    state = [tensor]
    found = LastingMemory(state).find(seen(tensor.untyped_storage()))
    del tensor, state
    gc.collect()
    torch.zeros(MiB)  # would take the same memory
    assert found is not None
    assert torch.frombuffer(found, dtype=torch.float32).eq(7).all()


def test_tensors_that_saving_makes_are_copied(checkpoint: S3Checkpoint, root: str) -> None:
    state = {"fresh": [Fresh(float(value)) for value in range(20)], "held": torch.full((3 * MiB,), 5.0)}
    checkpoint.save(state, f"{root}/fresh.pt")
    loaded = checkpoint.load(f"{root}/fresh.pt", weights_only=False)
    assert [one.tensor[0].item() for one in loaded["fresh"]] == list(range(20))
    assert all(one.tensor.eq(one.tensor[0]).all() for one in loaded["fresh"])
    assert loaded["held"].eq(5).all()


def test_a_save_that_fails_lets_go_of_the_tensors(
    checkpoint: S3Checkpoint, root: str, counting_server: CountingServer
) -> None:
    checkpoint.save({"old": 1}, f"{root}/model.pt")
    counting_server.fault(operation="UploadPart", skip=1, status=403, code="AccessDenied")
    state = {str(index): torch.full((4 * MiB,), float(index)) for index in range(8)}
    with pytest.raises(S3Exception):
        checkpoint.save(state, f"{root}/model.pt")
    del state
    gc.collect()
    counting_server.faults_clear()
    assert checkpoint.load(f"{root}/model.pt") == {"old": 1}


def save_whole(options: dict[str, Any], uri: str, state: dict[str, Any]) -> None:
    S3Checkpoint(**options).save(state, uri)


def save_to_writer(options: dict[str, Any], uri: str, state: dict[str, Any]) -> None:
    with S3Checkpoint(**options).writer(uri) as writer:
        torch.save(state, writer)


def save_distributed(options: dict[str, Any], uri: str, state: dict[str, Any]) -> None:
    dcp.save(state, storage_writer=S3StorageWriter(path=uri, **options))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("save", [save_whole, save_to_writer, save_distributed])
def test_nothing_is_kept_of_what_could_not_be_saved(
    options: dict[str, Any], root: str, counting_server: CountingServer, save: Callable[..., None]
) -> None:
    # torch's archive writer refers to the file that it writes to, and the garbage collector does not know.
    counting_server.fault(operation="CreateMultipartUpload", status=403, code="AccessDenied")

    def fail() -> weakref.ref[torch.Tensor]:
        tensor = torch.ones(8 * MiB)
        with pytest.raises((S3Exception, RuntimeError, CheckpointException)):
            save(options, f"{root}/model", {"weight": tensor})
        return weakref.ref(tensor)

    tensor = fail()
    gc.collect()
    assert tensor() is None

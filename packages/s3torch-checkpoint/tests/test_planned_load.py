"""Archives whose storages are filled all at once: the right bytes, only where that is sure, and in order elsewhere."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planned_loads import note_planned_loads
from s3core import ObjectChangedError, S3Client
from s3torch_checkpoint import S3Checkpoint
from s3torch_checkpoint._archive_directory import archive_members, directory_start
from s3torch_checkpoint._archive_reader import ArchiveReader
from s3torch_checkpoint._planned_load import NotPlannable, is_plannable, load_planned
from s3torch_checkpoint._progress import TransferProgress
from servers.counting import CountingServer
from torch_features import needs_torch

MiB = 2**20
Options = dict[str, Any]


def archive_of(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def load(options: Options, server: CountingServer, data: bytes) -> Any:
    server.put("model.pt", data)
    client = S3Client(options["region"], endpoint=options["endpoint"], s3client_config=options["s3client_config"])
    with (
        TransferProgress("", None, enabled=False) as progress,
        ArchiveReader(client, server.bucket, "model.pt", progress) as file,
    ):
        return load_planned(file, None)


@given(st.lists(st.integers(0, 3000), max_size=12))
def test_the_directory_tells_where_each_storage_lies(lengths: list[int]) -> None:
    state = [torch.arange(length, dtype=torch.int64) * (index + 1) for index, length in enumerate(lengths)]
    data = archive_of(state)
    start = directory_start(data[-65536:])
    assert start is not None
    members = archive_members(data[start:], start)
    assert members is not None
    found = [data[member.start : member.end] for member in members if member.is_storage]
    assert sorted(found) == sorted(tensor.numpy().tobytes() for tensor in state if tensor.numel())
    assert [data[member.start : member.end] for member in members if member.is_byte_order] == [b"little"]
    for member in members:
        assert member.is_told_by(data[member.header : member.header + 30])


def test_a_state_of_plain_tensors_is_filled_at_once(options: Options, counting_server: CountingServer) -> None:
    weight = torch.randn(3 * MiB)
    parameter = torch.nn.Parameter(torch.randn(10, 10))
    state = OrderedDict(weight=weight, view=weight[5:10], parameter=parameter, empty=torch.empty(0), n=[1, (2.5, "x")])
    loaded = load(options, counting_server, archive_of(state))
    assert torch.equal(loaded["weight"], weight)
    assert loaded["view"].data_ptr() == loaded["weight"][5:].data_ptr()
    assert torch.equal(loaded["parameter"], parameter)
    assert loaded["n"] == [1, (2.5, "x")]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was loaded with all bytes at once."""
    return note_planned_loads(monkeypatch)


@pytest.mark.parametrize("weights_only", [True, False, None])
def test_plain_tensors_are_filled_at_once_whatever_is_allowed(
    options: Options, counting_server: CountingServer, planned: list[Any], weights_only: bool | None
) -> None:
    weight = torch.randn(MiB)
    counting_server.put("model.pt", archive_of({"weight": weight, "epoch": 3}))
    uri = f"s3://{counting_server.bucket}/model.pt"
    loaded = S3Checkpoint(**options).load(uri, weights_only=weights_only)
    assert loaded is planned[0]
    assert torch.equal(loaded["weight"], weight)


def test_a_short_archive_takes_one_request(
    options: Options, counting_server: CountingServer, planned: list[Any]
) -> None:
    weight = torch.randn(10_000)
    counting_server.put("model.pt", archive_of({"weight": weight}))
    loaded = S3Checkpoint(**options).load(f"s3://{counting_server.bucket}/model.pt")
    assert torch.equal(loaded["weight"], weight)
    assert [request.operation for request in counting_server.requests] == ["GetObject"]
    assert planned == []


def test_what_needs_code_is_loaded_in_order(
    options: Options, counting_server: CountingServer, planned: list[Any]
) -> None:
    weight = torch.randn(MiB)
    state = {"weight": weight, "arguments": argparse.Namespace(lr=0.1)}
    counting_server.put("model.pt", archive_of(state))
    uri = f"s3://{counting_server.bucket}/model.pt"
    loaded = S3Checkpoint(**options).load(uri, weights_only=False)
    assert torch.equal(loaded["weight"], weight)
    assert loaded["arguments"].lr == 0.1
    assert planned == []
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        S3Checkpoint(**options).load(uri, weights_only=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["sparse", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_looks_at_its_bytes_is_loaded_in_order(
    options: Options, counting_server: CountingServer, make: Callable[[], torch.Tensor]
) -> None:
    tensor = make()
    with pytest.raises(NotPlannable):
        load(options, counting_server, archive_of({"a": tensor}))
    is_safe = not tensor.is_nested  # newer ones than torch 2.13 want to be told that these are
    loaded = S3Checkpoint(**options).load(f"s3://{counting_server.bucket}/model.pt", weights_only=is_safe)
    assert str(loaded["a"]) == str(tensor)


class Converted:
    """Pickles as what makes, while it is loaded, a tensor of another dtype from a tensor's bytes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, (self.tensor, torch.float64, "cpu", False)


@pytest.mark.skipif(
    not hasattr(torch._utils, "_rebuild_device_tensor_from_cpu_tensor"), reason="this version of torch has no such"
)
def test_a_tensor_made_from_the_bytes_of_another_is_loaded_in_order(
    options: Options, counting_server: CountingServer
) -> None:
    tensor = torch.randn(100_000)
    with pytest.raises(NotPlannable):
        load(options, counting_server, archive_of({"a": tensor, "b": Converted(tensor)}))
    loaded = S3Checkpoint(**options).load(f"s3://{counting_server.bucket}/model.pt")
    assert torch.equal(loaded["a"], tensor)
    assert torch.equal(loaded["b"], tensor.double())


def test_an_archive_written_by_another_tool_is_loaded_in_order(
    options: Options, counting_server: CountingServer
) -> None:
    state = {"a": torch.arange(1000.0), "b": torch.arange(77)}
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive_of(state))) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(NotPlannable):
        load(options, counting_server, packed.getvalue())
    loaded = S3Checkpoint(**options).load(f"s3://{counting_server.bucket}/model.pt")
    assert torch.equal(loaded["a"], state["a"])


def test_an_archive_with_a_gap_between_its_members_is_loaded(options: Options, counting_server: CountingServer) -> None:
    data = archive_of({"a": torch.arange(1000.0)})
    start = directory_start(data)
    assert start is not None
    members = archive_members(data[start:], start)
    assert members is not None
    for member in members:
        gap = 2048 * 64
        behind = next((one.header for one in members if one.header > member.header), start)
        moved = bytearray(data[:behind] + bytes(gap) + data[behind:])
        position = start + gap
        while moved[position : position + 4] == b"PK\x01\x02":  # an entry of the directory
            name, extra, comment, header = struct.unpack_from("<3H8xI", moved, position + 28)
            struct.pack_into("<I", moved, position + 42, header + (gap if header >= behind else 0))
            position += 46 + name + extra + comment
        end = moved.rfind(b"PK\x06\x06")  # of an archive with 64-bit offsets, followed by where it is itself
        struct.pack_into("<Q", moved, end + 48, start + gap)
        struct.pack_into("<Q", moved, moved.rfind(b"PK\x06\x07") + 8, end)
        counting_server.put("model.pt", bytes(moved))
        loaded = S3Checkpoint(**options).load(f"s3://{counting_server.bucket}/model.pt")
        assert torch.equal(loaded["a"], torch.arange(1000.0))


def test_a_local_header_that_says_otherwise_is_believed(options: Options, counting_server: CountingServer) -> None:
    data = bytearray(archive_of({"a": torch.ones(9 * MiB, dtype=torch.uint8)}))
    start = directory_start(bytes(data[-65536:]))
    assert start is not None
    members = archive_members(bytes(data[start:]), start)
    assert members is not None
    (storage,) = (member for member in members if member.is_storage)
    data[storage.header + 28] ^= 64
    with pytest.raises(NotPlannable):
        load(options, counting_server, bytes(data))


def test_other_ways_of_loading_are_not_planned() -> None:
    assert is_plannable(None)
    assert is_plannable("cpu")
    assert is_plannable(torch.device("cpu"))
    assert not is_plannable("meta")
    assert not is_plannable({"cuda:0": "cpu"})
    assert not is_plannable(lambda storage, location: storage)


@needs_torch("torch.serialization.safe_globals")
def test_functions_that_the_user_allows_stop_the_planning() -> None:
    with torch.serialization.safe_globals([archive_of]):
        assert not is_plannable(None)


def test_an_object_replaced_before_it_is_filled_is_an_error(options: Options, counting_server: CountingServer) -> None:
    data = archive_of({"a": torch.zeros(20 * MiB, dtype=torch.uint8)})
    counting_server.fault(operation="GetObject", skip=2, times=1, replace_with=data[:-1] + b"x")
    with pytest.raises(ObjectChangedError):
        load(options, counting_server, data)

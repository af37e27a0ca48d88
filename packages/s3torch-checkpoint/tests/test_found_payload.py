"""Where the bytes of a tensor lie in what torch wrote of it, told from its ends alone."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from s3torch_checkpoint.dcp import S3StorageReader
from s3torch_checkpoint.dcp._found_payload import END_BYTES, with_payload
from s3torch_checkpoint.dcp._load_pieces import WholePiece
from s3torch_checkpoint.dcp._payload import Payload, payload_of
from servers import CountingServer

MiB = 2**20
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.complex64, torch.float8_e4m3fn, torch.bool, torch.int64)


def saved(value: Any, **more: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **more)
    return file.getvalue()


def find(data: bytes, offset: int = 0) -> Payload | None:
    info = SimpleNamespace(relative_path="file", offset=offset, length=len(data))
    found = with_payload(info, memoryview(data)[:END_BYTES], memoryview(data)[-END_BYTES:])
    assert payload_of(info) is None, "the metadata's own record is left alone"
    return None if found is None else payload_of(found)


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 9), max_size=4),
    st.integers(50_000, 100_000),
    st.integers(0, 10**12),
)
@settings(max_examples=40, deadline=None)
def test_the_bytes_are_where_they_are_said_to_be(dtype: torch.dtype, shape: list[int], least: int, offset: int) -> None:
    shape = [-(-least // math.prod(shape)), *shape]
    tensor = torch.randint(0, 256, [math.prod(shape) * dtype.itemsize], dtype=torch.uint8).view(dtype).reshape(shape)
    data = saved(tensor)
    payload = find(data, offset)
    assert payload is not None
    assert (payload.dtype, payload.shape, payload.length) == (dtype, tuple(shape), tensor.nbytes)
    start = payload.start - offset
    stored = torch.frombuffer(bytearray(data[start : start + payload.length]), dtype=torch.uint8)
    assert torch.equal(stored, tensor.reshape(-1).view(torch.uint8))


def without_byte_order(data: bytes, order: bytes | None) -> bytes:
    """The archive with another byte order, or with none, as torch wrote it before 2.1."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            if not name.endswith("/byteorder"):
                new.writestr(name, old.read(name))
            elif order is not None:
                new.writestr(name, order)
    return file.getvalue()


TENSOR = torch.randn(300, 200)
UNKNOWN: dict[str, bytes] = {
    "a view of more": saved(TENSOR[:100]),
    "transposed": saved(TENSOR.t()),
    "a part that begins later": saved(TENSOR[10:]),
    "sparse": saved(torch.eye(20_000).to_sparse()),
    "a parameter": saved(torch.nn.Parameter(TENSOR)),
    "two tensors": saved([TENSOR, TENSOR + 1]),
    "no tensor": saved({"a": "b" * 100_000}),
    "legacy": saved(TENSOR, _use_new_zipfile_serialization=False),
    "big-endian": without_byte_order(saved(TENSOR), b"big"),
    "of unknown byte order": without_byte_order(saved(TENSOR), None),
    "random": bytes(torch.randint(0, 256, [200_000], dtype=torch.uint8)),
    "cut short": saved(TENSOR)[:-100],
    "cut at its start": saved(TENSOR)[100:],
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_nothing_is_said_where_it_might_not_hold(what: str) -> None:
    assert find(UNKNOWN[what]) is None


@pytest.fixture
def foreign(options: dict[str, Any], counting_server: CountingServer, tmp_path: Path) -> dict[str, Any]:
    """A state that torch itself has saved under `run`."""
    state = {f"layer.{index}": torch.randn(1024, 1024) for index in range(4)} | {"small": torch.randn(1000), "epoch": 3}
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path))
    for path in tmp_path.iterdir():
        counting_server.put(f"run/{path.name}", path.read_bytes())
    return state


def test_a_checkpoint_of_torch_goes_straight_to_its_destinations(
    options: dict[str, Any],
    root: str,
    foreign: dict[str, Any],
    counting_server: CountingServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting_server.clear()
    opened: list[int] = []
    open_whole = WholePiece.open
    monkeypatch.setattr(WholePiece, "open", lambda self: opened.append(self.memory_bytes) or open_whole(self))
    target = {name: torch.zeros_like(value) if name != "epoch" else None for name, value in foreign.items()}
    dcp.load(target, storage_reader=S3StorageReader(path=root, **options))
    assert target.pop("epoch") == foreign.pop("epoch")
    assert all(torch.equal(target[name], tensor) for name, tensor in foreign.items())
    assert len(opened) == 2, "the small tensor and the number alone"
    assert max(opened) < MiB
    assert {request.method for request in counting_server.requests} == {"GET"}


def test_a_file_that_is_replaced_behind_the_ends_of_its_items_is_an_error(
    options: dict[str, Any], root: str, foreign: dict[str, Any], counting_server: CountingServer
) -> None:
    ends = 5  # where two items meet, one request brings both ends
    counting_server.fault(
        operation="GetObject", key="run/__0_0.distcp", skip=ends - 1, times=1, replace_with=b"x" * 20 * MiB
    )
    counting_server.clear()
    target = {name: torch.zeros_like(value) for name, value in foreign.items() if name.startswith("layer")}
    with pytest.raises(dcp.api.CheckpointException, match="ObjectChangedError"):
        dcp.load(target, storage_reader=S3StorageReader(path=root, **options))
    statuses = [request.status for request in counting_server.requests if request.key.endswith(".distcp")]
    assert statuses[:ends] == [206] * ends
    assert set(statuses[ends:]) == {412}


class OneTarget:
    """As much of a planner as a reader needs: one destination for everything."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target

    def resolve_tensor(self, item: ReadItem) -> torch.Tensor:
        return self.target

    def commit_tensor(self, item: ReadItem, tensor: torch.Tensor) -> None: ...


@pytest.mark.parametrize(("begin", "count"), [(0, 1024), (0, 1), (17, 100), (1023, 1)])
def test_only_the_rows_needed_are_fetched_of_it(
    options: dict[str, Any],
    root: str,
    foreign: dict[str, Any],
    counting_server: CountingServer,
    begin: int,
    count: int,
) -> None:
    index = MetadataIndex("layer.2", torch.Size([0, 0]))
    size = torch.Size
    item = ReadItem(LoadItemType.TENSOR, index, size([0, 0]), index, size([begin, 0]), size([count, 1024]))
    target = torch.zeros(count, 1024)
    reader = S3StorageReader(path=root, **options)
    reader.set_up_storage_reader(reader.read_metadata(), True)
    planner: Any = OneTarget(target)
    reader.read_data(reader.prepare_local_plan(LoadPlan([item])), planner).wait()
    assert torch.equal(target, foreign["layer.2"][begin : begin + count])
    sent = sum(request.bytes_sent for request in counting_server.requests if request.key.endswith(".distcp"))
    assert sent == target.nbytes + 2 * END_BYTES

"""Destinations that share memory, and planners that use memory again: one tensor after the other, and none torn."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.testing._internal.two_tensor import TwoTensor

from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter
from s3torch_checkpoint.dcp._places import Places
from servers.counting import CountingServer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
Options = dict[str, Any]
ROWS, COLUMNS = 1000, 300


def save_apart(options: Options, uri: str, server: CountingServer, *names: str, slow: str) -> None:
    """Save tensors full of 1.0, 2.0, … in objects of their own, of which one comes later than the others."""
    state = {name: torch.full((ROWS, COLUMNS), float(number)) for number, name in enumerate(names, 1)}
    dcp.save(state, storage_writer=S3StorageWriter(path=uri, **options, single_file_per_rank=False))
    metadata = pickle.loads(server.get("run/.metadata"))
    (key,) = (f"run/{info.relative_path}" for index, info in metadata.storage_data.items() if index.fqn == slow)
    server.fault(operation="GetObject", key=key, delay_seconds=0.5)


def load(options: Options, uri: str, state: dict[str, Any], planner: DefaultLoadPlanner | None = None) -> None:
    dcp.load(state, storage_reader=S3StorageReader(path=uri, **options), planner=planner)


def tied(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    memory = torch.zeros(ROWS * COLUMNS + 10)
    first, second = memory[:-10].view(ROWS, COLUMNS), memory[10:].view(ROWS, COLUMNS)
    if kind == "the same":
        return first, first
    if kind == "in part the same":
        return first, second
    if kind == "of another dtype":
        return first, second.view(torch.int32)
    if kind == "of other strides":
        return first, memory[:-10].view(COLUMNS, ROWS).t()
    return TwoTensor(first, first.clone()), TwoTensor(first, first.clone())


@pytest.mark.parametrize(
    "kind", ["the same", "in part the same", "of another dtype", "of other strides", "within wrappers"]
)
def test_of_tensors_in_the_same_memory_the_last_one_stays_whole(
    options: Options, root: str, counting_server: CountingServer, kind: str
) -> None:
    save_apart(options, root, counting_server, "first", "second", "third", slow="first")
    first, second = tied(kind)
    state = {"first": first, "third": torch.zeros(ROWS, COLUMNS), "second": second}
    load(options, root, state)
    assert (second == 2).all()
    assert (state["third"] == 3).all()


def test_columns_of_one_memory_are_loaded_as_well(options: Options, root: str, counting_server: CountingServer) -> None:
    save_apart(options, root, counting_server, "left", "right", slow="right")
    memory = torch.zeros(ROWS, 2 * COLUMNS)
    load(options, root, {"left": memory[:, :COLUMNS], "right": memory[:, COLUMNS:]})
    assert (memory[:, :COLUMNS] == 1).all()
    assert (memory[:, COLUMNS:] == 2).all()


class OneBufferPlanner(DefaultLoadPlanner):
    """Gives the same memory for every tensor, and copies it out when it is filled."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = torch.zeros(ROWS * COLUMNS)
        self._item: Any = None

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        assert self._item is None
        self._item = read_item
        place = super().resolve_tensor(read_item)
        return self._buffer[: place.numel()].view(place.shape)

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        assert self._item is read_item
        self._item = None
        super().resolve_tensor(read_item).copy_(tensor)


def test_a_planner_may_use_the_memory_of_a_tensor_again_once_it_is_committed(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save_apart(options, root, counting_server, "first", "second", "third", slow="second")
    state = {name: torch.zeros(ROWS, COLUMNS) for name in ("first", "second", "third")}
    load(options, root, state, OneBufferPlanner())
    assert [tensor.unique().tolist() for tensor in state.values()] == [[1.0], [2.0], [3.0]]


class AsidePlanner(DefaultLoadPlanner):
    """Commits as the default planner does, but is another one."""

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        assert tensor.data_ptr() == self.resolve_tensor(read_item).data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_planner_of_another_kind_loads_what_the_default_one_does(
    options: Options, root: str, every_dtype: torch.Tensor, dtype: torch.dtype
) -> None:
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    saved = {"weight": weight, "odd": every_dtype, "empty": torch.empty(0, 3), "step": 7}
    dcp.save(saved, storage_writer=S3StorageWriter(path=root, **options))
    state = {
        "weight": torch.zeros(48, 64, dtype=dtype).t(),
        "odd": torch.empty_like(every_dtype),
        "empty": torch.empty(0, 3),
        "step": 0,
    }
    load(options, root, state, AsidePlanner())
    assert torch.equal(state["weight"], weight.to(dtype))
    assert bytes(state["odd"].untyped_storage()) == bytes(every_dtype.untyped_storage())
    assert state["step"] == 7


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, list[int]]:
    start, count, stride = draw(st.integers(0, 40)), draw(st.integers(0, 5)), draw(st.integers(1, 4))
    return draw(st.sampled_from("abcd")), [start + number * stride for number in range(count)]


@given(st.lists(tensors(), max_size=12))
def test_whatever_shares_memory_with_another_one_is_found(wanted: list[tuple[str, list[int]]]) -> None:
    memory = torch.zeros(64, dtype=torch.uint8)
    places, taken = Places(), dict[int, set[str]]()
    for owner, elements in wanted:
        tensor = memory[:0]
        if elements:
            stride = elements[1] - elements[0] if len(elements) > 1 else 1
            tensor = memory.as_strided((len(elements),), (stride,), elements[0])
        is_free = places.take(owner, tensor)
        assert not is_free or not any(taken.get(element, set()) - {owner} for element in elements)
        for element in elements:
            taken.setdefault(element, set()).add(owner)


def test_parts_of_one_destination_and_tensors_without_memory_are_in_nobodys_way() -> None:
    places, memory = Places(), torch.zeros(10, 10)
    assert places.take("a", memory[:, :5])
    assert places.take("a", memory[:, 5:])
    assert not places.take("b", memory[9, 9:])
    for owner in ("c", "d"):
        assert places.take(owner, torch.empty(3, device="meta"))
        assert places.take(owner, memory[:0])

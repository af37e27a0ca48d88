"""Checkpoints of tensors on a CUDA device, written from there and loaded to there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from s3torch_checkpoint import S3Checkpoint
from s3torch_checkpoint._fetch import WINDOW_BYTES
from s3torch_checkpoint._fetch_plan import Want
from s3torch_checkpoint._memory import tensor_buffer
from s3torch_checkpoint._region import cut_region
from s3torch_checkpoint._tensor_pieces import BlockPiece
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter
from s3torch_checkpoint.safetensors import load_file, load_sharded, safe_open, save_file
from s3torch_checkpoint.safetensors._header import CODES
from servers import free_ports
from servers.counting import CountingServer
from torch_features import needs_torch

MiB = 2**20
BUFFER_BYTES = 32 * MiB  # a tensor that is longer passes through several
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings(
        "ignore:torch.distributed is disabled",
        "ignore:TypedStorage is deprecated",
        "ignore:Detected an existing checkpoint",
        "ignore:::torch",  # what it says of its own process groups and stagers on a device
    ),
]

Options = dict[str, Any]


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(300, 200, generator=generator),
        "half": torch.randn(1001, generator=generator).bfloat16(),
        "eighth": torch.randn(64, 48, generator=generator).to(torch.float8_e4m3fn),
        "bytes": torch.randint(0, 255, (7,), dtype=torch.uint8, generator=generator),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "complex": torch.randn(33, dtype=torch.complex64, generator=generator),
        "large": torch.randint(
            0, 2**31 - 1, (9 * MiB + 3,), generator=generator, dtype=torch.int32
        ),  # two buffers' worth
    }


def to_cuda(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: to_cuda(value) for name, value in state.items()}
    return state.cuda() if isinstance(state, torch.Tensor) else state


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's values, for the dtypes that cannot be compared."""
    return bytes(tensor_buffer(tensor.cpu().contiguous()))


def assert_on_cuda(got: dict[str, Any], wanted: dict[str, torch.Tensor]) -> None:
    """The tensors are on the device, and have the values of those on the CPU."""
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].is_cuda, name
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        assert bytes_of(got[name]) == bytes_of(tensor), name


@pytest.fixture
def uri(root: str) -> str:
    return f"{root}/model.safetensors"


@pytest.fixture
def stored(uri: str, counting_server: CountingServer) -> dict[str, torch.Tensor]:
    """Tensors that the library itself has written."""
    tensors = some_tensors()
    counting_server.put("run/model.safetensors", safetensors.torch.save(tensors))
    return tensors


@pytest.fixture
def stream() -> Iterator[torch.cuda.Stream]:
    """A stream of its own, made current."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield torch.cuda.current_stream()


def keep_busy(seconds: float = 0.5) -> None:
    """Give the current stream something to do for longer than the work on the CPU takes; returns at once."""
    torch.cuda._sleep(int(seconds * 2e9))  # in cycles of the device


# safetensors


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, torch.device("cuda")], ids=str)
def test_a_safetensors_file_is_loaded_to_the_device(
    options: Options, uri: str, stored: dict[str, torch.Tensor], device: Any
) -> None:
    assert_on_cuda(load_file(uri, device=device, **options), stored)
    assert_on_cuda(load_file(uri, device=device, keys=["half"], **options), {"half": stored["half"]})


@pytest.mark.parametrize("dtype", sorted(CODES, key=str), ids=str)
def test_every_dtype_of_the_format_gets_to_the_device_and_back(options: Options, uri: str, dtype: torch.dtype) -> None:
    raw = torch.arange(64, dtype=torch.uint8)
    tensor = raw.remainder(2).bool() if dtype == torch.bool else raw.view(dtype)
    save_file({"a": tensor.cuda()}, uri, **options)
    loaded = load_file(uri, device="cuda", **options)["a"]
    assert loaded.dtype == dtype
    assert loaded.is_cuda
    assert bytes_of(loaded) == bytes_of(tensor)
    columns = load_file(uri, **options)["a"].view(4, -1)
    save_file({"a": columns}, uri, **options)
    with safe_open(uri, device="cuda", **options) as file:
        assert bytes_of(file.get_slice("a")[1:, :1]) == bytes_of(columns[1:, :1])


def test_each_tensor_on_the_device_has_memory_of_its_own(
    options: Options, uri: str, stored: dict[str, torch.Tensor]
) -> None:
    for tensor in load_file(uri, device="cuda", **options).values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_safe_open_gives_tensors_and_slices_on_the_device(
    options: Options, uri: str, stored: dict[str, torch.Tensor]
) -> None:
    with safe_open(uri, device="cuda", **options) as file:
        assert_on_cuda({name: file.get_tensor(name) for name in file.keys()}, stored)  # noqa: SIM118 (no mapping)
        weight, large = file.get_slice("weight"), file.get_slice("large")
        slices = {"rows": weight[10:20], "columns": weight[:, 3:190:2], "one": weight[7], "none": weight[5:5]}
        slices |= {"element": weight[2, 3], "long": large[5 : 8 * MiB + 9]}
    whole = stored["weight"]
    wanted = {"rows": whole[10:20], "columns": whole[:, 3:190:2], "one": whole[7], "none": whole[5:5]}
    wanted |= {"element": whole[2, 3], "long": stored["large"][5 : 8 * MiB + 9]}
    for name, tensor in wanted.items():
        assert slices[name].is_cuda, name
        assert torch.equal(slices[name].cpu(), tensor), name


def test_a_sharded_model_is_loaded_to_the_device(
    options: Options, root: str, uri: str, stored: dict[str, torch.Tensor], counting_server: CountingServer
) -> None:
    weight_map = ", ".join(f'"{name}": "model.safetensors"' for name in stored)
    counting_server.put("run/model.safetensors.index.json", f'{{"weight_map": {{{weight_map}}}}}'.encode())
    assert_on_cuda(load_sharded(root, device="cuda", **options), stored)


def test_views_of_one_tensor_on_the_device_are_saved_apart(
    options: Options, uri: str, counting_server: CountingServer
) -> None:
    whole = torch.arange(24.0, device="cuda").view(4, 6)
    save_file({"top": whole[:2], "bottom": whole[2:]}, uri, **options)
    save_file({"turned": whole.t()}, f"{uri}2", **options)
    loaded = safetensors.torch.load(counting_server.get("run/model.safetensors"))
    assert torch.equal(torch.cat([loaded["top"], loaded["bottom"]]), whole.cpu())
    assert torch.equal(safetensors.torch.load(counting_server.get("run/model.safetensors2"))["turned"], whole.cpu().t())
    with pytest.raises(ValueError, match="share memory"):
        save_file({"top": whole[:3], "bottom": whole[2:]}, uri, **options)


# How bytes get to the device


def test_bytes_for_the_device_arrive_in_pinned_memory() -> None:
    target = torch.zeros(6, 4, device="cuda")
    (block,) = cut_region((6, 4), (0, 0), (6, 4), 4)
    done = []
    piece = BlockPiece(Want("key", 0, target.nbytes), block, torch.float32, target, lambda: done.append(True))
    staging = torch.frombuffer(piece.open(), dtype=torch.float32)
    assert staging.is_pinned()
    staging.copy_(torch.arange(24.0))
    piece.finish()
    assert done == [True]
    staging.zero_()  # the buffer is free for other bytes at once
    assert torch.equal(target.cpu(), torch.arange(24.0).view(6, 4))


@pytest.mark.parametrize("is_turned", [False, True], ids=["plain", "turned"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.bfloat16], ids=str)
def test_a_buffer_is_free_when_its_elements_are_on_a_busy_device(
    stream: torch.cuda.Stream, is_turned: bool, dtype: torch.dtype
) -> None:
    target = (
        torch.zeros(3, 4, dtype=dtype, device="cuda").t()
        if is_turned
        else torch.zeros(4, 3, dtype=dtype, device="cuda")
    )
    (block,) = cut_region((8, 8), (2, 1), (4, 3), 4)
    piece = BlockPiece(Want("key", block.start, block.end), block, torch.int32, target, lambda: None)
    stored = torch.arange(64, dtype=torch.int32)
    staging = torch.frombuffer(piece.open(), dtype=torch.int32)
    staging.copy_(stored[block.start // 4 : block.end // 4])
    keep_busy()
    piece.finish()
    staging.zero_()
    assert stream.query()
    assert torch.equal(target.cpu(), stored.view(8, 8)[2:6, 1:4].to(dtype))


def test_a_busy_device_does_not_make_pinned_memory_grow(options: Options, root: str, stream: torch.cuda.Stream) -> None:
    count = getattr(torch.cuda, "host_memory_stats", None)
    if count is None:
        pytest.skip("this version of torch does not count pinned memory")
    tensor = torch.arange((WINDOW_BYTES + 3 * BUFFER_BYTES) // 4, dtype=torch.int32)
    save_file({"a": tensor}, f"{root}/large.safetensors", progress=False, **options)
    before = count()["num_host_alloc"]
    keep_busy(3)
    loaded = load_file(f"{root}/large.safetensors", device="cuda", progress=False, **options)["a"]
    assert count()["num_host_alloc"] - before <= WINDOW_BYTES // BUFFER_BYTES
    assert torch.equal(loaded.cpu(), tensor)


def test_what_is_loaded_is_there_for_every_stream(
    options: Options, uri: str, stored: dict[str, torch.Tensor], stream: torch.cuda.Stream
) -> None:
    keep_busy()
    loaded = load_file(uri, device="cuda", **options)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert_on_cuda(loaded, stored)


# One object


def one_object_state() -> dict[str, Any]:
    tensors = to_cuda(some_tensors())
    return {"model": tensors, "view": tensors["weight"][3:5], "step": 3}


def assert_same_object(got: dict[str, Any], device: str) -> None:
    wanted = some_tensors()
    assert got["step"] == 3
    assert got["view"].untyped_storage().data_ptr() == got["model"]["weight"].untyped_storage().data_ptr()
    for name, tensor in wanted.items():
        assert got["model"][name].device.type == device, name
        assert bytes_of(got["model"][name]) == bytes_of(tensor), name


@pytest.mark.parametrize(
    ("map_location", "device"),
    [
        (None, "cuda"),
        ("cuda", "cuda"),
        (torch.device("cuda:0"), "cuda"),
        ("cpu", "cpu"),
        ({"cuda:0": "cpu"}, "cpu"),
        (lambda storage, location: storage.cuda(), "cuda"),
    ],
    ids=["none", "cuda", "cuda:0", "cpu", "dict", "function"],
)
@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mmap"])
def test_what_was_saved_from_the_device_is_loaded_to_any(
    options: Options, root: str, tmp_path: Path, map_location: Any, device: str, mmap: bool
) -> None:
    checkpoint = S3Checkpoint(**options)
    checkpoint.save(one_object_state(), f"{root}/model.pt")
    loaded = checkpoint.load(f"{root}/model.pt", map_location, mmap=mmap, cache_dir=tmp_path)
    assert_same_object(loaded, device)


def test_what_was_saved_from_the_cpu_is_loaded_to_the_device(options: Options, root: str) -> None:
    checkpoint = S3Checkpoint(**options)
    checkpoint.save(some_tensors(), f"{root}/model.pt")
    assert_on_cuda(checkpoint.load(f"{root}/model.pt", "cuda"), some_tensors())


def test_reader_and_writer_do_for_tensors_on_the_device(options: Options, root: str) -> None:
    checkpoint = S3Checkpoint(**options)
    with checkpoint.writer(f"{root}/model.pt") as file:
        torch.save(one_object_state(), file)
    with checkpoint.reader(f"{root}/model.pt") as file:
        assert_same_object(torch.load(file), "cuda")


def test_a_save_waits_for_the_stream_that_computes(options: Options, root: str, stream: torch.cuda.Stream) -> None:
    keep_busy()
    computed = torch.zeros(1000, device="cuda") + 1
    S3Checkpoint(**options).save({"a": computed}, f"{root}/model.pt")
    assert S3Checkpoint(**options).load(f"{root}/model.pt", "cpu")["a"].sum() == 1000


# Distributed checkpoints


@pytest.fixture(params=["alone", "nccl", "cpu:gloo,cuda:nccl"])
def group(request: pytest.FixtureRequest) -> Iterator[str]:
    """No process group, or one of this process alone with each kind of backend."""
    backend = str(request.param)
    if backend != "alone":
        (port,) = free_ports(1)
        device = torch.device("cuda", 0)
        dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1, device_id=device)
    yield backend
    if backend != "alone":
        dist.destroy_process_group()


def distributed_state() -> dict[str, Any]:
    tensors = some_tensors()
    return {"model": {**tensors, "turned": tensors["weight"].t(), "slice": tensors["weight"][3:5]}, "step": 3}


def blank_on_cuda(state: dict[str, Any]) -> dict[str, Any]:
    return {"model": {name: torch.zeros_like(tensor.cuda()) for name, tensor in state["model"].items()}, "step": 0}


def save(options: Options, uri: str, state: dict[str, Any]) -> None:
    dcp.save(state, storage_writer=S3StorageWriter(path=uri, **options))


def load(options: Options, uri: str, state: dict[str, Any]) -> dict[str, Any]:
    dcp.load(state, storage_reader=S3StorageReader(path=uri, **options))
    return state


def assert_distributed(state: dict[str, Any]) -> None:
    wanted = distributed_state()
    assert_on_cuda(
        {name: tensor.contiguous() for name, tensor in state["model"].items()},
        {name: tensor.contiguous() for name, tensor in wanted["model"].items()},
    )
    assert state["step"] == wanted["step"]


def test_a_distributed_state_on_the_device_survives(options: Options, root: str, group: str) -> None:
    save(options, root, to_cuda(distributed_state()))
    assert_distributed(load(options, root, blank_on_cuda(distributed_state())))
    on_cpu = {"model": {name: torch.zeros_like(tensor) for name, tensor in distributed_state()["model"].items()}}
    load(options, root, on_cpu)
    assert_on_cuda(to_cuda(on_cpu["model"]), distributed_state()["model"])


def test_a_state_saved_from_the_cpu_is_loaded_to_the_device(options: Options, root: str) -> None:
    save(options, root, distributed_state())
    assert_distributed(load(options, root, blank_on_cuda(distributed_state())))


def test_every_dtype_survives_on_the_device(options: Options, root: str, every_dtype: torch.Tensor) -> None:
    save(options, root, {"a": every_dtype.cuda()})
    target = torch.empty_like(every_dtype, device="cuda")
    load(options, root, {"a": target})
    assert bytes_of(target) == bytes_of(every_dtype)


def test_tensors_on_the_device_of_any_dtype_stride_and_view_are_filled(options: Options, root: str) -> None:
    tensor = torch.randn(2000, 1500, generator=torch.Generator().manual_seed(0))
    names = ("double", "half", "turned", "view", "plain")
    save(options, root, dict.fromkeys(names, tensor.cuda()))
    whole = torch.zeros(2100, 1500, device="cuda")
    target = {
        "double": torch.zeros(2000, 1500, dtype=torch.float64, device="cuda"),
        "half": torch.zeros(2000, 1500, dtype=torch.bfloat16, device="cuda"),
        "turned": torch.zeros(1500, 2000, device="cuda").t(),
        "view": whole[10:2010],
        "plain": torch.zeros(2000, 1500, device="cuda"),
    }
    load(options, root, target)
    for name in names:
        assert torch.equal(target[name].cpu(), tensor.to(target[name].dtype)), name
    assert whole[:10].abs().sum() == whole[2010:].abs().sum() == 0


_SAVE_ASYNC = """
import sys
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter

if __name__ == "__main__":
    uri, kind, port, device = sys.argv[1:]
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    state = {"a": torch.arange(9 * 2**20, device=device), "b": torch.ones(7, dtype=torch.bfloat16, device=device)}
    writer = S3StorageWriter(None, uri)
    future = dcp.async_save(state, storage_writer=writer, async_checkpointer_type=AsyncCheckpointerType(kind))
    for tensor in state.values():
        tensor.zero_()
    future.result()
    dcp.load(state, storage_reader=S3StorageReader(None, uri))
    assert torch.equal(state["a"].cpu(), torch.arange(9 * 2**20)) and state["b"].sum() == 7
    dist.destroy_process_group()
    print("done")
"""


@needs_torch("torch.distributed.checkpoint.state_dict_saver.AsyncCheckpointerType")
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_what_is_trained_on_after_an_async_save_is_not_in_it(
    counting_server: CountingServer, root: str, run_python: Callable[..., str], kind: str
) -> None:
    (port,) = free_ports(1)
    assert "done" in run_python(counting_server, _SAVE_ASYNC, root, kind, str(port), "cuda")


_LOAD_REPLICATED = """
import sys
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter

uri, port, device, rank = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2)
state = {"large": torch.arange(9 * 2**20, device=device).view(-1, 1024), "small": torch.arange(7.0, device=device)}
state["turned"] = state["large"].t()
dcp.save(state, storage_writer=S3StorageWriter(None, uri))
target = {name: torch.full_like(tensor, -1) for name, tensor in state.items()}
dcp.load(target, storage_reader=S3StorageReader(None, uri, replicated=True))
assert all(torch.equal(target[name], state[name]) for name in state)
dist.destroy_process_group()
print("done")
"""


def test_ranks_that_share_what_they_read_have_it_on_the_device(
    counting_server: CountingServer, root: str, run_python: Callable[..., str]
) -> None:
    (port,) = free_ports(1)
    start = partial(run_python, counting_server, _LOAD_REPLICATED, root, str(port), "cuda")
    with ThreadPoolExecutor(2) as pool:
        assert all("done" in output for output in pool.map(start, ["0", "1"]))


def test_an_async_save_stages_through_pinned_memory_in_the_background(options: Options, root: str) -> None:
    staging = pytest.importorskip("torch.distributed.checkpoint.staging")
    if not hasattr(staging, "DefaultStager"):
        pytest.skip("this version of torch has no such stager")
    stager = staging.DefaultStager(staging.StagingOptions(True, False, True, True))
    saving: Any = dcp.async_save(
        to_cuda(distributed_state()),
        storage_writer=S3StorageWriter(path=root, **options),
        async_stager=stager,
    )
    saving.staging_completion.result()
    saving.upload_completion.result()
    stager.close()
    assert_distributed(load(options, root, blank_on_cuda(distributed_state())))


def test_a_distributed_save_waits_for_the_stream_that_computes(
    options: Options, root: str, stream: torch.cuda.Stream
) -> None:
    keep_busy()
    save(options, root, {"a": torch.zeros(1000, device="cuda") + 1, "b": torch.zeros(9 * MiB, device="cuda") + 2})
    loaded = load(options, root, {"a": torch.zeros(1000), "b": torch.zeros(9 * MiB)})
    assert loaded["a"].sum() == 1000
    assert loaded["b"].sum() == 18 * MiB


def test_a_load_comes_after_what_the_stream_has_yet_to_write(
    options: Options, root: str, stream: torch.cuda.Stream
) -> None:
    tensor = torch.arange(3 * MiB, dtype=torch.int32)
    save(options, root, {"a": tensor})
    keep_busy()
    target = torch.full((3 * MiB,), -1, dtype=torch.int32, device="cuda")
    load(options, root, {"a": target})
    assert torch.equal(target.cpu(), tensor)

"""safetensors files on S3: the same as the library's, only the bytes asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch._subclasses import FakeTensorMode

from s3core import NoSuchKeyError, ObjectChangedError
from s3torch_checkpoint import CorruptCheckpointError, IncompleteCheckpointError
from s3torch_checkpoint.safetensors import load_file, load_sharded, safe_open, save_file
from s3torch_checkpoint.safetensors._header import CODES
from servers import S3Server
from servers.counting import CountingServer

MiB = 2**20
Options = dict[str, Any]


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(300, 200, generator=generator),
        "half": torch.randn(1001, generator=generator).bfloat16(),
        "bytes": torch.randint(0, 255, (7,), dtype=torch.uint8, generator=generator),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "large": torch.randint(0, 2**31, (5 * MiB,), generator=generator),
        "transposed": torch.randn(6, 4, generator=generator).t(),
    }


@pytest.fixture
def uri(root: str) -> str:
    return f"{root}/model.safetensors"


@pytest.fixture
def stored(uri: str, counting_server: CountingServer) -> dict[str, torch.Tensor]:
    """Tensors that the library itself has written."""
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    counting_server.put("run/model.safetensors", safetensors.torch.save(tensors, {"format": "pt"}))
    return tensors


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


def test_what_the_library_wrote_is_loaded(options: Options, uri: str, stored: dict[str, torch.Tensor]) -> None:
    assert_same(load_file(uri, **options), stored)


def test_the_library_reads_what_is_saved(
    options: Options, uri: str, counting_server: CountingServer, tmp_path: Path
) -> None:
    save_file(some_tensors(), uri, {"format": "pt"}, **options)
    # From a file: safetensors 0.4.3 reads no empty tensor from memory.
    (tmp_path / "model.safetensors").write_bytes(counting_server.get("run/model.safetensors"))
    assert_same(safetensors.torch.load_file(tmp_path / "model.safetensors"), some_tensors())


def test_a_file_survives_on_every_server(s3_server: S3Server, make_options: Callable[..., Options]) -> None:
    options, uri = make_options(s3_server), f"s3://{s3_server.create_bucket()}/m.safetensors"
    save_file(some_tensors(), uri, **options)
    assert_same(load_file(uri, **options), some_tensors())


@pytest.mark.parametrize("dtype", sorted(CODES, key=str), ids=str)
def test_every_dtype_of_the_format_survives(options: Options, uri: str, dtype: torch.dtype) -> None:
    raw = torch.arange(64, dtype=torch.uint8)
    tensor = raw.remainder(2).bool() if dtype == torch.bool else raw.view(dtype)
    save_file({"a": tensor}, uri, **options)
    loaded = load_file(uri, **options)["a"]
    assert loaded.dtype == dtype
    assert bytes(loaded.untyped_storage()) == bytes(tensor.untyped_storage())


def test_an_empty_file_has_no_tensors(options: Options, uri: str) -> None:
    save_file({}, uri, **options)
    assert load_file(uri, **options) == {}


def test_each_tensor_has_memory_of_its_own(options: Options, uri: str, stored: dict[str, torch.Tensor]) -> None:
    for tensor in load_file(uri, **options).values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_only_the_tensors_asked_for_are_fetched(
    options: Options, uri: str, stored: dict[str, torch.Tensor], counting_server: CountingServer
) -> None:
    counting_server.clear()
    assert_same(load_file(uri, keys=["large"], **options), {"large": stored["large"]})
    header_read = 256 * 1024
    assert sum(request.bytes_sent for request in counting_server.requests) <= stored["large"].nbytes + header_read
    with pytest.raises(KeyError, match="nothing"):
        load_file(uri, keys=["nothing"], **options)


def test_many_small_tensors_take_few_requests(options: Options, uri: str, counting_server: CountingServer) -> None:
    tensors = {f"layer.{index}": torch.full((100,), float(index)) for index in range(5000)}
    save_file(tensors, uri, **options)
    counting_server.clear()
    assert_same(load_file(uri, **options), tensors)
    assert len(counting_server.requests) <= 5


def test_safe_open_looks_into_a_file(
    options: Options, uri: str, stored: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    local = tmp_path / "model.safetensors"
    safetensors.torch.save_file(stored, local, {"format": "pt"})
    with safe_open(uri, **options) as ours, safetensors.safe_open(local, "pt") as theirs:
        assert ours.keys() == sorted(theirs.keys())
        assert ours.metadata() == theirs.metadata()
        for name in ours.keys():  # noqa: SIM118 (a method of the library's)
            assert torch.equal(ours.get_tensor(name), theirs.get_tensor(name))
            assert ours.get_slice(name).get_shape() == theirs.get_slice(name).get_shape()
            assert ours.get_slice(name).get_dtype() == theirs.get_slice(name).get_dtype()


@pytest.mark.parametrize(
    "index",
    [
        slice(10, 20),
        slice(None, -290),
        5,
        -1,
        (slice(None), slice(3, 7)),
        (slice(0, 300, 7), slice(None, None, 3)),
        (..., 4),
        (2, ...),
        (3, 4),
        slice(20, 10),
        ...,
    ],
    ids=str,
)
def test_a_slice_is_the_same_as_of_the_whole_tensor(
    options: Options, uri: str, stored: dict[str, torch.Tensor], index: Any
) -> None:
    with safe_open(uri, **options) as file:
        got = file.get_slice("weight")[index]
    assert got.shape == stored["weight"][index].shape
    assert torch.equal(got, stored["weight"][index])


def test_a_slice_of_rows_fetches_only_these(
    options: Options, uri: str, stored: dict[str, torch.Tensor], counting_server: CountingServer
) -> None:
    with safe_open(uri, **options) as file:
        counting_server.clear()
        file.get_slice("large")[1000:3000]
    assert sum(request.bytes_sent for request in counting_server.requests) == 2000 * 8


def test_a_part_is_loaded_whatever_the_default_device_is(
    options: Options, uri: str, stored: dict[str, torch.Tensor]
) -> None:
    with torch.device("meta"), safe_open(uri, **options) as file:
        part = file.get_slice("weight")[:, 3:5]
    assert torch.equal(part, stored["weight"][:, 3:5])


@pytest.mark.parametrize("index", [(0, 0, 0), 300, "a", slice(None, None, -1), (..., ...), None])
def test_an_index_that_does_not_fit_is_refused(
    options: Options, uri: str, stored: dict[str, torch.Tensor], index: Any
) -> None:
    with safe_open(uri, **options) as file, pytest.raises(IndexError):
        file.get_slice("weight")[index]


def put_sharded(server: CountingServer, weight_map: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    for file_name in set(weight_map.values()):
        held = {name: tensors[name] for name, file in weight_map.items() if file == file_name and name in tensors}
        server.put(f"run/{file_name}", safetensors.torch.save(held))
    server.put("run/model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())


def test_a_sharded_model_is_loaded(options: Options, root: str, counting_server: CountingServer) -> None:
    tensors = {f"layer.{index}": torch.full((1000, 10), float(index)) for index in range(9)}
    weight_map = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(tensors)}
    put_sharded(counting_server, weight_map, tensors)
    assert_same(load_sharded(root, **options), tensors)
    assert_same(
        load_sharded(f"{root}/model.safetensors.index.json", keys=["layer.4"], **options),
        {"layer.4": tensors["layer.4"]},
    )
    assert_same(load_sharded(root, keys=iter(["layer.4"]), **options), {"layer.4": tensors["layer.4"]})  # type: ignore[arg-type]  # no collection
    assert_same(load_sharded(root, keys="layer.4", **options), {"layer.4": tensors["layer.4"]})


def test_the_index_decides_which_of_two_shards_a_tensor_comes_from(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    put_sharded(counting_server, {"a": "1.safetensors", "b": "2.safetensors"}, {"a": torch.ones(3), "b": torch.ones(3)})
    both = {"a": torch.zeros(5), "b": torch.zeros(5)}
    counting_server.put("run/2.safetensors", safetensors.torch.save(both))
    assert_same(load_sharded(root, **options), {"a": torch.ones(3), "b": torch.zeros(5)})


@pytest.mark.parametrize("base", ["", "/", "a//"])
def test_a_sharded_model_may_lie_under_any_key(options: Options, counting_server: CountingServer, base: str) -> None:
    counting_server.put(f"{base}one.safetensors", safetensors.torch.save({"a": torch.ones(3)}))
    counting_server.put(f"{base}model.safetensors.index.json", b'{"weight_map": {"a": "one.safetensors"}}')
    uri = f"s3://{counting_server.bucket}/{base}"
    assert_same(load_sharded(uri, **options), {"a": torch.ones(3)})
    assert_same(load_sharded(f"{uri}model.safetensors.index.json", **options), {"a": torch.ones(3)})


def test_a_missing_shard_or_tensor_is_named(options: Options, root: str, counting_server: CountingServer) -> None:
    tensors = {"a": torch.ones(3), "b": torch.ones(3)}
    put_sharded(counting_server, {"a": "one.safetensors", "b": "two.safetensors"}, tensors)
    counting_server.delete("run/two.safetensors")
    with pytest.raises(IncompleteCheckpointError, match=r"two\.safetensors"):
        load_sharded(root, **options)
    put_sharded(counting_server, {"a": "one.safetensors", "c": "one.safetensors"}, tensors)
    with pytest.raises(IncompleteCheckpointError, match="'c'"):
        load_sharded(root, **options)
    with pytest.raises(KeyError, match="'z'"):
        load_sharded(root, keys=["z"], **options)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b'{"weight_map": 1}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "../b"}}',
        b'{"weight_map": {"a": "/b"}}',
        b'{"weight_map": {"a": ""}}',
        b'{"weight_map": {"a": "b", "a": "c"}}',
        b'{"weight_map": {"a": "b"}, "weight_map": {"a": "c"}}',
        b'{"weight_map": {"a": "\\ud800"}}',
        b'{"weight_map": {"a": "' + b"x" * 1025 + b'"}}',
        b"[" * 100_000,
    ],
)
def test_a_bad_index_is_refused(options: Options, root: str, counting_server: CountingServer, index: bytes) -> None:
    counting_server.put("run/model.safetensors.index.json", index)
    with pytest.raises(CorruptCheckpointError, match="index"):
        load_sharded(root, **options)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 100, b"\x02" + bytes(7) + b"{}x", bytes(1000)])
def test_a_file_that_is_no_safetensors_file_is_refused(
    options: Options, uri: str, counting_server: CountingServer, content: bytes
) -> None:
    counting_server.put("run/model.safetensors", content)
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        load_file(uri, **options)


def test_a_header_longer_than_the_first_read_is_read_whole(options: Options, uri: str) -> None:
    tensors = {f"{'x' * 100}.{index}": torch.full((2,), float(index)) for index in range(3000)}
    save_file(tensors, uri, **options)
    assert_same(load_file(uri, **options), tensors)


def test_a_missing_file_is_named(options: Options, uri: str) -> None:
    with pytest.raises(NoSuchKeyError, match=r"model\.safetensors"):
        load_file(uri, **options)


def test_a_file_replaced_after_its_header_was_read_is_an_error(
    options: Options, uri: str, stored: dict[str, torch.Tensor], counting_server: CountingServer
) -> None:
    with safe_open(uri, **options) as file:
        save_file(some_tensors() | {"scalar": torch.tensor(4.5)}, uri, **options)
        with pytest.raises(ObjectChangedError):
            file.get_tensor("weight")


def test_a_failed_save_leaves_the_old_file(
    options: Options, uri: str, stored: dict[str, torch.Tensor], counting_server: CountingServer
) -> None:
    counting_server.fault(operation="UploadPart", skip=1, status=403, code="AccessDenied")
    with pytest.raises(PermissionError):
        save_file(some_tensors(), uri, **options)
    assert_same(load_file(uri, **options), stored)
    assert counting_server.uploads() == []


def test_tensors_that_share_memory_are_refused(options: Options, uri: str) -> None:
    tensor = torch.ones(10)
    with pytest.raises(ValueError, match="share memory"):
        save_file({"a": tensor, "b": tensor[5:]}, uri, **options)
    with pytest.raises(ValueError, match="'b' and 'c' share memory"):
        save_file({"a": tensor[:2], "b": tensor[3:8], "c": tensor[7:]}, uri, **options)
    save_file({"a": tensor[:5], "b": tensor[5:]}, uri, **options)
    assert load_file(uri, **options)["b"].tolist() == [1.0] * 5


def test_a_tensor_without_memory_of_its_own_is_refused(options: Options, uri: str) -> None:
    with FakeTensorMode():
        fake = torch.ones(4)
    with pytest.raises(ValueError, match="'a' is a FakeTensor"):
        save_file({"a": fake}, uri, **options)


@pytest.mark.parametrize(
    "tensor", [torch.ones(3).to_sparse(), torch.ones(3, dtype=torch.complex128), torch.empty(3, device="meta"), 1.0]
)
def test_what_the_format_cannot_hold_is_refused(options: Options, uri: str, tensor: Any) -> None:
    with pytest.raises(ValueError, match=r"safetensors|meta"):
        save_file({"a": tensor}, uri, **options)

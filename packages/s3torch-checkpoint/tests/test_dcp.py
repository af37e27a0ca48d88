"""Distributed checkpoints from one process: what is saved is what is loaded, whole, in part, and by torch itself."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

from s3torch_checkpoint import CheckpointExistsError
from s3torch_checkpoint.dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3StorageReader,
    S3StorageWriter,
)
from s3torch_datasets import S3ReaderConstructor
from servers import S3Server
from servers.counting import CountingServer

MiB = 2**20
pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled",
    "ignore:TypedStorage is deprecated",
    "ignore:Detected an existing checkpoint",
)

Options = dict[str, Any]


def random_state(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(400, 300, generator=generator)
    return {
        "model": {
            "weight": weight,
            "transposed": torch.randn(40, 30, generator=generator).t(),
            "slice": weight[3:5],
            "half": torch.randn(1000, generator=generator).bfloat16(),
            "empty": torch.empty(0, 3),
            "scalar": torch.tensor(float(seed)),
            "large": torch.randint(0, 255, (3 * MiB, 2), dtype=torch.uint8, generator=generator),
        },
        "step": seed,
        "list": [torch.randn(3, generator=generator), "text"],
    }


def blank(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: blank(value) for name, value in state.items()}
    if isinstance(state, list):
        return [blank(value) for value in state]
    return torch.zeros_like(state) if isinstance(state, torch.Tensor) else None


def assert_same(got: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_same(got[name], value)
    elif isinstance(wanted, list):
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(got, wanted)
    else:
        assert got == wanted


def save(options: Options, uri: str, state: dict[str, Any], **settings: Any) -> None:
    dcp.save(state, storage_writer=S3StorageWriter(path=uri, **options, **settings))


def load(options: Options, uri: str, state: dict[str, Any], **settings: Any) -> dict[str, Any]:
    dcp.load(state, storage_reader=S3StorageReader(path=uri, **options, **settings))
    return state


def test_a_state_survives_save_and_load(options: Options, root: str) -> None:
    state = random_state()
    save(options, root, state)
    assert_same(load(options, root, blank(state)), state)


def test_writer_and_reader_are_called_as_those_of_s3torchconnector(
    options: Options, root: str, counting_server: CountingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint"])
    region, config = options["region"], options["s3client_config"]
    dcp.save({"a": torch.ones(10)}, storage_writer=S3StorageWriter(region, root, config, BinaryPrefixStrategy(), 2))
    target = {"a": torch.zeros(10)}
    dcp.load(target, storage_reader=S3StorageReader(region, root, config, S3ReaderConstructor.dcp_optimized()))
    assert_same(target, {"a": torch.ones(10)})
    assert counting_server.get("run/.metadata")


def test_a_state_survives_on_every_server(s3_server: S3Server, make_options: Callable[..., Options]) -> None:
    options, uri = make_options(s3_server), f"s3://{s3_server.create_bucket()}/a b/step=1+2"
    save(options, uri, random_state())
    save(options, uri, random_state(1))
    assert_same(load(options, uri, blank(random_state())), random_state(1))


@pytest.mark.parametrize("uri", ["s3://{}", "s3://{}/", "s3://{}/a", "s3://{}/a/b/", "s3://{}/a//b"])
def test_any_folder_holds_a_checkpoint(options: Options, counting_server: CountingServer, uri: str) -> None:
    uri = uri.format(counting_server.bucket)
    save(options, uri, {"a": torch.ones(3)})
    assert load(options, uri, {"a": torch.zeros(3)})["a"].sum() == 3
    base = uri.removeprefix(f"s3://{counting_server.bucket}").removeprefix("/").removesuffix("/")
    assert (base + "/.metadata" if base else ".metadata") in set(counting_server.keys())


def test_every_dtype_survives(options: Options, root: str, every_dtype: torch.Tensor) -> None:
    save(options, root, {"a": every_dtype})
    target = torch.empty_like(every_dtype)
    load(options, root, {"a": target})
    assert bytes(target.untyped_storage()) == bytes(every_dtype.untyped_storage())


def test_tensors_are_loaded_into_any_dtype_stride_and_view(options: Options, root: str) -> None:
    tensor = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    names = ("double", "transposed", "view", "plain")
    save(options, root, dict.fromkeys(names, tensor))
    whole = torch.zeros(100, 48)
    target = {
        "double": torch.zeros(64, 48, dtype=torch.float64),
        "transposed": torch.zeros(48, 64).t(),
        "view": whole[10:74],
        "plain": torch.zeros(64, 48),
    }
    load(options, root, target)
    for name in names:
        assert torch.equal(target[name].float(), tensor), name
    assert whole[:10].abs().sum() == whole[74:].abs().sum() == 0


class RecordingLoadPlanner(DefaultLoadPlanner):
    """Loads into copies and puts them in place in `commit_tensor`, as a planner for another memory would."""

    def transform_tensor(self, read_item: Any, tensor: torch.Tensor) -> torch.Tensor:
        self.place = getattr(self, "place", {})
        self.place[read_item.dest_index, read_item.dest_offsets] = super().transform_tensor(read_item, tensor)  # type: ignore[no-untyped-call]
        return self.place[read_item.dest_index, read_item.dest_offsets].clone()

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        self.place[read_item.dest_index, read_item.dest_offsets].copy_(tensor)


@pytest.mark.parametrize("planner", [DefaultLoadPlanner, RecordingLoadPlanner])
def test_the_default_device_is_not_the_one_of_buffers(
    options: Options, root: str, planner: type[DefaultLoadPlanner]
) -> None:
    whole = torch.arange(100.0)
    state = {"view": whole[10:20], "rows": whole.view(10, 10)[2:4], "transposed": whole.view(10, 10).t(), "step": 7}
    target = {"view": torch.zeros(10), "rows": torch.zeros(2, 10).half(), "transposed": torch.zeros(10, 10), "step": 0}
    with torch.device("meta"):
        save(options, root, state)
        reader = S3StorageReader(path=root, **options)
        dcp.load(target, storage_reader=reader, planner=planner())
    assert_same(target, state | {"rows": state["rows"].half()})


def test_conjugated_and_negated_views_are_saved_as_they_look(options: Options, root: str) -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    save(options, root, {"conjugate": tensor.conj(), "imaginary": tensor.conj().imag})
    target = load(options, root, {"conjugate": torch.zeros(2, dtype=torch.complex64), "imaginary": torch.zeros(2)})
    assert target["conjugate"].tolist() == [1 - 2j, 3 + 4j]
    assert target["imaginary"].tolist() == [-2.0, 4.0]


def test_a_part_of_the_state_is_loaded_with_little_more_than_its_bytes(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    state = {f"layer.{index}": torch.full((25_000,), float(index)) for index in range(40)}
    save(options, root, state)
    counting_server.clear()
    target = {f"layer.{index}": torch.zeros(25_000) for index in (3, 17, 30)}
    load(options, root, target)
    assert_same(target, {name: state[name] for name in target})
    stored = 3 * (100_000 + 2048)
    assert sum(r.bytes_sent for r in counting_server.requests if r.key.endswith(".distcp")) <= 1.05 * stored


def test_a_full_load_fetches_little_more_than_is_stored(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    state = random_state()
    save(options, root, state)
    stored = sum(len(data) for key, data in counting_server.objects().items() if key.endswith(".distcp"))
    counting_server.clear()
    load(options, root, blank(state))
    data_requests = [request for request in counting_server.requests if request.key.endswith(".distcp")]
    assert sum(request.bytes_sent for request in data_requests) <= 1.05 * stored
    assert len(data_requests) <= 4
    assert not [request for request in counting_server.requests if request.operation != "GetObject"]


def test_the_data_of_a_save_is_written_before_its_metadata_and_nothing_twice(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    writer = S3StorageWriter(path=root, **options)
    for step in range(3):
        counting_server.clear()
        dcp.save(random_state(step), storage_writer=writer)
        written = [r.key for r in counting_server.requests if r.operation in ("PutObject", "CompleteMultipartUpload")]
        assert written[-1] == "run/.metadata"
        assert not any(request.operation == "CopyObject" for request in counting_server.requests)
    assert len(counting_server.keys()) == 2


def test_the_objects_of_the_replaced_checkpoint_are_deleted_after_the_commit(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save(options, root, random_state())
    old = {key for key in set(counting_server.keys()) if key.endswith(".distcp")}
    counting_server.clear()
    save(options, root, random_state(1))
    assert not old & set(counting_server.keys())
    keys = [(request.operation, request.key) for request in counting_server.requests]
    committed = keys.index(("PutObject", "run/.metadata"))
    assert all(not operation.startswith("Delete") for operation, _ in keys[:committed])


def test_a_checkpoint_of_torch_in_the_same_place_is_replaced_too(
    options: Options, root: str, counting_server: CountingServer, tmp_path: Path
) -> None:
    dcp.save(random_state(), storage_writer=FileSystemWriter(tmp_path))
    for path in tmp_path.iterdir():
        counting_server.put(f"run/{path.name}", path.read_bytes())
    save(options, root, random_state(1))
    assert "run/__0_0.distcp" not in set(counting_server.keys())
    assert_same(load(options, root, blank(random_state())), random_state(1))


def test_overwrite_false_refuses_before_anything_is_written(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save(options, root, {"a": torch.ones(3)}, overwrite=False)
    counting_server.clear()
    with pytest.raises(dcp.api.CheckpointException, match=CheckpointExistsError.__name__):
        save(options, root, {"a": torch.zeros(3)}, overwrite=False)
    assert all(request.method == "HEAD" for request in counting_server.requests)
    assert load(options, root, {"a": torch.zeros(3)})["a"].sum() == 3


def test_a_checkpoint_id_turns_writer_and_reader_to_another_place(options: Options, root: str) -> None:
    writer, reader = S3StorageWriter(path=root, **options), S3StorageReader(path=root, **options)
    dcp.save({"a": torch.ones(3)}, storage_writer=writer, checkpoint_id=root + "/other")
    target = {"a": torch.zeros(3)}
    dcp.load(target, storage_reader=reader, checkpoint_id=root + "/other")
    assert target["a"].sum() == 3
    assert writer.checkpoint_id == reader.checkpoint_id == root + "/other"


def test_torch_reads_ours_after_it_was_copied_to_disk(
    options: Options, root: str, counting_server: CountingServer, tmp_path: Path
) -> None:
    state = random_state()
    save(options, root, state, prefix_strategy=RoundRobinPrefixStrategy(["a", "b"], epoch_num=1))
    for key, data in counting_server.objects().items():
        path = tmp_path / key.removeprefix("run/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    target = blank(state)
    dcp.load(target, storage_reader=FileSystemReader(tmp_path))
    assert_same(target, state)


@pytest.mark.parametrize("thread_count", [1, 3])
def test_ours_reads_what_torch_wrote(
    options: Options, root: str, counting_server: CountingServer, tmp_path: Path, thread_count: int
) -> None:
    state = random_state()
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path, thread_count=thread_count))
    for path in tmp_path.iterdir():
        counting_server.put(f"run/{path.name}", path.read_bytes())
    assert_same(load(options, root, blank(state)), state)
    target = {"model": {"weight": torch.zeros(400, 300)}}
    assert_same(load(options, root, target), {"model": {"weight": state["model"]["weight"]}})


class PrefixedWriter(FileSystemWriter):
    """Passes prefixes on as s3torchconnector 1.5.0 does, which leaves the writing itself to torch."""

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        plans = super().prepare_global_plan(plans)
        for plan in plans:
            plan.storage_data.prefix = f"0000000000/epoch_2/{plan.storage_data.prefix}"
        return plans


def test_ours_reads_what_s3torchconnector_wrote(
    options: Options, root: str, counting_server: CountingServer, tmp_path: Path
) -> None:
    state = random_state()
    (tmp_path / "0000000000" / "epoch_2").mkdir(parents=True)
    dcp.save(state, storage_writer=PrefixedWriter(tmp_path, thread_count=2))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            counting_server.put(f"run/{path.relative_to(tmp_path)}", path.read_bytes())
    assert "run/0000000000/epoch_2/__0_0.distcp" in set(counting_server.keys())
    assert_same(load(options, root, blank(state)), state)


def test_a_foreign_object_replaced_while_it_is_loaded_is_an_error(
    options: Options, root: str, counting_server: CountingServer, tmp_path: Path
) -> None:
    state = {f"layer.{index}": torch.randn(3 * MiB) for index in range(3)}
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path))
    for path in tmp_path.iterdir():
        counting_server.put(f"run/{path.name}", path.read_bytes())
    data = (tmp_path / "__0_0.distcp").read_bytes()
    counting_server.fault(key="run/__0_0.distcp", method="GET", times=1, replace_with=data[:-1] + b"x")
    with pytest.raises(dcp.api.CheckpointException, match="ObjectChangedError"):
        load(options, root, blank(state))


def test_a_strategy_is_asked_by_a_call_as_s3torchconnector_asks_it(
    options: dict[str, Any], root: str, counting_server: CountingServer
) -> None:
    class Called(DefaultPrefixStrategy):
        def __call__(self, rank: int) -> str:
            return f"called/{rank}_"

    save(options, root, {"a": torch.ones(3)}, prefix_strategy=Called())
    assert sorted(key.rpartition("/")[0] for key in counting_server.objects()) == ["run", "run/called"]


def test_files_are_spread_as_the_prefix_strategy_says(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save(options, root, {"a": torch.ones(3)}, prefix_strategy=BinaryPrefixStrategy(epoch_num=2))
    (key,) = (key for key in set(counting_server.keys()) if key.endswith(".distcp"))
    assert key.startswith("run/0000000000/epoch_2/__0_0.")
    assert load(options, root, {"a": torch.zeros(3)})["a"].sum() == 3


def test_a_large_state_is_written_in_several_files_at_once(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    state = {f"layer.{index}": torch.full((4 * MiB,), float(index)) for index in range(5)}
    save(options, root, state, thread_count=3)
    assert len([key for key in set(counting_server.keys()) if key.endswith(".distcp")]) == 3
    assert_same(load(options, root, blank(state)), state)


def test_each_item_has_its_own_file_where_that_is_asked_for(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    state = {f"layer.{index}": torch.full((10,), float(index)) for index in range(5)}
    save(options, root, state, single_file_per_rank=False)
    assert len([key for key in set(counting_server.keys()) if key.endswith(".distcp")]) == 5
    assert_same(load(options, root, blank(state)), state)


def test_compressed_checkpoints_are_written_and_read(options: Options, root: str, tmp_path: Path) -> None:
    extension = pytest.importorskip("torch.distributed.checkpoint._extension")
    try:
        zstandard = extension.ZStandard()
    except ValueError:
        pytest.skip("no zstandard module is installed")
    state = random_state()
    save(options, root, state, _extensions=[zstandard])
    assert_same(load(options, root, blank(state)), state)


class Rot13:
    """A stream transform of the tests' own: each byte plus 13."""

    @staticmethod
    def from_descriptor(version: str) -> Rot13:
        return Rot13()

    @staticmethod
    def registry_name() -> str:
        return "stream.rot13"

    def get_descriptor(self) -> str:
        return "stream.rot13/1"

    def transform_to(self, output: Any) -> Any:
        return RotStream(output, 13)

    def transform_from(self, input: Any) -> Any:
        return RotStream(input, -13)


class RotStream:
    def __init__(self, raw: Any, step: int) -> None:
        self.raw, self.table = raw, bytes((byte + step) % 256 for byte in range(256))

    def write(self, data: Any) -> int:
        return int(self.raw.write(bytes(data).translate(self.table)))

    def read(self, size: int = -1) -> bytes:
        return bytes(self.raw.read(size)).translate(self.table)

    def seekable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Hesitant(Rot13):
    """Gives nothing at every other read, although there is more, as torch's transform on pyzstd does."""

    @staticmethod
    def from_descriptor(version: str) -> Hesitant:
        return Hesitant()

    def transform_from(self, input: Any) -> Any:
        return HesitantStream(input, -13)


class HesitantStream(RotStream):
    held = b""

    def read(self, size: int = -1) -> bytes:
        if not self.held:
            self.held = super().read(1000)
            return b""
        data, self.held = self.held, b""
        return data


@pytest.mark.parametrize("transform", [Rot13, Hesitant])
def test_stream_transforms_are_applied_and_undone(options: Options, root: str, transform: type[Rot13]) -> None:
    extension = pytest.importorskip("torch.distributed.checkpoint._extension")
    registry = extension.ExtensionRegistry()
    registry.register(transform)
    state = random_state()
    save(options, root, state, _extensions=[Rot13()])
    assert_same(load(options, root, blank(state), _extension_registry=registry), state)


class HalvingPlanner(DefaultSavePlanner):
    """Saves float32 as float16, and leaves the metadata as it was, as the example in torch's own docs does."""

    def transform_object(self, write_item: Any, object: Any) -> Any:
        result = super().transform_object(write_item, object)  # type: ignore[no-untyped-call]
        return result.half() if isinstance(result, torch.Tensor) else result


def test_a_planner_that_changes_dtypes_is_followed(options: Options, root: str) -> None:
    state = {"a": torch.arange(100.0), "b": torch.ones(3)}
    dcp.save(state, storage_writer=S3StorageWriter(path=root, **options), planner=HalvingPlanner())
    assert_same(load(options, root, blank(state)), state)


def test_each_tensor_is_committed_once_it_is_whole(options: Options, root: str) -> None:
    state = random_state()
    save(options, root, state)
    target = blank(state)
    dcp.load(target, storage_reader=S3StorageReader(path=root, **options), planner=RecordingLoadPlanner())
    assert_same(target, state)


def test_cached_plans_never_write_a_name_again(options: Options, root: str, counting_server: CountingServer) -> None:
    try:
        planner = DefaultSavePlanner(enable_plan_caching=True)
    except TypeError:
        pytest.skip("this version of torch has no plan caching")
    names = set()
    for step in range(3):
        state = {"a": torch.full((10,), float(step))}
        dcp.save(state, storage_writer=S3StorageWriter(path=root, **options), planner=planner)
        new = {key for key in set(counting_server.keys()) if key.endswith(".distcp")}
        assert len(new) == 1
        assert not new & names
        names |= new
        assert_same(load(options, root, blank(state)), state)


def test_async_save_in_a_thread_keeps_the_state_of_the_call(options: Options, root: str) -> None:
    state: dict[str, Any] = {"a": torch.ones(MiB), "optimizer": [{"step": torch.tensor(7.0), "name": "adam"}], "n": 1}
    saved = copy.deepcopy(state)
    # Older versions of torch find out by themselves.
    alone = {"no_dist": True} if "no_dist" in inspect.signature(dcp.async_save).parameters else {}
    future = dcp.async_save(state, storage_writer=S3StorageWriter(path=root, **options), **alone)
    state["a"].zero_()
    state["optimizer"][0]["step"].zero_()
    future.result()
    assert_same(load(options, root, blank(saved)), saved)


def test_writer_and_reader_pickle(options: Options, root: str) -> None:
    state = random_state()
    writer = pickle.loads(pickle.dumps(S3StorageWriter(path=root, **options, thread_count=2)))
    dcp.save(state, storage_writer=writer)
    target = blank(state)
    dcp.load(target, storage_reader=pickle.loads(pickle.dumps(S3StorageReader(path=root, **options))))
    assert_same(target, state)


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_a_thread_count_that_cannot_work_is_refused(options: Options, root: str, count: Any) -> None:
    with pytest.raises(ValueError, match="thread_count"):
        S3StorageWriter(path=root, **options, thread_count=count)


def test_only_s3_uris_are_checkpoint_ids() -> None:
    for kind in (S3StorageWriter, S3StorageReader):
        assert kind.validate_checkpoint_id("s3://bucket/a")
        assert not kind.validate_checkpoint_id("/tmp/a")
        assert not kind.validate_checkpoint_id(Path("/tmp/a"))

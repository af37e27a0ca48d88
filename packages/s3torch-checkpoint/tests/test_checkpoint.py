"""`S3Checkpoint`: what is saved is what is loaded, by `save` and `load` and by torch's own functions."""

from __future__ import annotations

import errno
import io
import mmap
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import serialization

from s3core import AccessDeniedError, NoSuchBucketError, NoSuchKeyError, ObjectChangedError, S3Exception
from s3torch_checkpoint import S3Checkpoint, estimate_saved_bytes
from s3torch_datasets import S3ReaderConstructor
from servers import S3Server
from servers.counting import CountingServer

MiB = 2**20


@pytest.fixture
def checkpoint(options: dict[str, Any]) -> S3Checkpoint:
    return S3Checkpoint(**options)


@pytest.fixture
def uri(counting_server: CountingServer) -> str:
    return f"s3://{counting_server.bucket}/model.pt"


def some_state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 200, generator=generator)
    return {
        "weight": weight,
        "transposed": weight.t(),
        "row": weight[7],
        "every_second": torch.arange(100)[::2],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "large": torch.randint(0, 255, (9 * MiB,), dtype=torch.uint8, generator=generator),
        "step": 17,
        "names": ["a", ("b", None)],
    }


def assert_same(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert got[name].dtype == value.dtype
            assert got[name].stride() == value.stride()
            assert torch.equal(got[name], value), name
        else:
            assert got[name] == value


def test_a_state_survives_save_and_load(checkpoint: S3Checkpoint, uri: str) -> None:
    state = some_state()
    checkpoint.save(state, uri)
    loaded = checkpoint.load(uri)
    assert_same(loaded, state)
    assert loaded["transposed"].data_ptr() == loaded["weight"].data_ptr()


def test_a_state_survives_on_every_server(s3_server: S3Server, make_options: Callable[..., dict[str, Any]]) -> None:
    checkpoint = S3Checkpoint(**make_options(s3_server))
    uri = f"s3://{s3_server.create_bucket()}/model.pt"
    checkpoint.save(some_state(), uri)
    assert_same(checkpoint.load(uri), some_state())


def test_torch_reads_what_save_writes_byte_for_byte(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer
) -> None:
    state = some_state()
    checkpoint.save(state, uri)
    local = io.BytesIO()
    torch.save(state, local)
    assert counting_server.get("model.pt") == local.getvalue()


def test_torch_saves_to_the_writer_and_loads_from_the_reader(checkpoint: S3Checkpoint, uri: str) -> None:
    state = some_state()
    with checkpoint.writer(uri) as writer:
        torch.save(state, writer)
    with checkpoint.reader(uri) as reader:
        assert_same(torch.load(reader, weights_only=True), state)


@pytest.mark.parametrize("constructor", [S3ReaderConstructor.range_based(0), S3ReaderConstructor.streaming(2**20)])
def test_a_reader_gives_the_bytes_of_one_version(
    options: dict[str, Any], uri: str, counting_server: CountingServer, constructor: Any
) -> None:
    counting_server.put("model.pt", bytes(4_000_000))
    with S3Checkpoint(**options, reader_constructor=constructor).reader(uri) as reader:
        assert reader.read(1000) == bytes(1000)
        counting_server.put("model.pt", b"x" * 4_000_000)
        reader.seek(3_000_000)
        with pytest.raises(ObjectChangedError, match=uri):
            reader.read(1000)


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_torch_load_says_which_request_failed(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer, answered: int
) -> None:
    checkpoint.save({"weight": torch.zeros(4_000_000)}, uri)
    counting_server.fault(operation="GetObject", skip=answered, status=403, code="AccessDenied")
    with checkpoint.reader(uri) as reader, pytest.raises(AccessDeniedError, match=uri):
        torch.load(reader, weights_only=True)


def test_a_mapped_checkpoint_is_the_same_and_is_downloaded_once(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer, tmp_path: Path
) -> None:
    checkpoint.save(some_state(), uri)
    assert_same(checkpoint.load(uri, mmap=True, cache_dir=tmp_path), some_state())
    counting_server.clear()
    assert_same(checkpoint.load(uri, mmap=True, cache_dir=tmp_path), some_state())
    assert counting_server.operations() == ["HeadObject"]


def test_a_user_without_a_home_directory_is_told_to_name_one_for_mapped_checkpoints(
    checkpoint: S3Checkpoint, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def know_nobody(uid: int) -> None:  # as in a container that runs under any number
        raise KeyError(uid)

    monkeypatch.setattr(pytest.importorskip("pwd"), "getpwuid", know_nobody)
    for name in ("HOME", "XDG_CACHE_HOME", "S3TORCH_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    checkpoint.save(some_state(), uri)
    with pytest.raises(FileNotFoundError, match=r"no home directory.*cache_dir.*S3TORCH_CACHE_DIR"):
        checkpoint.load(uri, mmap=True)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_directory_that_cannot_be_made_is_told_with_what_to_do(
    checkpoint: S3Checkpoint, uri: str, tmp_path: Path
) -> None:
    checkpoint.save(some_state(), uri)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"S3TORCH_CACHE_DIR.*file/cache"):
        checkpoint.load(uri, mmap=True, cache_dir=tmp_path / "file" / "cache")


@pytest.mark.skipif(not hasattr(mmap, "MAP_SHARED"), reason="this system has no such option")
def test_what_is_written_to_mapped_tensors_stays_out_of_the_copy(
    checkpoint: S3Checkpoint, uri: str, tmp_path: Path
) -> None:
    checkpoint.save({"a": torch.ones(100)}, uri)
    before = serialization.get_default_mmap_options()
    serialization.set_default_mmap_options(mmap.MAP_SHARED)
    try:
        checkpoint.load(uri, mmap=True, cache_dir=tmp_path)["a"].fill_(7)
        assert serialization.get_default_mmap_options() == mmap.MAP_SHARED
    finally:
        serialization.set_default_mmap_options(before)
    assert checkpoint.load(uri, mmap=True, cache_dir=tmp_path)["a"].sum() == 100


def test_a_new_version_replaces_the_mapped_copy(checkpoint: S3Checkpoint, uri: str, tmp_path: Path) -> None:
    checkpoint.save({"a": torch.zeros(100)}, uri)
    old = checkpoint.load(uri, mmap=True, cache_dir=tmp_path)
    checkpoint.save({"a": torch.ones(100)}, uri)
    assert checkpoint.load(uri, mmap=True, cache_dir=tmp_path)["a"].sum() == 100
    assert old["a"].sum() == 0
    assert len([path for path in tmp_path.iterdir() if path.suffix != ".lock"]) == 1


def test_a_mapped_checkpoint_needs_no_locks_of_the_filesystem(
    checkpoint: S3Checkpoint, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    checkpoint.save({"a": torch.zeros(100)}, uri)
    checkpoint.load(uri, mmap=True, cache_dir=tmp_path)
    (lock,) = tmp_path.glob("*.lock")
    other = lock.with_name(f"{lock.stem}-other.partial")  # of a process that downloads at the same time
    other.write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", refuse)
    checkpoint.save({"a": torch.ones(100)}, uri)
    assert checkpoint.load(uri, mmap=True, cache_dir=tmp_path)["a"].sum() == 100
    assert other.exists()
    monkeypatch.undo()
    checkpoint.save({"a": torch.zeros(100)}, uri)
    assert checkpoint.load(uri, mmap=True, cache_dir=tmp_path)["a"].sum() == 0
    assert not other.exists()


def test_a_download_that_fails_leaves_no_copy(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer, tmp_path: Path
) -> None:
    checkpoint.save({"a": torch.zeros(MiB)}, uri)
    counting_server.fault(operation="GetObject", status=403, code="AccessDenied")
    with pytest.raises(PermissionError):
        checkpoint.load(uri, mmap=True, cache_dir=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_every_dtype_survives(checkpoint: S3Checkpoint, uri: str, every_dtype: torch.Tensor) -> None:
    checkpoint.save(every_dtype, uri)
    loaded = checkpoint.load(uri)
    assert loaded.dtype == every_dtype.dtype
    assert bytes(loaded.untyped_storage()) == bytes(every_dtype.untyped_storage())


def test_the_legacy_format_is_read(checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer) -> None:
    local = io.BytesIO()
    torch.save(some_state(), local, _use_new_zipfile_serialization=False)
    counting_server.put("model.pt", local.getvalue())
    assert_same(checkpoint.load(uri), some_state())


def big_endian_archive(values: list[int]) -> bytes:
    tensor = torch.tensor(values, dtype=torch.int32)
    native, swapped = io.BytesIO(), io.BytesIO()
    torch.save(tensor, native)
    native.seek(0)
    pickled = torch._C.PyTorchFileReader(native).get_record("data.pkl")
    data = tensor.numpy().byteswap().tobytes()
    with torch.serialization._open_zipfile_writer(swapped) as archive:
        archive.write_record("data.pkl", pickled, len(pickled))
        archive.write_record("byteorder", "big", 3)
        archive.write_record("data/0", data, len(data))
    return swapped.getvalue()


def test_a_big_endian_checkpoint_is_read(checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer) -> None:
    counting_server.put("model.pt", big_endian_archive(list(range(10))))
    assert checkpoint.load(uri).tolist() == list(range(10))


def test_map_location_is_passed_on(checkpoint: S3Checkpoint, uri: str) -> None:
    checkpoint.save({"a": torch.ones(3)}, uri)
    assert checkpoint.load(uri, map_location="meta")["a"].device.type == "meta"


def test_torchs_own_default_for_mmap_changes_nothing(checkpoint: S3Checkpoint, uri: str) -> None:
    config = pytest.importorskip("torch.utils.serialization").config
    checkpoint.save(some_state(), uri)
    with config.patch({"load.mmap": True}):
        assert_same(checkpoint.load(uri), some_state())
        assert_same(checkpoint.load(uri, weights_only=False), some_state())


def test_weights_only_is_the_default(checkpoint: S3Checkpoint, uri: str) -> None:
    checkpoint.save({"path": Path("/")}, uri)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(uri)
    assert checkpoint.load(uri, weights_only=False) == {"path": Path("/")}


def test_many_tensors_are_read_in_few_requests(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer
) -> None:
    state = {f"layer.{index}": torch.full((100,), float(index)) for index in range(3000)}
    checkpoint.save(state, uri)
    counting_server.clear()
    assert_same(checkpoint.load(uri), state)
    assert len(counting_server.requests) <= 10


class Unsaveable:
    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be pickled")


def test_a_failed_save_leaves_the_old_checkpoint_and_no_upload(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer
) -> None:
    checkpoint.save({"a": 1}, uri)
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        checkpoint.save({"a": torch.zeros(20 * MiB, dtype=torch.uint8), "b": Unsaveable()}, uri)
    assert checkpoint.load(uri) == {"a": 1}
    assert counting_server.uploads() == []


def test_a_refused_upload_is_the_error_that_is_seen(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer
) -> None:
    checkpoint.save({"a": 1}, uri)
    counting_server.fault(operation="UploadPart", skip=1, status=403, code="AccessDenied")
    with pytest.raises(PermissionError, match=r"model\.pt"):
        checkpoint.save({"a": torch.zeros(64 * MiB, dtype=torch.uint8)}, uri)
    assert checkpoint.load(uri) == {"a": 1}
    assert counting_server.uploads() == []


def test_an_object_replaced_while_it_is_loaded_is_an_error(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer
) -> None:
    checkpoint.save({"a": torch.zeros(40 * MiB, dtype=torch.uint8)}, uri)
    other = io.BytesIO()
    torch.save({"a": torch.ones(40 * MiB, dtype=torch.uint8)}, other)
    counting_server.fault(operation="GetObject", skip=1, times=1, replace_with=other.getvalue())
    with pytest.raises(ObjectChangedError):
        checkpoint.load(uri)


def test_a_truncated_object_is_an_error(checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer) -> None:
    checkpoint.save({"a": torch.zeros(MiB)}, uri)
    counting_server.put("model.pt", counting_server.get("model.pt")[: 2 * MiB])
    with pytest.raises((RuntimeError, S3Exception)):
        checkpoint.load(uri)


def test_an_empty_object_is_an_error(checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer) -> None:
    counting_server.put("model.pt", b"")
    with pytest.raises(EOFError):
        checkpoint.load(uri)


@pytest.mark.parametrize("content", [b"", b"junk" * 100], ids=["empty", "junk"])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_what_is_no_checkpoint_is_named(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer, tmp_path: Path, content: bytes, is_mapped: bool
) -> None:
    counting_server.put("model.pt", content)
    with pytest.raises((EOFError, KeyError, RuntimeError)) as caught:
        checkpoint.load(uri, mmap=is_mapped, cache_dir=tmp_path)
    assert caught.value.__notes__ == [f"while {uri} was loaded"]


def test_a_missing_checkpoint_is_named(checkpoint: S3Checkpoint, uri: str) -> None:
    with pytest.raises(NoSuchKeyError, match=r"model\.pt"):
        checkpoint.load(uri)


def test_exists_list_and_delete(checkpoint: S3Checkpoint, counting_server: CountingServer) -> None:
    base = f"s3://{counting_server.bucket}/run"
    for name in ("/a.pt", "/b.pt", "2/c.pt"):
        checkpoint.save({}, base + name)
    assert checkpoint.list(base + "/") == [base + "/a.pt", base + "/b.pt"]
    assert len(checkpoint.list(base)) == 3
    assert checkpoint.exists(base + "/a.pt")
    checkpoint.delete(base + "/a.pt")
    assert not checkpoint.exists(base + "/a.pt")
    with pytest.raises(NoSuchBucketError, match="no-such-bucket"):
        checkpoint.exists("s3://no-such-bucket/a.pt")


@pytest.mark.parametrize("bad", ["model.pt", "s3://bucket", "s3://bucket/", "https://bucket/key", ""])
def test_a_uri_that_names_no_object_is_refused(checkpoint: S3Checkpoint, bad: str) -> None:
    for call in (checkpoint.load, checkpoint.reader, checkpoint.writer, checkpoint.exists, checkpoint.delete):
        with pytest.raises(ValueError, match="s3://"):
            call(bad)
    with pytest.raises(ValueError, match="s3://"):
        checkpoint.save({}, bad)


def test_it_pickles(checkpoint: S3Checkpoint, uri: str) -> None:
    checkpoint.save({"a": 1}, uri)
    assert pickle.loads(pickle.dumps(checkpoint)).load(uri) == {"a": 1}


def test_the_size_is_known_before_anything_is_sent(
    checkpoint: S3Checkpoint, uri: str, counting_server: CountingServer
) -> None:
    state = some_state()
    checkpoint.save(state, uri)
    size = len(counting_server.get("model.pt"))
    assert size <= estimate_saved_bytes(state) <= size + 20_000

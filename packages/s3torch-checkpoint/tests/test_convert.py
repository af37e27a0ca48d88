"""Conversion between single files and distributed checkpoints, on S3 and on disk; and torch's file system interface."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3core import NoSuchKeyError
from s3torch_checkpoint import NoCheckpointError, S3Checkpoint
from s3torch_checkpoint.dcp import S3FileSystem, S3StorageReader, dcp_to_torch, torch_to_dcp
from servers.counting import CountingServer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
Options = dict[str, Any]


def some_state() -> dict[str, Any]:
    return {"model": {"a": torch.arange(10.0), "b": torch.eye(3)}, "step": 3, "names": ["x", "y"]}


def assert_same(got: dict[str, Any]) -> None:
    wanted = some_state()
    assert torch.equal(got["model"]["a"], wanted["model"]["a"])
    assert torch.equal(got["model"]["b"], wanted["model"]["b"])
    assert (got["step"], got["names"]) == (3, ["x", "y"])


def test_a_file_becomes_a_distributed_checkpoint_and_a_file_again(options: Options, root: str) -> None:
    checkpoint = S3Checkpoint(**options)
    checkpoint.save(some_state(), f"{root}/one.pt")
    torch_to_dcp(f"{root}/one.pt", f"{root}/many", **options)
    state = {"model": {"a": torch.zeros(10)}}
    dcp.load(state, storage_reader=S3StorageReader(path=f"{root}/many", **options))
    assert torch.equal(state["model"]["a"], torch.arange(10.0))
    dcp_to_torch(f"{root}/many", f"{root}/again.pt", **options)
    assert_same(checkpoint.load(f"{root}/again.pt"))


def test_either_side_may_be_local(options: Options, root: str, tmp_path: Path) -> None:
    torch.save(some_state(), tmp_path / "one.pt")
    torch_to_dcp(tmp_path / "one.pt", f"{root}/many", **options)
    dcp_to_torch(f"{root}/many", tmp_path / "two.pt", **options)
    torch_to_dcp(tmp_path / "two.pt", tmp_path / "many", **options)
    dcp_to_torch(tmp_path / "many", f"{root}/three.pt", **options)
    assert_same(S3Checkpoint(**options).load(f"{root}/three.pt"))


def test_a_missing_checkpoint_leaves_the_target_alone(options: Options, root: str) -> None:
    checkpoint = S3Checkpoint(**options)
    checkpoint.save({"old": 1}, f"{root}/target.pt")
    with pytest.raises(NoCheckpointError):
        dcp_to_torch(f"{root}/nothing", f"{root}/target.pt", **options)
    assert checkpoint.load(f"{root}/target.pt") == {"old": 1}


def test_only_a_dict_becomes_a_distributed_checkpoint(options: Options, root: str) -> None:
    S3Checkpoint(**options).save([1, 2], f"{root}/list.pt")
    with pytest.raises(TypeError, match="list"):
        torch_to_dcp(f"{root}/list.pt", f"{root}/many", **options)


@pytest.fixture
def files(options: Options) -> S3FileSystem:
    return S3FileSystem(**options)


def write(files: S3FileSystem, uri: str, data: bytes) -> None:
    with files.create_stream(uri, "wb") as stream:
        stream.write(data)  # type: ignore[attr-defined]


def test_a_file_is_written_and_read(files: S3FileSystem, root: str) -> None:
    write(files, f"{root}/a", b"hello")
    with files.create_stream(f"{root}/a", "rb") as stream:
        assert stream.read() == b"hello"  # type: ignore[attr-defined]
        stream.seek(1)
        assert io.BufferedReader(stream).read(2) == b"el"  # type: ignore[arg-type]


def test_an_exception_leaves_no_file(files: S3FileSystem, root: str, counting_server: CountingServer) -> None:
    def fail() -> None:
        with files.create_stream(f"{root}/a", "wb") as stream:
            stream.write(b"half")  # type: ignore[attr-defined]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert counting_server.objects() == {}


def test_files_are_renamed_listed_and_removed(files: S3FileSystem, root: str) -> None:
    write(files, f"{root}/a", b"1")
    write(files, f"{root}/folder/b", b"2")
    files.rename(f"{root}/a", f"{root}/c")
    assert not files.exists(f"{root}/a")
    assert files.ls(root) == [f"{root}/c"]
    files.rename(f"{root}/c", f"{root}/c")
    assert files.exists(f"{root}/c")
    files.rm_file(f"{root}/c")
    assert not files.exists(f"{root}/c")


def test_a_missing_file_is_an_error_to_read(files: S3FileSystem, root: str) -> None:
    with pytest.raises(NoSuchKeyError), files.create_stream(f"{root}/none", "rb") as stream:
        stream.read()  # type: ignore[attr-defined]


def test_an_error_is_not_taken_for_absence(files: S3FileSystem, root: str, counting_server: CountingServer) -> None:
    counting_server.fault(method="HEAD", status=403, code="AccessDenied")
    with pytest.raises(PermissionError):
        files.exists(f"{root}/a")


def test_paths_are_joined_and_checked(files: S3FileSystem, root: str) -> None:
    assert files.concat_path("s3://b/run", "x") == files.concat_path("s3://b/run/", "x") == "s3://b/run/x"
    assert files.init_path("s3://bucket/run") == files.path == "s3://bucket/run"
    with pytest.raises(ValueError, match="s3://"):
        files.init_path("/tmp/run")
    with pytest.raises(ValueError, match="mode"), files.create_stream(f"{root}/a", "ab"):
        pass
    assert S3FileSystem.validate_checkpoint_id("s3://bucket/run")
    assert not S3FileSystem.validate_checkpoint_id("/tmp/run")
    files.mkdir("s3://bucket/run")


def test_the_file_system_pickles(files: S3FileSystem, root: str) -> None:
    write(files, f"{root}/a", b"1")
    assert pickle.loads(pickle.dumps(files)).exists(f"{root}/a")

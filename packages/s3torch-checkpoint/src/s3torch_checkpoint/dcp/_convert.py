"""Turns distributed checkpoints into single files of `torch.save` and back, where either may lie on S3."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

from s3core import S3ClientConfig

from .._checkpoint import S3Checkpoint
from ._reader import S3StorageReader
from ._writer import S3StorageWriter, is_s3_uri


def dcp_to_torch(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    progress: bool = True,
) -> None:
    """Turn a distributed checkpoint into one file that `torch.load` reads.

    The whole state is held in memory on the way; run it in one process.

    Args:
        source: URI or local folder of the distributed checkpoint.
        target: URI or local path of the file.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        progress: Show progress bars when it takes longer than a second.

    Raises:
        NoCheckpointError: There is no checkpoint at the source.
        S3Exception: A transfer failed; the target is as it was.
    """
    reader: StorageReader
    if is_s3_uri(source):
        reader = S3StorageReader(region, source, endpoint=endpoint, s3client_config=s3client_config, progress=progress)
    else:
        reader = FileSystemReader(source)
    state = _load_all(reader)
    if is_s3_uri(target):
        checkpoint = S3Checkpoint(region, endpoint, s3client_config)
        checkpoint.save(state, os.fspath(target), progress=progress)
    else:
        torch.save(state, target)


def torch_to_dcp(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    weights_only: bool = True,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    progress: bool = True,
) -> None:
    """Turn a file of `torch.save` into a distributed checkpoint.

    Args:
        source: URI or local path of the file, which holds a dict.
        target: URI or local folder of the distributed checkpoint.
        weights_only: Allow only tensors and plain containers, as for `torch.load`.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        progress: Show progress bars when it takes longer than a second.

    Raises:
        TypeError: The file does not hold a dict.
        S3Exception: A transfer failed; the target is as it was.
    """
    if is_s3_uri(source):
        checkpoint = S3Checkpoint(region, endpoint, s3client_config)
        state = checkpoint.load(os.fspath(source), "cpu", weights_only, progress=progress)
    else:
        state = torch.load(source, map_location="cpu", weights_only=weights_only)
    if not isinstance(state, dict):
        raise TypeError(f"{os.fspath(source)} holds a {type(state).__name__}; a distributed checkpoint needs a dict")
    writer: StorageWriter
    if is_s3_uri(target):
        writer = S3StorageWriter(region, target, endpoint=endpoint, s3client_config=s3client_config, progress=progress)
    else:
        writer = FileSystemWriter(target)
    _save_all(state, writer)


def _load_all(reader: StorageReader) -> dict[str, Any]:
    """Load everything in this process, by the steps of `dcp.load`, which itself needs the state's shape beforehand."""
    state: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner()  # type: ignore[no-untyped-call]  # torch's own conversion uses it too
    metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    plan = reader.prepare_global_plan(planner.create_global_plan([plan]))[0]
    reader.read_data(planner.finish_plan(plan), planner).wait()
    return state


def _save_all(state: dict[str, Any], writer: StorageWriter) -> None:
    """Save everything from this process, by the steps of `dcp.save`."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(state, writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(is_coordinator=True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    future = writer.write_data(plan, planner)
    future.wait()
    writer.finish(metadata, [future.value()])

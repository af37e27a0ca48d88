"""A sharded checkpoint by itself, in one process; the strategies are in test_distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import CheckpointException

from s3core import parse_s3_uri
from s3torch_lightning import S3LightningCheckpoint
from s3torch_lightning._sharded import ShardedCheckpoint, pickled_meta
from servers import CountingServer


@pytest.fixture
def plugin(options: dict[str, Any]) -> S3LightningCheckpoint:
    return S3LightningCheckpoint(**options)


@pytest.fixture
def folder(plugin: S3LightningCheckpoint, run_uri: str) -> ShardedCheckpoint:
    return ShardedCheckpoint(plugin.settings, f"{run_uri}/a.ckpt", progress=False)


def put_later(plugin: S3LightningCheckpoint, server: CountingServer, key: str, than: str) -> None:
    """Put an object until it is younger than another, by the whole seconds that S3 tells."""

    def modified(key: str) -> Any:
        return plugin.settings.client.head_object(server.bucket, key).last_modified

    server.put(key, b"x")
    while modified(key) <= modified(than):
        server.put(key, b"x")


def test_of_shards_and_an_object_of_one_name_the_younger_is_meant(
    plugin: S3LightningCheckpoint, folder: ShardedCheckpoint, server: CountingServer
) -> None:
    _, key = parse_s3_uri(folder.uri)
    assert not folder.exists()
    server.put(f"{key}/.metadata", b"x")
    assert folder.exists()
    put_later(plugin, server, key, than=f"{key}/.metadata")
    assert not folder.exists()
    put_later(plugin, server, f"{key}/.metadata", than=key)
    assert folder.exists()
    server.put(key, b"x")
    server.put(f"{key}/.metadata", b"x")
    assert folder.exists()


def test_shards_exist_for_whoever_may_not_ask_for_the_object(folder: ShardedCheckpoint, server: CountingServer) -> None:
    _, key = parse_s3_uri(folder.uri)
    server.put(f"{key}/.metadata", b"x")
    server.fault(operation="HeadObject", skip=1, status=403, code="AccessDenied")
    assert folder.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")
def test_no_load_mixes_two_saves(plugin: S3LightningCheckpoint, folder: ShardedCheckpoint) -> None:
    def save(step: int) -> None:
        writer = ShardedCheckpoint(plugin.settings, folder.uri, progress=False)
        state = {"model": {"weight": torch.full((4,), float(step))}, "optimizer_0": {"moment": torch.ones(4)}}
        writer.save(state, pickled_meta({"step": step}))

    def load(folder: ShardedCheckpoint) -> dict[str, Any]:
        state = {"model": {"weight": torch.zeros(4)}}
        folder.load(state)
        return state

    save(1)
    assert torch.equal(load(folder)["model"]["weight"], torch.full((4,), 1.0))
    folder.load({"optimizer_0": {"moment": torch.zeros(4)}})
    assert folder.load_meta(weights_only=True) == {"step": 1}
    save(2)
    with pytest.raises(CheckpointException, match="replaced by a newer checkpoint"):
        folder.load({"optimizer_0": {"moment": torch.zeros(4)}})
    with pytest.raises(CheckpointException, match="replaced by a newer checkpoint"):
        folder.load_meta(weights_only=True)
    other = ShardedCheckpoint(plugin.settings, folder.uri, progress=False)
    assert torch.equal(load(other)["model"]["weight"], torch.full((4,), 2.0))
    assert other.load_meta(weights_only=True) == {"step": 2}

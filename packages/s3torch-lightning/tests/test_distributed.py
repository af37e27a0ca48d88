"""Trainings of two ranks on CPU over gloo, launched by Lightning itself as a user's program is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from servers import CountingServer
from torch_features import needs_torch

# Under its older name, before torch 2.6, it trains on a GPU alone.
needs_fully_shard = needs_torch("torch.distributed.fsdp.fully_shard")


@pytest.mark.parametrize(
    ("library", "kind"), [("lightning.pytorch", "S3LightningCheckpoint"), ("pytorch_lightning", "S3AsyncCheckpoint")]
)
def test_an_interrupted_ddp_training_resumes_from_last_to_the_same_weights(
    library: str, kind: str, server: CountingServer, run_uri: str, run_ranks: Callable[..., None]
) -> None:
    pytest.importorskip(library)
    server.fault(operation="PutObject", key="run-again/last.ckpt", times=1, delay_seconds=3)
    run_ranks("ddp.py", server, [library, run_uri, kind])
    assert server.keys() == [
        *("run-again/last.ckpt", "run-again/step=4.ckpt", "run-again/step=8.ckpt"),
        *("run/last.ckpt", "run/step=12.ckpt", "run/step=8.ckpt"),
    ]
    assert server.uploads() == []


@pytest.mark.parametrize(
    ("library", "strategy", "how"),
    [
        pytest.param("lightning.pytorch", "S3ModelParallelStrategy", "sharded", marks=needs_fully_shard),
        pytest.param("pytorch_lightning", "S3ModelParallelStrategy", "full", marks=needs_fully_shard),
        ("lightning.pytorch", "S3FSDPStrategy", "sharded"),
    ],
)
def test_a_sharded_training_resumes_to_the_same_weights(
    library: str, strategy: str, how: str, server: CountingServer, run_uri: str, run_ranks: Callable[..., None]
) -> None:
    pytest.importorskip(library)
    run_ranks("sharded.py", server, [library, run_uri, strategy, how])
    keys = server.keys()
    names = {key.split("/")[1] for key in keys}
    assert {"last.ckpt", "last-v1.ckpt", "step=16.ckpt"} <= names
    below = sorted(key.split("/")[2][:6] for key in keys if key.startswith("run/last.ckpt/"))
    assert below == ([".metad", "__0_0.", "__1_0.", "meta.p"] if how == "sharded" else [])
    assert server.uploads() == []


@pytest.mark.parametrize(
    ("library", "strategy", "ways"),
    [
        pytest.param("lightning.fabric", "S3ModelParallelStrategy", ["sharded", "full"], marks=needs_fully_shard),
        # In one object only on a GPU: torch 2.13 crashes while it gathers the state of an FSDP model on CPU.
        ("lightning_fabric", "S3FSDPStrategy", ["sharded"]),
    ],
)
def test_fabric_saves_and_loads_a_sharded_model_in_every_way(
    library: str,
    strategy: str,
    ways: list[str],
    server: CountingServer,
    run_uri: str,
    run_ranks: Callable[..., None],
) -> None:
    pytest.importorskip(library)
    server.fault(operation="DeleteObject", times=3, delay_seconds=1)  # what is removed in the background is still there
    server.put("run/both/notes.json", b"of the user")
    run_ranks("fabric.py", server, [library, run_uri, strategy, "cpu", *ways])
    keys = server.keys()
    assert "run/both/notes.json" in keys
    assert ("run/full" in keys) == ("full" in ways)
    assert ("run/both" in keys) != ("run/both/.metadata" in keys)
    assert ("run/both" in keys) == (ways[-1] == "full")
    assert server.uploads() == []


def test_a_sharded_save_that_fails_on_one_rank_ends_both_and_keeps_the_old_checkpoint(
    server: CountingServer, run_uri: str, run_ranks: Callable[..., None]
) -> None:
    pytest.importorskip("lightning")
    server.fault(operation="PutObject", skip=6, status=403, code="AccessDenied")
    run_ranks("sharded_failure.py", server, [run_uri])
    assert server.uploads() == []


@pytest.mark.parametrize("how", ["sharded", "full"])
@needs_fully_shard
def test_what_one_rank_cannot_pickle_ends_the_save_of_both_and_keeps_the_old_checkpoint(
    how: str, server: CountingServer, run_uri: str, run_ranks: Callable[..., None]
) -> None:
    pytest.importorskip("lightning")
    run_ranks("unpicklable.py", server, [run_uri, how])
    assert server.uploads() == []

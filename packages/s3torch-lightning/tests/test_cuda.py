"""Trainings on a GPU: by one process, by a strategy over NCCL, and by two ranks of FSDP that share the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from s3torch_checkpoint import S3Checkpoint
from s3torch_lightning import S3AsyncCheckpoint, S3LightningCheckpoint
from servers import CountingServer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:::torch"),  # what it says to Lightning
]

GPU = {"accelerator": "gpu", "precision": "bf16-mixed"}


@pytest.fixture(params=[S3LightningCheckpoint, S3AsyncCheckpoint], ids=lambda kind: kind.__name__)
def make_plugin(request: pytest.FixtureRequest, options: dict[str, Any]) -> Callable[[], Any]:
    return lambda: request.param(**options)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.cpu().clone() for name, value in model.state_dict().items()}


def test_an_interrupted_training_on_the_gpu_resumes_from_last_to_the_same_weights(
    model_class: type, make_trainer: Any, make_plugin: Any, run_uri: str
) -> None:
    whole = model_class()
    make_trainer(None, plugins=[], enable_checkpointing=False, **GPU).fit(whole)
    checkpoints = {"dirpath": run_uri, "save_last": True}
    with pytest.raises(RuntimeError, match="taken away"):
        make_trainer(make_plugin(), checkpoints, **GPU).fit(model_class(fail_at_step=10))
    resumed = model_class()
    trainer = make_trainer(make_plugin(), checkpoints, **GPU)
    trainer.fit(resumed, ckpt_path="last")
    assert trainer.global_step == 12
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:GPU available but not used")  # it is what is tested
def test_a_checkpoint_of_the_gpu_is_loaded_on_the_cpu(
    model_class: Any, make_trainer: Any, make_plugin: Any, run_uri: str, options: dict[str, Any]
) -> None:
    trained = model_class()
    make_trainer(make_plugin(), {"dirpath": run_uri, "filename": "end"}, **GPU).fit(trained)
    loaded = S3Checkpoint(**options).load(f"{run_uri}/end.ckpt", map_location="cpu")
    torch.testing.assert_close(loaded["state_dict"], weights(trained), rtol=0, atol=0)
    tested = model_class()
    make_trainer(make_plugin(), {"dirpath": run_uri}).test(tested, ckpt_path=f"{run_uri}/end.ckpt")
    torch.testing.assert_close(weights(tested), weights(trained), rtol=0, atol=0)


def test_what_a_busy_gpu_has_yet_to_compute_is_in_the_snapshot_and_what_follows_is_not(
    options: dict[str, Any], run_uri: str, server: CountingServer
) -> None:
    plugin = S3AsyncCheckpoint(**options)
    server.fault(operation="PutObject", hold=True)
    torch.cuda._sleep(1_000_000_000)
    weight = torch.zeros(1000, 1000, device="cuda") + 1
    plugin.save_checkpoint({"state_dict": {"weight": weight}}, f"{run_uri}/a.ckpt")
    weight.zero_()
    torch.cuda.synchronize()
    server.wait_for_requests(1, operation="PutObject")
    server.release()
    plugin.teardown()
    loaded = S3LightningCheckpoint(**options).load_checkpoint(f"{run_uri}/a.ckpt", map_location="cpu")
    assert loaded["state_dict"]["weight"].sum() == 1e6


@pytest.mark.parametrize(
    ("library", "strategy", "how", "place", "precision"),
    [
        ("lightning.pytorch", "S3FSDPStrategy", "sharded", "shared-gpu", "32-true"),
        ("pytorch_lightning", "S3FSDPStrategy", "full", "shared-gpu", "bf16-mixed"),
        # torch refuses to shard over a single rank.
        ("lightning.pytorch", "S3FSDPStrategy", "full", "gpu", "bf16-mixed"),
        ("lightning.pytorch", "S3ModelParallelStrategy", "sharded", "gpu", "32-true"),
        ("pytorch_lightning", "S3ModelParallelStrategy", "full", "gpu", "bf16-true"),
    ],
)
def test_a_sharded_training_on_the_gpu_resumes_to_the_same_weights(
    library: str,
    strategy: str,
    how: str,
    place: str,
    precision: str,
    server: CountingServer,
    run_uri: str,
    run_ranks: Callable[..., None],
) -> None:
    pytest.importorskip(library)
    ranks = 1 if place == "gpu" else 2
    run_ranks("sharded.py", server, [library, run_uri, strategy, how, place, precision], ranks)
    keys = server.keys()
    assert {"last.ckpt", "last-v1.ckpt", f"step={32 // ranks}.ckpt"} <= {key.split("/")[1] for key in keys}
    assert ("run/last.ckpt/.metadata" in keys) == (how == "sharded")
    assert ("run/last.ckpt" in keys) == (how == "full")
    assert server.uploads() == []


@pytest.mark.parametrize(
    ("library", "strategy", "place", "ways"),
    [
        ("lightning.fabric", "S3FSDPStrategy", "shared-gpu", ["sharded", "full"]),
        ("lightning_fabric", "S3ModelParallelStrategy", "gpu", ["sharded", "full"]),
    ],
)
def test_fabric_saves_and_loads_a_sharded_model_on_the_gpu_in_every_way(
    library: str,
    strategy: str,
    place: str,
    ways: list[str],
    server: CountingServer,
    run_uri: str,
    run_ranks: Callable[..., None],
) -> None:
    pytest.importorskip(library)
    ranks = 1 if place == "gpu" else 2
    run_ranks("fabric.py", server, [library, run_uri, strategy, place, *ways], ranks)
    assert {"run/sharded/.metadata", "run/full"} <= set(server.keys())
    assert server.uploads() == []

"""Fabric with the plugin, in one process; the sharded strategies are in test_distributed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch

from s3core import NoSuchKeyError
from s3torch_lightning import S3AsyncCheckpoint, S3LightningCheckpoint
from servers import CountingServer


@pytest.fixture(params=["lightning.fabric", "lightning_fabric"])
def fabrics(request: pytest.FixtureRequest) -> ModuleType:
    return pytest.importorskip(request.param)


@pytest.fixture(params=[S3LightningCheckpoint, S3AsyncCheckpoint])
def plugin(request: pytest.FixtureRequest, options: dict[str, Any], fabrics: ModuleType) -> Any:
    return request.param(**options)


def test_a_state_is_saved_and_loaded_in_place(
    fabrics: ModuleType, plugin: Any, run_uri: str, server: CountingServer
) -> None:
    fabric = fabrics.Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    model = torch.nn.Linear(4, 2)
    model, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), lr=0.1))
    fabric.backward(model(torch.ones(1, 4)).sum())
    optimizer.step()
    fabric.save(f"{run_uri}/a.ckpt", {"model": model, "optimizer": optimizer, "step": 3, "more": "x"})

    other = torch.nn.Linear(4, 2)
    other, other_optimizer = fabric.setup(other, torch.optim.Adam(other.parameters(), lr=0.1))
    state = {"model": other, "optimizer": other_optimizer, "step": 0}
    remainder = fabric.load(f"{run_uri}/a.ckpt", state)
    assert (state["step"], remainder) == (3, {"more": "x"})
    assert torch.equal(model.weight, other.weight)
    assert other_optimizer.state_dict()["state"][0]["step"] == 1
    assert server.keys() == ["run/a.ckpt"]
    plugin.teardown()


def test_a_raw_state_dict_is_loaded(fabrics: ModuleType, plugin: Any, run_uri: str) -> None:
    fabric = fabrics.Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    model = torch.nn.Linear(4, 2)
    plugin.save_checkpoint(model.state_dict(), f"{run_uri}/raw.pt")
    other = torch.nn.Linear(4, 2)
    fabric.load_raw(f"{run_uri}/raw.pt", other)
    assert torch.equal(model.weight, other.weight)
    with pytest.raises(NoSuchKeyError, match="none"):
        fabric.load(f"{run_uri}/none.pt")


def test_the_plugin_may_be_given_to_the_strategy(options: dict[str, Any], fabrics: ModuleType, run_uri: str) -> None:
    strategies = importlib.import_module(f"{fabrics.__name__}.strategies")
    plugin = S3LightningCheckpoint(**options)
    strategy = strategies.SingleDeviceStrategy(device=torch.device("cpu"), checkpoint_io=plugin)
    fabric = fabrics.Fabric(strategy=strategy, devices=1)
    fabric.save(f"{run_uri}/a.ckpt", {"step": 1})
    assert fabric.load(f"{run_uri}/a.ckpt") == {"step": 1}

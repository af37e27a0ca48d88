"""What the tests of this package share: either Lightning, a tiny model, and a plugin for the local server."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fsspec.core import url_to_fs

import s3torch_lightning
from s3core import S3ClientConfig
from servers import CountingServer, S3Server, free_ports

HERE = Path(__file__).parent

# The package can be imported without Lightning, but has nothing to test then.
if not any(importlib.util.find_spec(name) for name in ("lightning", "pytorch_lightning")):
    collect_ignore_glob = ["test_*.py"]

# What Lightning says about tiny trainings, and about the torch it is used with.
_EXPECTED_WARNINGS = [
    r"ignore:.*LeafSpec.*is deprecated",
    r"ignore:.*does not have many workers",
    r"ignore:Checkpoint directory .* exists and is not empty",
    r"ignore:Starting from v1.9.0",
    r"ignore:.*The number of training batches .* is smaller than the logging interval",
    r"ignore:.*but you are running on a CPU-only machine",
    r"ignore:.*\(ckpt_path=.*no last checkpoint available",
    r"ignore:.*`.fit\(ckpt_path=.*is set, but there is no last checkpoint",
    r"ignore:You're resuming from a checkpoint that ended before the epoch ended",
    r"ignore:You defined a `validation_step` but have no `val_dataloader`",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            for warning in _EXPECTED_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request: pytest.FixtureRequest) -> ModuleType:
    """The Trainer's package of each Lightning that is installed."""
    return pytest.importorskip(request.param)


@pytest.fixture
def options(server: CountingServer) -> dict[str, Any]:
    """How a plugin reaches the local server."""
    config = S3ClientConfig(access_key_id=server.access_key, secret_access_key=server.secret_key, max_attempts=2)
    return {"region": server.region, "endpoint": server.endpoint, "s3client_config": config}


@pytest.fixture
def server(counting_server: CountingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingServer:
    """The counting server; the working directory is empty, to see what is written where it should not."""
    monkeypatch.chdir(tmp_path)
    return counting_server


@pytest.fixture
def run_uri(server: CountingServer) -> str:
    """Where a test's run keeps its checkpoints."""
    return f"s3://{server.bucket}/run"


@pytest.fixture
def fs(options: dict[str, Any]) -> Any:
    """What fsspec has for `s3://`, with the settings of a plugin."""
    s3torch_lightning.S3LightningCheckpoint(**options)
    filesystem, _ = url_to_fs("s3://bucket/any")
    assert type(filesystem) is s3torch_lightning.S3FileSystem
    return filesystem


@pytest.fixture
def filled(server: CountingServer) -> str:
    """A bucket with a few objects, each of its key as bytes."""
    for key in ("run/a.ckpt", "run/b/.metadata", "run/b/x.distcp", "run2/c", "top"):
        server.put(key, key.encode())
    return f"s3://{server.bucket}"


def make_model_class(pl: ModuleType) -> type:
    """A model of one Lightning that learns the same weights each time it is trained the same way."""

    class Tiny(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, fail_at_step: int | None = None) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.layer = torch.nn.Linear(4, 1)
            self.fail_at_step = fail_at_step

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            if self.fail_at_step is not None and self.global_step == self.fail_at_step:
                raise RuntimeError("the machine was taken away")
            loss = (self.layer(batch) - batch.sum(1, keepdim=True)).pow(2).mean()
            # Falls with each step, so that each checkpoint is better than the one before.
            self.log("score", torch.tensor(100.0 - self.global_step))
            return loss

        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            self.log("validated", self.layer(batch).sum())

        def test_step(self, batch: torch.Tensor, index: int) -> None:
            self.log("tested", self.layer(batch).sum())

        def predict_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return self.layer(batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.05)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.arange(32.0).reshape(8, 4) / 32, batch_size=2)

        test_dataloader = predict_dataloader = train_dataloader

    return Tiny


@pytest.fixture
def model_class(pl: ModuleType) -> type:
    return make_model_class(pl)


@pytest.fixture
def make_trainer(pl: ModuleType) -> Callable[..., Any]:
    """A quiet Trainer on one CPU, with one `ModelCheckpoint` where its arguments are given."""

    def make(plugin: Any, checkpoints: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        callbacks = kwargs.pop("callbacks", [])
        if checkpoints is not None:
            callbacks = [importlib.import_module(f"{pl.__name__}.callbacks").ModelCheckpoint(**checkpoints), *callbacks]
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        return pl.Trainer(
            **{**quiet, "devices": 1, "max_epochs": 3, "plugins": [plugin], "callbacks": callbacks, **kwargs}
        )

    return make


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., None]:
    """Runs a program of this folder against a server, in an empty folder, and sees that all of its ranks are done."""

    def run(name: str, server: S3Server, arguments: Sequence[str], ranks: int = 2) -> None:
        done = subprocess.run(
            [sys.executable, str(HERE / "programs" / name), *arguments],
            cwd=tmp_path,
            # Lightning takes a port of those that the kernel hands out, which another process may get before its use.
            env=os.environ | server.environment() | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(*free_ports(1))},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(re.findall(r"rank \d is done", done.stdout)) == [f"rank {rank} is done" for rank in range(ranks)]

    return run

"""What the tests of the checkpoint package share: a client's settings for a local server, and torchrun."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from s3core import S3ClientConfig
from servers import S3Server
from servers.counting import CountingServer


def options_for(server: S3Server, **settings: Any) -> dict[str, Any]:
    """The keyword arguments that point any of our classes at a server."""
    config = S3ClientConfig(access_key_id=server.access_key, secret_access_key=server.secret_key, **settings)
    return {"region": server.region, "endpoint": server.endpoint, "s3client_config": config}


@pytest.fixture
def options(counting_server: CountingServer) -> dict[str, Any]:
    return options_for(counting_server)


@pytest.fixture
def make_options() -> Callable[..., dict[str, Any]]:
    return options_for


@pytest.fixture
def root(counting_server: CountingServer) -> str:
    """A URI under which nothing lies."""
    return f"s3://{counting_server.bucket}/run"


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs code in a process of its own, pointed at a server by its environment, and gives what it printed."""

    def run(server: S3Server, code: str, *arguments: str) -> str:
        environment = {**os.environ, **server.environment(), "TQDM_DISABLE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(f"the process ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done.stdout

    return run


def saveable_dtypes() -> list[torch.dtype]:
    """The dtypes that this version of torch can save and load at all."""
    found = set()
    for value in vars(torch).values():
        if not isinstance(value, torch.dtype) or "q" in str(value) or "bits" in str(value):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                file = io.BytesIO()
                torch.save(bytes_as(value), file)
                file.seek(0)
                torch.load(file, weights_only=True)
        except Exception:
            continue
        found.add(value)
    return sorted(found, key=str)


def bytes_as(dtype: torch.dtype) -> torch.Tensor:
    """64 bytes of known content as a tensor of a dtype."""
    tensor = torch.arange(64, dtype=torch.uint8)
    return tensor.remainder(2).view(torch.bool) if dtype == torch.bool else tensor.view(dtype)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every saveable dtype, and a tensor of it, to the tests that ask for them."""
    if "every_dtype" in metafunc.fixturenames:
        metafunc.parametrize(
            "every_dtype", [bytes_as(dtype) for dtype in saveable_dtypes()], ids=lambda t: str(t.dtype)
        )

"""The documentation's examples of this package run as they stand."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from servers import S3Server, free_ports
from torch_features import needs_torch

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"

pytest.importorskip("lightning")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lightning_trainer.py", "loaded 5 numbers"),
        ("lightning_async.py", "saved step 6, 64 weights"),
        ("lightning_fabric.py", "loaded step 1"),
    ],
)
def test_an_example_does_what_it_says_and_does_it_again(
    name: str,
    expected: str,
    moto_server: S3Server,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # In this process, because to import Lightning takes longer than any of them.
    for variable, value in moto_server.environment().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, f"s3://{bucket}/run", moto_server.region])
    for _ in range(2):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        assert expected in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


@needs_torch("torch.distributed.fsdp.fully_shard")
def test_the_example_of_two_ranks_does_what_it_says(moto_server: S3Server, bucket: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "lightning_sharded.py"), f"s3://{bucket}/run", moto_server.region],
        cwd=tmp_path,
        env=os.environ | moto_server.environment() | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(*free_ports(1))},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 1 is at step 4" in done.stdout
    assert os.listdir(tmp_path) == []

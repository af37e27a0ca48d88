"""What the guide shows runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servers import CountingServer

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("prefix", ["/guide", ""])
def test_the_parts_of_the_guide_to_datasets_run(counting_server: CountingServer, prefix: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:'set_vital' is deprecated",  # torchdata calls it
            "docs/examples/datasets.py",
            f"s3://{counting_server.bucket}{prefix}",
            "us-east-1",
        ],
        cwd=ROOT,
        env=os.environ | counting_server.environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all parts ran" in done.stdout

"""The demo of the README trains, keeps its checkpoints in the bucket and says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servers import S3Server

ROOT = Path(__file__).resolve().parent.parent


def run_demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "docs/examples/train_digits.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "100"} | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_demo_learns_digits_from_a_server_of_its_own() -> None:
    done = run_demo("--epochs", "3", "--min-accuracy", "0.9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Started a local S3 server" in done.stdout
    assert re.search(r"checkpoints/epoch-003\.pt, epoch 3", done.stdout), done.stdout
    assert re.search(r"held-out accuracy +9\d\.\d%", done.stdout), done.stdout
    assert re.search(r"time to first batch +\d+\.\d+ s", done.stdout), done.stdout


def test_the_demo_runs_on_a_bucket_that_is_named(moto_server: S3Server, bucket: str) -> None:
    uri = f"s3://{bucket}/a prefix"
    arguments = ["--uri", uri, "--region", moto_server.region, "--endpoint", moto_server.endpoint]
    done = run_demo(*arguments, "--epochs", "1", "--min-accuracy", "0.5", **moto_server.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Started" not in done.stdout
    listed = moto_server.boto3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [entry["Key"] for page in listed for entry in page["Contents"]]
    assert len([key for key in keys if re.fullmatch(r"a prefix/digits/(train|test)/\d/\d{4}\.png", key)]) == 1797
    assert "a prefix/checkpoints/epoch-001.pt" in keys


def test_a_bucket_without_its_region_is_refused_with_what_to_add() -> None:
    done = run_demo("--uri", "s3://some-bucket/prefix")
    assert done.returncode == 2
    assert "--region" in done.stderr

"""Progress bars: for listings longer than a second, and without a trace in the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from servers import CountingServer

Make = Callable[..., Any]
Fill = Callable[..., list[bytes]]

LIST = """
import multiprocessing, sys, threading
from s3torch_datasets import S3IterableDataset, S3MapDataset
uri, progress = sys.argv[1], sys.argv[2] == "shown"
assert len(S3MapDataset.from_prefix(uri, region="us-east-1", progress=progress)) == 3
next(iter(S3IterableDataset.from_prefix(uri, region="us-east-1", progress=progress)))
names = [thread.name for thread in threading.enumerate()]
assert "tqdm_monitor" not in names, names
multiprocessing.set_start_method("spawn")
import tqdm
own = tqdm.tqdm(disable=True).get_lock()
assert isinstance(own, tqdm.std.TqdmDefaultWriteLock) and own.mp_lock is not None, own
"""

# What tqdm takes for a notebook. Where ipywidgets is missing there, `tqdm.auto` warns; where it is not, a bar in a
# forked worker, which cannot send a widget to the browser, has the kernel log every message of it in full.
IN_A_NOTEBOOK = """
import sys, types
kernel = types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: kernel)
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
"""


def run_listing(server: CountingServer, source: str, progress: str) -> str:
    """Run a program that lists for more than a second, and return what it writes to standard error."""
    server.fault(operation="ListObjectsV2", delay_seconds=1.1)
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", source, f"s3://{server.bucket}/data/", progress],
        env=environment | server.environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("progress", [True, False])
def test_a_listing_longer_than_a_second_shows_a_bar_unless_it_is_not_wanted(
    make_map: Make, fill: Fill, counting_server: CountingServer, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    fill(3)
    counting_server.fault(operation="ListObjectsV2", delay_seconds=1.1)
    assert len(make_map(progress=progress)) == 3
    assert ("Listing s3://" in capsys.readouterr().err) == progress


@pytest.mark.parametrize("progress", ["shown", "not shown"])
def test_a_bar_leaves_the_start_method_the_threads_and_the_lock_of_other_bars_alone(
    fill: Fill, counting_server: CountingServer, progress: str
) -> None:
    fill(3)
    shown = run_listing(counting_server, LIST, progress)
    assert ("Listing s3://" in shown) == (progress == "shown")


def test_the_bar_is_plain_text_in_a_notebook_too(fill: Fill, counting_server: CountingServer) -> None:
    fill(3)
    shown = run_listing(counting_server, IN_A_NOTEBOOK + LIST, "shown")
    assert "Listing s3://" in shown
    assert "ipywidgets" not in shown

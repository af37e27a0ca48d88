"""Progress bars: for transfers longer than a second, and for nobody who does not want them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from s3torch_checkpoint import S3Checkpoint
from s3torch_checkpoint._progress import TransferProgress
from s3torch_checkpoint.safetensors import safe_open, save_file
from servers.counting import CountingServer


@pytest.mark.parametrize("progress", [True, False])
def test_a_load_longer_than_a_second_shows_a_bar_unless_it_is_not_wanted(
    options: dict[str, Any],
    root: str,
    counting_server: CountingServer,
    capsys: pytest.CaptureFixture[str],
    progress: bool,
) -> None:
    checkpoint = S3Checkpoint(**options)
    checkpoint.save({"a": torch.ones(10)}, f"{root}/model.pt", progress=False)
    save_file({"a": torch.ones(10)}, f"{root}/m.safetensors", progress=False, **options)
    file = safe_open(f"{root}/m.safetensors", progress=progress, **options)
    counting_server.fault(operation="GetObject", delay_seconds=1.1)
    checkpoint.load(f"{root}/model.pt", progress=progress)
    assert ("Loading s3://" in capsys.readouterr().err) == progress
    file.get_slice("a")[2:5]
    file.get_tensor("a")
    shown = capsys.readouterr().err
    assert (shown.count("Loading a of s3://") >= 2) == progress
    assert progress or not shown


def test_a_short_transfer_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    with TransferProgress("Loading", 10, enabled=True) as progress:
        progress.advance(10)
    assert progress.done_bytes == 10
    assert capsys.readouterr().err == ""


SAVE = """
import os, sys
os.environ.pop("TQDM_DISABLE", None)  # before tqdm reads it
import multiprocessing, threading, torch
from s3torch_checkpoint import S3Checkpoint
uri, progress = sys.argv[1], sys.argv[2] == "shown"
S3Checkpoint("us-east-1").save({"a": torch.ones(10)}, uri, progress=progress)
names = [thread.name for thread in threading.enumerate()]
assert "tqdm_monitor" not in names, names
multiprocessing.set_start_method("spawn")
import tqdm
own = tqdm.tqdm(disable=True).get_lock()
assert isinstance(own, tqdm.std.TqdmDefaultWriteLock) and own.mp_lock is not None, own
"""


@pytest.mark.parametrize("progress", ["shown", "not shown"])
def test_a_bar_leaves_the_start_method_the_threads_and_the_lock_of_other_bars_alone(
    run_python: Callable[..., str], root: str, counting_server: CountingServer, progress: str
) -> None:
    run_python(counting_server, SAVE, f"{root}/model.pt", progress)

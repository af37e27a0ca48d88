"""Ctrl-C ends any transfer at once, and leaves what was there before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from interruptions import each_interruption, interrupted
from s3torch_checkpoint import S3Checkpoint, _upload
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter
from servers.counting import CountingServer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
MiB = 2**20

BEGIN = """
import sys, warnings
import torch, torch.distributed.checkpoint as dcp
from s3torch_checkpoint import S3Checkpoint
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter
warnings.simplefilter("ignore")
root = sys.argv[1]
state = {f"layer.{index}": torch.full((5 * 2**20,), 2.0) for index in range(4)}
try:
    """
END = """
except BaseException as error:
    assert "KeyboardInterrupt" in type(error).__name__ + str(error), error
    print("interrupted", flush=True)
"""

CASES = {
    "save": ("S3Checkpoint().save(state, root + '/model.pt')", "UploadPart", 2),
    "load": ("S3Checkpoint().load(root + '/model.pt')", "GetObject", 4),
    "distributed save": ("dcp.save(state, storage_writer=S3StorageWriter(None, root + '/many'))", "UploadPart", 2),
    "distributed load": ("dcp.load(state, storage_reader=S3StorageReader(None, root + '/many'))", "GetObject", 3),
}


@pytest.mark.parametrize("case", CASES)
def test_ctrl_c_ends_a_transfer(options: dict[str, Any], root: str, counting_server: CountingServer, case: str) -> None:
    state = {f"layer.{index}": torch.full((5 * MiB,), 1.0) for index in range(4)}
    S3Checkpoint(**options).save(state, f"{root}/model.pt")
    dcp.save(state, storage_writer=S3StorageWriter(path=f"{root}/many", **options))
    call, operation, passing = CASES[case]
    counting_server.clear()
    counting_server.fault(operation=operation, skip=passing, hold=True)
    environment = {**os.environ, **counting_server.environment(), "TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-c", f"{BEGIN}{call}{END}", root], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        counting_server.wait_for_requests(passing + 1, timeout_seconds=60, operation=operation)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - begin < 5  # a second, on a machine that does nothing else
        counting_server.release()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.stdout.close() if process.stdout else None
        process.wait()
    counting_server.faults_clear()
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(target, storage_reader=S3StorageReader(path=f"{root}/many", **options))
    loaded = S3Checkpoint(**options).load(f"{root}/model.pt")
    for name, tensor in state.items():
        assert torch.equal(target[name], tensor)
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("case", ["save", "distributed save"])
def test_an_archive_that_ctrl_c_left_open_does_not_end_the_process(
    options: dict[str, Any], root: str, counting_server: CountingServer, case: str
) -> None:
    """torch's archive writer ends its archive in its destructor then, where no error may come out."""
    trace = """
    def trace(frame, event, argument):
        if frame.f_code.co_name == "__exit__" and "write_end_of_file" in frame.f_code.co_names:
            sys.settrace(None)
            raise KeyboardInterrupt
    sys.settrace(trace)
    threading.settrace(trace)
    """
    state = {"layer": torch.ones(1000)}
    S3Checkpoint(**options).save(state, f"{root}/model.pt")
    before = counting_server.objects()
    begin = BEGIN.replace("import sys,", "import sys, threading,").replace("5 * 2**20", "1000")
    program = f"{begin}{trace}{CASES[case][0]}{END}\nprint('alive', flush=True)"
    environment = {**os.environ, **counting_server.environment(), "TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program, root], env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\nalive\n"), done.stderr
    if case == "save":
        assert counting_server.objects() == before


def test_ctrl_c_at_any_instruction_of_a_save_is_no_other_error(options: dict[str, Any], root: str) -> None:
    checkpoint = S3Checkpoint(**options)
    for interruption in each_interruption(_upload):
        try:
            with interrupted(interruption):
                checkpoint.save({"weight": torch.ones(4)}, f"{root}/model.pt")
        except KeyboardInterrupt:
            continue
        assert not interruption.came


def test_a_save_that_fails_after_ctrl_c_says_why(options: dict[str, Any], root: str) -> None:
    def refuse() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            S3Checkpoint(**options).save({"step": lambda: 1}, f"{root}/model.pt")

    with pytest.raises(Exception, match=r"(?i)pickle"):
        refuse()

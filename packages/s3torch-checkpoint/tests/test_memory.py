"""Peak memory of saving and loading, as the peak of a process's resident size above what it had before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import full, uint8

from s3torch_checkpoint import S3Checkpoint
from servers.counting import CountingServer

MiB = 2**20
MODEL_MIB = 384

PEAK = """
import sys, warnings
import torch, torch.distributed.checkpoint as dcp
from s3torch_checkpoint import S3Checkpoint, safetensors
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter
warnings.simplefilter("ignore")
MiB = 2**20
def status(name):
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith(name))
def tensors(make, count):
    return {f"layer.{index}": make(MODEL_MIB * MiB // count, dtype=torch.uint8) for index in range(count)}
def measure(call):
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    result = call()
    print(status("VmHWM") - before)
    return result
""".replace("MODEL_MIB", str(MODEL_MIB))

CASES = {
    # What is measured, and how many MiB it may take above the process before it.
    "load": ("measure(lambda: S3Checkpoint().load(uri + '/model.pt'))", MODEL_MIB + 250),
    "load in order": ("measure(lambda: S3Checkpoint().load(uri + '/model.pt', weights_only=False))", MODEL_MIB + 250),
    "load from the reader": ("measure(lambda: torch.load(S3Checkpoint().reader(uri + '/model.pt')))", MODEL_MIB + 250),
    "save": ("state = tensors(torch.ones, 4)\nmeasure(lambda: S3Checkpoint().save(state, uri + '/saved.pt'))", 100),
    "save of others": (
        "class Others:\n"
        "    def __init__(self): self.state = tensors(torch.ones, 4)\n"
        "measured = Others()\n"
        "measure(lambda: S3Checkpoint().save(measured, uri + '/saved.pt'))",
        500,
    ),
    "distributed save": (
        "state = tensors(torch.ones, 4)\n"
        "measure(lambda: dcp.save(state, storage_writer=S3StorageWriter(None, uri + '/many')))",
        100,
    ),
    "distributed save of views": (
        "state = {name: tensor[5:] for name, tensor in tensors(torch.ones, 4).items()}\n"
        "measure(lambda: dcp.save(state, storage_writer=S3StorageWriter(None, uri + '/many')))",
        100,
    ),
    "safetensors save": (
        "state = tensors(torch.ones, 4)\nmeasure(lambda: safetensors.save_file(state, uri + '/m'))",
        100,
    ),
    "safetensors": (
        "state = tensors(torch.ones, 4)\nsafetensors.save_file(state, uri + '/m')\ndel state\n"
        "measure(lambda: safetensors.load_file(uri + '/m'))",
        MODEL_MIB + 250,
    ),
    "distributed load": (
        "state = tensors(torch.ones, 4)\n"
        "dcp.save(state, storage_writer=S3StorageWriter(None, uri + '/many'))\n"
        "measure(lambda: dcp.load(state, storage_reader=S3StorageReader(None, uri + '/many')))",
        300,
    ),
    "distributed load into another dtype": (
        "state = tensors(torch.ones, 4)\n"
        "dcp.save(state, storage_writer=S3StorageWriter(None, uri + '/many'))\n"
        "state = {name: tensor.bfloat16() for name, tensor in state.items()}\n"
        "measure(lambda: dcp.load(state, storage_reader=S3StorageReader(None, uri + '/many')))",
        500,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_is_bounded(
    options: dict[str, Any], root: str, counting_server: CountingServer, run_python: Callable[..., str], case: str
) -> None:
    if case.startswith("load"):
        state = {f"layer.{index}": full((MODEL_MIB * MiB // 4,), index, dtype=uint8) for index in range(4)}
        S3Checkpoint(**options).save(state, f"{root}/model.pt")
    code, most_mib = CASES[case]
    peak = int(run_python(counting_server, f"{PEAK}\nuri = sys.argv[1]\n{code}", root))
    assert peak <= most_mib

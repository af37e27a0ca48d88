"""Checkpoints of one file: `torch.save`, `torch.load`, safetensors and Lightning."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks._data import is_same_state, make_state
from benchmarks._meter import Meter
from benchmarks._peers import Peer
from benchmarks._workloads._workload import Workload, check, is_thorough, read_back


def _save(peer: Peer, meter: Meter, *, by: str) -> None:
    state, name, save = _state(peer), f"saved/{type(peer).__name__}-{by}.pt", getattr(peer, by)
    meter.start()
    save(name, state)
    meter.tick(1, peer.target.scale.model_bytes)
    meter.stop()
    _check_saved(peer, name, state)


def _load(peer: Peer, meter: Meter, *, by: str) -> None:
    load = getattr(peer, by)
    meter.start()
    state = load("model/model.pt")
    meter.tick(1, peer.target.scale.model_bytes)
    meter.stop()
    check(is_same_state(state, _state(peer)), "other tensors came")


def _save_lightning(peer: Peer, meter: Meter) -> None:
    state, name = {"state_dict": _state(peer), "epoch": 3}, f"saved/{type(peer).__name__}.ckpt"
    save = peer.lightning_saver()  # imports Lightning, which takes seconds
    meter.start()
    save(name, state)
    meter.tick(1, peer.target.scale.model_bytes)
    meter.stop()
    _check_saved(peer, name, state)


def _load_safetensors(peer: Peer, meter: Meter) -> None:
    meter.start()
    tensors = peer.load_safetensors("model/model.safetensors")
    meter.tick(1, peer.target.scale.model_bytes)
    meter.stop()
    check(is_same_state(tensors, _state(peer)), "other tensors came")


def _save_safetensors(peer: Peer, meter: Meter) -> None:
    state, name = _state(peer), f"saved/{type(peer).__name__}.safetensors"
    meter.start()
    peer.save_safetensors(name, state)
    meter.tick(1, peer.target.scale.model_bytes)
    meter.stop()
    if is_thorough(peer):
        import safetensors.torch

        check(is_same_state(safetensors.torch.load(read_back(peer, name)), state), "other tensors were written")


def _state(peer: Peer) -> dict[str, torch.Tensor]:
    return make_state(peer.target.scale.model_bytes)


def _check_saved(peer: Peer, name: str, state: Mapping[str, Any]) -> None:
    if is_thorough(peer):
        found = torch.load(io.BytesIO(read_back(peer, name)), weights_only=True)
        tensors, expected = found.get("state_dict", found), state.get("state_dict", state)
        check(is_same_state(tensors, expected), "other tensors were written")
        check(found.get("epoch") == state.get("epoch"), "another epoch was written")


WORKLOADS = [
    # As each library recommends it: ours has functions for it, others have files for torch's own.
    Workload("torch-save", "torch.save", "MB", "save", partial(_save, by="save")),
    Workload("torch-load", "torch.load", "MB", "load", partial(_load, by="load"), ("model",)),
    # The same code for all that have files: what changes for who changes the import line alone.
    Workload(
        "torch-save-writer", "torch.save to a writer", "MB", "save_to_writer", partial(_save, by="save_to_writer")
    ),
    Workload(
        "torch-load-reader",
        "torch.load from a reader",
        "MB",
        "load_from_reader",
        partial(_load, by="load_from_reader"),
        ("model",),
    ),
    Workload(
        "safetensors-load", "safetensors, all tensors", "MB", "load_safetensors", _load_safetensors, ("safetensors",)
    ),
    Workload("safetensors-save", "safetensors, written", "MB", "save_safetensors", _save_safetensors),
    Workload("lightning-save", "Lightning, save_checkpoint", "MB", "lightning_saver", _save_lightning),
]

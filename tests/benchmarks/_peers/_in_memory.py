"""Checkpoints through memory: what users write whose library has no file-like writer or reader."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from benchmarks._peers._peer import Peer


class InMemoryCheckpoints(Peer):
    """Saves to a buffer that is then sent, and loads from one that was filled before; no byte is copied in between."""

    def download(self, name: str) -> io.BytesIO:
        """An object in a buffer."""
        return io.BytesIO(self.read(name))

    def send(self, name: str, buffer: io.BytesIO) -> None:
        """Write an object from a buffer."""
        self.upload(name, [buffer.getvalue()])

    def save(self, name: str, state: Any) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.send(name, buffer)

    def load(self, name: str) -> Any:
        return torch.load(self.download(name), weights_only=True)

    def load_safetensors(self, name: str) -> Mapping[str, Any]:
        return safetensors.torch.load(self.download(name).getvalue())

    def save_safetensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        self.send(name, io.BytesIO(safetensors.torch.save(dict(tensors))))

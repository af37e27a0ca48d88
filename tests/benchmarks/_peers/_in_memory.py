"""Checkpoints through memory: what users write whose library has no file-like writer or reader."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks._peers._peer import Peer


class InMemoryCheckpoints(Peer):
    """Saves to a buffer that `upload` sends, and loads from what `read` returns."""

    def save(self, name: str, state: Any) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.upload(name, [buffer.getbuffer()])

    def load(self, name: str) -> Any:
        return torch.load(io.BytesIO(self.read(name)), weights_only=True)

    def load_safetensors(self, name: str) -> Mapping[str, Any]:
        import safetensors.torch

        return safetensors.torch.load(bytes(self.read(name)))

    def save_safetensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        import safetensors.torch

        self.upload(name, [memoryview(safetensors.torch.save(dict(tensors)))])

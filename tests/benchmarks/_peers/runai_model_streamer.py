"""Run:ai's model streamer, safetensors from S3 in C++; https://github.com/run-ai/runai-model-streamer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from runai_model_streamer import SafetensorsStreamer

from benchmarks._peers._peer import Peer


class RunaiModelStreamer(Peer):
    """As its documentation shows; each tensor is cloned, since it reuses its buffer."""

    def load_safetensors(self, name: str) -> Mapping[str, Any]:
        if self.target.endpoint is not None:
            os.environ["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] = "0"
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(self.target.uri(name))
            return {name: tensor.clone() for name, tensor in streamer.get_tensors()}

    why_not: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("iterate", "fetch", "read", "load", "save"), "loads safetensors only"
    )


PEER = RunaiModelStreamer

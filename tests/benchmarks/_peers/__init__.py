"""The libraries that are measured, one module each; see `Peer` for what they are asked."""

from __future__ import annotations

import importlib

from benchmarks._peers._peer import CannotDoError, Digest, Peer, digest
from benchmarks._target import Target

# In the order of the report.
NAMES = (
    "ours",
    "s3torchconnector",
    "boto3",
    "obstore",
    "s3fs",
    "smart_open",
    "webdataset",
    "mosaicml_streaming",
    "litdata",
    "runai_model_streamer",
    "local_disk",
)


def load_peer(name: str, target: Target) -> Peer:
    """Make a peer for a target.

    Raises:
        CannotDoError: When its library is not installed.
    """
    try:
        module = importlib.import_module(f"benchmarks._peers.{name}")
    except ImportError as error:
        raise CannotDoError(f"not installed: {error}") from error
    peer: Peer = module.PEER(target)
    return peer


__all__ = ["NAMES", "CannotDoError", "Digest", "Peer", "digest", "load_peer"]

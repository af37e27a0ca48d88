"""mosaicml-streaming, samples in its own shards; https://docs.mosaicml.com/projects/streaming."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from benchmarks._peers._loading import BATCH_SIZE, batches
from benchmarks._peers._peer import Digest, Peer, digest


def _import() -> Any:
    # It imports torchvision for datasets that are not used here; a torchvision for another build of torch fails to
    # load, and so would every dataset.
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        _stand_in("torchvision")
        _stand_in("torchvision.datasets", VisionDataset=object)
        _stand_in("torchvision.transforms")
        _stand_in("torchvision.transforms.functional", to_tensor=None)
    import streaming

    return streaming


def _stand_in(name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(attributes)
    sys.modules[name] = module


streaming = _import()
_NAME = "mosaicml/"


class MosaicMLStreaming(Peer):
    """The samples of the tar files, written as MDS shards of 64 MiB."""

    def prepare_samples(self, samples: Iterable[tuple[str, bytes]]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            columns = {"key": "str", "data": "bytes"}
            with streaming.MDSWriter(out=directory, columns=columns, size_limit=64 * 2**20) as writer:
                for key, data in samples:
                    writer.write({"key": key, "data": data})
            client = self.target.boto3_client()
            for path in Path(directory).iterdir():
                client.upload_file(str(path), self.target.bucket, self.target.key(_NAME + path.name))

    def read_samples(self, workers: int) -> Iterator[list[Digest]]:
        if self.target.endpoint is not None:
            os.environ["S3_ENDPOINT_URL"] = self.target.endpoint
        with tempfile.TemporaryDirectory(prefix="bench-mosaicml-") as directory:
            dataset = _Digests(
                remote=self.target.uri(_NAME.rstrip("/")), local=directory, shuffle=False, batch_size=BATCH_SIZE
            )
            yield from batches(dataset, workers)

    why_not: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("iterate", "fetch", "read", "load"), "reads samples from its own shards only"
    )


class _Digests(streaming.StreamingDataset):  # type: ignore[name-defined, misc]  # it has no types
    def __getitem__(self, index: Any) -> Any:
        sample = super().__getitem__(index)
        return digest(sample["key"], sample["data"])


PEER = MosaicMLStreaming

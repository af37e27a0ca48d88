"""Lightning checkpoints on S3, for the Trainer and for Fabric; old or new, never broken.

The names are imported when they are first used: which Lightning they are made for is decided then, and importing the
package alone loads neither. It does tell fsspec the name of its filesystem for `s3://`, where s3fs is absent: a
`ModelCheckpoint(dirpath="s3://…")` asks for that at once, and may well be made before the plugin is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .__about__ import __version__
from ._registration import register_filesystem

if TYPE_CHECKING:
    from s3core import S3ClientConfig

    from ._async_io import S3AsyncCheckpoint
    from ._checkpoint_io import S3LightningCheckpoint
    from ._filesystem import S3FileSystem
    from ._strategies import S3FSDPStrategy, S3ModelParallelStrategy

__all__ = [
    # Plugins
    "S3LightningCheckpoint",
    "S3AsyncCheckpoint",
    # Sharded strategies of the Trainer; those of Fabric are in s3torch_lightning.fabric
    "S3FSDPStrategy",
    "S3ModelParallelStrategy",
    # s3:// for fsspec
    "S3FileSystem",
    "register_filesystem",
    # Settings
    "S3ClientConfig",
    # Version
    "__version__",
]

_MODULES = {
    "S3LightningCheckpoint": "s3torch_lightning._checkpoint_io",
    "S3AsyncCheckpoint": "s3torch_lightning._async_io",
    "S3FSDPStrategy": "s3torch_lightning._strategies",
    "S3ModelParallelStrategy": "s3torch_lightning._strategies",
    "S3FileSystem": "s3torch_lightning._filesystem",
    "S3ClientConfig": "s3core",
}

register_filesystem()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Which Lightning is meant: the package `lightning` or its twin `pytorch_lightning`, which share no classes."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from types import ModuleType

_OLDEST = (2, 4)


@dataclass(frozen=True, slots=True)
class Library:
    """One of the two packages that hold the Trainer, with the Fabric that it is built on.

    Args:
        name: The package to import and to install.
        trainer: Where its Trainer lies.
        fabric: Where its Fabric lies.
    """

    name: str
    trainer: str
    fabric: str

    @property
    def is_imported(self) -> bool:
        """Whether this process has imported its Trainer or its Fabric."""
        return self.trainer in sys.modules or self.fabric in sys.modules

    @property
    def is_installed(self) -> bool:
        """Whether it can be imported."""
        return self.is_imported or importlib.util.find_spec(self.name) is not None

    def trainer_module(self, name: str) -> ModuleType:
        """Import a module of its Trainer, such as `strategies`."""
        return importlib.import_module(f"{self.trainer}.{name}")

    def fabric_module(self, name: str) -> ModuleType:
        """Import a module of its Fabric, such as `plugins`."""
        return importlib.import_module(f"{self.fabric}.{name}")

    def version(self) -> str:
        """The version that is installed."""
        version: str = importlib.import_module(self.name).__version__
        return version


LIBRARIES = (
    Library("lightning", "lightning.pytorch", "lightning.fabric"),
    Library("pytorch_lightning", "pytorch_lightning", "lightning_fabric"),
)


def imported_libraries() -> list[Library]:
    """Each Lightning that this process has imported so far."""
    return [library for library in LIBRARIES if library.is_imported]


def find_library() -> Library:
    """Choose the Lightning to derive classes from: the one imported already, or else the one installed.

    Where both qualify, it is `lightning`.

    Returns:
        The library.

    Raises:
        ImportError: Neither is installed, or the one that is is too old.
    """
    candidates = imported_libraries() or [library for library in LIBRARIES if library.is_installed]
    if not candidates:
        raise ImportError(
            "s3torch-lightning needs Lightning, and neither of its packages is installed: "
            "pip install 's3torch-lightning[lightning]' or 's3torch-lightning[pytorch-lightning]'"
        )
    library = candidates[0]
    version = library.version()
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST:
        raise ImportError(
            f"s3torch-lightning needs {library.name} 2.4 or newer, and {version} is installed: "
            f"pip install --upgrade {library.name.replace('_', '-')}"
        )
    return library

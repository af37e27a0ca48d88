"""A private copy of obstore's native library, one per process.

obstore runs its transfers on one runtime per loaded library. A forked child inherits that runtime without its threads,
so every call there hangs for ever, and no hook can help when the user's program used obstore before us. Loading the
library from a new inode gives a library with statics of its own: alive in this process whatever happened in the
parent, and without any effect on the user's own `obstore` (its classes and `sys.modules` entries stay as they are).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ._exceptions import S3Exception

# What the library's initialisation writes into `sys.modules`, over the user's own.
_CLOBBERED = ("obstore._store", "obstore.exceptions")
_THREADS_VARIABLE = "TOKIO_WORKER_THREADS"
# Half of the machine, up to what is enough for any: on 2 cores one thread took a tenth less CPU time than four.
_THREADS = str(max(1, min(4, (os.cpu_count() or 2) // 2)))


def load_native() -> Any:
    """Load a fresh copy of obstore's native library.

    Returns:
        The extension module: `get(store, path, options=…)` and `_store.S3Store`.

    Raises:
        S3Exception: No private copy can be made, and this process is a forked child in which the shared one is dead.
    """
    library = _find_library()
    copy = _copy_to_memory(library)
    if copy is not None:
        return _load(copy)
    copy = _copy_to_disk(library)
    if copy is not None:
        try:
            return _load(copy)
        finally:
            os.unlink(copy)  # The mapping keeps the file's contents.
            os.rmdir(os.path.dirname(copy))
    if _is_forked_child():
        raise S3Exception(
            "s3core cannot load its own copy of obstore in this forked process (neither memfd_create nor an executable "
            "temporary directory is available); start workers with spawn: DataLoader(multiprocessing_context='spawn')"
        )
    return _load(str(library))


def _find_library() -> Path:
    package = importlib.util.find_spec("obstore")
    if package is None or not package.submodule_search_locations:
        raise S3Exception("obstore is not installed; install it with: pip install obstore")
    for folder in package.submodule_search_locations:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            candidate = Path(folder) / f"_obstore{suffix}"
            if candidate.exists():
                return candidate
    raise S3Exception("obstore is installed without its native library; reinstall it with: pip install --force obstore")


def _copy_to_memory(library: Path) -> str | None:
    """Copy the library into an anonymous file and return a path to load it from, or None where that is refused."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        descriptor = os.memfd_create("s3core-obstore", os.MFD_CLOEXEC)
    except OSError:
        return None
    import shutil

    try:
        with open(library, "rb") as source, open(descriptor, "wb", closefd=False) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        # With the pid and not `self`: the loader compares names too, and a grandchild's descriptor of the same number
        # must not be taken for this one. The descriptor stays open: the mapping outlives it, the name does not.
        return f"/proc/{os.getpid()}/fd/{descriptor}" if os.path.exists("/proc/self/fd") else None
    except OSError:
        os.close(descriptor)
        return None


def _copy_to_disk(library: Path) -> str | None:
    """Copy the library to a temporary file that only this process uses, or None where that cannot be loaded."""
    if sys.platform in ("darwin", "win32"):
        return None  # The loader refuses or locks such copies; there the parent uses the library as installed.
    import shutil
    import tempfile

    try:
        folder = tempfile.mkdtemp(prefix="s3core-")
        copy = Path(folder) / library.name
        shutil.copyfile(library, copy)
    except OSError:
        return None
    return str(copy)


def _load(path: str) -> ModuleType:
    # Importing rewrites entries of `sys.modules`, which are the user's when obstore is in use elsewhere.
    kept = {name: sys.modules.get(name) for name in _CLOBBERED}
    # The last part must be `_obstore`: the loader derives the init function's name from it.
    name = "s3core._private._obstore"
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise S3Exception(
            f"s3core cannot load obstore's native library: {error}; reinstall it with: pip install --force obstore"
        ) from error
    finally:
        for clobbered, previous in kept.items():
            if previous is None:
                sys.modules.pop(clobbered, None)
            else:
                sys.modules[clobbered] = previous
    return module


def start_runtime(native: Any) -> None:
    """Start the library's runtime with few threads, whatever the number of cores.

    The runtime reads its number of threads from the environment when it first runs something; the variable is put
    back at once. A DataLoader with many workers would otherwise start cores x workers threads.

    Args:
        native: The module from `load_native`. The caller sees to it that no other thread does this meanwhile.
    """
    before = os.environ.get(_THREADS_VARIABLE)
    if before is None:
        os.environ[_THREADS_VARIABLE] = _THREADS
    try:
        native.head(native._store.MemoryStore(), "none")
    except FileNotFoundError:
        pass
    finally:
        if before is None:
            os.environ.pop(_THREADS_VARIABLE, None)


def _is_forked_child() -> bool:
    """Say whether this process came from a fork of one that had s3core imported."""
    return os.getpid() != _imported_in


_imported_in = os.getpid()

"""Libraries that are loaded at their first use, in such a way that no child is forked in the midst of it.

A child inherits the modules as they are at the moment of the fork: half of one, or the import lock of a thread that is
not there, would break or hang every request in it. So a fork waits until what is being loaded is there, a few tenths
of a second at most.
"""

from __future__ import annotations

import importlib
import logging  # noqa: F401  # Before the hook below, see there.
import os
import threading

loading = threading.RLock()
_loaded: set[str] = set()


def load(*modules: str) -> None:
    """Import modules whole before the next fork; an ordinary `import` behind this finds them.

    Args:
        *modules: Their full names.
    """
    for module in modules:
        if module not in _loaded:
            with loading:
                importlib.import_module(module)
                _loaded.add(module)


if hasattr(os, "register_at_fork"):
    # Hooks that run before a fork run from the last to the first. `logging` has one that takes its lock, which modules
    # need while they are loaded: it must be the older one, so that a fork takes the two locks in this order as well.
    os.register_at_fork(before=loading.acquire, after_in_parent=loading.release, after_in_child=loading.release)
